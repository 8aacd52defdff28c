//! Cells over their seeds, and the names that the lab treats in a way of their own.

use super::cell::{Cell, CellWeights, Cells};
use super::statistics::{Estimate, mean, over_seeds};

/// Our contender.
pub const OURS: &str = "routebalance";
/// The paper's.
pub const PAPER: &str = "routebalance-paper";
/// The contender that knows quality and length: a bound, not a rival.
pub const ORACLE: &str = "oracle";

/// What all contenders of a comparison share besides the rate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Experiment {
    /// The workload's name.
    pub workload: String,
    /// Further variation; empty for none.
    pub variant: String,
    /// What deciding takes: `zero` or `charged`.
    pub overhead: String,
    /// Gateways.
    pub gateways: usize,
}

impl Experiment {
    /// Of a cell.
    pub fn of(cell: &Cell) -> Experiment {
        Experiment {
            workload: cell.workload.clone(),
            variant: cell.variant.clone(),
            overhead: cell.overhead.clone(),
            gateways: cell.gateways,
        }
    }
}

/// One contender with one setting, one set of weights and one rate, over its seeds.
#[derive(Clone, Debug)]
pub struct Summary<'a> {
    /// The cells, one per seed.
    pub cells: Vec<&'a Cell>,
    /// What it was asked to do.
    pub experiment: Experiment,
    /// Mean quality.
    pub quality: Estimate,
    /// Mean cost of a request, USD.
    pub cost_usd: Estimate,
    /// Mean time to the last token, milliseconds.
    pub e2e_ms: Estimate,
    /// 99th percentile of the time to the last token, milliseconds: mean over seeds.
    pub e2e_p99_ms: f64,
    /// 99th percentile of the time to the first token, milliseconds: mean over seeds.
    pub ttft_p99_ms: f64,
    /// Answered requests per second: mean over seeds.
    pub throughput_rps: f64,
    /// Share of requests with a whole answer: mean over seeds.
    pub answered: f64,
}

impl<'a> Summary<'a> {
    fn new(cells: Vec<&'a Cell>) -> Option<Summary<'a>> {
        let first = *cells.first()?;
        let each = |of: fn(&Cell) -> f64| cells.iter().map(|cell| of(cell)).collect::<Vec<f64>>();
        let centre = |of: fn(&Cell) -> f64| mean(&each(of)).unwrap_or(f64::NAN);
        // One seed shows no spread between seeds: then it is the spread between requests.
        let estimate = |of: fn(&Cell) -> f64, interval: [f64; 2]| {
            over_seeds(&each(of)).unwrap_or(Estimate { mean: of(first), low: interval[0], high: interval[1] })
        };
        Some(Summary {
            experiment: Experiment::of(first),
            quality: estimate(|cell| cell.quality, first.intervals.quality),
            cost_usd: estimate(|cell| cell.cost_usd, first.intervals.cost_usd),
            e2e_ms: estimate(|cell| cell.e2e_ms.mean, first.intervals.e2e_ms),
            e2e_p99_ms: centre(|cell| cell.e2e_ms.p99),
            ttft_p99_ms: centre(|cell| cell.ttft_ms.p99),
            throughput_rps: centre(|cell| cell.throughput_rps),
            answered: centre(|cell| 1.0 - cell.failed as f64 / cell.requests.max(1) as f64),
            cells,
        })
    }

    /// Its first seed's cell, for what has no mean: times' distributions, the course of time.
    pub fn first(&self) -> &'a Cell {
        self.cells[0]
    }

    /// The contender.
    pub fn policy(&self) -> &'a str {
        &self.first().policy
    }

    /// Requests per second.
    pub fn rate(&self) -> f64 {
        self.first().rate
    }

    /// Its weights.
    pub fn weights(&self) -> Option<CellWeights> {
        self.first().weights
    }

    /// Whether quality, time and money weigh the same.
    pub fn is_uniform(&self) -> bool {
        self.weights().is_some_and(|w| [w.quality, w.latency, w.cost].iter().all(|w| (w - 1.0 / 3.0).abs() < 0.01))
    }

    /// Weights and knobs in words: `.8/.1/.1`, `uniform`, `threshold .5`.
    pub fn knobs(&self) -> String {
        let digits = |share: f64| format!("{share:.2}").trim_end_matches('0').trim_end_matches('.').to_owned();
        let weights = self.weights().map(|w| {
            let [q, l, c] = [w.quality, w.latency, w.cost].map(digits);
            if self.is_uniform() { "uniform".to_owned() } else { format!("{q} / {l} / {c}") }
        });
        let setting = Some(self.first().setting.clone()).filter(|setting| !setting.is_empty());
        weights.into_iter().chain(setting).collect::<Vec<_>>().join(", ")
    }
}

