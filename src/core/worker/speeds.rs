//! What workers tell each other of speed. It changes with nearly every answer, so that only pools with news are looked at.

use crate::fleet::PoolId;
use crate::learning::speed::{SpeedTallies, Speeds};
use crate::shared::{Board, ForeignSpeeds, Subjects, Version};

/// What of speed has been written to and read from the board.
pub(super) struct SpeedExchange {
    subjects: Subjects,
    /// Rows of the worker's own record about what its configuration does not have.
    foreign: ForeignSpeeds,
    /// Whether this worker's own record is behind.
    pub(super) unwritten: bool,
    /// The other workers' records as they were read last; `None` if decisions do not know yet what was read.
    read: Option<Vec<(Option<Version>, SpeedTallies)>>,
}

impl SpeedExchange {
    pub(super) fn new(subjects: Subjects) -> SpeedExchange {
        SpeedExchange { subjects, foreign: ForeignSpeeds::default(), unwritten: false, read: None }
    }

    /// Reads the records of these workers into what is known; the pools of which they say something new.
    pub(super) fn read(
        &mut self,
        board: &impl Board,
        slots: impl Iterator<Item = usize>,
        speeds: &mut Speeds,
        all_pools: usize,
    ) -> Vec<PoolId> {
        let mut is_all_new = self.read.is_none();
        let records = self.read.get_or_insert_default();
        let mut pools = Vec::new();
        let mut others = 0;
        for slot in slots {
            if records.len() == others {
                records.push(Default::default());
            }
            if let Some(record) = records.get_mut(others)
                && let Some(((tallies, _), version)) = board.speeds_news(slot, &self.subjects, record.0)
            {
                pools.extend(record.1.follow(&tallies));
                record.0 = version;
            }
            others = others.saturating_add(1);
        }
        is_all_new |= records.len() > others;
        records.truncate(others);
        if is_all_new {
            pools = (0..all_pools).map(PoolId::new).collect();
        }
        pools.sort_unstable();
        pools.dedup();
        if !pools.is_empty() {
            speeds.read(records.iter().map(|(_, tallies)| tallies), &pools);
        }
        pools
    }

    /// What a slot's last owner has left is this worker's from now on.
    pub(super) fn settle(&mut self, board: &impl Board, slot: usize, speeds: &mut Speeds) {
        (self.unwritten, self.read) = (false, None);
        let left = board.speeds_news(slot, &self.subjects, None).map(|(left, _)| left);
        let (tallies, foreign) = left.unwrap_or_default();
        speeds.adopt(tallies.into_owned());
        self.foreign = foreign.into_owned();
    }

    /// Writes what is new here.
    pub(super) fn write(&mut self, board: &mut impl Board, slot: usize, speeds: &Speeds) {
        if self.unwritten {
            self.unwritten = !board.write_speeds(slot, speeds, &self.foreign, &self.subjects);
        }
    }
}
