//! Records in Envoy's shared data: versioned bytes to types and back, one writer per key.
//!
//! Shared data lives as long as Envoy's process, survives VMs and configurations, and cannot be deleted: keys are few and
//! bounded. Every record starts with a version and the fleet's fingerprint; one that does not fit is as good as absent.

use std::time::Duration;

use crate::fleet::Fleet;
use crate::reckoning::{Counters, InstanceCounters, InstanceReport, Reports};
use crate::telemetry::Load;

/// Key of the record that says which VM owns which slot ([`Slots`]); written by compare-and-swap.
pub const SLOTS_KEY: &str = "routebalance.slots";
/// Key of the last reports ([`Reports`]); written by the holder of the scraping lease.
pub const REPORTS_KEY: &str = "routebalance.reports";
/// Most VMs that can own a slot: Envoy's workers, its main thread, and as many again during a reload.
pub const MAX_SLOTS: usize = 256;
/// A VM that has not renewed its slot for this long has died.
pub const SLOT_TTL: Duration = Duration::from_secs(5);

/// Key of one worker's counters; written by the VM that owns the slot.
pub fn counters_key(slot: usize) -> String {
    format!("routebalance.worker.{slot}")
}

/// Key of the responses that one worker has seen created; written by the VM that owns the slot.
pub fn responses_key(slot: usize) -> String {
    format!("routebalance.responses.{slot}")
}

const VERSION: u8 = 1;

