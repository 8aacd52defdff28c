//! A plan in the simulator: its copies on its GPUs, where they slow each other down, behind a gateway that routes by its prices, with
//! other prompts than it was made of and other seeds.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::json;

use super::measure::{self, Measuring};
use super::sample::Sample;
use crate::evaluate::cells;
use crate::statistics::{mean_or_zero, percentile};
use routebalance_core::config::Config;
use routebalance_core::fleet::{DemandLevel, ModelId, Objective, OnlinePrices};
use routebalance_core::router::Router;
use routebalance_plan::device::{Device, ModelSize, kv_gb, limits};
use routebalance_plan::problem::{Metric, Problem, Statistic};
use routebalance_plan::profile::Profile;
use routebalance_plan::search::Planner;
use routebalance_plan::setup::{Choice, Placement, Setup};
use routebalance_plan::solution::{Plan, Routing};
use routebalance_sim::outcome::Outcome;
use routebalance_sim::sharing::{Part, Sharing};
use routebalance_sim::simulation::{Options, Simulation};
use routebalance_sim::workload::{Arrivals, Template, Workload};

/// Requests of a run that do not count: those before are warming up, and those after see the load fall.
const MEASURED: [f64; 2] = [0.1, 0.97];
/// Time for the last answers: what takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(600);
/// How near to the best routing a refined plan is, units of score.
const GAP: f64 = 1e-4;
/// A configuration that is right but for the fleet.
const REFERENCE: &[u8] = include_bytes!("../../../envoy/routebalance.json");

/// What plans are checked with.
#[derive(Clone, Debug)]
pub struct Checking<'a> {
    /// What was planned.
    pub problem: &'a Problem,
    /// What the speed of each of its models depends on.
    pub sizes: &'a [ModelSize],
    /// Prompts that the plan has not seen, of the problem's models in its order.
    pub sample: &'a Sample,
    /// Tokens after which clients want answers cut; `None` if they want all.
    pub max_tokens: Option<u32>,
    /// Requests of each run.
    pub requests: usize,
    /// Runs of every rate, with seeds of their own.
    pub runs: u64,
    /// First seed.
    pub seed: u64,
}

/// What one model's requests came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct ModelChecked {
    /// Its share of the requests, 0 to 1.
    pub share: f64,
    /// Mean time to the first token, milliseconds.
    pub ttft_mean_ms: f64,
    /// Part of the time that its copies had a step under way, 0 to 1.
    pub busy: f64,
}

/// What a routing came to at a rate.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Checked {
    /// Requests per second.
    pub requests_per_second: f64,
    /// Requests that count.
    pub requests: usize,
    /// Those of them without an answer.
    pub failed: usize,
    /// Mean time to the first token, milliseconds.
    pub ttft_mean_ms: f64,
    /// Half the width of its 95 % interval, by runs; 0 of a single one.
    pub ttft_mean_error_ms: f64,
    /// Its 50th, 75th, 90th, 95th and 99th percentile.
    pub ttft_percentiles_ms: [f64; 5],
    /// Mean time per output token.
    pub tpot_mean_ms: f64,
    /// Mean time to the last token.
    pub e2e_mean_ms: f64,
    /// Mean score as expected beforehand.
    pub score_expected: f64,
    /// Mean score of the answers.
    pub score: f64,
    /// By model, in the problem's order; zeros for models that are not deployed.
    pub models: Vec<ModelChecked>,
}

impl Checked {
    /// How far a prediction of the mean time to the first token is off, as a part of what happened: above 0 if it was slower.
    pub fn off(&self, predicted_ms: f64) -> f64 {
        predicted_ms / self.ttft_mean_ms.max(1e-9) - 1.0
    }
}

/// A setup as a fleet: what a router needs, and who shares what.
#[derive(Clone, Debug)]
pub struct Deployed {
    /// A pool for each model that is deployed, an instance for each copy. The only policy is that of the prices.
    pub config: Config,
    /// Copies on their GPUs.
    pub sharing: Option<Arc<Sharing>>,
    /// For each model of the fleet, its index in the problem.
    pub models: Vec<usize>,
}

