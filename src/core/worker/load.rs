//! What workers have sent, and the load of every instance that follows.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use super::Worker;
use crate::config::Drill;
use crate::fleet::InstanceId;
use crate::reckoning::{self, Counters, Dispatch, InstanceCounters, LoadNow, Reports};
use crate::shared::{Board, Key, Responses, WHOLE_ROWS_MAX};

impl Worker {
    /// What this worker has sent and seen finished itself.
    pub fn own_counters(&self) -> &Counters {
        &self.counters
    }

    /// The counters of all workers together.
    pub fn all_counters(&self, board: &impl Board) -> Cow<'_, Counters> {
        let mut sum = Cow::Borrowed(&self.counters);
        for (slot, owner) in self.slots.owners().filter(|(slot, _)| Some(*slot) != self.slot) {
            board.add_counters(slot, owner, &self.index, sum.to_mut());
        }
        sum
    }

    /// Forgets what a dead VM had outstanding.
    pub(super) fn retire(&self, board: &mut impl Board, slot: usize, owner: u64) {
        let mut counters = Counters::new(self.index.len());
        if board.add_counters(slot, owner, &self.index, &mut counters) {
            counters.retire();
            board.write_counters(slot, 0, &counters, &self.index);
        }
    }

    /// The load of every instance now, and how many requests were sent before; no load if shared data cannot be read.
    pub fn loads(&self, board: &impl Board, now: Duration, draw: f64) -> (Option<Vec<LoadNow>>, u64) {
        if self.router.config().drills(Drill::SharedData) {
            return (None, self.counters.dispatched_requests());
        }
        let counters = self.all_counters(board);
        (Some(self.loads_by(board, &counters, now, draw)), counters.dispatched_requests())
    }

    /// The load of every instance now, by the counters of all workers.
    pub fn loads_by(&self, board: &impl Board, counters: &Counters, now: Duration, draw: f64) -> Vec<LoadNow> {
        let config = self.router.config();
        let reports = if config.drills(Drill::Reports) { None } else { self.known_reports(board) };
        let counters = counters.server_sums(self.index.shared());
        let mut loads = reckoning::load_now(&config.fleet, &counters, reports.as_deref(), now, &self.telemetry, draw);
        if config.health.enabled {
            board.records().0.stand(&mut loads, &config.fleet, now, &config.health);
        }
        loads
    }

    /// The last reports, of whichever configuration: its own leader's, and those of others that have the same instances.
    pub fn known_reports(&self, board: &impl Board) -> Option<Arc<Reports>> {
        let own = self.place.map(|place| (place, self.identity));
        let others = self.neighbours.iter().map(|neighbour| (neighbour.place, neighbour.identity));
        let mut known: Option<Arc<Reports>> = None;
        for (place, identity) in own.into_iter().chain(others) {
            let Some((reports, _)) = board.reports(place, identity, &self.index) else { continue };
            known = Some(match known {
                None => reports,
                Some(mut known) => {
                    let others = reports.0.iter();
                    Arc::make_mut(&mut known)
                        .0
                        .iter_mut()
                        .zip(others)
                        .for_each(|(known, other)| *known = known.or(other));
                    known
                }
            });
        }
        known
    }

    /// Writes the counters if they have changed. Progress of streams is written here, from the tick, not per chunk.
    pub fn write_counters(&mut self, board: &mut impl Board, now: Duration) {
        let Some(slot) = self.owns_slot(now).filter(|_| self.unwritten.is_due) else { return };
        let Worker { owner, counters, index, unwritten, .. } = self;
        let is_written = if index.len() > WHOLE_ROWS_MAX {
            board.write_counters_rows(slot, *owner, counters, index, (unwritten, now))
        } else {
            board.write_counters(slot, *owner, counters, index)
        };
        self.unwritten.is_due = !is_written;
    }

    /// An instance's counters have changed.
    pub(super) fn changed(&mut self, instance: InstanceId) {
        self.unwritten.changed(instance, self.index.len());
    }

    /// All counters are to be written.
    pub(super) fn rewrite_rows(&mut self) {
        let is_used = |counters: &InstanceCounters| *counters != InstanceCounters::default();
        let used = self.counters.0.iter().enumerate().filter(|(_, counters)| is_used(counters));
        self.unwritten.rewrite(used.map(|(i, _)| InstanceId::new(i)));
    }

    /// A request goes out: all workers know it from now on.
    pub fn dispatch(&mut self, board: &mut impl Board, dispatch: &Dispatch, now: Duration) {
        self.counters.dispatch(dispatch, now);
        self.changed(dispatch.instance);
        self.write_counters(board, now);
    }

    /// A request has ended: all workers know it from now on.
    pub fn finish(&mut self, board: &mut impl Board, dispatch: Dispatch, now: Duration) {
        self.changed(dispatch.instance);
        self.counters.finish(dispatch);
        self.write_counters(board, now);
    }

    /// A request's prefill is over; the other workers see it after the next tick.
    pub fn prefilled(&mut self, dispatch: &mut Dispatch) {
        self.counters.prefilled(dispatch);
        self.changed(dispatch.instance);
    }

    /// A request's stream has brought more tokens; the other workers see it after the next tick.
    pub fn streamed(&mut self, dispatch: &mut Dispatch, tokens: u64) {
        self.counters.streamed(dispatch, tokens);
        self.changed(dispatch.instance);
    }

    /// Streams of an instance have brought so many more of the tokens that were predicted for them, and their dispatches know it.
    pub fn streams_brought(&mut self, instance: InstanceId, predicted: u64) {
        if let Some(counters) = self.counters.get_mut(instance) {
            counters.streamed(predicted);
        }
        self.changed(instance);
    }

    /// A request goes to another instance than the chosen one.
    pub fn move_to(&mut self, board: &mut impl Board, dispatch: &mut Dispatch, instance: InstanceId, now: Duration) {
        self.changed(dispatch.instance);
        self.counters.move_to(dispatch, instance, now);
        self.changed(instance);
        self.write_counters(board, now);
    }

    /// Remembers which instance holds a response.
    pub fn remember_response(&mut self, board: &mut impl Board, id: &str, instance: InstanceId, now: Duration) {
        let Some(key) = self.index.key(instance) else { return };
        self.responses.insert(id, key);
        if let Some(slot) = self.owns_slot(now) {
            board.write(Key::Responses(slot), &self.responses.encode(), None);
        }
    }

    /// The instance that holds a response, whichever worker saw it created.
    pub fn holder(&self, board: &impl Board, id: &str) -> Option<InstanceId> {
        let elsewhere = || {
            let others = self.slots.owners().filter(|(slot, _)| Some(*slot) != self.slot);
            others.into_iter().find_map(|(slot, _)| {
                let bytes = board.read(Key::Responses(slot)).0?;
                Responses::decode(&bytes).holder(id)
            })
        };
        let key = self.responses.holder(id).or_else(elsewhere)?;
        self.router.config().fleet.instance_with_key(key)
    }
}
