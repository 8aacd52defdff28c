//! What the presets measure.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Result;

use super::contenders::{self, Knobs, LabInputs};
use super::entrant::Entrant;
use super::ground::{Asked, Demand, Ground};
use super::run::{Job, Overhead, Task};
use super::source::ArrivalKind;
use super::summary::{SUSTAINED, SWEPT};
use routebalance_core::fleet::{Mode, Slo, Weights};

mod slo_budget;
mod tariffs;

pub use tariffs::{TARIFFS, without};

/// The published rates, requests per second.
pub const RATES: [f64; 7] = [6.0, 8.0, 10.0, 12.0, 18.0, 24.0, 30.0];
/// Requests of a published cell.
pub const REQUESTS: usize = 3_534;
/// The published limit of an answer's tokens.
pub const OUTPUT_CAP: u32 = 1_024;
/// The rates at which every knob of every contender is tried.
const KNOB_RATES: [f64; 2] = [12.0, 30.0];
/// Rates of the published runs with batches of fixed sizes.
const BATCH_RATES: [f64; 3] = [8.0, 16.0, 24.0];
/// Rate of the published bursts.
const BURST_RATE: f64 = 18.0;
/// Shape of the published bursts.
const BURSTS: ArrivalKind = ArrivalKind::Gamma { shape: 0.3 };
/// The published waves.
const WAVES: [ArrivalKind; 2] =
    [ArrivalKind::Square { high: 30.0, low: 6.0 }, ArrivalKind::Square { high: 40.0, low: 6.0 }];

/// Quality, latency and cost alike.
pub const UNIFORM: Weights = Weights { quality: 1.0 / 3.0, latency: 1.0 / 3.0, cost: 1.0 / 3.0 };

/// The 16 weights of the paper's sweep: uniform; six weights of quality with the rest split equally; the corners of time and money; and
/// seven with a weight of zero.
pub fn paper_weights() -> Vec<Weights> {
    let split = [0.1, 0.3, 0.5, 0.7, 0.8, 0.9].map(|quality| {
        let rest = (1.0 - quality) / 2.0;
        (quality, rest, rest)
    });
    let others = [
        (0.1, 0.8, 0.1),
        (0.1, 0.1, 0.8),
        (0.5, 0.5, 0.0),
        (0.5, 0.0, 0.5),
        (0.7, 0.3, 0.0),
        (0.7, 0.0, 0.3),
        (0.9, 0.1, 0.0),
        (0.9, 0.0, 0.1),
        (0.0, 0.5, 0.5),
    ];
    let listed = split.into_iter().chain(others).map(|(quality, latency, cost)| Weights { quality, latency, cost });
    std::iter::once(UNIFORM).chain(listed).collect()
}

/// Weights of time and of money, over that of quality, between and beyond the published ones.
const SWEEP: ([f64; 11], [f64; 6]) =
    ([0.0, 0.01, 0.03, 0.06, 0.12, 0.25, 0.5, 1.0, 1.5, 2.2, 3.5], [0.0, 0.1, 0.3, 0.6, 1.0, 2.0]);

/// A denser sweep than the published one: what a contender can do at all.
pub fn sweep_weights() -> Vec<Weights> {
    let (latencies, costs) = SWEEP;
    let weights = |latency: f64, cost: f64| {
        let sum = 1.0 + latency + cost;
        Weights { quality: 1.0 / sum, latency: latency / sum, cost: cost / sum }
    };
    latencies.iter().flat_map(|latency| costs.map(|cost| weights(*latency, cost))).collect()
}

/// What of a preset the command line says otherwise; `None` and empty for nothing.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// Names of contenders.
    pub policies: Option<Vec<String>>,
    /// Weights of those that have some.
    pub weights: Option<Vec<Weights>>,
    /// Requests per second.
    pub rates: Option<Vec<f64>>,
    /// Seeds 1 to this.
    pub seeds: Option<u64>,
    /// Requests of a cell.
    pub requests: Option<usize>,
    /// Gateways.
    pub gateways: Option<usize>,
    /// How requests come.
    pub workloads: Option<Vec<ArrivalKind>>,
    /// What deciding takes.
    pub overheads: Option<Vec<Overhead>>,
}

