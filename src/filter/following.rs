//! What a worker takes over from the others in every tick: the roster of instances, the period of reports, and what response
//! headers have shown.

use std::time::Duration;

use crate::discovery::{ClusterHosts, Roster};
use crate::filter::host;
use crate::filter::worker::Worker;
use crate::fleet::Presence;
use crate::reckoning::{Dispatch, Glimpse, InstanceCounters, InstanceReport};
use crate::shared;
use crate::telemetry::{self, Load};

/// How long a glimpse stays in the record of the worker that has seen it.
const GLIMPSES_KEPT: Duration = Duration::from_secs(2);

impl Worker {
    /// Reads what the leader says of instances and of the period of reports.
    pub(super) fn follow(&mut self) {
        let key = shared::roster_key(self.group);
        let (bytes, version) = host::shared(&key);
        if version != self.roster_version {
            self.roster_version = version;
            if let Some(roster) = bytes.and_then(|bytes| shared::decode_roster(&bytes, self.fingerprint)) {
                self.adopt(roster);
            }
        }
        let reports = host::shared(&shared::reports_key(self.group)).0;
        if let Some(period) = reports.and_then(|bytes| shared::decode_period(&bytes)).filter(|p| *p != self.period) {
            self.set_period(period);
        }
    }

    /// Has the instances of a roster from now on.
    fn adopt(&mut self, roster: Roster) {
        let replaced = self.router.follow(&roster);
        let instances = self.router.config().fleet.instances.len();
        self.counters.0.resize_with(instances, InstanceCounters::default);
        self.reports.0.resize_with(instances, InstanceReport::default);
        self.placements.memory.follow(&self.router.config().fleet, &replaced);
        for i in replaced {
            // Nothing was outstanding there, or the index would not have been given away.
            if let (Some(counters), Some(report)) = (self.counters.0.get_mut(i), self.reports.0.get_mut(i)) {
                (*counters, *report) = (InstanceCounters::default(), InstanceReport::default());
            }
            self.glimpses.remove(&i);
        }
        self.unwritten = true;
        self.roster = roster;
    }

    /// Takes over what Envoy says of its clusters, and tells the other workers.
    pub(super) fn discovered(&mut self, clusters: &[ClusterHosts], now: Duration) {
        let counters = self.all_counters();
        let outstanding = |i: usize| counters.0.get(i).map_or(0, InstanceCounters::outstanding_requests);
        let mut roster = self.roster.clone();
        let key = shared::roster_key(self.group);
        if roster.update(&self.router.config().fleet.pools, clusters, outstanding, now) {
            // Another VM may have taken the lead meanwhile: then its roster counts, and the next answer is soon here.
            let bytes = shared::encode_roster(&roster, self.fingerprint);
            if host::set_shared(&key, &bytes, self.roster_version) {
                self.adopt(roster);
            }
        }
        for (i, pool) in self.router.config().fleet.pools.iter().enumerate() {
            for (name, presence) in
                [("present_instances", Presence::Present), ("unhealthy_instances", Presence::Unhealthy)]
            {
                let count = self.roster.count(i, presence) as u64;
                self.metrics.set(&format!("routebalance.{name}.{}", pool.name), count);
            }
        }
    }

    fn set_period(&mut self, period: Duration) {
        self.period = period;
        self.telemetry = telemetry::stretched(&self.router.config().telemetry, period);
    }

    /// The leader reports in this period from now on.
    pub(super) fn report_every(&mut self, period: Duration) {
        if period != self.period {
            self.set_period(period);
            self.unwritten_reports = true;
        }
    }

    /// An instance has answered a scrape, or not.
    pub(super) fn report_mut(&mut self, instance: usize) -> Option<&mut InstanceReport> {
        self.unwritten_reports = true;
        self.reports.0.get_mut(instance)
    }

    /// Takes over what all workers have seen in response headers, and writes the reports if they have changed. The leader does
    /// it once in a tick.
    pub(super) fn write_reports(&mut self) {
        for slot in 0..self.slots_in_use {
            let Some(bytes) = host::shared(&shared::glimpses_key(slot)).0 else { continue };
            for (i, glimpse) in shared::decode_glimpses(&bytes, &self.router.config().fleet) {
                if let Some(report) = self.reports.0.get_mut(i)
                    && report.glimpsed(&glimpse)
                {
                    self.unwritten_reports = true;
                    self.metrics.count("routebalance.header_reports");
                }
            }
        }
        if self.unwritten_reports {
            let bytes = shared::encode_reports(&self.reports, self.period, &self.router.config().fleet);
            self.unwritten_reports = !host::set_shared(&shared::reports_key(self.group), &bytes, None);
        }
    }

    /// A response header has shown an instance's load, without the request that it answers.
    pub(super) fn glimpse(&mut self, answered: &Dispatch, load: &Load, now: Duration) {
        let mut counters = self.all_counters();
        counters.finish(*answered);
        let own = counters.0.get(answered.instance).copied().unwrap_or_default();
        if let Some(glimpse) = Glimpse::of(load, now, own) {
            self.glimpses.insert(answered.instance, glimpse);
            self.unwritten_glimpses = true;
        }
    }

    /// Shares what response headers have shown, in the tick.
    pub(super) fn write_glimpses(&mut self, now: Duration) {
        let Some(slot) = self.slot.filter(|_| self.unwritten_glimpses) else { return };
        // Older ones were read long ago.
        self.glimpses.retain(|_, glimpse| now.saturating_sub(glimpse.at) < GLIMPSES_KEPT);
        let glimpses = self.glimpses.iter().map(|(i, glimpse)| (*i, glimpse));
        let bytes = shared::encode_glimpses(glimpses, &self.router.config().fleet);
        self.unwritten_glimpses = !host::set_shared(&shared::glimpses_key(slot), &bytes, None);
    }
}
