//! What one VM knows and does, apart from its requests: its claims, what it counts, hears, learns and tells the other workers.
//!
//! A worker takes the time and a [`Board`] with every call and keeps neither. What is to be done outside comes back as values: calls
//! ([`Fetch`]), statistics and log lines ([`Statistics`]). The filter and the simulator run the same worker on different boards.

mod fetching;
mod following;
mod health;
mod learner;
mod load;
mod placements;
mod prices;
mod speeds;
mod statistics;
mod wanting;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub use fetching::{Fetch, Purpose, Question, Scrape, ScrapeAnswer};
pub use learner::{Learner, Scored};
pub use placements::Placements;
pub use prices::Prices;
pub use statistics::{Counter, Gauge, Histogram, Statistic, Statistics};

use crate::discovery::Roster;
use crate::fleet::{InstanceId, PoolId};
use crate::reckoning::{Counters, Glimpse, Reports};
use crate::router::Router;
use crate::shared::{self, Board, Index, Key, Responses, SLOT_TTL, Slots, Unwritten, Version};
use crate::telemetry;

/// Attempts to win a compare-and-swap against the other workers.
const SWAP_ATTEMPTS: usize = 8;
/// A worker that has sent nothing for so long does not share in batches.
const IDLE_AFTER: Duration = Duration::from_secs(10);

/// Another configuration that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Neighbour {
    place: usize,
    identity: u64,
    /// Whether it came later.
    is_newer: bool,
    /// Whether it speaks for the instances that both have.
    speaks: bool,
}

/// State of one VM.
pub struct Worker {
    /// Decides, with the fleet as this worker knows it.
    pub router: Router,
    /// What happens, for the shell to show.
    pub statistics: Statistics,
    /// What it has learnt.
    pub learner: Learner,
    /// What instances hold.
    pub placements: Placements,
    /// Prices that follow demand.
    pub prices: Prices,
    /// Tells VMs apart; never 0.
    owner: u64,
    identity: u64,
    started: Duration,
    /// The latest connection that it has served, and when that was seen first.
    last_connection: u64,
    served: Duration,
    slot: Option<usize>,
    place: Option<usize>,
    /// Until when the slot is surely this worker's.
    owns_until: Duration,
    heartbeat_at: Duration,
    slots: Slots,
    slots_version: Option<Version>,
    neighbours: Vec<Neighbour>,
    /// Whether this VM holds the lease: it alone scrapes and writes the gauges for its configuration.
    leads: bool,
    has_left: bool,
    index: Index,
    counters: Counters,
    /// What of the counters has changed since they were written.
    unwritten: Unwritten,
    responses: Responses,
    /// The reports as this VM last wrote them while it scraped.
    reports: Reports,
    unwritten_reports: Unwritten,
    /// How reports are trusted, at the period in which they come.
    telemetry: telemetry::TelemetrySettings,
    /// Time between two reports of an instance.
    period: Duration,
    /// What response headers have shown this VM, the latest of each instance, until the leader must have read it.
    glimpses: BTreeMap<InstanceId, Glimpse>,
    unwritten_glimpses: bool,
    /// The versions of others' glimpses that the leader has read, by slot.
    glimpses_seen: Vec<Option<Version>>,
    /// The fleet's instances as this VM has them.
    roster: Roster,
    roster_version: Option<Version>,
    scraper: fetching::Scraper,
    asker: fetching::Asker,
    watches: health::Watches,
    serving_workers: usize,
    /// Pools that had no instance for a request of this VM, and when that was last.
    wanted: BTreeMap<PoolId, Duration>,
    /// Endpoints that were chosen here and that Envoy has not honoured.
    unhonoured: u64,
}

impl Worker {
    /// A worker that begins now. `owner` is random and tells it from all others.
    pub fn new(router: Router, owner: u64, now: Duration) -> Worker {
        let owner = owner.max(1);
        let config = router.config();
        let index = Index::from_fleet(&config.fleet);
        let telemetry = config.telemetry.clone();
        Worker {
            statistics: Statistics::new(config),
            learner: Learner::new(&router, owner),
            placements: Placements::new(config),
            prices: Prices::new(config),
            owner,
            identity: config.identity.max(1),
            started: now,
            last_connection: 0,
            served: Duration::ZERO,
            slot: None,
            place: None,
            owns_until: Duration::ZERO,
            heartbeat_at: now,
            slots: Slots::default(),
            slots_version: None,
            neighbours: Vec::new(),
            leads: false,
            has_left: false,
            counters: Counters::new(index.len()),
            unwritten: Unwritten::default(),
            responses: Responses::default(),
            reports: Reports(vec![Default::default(); index.len()]),
            unwritten_reports: Unwritten::default(),
            period: telemetry.scrape_period,
            telemetry,
            glimpses: BTreeMap::new(),
            unwritten_glimpses: false,
            glimpses_seen: Vec::new(),
            roster: Roster::from_fleet(&config.fleet),
            roster_version: None,
            scraper: fetching::Scraper::default(),
            asker: fetching::Asker::default(),
            watches: health::Watches::default(),
            serving_workers: 1,
            wanted: BTreeMap::new(),
            unhonoured: 0,
            index,
            router,
        }
    }