/// The fleet of a setup with these prices, one for each model of the problem.
///
/// # Errors
/// The placement is not of the setup, or a GPU is of a kind whose speed is not known.
pub fn deploy(
    problem: &Problem,
    sizes: &[ModelSize],
    setup: &Setup,
    placement: &Placement,
    prices: &[f64],
) -> Result<Deployed> {
    let models: Vec<usize> = (0..problem.models.len()).filter(|m| setup.0[*m].replicas > 0).collect();
    ensure!(!models.is_empty(), "no model is deployed");
    let copies_of = |model: usize| placement.gpus.get(model).map_or(&[][..], Vec::as_slice);
    let (mut parts, mut pools) = (Vec::new(), Vec::new());
    for &model in &models {
        let (choice, copies) = (setup.0[model], copies_of(model));
        let name = &problem.models[model].name;
        ensure!(
            copies.len() == choice.replicas as usize
                && copies.iter().all(|gpus| gpus.len() == choice.tensor_parallel as usize),
            "{name}: its placement is not that of its setup"
        );
        parts.extend(
            copies.iter().map(|gpus| Part { gpus: gpus.clone(), cap: f64::from(choice.share_percent) / 100.0 }),
        );
        let instances: Vec<String> = (0..copies.len()).map(|copy| format!("10.0.{model}.{}:8000", copy + 1)).collect();
        pools.push(json!({
            "name": format!("model-{model}"), "model": name, "cluster": format!("model-{model}"), "served_model": name,
            "profile": { "tpot_ms": 1, "tpot_growth_per_running": 0, "prefill_tokens_per_second": 1_000, "overhead_ms": 0 },
            "limits": { "max_running": 1, "kv_tokens": 16_384, "max_model_len": 4_096 },
            "instances": instances,
        }));
    }
    let mut json: serde_json::Value = serde_json::from_slice(REFERENCE)?;
    let model = |m: &usize| {
        json!({
            "name": problem.models[*m].name, "quality_prior": 0.5, "output_tokens_prior": 300,
            "usd_per_million_input_tokens": 1, "usd_per_million_output_tokens": 1,
        })
    };
    json["models"] = models.iter().map(model).collect::<Vec<_>>().into();
    json["pools"] = pools.into();
    json["policies"] = json!([{ "name": "plan", "weights": { "quality": 1, "latency": 0, "cost": 0 } }]);
    json["default_policy"] = json!("plan");
    json["routes"] = json!([{ "name": "default", "prefix": "/", "policy": "plan" }]);
    json["predictor"]["enabled"] = json!(false);
    json["envoy"]["default_pool"] = json!(format!("model-{}", models[0]));
    let mut config = Config::parse(json.to_string().as_bytes()).context("the fleet of the plan")?;
    for (pool, &model) in config.fleet.pools.iter_mut().zip(&models) {
        let choice = setup.0[model];
        let kind = problem.kinds.get(choice.kind).context("a kind that the problem does not have")?;
        let known = || format!("{}: its speed is not known", kind.name);
        let device = Device::named(&kind.name).with_context(known)?;
        pool.profile = device.profile(&sizes[model], choice.tensor_parallel, choice.share_percent);
        let of_copy = |gpus: &Vec<usize>| {
            let kv_gb_on = |gpu: &usize| {
                let shards = shards_on(problem, setup, placement, *gpu);
                kv_gb(&problem.memory, kind.memory_gb, &shards, choice.share_percent)
            };
            gpus.iter().map(kv_gb_on).fold(f64::INFINITY, f64::min)
        };
        let kv_gb = copies_of(model).iter().map(of_copy).fold(f64::INFINITY, f64::min);
        pool.limits = limits(&sizes[model], choice.tensor_parallel, kv_gb);
    }
    let policy = &mut config.policies[0];
    policy.objective = Objective::Prices;
    policy.prices = models.iter().map(|m| prices.get(*m).copied().unwrap_or_default()).collect();
    // As planned: without interference nothing slows anything down.
    let sharing = problem.space.interference.map(|strength| Arc::new(Sharing::new(parts, strength)));
    Ok(Deployed { config, sharing, models })
}

