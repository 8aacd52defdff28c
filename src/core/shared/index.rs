//! Where a fleet has the instances that rows of records are about.

use std::collections::BTreeMap;

use crate::fleet::{Fleet, Instance, InstanceId, PoolKind, Presence};

/// The instances of a fleet by the keys of their addresses. Rows of records are found by them, whatever fleet their writer has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// In the fleet's order.
    keys: Vec<u32>,
    /// The place of each key's instance, by key: of two with one address, the one that is there.
    by_key: Vec<(u32, u32)>,
    /// Instances that are one server, as there are any.
    shared: Vec<Vec<InstanceId>>,
}

impl Index {
    /// The index of a fleet.
    pub fn from_fleet(fleet: &Fleet) -> Index {
        let keys = fleet.instances.iter().map(|instance| instance.key).collect();
        let mut by_key = BTreeMap::new();
        // The first of those that are there has the last word.
        for gone in [true, false] {
            let rows = fleet.instances_by_id().rev();
            for (i, instance) in rows.filter(|(_, instance)| (instance.presence == Presence::Gone) == gone) {
                by_key.insert(instance.key, u32::try_from(i.index()).unwrap_or(u32::MAX));
            }
        }
        Index { keys, by_key: by_key.into_iter().collect(), shared: shared(fleet) }
    }

    /// Instances that are one server, each with a model of its own: what one of them has been sent is load of all.
    pub fn shared(&self) -> &[Vec<InstanceId>] {
        &self.shared
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
    pub fn key(&self, instance: InstanceId) -> Option<u32> {
        self.keys.get(instance.index()).copied()
    }

    /// The instance with this key. `row` is where a writer with the same fleet has it.
    #[inline]
    pub fn find(&self, key: u32, row: usize) -> Option<InstanceId> {
        if self.keys.get(row) == Some(&key) {
            return Some(InstanceId::new(row));
        }
        let at = self.by_key.binary_search_by_key(&key, |(key, _)| *key).ok()?;
        usize::try_from(self.by_key.get(at)?.1).ok().map(InstanceId::new)
    }
}

fn shared(fleet: &Fleet) -> Vec<Vec<InstanceId>> {
    let mut servers: BTreeMap<&str, Vec<InstanceId>> = BTreeMap::new();
    let own = |instance: &Instance| fleet.pool(instance.pool).is_some_and(|pool| pool.kind == PoolKind::Own);
    for (i, instance) in fleet.instances_by_id().filter(|(_, i)| i.presence != Presence::Gone && own(i)) {
        servers.entry(&instance.address).or_default().push(i);
    }
    servers.into_values().filter(|instances| instances.len() > 1).collect()
}
