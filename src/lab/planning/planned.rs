//! What the planner has found, for the table, the page and the JSON file.

#[cfg(test)]
pub(crate) mod tests;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use serde_json::{Value, json};

use super::file::limit_name;
use routebalance_plan::baselines::Baseline;
use routebalance_plan::problem::{Goal, Problem};
use routebalance_plan::setup::{Choice, Setup};
use routebalance_plan::solution::{Plan, Routing};

/// A setup that a simple rule chooses.
#[derive(Clone, Debug)]
pub struct ByRule {
    /// The rule.
    pub rule: Baseline,
    /// Its closest setup that keeps the limits, with its best routing, and how far it is from the rule's targets, in GPUs; `None` if
    /// none keeps them.
    pub found: Option<(Plan, f64)>,
}

/// The best routing of the chosen setup at another demand than the plan's.
#[derive(Clone, Debug)]
pub struct AtDemand {
    /// The routing.
    pub routing: Routing,
    /// Whether it keeps the limits; otherwise they are exceeded as little as the setup can.
    pub keeps: bool,
}

/// Parts of the demand at which the chosen setup is solved, too.
pub const DEMANDS: [f64; 6] = [0.25, 0.5, 0.75, 1.0, 1.2, 1.5];

/// What the planner has found.
#[derive(Clone, Debug)]
pub struct Planned {
    /// What was asked.
    pub problem: Problem,
    /// Setups in the space.
    pub enumerated: usize,
    /// Those of them that have a placement.
    pub placed: usize,
    /// Of those, how many were not solved, since a bound shows that they are not among the best: only where there are very many.
    pub left_out: usize,
    /// Those of them that keep the limits, the best first.
    pub plans: Vec<Plan>,
    /// No setup has a plan of a higher score; by the goals that look at money, none whose plan is preferred.
    pub bound: f64,
    /// What simple rules choose.
    pub by_rule: Vec<ByRule>,
    /// The chosen setup at other demands, at growing rates.
    pub at_demand: Vec<AtDemand>,
    /// What was left out or guessed, a sentence each.
    pub notes: Vec<String>,
    /// How long it took.
    pub seconds: f64,
}

impl Planned {
    /// The best plan, if any setup keeps the limits.
    pub fn choice(&self) -> Option<&Plan> {
        self.plans.first()
    }

    /// What the bound says, in words: of which setups, and under which condition.
    pub fn bound_words(&self) -> String {
        let setups = match self.problem.goal {
            Goal::Score => "no setup",
            Goal::ScorePerUsd | Goal::Usd => "no setup that would be preferred",
        };
        let condition = if self.problem.space.interference.is_some() { ", slowed down as in its plan" } else { "" };
        format!(
            "{setups} has more than {:.4}{condition}",
            self.choice().map_or(self.bound, |p| self.bound.max(p.score))
        )
    }

    /// By how much another plan could be better than the choice at most, units of score.
    pub fn gap(&self) -> f64 {
        self.choice().map_or(0.0, |plan| (self.bound - plan.score).max(0.0))
    }

    /// Up to which demand the choice keeps the limits, requests per second, and whether it may be more: nobody has looked further.
    pub fn kept_up_to(&self) -> (f64, bool) {
        let kept = self.at_demand.iter().filter(|at| at.keeps).map(|at| at.routing.rate).fold(0.0, f64::max);
        let planned = self.problem.levels.iter().map(|level| level.rate).fold(0.0, f64::max);
        (kept, kept >= DEMANDS.iter().copied().fold(0.0, f64::max) * planned * 0.999)
    }

    /// Plans that no other beats in score and in the first limit's time, the fastest first.
    pub fn frontier(&self) -> Vec<&Plan> {
        let mut plans: Vec<(f64, &Plan)> = self.plans.iter().map(|plan| (worst_ms(plan, 0), plan)).collect();
        plans.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.score.total_cmp(&a.1.score)));
        let mut best = f64::NEG_INFINITY;
        plans.retain(|(_, plan)| {
            let leads = plan.score > best;
            best = best.max(plan.score);
            leads
        });
        plans.into_iter().map(|(_, plan)| plan).collect()
    }
}

/// The most that a limit's statistic comes to at any level of demand, milliseconds.
pub fn worst_ms(plan: &Plan, limit: usize) -> f64 {
    plan.routings.iter().filter_map(|routing| routing.limits_ms.get(limit)).copied().fold(0.0, f64::max)
}

/// How one model is deployed, in few words: `2 x (tp 2, 50 % of A100-80GB)`.
pub fn choice_words(problem: &Problem, choice: &Choice) -> String {
    if choice.replicas == 0 {
        return "not deployed".to_owned();
    }
    let kind = if problem.kinds.len() > 1 { format!(" of {}", problem.kinds[choice.kind].name) } else { String::new() };
    let one = format!("tp {}, {} %{kind}", choice.tensor_parallel, choice.share_percent);
    if choice.replicas > 1 { format!("{} x ({one})", choice.replicas) } else { one }
}

/// A setup in one line.
pub fn setup_words(problem: &Problem, setup: &Setup) -> String {
    let model =
        |(m, choice): (usize, &Choice)| format!("{}: {}", problem.models[m].name, choice_words(problem, choice));
    setup.0.iter().enumerate().map(model).collect::<Vec<_>>().join("; ")
}

/// Values by model, in the order of the problem.
struct ByModel<'a>(&'a Problem, &'a [f64]);

