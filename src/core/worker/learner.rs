//! What this VM has learnt, its exchange with the other workers, and the decisions that clients may still score.

use std::time::Duration;

use super::speeds::SpeedExchange;
use super::{SWAP_ATTEMPTS, Worker};
use crate::config::Drill;
use crate::fleet::PoolId;
use crate::latency::{Basis, Speed};
use crate::learning::Learned;
use crate::learning::beliefs::Beliefs;
use crate::learning::feedback::Feedback;
use crate::learning::lengths::{self, Lengths};
use crate::learning::speed::{self, Speeds};
use crate::random::Random;
use crate::router::{Decision, Router};
use crate::shared::{self, Board, Foreign, Key, Recent, RecentDecision, Subjects, Version};

/// What one VM has learnt.
pub struct Learner {
    models: usize,
    pools: usize,
    basis: Basis,
    learns_lengths: bool,
    learns_speed: bool,
    takes_feedback: bool,
    slot: Option<usize>,
    lengths: Lengths,
    beliefs: Beliefs,
    speeds: Speeds,
    /// All of it, as decisions read it.
    learned: Learned,
    shared_lengths: RecordExchange<Foreign>,
    shared_speeds: SpeedExchange,
    shared_beliefs: RecordExchange<Foreign>,
    random: Random,
}

/// What one kind of record has been written to and read from.
struct RecordExchange<F> {
    /// A worker's key.
    key: fn(usize) -> Key,
    /// What the record's rows are about.
    subjects: Subjects,
    /// Rows of the worker's own record about what its configuration does not have.
    foreign: F,
    /// Whether this worker's own record is behind.
    unwritten: bool,
    /// The other workers' records as they were read last; `None` if decisions do not know yet what was read.
    read: Option<Vec<VersionedBytes>>,
}

/// Version and bytes of a record; neither where there is none.
type VersionedBytes = (Option<Version>, Vec<u8>);

impl<F: Default> RecordExchange<F> {
    fn new(key: fn(usize) -> Key, subjects: Subjects) -> RecordExchange<F> {
        RecordExchange { key, subjects, foreign: F::default(), unwritten: false, read: None }
    }

    /// The records of these workers, empty where there is none, and what they are about; `None` if they are those that were read last.
    fn news(
        &mut self,
        board: &impl Board,
        slots: impl Iterator<Item = usize>,
    ) -> Option<(&[VersionedBytes], &Subjects)> {
        let mut is_new = self.read.is_none();
        let records = self.read.get_or_insert_default();
        let mut others = 0;
        for slot in slots {
            if records.len() == others {
                records.push(VersionedBytes::default());
                is_new = true;
            }
            if let Some(record) = records.get_mut(others)
                && let Some((bytes, version)) = board.news((self.key)(slot), record.0)
            {
                *record = (version, bytes.unwrap_or_default());
                is_new = true;
            }
            others = others.saturating_add(1);
        }
        is_new |= records.len() > others;
        records.truncate(others);
        is_new.then_some((records, &self.subjects))
    }

    /// The record that a slot's last owner has left.
    fn left(&mut self, board: &impl Board, slot: usize) -> Vec<u8> {
        (self.unwritten, self.read) = (false, None);
        board.read((self.key)(slot)).0.unwrap_or_default()
    }

    fn write(&mut self, board: &mut impl Board, slot: usize, bytes: impl FnOnce(&F, &Subjects) -> Vec<u8>) {
        if self.unwritten {
            self.unwritten = !board.write((self.key)(slot), &bytes(&self.foreign, &self.subjects), None);
        }
    }
}

/// What became of a feedback.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scored {
    /// It counts.
    Accepted(RecentDecision),
    /// No such request, or it is too long ago.
    Unknown,
    /// The request was scored before.
    Already,
}

