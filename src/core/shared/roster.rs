//! The roster of instances.

use std::collections::BTreeSet;

use super::{Reader, Writer};
use crate::discovery::{ClusterHost, ClusterHosts, INSTANCES_MAX, Member, Roster};
use crate::fleet::{Placing, Pool, PoolId, Presence};

/// The roster as bytes, with the clusters of the pools that it names.
pub fn encode_roster(roster: &Roster, pools: &[Pool], identity: u64) -> Vec<u8> {
    let mut writer = Writer::new(identity);
    writer.u32(u32::try_from(pools.len()).unwrap_or(u32::MAX));
    for (i, pool) in pools.iter().enumerate() {
        writer.u32(u32::from(roster.known.contains(&PoolId::new(i))));
        writer.text(&pool.cluster);
    }
    for Member { address, pool, presence, placing, since } in &roster.members {
        writer.u32(u32::try_from(pool.index()).unwrap_or(u32::MAX));
        writer.u32(match presence {
            Presence::Present => 0,
            Presence::Unhealthy => 1,
            Presence::Gone => 2,
            Presence::Degraded => 3,
        });
        writer.u32(placing.priority);
        writer.u32(placing.weight);
        writer.time(*since);
        writer.text(address);
    }
    writer.0
}

/// The roster of this configuration from bytes; `None` if it is of another one, another version, or broken.
pub fn decode_roster(bytes: &[u8], identity: u64) -> Option<Roster> {
    Some(decode(bytes, identity)?.0)
}

/// The hosts of the clusters of another configuration's roster.
pub fn decode_hosts(bytes: &[u8], identity: u64) -> Option<Vec<ClusterHosts>> {
    let (Roster { members, known }, clusters) = decode(bytes, identity)?;
    let hosts_of = |(pool, cluster): (usize, String)| {
        let of_pool = members.iter().filter(|m| m.pool.index() == pool && m.presence != Presence::Gone);
        let host = |m: &Member| ClusterHost { address: m.address.clone(), presence: m.presence, placing: m.placing };
        ClusterHosts { cluster, hosts: of_pool.map(host).collect() }
    };
    let told = clusters.into_iter().enumerate().filter(|(pool, _)| known.contains(&PoolId::new(*pool)));
    Some(told.map(hosts_of).collect())
}

fn decode(bytes: &[u8], identity: u64) -> Option<(Roster, Vec<String>)> {
    let mut reader = Reader::open(bytes, identity)?;
    let mut known = BTreeSet::new();
    let mut clusters = Vec::new();
    for pool in 0..reader.u32()? {
        if reader.u32()? != 0 {
            known.insert(PoolId::new(usize::try_from(pool).ok()?));
        }
        clusters.push(reader.text()?);
    }
    let members = reader.rows(|r| {
        Some(Member {
            pool: PoolId::new(usize::try_from(r.u32()?).ok()?),
            presence: match r.u32()? {
                0 => Presence::Present,
                1 => Presence::Unhealthy,
                2 => Presence::Gone,
                3 => Presence::Degraded,
                _ => return None,
            },
            placing: Placing { priority: r.u32()?, weight: r.u32()? },
            since: r.time()?,
            address: r.text()?,
        })
    })?;
    (members.len() <= INSTANCES_MAX).then_some((Roster { members, known }, clusters))
}