/// What the shards on a GPU need, GB, and their caps.
fn shards_on(problem: &Problem, setup: &Setup, placement: &Placement, gpu: usize) -> Vec<(f64, u32)> {
    let shards_of = |(model, choice): (usize, &Choice)| {
        let copies = placement.gpus.get(model).into_iter().flatten().filter(|gpus| gpus.contains(&gpu)).count();
        let needed = problem.memory.shard_gb(&problem.models[model], choice.tensor_parallel);
        std::iter::repeat_n((needed, choice.share_percent), copies)
    };
    setup.0.iter().enumerate().flat_map(shards_of).collect()
}

/// A job: a rate, and a seed.
#[derive(Clone, Copy, Debug)]
struct Job {
    rate: f64,
    seed: u64,
}

/// What became of one run.
struct Ran {
    outcomes: Vec<Outcome>,
    busy: Vec<f64>,
}

/// Runs a setup with the prices of a routing at these rates, on both cores, with a progress bar.
///
/// # Errors
/// As [`deploy`]; or the sample is of other models than the problem.
pub fn check(
    checking: &Checking,
    setup: &Setup,
    placement: &Placement,
    routing: &Routing,
    rates: &[f64],
) -> Result<Vec<Checked>> {
    let names: Vec<&str> = checking.problem.models.iter().map(|m| m.name.as_str()).collect();
    ensure!(
        checking.sample.models == names,
        "the prompts are of {}, not {}",
        checking.sample.models.join(", "),
        names.join(", ")
    );
    let deployed = deploy(checking.problem, checking.sizes, setup, placement, &routing.prices)?;
    Ok(check_deployed(checking, &deployed, rates))
}

/// Makes prices follow demand and load, as `--apply` makes those of the gateway: by these routings, at growing rates, and the limit of
/// the mean time to the first token.
pub fn follow_load<'r>(deployed: &mut Deployed, routings: impl Iterator<Item = &'r Routing>, ttft: Duration) {
    let models = &deployed.models;
    let of_deployed = |values: &[f64]| models.iter().map(|m| values.get(*m).copied().unwrap_or_default()).collect();
    let level = |routing: &Routing| DemandLevel {
        rate: routing.rate,
        prices: of_deployed(&routing.prices),
        fractions: of_deployed(&routing.fractions),
    };
    let levels = routings.map(level).collect();
    for policy in &mut deployed.config.policies {
        policy.demand_levels = Vec::clone(&levels);
        policy.online_prices = Some(OnlinePrices {
            ttft,
            max_correction: OnlinePrices::MAX_CORRECTION,
            time_constant: Duration::from_secs_f64(OnlinePrices::SECONDS),
        });
    }
}

/// [`check`] of a fleet as it is.
pub fn check_deployed(checking: &Checking, deployed: &Deployed, rates: &[f64]) -> Vec<Checked> {
    let router = Router::new(deployed.config.clone(), None);
    let templates = templates(checking, &deployed.models);
    let seeds = (0..checking.runs.max(1)).map(|run| checking.seed + run);
    let jobs: Vec<Job> = rates.iter().flat_map(|rate| seeds.clone().map(|seed| Job { rate: *rate, seed })).collect();
    let ran = cells::measured(&jobs, |job| run(checking, &router, deployed, &templates, job));
    let per_rate = ran.chunks(checking.runs.max(1) as usize).zip(rates);
    per_rate.map(|(runs, rate)| summed_up(checking, deployed, &templates, runs, *rate)).collect()
}

/// Demand of a check, as parts of what was planned for.
pub const DEMANDS: [f64; 4] = [0.5, 0.75, 1.0, 1.2];

/// Runs a plan at each level of demand, and at the [`DEMANDS`] about it.
///
/// # Errors
/// As [`check`].
pub fn check_plan(checking: &Checking, plan: &Plan) -> Result<Vec<Vec<Checked>>> {
    let of_level = |routing: &Routing| {
        let rates = DEMANDS.map(|demand| demand * routing.rate);
        check(checking, &plan.setup, &plan.placement, routing, &rates)
    };
    plan.routings.iter().map(of_level).collect()
}