/// 64-bit FNV-1a (Fowler, Noll, Vo): short, stable across builds, good enough to tell names apart.
pub fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Tells fleets apart: records are per instance, in the order of the file.
pub fn fingerprint(fleet: &Fleet) -> u64 {
    let mut text = String::new();
    for instance in &fleet.instances {
        text.push_str(&instance.address);
        text.push('\n');
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

    fn f64(&mut self, value: Option<f64>) {
        self.u64(value.unwrap_or(f64::NAN).to_bits());
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

    fn f64(&mut self) -> Option<Option<f64>> {
        let value = f64::from_bits(self.u64()?);
        Some(value.is_finite().then_some(value))
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

// === counters ===

/// A worker's counters as bytes.
pub fn encode_counters(counters: &Counters, fingerprint: u64) -> Vec<u8> {
    let mut writer = Writer::new(fingerprint);
    for c in &counters.0 {
        // Destructured in full, so that a new counter cannot be forgotten here.
        let InstanceCounters {
            dispatched_requests,
            finished_requests,
            dispatched_prompt_tokens,
            finished_prompt_tokens,
            dispatched_output_tokens,
            finished_output_tokens,
            last_dispatch,
        } = *c;
        for value in [
            dispatched_requests,
            finished_requests,
            dispatched_prompt_tokens,
            finished_prompt_tokens,
            dispatched_output_tokens,
            finished_output_tokens,
        ] {
            writer.u64(value);
        }
        writer.time(last_dispatch);
    }
    writer.0
}

/// A worker's counters from bytes; `None` if they are of another fleet, another version, or broken.
pub fn decode_counters(bytes: &[u8], fingerprint: u64) -> Option<Counters> {
    let rows = Reader::open(bytes, fingerprint)?.rows(|r| {
        Some(InstanceCounters {
            dispatched_requests: r.u64()?,
            finished_requests: r.u64()?,
            dispatched_prompt_tokens: r.u64()?,
            finished_prompt_tokens: r.u64()?,
            dispatched_output_tokens: r.u64()?,
            finished_output_tokens: r.u64()?,
            last_dispatch: r.time()?,
        })
    })?;
    Some(Counters(rows))
}

// === reports ===

/// The last reports as bytes.
pub fn encode_reports(reports: &Reports, fingerprint: u64) -> Vec<u8> {
    let mut writer = Writer::new(fingerprint);
    for report in &reports.0 {
        let InstanceReport { at, load: Load { running, waiting, kv_use }, outstanding_requests, unreachable } = *report;
        writer.time(at.unwrap_or(Duration::ZERO));
        writer.f64(running);
        writer.f64(waiting);
        writer.f64(kv_use);
        writer.u64(outstanding_requests);
        writer.u64(u64::from(unreachable));
    }
    writer.0
}

/// The last reports from bytes; `None` if they are of another fleet, another version, or broken.
pub fn decode_reports(bytes: &[u8], fingerprint: u64) -> Option<Reports> {
    let rows = Reader::open(bytes, fingerprint)?.rows(|r| {
        let at = r.time()?;
        Some(InstanceReport {
            at: (!at.is_zero()).then_some(at),
            load: Load { running: r.f64()?, waiting: r.f64()?, kv_use: r.f64()? },
            outstanding_requests: r.u64()?,
            unreachable: u32::try_from(r.u64()?).unwrap_or(u32::MAX),
        })
    })?;
    Some(Reports(rows))
}

// === slots ===

/// Which VM owns which slot, and which one leads: it scrapes and writes the gauges. Nothing tells a VM which worker it is, so it
/// claims a slot and keeps it by heartbeat; an expired slot is taken over, so that keys stay bounded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slots {
    /// Who leads.
    scraper: Claim,
    /// Owners by slot.
    owners: Vec<Claim>,
}

/// Something that a VM owns until it expires.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Claim {
    /// A random number per VM; 0 is nobody.
    owner: u64,
    until: Duration,
}

impl Claim {
    fn free_at(&self, now: Duration) -> bool {
        self.owner == 0 || self.until < now
    }
}

impl Slots {
    /// The record as bytes. It belongs to no fleet: VMs of an old and a new configuration share it.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new(0);
        for claim in std::iter::once(&self.scraper).chain(&self.owners) {
            writer.u64(claim.owner);
            writer.time(claim.until);
        }
        writer.0
    }

    /// The record from bytes; a broken one is empty.
    pub fn decode(bytes: &[u8]) -> Slots {
        let claims = Reader::open(bytes, 0)
            .and_then(|mut reader| reader.rows(|r| Some(Claim { owner: r.u64()?, until: r.time()? })));
        match claims.as_deref().and_then(<[Claim]>::split_first) {
            Some((scraper, owners)) => {
                Slots { scraper: *scraper, owners: owners.iter().copied().take(MAX_SLOTS).collect() }
            }
            None => Slots::default(),
        }
    }

    /// How many slots were ever in use: their counters are the ones to read.
    pub fn in_use(&self) -> usize {
        self.owners.len()
    }

    /// Renews the VM's slot, or claims one: an expired one first. `None` if all are taken.
    pub fn keep(&mut self, owner: u64, now: Duration) -> Option<usize> {
        let until = now.saturating_add(SLOT_TTL);
        let mine = self.owners.iter().position(|c| c.owner == owner);
        let slot = match mine.or_else(|| self.owners.iter().position(|c| c.free_at(now))) {
            Some(slot) => slot,
            None if self.owners.len() < MAX_SLOTS => {
                self.owners.push(Claim::default());
                self.owners.len() - 1
            }
            None => return None,
        };
        *self.owners.get_mut(slot)? = Claim { owner, until };
        Some(slot)
    }

    /// Slots whose VM has died without anybody taking over.
    pub fn orphans(&self, now: Duration) -> Vec<usize> {
        self.owners.iter().enumerate().filter(|(_, c)| c.owner != 0 && c.free_at(now)).map(|(slot, _)| slot).collect()
    }

    /// Marks an orphan as free.
    pub fn release(&mut self, slot: usize) {
        if let Some(claim) = self.owners.get_mut(slot) {
            claim.owner = 0;
        }
    }

    /// Renews or takes the leader's lease; whether the VM holds it now.
    pub fn scrape(&mut self, owner: u64, now: Duration, lease: Duration) -> bool {
        if self.scraper.owner != owner && !self.scraper.free_at(now) {
            return false;
        }
        self.scraper = Claim { owner, until: now.saturating_add(lease) };
        true
    }
}

// === responses ===

/// Which instance holds which stored response: a bounded ring, newest last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Responses(Vec<(u64, u64)>);

/// Responses that one worker remembers. At 16 bytes each, a write of the record stays below 5 us.
pub const RESPONSES_KEPT: usize = 1_024;

impl Responses {
    /// Remembers which instance holds a response.
    pub fn insert(&mut self, id: &str, instance: usize) {
        if self.0.len() >= RESPONSES_KEPT {
            self.0.remove(0);
        }
        self.0.push((fnv1a(id.as_bytes()), instance as u64));
    }

    /// The instance that holds a response.
    pub fn instance(&self, id: &str) -> Option<usize> {
        let hash = fnv1a(id.as_bytes());
        let (_, instance) = self.0.iter().rev().find(|(h, _)| *h == hash)?;
        usize::try_from(*instance).ok()
    }

    /// The ring as bytes.
    pub fn encode(&self, fingerprint: u64) -> Vec<u8> {
        let mut writer = Writer::new(fingerprint);
        for (hash, instance) in &self.0 {
            writer.u64(*hash);
            writer.u64(*instance);
        }
        writer.0
    }

    /// The ring from bytes; a broken one is empty.
    pub fn decode(bytes: &[u8], fingerprint: u64) -> Responses {
        let rows = Reader::open(bytes, fingerprint).and_then(|mut reader| reader.rows(|r| Some((r.u64()?, r.u64()?))));
        Responses(rows.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn records_come_back_as_they_were() {
        let mut counters = Counters::new(2);
        counters.0[1] = InstanceCounters {
            dispatched_requests: 1,
            finished_requests: 2,
            dispatched_prompt_tokens: 3,
            finished_prompt_tokens: 4,
            dispatched_output_tokens: 5,
            finished_output_tokens: 6,
            last_dispatch: Duration::from_nanos(7),
        };
        assert_eq!(decode_counters(&encode_counters(&counters, 9), 9), Some(counters));
        let load = Load { running: Some(3.0), waiting: Some(0.0), kv_use: None };
        let known = InstanceReport { at: Some(SECOND), load, outstanding_requests: 4, unreachable: 1 };
        let reports = Reports(vec![InstanceReport::default(), known]);
        assert_eq!(decode_reports(&encode_reports(&reports, 9), 9), Some(reports));
        let mut responses = Responses::default();
        responses.insert("resp_1", 3);
        responses.insert("resp_2", 4);
        responses.insert("resp_1", 5);
        let back = Responses::decode(&responses.encode(9), 9);
        assert_eq!((back.instance("resp_1"), back.instance("resp_2"), back.instance("x")), (Some(5), Some(4), None));
    }

    #[test]
    fn records_of_another_fleet_or_broken_ones_are_absent() {
        let bytes = encode_counters(&Counters::new(2), 9);
        assert_eq!(decode_counters(&bytes, 8), None, "another fleet");
        assert_eq!(decode_counters(&[], 9), None, "empty");
        for cut in 1..bytes.len() {
            let decoded = decode_counters(&bytes[..cut], 9);
            assert!(decoded.is_none_or(|c| c.0.len() < 2), "cut at {cut}");
        }
        assert_eq!(Slots::decode(b"garbage"), Slots::default());
        assert_eq!(Responses::decode(b"garbage", 9), Responses::default());
    }

    #[test]
    fn every_vm_gets_a_slot_of_its_own_and_a_dead_ones_is_taken_over() {
        let mut slots = Slots::default();
        let at = |s: u32| SECOND * s;
        assert_eq!(slots.keep(11, at(1)), Some(0));
        assert_eq!(slots.keep(12, at(1)), Some(1));
        assert_eq!(slots.keep(11, at(4)), Some(0), "a heartbeat keeps the slot");
        assert_eq!(Slots::decode(&slots.encode()), slots);
        assert_eq!(slots.orphans(at(8)), [1]);
        assert_eq!(slots.keep(13, at(8)), Some(1), "the dead one's slot");
        assert_eq!(slots.keep(12, at(8)), Some(2), "it was only slow: a new slot");
        assert_eq!(slots.in_use(), 3);
        let mut full = Slots::default();
        for owner in 1..=MAX_SLOTS as u64 {
            assert!(full.keep(owner, at(1)).is_some());
        }
        assert_eq!(full.keep(9_999, at(1)), None);
    }

    #[test]
    fn one_vm_scrapes_and_another_takes_over_when_it_falls_silent() {
        let mut slots = Slots::default();
        assert!(slots.scrape(11, SECOND, SECOND));
        assert!(!slots.scrape(12, SECOND, SECOND));
        assert!(slots.scrape(11, 2 * SECOND, SECOND), "renewed");
        assert!(!slots.scrape(12, 3 * SECOND, SECOND));
        assert!(slots.scrape(12, 4 * SECOND, SECOND), "silent for longer than the lease");
        assert!(!slots.scrape(11, 4 * SECOND, SECOND));
    }

    #[test]
    fn the_ring_of_responses_is_bounded() {
        let mut responses = Responses::default();
        for i in 0..RESPONSES_KEPT + 10 {
            responses.insert(&format!("resp_{i}"), i % 7);
        }
        assert_eq!(responses.0.len(), RESPONSES_KEPT);
        assert_eq!(responses.instance("resp_0"), None);
        assert!(responses.instance(&format!("resp_{}", RESPONSES_KEPT + 9)).is_some());
    }
}
