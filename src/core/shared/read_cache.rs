//! What was read of the board since the last tick: decisions ask for the same records again and again, and others' news may be one tick
//! old.

use std::collections::BTreeMap;

use super::{Key, Version};

/// Records as they were when they were read last.
#[derive(Clone, Debug, Default)]
pub struct ReadCache(BTreeMap<Key, (Option<Vec<u8>>, Option<Version>)>);

impl ReadCache {
    /// Whether a record may be a tick old: reports, which come at ticks, and what speaks against instances. Whoever changes that one
    /// says which version was read, and reads again if it is another by now. Others' counters may not: whoever asks two workers in
    /// turn would meet the load of the own request before.
    fn may_be_kept(key: Key) -> bool {
        matches!(key, Key::Reports(_) | Key::Health)
    }

    /// A record: as it was read since the last tick, or as `read` finds it now.
    pub fn read(
        &mut self,
        key: Key,
        read: impl FnOnce() -> (Option<Vec<u8>>, Option<Version>),
    ) -> (Option<Vec<u8>>, Option<Version>) {
        if ReadCache::may_be_kept(key) { self.0.entry(key).or_insert_with(read).clone() } else { read() }
    }

    /// A record was written, or somebody else has written it: it is read anew.
    pub fn forget(&mut self, key: Key) {
        self.0.remove(&key);
    }

    /// A tick begins: everything is read anew.
    pub fn forget_all(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn a_record_is_read_once_until_it_is_written_or_a_tick_begins() {
        let rows = [(Key::Health, true), (Key::Reports(0), true), (Key::Counters(1), false), (Key::Slots, false)];
        for (key, is_kept) in rows {
            let mut kept = ReadCache::default();
            let mut read = |version: Version| kept.read(key, || (Some(vec![1]), Some(version))).1;
            assert_eq!((read(1), read(2)), (Some(1), Some(if is_kept { 1 } else { 2 })), "{key}");
            kept.forget(key);
            assert_eq!(kept.read(key, || (None, Some(3))), (None, Some(3)), "{key}");
            kept.forget_all();
            assert_eq!(kept.read(key, || (None, None)), (None, None), "{key}");
        }
    }
}
