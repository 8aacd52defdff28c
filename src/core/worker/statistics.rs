//! What happens, as the shell shows it in statistics and in the log; and whose gauges those are.

mod names;

use std::collections::{BTreeMap, BTreeSet};

pub use names::{Counter, Gauge, Histogram};

use super::Worker;
use crate::config::Config;
use crate::fleet::ModelKind;
use crate::reckoning::{Counters, InstanceCounters};
use crate::shared::{self, Board, Key};

/// One thing to be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statistic {
    /// A counter grows by so much.
    Count(String, u64),
    /// A gauge has this value.
    Gauge(String, u64),
    /// A histogram gets this value.
    Observe(String, u64),
    /// A line for the log of level `warn`.
    Warn(String),
}

/// What is to be shown since it was last taken, and the gauges as they were last shown.
#[derive(Clone, Debug, Default)]
pub struct Statistics {
    /// What stands before every name: the configuration's own, where it has one.
    prefix: String,
    new: Vec<Statistic>,
    /// What was counted, by the counter's name.
    counts: BTreeMap<String, u64>,
    gauges: BTreeMap<String, u64>,
    /// Gauges that a newer configuration shows.
    hidden: BTreeSet<String>,
    /// How many gauges the others have been told of.
    told: usize,
    /// Whether nobody looks at any of it.
    mute: bool,
}

impl Statistics {
    pub(super) fn new(config: &Config) -> Statistics {
        let name = config.name.as_ref().map(|name| format!("{name}.")).unwrap_or_default();
        Statistics { prefix: format!("routebalance.{name}"), ..Statistics::default() }
    }

    /// Nobody looks at them: from now on nothing is kept for anyone.
    pub fn mute(&mut self) {
        *self = Statistics { mute: true, ..Statistics::default() };
    }

    pub(super) fn is_mute(&self) -> bool {
        self.mute
    }

    fn add(&mut self, statistic: impl FnOnce(&str) -> Statistic) {
        if !self.mute {
            let new = statistic(&self.prefix);
            self.new.push(new);
        }
    }

    /// What is to be shown since the last call, but for what was counted.
    pub fn take(&mut self) -> Vec<Statistic> {
        std::mem::take(&mut self.new)
    }

    /// What was counted since the last call.
    pub fn take_counts(&mut self) -> Vec<Statistic> {
        std::mem::take(&mut self.counts).into_iter().map(|(name, more)| Statistic::Count(name, more)).collect()
    }

    /// Adds 1 to a counter.
    pub fn count(&mut self, name: Counter<'_>) {
        if !self.mute {
            let count = self.counts.entry(format!("{}{name}", self.prefix)).or_default();
            *count = count.saturating_add(1);
        }
    }

    /// Records a value in a histogram.
    pub fn observe(&mut self, name: Histogram, value: u64) {
        self.add(|prefix| Statistic::Observe(format!("{prefix}{name}"), value));
    }

    /// Sets a gauge. What is shown already is not shown again.
    pub fn set(&mut self, name: Gauge<'_>, value: u64) {
        if self.mute {
            return;
        }
        let name = format!("{}{name}", self.prefix);
        if self.gauges.get(&name) != Some(&value) && !self.hidden.contains(&name) {
            self.new.push(Statistic::Gauge(name.clone(), value));
            self.gauges.insert(name, value);
        }
    }

    /// Sets a gauge that other VMs of the configuration set as well: nobody knows what is shown.
    pub(super) fn set_anew(&mut self, name: Gauge<'_>, value: u64) {
        self.gauges.remove(&format!("{}{name}", self.prefix));
        self.set(name, value);
    }

    /// Says something in the log.
    pub fn warn(&mut self, sentence: &str) {
        self.add(|_| Statistic::Warn(format!("routebalance: {sentence}")));
    }

    /// A newer configuration shows these gauges.
    fn hide(&mut self, hidden: BTreeSet<String>) {
        self.gauges.retain(|name, _| !hidden.contains(name));
        self.hidden = hidden;
    }

    fn end(&mut self, name: String) {
        self.gauges.remove(&name);
        self.new.push(Statistic::Gauge(name, 0));
    }
}

