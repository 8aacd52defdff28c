//! Which instances a request goes to where traffic is shared by rule and not by load: pools of one model with shares (a new version that
//! gets a tenth), and hosts of one cluster to which Envoy gives priorities and weights.
//!
//! A request draws one lot, or its session has one, and every rule cuts the same lot in its own way. Whoever the rules set aside serves only
//! where nobody else of the model can.
//!
//! - Pools of a model: each with a `share` gets that part of the model's requests, the others the rest.
//! - Priorities: a level takes `min(1, 1.4 available / all)` of what the levels before it have left, and degraded hosts come after all
//!   others, as in Envoy ("Priority levels" and "Degraded endpoints" of its load balancing). An instance that this gateway has ejected, or
//!   that nobody answers at, is not available.
//! - Weights: hosts of equal weight are a group; a group gets the part of the requests that its weights are of all. Within it, load decides.

use std::collections::{BTreeMap, BTreeSet};

use crate::fleet::{Fleet, Instance, InstanceId, ModelId, PoolId, PoolKind, Presence};
use crate::hash::{fnv1a, mixed};
use crate::reckoning::{LoadNow, Standing};

/// Part of a level that may be missing before the next one gets requests: Envoy's default overprovisioning factor.
const OVERPROVISIONING: f64 = 1.4;

/// The rules of a fleet; usually there are none.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sharing {
    /// Models whose pools have shares.
    models: Vec<ModelShares>,
    /// Pools whose hosts differ in priority, weight or degradation.
    pools: Vec<PoolId>,
    /// Instances whose address another one has, too.
    servers: BTreeSet<InstanceId>,
}

/// How a model's requests are shared by its pools.
#[derive(Clone, Debug, PartialEq)]
struct ModelShares {
    model: ModelId,
    /// The pools that have a share, with it.
    shares: Vec<(PoolId, f64)>,
    /// Those that take the rest.
    rest: Vec<PoolId>,
}

impl Sharing {
    /// The rules of a fleet as it is now.
    pub(super) fn from_fleet(fleet: &Fleet) -> Sharing {
        let mut sharing = Sharing::default();
        for (model, _) in fleet.models_by_id() {
            let pools = || fleet.pools_by_id().filter(|(_, pool)| pool.model == model);
            let shares: Vec<(PoolId, f64)> = pools().filter_map(|(id, pool)| Some((id, pool.share?))).collect();
            if !shares.is_empty() {
                let rest = pools().filter(|(_, pool)| pool.share.is_none()).map(|(id, _)| id).collect();
                sharing.models.push(ModelShares { model, shares, rest });
            }
        }
        let mut firsts: BTreeMap<&str, InstanceId> = BTreeMap::new();
        for (i, instance) in fleet.instances_by_id().filter(|(_, i)| i.presence != Presence::Gone) {
            if let Some(first) = firsts.insert(&instance.address, i) {
                sharing.servers.extend([first, i]);
            }
        }
        for (id, pool) in fleet.pools_by_id().filter(|(_, pool)| pool.kind == PoolKind::Own) {
            let hosts = pool.instances.iter().filter_map(|i| fleet.instance(*i));
            let mut hosts = hosts.filter(|host| host.presence != Presence::Gone);
            let Some(first) = hosts.next() else { continue };
            let differs = |host: &Instance| host.presence == Presence::Degraded || host.placing != first.placing;
            if differs(first) || hosts.any(differs) {
                sharing.pools.push(id);
            }
        }
        sharing
    }

    /// Whether there are no rules.
    pub(super) fn is_empty(&self) -> bool {
        self.models.is_empty() && self.pools.is_empty()
    }

    /// Whether an instance's address tells its model.
    pub(super) fn is_alone(&self, instance: InstanceId) -> bool {
        !self.servers.contains(&instance)
    }

