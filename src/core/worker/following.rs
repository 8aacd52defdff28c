//! What a worker takes over from the others in every tick: who is there, the roster of instances, the period of reports, and what
//! response headers have shown.

use std::time::Duration;

use super::{Counter, Gauge, Worker, is_due};
use crate::discovery::{ClusterHosts, Roster};
use crate::fleet::{InstanceId, Presence};
use crate::reckoning::{Dispatch, Glimpse, InstanceCounters, InstanceReport};
use crate::shared::{self, Board, Index, Key, Sources, WHOLE_ROWS_MAX};
use crate::telemetry::{self, Load};

/// How long a glimpse stays in the record of the worker that has seen it.
const GLIMPSES_KEPT: Duration = Duration::from_secs(2);

impl Worker {
    /// Reads who is there, and what leaders say of instances and of the period of reports.
    pub(super) fn follow(&mut self, board: &impl Board, now: Duration) {
        if let Some((slots, version)) = board.slots_news(self.slots_version) {
            self.slots_version = version;
            self.know(board, slots, now);
        }
        let Some(place) = self.place else { return };
        if let Some((bytes, version)) = board.news(Key::Roster(place), self.roster_version) {
            self.roster_version = version;
            if let Some(roster) = bytes.and_then(|bytes| shared::decode_roster(&bytes, self.identity)) {
                self.adopt(roster);
            }
        }
        if !self.leads
            && is_due(self.heartbeat_at, self.heartbeat_period(), now)
            && let Some((_, sources)) = board.reports(place, self.identity, &self.index)
        {
            self.set_period(sources.period);
        }
    }

    /// Takes over the hosts that other configurations know of the same clusters: who comes with a reload need not wait for an answer.
    pub(super) fn inherit(&mut self, board: &impl Board, now: Duration) {
        let mut roster = self.roster.clone();
        for neighbour in &self.neighbours {
            let bytes = board.read(Key::Roster(neighbour.place)).0;
            let Some(clusters) = bytes.and_then(|bytes| shared::decode_hosts(&bytes, neighbour.identity)) else {
                continue;
            };
            if roster.update(&self.router.config().fleet.pools, &clusters, |_| 0, now) {
                return self.adopt(roster);
            }
        }
    }

    /// Has the instances of a roster from now on.
    fn adopt(&mut self, roster: Roster) {
        let replaced = self.router.follow(&roster);
        let fleet = &self.router.config().fleet;
        let instances = fleet.instances.len();
        let was_large = self.index.len() > WHOLE_ROWS_MAX;
        self.index = Index::from_fleet(fleet);
        self.counters.0.resize_with(instances, InstanceCounters::default);
        self.reports.0.resize_with(instances, InstanceReport::default);
        self.placements.memory.follow(fleet, &replaced);
        for i in replaced {
            // Nothing was outstanding there, or the id would not have been given away.
            if let (Some(counters), Some(report)) = (self.counters.get_mut(i), self.reports.get_mut(i)) {
                (*counters, *report) = (InstanceCounters::default(), InstanceReport::default());
            }
            self.glimpses.remove(&i);
            self.changed(i);
            self.unwritten_reports.changed(i, instances);
        }
        self.unwritten.is_due = true;
        self.unwritten_reports.is_due = true;
        if !was_large {
            self.rewrite_rows();
            self.unwritten_reports.rewrite((0..instances).map(InstanceId::new));
        }
        self.roster = roster;
    }

