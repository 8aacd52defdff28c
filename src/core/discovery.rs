//! The instances that Envoy's clusters have, and how the fleet follows them: hosts come and go, ids stay.
//!
//! # Rule
//!
//! The leading VM asks Envoy's admin listener for `/clusters?format=json` through a cluster that points there, keeps the roster of all
//! instances and shares it; every VM applies it to its own fleet. An id is given to one address and kept while that may come back, so
//! that counters, reports and stored responses go on meaning the same instance.
//!
//! - A pool with `"instances": "discover"` has the instances that its cluster has, wherever Envoy has them from (EDS, DNS, a file). A pool
//!   whose instances are listed is followed likewise if `discovery` is configured: the list says which hosts may serve, Envoy whether they
//!   are there.
//! - A new host gets traffic within a period; one that has gone gets no new request, while its streams end by themselves and go on being
//!   counted; one that comes back within ten minutes has its old counters.
//! - A host that Envoy holds for ill (health checks, outlier detection, EDS health) is a candidate only where there is no other.
//! - Where no instance is known yet, the request goes to the pool's cluster, and Envoy chooses.
//!
//! # Configuration
//!
//! `discovery`, `pools[].instances`, `envoy.endpoints_dir`. `render` writes a cluster for the admin listener, and for each discovered pool
//! one that reads its endpoints from the file `<envoy.endpoints_dir>/<cluster>.yaml`, replaced by a rename. On Istio the bootstrap has such
//! a cluster: `"discovery": {"cluster": "prometheus_stats"}`, and `pools[].cluster` is the name of the service's cluster, as
//! `outbound|8000||vllm.default.svc.cluster.local`.
//!
//! # Limits
//!
//! Envoy's admin listener, and hosts with an IP address: no pipes, no internal listeners. Long answers are asked for less often, so that a
//! worker parses at most 1 MB per second; `&filter=REGEX` in the path keeps them short.

mod clusters;
mod settings;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub use clusters::{ClusterHost, ClusterHosts, parse};
pub use settings::DiscoverySettings;

use crate::fleet::{Fleet, Instance, InstanceId, Placing, Pool, PoolId, PoolKind, Presence};

/// Most instances of a fleet: bounds every record that has a row per instance.
pub const INSTANCES_MAX: usize = 4_096;
/// After so long a host that has gone is not expected back, and its id may be given away.
pub const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);
/// Bytes of an answer that one worker parses in a second: each host takes about 900, and one megabyte some ten milliseconds.
const BYTES_PER_SECOND_MAX: u64 = 1_000_000;
/// An answer that is longer than this is not read: 16 times the largest fleet would not fill it.
pub const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Time until the next question, after an answer of this size: the configured one, or longer where answers are long.
pub fn period(configured: Duration, answer_bytes: usize) -> Duration {
    configured.max(Duration::from_micros((answer_bytes as u64).saturating_mul(1_000_000) / BYTES_PER_SECOND_MAX))
}

/// One row of the roster. Its position is the instance's place in the fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// `ip:port`, as Envoy writes it.
    pub address: String,
    /// Its pool.
    pub pool: PoolId,
    /// Whether Envoy would send requests there.
    pub presence: Presence,
    /// Where it stands among its peers.
    pub placing: Placing,
    /// Since when it is there, or gone; zero where it was there when its pool was heard of first.
    pub since: Duration,
}

/// All instances, those of the configuration first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roster {
    /// The instances.
    pub members: Vec<Member>,
    /// The pools whose hosts Envoy has told, be they none.
    pub known: BTreeSet<PoolId>,
}

impl Roster {
    /// The roster that a fleet has now.
    pub fn from_fleet(fleet: &Fleet) -> Roster {
        let member = |i: &Instance| Member {
            address: i.address.clone(),
            pool: i.pool,
            presence: i.presence,
            placing: i.placing,
            since: i.since,
        };
        Roster { members: fleet.instances.iter().map(member).collect(), known: BTreeSet::new() }
    }

