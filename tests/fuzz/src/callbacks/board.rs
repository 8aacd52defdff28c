//! The board that gateways share, which fails as Envoy's may, and where nobody writes what is another's.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use routebalance_core::shared::{Board, Bytes, Key, Slots, Version};

/// No record of these small fleets is larger.
const RECORD_BYTES_MAX: usize = 32 << 10;
/// Compare-and-swaps that fail one after the other, at most: a worker tries eight times.
const FAILURES_MAX: u8 = 7;

/// What all boards of a process share.
#[derive(Debug, Default)]
pub(super) struct Process {
    bytes: Bytes,
    /// Writes that fail before one succeeds.
    pub(super) failures: u8,
    /// Whether somebody from outside has written. From then on nobody can know whose a record is.
    pub(super) tampered: bool,
    /// Records that were written, and how large they have been.
    written: BTreeMap<Key, usize>,
    /// Calls of this callback.
    pub(super) calls: u64,
    pub(super) now: Duration,
}

/// A VM's view of the board.
#[derive(Clone, Debug)]
pub(super) struct SharedBoard {
    pub(super) process: Rc<RefCell<Process>>,
    pub(super) owner: u64,
    pub(super) identity: u64,
}

impl Process {
    /// Lets so many of the next compare-and-swaps fail.
    pub(super) fn fail(&mut self, count: u8) {
        self.failures = count % (FAILURES_MAX + 1);
    }

    /// Writes from outside.
    pub(super) fn tamper(&mut self, key: Key, bytes: &[u8]) {
        self.tampered = true;
        self.bytes.write(key, bytes, None);
    }

    pub(super) fn record(&self, key: Key) -> Vec<u8> {
        self.bytes.read(key).0.unwrap_or_default()
    }

    pub(super) fn keys(&self) -> usize {
        self.written.len()
    }

    /// Whose slot or place a key belongs to: a VM or a configuration has written it that it is not of.
    fn check_writer(&self, key: Key, owner: u64, identity: u64) {
        let slots = Slots::decode(&self.record(Key::Slots));
        let owner_of = |slot: usize| slots.owners().find(|(at, _)| *at == slot).map_or(0, |(_, owner)| owner);
        match key {
            Key::Pulse | Key::Slots | Key::Health | Key::Recent(..) => {}
            // Whoever finds a VM dead retires its counters: then nobody owns the slot.
            Key::Counters(slot) => {
                assert!([0, owner].contains(&owner_of(slot)), "{key}: written by {owner}, slot of {}", owner_of(slot));
            }
            Key::CountersRow(slot, _)
            | Key::Glimpses(slot)
            | Key::Responses(slot)
            | Key::Placements(slot, _)
            | Key::Lengths(slot)
            | Key::Speeds(slot)
            | Key::Beliefs(slot) => {
                assert_eq!(owner_of(slot), owner, "{key}: the slot is another VM's");
            }
            Key::Reports(place)
            | Key::ReportRow(place, _)
            | Key::Roster(place)
            | Key::Shown(place)
            | Key::Prices(place) => {
                let of = slots.places().get(place).map_or(0, |place| place.identity);
                assert_eq!(of, identity, "{key}: the place is another configuration's");
            }
        }
    }
}

impl Board for SharedBoard {
    fn read(&self, key: Key) -> (Option<Vec<u8>>, Option<Version>) {
        let mut process = self.process.borrow_mut();
        process.calls += 1;
        process.bytes.read(key)
    }

    fn news(&self, key: Key, seen: Option<Version>) -> Option<(Option<Vec<u8>>, Option<Version>)> {
        let mut process = self.process.borrow_mut();
        process.calls += 1;
        process.bytes.news(key, seen)
    }

    fn write(&mut self, key: Key, bytes: &[u8], version: Option<Version>) -> bool {
        let mut process = self.process.borrow_mut();
        process.calls += 1;
        assert!(bytes.len() <= RECORD_BYTES_MAX, "{key}: {} bytes", bytes.len());
        crate::novelty::tell(|| format!("  VM {} writes {key}, {} bytes", self.owner, bytes.len()));
        if version.is_some() && process.failures > 0 {
            process.failures -= 1;
            return false;
        }
        if !process.tampered {
            process.check_writer(key, self.owner, self.identity);
        }
        let largest = process.written.entry(key).or_default();
        *largest = bytes.len().max(*largest);
        process.bytes.write(key, bytes, version)
    }
}
