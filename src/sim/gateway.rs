//! One gateway as the filter runs it: workers that count what they send, and one scraper for all of them.

use std::collections::VecDeque;
use std::time::Duration;

use crate::config::Config;
use crate::fleet::Fleet;
use crate::latency::Speed;
use crate::learning::Learned;
use crate::learning::lengths::Lengths;
use crate::learning::speed::{Speeds, Timing};
use crate::prices::{self, LivePrices, Observation};
use crate::random::Random;
use crate::reckoning::{self, Counters, Dispatch, InstanceCounters, LoadNow, Reports};
use crate::router::Decision;
use crate::sim::contender::Turns;
use crate::telemetry;

/// What one VM has counted, and what it sees.
#[derive(Clone, Debug)]
struct Slot {
    own: Counters,
    /// What of its own the other VMs of its gateway see.
    written: Counters,
    /// The counters of all VMs together, as this one sees them: kept up to date, since every decision reads all of them.
    all: Counters,
    /// Requests in `all`.
    sent: u64,
    /// Predicted output tokens streamed by the instance whose streams are being counted.
    streamed: u64,
    /// The instances whose counters have changed since they were written: of a large fleet a few.
    changed: Vec<usize>,
}

impl Slot {
    /// A slot that has counted nothing, where all others have written so much.
    fn new(all: Counters) -> Slot {
        let none = Counters::new(all.0.len());
        let sent = all.dispatched_requests();
        Slot { own: none.clone(), written: none, all, sent, streamed: 0, changed: Vec::new() }
    }

    /// Changes counters of an instance or two.
    fn change(&mut self, instances: [usize; 2], change: impl FnOnce(&mut Counters)) {
        let before = instances.map(|instance| self.own.0.get(instance).copied().unwrap_or_default());
        change(&mut self.own);
        let [one, other] = instances;
        for (instance, before) in instances.into_iter().zip(before).take(if one == other { 1 } else { 2 }) {
            if let Some(after) = self.own.0.get(instance).copied() {
                self.see(instance, &before, &after);
            }
            if self.changed.last() != Some(&instance) {
                self.changed.push(instance);
            }
        }
    }

    /// A worker's counters of an instance change.
    fn see(&mut self, instance: usize, before: &InstanceCounters, after: &InstanceCounters) {
        if let Some(all) = self.all.0.get_mut(instance) {
            all.change(before, after);
            self.sent = self.sent.saturating_add(after.dispatched_requests.saturating_sub(before.dispatched_requests));
        }
    }

    /// Writes the counters of an instance: what they were for others, and what they are.
    fn write(&mut self, instance: usize) -> Option<(InstanceCounters, InstanceCounters)> {
        let (written, own) = (self.written.0.get_mut(instance)?, self.own.0.get(instance)?);
        Some((std::mem::replace(written, *own), *own))
    }
}

/// Requests of a gateway that wait for their decisions, one batch after the other.
#[derive(Clone, Debug, Default)]
pub(super) struct Desk {
    pub(super) waiting: VecDeque<usize>,
    /// Size and window of the batch that is being formed.
    pub(super) batch: Option<(usize, Duration)>,
    pub(super) stage: Stage,
    /// Tells the closing time of this batch from those of earlier ones.
    pub(super) batches: u64,
}

/// What a desk does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stage {
    #[default]
    Idle,
    Collecting,
    /// Deciding so many requests.
    Busy(usize),
}

/// One gateway.
#[derive(Clone, Debug)]
pub struct Gateway {
    instances: usize,
    slots: Vec<Slot>,
    /// The slot of each worker.
    workers: Vec<usize>,
    /// What its scraper has heard.
    pub reports: Reports,
    /// What it has learnt, as decisions read it.
    pub learned: Learned,
    lengths: Lengths,
    speeds: Speeds,
    /// Prices of policies that follow demand, as decisions read them.
    pub prices: LivePrices,
    /// Whether a scrape of an instance is under way.
    pub(super) asking: Vec<bool>,
    /// How often it was restarted: what was meant for an earlier process does not reach this one.
    pub(super) epoch: u32,
    pub(super) random: Random,
    /// Whose turn it is, of dispatchers that take turns.
    pub(super) turns: Turns,
    /// Requests that wait for their decisions.
    pub(super) desk: Desk,
}

impl Gateway {
    /// A gateway that has sent nothing and knows nothing.
    pub fn new(instances: usize, workers: usize, random: Random) -> Gateway {
        Gateway {
            instances,
            slots: vec![Slot::new(Counters::new(instances)); workers],
            workers: (0..workers).collect(),
            reports: Reports(vec![Default::default(); instances]),
            learned: Learned::default(),
            lengths: Lengths::default(),
            speeds: Speeds::default(),
            prices: LivePrices::default(),
            asking: vec![false; instances],
            epoch: 0,
            random,
            turns: Turns::default(),
            desk: Desk::default(),
        }
    }

    /// The process dies and starts again.
    pub(super) fn restart(&mut self) {
        let epoch = self.epoch.saturating_add(1);
        *self = Gateway { epoch, ..Gateway::new(self.instances, self.workers.len(), self.random.clone()) };
    }

    /// A worker's VM dies and another one claims a new slot; the old slot is returned.
    pub(super) fn replace_worker(&mut self, worker: usize) -> Option<usize> {
        let old = *self.workers.get(worker)?;
        let new = self.slots.len();
        let mut all = Counters::new(self.instances);
        self.slots.iter().for_each(|slot| all.add(&slot.written));
        self.slots.push(Slot::new(all));
        *self.workers.get_mut(worker)? = new;
        Some(old)
    }