/// Jobs under construction.
struct Study<'a> {
    grounds: &'a [Ground],
    wishes: &'a Wishes,
    jobs: Vec<Job>,
    /// Contender, setting, weights and what else tells cells apart, of those that are there.
    known: BTreeSet<String>,
}

/// Cells that differ in rate, seed and overhead.
#[derive(Clone, Debug)]
struct Grid<'a> {
    ground: usize,
    variant: &'a str,
    policies: &'a [&'a str],
    knobs: Knobs,
    weights: Vec<Weights>,
    arrivals: Option<ArrivalKind>,
    /// `None` for the arrivals' own.
    rates: Vec<Option<f64>>,
    seeds: u64,
    requests: Option<usize>,
    overheads: &'a [Overhead],
    demand: Demand,
    task: Task,
}

const CHARGED: [Overhead; 1] = [Overhead::Charged];
const BOTH: [Overhead; 2] = [Overhead::Charged, Overhead::Zero];

impl Grid<'_> {
    /// Headline settings with the paper's requests on the first ground, as many seeds as published.
    fn published() -> Grid<'static> {
        Grid {
            ground: 0,
            variant: "",
            policies: &contenders::NAMES,
            knobs: Knobs::Headline,
            weights: paper_weights(),
            arrivals: Some(ArrivalKind::Poisson),
            rates: RATES.map(Some).to_vec(),
            seeds: 5,
            requests: Some(REQUESTS),
            overheads: &CHARGED,
            demand: Demand::default(),
            task: Task::Serve,
        }
    }
}

