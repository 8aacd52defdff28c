//! Which VM is which worker, and which configurations are there.

use std::time::Duration;

use super::{Reader, Writer};

/// Most VMs that can own a slot: Envoy's workers, its main thread, and as many again during a reload.
pub const MAX_SLOTS: usize = 256;
/// Most configurations that can have a place at the same time; of more, the oldest have none.
pub const MAX_PLACES: usize = 64;
/// A VM that has not renewed its claims for this long has died.
pub const SLOT_TTL: Duration = Duration::from_secs(5);
/// A VM's lease and its slot are renewed so many times before they would run out, and others look for those that have as often.
const HEARTBEATS_PER_LEASE: u32 = 3;

/// Time between two heartbeats of a VM with such a lease. A dead leader is replaced within a lease, a heartbeat and a tick of its
/// last sign.
pub fn heartbeat(lease: Duration) -> Duration {
    lease.min(SLOT_TTL) / HEARTBEATS_PER_LEASE
}

/// Which VM owns which slot, and which configuration which place. Nothing tells a VM which worker it is, so it claims a slot and keeps it
/// by heartbeat; what has expired is taken over, so that keys stay bounded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slots {
    /// Owners by slot.
    owners: Vec<Claim>,
    places: Vec<Place>,
}

/// Something that a VM owns until it expires.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Claim {
    /// A random number per VM; 0 is nobody.
    owner: u64,
    /// The configuration that the VM has.
    identity: u64,
    until: Duration,
}

impl Claim {
    fn free_at(&self, now: Duration) -> bool {
        self.owner == 0 || self.until < now
    }
}

/// A configuration that some VM has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The configuration's; 0 is none.
    pub identity: u64,
    /// When a VM last began with it.
    pub started: Duration,
    /// When a client last opened a connection that it serves, as far as it was looked at.
    pub served: Duration,
    until: Duration,
    /// Who scrapes and writes the gauges for it.
    leader: Claim,
}

impl Place {
    /// Whether any VM has the configuration.
    pub fn is_there(&self, now: Duration) -> bool {
        self.identity != 0 && self.until >= now
    }

    /// Whether this configuration came after another. Of two that came at the same time, one did.
    pub fn is_newer_than(&self, other: &Place) -> bool {
        (self.started, self.identity) > (other.started, other.identity)
    }

    /// Whether this configuration and not the other one speaks for the instances that they share: the one that came later. Envoy tells
    /// nobody that it has gone back to a configuration whose VMs are still there. Then only that one gets new connections.
    pub fn speaks_before(&self, other: &Place) -> bool {
        let (own, others) = (self.started.max(self.served), other.started.max(other.served));
        if own.abs_diff(others) > SLOT_TTL { own > others } else { self.is_newer_than(other) }
    }
}

