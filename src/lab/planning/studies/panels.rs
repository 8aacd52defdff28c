//! RouterWise's first study: at eight panels, what setups differ by, and what simple rules lose (PUBLISHED.md, section 19.1).

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::planning::planned::{Planned, worst_ms};
use crate::planning::sweep::{Placer, plan_placed};
use routebalance_plan::baselines::Baseline;
use routebalance_plan::placement::{first_fit_decreasing, place};
use routebalance_plan::problem::{Goal, Level, Limit, Metric, Problem, Statistic};
use routebalance_plan::solution::Plan;

/// GPUs, demand and limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Panel {
    /// GPUs.
    pub gpus: usize,
    /// Requests per second.
    pub rate: f64,
    /// Limit of the mean time to the first token, milliseconds.
    pub slo_ms: f64,
}

const fn panel(gpus: usize, rate: f64, slo_ms: f64) -> Panel {
    Panel { gpus, rate, slo_ms }
}

/// The paper's panels.
pub const PANELS: [Panel; 8] = [
    panel(4, 50.0, 800.0),
    panel(4, 60.0, 500.0),
    panel(4, 70.0, 500.0),
    panel(4, 80.0, 500.0),
    panel(8, 50.0, 400.0),
    panel(8, 60.0, 500.0),
    panel(8, 70.0, 400.0),
    panel(8, 80.0, 500.0),
];

/// What is changed of all panels alike. The paper's models, prompts and answers are not at hand; with others its limits may bind
/// nowhere, and its demand be more than all setups can serve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Setting {
    /// Its name in results.
    pub name: &'static str,
    /// By which demand is multiplied.
    pub rate_factor: f64,
    /// By which limits are multiplied.
    pub limit_factor: f64,
    /// Whether a page shows all setups of its panels, not only tables.
    pub is_drawn: bool,
    /// Whether its plans run in the simulator.
    pub is_checked: bool,
}

/// The paper's numbers.
pub const PUBLISHED: Setting =
    Setting { name: "published", rate_factor: 1.0, limit_factor: 1.0, is_drawn: true, is_checked: true };
/// Limits that bind: profiles end, where a copy can hardly keep up, at means of little more than 100 ms.
pub const TIGHT: Setting = Setting { name: "tight", limit_factor: 0.2, ..PUBLISHED };
/// Demand that four GPUs can serve at every panel.
pub const LIGHT: Setting =
    Setting { name: "light", rate_factor: 0.85, is_drawn: false, is_checked: false, ..PUBLISHED };
/// All of them.
pub const SETTINGS: [Setting; 3] = [PUBLISHED, TIGHT, LIGHT];

impl Setting {
    /// A panel of the paper in this setting.
    pub fn panel(&self, panel: &Panel) -> Panel {
        // Whole numbers stay whole: a limit of 500 times 0.08 is 40, not one bit more.
        let exact = |value: f64| (value * 1e6).round() / 1e6;
        Panel {
            gpus: panel.gpus,
            rate: exact(panel.rate * self.rate_factor),
            slo_ms: exact(panel.slo_ms * self.limit_factor),
        }
    }
}

/// What counts as a setup, and what is known of copies that share GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// As in the paper: first-fit decreasing by memory, caps may oversubscribe GPUs, and nothing slows anything down.
    Paper,
    /// Caps of at most 100 % on every GPU, and the plan file's interference.
    Ours,
}

impl Reading {
    /// Both.
    pub const ALL: [Reading; 2] = [Reading::Paper, Reading::Ours];

    /// Its name in results.
    pub fn name(self) -> &'static str {
        match self {
            Reading::Paper => "paper",
            Reading::Ours => "ours",
        }
    }

    fn placer(self) -> Placer {
        match self {
            Reading::Paper => first_fit_decreasing,
            Reading::Ours => place,
        }
    }
}

/// A panel that was planned.
#[derive(Clone, Debug)]
pub struct Solved {
    /// In which setting.
    pub setting: Setting,
    /// The panel in that setting.
    pub panel: Panel,
    /// By which reading.
    pub reading: Reading,
    /// What came of it.
    pub planned: Planned,
}

/// The problem of a panel: GPUs, demand and limit are the panel's, all else is the given problem's.
pub fn problem(base: &Problem, panel: &Panel, reading: Reading) -> Problem {
    let mut problem = base.clone();
    problem.kinds.iter_mut().for_each(|kind| kind.count = panel.gpus);
    problem.levels = vec![Level { rate: panel.rate, weight: 1.0 }];
    problem.limits = vec![Limit { metric: Metric::Ttft, statistic: Statistic::Mean, milliseconds: panel.slo_ms }];
    (problem.goal, problem.score_min) = (Goal::Score, 0.0);
    problem.space.oversubscribe = reading == Reading::Paper;
    if reading == Reading::Paper {
        problem.space.interference = None;
    }
    problem
}