impl Worker {
    /// Shows what all workers have outstanding on each pool, as decisions see it. One VM does it for all of its configuration.
    pub(super) fn show_gauges(&mut self, board: &mut impl Board, counters: &Counters) {
        let Worker { router, statistics, learner, .. } = self;
        if statistics.is_mute() {
            return;
        }
        type Read = fn(&InstanceCounters) -> u64;
        let config = router.config();
        for pool in &config.fleet.pools {
            let name = pool.name.as_str();
            let of_pool = || pool.instances.iter().filter_map(|i| counters.get(*i));
            let gauges: [(Gauge<'_>, Read); 4] = [
                (Gauge::OutstandingRequests { pool: name }, InstanceCounters::outstanding_requests),
                (Gauge::OutstandingPromptTokens { pool: name }, InstanceCounters::outstanding_prompt_tokens),
                (Gauge::OutstandingOutputTokens { pool: name }, InstanceCounters::outstanding_output_tokens),
                // Last: where it shows a dispatch, the others show it too.
                (Gauge::DispatchedRequests { pool: name }, |c| c.dispatched_requests),
            ];
            for (gauge, read) in gauges {
                statistics.set(gauge, of_pool().map(read).fold(0, u64::saturating_add));
            }
        }
        for (id, pool) in config.fleet.pools_by_id() {
            let Some(speed) = learner.learned().speed(id) else { continue };
            let pool = pool.name.as_str();
            statistics.set(Gauge::TtftCorrectionMilli { pool }, (speed.ttft_factor * 1e3).round() as u64);
            statistics.set(Gauge::TpotCorrectionMilli { pool }, (speed.tpot_factor * 1e3).round() as u64);
        }
        if config.learning.output_tokens {
            let generating = config.fleet.models_by_id().filter(|(_, m)| m.kind == ModelKind::Generate);
            for (i, model) in generating {
                let milli = (learner.learned().correction(i) * 1e3).round() as u64;
                statistics.set(Gauge::OutputTokensCorrectionMilli { model: &model.name }, milli);
            }
        }
        self.tell_gauges(board);
    }

    /// Tells the other configurations which gauges this one shows.
    fn tell_gauges(&mut self, board: &mut impl Board) {
        let shown = self.statistics.gauges.len();
        let Some(place) = self.place.filter(|_| shown != self.statistics.told) else { return };
        let bytes = shared::encode_shown(self.identity, self.statistics.gauges.keys().map(String::as_str));
        if board.write(Key::Shown(place), &bytes, None) {
            self.statistics.told = shown;
        }
    }

    /// The gauges of a configuration.
    fn shown_by(board: &impl Board, place: usize, identity: u64) -> Vec<String> {
        board.read(Key::Shown(place)).0.map(|bytes| shared::decode_shown(&bytes, identity)).unwrap_or_default()
    }

    /// Leaves the gauges that newer configurations show to them.
    pub(super) fn hide_gauges(&mut self, board: &impl Board) {
        let newer = self.neighbours.iter().filter(|neighbour| neighbour.is_newer);
        let hidden = newer.flat_map(|newer| Worker::shown_by(board, newer.place, newer.identity)).collect();
        self.statistics.hide(hidden);
    }

    /// Ends the gauges of a configuration that has gone, unless another one shows them.
    pub(super) fn end_gauges_of(&mut self, board: &impl Board, place: usize, identity: u64) {
        let gone = Worker::shown_by(board, place, identity);
        self.end_all(board, gone);
    }

    /// Ends the gauges of this configuration, unless another one shows them.
    pub(super) fn end_gauges(&mut self, board: &impl Board) {
        let own = std::mem::take(&mut self.statistics.gauges).into_keys().collect();
        self.end_all(board, own);
    }

    fn end_all(&mut self, board: &impl Board, names: Vec<String>) {
        let others = self.neighbours.iter().flat_map(|other| Worker::shown_by(board, other.place, other.identity));
        let others: BTreeSet<String> = others.collect();
        for name in names {
            if !others.contains(&name) && !self.statistics.gauges.contains_key(&name) {
                self.statistics.end(name);
            }
        }
    }
}
