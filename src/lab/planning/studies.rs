//! What the planner is worth, on one page: the paper's two studies (RouterWise, arXiv 2604.10907; PUBLISHED.md, sections 19.1 and
//! 19.2), its own algorithm beside ours, and plans in the simulator.

pub mod checked;
pub mod panels;
pub mod published;
mod show;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use self::checked::{Check, Ground};
use self::panels::{PANELS, PUBLISHED, Reading, Solved};
use self::published::Published;
use super::comparison;
use super::file::{Overrides, PlanFile};
use super::page::Part;
use super::sample::Half;
use routebalance_plan::device::ModelSize;

/// What all studies have found.
#[derive(Clone, Debug)]
pub struct Studies {
    /// Names of the models.
    models: Vec<String>,
    /// All panels in all settings and readings.
    solved: Vec<Solved>,
    /// The paper's algorithm beside ours.
    published: Published,
    /// Plans in the simulator.
    checks: Vec<Check>,
    /// Against other routers of equal quality.
    comparison: Vec<comparison::Row>,
    /// How long it all took.
    seconds: f64,
}

/// Runs all studies with the models, profiles, scores and answers of a plan file; GPUs, demand and limits are the studies' own. No
/// run has the seed that profiles were measured with.
///
/// # Errors
/// The file is wrong, has several kinds of GPUs, or does not say what the simulator needs of its models.
pub fn run(file: &Path, seed: u64) -> Result<Studies> {
    let start = Instant::now();
    let most = PANELS.iter().map(|panel| panel.gpus).max();
    let of_panels = Overrides { gpus: most, rate: Some(PANELS[0].rate), slo_ms: Some(PANELS[0].slo_ms) };
    let file = PlanFile::read(file, &of_panels).context("the studies are of one GPU kind")?;
    let (base, _) = file.problem()?;
    let models: Vec<String> = base.models.iter().map(|model| model.name.clone()).collect();
    let (measuring, planning) = file.measuring(seed)?;
    let sizes: Vec<ModelSize> = measuring.models.iter().map(|model| model.size).collect();
    let checking = file.sample(Half::Checking)?;
    let ground = Ground {
        sizes: &sizes,
        measuring: &measuring,
        planning: &planning,
        sample: &checking,
        max_tokens: measuring.max_tokens,
        requests: REQUESTS,
        runs: RUNS,
        seed: seed.wrapping_add(SEEDS_APART),
    };
    let solved = panels::solve(&base)?;
    let published = published::compare(&solved)?;
    let checks = checked::check(&solved, &ground)?;
    let comparison = compare(&solved, &ground)?;
    Ok(Studies { models, solved, published, checks, comparison, seconds: start.elapsed().as_secs_f64() })
}

/// Requests of a run of a check.
const REQUESTS: usize = 30_000;
/// Runs of every demand.
const RUNS: u64 = 2;
/// From the seed of the profiles to the first of the checks.
const SEEDS_APART: u64 = 1_000;

/// The paper's second study, on four GPUs, at those of its panels that have a plan.
fn compare(solved: &[Solved], ground: &Ground<'_>) -> Result<Vec<comparison::Row>> {
    let gpus = PANELS[0].gpus;
    let wanted = |s: &&Solved| s.setting == PUBLISHED && s.reading == Reading::Ours && s.panel.gpus == gpus;
    let of_study: Vec<&Solved> = solved.iter().filter(wanted).collect();
    let first = of_study.first().context("no panel of the second study was planned")?;
    let isolated = comparison::isolated(&first.planned.problem);
    let alone = isolated.as_ref().map(|(setup, placement)| comparison::Deployment { setup, placement });
    let panels: Vec<comparison::Panel<'_>> = of_study.iter().filter_map(|s| of_plan(s, alone)).collect();
    ensure!(!panels.is_empty(), "no setup of four GPUs keeps a limit of the second study");
    comparison::study(&ground.checking(first), ground.planning, &panels)
}

/// A panel of the second study; `None` if it has no plan.
fn of_plan<'s>(solved: &'s Solved, isolated: Option<comparison::Deployment<'s>>) -> Option<comparison::Panel<'s>> {
    let plan = solved.planned.choice()?;
    let planned = comparison::Deployment { setup: &plan.setup, placement: &plan.placement };
    let prices = &plan.routings.first()?.prices;
    Some(comparison::Panel { rate: solved.panel.rate, slo_ms: solved.panel.slo_ms, planned, prices, isolated })
}

impl Studies {
    /// For a terminal.
    pub fn text(&self) -> String {
        show::text(self)
    }

    /// For a page.
    pub fn parts(&self) -> Vec<Part> {
        show::parts(self)
    }

    /// For machines; the fields are explained in `README.md` beside the planner.
    pub fn to_json(&self) -> Value {
        json!({
            "panels": self.solved.iter().map(Solved::to_json).collect::<Vec<_>>(),
            "published_algorithm": self.published,
            "checks": self.checks,
            "comparison": self.comparison,
            "seconds": self.seconds,
        })
    }
}