impl Study<'_> {
    fn add(&mut self, grid: &Grid<'_>) -> Result<()> {
        let wished = self.wishes.policies.as_ref();
        let is_wished = |name: &&&str| wished.is_none_or(|wished| wished.iter().any(|w| w == **name));
        let policies: Vec<&str> = grid.policies.iter().filter(is_wished).copied().collect();
        let weights = self.wishes.weights.clone().unwrap_or_else(|| grid.weights.clone());
        self.add_made(grid, |inputs| {
            let mut all = Vec::new();
            for name in &policies {
                all.extend(contenders::entrants(name, grid.knobs, &weights, inputs)?);
            }
            Ok(all)
        })
    }

    /// A grid with entrants of its own instead of its policies.
    fn add_made(&mut self, grid: &Grid<'_>, make: impl Fn(&LabInputs<'_>) -> Result<Vec<Entrant>>) -> Result<()> {
        let ground = &self.grounds[grid.ground];
        let wishes = self.wishes;
        let rates = match (&wishes.rates, grid.rates.as_slice()) {
            (Some(rates), [Some(_), ..]) => rates.iter().map(|rate| Some(*rate)).collect(),
            _ => grid.rates.clone(),
        };
        let overheads = wishes.overheads.clone().unwrap_or_else(|| grid.overheads.to_vec());
        for rate in rates {
            let own = || grid.arrivals.and_then(|kind| kind.own_rate()).or(ground.source.own_rate());
            let entrants = make(&ground.inputs(rate.or_else(own).unwrap_or_default()))?;
            for entrant in entrants.into_iter().map(Arc::new) {
                for overhead in &overheads {
                    for seed in 1..=wishes.seeds.unwrap_or(grid.seeds) {
                        let job = Job {
                            ground: grid.ground,
                            entrant: entrant.clone(),
                            asked: Asked {
                                arrivals: grid.arrivals,
                                rate,
                                requests: wishes.requests.or(grid.requests),
                                seed,
                                demand: grid.demand,
                            },
                            task: grid.task,
                            overhead: *overhead,
                            gateways: wishes.gateways.unwrap_or(1),
                            variant: grid.variant.to_owned(),
                        };
                        if self.known.insert(job.identity()) {
                            self.jobs.push(job);
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

fn study<'a>(
    grounds: &'a [Ground],
    wishes: &'a Wishes,
    build: impl FnOnce(&mut Study<'a>) -> Result<()>,
) -> Result<Vec<Job>> {
    let mut study = Study { grounds, wishes, jobs: Vec::new(), known: BTreeSet::new() };
    build(&mut study)?;
    Ok(study.jobs)
}

/// Contenders whose whole frontier is drawn at all rates, with and without the time that deciding takes.
const RIVALS: [&str; 2] = ["routebalance", "routebalance-paper"];
/// Those that are tried with a denser sweep of weights.
const SWEPT_CONTENDERS: [&str; 2] = ["routebalance", "routebalance-constant"];
/// Those of robustness tests and of the search for the highest rate.
const HEADLINES: [&str; 12] = [
    "routebalance",
    "routebalance-paper",
    "routebalance-paper-knn",
    "routebalance-paper-arm2",
    "routebalance-paper-arm3",
    "routebalance-paper-arm4",
    "best-route",
    "avengers-pro",
    "shortest-queue",
    "least-load",
    "prices",
    "oracle",
];
/// Contenders of the quick preset.
const QUICK: [&str; 8] = [
    "routebalance",
    "routebalance-paper",
    "routebalance-paper-arm4",
    "best-route",
    "avengers-pro",
    "shortest-queue",
    "least-load",
    "oracle",
];

/// The paper's main runs, its ablations and its search for the highest rate.
///
/// # Errors
/// A contender that cannot be made.
pub fn paper(grounds: &[Ground], wishes: &Wishes) -> Result<Vec<Job>> {
    study(grounds, wishes, |study| {
        let main = Grid::published();
        study.add(&main)?;
        study.add(&Grid { policies: &RIVALS, overheads: &[Overhead::Zero], ..main.clone() })?;
        study.add(&Grid { weights: vec![UNIFORM], overheads: &BOTH, ..main.clone() })?;
        study.add(&Grid { knobs: Knobs::All, rates: KNOB_RATES.map(Some).to_vec(), ..main.clone() })?;
        if wishes.weights.is_none() {
            study.add(&Grid { variant: SWEPT, policies: &SWEPT_CONTENDERS, weights: sweep_weights(), ..main })?;
        }
        batching(study)?;
        unsteady(study)?;
        sustained(study, &HEADLINES)
    })
}

/// Without the longest first, and with batches of fixed sizes; each beside the published batches.
fn batching(study: &mut Study<'_>) -> Result<()> {
    let grid = Grid { variant: "batching", policies: &[], weights: Vec::new(), ..Grid::published() };
    let name = "routebalance-paper";
    if study.wishes.policies.as_ref().is_some_and(|wished| wished.iter().all(|w| w != name)) {
        return Ok(());
    }
    let as_published = |inputs: &LabInputs<'_>| contenders::entrants(name, Knobs::Headline, &[UNIFORM], inputs);
    let changed = |inputs: &LabInputs<'_>, sizes: bool| -> Vec<Entrant> {
        let all = contenders::ablations(UNIFORM, inputs);
        all.into_iter().filter(|entrant| entrant.setting.starts_with("batch") == sizes).collect()
    };
    study.add_made(&grid, as_published)?;
    study.add_made(&grid, |inputs| Ok(changed(inputs, false)))?;
    let sizes = Grid { rates: BATCH_RATES.map(Some).to_vec(), ..grid };
    study.add_made(&sizes, as_published)?;
    study.add_made(&sizes, |inputs| Ok(changed(inputs, true)))
}

/// Bursts and waves: uniform weights; ours and the paper's whole frontiers on the higher wave.
fn unsteady(study: &mut Study<'_>) -> Result<()> {
    let grid = Grid { policies: &HEADLINES, weights: vec![UNIFORM], ..Grid::published() };
    study.add(&Grid { arrivals: Some(BURSTS), rates: vec![Some(BURST_RATE)], ..grid.clone() })?;
    for wave in WAVES {
        study.add(&Grid { arrivals: Some(wave), rates: vec![None], ..grid.clone() })?;
    }
    let [_, higher] = WAVES;
    study.add(&Grid { arrivals: Some(higher), rates: vec![None], policies: &RIVALS, weights: paper_weights(), ..grid })
}

/// The highest rates that are sustained. No fleet sustains more than twice what its pools do together: those rates are of each pool's own
/// share of all prompts.
fn sustained(study: &mut Study<'_>, policies: &[&str]) -> Result<()> {
    let up_to = 2.0 * study.grounds[0].sustainable_rate();
    let task = Task::Sustain { up_to };
    let rates = vec![Some(*RATES.last().unwrap_or(&up_to))];
    study.add(&Grid {
        variant: SUSTAINED,
        policies,
        weights: vec![UNIFORM],
        rates,
        seeds: 3,
        task,
        ..Grid::published()
    })
}

/// A look at everything in under a minute.
///
/// # Errors
/// A contender that cannot be made.
pub fn quick(grounds: &[Ground], wishes: &Wishes) -> Result<Vec<Job>> {
    study(grounds, wishes, |study| {
        let few = [(1.0 / 3.0, 1.0 / 3.0), (0.5, 0.25), (0.8, 0.1), (0.1, 0.8), (0.1, 0.1)];
        let weights =
            few.map(|(quality, latency)| Weights { quality, latency, cost: 1.0 - quality - latency }).to_vec();
        let grid =
            Grid { policies: &QUICK, weights, rates: KNOB_RATES.map(Some).to_vec(), seeds: 1, ..Grid::published() };
        study.add(&grid)?;
        let [_, higher] = WAVES;
        let wave =
            Grid { arrivals: Some(higher), rates: vec![None], policies: &RIVALS, weights: vec![UNIFORM], ..grid };
        study.add(&wave)
    })
}

/// Limits of both times over the rates, and budgets of a part of the requests.
///
/// # Errors
/// A contender that cannot be made.
pub fn slo_budget(grounds: &[Ground], wishes: &Wishes) -> Result<Vec<Job>> {
    study(grounds, wishes, slo_budget::build)
}

/// Bursts, waves, ramps and traces on the first ground; then the grounds with other prices and without the largest model, as
/// [`TARIFFS`] names them.
///
/// # Errors
/// A contender that cannot be made.
pub fn robustness(grounds: &[Ground], traced: usize, wishes: &Wishes) -> Result<Vec<Job>> {
    study(grounds, wishes, |study| {
        unsteady(study)?;
        let grid = Grid { policies: &HEADLINES, weights: vec![UNIFORM], seeds: 3, ..Grid::published() };
        let ramp = ArrivalKind::Ramp { from: 6.0, to: 30.0 };
        study.add(&Grid { arrivals: Some(ramp), rates: vec![None], ..grid.clone() })?;
        let rates = vec![Some(12.0), Some(24.0)];
        for (trace, i) in TRACES.iter().take(traced).zip(1..) {
            // Some traces have fewer requests than a cell.
            let recorded = grounds.get(i).map_or(0, |ground| ground.source.own_requests());
            study.add(&Grid {
                ground: i,
                variant: trace,
                arrivals: None,
                rates: vec![Some(BURST_RATE)],
                requests: Some(REQUESTS.min(recorded)),
                ..grid.clone()
            })?;
        }
        let variants = TARIFFS.iter().map(|(name, _)| *name).chain(std::iter::once(without::LARGEST));
        for (variant, ground) in variants.zip(traced + 1..) {
            study.add(&Grid { ground, variant, rates: rates.clone(), ..grid.clone() })?;
        }
        Ok(())
    })
}

/// Names of the grounds with recorded requests.
pub const TRACES: [&str; 3] = ["azure", "servegen", "mooncake"];

/// What somebody asks of a fleet: all that is not said is taken from the fleet and its requests.
///
/// # Errors
/// A contender that cannot be made, or that there is none of that name.
pub fn custom(grounds: &[Ground], wishes: &Wishes) -> Result<Vec<Job>> {
    let names: Vec<&str> = match &wishes.policies {
        Some(names) => names.iter().map(String::as_str).collect(),
        None => QUICK.to_vec(),
    };
    study(grounds, wishes, |study| {
        let source = &study.grounds[0].source;
        let learned = source.prompts().iter().all(|p| p.opinions.is_some());
        let asks_the_learned = ["best-route", "avengers-pro"];
        let names: Vec<&str> = names
            .into_iter()
            .filter(|name| learned || wishes.policies.is_some() || !asks_the_learned.contains(name))
            .collect();
        let rate = study.grounds[0].sustainable_rate();
        let tenth = |share: f64| Some((share * rate * 10.0).round() / 10.0);
        let recorded = source.own_rate().is_some();
        let rates = if recorded { vec![None] } else { [0.3, 0.6, 0.9].map(tenth).to_vec() };
        let rates = wishes.rates.as_ref().map_or(rates, |rates| rates.iter().map(|rate| Some(*rate)).collect());
        let workloads: Vec<Option<ArrivalKind>> =
            wishes.workloads.as_ref().map_or(vec![None], |all| all.iter().map(|kind| Some(*kind)).collect());
        for arrivals in workloads {
            let has_rate = arrivals.is_some_and(|kind| kind.own_rate().is_some());
            study.add(&Grid {
                policies: &names,
                weights: vec![UNIFORM, paper_weights()[5], paper_weights()[7], paper_weights()[8]],
                arrivals,
                rates: if has_rate { vec![None] } else { rates.clone() },
                seeds: 1,
                requests: None,
                ..Grid::published()
            })?;
        }
        Ok(())
    })
}

/// Limits of the published tests of filters.
fn published_slo() -> Slo {
    Slo { ttft: Some(std::time::Duration::from_millis(500)), tpot: Some(std::time::Duration::from_millis(30)) }
}

/// Our ways to treat what cannot be kept, by name.
const MODES: [(&str, Mode); 2] = [("tiered", Mode::Tiered), ("strict", Mode::Strict)];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Source;
    use routebalance_core::config::Config;

    #[test]
    fn the_16_weights_are_different_and_whole() {
        let weights = paper_weights();
        assert_eq!(weights.len(), 16);
        for (i, w) in weights.iter().enumerate() {
            assert!((w.quality + w.latency + w.cost - 1.0).abs() < 1e-9, "{w:?}");
            assert!(!weights[..i].contains(w), "{w:?}");
        }
    }

    /// Dispatchers and pipelines alone: others need the fitted times, which take long to fit in a debug build.
    #[test]
    fn presets_measure_what_they_say() {
        let config = Config::parse(include_bytes!("../../envoy/routebalance.json")).unwrap();
        let source = Source::built_in(&config, ArrivalKind::Poisson, Some(OUTPUT_CAP)).unwrap();
        let grounds = [Ground::new(config, source)];
        let wish = |names: &[&str]| Wishes {
            policies: Some(names.iter().map(|name| (*name).to_owned()).collect()),
            ..Wishes::default()
        };
        let jobs = paper(&grounds, &wish(&["routebalance"])).unwrap();
        let main = |job: &&Job| job.variant.is_empty() && job.asked.arrivals == Some(ArrivalKind::Poisson);
        assert_eq!(jobs.iter().filter(main).count(), 16 * 7 * 5 * 2, "weights, rates, seeds, overheads");
        assert!(jobs.iter().all(|job| job.asked.requests == Some(3_534)));
        let sought = jobs.iter().filter(|job| job.variant == SUSTAINED);
        assert!(sought.count() == 3 && jobs.iter().any(|job| job.asked.arrivals == Some(WAVES[1])));
        let quick = quick(&grounds, &wish(&["shortest-queue"])).unwrap();
        assert_eq!(quick.iter().map(|job| job.asked.rate).collect::<Vec<_>>(), [Some(12.0), Some(30.0)]);
        let custom = custom(&grounds, &wish(&["random"])).unwrap();
        let rates: Vec<f64> = custom.iter().filter_map(|job| job.asked.rate).collect();
        assert!(rates.len() == 3 && rates[2] > 2.9 * rates[0], "{rates:?}");
        let problem = super::custom(&grounds, &wish(&["best"])).unwrap_err().to_string();
        assert!(problem.starts_with("there is no contender best: there are routebalance, "), "{problem}");
    }
}