impl Learner {
    pub(super) fn new(router: &Router, seed: u64) -> Learner {
        let config = router.config();
        let shares = !config.drills(Drill::SharedData);
        let learning = &config.learning;
        let fleet = &config.fleet;
        Learner {
            models: fleet.models.len(),
            pools: fleet.pools.len(),
            basis: config.latency_estimate,
            learns_lengths: learning.output_tokens && shares,
            learns_speed: shares,
            takes_feedback: learning.feedback_secret.is_some() && shares,
            slot: None,
            lengths: Lengths::default(),
            beliefs: Beliefs::default(),
            speeds: Speeds::default(),
            learned: Learned::default(),
            shared_lengths: RecordExchange::new(Key::Lengths, Subjects::lengths(fleet, router.prototypes())),
            shared_speeds: SpeedExchange::new(Subjects::speeds(fleet, config.latency_estimate)),
            shared_beliefs: RecordExchange::new(Key::Beliefs, Subjects::beliefs(fleet, router.prototypes())),
            random: Random::new(seed),
        }
    }

    /// What decisions are made with.
    pub fn learned(&self) -> &Learned {
        &self.learned
    }

    /// A name for a decision that clients may score; `None` where feedback is not taken.
    pub fn decision_id(&mut self) -> Option<String> {
        self.takes_feedback.then(|| format!("{:016x}", self.random.bits()))
    }

    /// The next random draw, uniform in 0 to 1.
    pub fn draw(&mut self) -> f64 {
        self.random.uniform()
    }

    /// The VM has got a slot: it goes on with what the slot's last owner had learnt. What this VM had learnt under another slot
    /// belongs to that slot's new owner.
    pub(super) fn settle(&mut self, board: &impl Board, slot: Option<usize>) {
        self.slot = slot;
        let Some(slot) = slot else { return };
        let bytes = self.shared_lengths.left(board, slot);
        let (lengths, foreign) = shared::decode_lengths(&bytes, &self.shared_lengths.subjects);
        self.lengths.adopt(lengths);
        self.shared_lengths.foreign = foreign;
        let bytes = self.shared_beliefs.left(board, slot);
        let (beliefs, foreign) = shared::decode_beliefs(&bytes, &self.shared_beliefs.subjects);
        self.beliefs.adopt(beliefs);
        self.shared_beliefs.foreign = foreign;
        self.shared_speeds.settle(board, slot, &mut self.speeds);
    }

    /// Writes what is new here and reads what is new elsewhere.
    pub(super) fn exchange(&mut self, board: &mut impl Board, slots_in_use: usize) {
        let own = self.slot;
        let others = (0..slots_in_use).filter(|slot| Some(*slot) != own);
        if self.learns_lengths
            && let Some((records, subjects)) = self.shared_lengths.news(board, others.clone())
        {
            let tallies: Vec<_> = records.iter().map(|(_, r)| shared::decode_lengths(r, subjects).0).collect();
            self.lengths.read(&tallies);
            self.learned.corrections = self.lengths.factors(self.models);
        }
        if self.learns_speed {
            for pool in self.shared_speeds.read(board, others.clone(), &mut self.speeds, self.pools) {
                self.know_speed(pool);
            }
        }
        if self.takes_feedback
            && let Some((records, subjects)) = self.shared_beliefs.news(board, others)
        {
            let tallies: Vec<_> = records.iter().map(|(_, r)| shared::decode_beliefs(r, subjects).0).collect();
            self.beliefs.read(&tallies);
            self.learned.offsets = self.beliefs.offsets();
        }
        self.write(board);
    }

    fn write(&mut self, board: &mut impl Board) {
        let Some(slot) = self.slot else { return };
        let Learner { lengths, beliefs, speeds, .. } = self;
        self.shared_lengths.write(board, slot, |foreign, s| shared::encode_lengths(lengths, foreign, s));
        self.shared_beliefs.write(board, slot, |foreign, s| shared::encode_beliefs(beliefs, foreign, s));
        self.shared_speeds.write(board, slot, speeds);
    }

