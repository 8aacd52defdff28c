//! Records in Envoy's shared data: versioned bytes to types and back, one writer per key.
//!
//! Shared data lives as long as Envoy's process, survives VMs and configurations, and cannot be deleted: keys are few and
//! bounded. Every record starts with a version and, where it belongs to one configuration, that one's fingerprint; one that does
//! not fit is as good as absent. Rows of an instance carry the key of its address.

mod affinity;
mod health;
mod learnt;
mod load;
mod prices;
mod recent;
mod responses;
mod roster;
mod slots;

use std::time::Duration;

pub use affinity::{Journal, JournalReader, PLACEMENT_SEGMENTS};
pub use health::{decode_health, encode_health};
pub use learnt::{decode_beliefs, decode_lengths, decode_speeds, encode_beliefs, encode_lengths, encode_speeds};
pub use load::{
    decode_counters, decode_glimpses, decode_period, decode_reports, encode_counters, encode_glimpses, encode_reports,
};
pub use prices::{decode_prices, encode_prices, prices_fingerprint};
pub use recent::{RECENT_SEGMENTS, Recent, RecentDecision};
pub use responses::{RESPONSES_KEPT, Responses};
pub use roster::{decode_roster, encode_roster};
pub use slots::{MAX_SLOTS, SLOT_TTL, Slots, heartbeat};

use crate::fleet::Fleet;
use crate::hash::fnv1a;
use crate::latency::Basis;

/// Key of the record that says which VM owns which slot ([`Slots`]); written by compare-and-swap.
pub const SLOTS_KEY: &str = "routebalance.slots";
/// Configurations whose records are kept apart while one replaces the other.
pub const GROUPS: usize = 8;

/// The group of a configuration's fingerprint. VMs of the old and the new configuration live side by side while connections
/// drain: each group has a leader, reports and a roster of its own.
pub fn group(fingerprint: u64) -> usize {
    usize::try_from(fingerprint % GROUPS as u64).unwrap_or_default()
}

/// Key of the last reports ([`crate::reckoning::Reports`]); written by the group's leading VM.
pub fn reports_key(group: usize) -> String {
    format!("routebalance.reports.{group}")
}

/// Key of the roster ([`crate::discovery::Roster`]); written by the group's leading VM, by compare-and-swap.
pub fn roster_key(group: usize) -> String {
    format!("routebalance.roster.{group}")
}

/// Key of the prices that follow demand ([`crate::prices::LivePrices`]), by the group of their own fingerprint
/// ([`prices_fingerprint`]); written by compare-and-swap, as a rule by the leading VM.
pub fn prices_key(group: usize) -> String {
    format!("routebalance.prices.{group}")
}

/// Key of the loads that one worker has seen in response headers; written by the VM that owns the slot.
pub fn glimpses_key(slot: usize) -> String {
    format!("routebalance.glimpses.{slot}")
}

/// Key of the instances that something speaks against ([`Records`](crate::health::Records)); written by compare-and-swap.
pub const HEALTH_KEY: &str = "routebalance.health";

/// Key of one worker's counters; written by the VM that owns the slot.
pub fn counters_key(slot: usize) -> String {
    format!("routebalance.worker.{slot}")
}

/// Key of the responses that one worker has seen created; written by the VM that owns the slot.
pub fn responses_key(slot: usize) -> String {
    format!("routebalance.responses.{slot}")
}

/// Key of one segment of what a worker has placed where; written by the VM that owns the slot.
pub fn placements_key(slot: usize, segment: usize) -> String {
    format!("routebalance.placements.{slot}.{segment}")
}

/// Key of what one worker has learnt of lengths; written by the VM that owns the slot.
pub fn lengths_key(slot: usize) -> String {
    format!("routebalance.lengths.{slot}")
}

/// Key of what one worker has learnt of speed; written by the VM that owns the slot.
pub fn speeds_key(slot: usize) -> String {
    format!("routebalance.speeds.{slot}")
}

