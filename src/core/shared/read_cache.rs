//! What was read of the board since the last tick in which something was announced: decisions and ticks ask for the same records again and
//! again, and others' news may be one tick old.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Index, Key, Sources, Version};
use crate::health::Records;
use crate::reckoning::Reports;

/// Records as they were when they were read last.
#[derive(Clone, Debug, Default)]
pub struct ReadCache {
    bytes: BTreeMap<Key, Read>,
    /// What was made of the bytes, for whom.
    reports: BTreeMap<(usize, u64), (Index, Decoded)>,
    records: Option<(Arc<Records>, Option<Version>)>,
    /// Versions of announced records.
    versions: BTreeMap<Key, Option<Version>>,
    /// That of the pulse, at the last tick.
    pulse: Option<Version>,
}

/// Reports, if there are any of this configuration.
pub(super) type Decoded = Option<(Arc<Reports>, Sources)>;

/// A record's bytes and version.
type Read = (Option<Vec<u8>>, Option<Version>);

impl ReadCache {
    /// Whether a record may be a tick old: reports, which come at ticks, and what speaks against instances. Whoever changes that one
    /// says which version was read, and reads again if it is another by now. Others' counters may not: whoever asks two workers in
    /// turn would meet the load of the own request before.
    fn may_be_kept(key: Key) -> bool {
        matches!(key, Key::Reports(_) | Key::Health)
    }

    /// A record: as it was read since the last tick, or as `read` finds it now.
    pub fn read(&mut self, key: Key, read: impl FnOnce() -> Read) -> Read {
        if ReadCache::may_be_kept(key) { self.bytes.entry(key).or_insert_with(read).clone() } else { read() }
    }

    /// Whether an announced record still has the version which was seen last.
    pub fn is_same(&self, key: Key, seen: Option<Version>) -> bool {
        key.is_announced() && self.versions.get(&key) == Some(&seen)
    }

    /// An announced record has this version.
    pub fn note(&mut self, key: Key, version: Option<Version>) {
        if key.is_announced() {
            self.versions.insert(key, version);
        }
    }

    /// What was made of the reports of a place since the last tick, for a fleet.
    pub fn reports(&self, place: usize, identity: u64, index: &Index) -> Option<Decoded> {
        let (of, known) = self.reports.get(&(place, identity))?;
        (of == index).then(|| known.clone())
    }

    /// Keeps what was made of them.
    pub fn keep_reports(&mut self, place: usize, identity: u64, index: &Index, decoded: Decoded) {
        self.reports.insert((place, identity), (index.clone(), decoded));
    }

    /// What was made of the record of what speaks against instances.
    pub fn records(&self) -> Option<(Arc<Records>, Option<Version>)> {
        self.records.clone()
    }

    /// Keeps what was made of it.
    pub fn keep_records(&mut self, decoded: (Arc<Records>, Option<Version>)) {
        self.records = Some(decoded);
    }

    /// A record was written, or somebody else has written it: it is read anew.
    pub fn forget(&mut self, key: Key) {
        self.bytes.remove(&key);
        self.versions.remove(&key);
        match key {
            Key::Reports(_) => self.reports.clear(),
            Key::Health => self.records = None,
            _ => {}
        }
    }

    /// A tick begins, and the pulse has this version: where it has changed, or there is none yet, everything is read anew; what is not
    /// announced is in any case.
    pub fn tick(&mut self, pulse: Option<Version>) {
        self.bytes.retain(|key, _| key.is_announced());
        self.reports.clear();
        if pulse.is_none() || pulse != self.pulse {
            *self = ReadCache { pulse, ..ReadCache::default() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn a_record_is_read_once_until_it_is_written_or_something_is_announced() {
        let rows = [(Key::Health, true), (Key::Reports(0), true), (Key::Counters(1), false), (Key::Slots, false)];
        for (key, is_kept) in rows {
            let mut kept = ReadCache::default();
            let mut read = |version: Version| kept.read(key, || (Some(vec![1]), Some(version))).1;
            assert_eq!((read(1), read(2)), (Some(1), Some(if is_kept { 1 } else { 2 })), "{key}");
            kept.forget(key);
            assert_eq!(kept.read(key, || (None, Some(3))), (None, Some(3)), "{key}");
            kept.tick(None);
            assert_eq!(kept.read(key, || (None, None)), (None, None), "{key}");
        }
    }

    #[test]
    fn what_nobody_has_announced_is_not_read_again() {
        let (announced, other) = (Key::Speeds(1), Key::Slots);
        let mut kept = ReadCache::default();
        kept.tick(Some(1));
        kept.note(announced, Some(5));
        kept.note(other, Some(5));
        assert!(kept.is_same(announced, Some(5)) && !kept.is_same(announced, Some(4)) && !kept.is_same(other, Some(5)));
        kept.tick(Some(1));
        assert!(kept.is_same(announced, Some(5)), "the pulse is the same");
        kept.forget(announced);
        assert!(!kept.is_same(announced, Some(5)), "it was written here");
        kept.note(announced, Some(6));
        kept.tick(Some(2));
        assert!(!kept.is_same(announced, Some(6)), "something was announced");
    }
}
