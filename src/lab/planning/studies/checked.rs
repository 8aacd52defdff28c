//! The panels' plans in the simulator: with the prices of the plan, and with prices that follow live load.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::panels::{Reading, Solved};
use crate::planning::check::{Checked, Checking, DEMANDS, check_deployed, deploy, follow_load, refined_problem};
use crate::planning::measure::Measuring;
use crate::planning::planned;
use crate::planning::sample::Sample;
use crate::planning::sweep::{at_demand, followed};
use routebalance_core::prices::AIM;
use routebalance_plan::device::ModelSize;
use routebalance_plan::search::Planner;

/// Score by which a refined plan may be off.
const GAP: f64 = 1e-5;

/// What plans run with.
#[derive(Clone, Copy, Debug)]
pub struct Ground<'a> {
    /// What the speed of each model depends on.
    pub sizes: &'a [ModelSize],
    /// How copies are measured once more, with the prompts that a plan sends them.
    pub measuring: &'a Measuring,
    /// The prompts that plans are made of.
    pub planning: &'a Sample,
    /// Prompts that no plan has seen.
    pub sample: &'a Sample,
    /// Tokens after which answers are cut.
    pub max_tokens: Option<u32>,
    /// Requests of a run.
    pub requests: usize,
    /// Runs of every demand, with seeds of their own.
    pub runs: u64,
    /// First seed.
    pub seed: u64,
}

impl<'a> Ground<'a> {
    /// The check of a panel's plans.
    pub fn checking(&self, solved: &'a Solved) -> Checking<'a> {
        Checking {
            problem: &solved.planned.problem,
            sizes: self.sizes,
            sample: self.sample,
            max_tokens: self.max_tokens,
            requests: self.requests,
            runs: self.runs,
            seed: self.seed,
        }
    }
}

/// A plan at one demand.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AtDemand {
    /// Part of the forecast.
    pub part: f64,
    /// Whether the planner knows a routing of the setup that keeps the limit.
    pub can_keep: bool,
    /// Mean time to the first token that it predicts of that routing, or else of the one that exceeds the limit least, milliseconds;
    /// `None` if the setup cannot serve the demand.
    pub predicted_ms: Option<f64>,
    /// Its predicted score.
    pub predicted_score: Option<f64>,
    /// With the prices of the forecast.
    pub static_prices: Checked,
    /// With prices that follow live load.
    pub online_prices: Checked,
}

/// A panel's plan in the simulator.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    /// The setting's name.
    pub setting: &'static str,
    /// GPUs.
    pub gpus: usize,
    /// The forecast.
    pub requests_per_second: f64,
    /// The limit.
    pub slo_ms: f64,
    /// Whether the setup still keeps the limit once its copies are measured with the prompts that it sends them.
    pub keeps_when_refined: bool,
    /// By demand.
    pub demands: Vec<AtDemand>,
}

impl Check {
    /// At the demand that the plan was made for.
    pub fn at_forecast(&self) -> Option<&AtDemand> {
        self.demands.iter().find(|at| (at.part - 1.0).abs() < 1e-9)
    }

    /// By which part of what happened the prediction was off, with the prices of the plan at its demand.
    pub fn off(&self) -> Option<f64> {
        self.at_forecast().and_then(|at| Some(at.static_prices.off(at.predicted_ms?)))
    }

    /// The same with online prices, which hold the plan's shares on whatever prompts come; `None` where they aim lower than the plan
    /// ([`AIM`]).
    pub fn online_off(&self) -> Option<f64> {
        let at = self.at_forecast()?;
        let predicted_ms = at.predicted_ms.filter(|ms| *ms <= AIM * self.slo_ms)?;
        Some(at.online_prices.off(predicted_ms))
    }

    /// Whether every request was answered, and their mean keeps the limit.
    pub fn keeps(&self, checked: &Checked) -> bool {
        checked.failed == 0 && checked.ttft_mean_ms <= self.slo_ms
    }

    /// The simulated mean over the limit.
    pub fn margin(&self, checked: &Checked) -> f64 {
        checked.ttft_mean_ms / self.slo_ms
    }
}

/// Runs the plans that the settings want checked.
///
/// # Errors
/// A plan cannot be deployed.
pub fn check(solved: &[Solved], ground: &Ground<'_>) -> Result<Vec<Check>> {
    let wanted = solved.iter().filter(|s| s.setting.is_checked && s.reading == Reading::Ours);
    wanted.filter(|s| s.planned.choice().is_some()).map(|s| of_panel(s, ground)).collect()
}

fn of_panel(solved: &Solved, ground: &Ground<'_>) -> Result<Check> {
    let mut check = Check {
        setting: solved.setting.name,
        gpus: solved.panel.gpus,
        requests_per_second: solved.panel.rate,
        slo_ms: solved.panel.slo_ms,
        keeps_when_refined: false,
        demands: Vec::new(),
    };
    let Some(plan) = solved.planned.choice() else { return Ok(check) };
    let problem = refined_problem(&solved.planned.problem, ground.measuring, ground.planning, plan)?;
    let planner = Planner::new(&problem);
    let mut worker = planner.worker();
    let refined = worker.solve(&plan.setup, &plan.placement, GAP);
    check.keeps_when_refined = refined.is_some();
    let plan = refined.as_ref().unwrap_or(plan);
    let Some(routing) = plan.routings.first() else { return Ok(check) };
    let levels = at_demand(&problem, plan);
    let checking = ground.checking(solved);
    let prices = worker.exact_prices(routing);
    let fixed = deploy(checking.problem, checking.sizes, &plan.setup, &plan.placement, &prices)?;
    let mut online = fixed.clone();
    let ttft = Duration::from_secs_f64(solved.panel.slo_ms * 1e-3);
    follow_load(&mut online, followed(&problem, plan, &levels).iter(), ttft);
    let rates = DEMANDS.map(|part| part * solved.panel.rate);
    let [fixed, online] = [fixed, online].map(|deployed| check_deployed(&checking, &deployed, &rates));
    for ((part, rate), (static_prices, online_prices)) in DEMANDS.iter().zip(rates).zip(fixed.into_iter().zip(online)) {
        let near = |at: &&planned::AtDemand| (at.routing.rate / rate - 1.0).abs() < 1e-6;
        let best = levels.iter().find(near);
        check.demands.push(AtDemand {
            part: *part,
            can_keep: best.is_some_and(|best| best.keeps),
            predicted_ms: best.and_then(|best| best.routing.limits_ms.first().copied()),
            predicted_score: best.map(|best| best.routing.score),
            static_prices,
            online_prices,
        });
    }
    Ok(check)
}