    /// Which instances the rules set aside for a request with this lot.
    pub(super) fn set_aside(&self, fleet: &Fleet, loads: Option<&[LoadNow]>, lot: u64) -> Vec<bool> {
        let mut aside = vec![false; fleet.instances.len()];
        let mut leave = |pool: PoolId, stays: &dyn Fn(&Instance) -> bool| {
            for i in fleet.pool(pool).map(|pool| pool.instances.as_slice()).unwrap_or_default() {
                if let (Some(instance), Some(aside)) = (fleet.instance(*i), aside.get_mut(i.index()))
                    && !stays(instance)
                {
                    *aside = true;
                }
            }
        };
        for ModelShares { model, shares, rest } in &self.models {
            let part = part_of(lot, fleet.model(*model).map_or("", |model| model.name.as_str()));
            let chosen = slice(shares.iter().map(|(_, share)| *share), part);
            let stays =
                |pool: &PoolId| chosen.map_or(rest.contains(pool), |i| shares.get(i).is_some_and(|(p, _)| p == pool));
            let all = shares.iter().map(|(pool, _)| pool).chain(rest);
            all.filter(|pool| !stays(pool)).for_each(|pool| leave(*pool, &|_| false));
        }
        for id in &self.pools {
            let Some(pool) = fleet.pool(*id) else { continue };
            let Some(group) = self.group(fleet, *id, loads, part_of(lot, &pool.cluster)) else { continue };
            leave(*id, &|host| Group::containing(host) == group);
        }
        aside
    }

    /// The hosts of a pool that a part of its requests goes to; `None` where nobody is available.
    fn group(&self, fleet: &Fleet, pool: PoolId, loads: Option<&[LoadNow]>, part: f64) -> Option<Group> {
        // Of each level: hosts that are available, by weight, and hosts in all.
        let mut levels: BTreeMap<(bool, u32), (BTreeMap<u32, f64>, f64)> = BTreeMap::new();
        let mut all_of_priority: BTreeMap<u32, f64> = BTreeMap::new();
        for i in &fleet.pool(pool)?.instances {
            let Some(host) = fleet.instance(*i).filter(|host| host.presence != Presence::Gone) else { continue };
            *all_of_priority.entry(host.placing.priority).or_default() += 1.0;
            if !is_available(host, *i, loads) {
                continue;
            }
            let Group { degraded, priority, weight } = Group::containing(host);
            let (weights, count) = levels.entry((degraded, priority)).or_default();
            *weights.entry(weight).or_default() += f64::from(weight);
            *count += 1.0;
        }
        let mut left = 1.0;
        let mut parts = Vec::with_capacity(levels.len());
        for ((_, priority), (_, available)) in &levels {
            let all = all_of_priority.get(priority).copied().unwrap_or(1.0);
            let takes = (OVERPROVISIONING * available / all).min(left);
            parts.push(takes);
            left -= takes;
        }
        let taken = 1.0 - left;
        let mut part = part * taken;
        for (((degraded, priority), (weights, _)), takes) in levels.iter().zip(parts) {
            if part >= takes {
                part -= takes;
                continue;
            }
            let within = part / takes;
            let sum: f64 = weights.values().sum();
            let chosen = slice(weights.values().map(|weight| weight / sum), within);
            let weight = chosen.and_then(|i| weights.keys().nth(i)).or_else(|| weights.keys().last())?;
            return Some(Group { degraded: *degraded, priority: *priority, weight: *weight });
        }
        let ((degraded, priority), (weights, _)) = levels.iter().next()?;
        Some(Group { degraded: *degraded, priority: *priority, weight: *weights.keys().last()? })
    }
}

/// Hosts that get one part of their cluster's requests.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Group {
    degraded: bool,
    priority: u32,
    weight: u32,
}

impl Group {
    fn containing(host: &Instance) -> Group {
        let degraded = host.presence == Presence::Degraded;
        Group { degraded, priority: host.placing.priority, weight: host.placing.weight }
    }
}

fn is_available(host: &Instance, id: InstanceId, loads: Option<&[LoadNow]>) -> bool {
    let load = loads.and_then(|loads| loads.get(id.index()));
    host.presence != Presence::Unhealthy
        && load.is_none_or(|load| !load.unreachable && load.standing != Standing::Ejected)
}

/// The first of the parts, laid side by side from 0 on, that holds this point; `None` beyond them.
fn slice(parts: impl Iterator<Item = f64>, point: f64) -> Option<usize> {
    let mut end = 0.0;
    for (i, part) in parts.enumerate() {
        end += part;
        if point < end {
            return Some(i);
        }
    }
    None
}

/// Where a lot falls between 0 and 1 for one rule: rules of different names cut it independently.
fn part_of(lot: u64, rule: &str) -> f64 {
    let mixed = mixed(lot, fnv1a(rule.as_bytes()));
    (mixed >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests;