/// Plans all panels in all settings and readings.
///
/// # Errors
/// No setup of a panel fits on its GPUs.
pub fn solve(base: &Problem) -> Result<Vec<Solved>> {
    let mut all = Vec::new();
    for setting in SETTINGS {
        for panel in PANELS.map(|panel| setting.panel(&panel)) {
            for reading in Reading::ALL {
                let problem = problem(base, &panel, reading);
                let planned = plan_placed(&problem, Vec::new(), reading.placer()).with_context(|| {
                    format!("{} GPUs at {} requests per second, reading {:?}", panel.gpus, panel.rate, reading.name())
                })?;
                all.push(Solved { setting, panel, reading, planned });
            }
        }
    }
    Ok(all)
}

/// Scores of all setups that keep the limit: the worst and the best.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The worst setup's.
    pub worst: f64,
    /// The best setup's.
    pub best: f64,
}

impl Spread {
    /// Of these scores; `None` of none.
    pub fn from_scores(scores: impl Iterator<Item = f64>) -> Option<Spread> {
        scores.fold(None, |spread: Option<Spread>, score| {
            let (worst, best) = spread.map_or((score, score), |s| (s.worst.min(score), s.best.max(score)));
            Some(Spread { worst, best })
        })
    }

    /// By which part the best is better than the worst: the paper's "up to 87 %".
    pub fn relative(&self) -> f64 {
        if self.worst > 0.0 { self.best / self.worst - 1.0 } else { 0.0 }
    }
}

impl Solved {
    /// The spread over setups; `None` if none keeps the limit.
    pub fn spread(&self) -> Option<Spread> {
        Spread::from_scores(self.planned.plans.iter().map(|plan| plan.score))
    }

    /// The score of what a rule chooses, and by how much the best is better; `None` if the rule has no setup that keeps the limit.
    pub fn rule(&self, rule: Baseline) -> Option<(f64, f64)> {
        let by_rule = self.planned.by_rule.iter().find(|by_rule| by_rule.rule == rule)?;
        let (plan, _) = by_rule.found.as_ref()?;
        Some((plan.score, self.spread()?.best - plan.score))
    }

    /// What keeps the panel from telling setups apart, if anything does.
    pub fn remark(&self) -> Option<&'static str> {
        let feasible = self.planned.plans.len();
        if feasible == 0 {
            return Some("no setup keeps the limit");
        }
        let free = self.planned.problem.scores.gain(&vec![0.0; self.planned.problem.models.len()]);
        // What counts as a tie between plans.
        const TIE: f64 = 1e-4;
        let best = self.spread().map_or(0.0, |spread| spread.best);
        match (feasible == self.planned.placed, best >= free - TIE) {
            (true, true) => Some("all setups keep the limit, and the best loses nothing by it"),
            (true, false) => Some("all setups keep the limit"),
            (false, true) => Some("the best loses nothing by the limit"),
            (false, false) => None,
        }
    }

    /// For machines.
    pub fn to_json(&self) -> Value {
        let Planned { problem, enumerated, placed, plans, bound, seconds, .. } = &self.planned;
        let rule = |rule: Baseline| {
            json!({
                "name": rule.name(), "score": self.rule(rule).map(|(score, _)| score), "gain": self.rule(rule).map(|(_, gain)| gain),
            })
        };
        let short = |value: f64, digits: f64| (value * digits).round() / digits;
        let point = |plan: &Plan| json!([short(worst_ms(plan, 0), 1e2), short(plan.score, 1e5)]);
        json!({
            "setting": self.setting.name,
            "reading": self.reading.name(),
            "gpus": self.panel.gpus,
            "requests_per_second": self.panel.rate,
            "slo_ms": self.panel.slo_ms,
            "enumerated": enumerated,
            "placed": placed,
            "feasible": plans.len(),
            "worst": self.spread().map(|s| s.worst),
            "best": self.spread().map(|s| s.best),
            "bound": bound,
            "spread": self.spread().map(|s| s.relative()),
            "unlimited": problem.scores.gain(&vec![0.0; problem.models.len()]),
            "baselines": Baseline::ALL.map(rule),
            "remark": self.remark(),
            "seconds": seconds,
            "points_ms_score": plans.iter().map(point).collect::<Vec<_>>(),
        })
    }
}