    /// Learns from an answer's length.
    pub fn learn_length(&mut self, lesson: &lengths::LengthLesson) {
        if self.learns_lengths {
            self.lengths.learn(lesson);
            let known = self.learned.corrections.get_mut(lesson.model.index());
            match known.filter(|_| self.shared_lengths.read.is_some()) {
                // Of the other models nothing has changed since they were last looked at.
                Some(correction) => *correction = self.lengths.factor(lesson.model),
                None => self.learned.corrections = self.lengths.factors(self.models),
            }
            self.shared_lengths.unwritten = true;
        }
    }

    /// Learns from a response's times.
    pub fn learn_speed(&mut self, lesson: &speed::SpeedLesson) {
        if self.learns_speed {
            self.speeds.learn(lesson);
            self.know_speed(lesson.pool());
            self.shared_speeds.unwritten = true;
        }
    }

    /// Decisions know a pool's speed as it is known here.
    fn know_speed(&mut self, pool: PoolId) {
        self.learned.speeds.resize_with(self.pools, Speed::default);
        if let Some(speed) = self.learned.speeds.get_mut(pool.index()) {
            *speed = self.speeds.speed(pool, self.basis);
        }
    }

    /// Changes the segment of a request's id in a worker's ring. If `change` has nothing to change, nothing is written.
    fn change_segment<T>(
        board: &mut impl Board,
        slot: usize,
        id: &str,
        change: impl Fn(&mut Recent) -> Option<T>,
    ) -> Option<T> {
        let key = Key::Recent(slot, Recent::segment(id));
        for _ in 0..SWAP_ATTEMPTS {
            let (bytes, version) = board.read(key);
            let mut segment = Recent::decode(bytes.unwrap_or_default());
            let changed = change(&mut segment)?;
            if board.write(key, segment.bytes(), version) {
                return Some(changed);
            }
        }
        None
    }
}

impl Worker {
    /// Exchanges what was learnt, and what was placed where, with the other workers.
    pub(super) fn exchange(&mut self, board: &mut impl Board) {
        let slots = self.slots.in_use();
        self.learner.exchange(board, slots);
        self.placements.exchange(board, &self.index, slots);
    }

    /// A request that its client may score: remembers what a feedback needs to know of the decision.
    pub fn remember_decision(&self, board: &mut impl Board, id: &str, decision: &Decision) {
        let Learner { slot, takes_feedback, shared_beliefs, .. } = &self.learner;
        let Some(slot) = slot.filter(|_| *takes_feedback && !id.is_empty()) else { return };
        let (quality, quality_sd) = decision.quality.unrevised;
        let recent = RecentDecision {
            model: decision.to.model,
            prototype: decision.quality.prototype,
            quality,
            quality_sd,
            propensity: decision.draw.propensity,
            scored: false,
        };
        Learner::change_segment(board, slot, id, |segment| {
            segment.insert(id, &recent, &shared_beliefs.subjects);
            Some(())
        });
    }

    /// Scores the answer to an earlier request, whichever worker has served it.
    pub fn score(&mut self, board: &mut impl Board, feedback: &Feedback, now: Duration) -> Scored {
        let own = self.learner.slot;
        let is_owned = self.owns_slot(now).is_some();
        let subjects = &self.learner.shared_beliefs.subjects;
        let others = (0..self.slots.in_use()).filter(|slot| Some(*slot) != own);
        let found = own.into_iter().chain(others).find_map(|slot| {
            Learner::change_segment(board, slot, &feedback.id, |segment| segment.score(&feedback.id, subjects))
        });
        match found {
            None => Scored::Unknown,
            Some(decision) if decision.scored => Scored::Already,
            Some(decision) => {
                let learner = &mut self.learner;
                learner.beliefs.learn(&decision.lesson(feedback.score));
                learner.learned.offsets = learner.beliefs.offsets();
                learner.shared_beliefs.unwritten = true;
                if is_owned {
                    learner.write(board);
                }
                Scored::Accepted(decision)
            }
        }
    }
}
