//! The roster of instances.

use super::{Reader, Writer};
use crate::discovery::{INSTANCES_MAX, Member, Roster};
use crate::fleet::Presence;

/// The roster as bytes.
pub fn encode_roster(roster: &Roster, fingerprint: u64) -> Vec<u8> {
    let mut writer = Writer::new(fingerprint);
    for Member { address, pool, presence, since } in &roster.0 {
        writer.u32(u32::try_from(*pool).unwrap_or(u32::MAX));
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

/// The roster from bytes; `None` if it is of another configuration, another version, or broken.
pub fn decode_roster(bytes: &[u8], fingerprint: u64) -> Option<Roster> {
    let members = Reader::open(bytes, fingerprint)?.rows(|r| {
        Some(Member {
            pool: usize::try_from(r.u32()?).ok()?,
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
    (members.len() <= INSTANCES_MAX).then_some(Roster(members))
}
