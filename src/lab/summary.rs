//! Cells over their seeds, and the names that the lab treats in a way of their own.

use super::cell::{Cell, CellWeights, Cells};
use super::statistics::{Estimate, mean, over_seeds};

/// Our contender.
pub const OURS: &str = "routebalance";
/// The paper's.
pub const PAPER: &str = "routebalance-paper";
/// The variation of cells that are at the highest rate that their contender sustains.
pub const SUSTAINED: &str = "sustained";
/// The variation of our cells between and beyond the published weights.
pub const SWEPT: &str = "sweep";
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
    pub fn from_cell(cell: &Cell) -> Experiment {
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
    /// Requests per second: mean over seeds, which differ where a workload has a rate of its own.
    pub rate: f64,
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
    /// Answers over requests while requests came: mean over seeds; of cells without it, the share that was answered.
    pub served: f64,
}

impl<'a> Summary<'a> {
    fn new(cells: Vec<&'a Cell>) -> Option<Summary<'a>> {
        let first = *cells.first()?;
        let each = |of: fn(&Cell) -> f64| cells.iter().map(|cell| of(cell)).collect::<Vec<f64>>();
        let centre = |of: &dyn Fn(&Cell) -> f64| {
            mean(cells.iter().map(|cell| of(cell)).collect::<Vec<f64>>()).unwrap_or(f64::NAN)
        };
        let answered = |cell: &Cell| 1.0 - cell.failed as f64 / cell.requests.max(1) as f64;
        // One seed shows no spread between seeds: then it is the spread between requests, where that was measured.
        let estimate = |of: fn(&Cell) -> f64, [low, high]: [f64; 2]| {
            let mean = of(first);
            let alone = if low <= mean && mean <= high {
                Estimate { mean, low, high }
            } else {
                Estimate { mean, low: mean, high: mean }
            };
            over_seeds(&each(of)).unwrap_or(alone)
        };
        Some(Summary {
            experiment: Experiment::from_cell(first),
            quality: estimate(|cell| cell.quality, first.intervals.quality),
            cost_usd: estimate(|cell| cell.cost_usd, first.intervals.cost_usd),
            e2e_ms: estimate(|cell| cell.e2e_ms.mean, first.intervals.e2e_ms),
            e2e_p99_ms: centre(&|cell| cell.e2e_ms.p99),
            ttft_p99_ms: centre(&|cell| cell.ttft_ms.p99),
            throughput_rps: centre(&|cell| cell.throughput_rps),
            rate: centre(&|cell| cell.rate),
            answered: centre(&answered),
            served: centre(&|cell| cell.served.unwrap_or_else(|| answered(cell))),
            cells,
        })
    }

    /// Its first seed's cell.
    pub fn first(&self) -> &'a Cell {
        self.cells[0]
    }

    /// The cell whose course of time is kept.
    pub fn with_timeline(&self) -> Option<&'a Cell> {
        self.cells.iter().copied().find(|cell| !cell.timeline.is_empty())
    }

    /// Whether it was asked this many requests per second.
    pub fn is_at(&self, rate: f64) -> bool {
        (self.rate - rate).abs() <= 0.01 * rate
    }

    /// The contender.
    pub fn policy(&self) -> &'a str {
        &self.first().policy
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

/// Rates of different seeds that are nearer to each other than this are the same workload's.
const SAME_RATE: f64 = 1.15;