/// The plan of the same setup once its copies are measured with the prompts that it sends them; `None` if it does not keep the limits
/// then. What is predicted of it is what a check is to find.
///
/// # Errors
/// As [`measure::refine`].
pub fn refined(problem: &Problem, measuring: &Measuring, sample: &Sample, plan: &Plan) -> Result<Option<Plan>> {
    let problem = refined_problem(problem, measuring, sample, plan)?;
    let planner = Planner::new(&problem);
    Ok(planner.worker().solve(&plan.setup, &plan.placement, GAP))
}

/// The problem with profiles of a plan's copies that were measured with the prompts that the plan sends them.
///
/// # Errors
/// As [`measure::refine`].
pub fn refined_problem(problem: &Problem, measuring: &Measuring, sample: &Sample, plan: &Plan) -> Result<Problem> {
    let prices = plan.routings.first().map_or(&[][..], |routing| &routing.prices);
    let mut profiles = measure::refine(measuring, sample, &plan.setup, prices)?;
    let is_known = |p: &Profile, fine: &[Profile]| fine.iter().any(|f| f.model == p.model);
    let others: Vec<Profile> = problem.profiles.iter().filter(|p| !is_known(p, &profiles)).cloned().collect();
    profiles.extend(others);
    Ok(Problem { profiles, ..problem.clone() })
}

/// A table of a checked plan: what was predicted for the demand it was made for, and what happened.
pub fn table(problem: &Problem, plan: &Plan, checked: &[Vec<Checked>]) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "req/s",
        "mean TTFT ms",
        "predicted",
        "off",
        "of the limit",
        "P95 TTFT",
        "score",
        "expected",
        "no answer",
    ]);
    let limit = problem.limits.iter().find(|l| (l.metric, l.statistic) == (Metric::Ttft, Statistic::Mean));
    for (routing, rows) in plan.routings.iter().zip(checked) {
        let predicted: f64 = routing.fractions.iter().zip(&routing.ttft_ms).map(|(share, ms)| share * ms).sum();
        for row in rows {
            let planned_for = (row.requests_per_second / routing.rate - 1.0).abs() < 1e-9;
            let only = |text: String| if planned_for { text } else { String::new() };
            table.add_row([
                format!("{:.1}", row.requests_per_second),
                format!("{:.1} ± {:.1}", row.ttft_mean_ms, row.ttft_mean_error_ms),
                only(format!("{predicted:.1}")),
                only(format!("{:+.1} %", 100.0 * row.off(predicted))),
                limit.map_or_else(String::new, |l| format!("{:.0} %", 100.0 * row.ttft_mean_ms / l.milliseconds)),
                format!("{:.1}", row.ttft_percentiles_ms[3]),
                format!("{:.4}", row.score),
                format!("{:.4}", row.score_expected),
                row.failed.to_string(),
            ]);
        }
    }
    table.to_string()
}

/// What clients send, for the models that are deployed.
pub(super) fn templates(checking: &Checking, models: &[usize]) -> Arc<[Template]> {
    let narrowed = |template: &Template| {
        let mut template = template.clone();
        template.output_tokens = models.iter().map(|m| template.output_tokens[*m]).collect();
        template.quality = models.iter().map(|m| template.quality[*m]).collect();
        if let Some(outlook) = &mut template.outlook {
            outlook.estimates = models.iter().map(|m| outlook.estimates[*m]).collect();
        }
        template
    };
    checking.sample.templates(checking.max_tokens).iter().map(narrowed).collect()
}