    /// Takes over what Envoy said of its clusters, and says whether anything has changed. A cluster that it did not name is as
    /// it was. `outstanding` tells how many requests any worker has on an instance.
    pub fn update(
        &mut self,
        pools: &[Pool],
        clusters: &[ClusterHosts],
        outstanding: impl Fn(InstanceId) -> u64,
        now: Duration,
    ) -> bool {
        let mut changed = false;
        let mut newcomers = Vec::new();
        for (index, pool) in pools.iter().enumerate() {
            let id = PoolId::new(index);
            // A provider's addresses are Envoy's affair.
            let told = clusters.iter().find(|c| c.cluster == pool.cluster).filter(|_| pool.kind == PoolKind::Own);
            let Some(cluster) = told else { continue };
            let was_known = !self.known.insert(id);
            changed |= !was_known;
            let mut hosts: BTreeMap<&str, (Presence, Placing)> = BTreeMap::new();
            for host in &cluster.hosts {
                // Other models' endpoints stand behind those of a pool whose instances are listed, for attempts there.
                hosts.entry(&host.address).or_insert((host.presence, host.placing));
            }
            let since = if was_known { now } else { Duration::ZERO };
            for member in self.members.iter_mut().filter(|m| m.pool == id) {
                let told = hosts.remove(member.address.as_str());
                let (presence, placing) = told.unwrap_or((Presence::Gone, member.placing));
                if member.presence != presence {
                    let since = if presence == Presence::Gone { now } else { since };
                    (member.presence, member.since) = (presence, since);
                    changed = true;
                }
                changed |= std::mem::replace(&mut member.placing, placing) != placing;
            }
            if pool.discovered {
                let newcomer = |(address, (presence, placing)): (&str, (Presence, Placing))| Member {
                    address: address.to_owned(),
                    pool: id,
                    presence,
                    placing,
                    since,
                };
                newcomers.extend(hosts.into_iter().map(newcomer));
            }
        }
        self.admit(pools, newcomers, outstanding, now) || changed
    }

    /// Gives each newcomer a place; whether anyone has got one.
    fn admit(
        &mut self,
        pools: &[Pool],
        newcomers: Vec<Member>,
        outstanding: impl Fn(InstanceId) -> u64,
        now: Duration,
    ) -> bool {
        if newcomers.is_empty() {
            return false;
        }
        let served = |pool: PoolId| pools.get(pool.index()).map(|pool| pool.served_model.clone());
        // A server may be an instance of several pools, each with a model of its own.
        let there = self.members.iter().filter(|m| m.presence != Presence::Gone);
        let mut taken: BTreeSet<(String, Option<String>)> =
            there.map(|m| (m.address.clone(), served(m.pool))).collect();
        let (mut free, mut changed) = (0, false);
        for member in newcomers {
            if !taken.insert((member.address.clone(), served(member.pool))) {
                continue;
            }
            let forgotten = |(i, m): (usize, &Member)| {
                let may_go =
                    pools.get(m.pool.index()).is_some_and(|pool| pool.discovered) && m.presence == Presence::Gone;
                let long_ago = now.saturating_sub(m.since) >= FORGOTTEN_AFTER;
                (may_go && long_ago && outstanding(InstanceId::new(i)) == 0).then_some(i)
            };
            let reused = self.members.iter().enumerate().skip(free).find_map(forgotten);
            free = reused.map_or(self.members.len(), |i| i.saturating_add(1));
            if let Some(place) = reused.and_then(|i| self.members.get_mut(i)) {
                *place = member;
            } else if self.members.len() < INSTANCES_MAX {
                self.members.push(member);
            } else {
                continue;
            }
            changed = true;
        }
        changed
    }

    /// How many instances of a pool have this presence.
    pub fn count(&self, pool: PoolId, presence: Presence) -> usize {
        self.members.iter().filter(|m| m.pool == pool && m.presence == presence).count()
    }
}

/// Makes a fleet have the instances of a roster, and returns the ids that mean another instance than before.
pub fn apply(fleet: &mut Fleet, roster: &Roster) -> Vec<InstanceId> {
    let mut replaced = Vec::new();
    let mut addresses: BTreeSet<&str> = BTreeSet::new();
    for (i, member) in roster.members.iter().enumerate().take(INSTANCES_MAX) {
        let is_first = addresses.insert(&member.address);
        let model = fleet.pool(member.pool).map(|pool| pool.served_model.as_str());
        let Member { address, pool, presence, placing, since } = member.clone();
        let named = Instance::sharing(address, pool, model.filter(|_| !is_first));
        let member = Instance { presence, placing, since, ..named };
        match fleet.instances.get_mut(i) {
            Some(instance) => {
                if instance.key != member.key || instance.pool != member.pool {
                    replaced.push(InstanceId::new(i));
                }
                *instance = member;
            }
            None => fleet.instances.push(member),
        }
    }
    for (i, pool) in fleet.pools.iter_mut().enumerate() {
        pool.known |= roster.known.contains(&PoolId::new(i));
        pool.instances.clear();
    }
    for (i, instance) in fleet.instances.iter().enumerate() {
        if let Some(pool) = fleet.pools.get_mut(instance.pool.index()) {
            pool.instances.push(InstanceId::new(i));
        }
    }
    replaced
}

#[cfg(test)]
mod tests;