/// Cells that differ only in their seed, together; in the order of the first of each.
pub fn summaries(cells: &Cells) -> Vec<Summary<'_>> {
    let mut groups: Vec<Vec<&Cell>> = Vec::new();
    let mut index = std::collections::BTreeMap::<_, Vec<usize>>::new();
    for cell in &cells.cells {
        let weights = cell.weights.map(|w| [w.quality, w.latency, w.cost].map(f64::to_bits));
        let known = index.entry((&cell.policy, &cell.setting, weights, Experiment::from_cell(cell))).or_default();
        let is_its = |group: &Vec<&Cell>| {
            let ratio = cell.rate / group[0].rate;
            let is_new = group.iter().all(|other| other.seed != cell.seed);
            is_new && (ratio == 1.0 || (1.0 / SAME_RATE..SAME_RATE).contains(&ratio))
        };
        // A rate that is exactly the same comes before one that is only near.
        let exact = known.iter().copied().find(|at| groups[*at][0].rate == cell.rate && is_its(&groups[*at]));
        match exact.or_else(|| known.iter().copied().find(|at| is_its(&groups[*at]))) {
            Some(at) => groups[at].push(cell),
            None => {
                known.push(groups.len());
                groups.push(vec![cell]);
            }
        }
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
    let mut rates: Vec<f64> = summaries.iter().map(|summary| summary.rate).collect();
    rates.sort_by(f64::total_cmp);
    rates.dedup_by(|a, b| (*a - *b).abs() <= 0.01 * *b);
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
/// settings that were tried at the most rates the plain one, else the one whose quality is nearest to `quality`.
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
        let off = if plain { -1.0 } else { (mean(&of).unwrap_or(f64::INFINITY) - quality).abs() };
        (std::cmp::Reverse(of.len()), off)
    };
    let nearer = |a: &&String, b: &&String| {
        let ((most_a, off_a), (most_b, off_b)) = (distance(a), distance(b));
        most_a.cmp(&most_b).then(off_a.total_cmp(&off_b))
    };
    let chosen = settings.iter().min_by(nearer).cloned().unwrap_or_default();
    own.retain(|summary| summary.knobs() == chosen);
    own.sort_by(|a, b| a.rate.total_cmp(&b.rate));
    own
}

/// Mean quality of our cells with uniform weights: where contenders without weights are compared with ours.
pub fn balanced_quality(summaries: &[&Summary]) -> f64 {
    let mean_quality = |test: fn(&Summary) -> bool| {
        mean(summaries.iter().filter(|s| test(s)).map(|s| s.quality.mean).collect::<Vec<f64>>())
    };
    mean_quality(|s| s.policy() == OURS && s.is_uniform()).or_else(|| mean_quality(|_| true)).unwrap_or(0.0)
}

/// Answers over requests while requests come that a sustained rate has at least.
pub const SUSTAINED_SERVED_MIN: f64 = 0.97;
/// Longest 99th percentile of the time to the first token at a sustained rate, milliseconds.
pub const SUSTAINED_TTFT_P99_MAX_MS: f64 = 5000.0;

/// What each contender sustains, requests per second, ours first: the rate of its cells that looked for it, with its interval over
/// seeds; without such cells, the highest throughput of those that keep up with what is offered. `true` if it was looked for.
pub fn sustained_rates<'a>(all: &[Summary<'a>], main: &[&Summary<'a>]) -> Vec<(&'a str, Estimate, bool)> {
    let sought: Vec<&Summary> = all.iter().filter(|summary| summary.experiment.variant == SUSTAINED).collect();
    if !sought.is_empty() {
        let found = |name| {
            let own = representatives(&sought, name, balanced_quality(&sought));
            let rates: Vec<f64> = own.iter().flat_map(|s| s.cells.iter().map(|cell| cell.rate)).collect();
            let alone = mean(&rates).map(|rate| Estimate { mean: rate, low: rate, high: rate });
            Some((name, over_seeds(&rates).or(alone)?, true))
        };
        return contenders(&sought).into_iter().filter_map(found).collect();
    }
    let quality = balanced_quality(main);
    let keeps_up = |s: &&&Summary| s.served >= SUSTAINED_SERVED_MIN && s.ttft_p99_ms <= SUSTAINED_TTFT_P99_MAX_MS;
    let most = |name| {
        let own = representatives(main, name, quality);
        let rate = own.iter().filter(keeps_up).map(|s| s.throughput_rps).fold(0.0, f64::max);
        (name, Estimate { mean: rate, low: rate, high: rate }, false)
    };
    contenders(main).into_iter().map(most).collect()
}