fn run(checking: &Checking, router: &Router, deployed: &Deployed, templates: &Arc<[Template]>, job: &Job) -> Ran {
    let times = Arrivals::Poisson { rate: job.rate }.times_of(checking.requests, job.seed);
    let last = times.last().copied().unwrap_or_default();
    let workload = Workload::drawn(templates.clone(), &times, 0, job.seed);
    let options =
        Options { sharing: deployed.sharing.clone(), keep_decisions: false, seed: job.seed, ..Options::default() };
    let mut simulation = Simulation::new(router, &workload, &[], options);
    simulation.run_until(last);
    let of_instance = |server: &routebalance_sim::server::Server| server.engine().worked().as_secs_f64();
    let busy = simulation.servers().iter().map(|s| of_instance(s) / last.as_secs_f64().max(1e-9)).collect();
    simulation.finish(last + PATIENCE);
    Ran { outcomes: simulation.into_outcomes(), busy }
}

fn summed_up(checking: &Checking, deployed: &Deployed, templates: &[Template], runs: &[Ran], rate: f64) -> Checked {
    let counted = |run: &Ran| {
        let [from, to] = MEASURED.map(|part| (part * run.outcomes.len() as f64) as usize);
        run.outcomes[from..to].to_vec()
    };
    let all: Vec<Vec<Outcome>> = runs.iter().map(counted).collect();
    let requests = all.iter().map(Vec::len).sum();
    let answered: Vec<&Outcome> = all.iter().flatten().filter(|o| o.is_answered()).collect();
    let ms = |of: fn(&Outcome) -> Option<Duration>, outcomes: &[&Outcome]| -> Vec<f64> {
        outcomes.iter().filter_map(|o| of(o)).map(|d| d.as_secs_f64() * 1e3).collect()
    };
    let mut ttft = ms(|o| o.ttft, &answered);
    ttft.sort_by(f64::total_cmp);
    let run_means: Vec<f64> = all
        .iter()
        .map(|run| mean_or_zero(ms(|o| o.ttft, &run.iter().filter(|o| o.is_answered()).collect::<Vec<_>>())))
        .collect();
    let (_, deviation) = cells::spread(&run_means);
    let of_answer = |o: &Outcome| Some((templates.get(o.template)?, o.model?));
    let expected = |o: &&Outcome| {
        let (template, model) = of_answer(o)?;
        Some(template.outlook.as_ref()?.estimates.get(model.index())?.0.quality)
    };
    let scored = |o: &&Outcome| {
        let (template, model) = of_answer(o)?;
        template.quality.get(model.index()).copied()
    };
    let mut models = vec![ModelChecked::default(); checking.problem.models.len()];
    let fleet = &deployed.config.fleet;
    for (place, &model) in deployed.models.iter().enumerate() {
        let own: Vec<&Outcome> = answered.iter().filter(|o| o.model == Some(ModelId::new(place))).copied().collect();
        let busy = runs
            .iter()
            .flat_map(|run| fleet.pools[place].instances.iter().filter_map(|i| run.busy.get(i.index()).copied()));
        models[model] = ModelChecked {
            share: own.len() as f64 / answered.len().max(1) as f64,
            ttft_mean_ms: mean_or_zero(ms(|o| o.ttft, &own)),
            busy: mean_or_zero(busy.collect::<Vec<_>>()),
        };
    }
    Checked {
        requests_per_second: rate,
        requests,
        failed: requests - answered.len(),
        ttft_mean_ms: mean_or_zero(&ttft),
        ttft_mean_error_ms: if runs.len() > 1 {
            student(runs.len()) * deviation / (runs.len() as f64).sqrt()
        } else {
            0.0
        },
        ttft_percentiles_ms: [50, 75, 90, 95, 99].map(|p| percentile(&ttft, p)),
        tpot_mean_ms: mean_or_zero(ms(Outcome::tpot, &answered)),
        e2e_mean_ms: mean_or_zero(ms(|o| o.e2e, &answered)),
        score_expected: mean_or_zero(answered.iter().filter_map(expected).collect::<Vec<_>>()),
        score: mean_or_zero(answered.iter().filter_map(scored).collect::<Vec<_>>()),
        models,
    }
}

/// Student's 97.5 % quantile for the mean of so many.
fn student(n: usize) -> f64 {
    const QUANTILES: [f64; 9] = [12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26];
    QUANTILES.get(n.saturating_sub(2)).copied().unwrap_or(2.1)
}

#[cfg(test)]
mod tests;
