//! What this gateway has placed where, as all workers know it together.

use std::time::Duration;

use super::Worker;
use crate::affinity::{Keys, Memory, Placement};
use crate::config::{Config, Drill};
use crate::fleet::InstanceId;
use crate::shared::{Board, Index, Journal, JournalReader, Key, Version};

/// One VM's memory of what instances hold, and its exchange with the other workers.
#[derive(Clone, Debug, Default)]
pub struct Placements {
    /// What instances hold.
    pub memory: Memory,
    shares: bool,
    slot: Option<usize>,
    journal: Journal,
    /// Per slot: how far its journal is read, and the version of the segment that was read last.
    read: Vec<(JournalReader, Option<(usize, Version)>)>,
}

impl Worker {
    /// Remembers a placement, and tells the other workers in the next tick.
    pub fn place(&mut self, placement: Placement) {
        self.placements.place(&self.index, placement);
    }

    /// The answer to a request of a session is known.
    pub fn answered(&mut self, keys: &Keys, instance: InstanceId, held_tokens: u64, now: Duration) {
        if let Some(placement) = keys.answered(instance, held_tokens, now) {
            self.place(placement);
        }
    }
}

impl Placements {
    pub(super) fn new(config: &Config) -> Placements {
        let shares = !config.drills(Drill::SharedData);
        Placements { memory: Memory::new(&config.fleet), shares, ..Placements::default() }
    }

    /// The VM has got a slot: it goes on with the journal of the slot's last owner.
    pub(super) fn settle(&mut self, board: &impl Board, index: &Index, slot: Option<usize>) {
        self.slot = slot;
        let Some(slot) = slot.filter(|_| self.shares) else { return };
        let (journal, placements) = Journal::open(index, |segment| board.read(Key::Placements(slot, segment)).0);
        self.journal = journal;
        placements.iter().for_each(|placement| self.memory.place(placement));
    }

    fn place(&mut self, index: &Index, placement: Placement) {
        self.memory.place(&placement);
        if self.shares
            && self.slot.is_some()
            && let Some(key) = index.key(placement.instance)
        {
            self.journal.note(key, placement);
        }
    }

    /// An instance reports that it has loaded an adapter. What is known already is not told again.
    pub(super) fn loaded(&mut self, adapter: &str, index: &Index, instance: InstanceId, now: Duration) {
        let keys = Keys::of_adapter(adapter);
        if !self.memory.recall(&keys, 0.0, now).held().has_adapter(instance) {
            self.place(index, keys.placement(instance, 0, 0, 0, now));
        }
    }

    /// Writes what is new here and reads what is new elsewhere.
    pub(super) fn exchange(&mut self, board: &mut impl Board, index: &Index, slots_in_use: usize) {
        let Placements { memory, shares, slot: own, journal, read } = self;
        if !*shares {
            return;
        }
        if let Some(own) = *own {
            journal.write(|segment, bytes| {
                board.write(Key::Placements(own, segment), bytes, None);
            });
        }
        read.resize(slots_in_use.max(read.len()), Default::default());
        let others = read.iter_mut().enumerate().take(slots_in_use).filter(|(slot, _)| Some(*slot) != *own);
        for (slot, (reader, seen)) in others {
            let news = reader.news(index, |segment| {
                let known = seen.filter(|(other, _)| *other == segment).map(|(_, version)| version);
                let (bytes, version) = board.news(Key::Placements(slot, segment), known)?;
                *seen = version.map(|version| (segment, version));
                bytes
            });
            news.iter().for_each(|placement| memory.place(placement));
        }
    }
}