impl Serialize for ByModel<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.1.len()))?;
        for (model, value) in self.0.models.iter().zip(self.1) {
            map.serialize_entry(&model.name, value)?;
        }
        map.end()
    }
}

/// The result as JSON; its fields are explained in `README.md` beside this file.
pub fn to_json(planned: &Planned) -> Value {
    let problem = &planned.problem;
    json!({
        "goal": goal_name(problem.goal),
        "gpus": problem.kinds.iter().map(|kind| json!({
            "kind": kind.name, "count": kind.count, "memory_gb": kind.memory_gb, "usd_per_hour": kind.usd_per_hour,
        })).collect::<Vec<_>>(),
        "models": problem.models.iter().map(|model| json!({"name": model.name, "weights_gb": model.weights_gb})).collect::<Vec<_>>(),
        "demand": problem.levels.iter().map(|level| json!({
            "requests_per_second": level.rate, "weight": level.weight,
        })).collect::<Vec<_>>(),
        "slo": problem.limits.iter().map(|limit| (limit_name(limit), limit.milliseconds.into())).collect::<serde_json::Map<_, _>>(),
        "prompts": problem.scores.prompts(),
        "setups": {
            "enumerated": planned.enumerated, "placed": planned.placed, "left_out": planned.left_out, "feasible": planned.plans.len(),
        },
        "seconds": planned.seconds,
        "gap": planned.gap(),
        "choice": planned.choice().map(|plan| plan_json(problem, plan)),
        "runners_up": planned.plans.iter().skip(1).take(RUNNERS_UP).map(|plan| plan_json(problem, plan)).collect::<Vec<_>>(),
        "baselines": planned.by_rule.iter().map(|by_rule| by_rule_json(problem, by_rule)).collect::<Vec<_>>(),
        "at_demand": planned.at_demand.iter().map(|at| {
            let mut level = routing_json(problem, &at.routing);
            level["keeps_slo"] = at.keeps.into();
            level
        }).collect::<Vec<_>>(),
        "frontier": planned.frontier().iter().map(|plan| point_json(problem, plan)).collect::<Vec<_>>(),
        "points": planned.plans.iter().map(|plan| point_json(problem, plan)).collect::<Vec<_>>(),
        "kept_up_to": { "requests_per_second": planned.kept_up_to().0, "at_least": planned.kept_up_to().1 },
        "notes": planned.notes,
    })
}

/// Plans after the choice that are shown in full.
pub const RUNNERS_UP: usize = 5;

/// The goal's name in the plan file.
pub fn goal_name(goal: Goal) -> &'static str {
    match goal {
        Goal::Score => "score",
        Goal::ScorePerUsd => "score_per_usd",
        Goal::Usd => "usd",
    }
}

fn by_rule_json(problem: &Problem, by_rule: &ByRule) -> Value {
    json!({
        "name": by_rule.rule.name(),
        "distance_gpus": by_rule.found.as_ref().map(|(_, distance)| distance),
        "plan": by_rule.found.as_ref().map(|(plan, _)| plan_json(problem, plan)),
    })
}

/// Score per USD per hour; `None` where GPUs cost nothing.
pub fn score_per_usd(plan: &Plan) -> Option<f64> {
    (plan.usd_per_hour > 0.0).then(|| plan.score / plan.usd_per_hour)
}

fn plan_json(problem: &Problem, plan: &Plan) -> Value {
    let model = |(m, choice): (usize, &Choice)| {
        json!({
            "model": problem.models[m].name,
            "gpu": (choice.replicas > 0).then(|| problem.kinds[choice.kind].name.clone()),
            "tensor_parallel": choice.tensor_parallel,
            "share_percent": choice.share_percent,
            "replicas": choice.replicas,
            "placement": plan.placement.gpus.get(m),
        })
    };
    json!({
        "models": plan.setup.0.iter().enumerate().map(model).collect::<Vec<_>>(),
        "score": plan.score,
        "score_bound": plan.score_bound,
        "usd_per_hour": plan.usd_per_hour,
        "score_per_usd": score_per_usd(plan),
        "levels": plan.routings.iter().map(|routing| routing_json(problem, routing)).collect::<Vec<_>>(),
    })
}

fn routing_json(problem: &Problem, routing: &Routing) -> Value {
    let by_model = |values: &[f64]| json!(ByModel(problem, values));
    let limits = problem.limits.iter().zip(&routing.limits_ms);
    json!({
        "requests_per_second": routing.rate,
        "score": routing.score,
        "score_bound": routing.score_bound,
        "fractions": by_model(&routing.fractions),
        "prices": by_model(&routing.prices),
        "limits": limits.map(|(limit, ms)| json!({
            "name": limit_name(limit), "limit_ms": limit.milliseconds, "predicted_ms": ms, "margin": ms / limit.milliseconds,
        })).collect::<Vec<_>>(),
        "ttft_mean_ms": by_model(&routing.ttft_ms),
        "slow_down": by_model(&routing.slow_down),
    })
}

/// A setup among all: `setup` has `[kind, tensor_parallel, share_percent, replicas]` per model.
fn point_json(problem: &Problem, plan: &Plan) -> Value {
    json!({
        "setup": plan.setup.0.iter().map(|c| json!([c.kind, c.tensor_parallel, c.share_percent, c.replicas])).collect::<Vec<_>>(),
        "score": plan.score,
        "score_bound": plan.score_bound,
        "limits_ms": (0..problem.limits.len()).map(|limit| worst_ms(plan, limit)).collect::<Vec<_>>(),
        "usd_per_hour": plan.usd_per_hour,
    })
}