    /// The slot of a worker.
    pub(super) fn slot_of(&self, worker: usize) -> usize {
        self.workers.get(worker).copied().unwrap_or_default()
    }

    /// The counters of all workers together, as the owner of a slot sees them.
    pub fn counters(&self, slot: usize) -> Option<&Counters> {
        self.slots.get(slot).map(|slot| &slot.all)
    }

    /// The load of every instance, as the owner of a slot sees it, and how many requests were sent before.
    pub fn loads(
        &self,
        slot: usize,
        fleet: &Fleet,
        telemetry: &telemetry::Settings,
        now: Duration,
        draw: f64,
    ) -> (Vec<LoadNow>, u64) {
        let Some(slot) = self.slots.get(slot) else { return (Vec::new(), 0) };
        let reports = telemetry.enabled.then_some(&self.reports);
        (reckoning::load_now(fleet, &slot.all, reports, now, telemetry, draw), slot.sent)
    }

    pub(super) fn dispatch(&mut self, slot: usize, dispatch: &Dispatch, now: Duration) {
        self.write_change(slot, [dispatch.instance; 2], |own| own.dispatch(dispatch, now));
    }

    pub(super) fn move_to(&mut self, slot: usize, dispatch: &mut Dispatch, instance: usize, now: Duration) {
        self.write_change(slot, [dispatch.instance, instance], |own| own.move_to(dispatch, instance, now));
    }

    pub(super) fn finish(&mut self, slot: usize, dispatch: Dispatch) {
        self.write_change(slot, [dispatch.instance; 2], |own| own.finish(dispatch));
    }

    /// The first token of a stream: the other workers see it after the next tick.
    pub(super) fn begin(&mut self, slot: usize, dispatch: &mut Dispatch) {
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.change([dispatch.instance; 2], |own| {
                own.prefilled(dispatch);
                own.streamed(dispatch, 1);
            });
        }
    }

    /// Progress of a stream, as [`Gateway::count_streams`] will find it.
    pub(super) fn progress(&mut self, slot: usize, dispatch: &mut Dispatch, tokens: u64) {
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.streamed = slot.streamed.saturating_add(dispatch.stream(tokens));
        }
    }

    /// Counts the progress of the streams of an instance, which is all that there was since the last time.
    pub(super) fn count_streams(&mut self, instance: usize) {
        for slot in &mut self.slots {
            let streamed = std::mem::take(&mut slot.streamed);
            if streamed > 0 {
                slot.change([instance; 2], |own| {
                    own.0.get_mut(instance).into_iter().for_each(|c| c.streamed(streamed));
                });
            }
        }
    }

    /// Learns from a whole answer, as the filter does; all workers know at once.
    pub(super) fn learn(&mut self, config: &Config, decision: &Decision, timing: &Timing) {
        if let Some(expectation) = decision.expectation.filter(|_| config.learning.output_tokens)
            && let Some(lesson) = expectation.lesson(timing.output_tokens, false)
        {
            self.lengths.learn(&lesson);
            self.learned.corrections = self.lengths.factors(config.fleet.models.len());
        }
        if let Some(lesson) = decision.speed_lesson(timing) {
            self.speeds.learn(&lesson);
            self.learned.speeds.resize_with(config.fleet.pools.len(), Speed::default);
            if let Some(speed) = self.learned.speeds.get_mut(lesson.pool()) {
                *speed = self.speeds.speed(lesson.pool(), config.latency_estimate);
            }
        }
    }

    /// Every worker writes what it has counted, and one moves the prices that follow demand.
    pub(super) fn tick(&mut self, config: &Config, now: Duration) {
        (0..self.slots.len()).for_each(|slot| self.write(slot));
        let due = now.saturating_sub(self.prices.at) >= prices::PERIOD;
        if due && LivePrices::are_wanted(&config.policies) {
            let leader = self.slot_of(0);
            let (loads, _) = self.loads(leader, &config.fleet, &config.telemetry, now, 0.5);
            let Some(counters) = self.counters(leader) else { return };
            let seen = Observation::of(&config.fleet, counters, &loads, &self.learned.speeds);
            self.prices.step(&config.policies, &seen, now);
        }
    }

    /// A dead worker's slot is found out.
    pub(super) fn retire(&mut self, slot: usize) {
        for instance in 0..self.instances {
            self.write_change(slot, [instance; 2], |own| {
                own.0.get_mut(instance).into_iter().for_each(InstanceCounters::retire);
            });
        }
    }

    /// Changes the counters of one or two instances, and writes them.
    fn write_change(&mut self, slot: usize, instances: [usize; 2], change: impl FnOnce(&mut Counters)) {
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.change(instances, change);
        }
        self.write(slot);
    }

    /// A worker writes what it has counted.
    fn write(&mut self, slot: usize) {
        let Some(writer) = self.slots.get_mut(slot) else { return };
        let mut changed = std::mem::take(&mut writer.changed);
        for instance in changed.drain(..) {
            let Some((before, after)) = self.slots.get_mut(slot).and_then(|s| s.write(instance)) else { continue };
            for (_, other) in self.slots.iter_mut().enumerate().filter(|(i, _)| *i != slot) {
                other.see(instance, &before, &after);
            }
        }
        if let Some(writer) = self.slots.get_mut(slot) {
            writer.changed = changed;
        }
    }
}
