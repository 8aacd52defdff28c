//! What was made of records that every decision asks for, and which versions of others were seen. Reports are kept for a tick, what speaks
//! against instances until something is announced: whoever changes that says which version was read, and reads again if it is another by
//! now. Others' counters are not kept: whoever asks two workers in turn would meet the load of the own request before.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Index, Key, Sources, Version};
use crate::health::Records;
use crate::reckoning::Reports;

/// Records as they were when they were read last.
#[derive(Clone, Debug, Default)]
pub struct ReadCache {
    /// By place and configuration, for a fleet.
    reports: BTreeMap<(usize, u64), (Index, Decoded)>,
    records: Option<(Arc<Records>, Option<Version>)>,
    /// Versions of announced records.
    versions: BTreeMap<Key, Option<Version>>,
    /// That of the pulse, at the last tick.
    pulse: Option<Version>,
}

/// Reports, if there are any of this configuration.
pub(super) type Decoded = Option<(Arc<Reports>, Sources)>;

impl ReadCache {
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

    /// A record was written: it is read anew.
    pub fn forget(&mut self, key: Key) {
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
    fn reports_are_kept_for_a_tick_and_what_speaks_against_instances_until_it_is_announced() {
        let (mut kept, index) = (ReadCache::default(), Index::default());
        let fill = |kept: &mut ReadCache| {
            kept.keep_reports(1, 2, &index, None);
            kept.keep_records((Arc::default(), Some(3)));
        };
        let has = |kept: &ReadCache| (kept.reports(1, 2, &index).is_some(), kept.records().is_some());
        kept.tick(Some(1));
        fill(&mut kept);
        assert_eq!((has(&kept), kept.reports(1, 3, &index)), ((true, true), None), "another configuration's");
        kept.tick(Some(1));
        assert_eq!(has(&kept), (false, true));
        fill(&mut kept);
        kept.tick(Some(2));
        assert_eq!(has(&kept), (false, false));
        fill(&mut kept);
        kept.forget(Key::Health);
        assert_eq!(has(&kept), (true, false));
        kept.forget(Key::Reports(1));
        assert_eq!(has(&kept), (false, false));
        fill(&mut kept);
        kept.tick(None);
        assert_eq!(has(&kept), (false, false), "nothing has been announced yet");
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
