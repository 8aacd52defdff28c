//! A result as the page needs it: which comparison is the main one, its rates, how contenders look.

use super::axis::number;
use super::looks::Looks;
use super::scene::Scene;
use crate::summary::{
    Experiment, OURS, PAPER, SUSTAINED, SWEPT, Summary, balanced_quality, contenders, main_experiment, rates,
    representatives,
};

/// Which part of the page a plot is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Section {
    /// Frontiers at the highest rate.
    Frontiers,
    /// Frontiers at every rate.
    Rates,
    /// Times and throughput as the load grows, and their distribution.
    Load,
    /// The course of time.
    Course,
    /// Other workloads and variations.
    Robustness,
    /// Time limits and budgets.
    Budgets,
}

/// A picture with its place.
#[derive(Clone, Debug)]
pub(super) struct Plot {
    /// Its file's name, without the ending.
    pub(super) id: String,
    /// Its part of the page.
    pub(super) section: Section,
    /// Its width in sixths of the page.
    pub(super) sixths: usize,
    /// A heading above it, the same for plots that belong together; empty for none.
    pub(super) group: &'static str,
    /// The picture.
    pub(super) scene: Scene,
}

/// Width of a plot over the whole page; others are fractions of it.
pub(crate) const PAGE_WIDTH: f64 = 1120.0;

/// Width of a plot that spans so many sixths of the page.
pub(crate) fn width(sixths: usize) -> f64 {
    const GAP: f64 = 24.0;
    (PAGE_WIDTH + GAP) * sixths as f64 / 6.0 - GAP
}

/// A result, arranged.
pub(super) struct View<'a> {
    /// Everything.
    pub(super) all: &'a [Summary<'a>],
    /// What all cells of the main comparison share.
    pub(super) experiment: Experiment,
    /// The main comparison.
    pub(super) main: Vec<&'a Summary<'a>>,
    /// Its rates, lowest first.
    pub(super) rates: Vec<f64>,
    /// Its contenders, ours first.
    pub(super) contenders: Vec<&'a str>,
    /// Colours and marks.
    pub(super) looks: Looks,
}

impl<'a> View<'a> {
    /// Arranges a result; `None` of one without cells.
    pub(super) fn new(all: &'a [Summary<'a>]) -> Option<View<'a>> {
        let experiment = main_experiment(all)?;
        let main: Vec<&Summary> = all.iter().filter(|summary| summary.experiment == experiment).collect();
        let (rates, contenders) = (rates(&main), contenders(&main));
        Some(View { all, experiment, rates, contenders, looks: Looks::new(all), main })
    }

    /// The highest rate of the main comparison.
    pub(super) fn highest(&self) -> f64 {
        self.rates.last().copied().unwrap_or(0.0)
    }

    /// The cells of a contender of the main comparison at a rate.
    pub(super) fn cells_at(&self, contender: &str, rate: f64) -> Vec<&'a Summary<'a>> {
        self.main.iter().copied().filter(|s| s.policy() == contender && s.is_at(rate)).collect()
    }

    /// The cells that stand for contenders at one rate of a comparison: of each that has one, ours first.
    pub(super) fn standing(&self, of: &[&'a Summary<'a>], rate: f64) -> Vec<&'a Summary<'a>> {
        let quality = balanced_quality(of);
        let chosen = contenders(of).into_iter().flat_map(|name| representatives(of, name, quality));
        chosen.filter(|summary| summary.is_at(rate)).collect()
    }

    /// The cells of every other comparison, each comparison at its highest rate.
    pub(super) fn others(&self) -> Vec<(Experiment, f64, Vec<&'a Summary<'a>>)> {
        let mut experiments: Vec<&Experiment> = self.all.iter().map(|summary| &summary.experiment).collect();
        experiments.sort();
        experiments.dedup();
        experiments.retain(|experiment| {
            **experiment != self.experiment && ![SUSTAINED, SWEPT].contains(&experiment.variant.as_str())
        });
        let arranged = experiments.into_iter().map(|experiment| {
            let of: Vec<&Summary> = self.all.iter().filter(|summary| summary.experiment == *experiment).collect();
            (experiment.clone(), rates(&of).last().copied().unwrap_or(0.0), of)
        });
        arranged.collect()
    }

    /// What tells a comparison from the main one, in words.
    pub(super) fn difference(&self, experiment: &Experiment) -> String {
        let mut words = Vec::new();
        if experiment.workload != self.experiment.workload {
            words.push(experiment.workload.clone());
        }
        if experiment.variant != self.experiment.variant {
            words.push(experiment.variant.clone());
        }
        if experiment.overhead != self.experiment.overhead {
            words.push(format!("deciding {}", if experiment.overhead == "zero" { "takes no time" } else { "charged" }));
        }
        if experiment.gateways != self.experiment.gateways {
            words.push(format!("{} gateways", experiment.gateways));
        }
        words.retain(|word| !word.is_empty());
        words.join(", ")
    }
}

/// Milliseconds as seconds in words.
pub(super) fn seconds(ms: f64) -> String {
    format!("{}\u{a0}s", number(ms / 1000.0, 2))
}

/// A rate in words.
pub(super) fn per_second(rate: f64) -> String {
    format!("{}\u{a0}req/s", number(rate, 3))
}

/// What a person reads who points at a cell.
pub(super) fn tip(summary: &Summary) -> String {
    let knobs = Some(summary.knobs()).filter(|knobs| !knobs.is_empty()).map(|knobs| format!(" ({knobs})"));
    format!(
        "{}{}\nquality {}\nE2E mean {}, p99 {}\nUSD per 1,000 requests {}\nanswered per second {}",
        summary.policy(),
        knobs.unwrap_or_default(),
        number(summary.quality.mean, 3),
        seconds(summary.e2e_ms.mean),
        seconds(summary.e2e_p99_ms),
        number(summary.cost_usd.mean * 1000.0, 3),
        number(summary.throughput_rps, 3),
    )
}

/// "routebalance 2.1 s, routebalance-paper 3 s" of those that occur; of others the first.
pub(super) fn rivals(values: &[(&str, String)]) -> String {
    let named = |name: &&str| values.iter().find(|(of, _)| of == name).map(|(of, value)| format!("{of} {value}"));
    let both: Vec<String> = [OURS, PAPER].iter().filter_map(named).collect();
    if both.is_empty() {
        values.iter().take(2).map(|(of, value)| format!("{of} {value}")).collect::<Vec<_>>().join(", ")
    } else {
        both.join(", ")
    }
}

/// A name that begins a title.
pub(super) fn capitalised(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// A title as the name of a file.
pub(super) fn file_name(title: &str) -> String {
    let parts = title.split(|c: char| !c.is_ascii_alphanumeric() && c != '.');
    parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-").to_lowercase()
}
