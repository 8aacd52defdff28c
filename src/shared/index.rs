//! Where a fleet has the instances that rows of records are about.

use crate::fleet::{Fleet, Presence};

/// The instances of a fleet by the keys of their addresses. Rows of records are found by them, whatever fleet their writer has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// In the fleet's order.
    keys: Vec<u32>,
    /// Keys, each once, with the index of its instance: of two with one address, the one that is there.
    sorted: Vec<(u32, usize)>,
}

impl Index {
    /// The index of a fleet.
    pub fn of(fleet: &Fleet) -> Index {
        let keys = fleet.instances.iter().map(|instance| instance.key).collect();
        let rows = fleet.instances.iter().enumerate();
        let mut rows: Vec<_> =
            rows.map(|(i, instance)| (instance.key, instance.presence == Presence::Gone, i)).collect();
        rows.sort_unstable();
        let mut sorted: Vec<(u32, usize)> = rows.into_iter().map(|(key, _, i)| (key, i)).collect();
        sorted.dedup_by_key(|(key, _)| *key);
        Index { keys, sorted }
    }

    /// Instances of the fleet, those that are gone included.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether the fleet has no instance.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The key of an instance.
    pub fn key(&self, instance: usize) -> Option<u32> {
        self.keys.get(instance).copied()
    }

    /// The instance with this key. `row` is where a writer with the same fleet has it.
    #[inline]
    pub fn find(&self, key: u32, row: usize) -> Option<usize> {
        if self.keys.get(row) == Some(&key) {
            return Some(row);
        }
        let at = self.sorted.binary_search_by_key(&key, |(key, _)| *key).ok()?;
        self.sorted.get(at).map(|(_, instance)| *instance)
    }
}
