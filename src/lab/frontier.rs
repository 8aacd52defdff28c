//! Frontiers against each other: for every cell of theirs, the fastest of ours that is as good and as cheap.

use super::summary::{ORACLE, Summary};

/// How much lower a quality still counts as the same.
pub const QUALITY_SLACK: f64 = 0.003;
/// How much higher a cost still counts as the same.
pub const COST_SLACK: f64 = 0.01;
/// How far times may differ and still be a tie.
pub const TIE: f64 = 0.02;

/// Who is faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Ours, by more than a tie.
    Win,
    /// Neither.
    Tie,
    /// Theirs, or none of ours is as good and as cheap.
    Loss,
}

/// One cell of theirs and the one of ours that answers it.
#[derive(Clone, Debug)]
pub struct Duel<'s, 'a> {
    /// Theirs.
    pub theirs: &'s Summary<'a>,
    /// The fastest of ours with a quality and a cost no worse than its; `None` if there is none.
    pub ours: Option<&'s Summary<'a>>,
    /// By mean E2E.
    pub outcome: Outcome,
}

impl Duel<'_, '_> {
    /// Our mean E2E over theirs.
    pub fn mean_ratio(&self) -> Option<f64> {
        ratio(self.ours?.e2e_ms.mean, self.theirs.e2e_ms.mean)
    }

    /// Our 99th percentile of E2E over theirs.
    pub fn p99_ratio(&self) -> Option<f64> {
        ratio(self.ours?.e2e_p99_ms, self.theirs.e2e_p99_ms)
    }
}

fn ratio(ours: f64, theirs: f64) -> Option<f64> {
    Some(ours / theirs).filter(|ratio| ratio.is_finite())
}

/// Our frontier against theirs at one rate.
#[derive(Clone, Debug)]
pub struct Against<'s, 'a> {
    /// Requests per second.
    pub rate: f64,
    /// One per cell of theirs.
    pub duels: Vec<Duel<'s, 'a>>,
}

impl Against<'_, '_> {
    /// How many cells end so.
    pub fn count(&self, outcome: Outcome) -> usize {
        self.duels.iter().filter(|duel| duel.outcome == outcome).count()
    }

    /// Mean over the answered cells of theirs, of those with at least this weight of quality, of our mean E2E over theirs.
    pub fn mean_ratio(&self, quality_weight_min: f64) -> Option<f64> {
        self.mean_of(quality_weight_min, |duel| duel.mean_ratio())
    }

    /// The same of the 99th percentiles.
    pub fn p99_ratio(&self, quality_weight_min: f64) -> Option<f64> {
        self.mean_of(quality_weight_min, |duel| duel.p99_ratio())
    }

    fn mean_of(&self, quality_weight_min: f64, of: fn(&Duel) -> Option<f64>) -> Option<f64> {
        let heavy = |duel: &&Duel| duel.theirs.weights().map_or(0.0, |w| w.quality) >= quality_weight_min - 1e-9;
        super::statistics::mean(self.duels.iter().filter(heavy).filter_map(of).collect::<Vec<f64>>())
    }
}

/// The cells of contender `ours` against those of contender `theirs` at one rate of one experiment.
pub fn against<'s, 'a>(cells: &[&'s Summary<'a>], ours: &str, theirs: &str, rate: f64) -> Against<'s, 'a> {
    let cells_of =
        |name: &str| cells.iter().copied().filter(|s| s.policy() == name && s.is_at(rate)).collect::<Vec<_>>();
    let own = cells_of(ours);
    let duel = |theirs: &'s Summary<'a>| {
        let answers = own.iter().copied().filter(|ours| is_as_good_and_cheap(ours, theirs));
        let ours = answers.min_by(|a, b| a.e2e_ms.mean.total_cmp(&b.e2e_ms.mean));
        let outcome = match ours.map(|ours| ours.e2e_ms.mean / theirs.e2e_ms.mean) {
            Some(ratio) if ratio < 1.0 - TIE => Outcome::Win,
            Some(ratio) if ratio <= 1.0 + TIE => Outcome::Tie,
            _ => Outcome::Loss,
        };
        Duel { theirs, ours, outcome }
    };
    Against { rate, duels: cells_of(theirs).into_iter().map(duel).collect() }
}

fn is_as_good_and_cheap(this: &Summary, other: &Summary) -> bool {
    this.quality.mean >= other.quality.mean - QUALITY_SLACK
        && this.cost_usd.mean <= other.cost_usd.mean * (1.0 + COST_SLACK)
}

/// The cells of the frontier of contender `ours` at one rate that a cell of another contender, not the oracle, dominates: as
/// good and as cheap within the slack, and faster by more than a tie. Each with the fastest that does.
pub fn dominated<'s, 'a>(cells: &[&'s Summary<'a>], ours: &str, rate: f64) -> Vec<(&'s Summary<'a>, &'s Summary<'a>)> {
    let at: Vec<&Summary> = cells.iter().copied().filter(|summary| summary.is_at(rate)).collect();
    let (own, others): (Vec<&Summary>, Vec<&Summary>) = at.into_iter().partition(|summary| summary.policy() == ours);
    let fastest = |cell: &Summary, of: &[&'s Summary<'a>]| {
        let better = of
            .iter()
            .copied()
            .filter(|other| is_as_good_and_cheap(other, cell) && other.e2e_ms.mean < cell.e2e_ms.mean * (1.0 - TIE));
        better.min_by(|a, b| a.e2e_ms.mean.total_cmp(&b.e2e_ms.mean))
    };
    let rivals: Vec<&Summary> = others.into_iter().filter(|summary| summary.policy() != ORACLE).collect();
    let frontier = own.iter().copied().filter(|cell| fastest(cell, &own).is_none());
    frontier.filter_map(|cell| Some((cell, fastest(cell, &rivals)?))).collect()
}

/// The points that no other beats on both axes, from left to right: `x` is better low if `x_low`, `y` is better high.
pub fn pareto(points: &[(f64, f64)], x_low: bool) -> Vec<(f64, f64)> {
    let mut sorted: Vec<(f64, f64)> = points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
    let key = |x: f64| if x_low { x } else { -x };
    sorted.sort_by(|a, b| key(a.0).total_cmp(&key(b.0)).then(b.1.total_cmp(&a.1)));
    let mut best = f64::NEG_INFINITY;
    sorted.retain(|(_, y)| {
        let keep = *y > best;
        best = best.max(*y);
        keep
    });
    if !x_low {
        sorted.reverse();
    }
    sorted
}