    /// Whether this worker fetches reports and shows gauges for its configuration.
    pub fn leads(&self) -> bool {
        self.leads
    }

    /// Its slot, if it has one.
    pub fn slot(&self) -> Option<usize> {
        self.slot
    }

    /// Workers that serve requests, this one included.
    pub fn serving_workers(&self) -> usize {
        self.serving_workers
    }

    /// Begins: takes over what is known. Envoy tries a configuration on a VM that it then drops without a word, so claims wait for the
    /// first tick.
    pub fn begin(&mut self, board: &mut impl Board, now: Duration) {
        self.follow(board, now);
        self.inherit(board, now);
        self.exchange(board);
    }

    /// Whether several configurations are there. Then it matters who gets new connections.
    pub fn has_neighbours(&self) -> bool {
        !self.neighbours.is_empty()
    }

    /// A request has come on this connection. Envoy numbers them as they are opened.
    pub fn served_connection(&mut self, connection: u64, now: Duration) {
        if connection > self.last_connection {
            (self.last_connection, self.served) = (connection, now);
        }
    }

    /// What is to be done in every tick; the calls that are due.
    pub fn tick(&mut self, board: &mut impl Board, now: Duration) -> Vec<Fetch> {
        self.follow(board, now);
        if is_due(self.heartbeat_at, self.heartbeat_period(), now) {
            self.heartbeat(board, now);
        }
        self.write_counters(board, now);
        self.write_glimpses(board, now);
        self.exchange(board);
        self.follow_prices(board, now);
        self.end_wanting(now);
        if self.leads {
            return self.lead(board, now);
        }
        // Whoever leads from now on reads all of them.
        self.glimpses_seen.clear();
        Vec::new()
    }

    /// What the VM that leads does for all of its configuration.
    fn lead(&mut self, board: &mut impl Board, now: Duration) -> Vec<Fetch> {
        // A report of a time to come was made before a clock was set back: it would count for new once that time is here.
        for (i, report) in self.reports.0.iter_mut().enumerate().filter(|(_, report)| report.at > Some(now)) {
            *report = Default::default();
            self.unwritten_reports.changed(InstanceId::new(i), self.index.len());
        }
        let mut fetches = Vec::new();
        fetches.extend(self.ask_for_hosts(now));
        let counters = self.all_counters(board).into_owned();
        let covered = self.covered(board, now);
        self.watch(board, &counters, &covered, now);
        self.show_gauges(board, &counters);
        fetches.extend(self.scrape(&counters, &covered, now));
        self.write_reports(board, now);
        fetches
    }

    /// Time between two heartbeats: shorter than every expiry. A dead leader is replaced within a lease, a heartbeat and a tick of its
    /// last sign.
    fn heartbeat_period(&self) -> Duration {
        shared::heartbeat(self.router.config().telemetry.lease)
    }

    /// Keeps this VM's claims alive, and cleans up after VMs that have died.
    pub fn heartbeat(&mut self, board: &mut impl Board, now: Duration) {
        if self.has_left {
            return;
        }
        self.heartbeat_at = now.saturating_add(self.heartbeat_period());
        let lease = self.router.config().telemetry.lease;
        for _ in 0..SWAP_ATTEMPTS {
            let (mut slots, version) = board.slots();
            let orphans: Vec<(usize, u64)> = slots
                .orphans(now)
                .into_iter()
                .filter_map(|slot| slots.owners().find(|(other, _)| *other == slot))
                .collect();
            let slot = slots.keep(self.owner, self.identity, now);
            let gone: Vec<(usize, u64)> = slots.gone(now);
            let place = slots.settle(self.identity, (self.started, self.served), now);
            let leads = place.is_some_and(|place| slots.lead(self.owner, place, now, lease));
            orphans.iter().filter(|(orphan, _)| Some(*orphan) != slot).for_each(|(orphan, _)| slots.release(*orphan));
            if !board.write_slots(&slots, version) {
                continue;
            }
            orphans.into_iter().for_each(|(orphan, owner)| self.retire(board, orphan, owner));
            if slot.is_none() && (self.slot.is_some() || self.owns_until.is_zero()) {
                self.statistics.count(Counter::WithoutSlot);
                self.statistics.warn("all slots are taken: this worker's load is not shared with the others");
            }
            self.slots_version = None;
            let is_first = self.place.is_none();
            self.take_place(board, place, leads);
            self.owns_until = now.saturating_add(SLOT_TTL);
            self.know(board, slots, now);
            self.take_slot(board, slot);
            if is_first && leads {
                gone.into_iter().for_each(|(place, identity)| self.end_gauges_of(board, place, identity));
            }
            break;
        }
        if self.router.config().policies.iter().any(|policy| policy.batching.is_some()) {
            self.count_workers(board, now);
        }
        // Also where nothing has changed: whoever has written under this slot by mistake is put right.
        self.unwritten.is_due = true;
        self.write_counters(board, now);
    }

