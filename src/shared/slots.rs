//! Which VM is which worker.

use std::time::Duration;

use super::{GROUPS, Reader, Writer};

/// Most VMs that can own a slot: Envoy's workers, its main thread, and as many again during a reload.
pub const MAX_SLOTS: usize = 256;
/// A VM that has not renewed its slot for this long has died.
pub const SLOT_TTL: Duration = Duration::from_secs(5);
/// A VM's lease and its slot are renewed so many times before they would run out, and others look for those that have as often.
const HEARTBEATS_PER_LEASE: u32 = 3;

/// Time between two heartbeats of a VM with such a lease. A dead leader is replaced within a lease, a heartbeat and a tick of its
/// last sign.
pub fn heartbeat(lease: Duration) -> Duration {
    lease.min(SLOT_TTL) / HEARTBEATS_PER_LEASE
}

/// Which VM owns which slot, and which one of its group leads: it scrapes and writes the gauges. Nothing tells a VM which worker it is, so it
/// claims a slot and keeps it by heartbeat; an expired slot is taken over, so that keys stay bounded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slots {
    /// Who leads each group ([`super::group`]).
    leaders: [Claim; GROUPS],
    /// Owners by slot.
    owners: Vec<Claim>,
}

/// Something that a VM owns until it expires.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Claim {
    /// A random number per VM; 0 is nobody.
    owner: u64,
    until: Duration,
}

impl Claim {
    fn free_at(&self, now: Duration) -> bool {
        self.owner == 0 || self.until < now
    }
}

impl Slots {
    /// The record as bytes. It belongs to no fleet: VMs of an old and a new configuration share it.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new(0);
        for claim in self.leaders.iter().chain(&self.owners) {
            writer.u64(claim.owner);
            writer.time(claim.until);
        }
        writer.0
    }

    /// The record from bytes; a broken one is empty.
    pub fn decode(bytes: &[u8]) -> Slots {
        let claims = Reader::open(bytes, 0)
            .and_then(|mut reader| reader.rows(|r| Some(Claim { owner: r.u64()?, until: r.time()? })));
        match claims.as_deref().and_then(<[Claim]>::split_first_chunk) {
            Some((leaders, owners)) => {
                Slots { leaders: *leaders, owners: owners.iter().copied().take(MAX_SLOTS).collect() }
            }
            None => Slots::default(),
        }
    }

    /// How many slots were ever in use: their counters are the ones to read.
    pub fn in_use(&self) -> usize {
        self.owners.len()
    }

    /// Renews the VM's slot, or claims one: an expired one first. `None` if all are taken.
    pub fn keep(&mut self, owner: u64, now: Duration) -> Option<usize> {
        let until = now.saturating_add(SLOT_TTL);
        let mine = self.owners.iter().position(|c| c.owner == owner);
        let slot = match mine.or_else(|| self.owners.iter().position(|c| c.free_at(now))) {
            Some(slot) => slot,
            None if self.owners.len() < MAX_SLOTS => {
                self.owners.push(Claim::default());
                self.owners.len() - 1
            }
            None => return None,
        };
        *self.owners.get_mut(slot)? = Claim { owner, until };
        Some(slot)
    }

    /// Slots whose VM has died without anybody taking over.
    pub fn orphans(&self, now: Duration) -> Vec<usize> {
        self.owners.iter().enumerate().filter(|(_, c)| c.owner != 0 && c.free_at(now)).map(|(slot, _)| slot).collect()
    }

    /// Marks an orphan as free.
    pub fn release(&mut self, slot: usize) {
        if let Some(claim) = self.owners.get_mut(slot) {
            claim.owner = 0;
        }
    }

    /// Renews or takes the lease of a group's leader; whether the VM holds it now.
    pub fn lead(&mut self, owner: u64, group: usize, now: Duration, lease: Duration) -> bool {
        let Some(leader) = self.leaders.get_mut(group) else { return false };
        if leader.owner != owner && !leader.free_at(now) {
            return false;
        }
        *leader = Claim { owner, until: now.saturating_add(lease) };
        true
    }
}
