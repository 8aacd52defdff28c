//! The paper's own algorithm beside ours, on setups of one panel.

use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;

use super::panels::{PANELS, Panel, Reading, Solved, TIGHT};
use crate::planning::planned::setup_words;
use routebalance_plan::placement::first_fit_decreasing;
use routebalance_plan::prices::best_score;
use routebalance_plan::problem::{Beyond, Problem};
use routebalance_plan::published::{Knobs, route};
use routebalance_plan::search::Planner;
use routebalance_plan::solution::Plan;

/// Setups that are routed by both.
const SETUPS: usize = 20;
/// Score by which ours may be off.
const GAP: f64 = 1e-5;

/// A setup, routed by both algorithms.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compared {
    /// The setup.
    pub setup: String,
    /// Score of our routing.
    pub score: f64,
    /// No routing has a higher one.
    pub score_bound: f64,
    /// Score of the published algorithm's routing, with the best prices for its shares; `None` if it finds none that keeps the limit.
    pub published_score: Option<f64>,
    /// What ours took.
    pub seconds: f64,
    /// What the published algorithm took.
    pub published_seconds: f64,
}

/// The comparison.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Published {
    /// GPUs of the panel.
    pub gpus: usize,
    /// Its requests per second.
    pub requests_per_second: f64,
    /// Its limit.
    pub slo_ms: f64,
    /// Setups that keep the limit, from the best to the worst.
    pub setups: Vec<Compared>,
}

impl Published {
    /// The panel that is looked at.
    pub fn panel() -> Panel {
        TIGHT.panel(&PANELS[1])
    }

    /// Mean of what each setup has.
    pub fn mean(&self, of: impl Fn(&Compared) -> f64) -> f64 {
        self.setups.iter().map(of).sum::<f64>() / self.setups.len().max(1) as f64
    }

    /// By how much the published algorithm is short of the bound at most, where it finds a routing.
    pub fn most_short(&self) -> f64 {
        let short = |c: &Compared| c.published_score.map(|score| c.score_bound - score);
        self.setups.iter().filter_map(short).fold(0.0, f64::max)
    }

    /// Setups for which the published algorithm finds no routing.
    pub fn missed(&self) -> usize {
        self.setups.iter().filter(|c| c.published_score.is_none()).count()
    }
}

/// Evenly spaced places of a list, the first and the last among them.
fn spaced(len: usize, count: usize) -> Vec<usize> {
    match (len.min(count), len) {
        (0, _) => Vec::new(),
        (1, _) => vec![0],
        (count, len) => (0..count).map(|i| (i * (len - 1) + (count - 1) / 2) / (count - 1)).collect(),
    }
}

/// Routes setups of a panel that were found to keep its limit, as the paper reads it.
///
/// # Errors
/// The panel was not planned.
pub fn compare(solved: &[Solved]) -> Result<Published> {
    let panel = Published::panel();
    let is_it = |s: &&Solved| s.panel == panel && s.reading == Reading::Paper;
    let planned = &solved.iter().find(is_it).context("the panel of the published algorithm was not planned")?.planned;
    // The published algorithm knows no end of a profile: so that both solve the same, ours goes on with the last slope, too.
    let problem = &Problem { beyond: Beyond::LastSlope, ..planned.problem.clone() };
    let planner = Planner::new(problem);
    let mut worker = planner.worker();
    let limit = problem.limits.first().context("the panel has no limit")?;
    let mut by_score: Vec<&Plan> = planned.plans.iter().collect();
    by_score.sort_by(|a, b| b.score.total_cmp(&a.score));
    let mut setups = Vec::new();
    for i in spaced(by_score.len(), SETUPS) {
        let setup = &by_score[i].setup;
        let placement = first_fit_decreasing(problem, setup).context("a setup has lost its placement")?;
        let start = Instant::now();
        let Some(ours) = worker.solve(setup, &placement, GAP) else { continue };
        let seconds = start.elapsed().as_secs_f64();
        let start = Instant::now();
        let theirs = route(&planner, setup, panel.rate, limit, &Knobs::default());
        let published_seconds = start.elapsed().as_secs_f64();
        setups.push(Compared {
            setup: setup_words(problem, setup),
            score: ours.score,
            score_bound: ours.score_bound,
            published_score: theirs.map(|found| best_score(&problem.scores, &found.fractions)),
            seconds,
            published_seconds,
        });
    }
    Ok(Published { gpus: panel.gpus, requests_per_second: panel.rate, slo_ms: panel.slo_ms, setups })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_evenly_spaced_from_the_first_to_the_last() {
        for (len, count, expected) in [
            (0, 20, vec![]),
            (1, 20, vec![0]),
            (3, 20, vec![0, 1, 2]),
            (9, 3, vec![0, 4, 8]),
            (10, 4, vec![0, 3, 6, 9]),
            (5, 1, vec![0]),
        ] {
            assert_eq!(spaced(len, count), expected, "{len} {count}");
        }
    }
}
