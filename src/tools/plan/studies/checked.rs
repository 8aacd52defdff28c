//! The panels' plans in the simulator: with the prices of the plan, and with prices that follow live load.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::panels::{Reading, Solved};
use crate::plan::device::ModelSize;
use crate::tools::plan::check::{Checked, Checking, check_deployed, deploy, follow_load};
use crate::tools::plan::sample::Sample;

/// Demand, as parts of the forecast. The planner has solved each for the chosen setup.
pub const PARTS: [f64; 4] = [0.5, 0.75, 1.0, 1.2];
/// Requests of a run.
const REQUESTS: usize = 12_000;
/// Runs of every demand, with seeds of their own.
const RUNS: u64 = 2;

/// What plans run with.
#[derive(Clone, Copy, Debug)]
pub struct Ground<'a> {
    /// What the speed of each model depends on.
    pub sizes: &'a [ModelSize],
    /// Prompts that no plan has seen.
    pub sample: &'a Sample,
    /// Tokens after which answers are cut.
    pub max_tokens: Option<u32>,
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
            requests: REQUESTS,
            runs: RUNS,
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
    /// Mean time to the first token that it predicts of that routing, or else of the one that exceeds the limit least, milliseconds.
    pub predicted_ms: f64,
    /// Its predicted score.
    pub predicted_score: f64,
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
        self.at_forecast().map(|at| at.static_prices.off(at.predicted_ms))
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
        demands: Vec::new(),
    };
    let planned = &solved.planned;
    let Some((plan, routing)) = planned.choice().and_then(|plan| Some((plan, plan.routings.first()?))) else {
        return Ok(check);
    };
    let checking = ground.checking(solved);
    let fixed = deploy(checking.problem, checking.sizes, &plan.setup, &plan.placement, &routing.prices)?;
    let mut online = fixed.clone();
    let ttft = Duration::from_secs_f64(solved.panel.slo_ms * 1e-3);
    follow_load(&mut online, planned.at_demand.iter().map(|at| &at.routing), ttft);
    let rates = PARTS.map(|part| part * solved.panel.rate);
    let [fixed, online] = [fixed, online].map(|deployed| check_deployed(&checking, &deployed, &rates));
    for ((part, rate), (static_prices, online_prices)) in PARTS.iter().zip(rates).zip(fixed.into_iter().zip(online)) {
        let near = |at: &&crate::tools::plan::planned::AtDemand| (at.routing.rate / rate - 1.0).abs() < 1e-6;
        let Some(best) = planned.at_demand.iter().find(near) else { continue };
        check.demands.push(AtDemand {
            part: *part,
            can_keep: best.keeps,
            predicted_ms: best.routing.limits_ms.first().copied().unwrap_or_default(),
            predicted_score: best.routing.score,
            static_prices,
            online_prices,
        });
    }
    Ok(check)
}