impl Slots {
    /// The record as bytes. It belongs to no configuration.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new(0);
        writer.u32(u32::try_from(self.places.len()).unwrap_or(u32::MAX));
        for Place { identity, started, served, until, leader } in &self.places {
            writer.u64(*identity);
            [started, served, until].into_iter().for_each(|time| writer.time(*time));
            writer.claim(leader);
        }
        self.owners.iter().for_each(|claim| writer.claim(claim));
        writer.0
    }

    /// The record from bytes; a broken one is empty.
    pub fn decode(bytes: &[u8]) -> Slots {
        let read = || {
            let mut reader = Reader::open(bytes, 0)?;
            let places = reader.u32()?;
            let place = |r: &mut Reader<'_>| {
                let (identity, started, served) = (r.u64()?, r.time()?, r.time()?);
                Some(Place { identity, started, served, until: r.time()?, leader: r.claim()? })
            };
            let places = (0..places).map(|_| place(&mut reader)).collect::<Option<Vec<Place>>>()?;
            let owners = reader.rows(Reader::claim)?;
            (places.len() <= MAX_PLACES && owners.len() <= MAX_SLOTS).then_some(Slots { owners, places })
        };
        read().unwrap_or_default()
    }

    /// How many slots were ever in use: their counters are the ones to read.
    pub fn in_use(&self) -> usize {
        self.owners.len()
    }

    /// Every slot that was ever in use, and who owns it; 0 is nobody.
    pub fn owners(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        self.owners.iter().enumerate().map(|(slot, claim)| (slot, claim.owner))
    }

    /// The slot of a VM.
    pub fn slot_of(&self, owner: u64) -> Option<usize> {
        self.owners.iter().position(|claim| claim.owner == owner)
    }

    /// Claims that last longer than any were made before a clock was set back: from now on they last as long as others. Who lives renews
    /// its own.
    fn set_back(&mut self, now: Duration) {
        let until = now.saturating_add(SLOT_TTL);
        self.owners.iter_mut().for_each(|claim| claim.until = claim.until.min(until));
        for place in &mut self.places {
            place.until = place.until.min(until);
            (place.started, place.served) = (place.started.min(now), place.served.min(now));
        }
    }

    /// Renews the VM's slot, or claims one: an expired one first. `None` if all are taken.
    pub fn keep(&mut self, owner: u64, identity: u64, now: Duration) -> Option<usize> {
        self.set_back(now);
        let until = now.saturating_add(SLOT_TTL);
        let free = || self.owners.iter().position(|c| c.free_at(now));
        let slot = match self.slot_of(owner).or_else(free) {
            Some(slot) => slot,
            None if self.owners.len() < MAX_SLOTS => {
                self.owners.push(Claim::default());
                self.owners.len() - 1
            }
            None => return None,
        };
        *self.owners.get_mut(slot)? = Claim { owner, identity, until };
        Some(slot)
    }

    /// Slots whose VM has died without anybody taking over.
    pub fn orphans(&self, now: Duration) -> Vec<usize> {
        self.owners.iter().enumerate().filter(|(_, c)| c.owner != 0 && c.free_at(now)).map(|(slot, _)| slot).collect()
    }

    /// Marks a slot as free.
    pub fn release(&mut self, slot: usize) {
        if let Some(claim) = self.owners.get_mut(slot) {
            claim.owner = 0;
        }
    }

    /// A VM ends: its claims are free. With the last VM of a configuration, its place is.
    pub fn leave(&mut self, owner: u64, identity: u64) {
        let leaders = self.places.iter_mut().map(|place| &mut place.leader);
        self.owners.iter_mut().chain(leaders).filter(|c| c.owner == owner).for_each(|claim| claim.owner = 0);
        if !self.owners.iter().any(|claim| claim.owner != 0 && claim.identity == identity) {
            self.places.iter_mut().filter(|p| p.identity == identity).for_each(|place| place.until = Duration::ZERO);
        }
    }

    /// Renews the place of a configuration with which a VM has begun at this time, and which has last got a new connection then, or claims
    /// one: where all are taken, the oldest configuration's. `None` if that is this one.
    pub fn settle(&mut self, identity: u64, (started, served): (Duration, Duration), now: Duration) -> Option<usize> {
        let until = now.saturating_add(SLOT_TTL);
        let own = self.places.iter().position(|place| place.identity == identity && place.is_there(now));
        let free = || self.places.iter().position(|place| !place.is_there(now));
        let at = match own.or_else(free) {
            Some(at) => at,
            None if self.places.len() < MAX_PLACES => {
                self.places.push(Place::default());
                self.places.len() - 1
            }
            None => {
                let places = self.places.iter().enumerate();
                let (at, oldest) = places.min_by_key(|(_, place)| (place.started, place.identity))?;
                (oldest.started < started).then_some(at)?
            }
        };
        let place = self.places.get_mut(at)?;
        if own.is_none() {
            *place = Place { identity, ..Place::default() };
        }
        place.started = place.started.max(started.min(now));
        place.served = place.served.max(served.min(now));
        place.until = place.until.max(until);
        Some(at)
    }

    /// Places whose configuration has gone, and which that was.
    pub fn gone(&self, now: Duration) -> Vec<(usize, u64)> {
        let gone = self.places.iter().enumerate().filter(|(_, place)| place.identity != 0 && !place.is_there(now));
        gone.map(|(at, place)| (at, place.identity)).collect()
    }

    /// Renews or takes the lease of a place's leader; whether the VM holds it now.
    pub fn lead(&mut self, owner: u64, place: usize, now: Duration, lease: Duration) -> bool {
        let Some(Place { identity, leader, .. }) = self.places.get_mut(place) else { return false };
        let until = now.saturating_add(lease);
        leader.until = leader.until.min(until);
        if leader.owner != owner && !leader.free_at(now) {
            return false;
        }
        *leader = Claim { owner, identity: *identity, until };
        true
    }

    /// All places that were ever taken.
    pub fn places(&self) -> &[Place] {
        &self.places
    }
}

impl Writer {
    fn claim(&mut self, claim: &Claim) {
        self.u64(claim.owner);
        self.u64(claim.identity);
        self.time(claim.until);
    }
}

impl Reader<'_> {
    fn claim(&mut self) -> Option<Claim> {
        Some(Claim { owner: self.u64()?, identity: self.u64()?, until: self.time()? })
    }
}
