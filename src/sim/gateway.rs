//! One gateway as the filter runs it: workers that count what they send, and one scraper for all of them.

use std::time::Duration;

use crate::config::{Config, Telemetry};
use crate::fleet::Fleet;
use crate::latency::Speed;
use crate::learning::Learned;
use crate::learning::lengths::Lengths;
use crate::learning::speed::{Speeds, Timing};
use crate::random::Random;
use crate::reckoning::{self, Counters, Dispatch, LoadNow, Reports};
use crate::router::Decision;
use crate::sim::contender::Turns;
use crate::sim::simulation::Desk;

/// What one VM has counted, and what of it the other VMs of its gateway can see.
#[derive(Clone, Debug)]
struct Slot {
    own: Counters,
    written: Counters,
    /// The instances whose counters have changed since they were written: of a large fleet a few.
    changed: Vec<usize>,
}

impl Slot {
    fn new(instances: usize) -> Slot {
        Slot { own: Counters::new(instances), written: Counters::new(instances), changed: Vec::new() }
    }

    fn change(&mut self, instance: usize, change: impl FnOnce(&mut Counters)) {
        change(&mut self.own);
        if self.changed.last() != Some(&instance) {
            self.changed.push(instance);
        }
    }

    fn write(&mut self) {
        for instance in self.changed.drain(..) {
            if let (Some(written), Some(own)) = (self.written.0.get_mut(instance), self.own.0.get(instance)) {
                *written = *own;
            }
        }
    }
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
            slots: vec![Slot::new(instances); workers],
            workers: (0..workers).collect(),
            reports: Reports(vec![Default::default(); instances]),
            learned: Learned::default(),
            lengths: Lengths::default(),
            speeds: Speeds::default(),
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
        self.slots.push(Slot::new(self.instances));
        *self.workers.get_mut(worker)? = new;
        Some(old)
    }

    /// The slot of a worker.
    pub(super) fn slot_of(&self, worker: usize) -> usize {
        self.workers.get(worker).copied().unwrap_or_default()
    }

    /// The counters of all workers together, as the owner of a slot sees them.
    pub fn counters(&self, slot: usize) -> Counters {
        let mut sum = Counters::new(self.instances);
        for (i, s) in self.slots.iter().enumerate() {
            sum.add(if i == slot { &s.own } else { &s.written });
        }
        sum
    }

    /// The load of every instance, as the owner of a slot sees it, and how many requests were sent before.
    pub fn loads(
        &self,
        slot: usize,
        fleet: &Fleet,
        telemetry: &Telemetry,
        now: Duration,
        draw: f64,
    ) -> (Vec<LoadNow>, u64) {
        let counters = self.counters(slot);
        let reports = telemetry.enabled.then_some(&self.reports);
        (reckoning::load_now(fleet, &counters, reports, now, telemetry, draw), counters.dispatched_requests())
    }

    pub(super) fn dispatch(&mut self, slot: usize, dispatch: &Dispatch, now: Duration) {
        self.write(slot, [dispatch.instance; 2], |own| own.dispatch(dispatch, now));
    }

    pub(super) fn move_to(&mut self, slot: usize, dispatch: &mut Dispatch, instance: usize, now: Duration) {
        self.write(slot, [dispatch.instance, instance], |own| own.move_to(dispatch, instance, now));
    }

    pub(super) fn finish(&mut self, slot: usize, dispatch: Dispatch) {
        self.write(slot, [dispatch.instance; 2], |own| own.finish(dispatch));
    }

    /// Progress of a stream: the other workers see it after the next tick.
    pub(super) fn progress(&mut self, slot: usize, dispatch: &mut Dispatch, tokens: u64) {
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.change(dispatch.instance, |own| {
                own.prefilled(dispatch);
                own.streamed(dispatch, tokens);
            });
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

    /// Every worker writes what it has counted.
    pub(super) fn tick(&mut self) {
        self.slots.iter_mut().for_each(Slot::write);
    }

    /// A dead worker's slot is found out.
    pub(super) fn retire(&mut self, slot: usize) {
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.own.retire();
            slot.written.clone_from(&slot.own);
        }
    }

    /// Changes the counters of one or two instances, and writes them.
    fn write(&mut self, slot: usize, [one, other]: [usize; 2], change: impl FnOnce(&mut Counters)) {
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.change(one, change);
            slot.change(other, |_| ());
            slot.write();
        }
    }
}