    /// Takes over what Envoy says of its clusters, and tells the other workers.
    pub(super) fn discovered(&mut self, board: &mut impl Board, clusters: &[ClusterHosts], now: Duration) {
        let Some(place) = self.owns_place(now) else { return };
        let counters = self.all_counters(board);
        let outstanding = |i: InstanceId| counters.get(i).map_or(0, InstanceCounters::outstanding_requests);
        let mut roster = self.roster.clone();
        if roster.update(&self.router.config().fleet.pools, clusters, outstanding, now) {
            // Another VM may have taken the lead meanwhile: then its roster counts, and the next answer is soon here.
            let bytes = shared::encode_roster(&roster, &self.router.config().fleet.pools, self.identity);
            if board.write(Key::Roster(place), &bytes, self.roster_version) {
                self.roster_version = board.read(Key::Roster(place)).1;
                self.adopt(roster);
            } else {
                self.roster_version = None;
            }
        }
        for (id, pool) in self.router.config().fleet.pools_by_id() {
            let count = |presence| self.roster.count(id, presence) as u64;
            self.statistics.set(Gauge::PresentInstances { pool: &pool.name }, count(Presence::Present));
            self.statistics.set(Gauge::DegradedInstances { pool: &pool.name }, count(Presence::Degraded));
            self.statistics.set(Gauge::UnhealthyInstances { pool: &pool.name }, count(Presence::Unhealthy));
        }
    }

    pub(super) fn set_period(&mut self, period: Duration) {
        if period != self.period {
            self.period = period;
            self.telemetry = telemetry::stretched(&self.router.config().telemetry, period);
            self.unwritten_reports.is_due = true;
        }
    }

    /// Takes over what all workers have seen in response headers, and writes the reports if they have changed. The leader does
    /// it once in a tick.
    pub(super) fn write_reports(&mut self, board: &mut impl Board, now: Duration) {
        for slot in 0..self.slots.in_use() {
            let seen = self.glimpses_seen.get(slot).copied().flatten();
            let Some((bytes, version)) = board.news(Key::Glimpses(slot), seen) else { continue };
            self.glimpses_seen.resize(self.glimpses_seen.len().max(slot.saturating_add(1)), None);
            if let Some(seen) = self.glimpses_seen.get_mut(slot) {
                *seen = version;
            }
            let Some(bytes) = bytes else { continue };
            let is_news = |i: InstanceId, at| self.reports.get(i).is_some_and(|report| report.at < Some(at));
            for (i, glimpse) in shared::decode_glimpses(&bytes, &self.index, is_news) {
                if let Some(report) = self.reports.get_mut(i)
                    && report.glimpsed(&glimpse)
                {
                    self.unwritten_reports.changed(i, self.index.len());
                    self.statistics.count(Counter::HeaderReports);
                }
            }
        }
        let Some(place) = self.place.filter(|_| self.unwritten_reports.is_due) else { return };
        let sources = Sources { identity: self.identity, period: self.period };
        let Worker { reports, index, unwritten_reports, owner, .. } = self;
        let is_written = if index.len() > WHOLE_ROWS_MAX {
            board.write_report_rows((place, *owner), reports, &sources, index, (unwritten_reports, now))
        } else {
            board.write_reports(place, reports, &sources, index)
        };
        self.unwritten_reports.is_due = !is_written;
    }

    /// A response header has shown an instance's load, without the request that it answers.
    pub fn glimpse(&mut self, board: &impl Board, answered: &Dispatch, load: &Load, now: Duration) {
        let mut counters = self.all_counters(board).into_owned();
        counters.finish(*answered);
        let own = counters.server_sums(self.index.shared()).get(answered.instance).copied().unwrap_or_default();
        if let Some(glimpse) = Glimpse::from_load(load, now, own) {
            self.glimpses.insert(answered.instance, glimpse);
            self.unwritten_glimpses = true;
        }
    }

    /// Shares what response headers have shown, in the tick.
    pub(super) fn write_glimpses(&mut self, board: &mut impl Board, now: Duration) {
        let Some(slot) = self.owns_slot(now).filter(|_| self.unwritten_glimpses) else { return };
        // Older ones were read long ago.
        self.glimpses.retain(|_, glimpse| now.saturating_sub(glimpse.at) < GLIMPSES_KEPT);
        let glimpses = self.glimpses.iter().map(|(i, glimpse)| (*i, glimpse));
        let bytes = shared::encode_glimpses(glimpses, &self.index);
        self.unwritten_glimpses = !board.write(Key::Glimpses(slot), &bytes, None);
    }
}