/// Key of what one worker has learnt from feedback; written by the VM that owns the slot.
pub fn beliefs_key(slot: usize) -> String {
    format!("routebalance.beliefs.{slot}")
}

/// Key of one segment of a worker's recent decisions. The VM that owns the slot adds decisions and any VM marks one as scored:
/// by compare-and-swap, both.
pub fn recent_key(slot: usize, segment: usize) -> String {
    format!("routebalance.recent.{slot}.{segment}")
}

const VERSION: u8 = 3;

/// Tells configurations apart: pools, their clusters, and the instances that are listed.
pub fn fingerprint(fleet: &Fleet) -> u64 {
    let mut text = String::new();
    for pool in &fleet.pools {
        text.push_str(&format!("{} {}\n", pool.cluster, pool.discovered));
    }
    for instance in fleet.instances.iter().filter(|i| fleet.pools.get(i.pool).is_some_and(|p| !p.discovered)) {
        text.push_str(&format!("{} {}\n", instance.pool, instance.address));
    }
    fnv1a(text.as_bytes())
}

/// Tells apart what was learnt of other models, or against other estimates.
pub fn learning_fingerprint(fleet: &Fleet, prototypes: usize) -> u64 {
    let mut text = format!("{prototypes}\n");
    for model in &fleet.models {
        text.push_str(&format!("{} {} {}\n", model.name, model.quality_prior, model.output_tokens_prior));
    }
    fnv1a(text.as_bytes())
}

/// Tells apart what was learnt of other pools, or against other forecasts.
pub fn speed_fingerprint(fleet: &Fleet, basis: Basis) -> u64 {
    let mut text = format!("{basis:?}\n");
    for pool in &fleet.pools {
        text.push_str(&format!("{} {:?} {:?}\n", pool.name, pool.profile, pool.limits));
    }
    fnv1a(text.as_bytes())
}

// === bytes ===

struct Writer(Vec<u8>);

impl Writer {
    fn new(fingerprint: u64) -> Writer {
        let mut writer = Writer(vec![VERSION]);
        writer.u64(fingerprint);
        writer
    }

    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn f32(&mut self, value: f64) {
        self.u32((value as f32).to_bits());
    }

    /// A small number that may be unknown; eight digits are enough.
    fn gauge(&mut self, value: Option<f64>) {
        self.f32(value.unwrap_or(f64::NAN));
    }

    fn text(&mut self, value: &str) {
        self.u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
        self.0.extend_from_slice(value.as_bytes());
    }

    fn time(&mut self, value: Duration) {
        self.u64(u64::try_from(value.as_nanos()).unwrap_or(u64::MAX));
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn open(bytes: &'a [u8], fingerprint: u64) -> Option<Reader<'a>> {
        let (version, rest) = bytes.split_first()?;
        let mut reader = Reader(rest);
        (*version == VERSION && reader.u64()? == fingerprint).then_some(reader)
    }

    fn u64(&mut self) -> Option<u64> {
        let (head, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*head))
    }

    fn u32(&mut self) -> Option<u32> {
        let (head, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*head))
    }

    fn f32(&mut self) -> Option<f64> {
        Some(f64::from(f32::from_bits(self.u32()?)))
    }

    fn gauge(&mut self) -> Option<Option<f64>> {
        self.f32().map(|value| Some(value).filter(|value| value.is_finite()))
    }

    fn text(&mut self) -> Option<String> {
        let length = usize::try_from(self.u32()?).ok()?;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        String::from_utf8(text.to_vec()).ok()
    }

    fn time(&mut self) -> Option<Duration> {
        Some(Duration::from_nanos(self.u64()?))
    }

    fn rows<T>(&mut self, mut row: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let mut rows = Vec::new();
        while !self.0.is_empty() {
            rows.push(row(self)?);
        }
        Some(rows)
    }
}

#[cfg(test)]
mod tests;