    /// Who is there, as somebody has written it.
    fn know(&mut self, board: &impl Board, slots: Slots, now: Duration) {
        let own = self.place.and_then(|place| slots.places().get(place)).copied().unwrap_or_default();
        let others = slots.places().iter().enumerate().filter(|(_, place)| place.is_there(now));
        let others = others.filter(|(_, place)| place.identity != self.identity);
        let neighbours: Vec<Neighbour> = others
            .map(|(at, place)| Neighbour {
                place: at,
                identity: place.identity,
                is_newer: place.is_newer_than(&own),
                speaks: place.speaks_before(&own),
            })
            .collect();
        self.slots = slots;
        let before = std::mem::replace(&mut self.neighbours, neighbours);
        if self.leads {
            let is_there = |gone: &Neighbour| self.neighbours.iter().any(|other| other.identity == gone.identity);
            let gone: Vec<Neighbour> = before.into_iter().filter(|neighbour| !is_there(neighbour)).collect();
            gone.into_iter().for_each(|gone| self.end_gauges_of(board, gone.place, gone.identity));
            self.hide_gauges(board);
        }
    }

    fn take_place(&mut self, board: &mut impl Board, place: Option<usize>, leads: bool) {
        if place.is_none() && (self.place.is_some() || self.owns_until.is_zero()) {
            self.statistics
                .warn("too many configurations are there: this one, the oldest, fetches no reports of its own");
        }
        self.place = place;
        if leads
            && !self.leads
            && let Some((reports, _)) = place.and_then(|place| board.reports(place, self.identity, &self.index))
        {
            self.reports = Arc::unwrap_or_clone(reports);
        }
        if leads && !self.leads {
            // Rows of the last leader may be of other places.
            self.unwritten_reports.rewrite((0..self.index.len()).map(InstanceId::new));
        }
        self.leads = leads;
    }

    fn take_slot(&mut self, board: &mut impl Board, slot: Option<usize>) {
        if slot == self.slot {
            return;
        }
        self.slot = slot;
        self.learner.settle(board, slot);
        self.placements.settle(board, &self.index, slot);
        self.rewrite_rows();
        let Some(slot) = slot else { return };
        let (bytes, _) = board.read(Key::Responses(slot));
        self.responses.follow(&bytes.map(|bytes| Responses::decode(&bytes)).unwrap_or_default());
    }

    /// Whether the slot is surely this worker's.
    fn owns_slot(&self, now: Duration) -> Option<usize> {
        self.slot.filter(|_| !self.has_left && now <= self.owns_until)
    }

    /// Whether the place is surely this worker's configuration's.
    fn owns_place(&self, now: Duration) -> Option<usize> {
        self.place.filter(|_| !self.has_left && now <= self.owns_until)
    }

    /// Counts the workers that have sent a request lately: the one on Envoy's main thread never does.
    fn count_workers(&mut self, board: &impl Board, now: Duration) {
        let mut serving: usize = 1;
        for (slot, owner) in self.slots.owners().filter(|(slot, _)| Some(*slot) != self.slot) {
            let mut counters = Counters::new(self.index.len());
            board.add_counters(slot, owner, &self.index, &mut counters);
            let last = counters.0.iter().map(|c| c.last_dispatch).max().unwrap_or_default();
            let serves = !last.is_zero() && now.saturating_sub(last) < IDLE_AFTER;
            serving = serving.saturating_add(usize::from(serves));
        }
        self.serving_workers = serving;
    }

    /// The VM ends: gives its claims back, and ends the gauges that nobody else shows.
    pub fn leave(&mut self, board: &mut impl Board, now: Duration) {
        if self.leads {
            self.end_gauges(board);
        }
        if let Some(slot) = self.owns_slot(now) {
            self.counters.retire();
            board.write_counters(slot, 0, &self.counters, &self.index);
        }
        self.has_left = true;
        for _ in 0..SWAP_ATTEMPTS {
            let (mut slots, version) = board.slots();
            slots.leave(self.owner, self.identity);
            if board.write_slots(&slots, version) {
                break;
            }
        }
        (self.slot, self.leads) = (None, false);
    }
}

/// Whether something that is to happen at a time, and again after each period, is to happen now. A time that is farther away than the
/// period was set by a clock that has since been set back.
fn is_due(at: Duration, period: Duration, now: Duration) -> bool {
    now >= at || at > now.saturating_add(period)
}

#[cfg(test)]
mod tests;