/// Cells that differ only in their seed, together; in the order of the first of each.
pub fn summaries(cells: &Cells) -> Vec<Summary<'_>> {
    let mut groups: Vec<Vec<&Cell>> = Vec::new();
    let mut index = std::collections::BTreeMap::new();
    for cell in &cells.cells {
        let weights = cell.weights.map(|w| [w.quality, w.latency, w.cost].map(f64::to_bits));
        let key = (&cell.policy, &cell.setting, weights, cell.rate.to_bits(), Experiment::of(cell));
        let at = *index.entry(key).or_insert(groups.len());
        if at == groups.len() {
            groups.push(Vec::new());
        }
        groups[at].push(cell);
    }
    groups.into_iter().filter_map(Summary::new).collect()
}

/// The comparison that most cells belong to: of several, one without a variation, and with the time that deciding takes charged.
pub fn main_experiment(summaries: &[Summary]) -> Option<Experiment> {
    let mut counts = std::collections::BTreeMap::<&Experiment, usize>::new();
    for summary in summaries {
        *counts.entry(&summary.experiment).or_default() += summary.cells.len();
    }
    let best = counts.into_iter().max_by_key(|(e, count)| (e.variant.is_empty(), *count, e.overhead == "charged"));
    best.map(|(experiment, _)| experiment.clone())
}

/// The rates of some summaries, lowest first.
pub fn rates(summaries: &[&Summary]) -> Vec<f64> {
    let mut rates: Vec<f64> = summaries.iter().map(|summary| summary.rate()).collect();
    rates.sort_by(f64::total_cmp);
    rates.dedup();
    rates
}

/// The contenders of some summaries: ours, the paper's and its kin, the others by name, the oracle.
pub fn contenders<'a>(summaries: &[&Summary<'a>]) -> Vec<&'a str> {
    let mut names: Vec<&str> = summaries.iter().map(|summary| summary.policy()).collect();
    let place = |name: &str| match name {
        OURS => 0,
        PAPER => 1,
        ORACLE => 4,
        _ if name.starts_with(PAPER) => 2,
        _ => 3,
    };
    names.sort_by_key(|name| (place(name), *name));
    names.dedup();
    names
}

/// A contender's cell at each rate that stands for it where only one can: with uniform weights if it has weights; of several
/// settings the plain one, else the one whose quality is nearest to `quality` over all rates.
pub fn representatives<'s, 'a>(summaries: &[&'s Summary<'a>], policy: &str, quality: f64) -> Vec<&'s Summary<'a>> {
    let mut own: Vec<&Summary> = summaries.iter().copied().filter(|summary| summary.policy() == policy).collect();
    if own.iter().any(|summary| summary.is_uniform()) {
        own.retain(|summary| summary.is_uniform());
    }
    let mut settings: Vec<String> = own.iter().map(|summary| summary.knobs()).collect();
    settings.sort();
    settings.dedup();
    let distance = |setting: &String| {
        let plain = setting.is_empty() || setting == "uniform";
        let of: Vec<f64> = own.iter().filter(|s| s.knobs() == *setting).map(|s| s.quality.mean).collect();
        if plain { -1.0 } else { (mean(&of).unwrap_or(f64::INFINITY) - quality).abs() }
    };
    let chosen = settings.iter().min_by(|a, b| distance(a).total_cmp(&distance(b))).cloned().unwrap_or_default();
    own.retain(|summary| summary.knobs() == chosen);
    own.sort_by(|a, b| a.rate().total_cmp(&b.rate()));
    own
}

/// Mean quality of our cells with uniform weights: where contenders without weights are compared with ours.
pub fn balanced_quality(summaries: &[&Summary]) -> f64 {
    let of = |test: fn(&Summary) -> bool| {
        mean(&summaries.iter().filter(|s| test(s)).map(|s| s.quality.mean).collect::<Vec<f64>>())
    };
    of(|s| s.policy() == OURS && s.is_uniform()).or_else(|| of(|_| true)).unwrap_or(0.0)
}

/// Share of requests that must be answered for a rate to be sustained.
pub const SUSTAINED_ANSWERED_MIN: f64 = 0.97;
/// Longest 99th percentile of the time to the first token at a sustained rate, milliseconds.
pub const SUSTAINED_TTFT_P99_MAX_MS: f64 = 5000.0;

/// Of a contender's cells, the one with the highest throughput among those that keep up with what is offered.
pub fn sustained<'s, 'a>(cells: &[&'s Summary<'a>]) -> Option<&'s Summary<'a>> {
    let keeps_up = |s: &&&Summary| s.answered >= SUSTAINED_ANSWERED_MIN && s.ttft_p99_ms <= SUSTAINED_TTFT_P99_MAX_MS;
    cells.iter().filter(keeps_up).copied().max_by(|a, b| a.throughput_rps.total_cmp(&b.throughput_rps))
}
