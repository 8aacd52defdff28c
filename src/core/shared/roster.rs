//! The roster of instances.

use super::{Reader, Writer};
use crate::discovery::{ClusterHost, ClusterHosts, INSTANCES_MAX, Member, Roster};
use crate::fleet::{Pool, PoolId, Presence};

/// The roster as bytes, with the clusters of the pools that it names.
pub fn encode_roster(roster: &Roster, pools: &[Pool], identity: u64) -> Vec<u8> {
    let mut writer = Writer::new(identity);
    writer.u32(u32::try_from(pools.len()).unwrap_or(u32::MAX));
    pools.iter().for_each(|pool| writer.text(&pool.cluster));
    for Member { address, pool, presence, since } in &roster.0 {
        writer.u32(u32::try_from(pool.index()).unwrap_or(u32::MAX));
        writer.u32(match presence {
            Presence::Present => 0,
            Presence::Unhealthy => 1,
            Presence::Gone => 2,
        });
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
    let (Roster(members), clusters) = decode(bytes, identity)?;
    let hosts_of = |(pool, cluster): (usize, String)| {
        let of_pool = members.iter().filter(|m| m.pool.index() == pool && m.presence != Presence::Gone);
        let hosts = of_pool.map(|m| ClusterHost { address: m.address.clone(), presence: m.presence }).collect();
        ClusterHosts { cluster, hosts }
    };
    Some(clusters.into_iter().enumerate().map(hosts_of).collect())
}

fn decode(bytes: &[u8], identity: u64) -> Option<(Roster, Vec<String>)> {
    let mut reader = Reader::open(bytes, identity)?;
    let clusters = (0..reader.u32()?).map(|_| reader.text()).collect::<Option<Vec<String>>>()?;
    let members = reader.rows(|r| {
        Some(Member {
            pool: PoolId::new(usize::try_from(r.u32()?).ok()?),
            presence: match r.u32()? {
                0 => Presence::Present,
                1 => Presence::Unhealthy,
                2 => Presence::Gone,
                _ => return None,
            },
            since: r.time()?,
            address: r.text()?,
        })
    })?;
    (members.len() <= INSTANCES_MAX).then_some((Roster(members), clusters))
}
