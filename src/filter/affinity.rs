//! What this gateway has placed where, as all workers know it together.

use std::time::Duration;

use crate::affinity::{Keys, Memory, Placement};
use crate::config::Drill;
use crate::filter::host;
use crate::router::Router;
use crate::shared::{self, Journal, JournalReader};

/// One VM's memory of what instances hold, and its exchange with the other workers.
pub(super) struct Placements {
    pub(super) memory: Memory,
    fingerprint: u64,
    shares: bool,
    slot: Option<usize>,
    journal: Journal,
    /// Per slot: how far its journal is read, and the version of the segment that was read last.
    read: Vec<(JournalReader, Option<(usize, u32)>)>,
}

impl Placements {
    pub(super) fn new(router: &Router) -> Placements {
        let config = router.config();
        Placements {
            memory: Memory::new(&config.fleet),
            fingerprint: shared::fingerprint(&config.fleet),
            shares: !config.drills(Drill::SharedData),
            slot: None,
            journal: Journal::default(),
            read: Vec::new(),
        }
    }

    /// The VM has got a slot: it goes on with the journal of the slot's last owner.
    pub(super) fn settle(&mut self, slot: Option<usize>) {
        self.slot = slot;
        let Some(slot) = slot.filter(|_| self.shares) else { return };
        let (journal, placements) =
            Journal::open(self.fingerprint, |segment| host::shared(&shared::placements_key(slot, segment)).0);
        self.journal = journal;
        placements.iter().for_each(|placement| self.memory.place(placement));
    }

    /// Remembers a placement, and tells the other workers in the next tick.
    pub(super) fn place(&mut self, placement: Placement) {
        self.memory.place(&placement);
        if self.shares && self.slot.is_some() {
            self.journal.note(placement);
        }
    }

    /// An instance reports that it has loaded an adapter. What is known already is not told again.
    pub(super) fn loaded(&mut self, adapter: &str, instance: usize, now: Duration) {
        let keys = Keys::of_adapter(adapter);
        if !self.memory.recall(&keys, 0.0, now).held().has_adapter(instance) {
            self.place(keys.placement(instance, 0, 0, 0, now));
        }
    }

    /// The answer to a request of a session is known.
    pub(super) fn answered(&mut self, keys: &Keys, instance: usize, held_tokens: u64, now: Duration) {
        if let Some(placement) = keys.answered(instance, held_tokens, now) {
            self.place(placement);
        }
    }

    /// Writes what is new here and reads what is new elsewhere.
    pub(super) fn exchange(&mut self, slots_in_use: usize) {
        let Placements { memory, fingerprint, shares, slot: own, journal, read } = self;
        if !*shares {
            return;
        }
        if let Some(own) = *own {
            journal.write(*fingerprint, |segment, bytes| {
                host::set_shared(&shared::placements_key(own, segment), bytes, None);
            });
        }
        read.resize(slots_in_use.max(read.len()), Default::default());
        let others = read.iter_mut().enumerate().take(slots_in_use).filter(|(slot, _)| Some(*slot) != *own);
        for (slot, (reader, seen)) in others {
            let news = reader.news(*fingerprint, |segment| {
                let (bytes, version) = host::shared(&shared::placements_key(slot, segment));
                let version = version.map(|version| (segment, version));
                let is_new = version != *seen;
                *seen = version;
                bytes.filter(|_| is_new)
            });
            news.iter().for_each(|placement| memory.place(placement));
        }
    }
}
