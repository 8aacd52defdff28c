//! What instances have been sent, and so hold.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Held, Keys};
use crate::fleet::{Fleet, InstanceId};

/// Keys of instances that one VM remembers, its own and those that the other workers tell it: about 60 bytes each.
pub const KEPT: usize = 32_768;

/// After this time nothing is taken to be there: instances restart, and nobody tells.
const LIFE: Duration = Duration::from_secs(600);

/// Keys of other instances that one look-up visits at most; what is longest is found first.
const VISITS_MAX: usize = 2_048;

/// What an instance was sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    /// When.
    pub at: Duration,
    /// The instance.
    pub instance: InstanceId,
    /// Tokens of prompt and answer.
    pub held_tokens: u32,
    /// Of those, the ones that were not there before.
    pub placed_tokens: u32,
    /// What it holds from now on, as [`Keys`] call it.
    pub keys: Vec<u64>,
}

/// What instances hold, as far as this gateway knows from what it has sent. Least recently used keys are forgotten first, half of
/// the memory at a time.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    instances: Vec<InstanceMemory>,
    /// By key and instance.
    young: BTreeMap<(u64, u32), HeldEntry>,
    /// What was remembered before the younger half.
    old: BTreeMap<(u64, u32), HeldEntry>,
}

#[derive(Clone, Copy, Debug)]
struct InstanceMemory {
    kv_tokens: u64,
    /// All tokens that were ever placed in its KV cache.
    placed_tokens: u64,
}

#[derive(Clone, Copy, Debug)]
struct HeldEntry {
    at: Duration,
    /// [`InstanceMemory::placed_tokens`] then.
    placed_tokens: u64,
    held_tokens: u32,
}

/// What a look-up has found, in the order of the fleet's instances; empty if nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recall {
    cached_tokens: Vec<f64>,
    adapter: Vec<bool>,
}

impl Recall {
    /// As the router takes it.
    pub fn held(&self) -> Held<'_> {
        Held { cached_tokens: &self.cached_tokens, adapter: &self.adapter }
    }
}

impl Memory {
    /// Remembers nothing of a fleet yet.
    pub fn new(fleet: &Fleet) -> Memory {
        let mut memory = Memory::default();
        memory.follow(fleet, &[]);
        memory
    }

    /// The fleet has other instances; these ids mean another instance than before, of which nothing is known.
    pub fn follow(&mut self, fleet: &Fleet, changed: &[InstanceId]) {
        let known = self.instances.len();
        let kv_tokens = |i| fleet.pool_of(i).map_or(0, |(_, pool)| pool.limits.kv_tokens);
        let new = (known..fleet.instances.len()).map(InstanceId::new);
        let new = new.map(|i| InstanceMemory { kv_tokens: kv_tokens(i), placed_tokens: 0 });
        self.instances.extend(new);
        for i in changed.iter().filter(|i| i.index() < known) {
            let Some(instance) = self.instances.get_mut(i.index()) else { continue };
            // As if all that it held had been dropped.
            let placed_tokens = instance.placed_tokens.saturating_add(instance.kv_tokens);
            *instance = InstanceMemory { kv_tokens: kv_tokens(*i), placed_tokens };
        }
    }

    /// Remembers what an instance was sent.
    pub fn place(&mut self, placement: &Placement) {
        let Placement { at, instance, held_tokens, placed_tokens, ref keys } = *placement;
        let index = instance.index();
        let (Some(target), Ok(index)) = (self.instances.get_mut(index), u32::try_from(index)) else { return };
        target.placed_tokens = target.placed_tokens.saturating_add(u64::from(placed_tokens));
        let entry = HeldEntry { at, placed_tokens: target.placed_tokens, held_tokens };
        self.young.extend(keys.iter().map(|key| ((*key, index), entry)));
        if self.young.len() >= KEPT / 2 {
            self.old = std::mem::take(&mut self.young);
        }
    }

    /// How many keys are remembered.
    pub fn len(&self) -> usize {
        self.young.len().saturating_add(self.old.len())
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.young.is_empty() && self.old.is_empty()
    }

    /// What instances hold of what a request needs.
    pub fn recall(&self, keys: &Keys, prompt_tokens: f64, now: Duration) -> Recall {
        let mut recall = Recall::default();
        let mut visits = 0;
        for (key, share) in keys.prefix.iter().rev() {
            for (instance, _) in self.holders(*key, now) {
                visits += 1;
                keep(&mut recall.cached_tokens, self.instances.len(), instance, share * prompt_tokens);
            }
            if visits >= VISITS_MAX {
                break;
            }
        }
        for (instance, entry) in keys.session.iter().flat_map(|key| self.holders(*key, now)).take(VISITS_MAX) {
            let tokens = f64::from(entry.held_tokens).min(prompt_tokens);
            keep(&mut recall.cached_tokens, self.instances.len(), instance, tokens);
        }
        for (instance, _) in keys.adapter.iter().flat_map(|key| self.holders(*key, now)).take(VISITS_MAX) {
            recall.adapter.resize(self.instances.len(), false);
            if let Some(adapter) = recall.adapter.get_mut(instance.index()) {
                *adapter = true;
            }
        }
        recall
    }

    /// Instances that hold something, each with what is known of it. One that is in both halves comes twice.
    fn holders(&self, key: u64, now: Duration) -> impl Iterator<Item = (InstanceId, HeldEntry)> {
        let range = (key, 0)..=(key, u32::MAX);
        let found = self.young.range(range.clone()).chain(self.old.range(range));
        found
            .map(|((_, instance), entry)| (InstanceId::new(*instance as usize), *entry))
            .filter(move |(i, e)| self.is_there(*i, e, now))
    }

    /// Whether the instance has had no reason yet to give it up: a least recently used cache drops it once as many tokens were
    /// placed after it as the cache can hold.
    fn is_there(&self, instance: InstanceId, entry: &HeldEntry, now: Duration) -> bool {
        let placed_since = |i: &InstanceMemory| i.placed_tokens.saturating_sub(entry.placed_tokens);
        now.saturating_sub(entry.at) < LIFE
            && self.instances.get(instance.index()).is_some_and(|i| placed_since(i) < i.kv_tokens)
    }
}

/// Keeps the greater number of tokens.
fn keep(cached_tokens: &mut Vec<f64>, instances: usize, instance: InstanceId, tokens: f64) {
    cached_tokens.resize(instances, 0.0);
    if let Some(kept) = cached_tokens.get_mut(instance.index()) {
        *kept = kept.max(tokens);
    }
}
