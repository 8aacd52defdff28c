//! What this VM has learnt, its exchange with the other workers, and the decisions that clients may still score.

use crate::config::Drill;
use crate::filter::host;
use crate::filter::worker::SWAP_ATTEMPTS;
use crate::latency::{Basis, Speed};
use crate::learning::Learned;
use crate::learning::beliefs::Beliefs;
use crate::learning::feedback::Feedback;
use crate::learning::lengths::{self, Lengths};
use crate::learning::speed::{self, Speeds};
use crate::random::Random;
use crate::router::{Decision, Router};
use crate::shared::{self, Recent, RecentDecision};

/// What one VM has learnt.
pub(super) struct Learner {
    fingerprint: u64,
    speed_fingerprint: u64,
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
    shared_lengths: Exchange,
    shared_speeds: Exchange,
    shared_beliefs: Exchange,
    random: Random,
}

/// What one kind of record has been written to and read from.
struct Exchange {
    /// A worker's key.
    key: fn(usize) -> String,
    /// Whether this worker's own record is behind.
    unwritten: bool,
    /// Versions of the other workers' records that were read last; `None` if decisions do not know yet what was read.
    read: Option<Vec<Option<u32>>>,
}

impl Exchange {
    fn new(key: fn(usize) -> String) -> Exchange {
        Exchange { key, unwritten: false, read: None }
    }

    /// The records of these workers, empty where there is none; `None` if they are those that were read last.
    fn news(&mut self, slots: impl Iterator<Item = usize>) -> Option<Vec<Vec<u8>>> {
        let (records, versions): (Vec<_>, Vec<_>) = slots.map(|slot| host::shared(&(self.key)(slot))).unzip();
        if self.read.as_ref() == Some(&versions) {
            return None;
        }
        self.read = Some(versions);
        Some(records.into_iter().map(Option::unwrap_or_default).collect())
    }

    fn write(&mut self, slot: usize, bytes: impl FnOnce() -> Vec<u8>) {
        if self.unwritten {
            self.unwritten = !host::set_shared(&(self.key)(slot), &bytes(), None);
        }
    }
}

/// What became of a feedback.
pub(super) enum Scored {
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
        Learner {
            fingerprint: shared::learning_fingerprint(&config.fleet, router.prototypes()),
            speed_fingerprint: shared::speed_fingerprint(&config.fleet, config.latency_estimate),
            models: config.fleet.models.len(),
            pools: config.fleet.pools.len(),
            basis: config.latency_estimate,
            learns_lengths: learning.output_tokens && shares,
            learns_speed: shares,
            takes_feedback: learning.feedback_secret.is_some() && shares,
            slot: None,
            lengths: Lengths::default(),
            beliefs: Beliefs::default(),
            speeds: Speeds::default(),
            learned: Learned::default(),
            shared_lengths: Exchange::new(shared::lengths_key),
            shared_speeds: Exchange::new(shared::speeds_key),
            shared_beliefs: Exchange::new(shared::beliefs_key),
            random: Random::new(seed),
        }
    }

    /// What decisions are made with.
    pub(super) fn learned(&self) -> &Learned {
        &self.learned
    }

    /// A name for a decision that clients may score; `None` where feedback is not taken.
    pub(super) fn decision_id(&mut self) -> Option<String> {
        self.takes_feedback.then(|| format!("{:016x}", self.random.bits()))
    }

    /// The next random draw, uniform in 0 to 1.
    pub(super) fn draw(&mut self) -> f64 {
        self.random.uniform()
    }

    /// The VM has got a slot: it goes on with what the slot's last owner had learnt. What this VM had learnt under another slot
    /// belongs to that slot's new owner.
    pub(super) fn settle(&mut self, slot: Option<usize>) {
        self.slot = slot;
        let Some(slot) = slot else { return };
        let read = |key: String| host::shared(&key).0.unwrap_or_default();
        self.lengths.adopt(shared::decode_lengths(&read(shared::lengths_key(slot)), self.fingerprint));
        self.beliefs.adopt(shared::decode_beliefs(&read(shared::beliefs_key(slot)), self.fingerprint));
        self.speeds.adopt(shared::decode_speeds(&read(shared::speeds_key(slot)), self.speed_fingerprint));
        for exchange in [&mut self.shared_lengths, &mut self.shared_beliefs, &mut self.shared_speeds] {
            exchange.read = None;
        }
    }

    /// Writes what is new here and reads what is new elsewhere.
    pub(super) fn exchange(&mut self, slots_in_use: usize) {
        let (own, fingerprint) = (self.slot, self.fingerprint);
        let others = (0..slots_in_use).filter(|slot| Some(*slot) != own);
        if self.learns_lengths
            && let Some(records) = self.shared_lengths.news(others.clone())
        {
            let tallies: Vec<_> = records.iter().map(|r| shared::decode_lengths(r, fingerprint)).collect();
            self.lengths.read(&tallies);
            self.learned.corrections = self.lengths.factors(self.models);
        }
        if self.learns_speed
            && let Some(records) = self.shared_speeds.news(others.clone())
        {
            let tallies = records.iter().map(|r| shared::decode_speeds(r, self.speed_fingerprint)).collect();
            self.speeds.read(tallies);
            self.learned.speeds = self.speeds.speeds(self.pools, self.basis);
        }
        if self.takes_feedback
            && let Some(records) = self.shared_beliefs.news(others)
        {
            let tallies: Vec<_> = records.iter().map(|r| shared::decode_beliefs(r, fingerprint)).collect();
            self.beliefs.read(&tallies);
            self.learned.offsets = self.beliefs.offsets();
        }
        self.write();
    }

    fn write(&mut self) {
        let Some(slot) = self.slot else { return };
        let Learner { fingerprint, speed_fingerprint, lengths, beliefs, speeds, .. } = self;
        self.shared_lengths.write(slot, || shared::encode_lengths(lengths, *fingerprint));
        self.shared_beliefs.write(slot, || shared::encode_beliefs(beliefs, *fingerprint));
        self.shared_speeds.write(slot, || shared::encode_speeds(speeds, *speed_fingerprint));
    }

    /// Learns from an answer's length.
    pub(super) fn learn_length(&mut self, lesson: &lengths::Lesson) {
        if self.learns_lengths {
            self.lengths.learn(lesson);
            self.learned.corrections = self.lengths.factors(self.models);
            self.shared_lengths.unwritten = true;
        }
    }

    /// Learns from a response's times.
    pub(super) fn learn_speed(&mut self, lesson: &speed::Lesson) {
        if self.learns_speed {
            self.speeds.learn(lesson);
            self.learned.speeds.resize_with(self.pools, Speed::default);
            if let Some(speed) = self.learned.speeds.get_mut(lesson.pool()) {
                *speed = self.speeds.speed(lesson.pool(), self.basis);
            }
            self.shared_speeds.unwritten = true;
        }
    }

    /// Remembers what a feedback needs to know of a decision; nothing if none is taken.
    pub(super) fn remember(&self, id: &str, decision: &Decision) {
        let Some(slot) = self.slot.filter(|_| self.takes_feedback && !id.is_empty()) else { return };
        let (quality, quality_sd) = decision.unrevised_quality;
        let recent = RecentDecision {
            model: decision.model,
            prototype: decision.prototype,
            quality,
            quality_sd,
            propensity: decision.propensity,
            scored: false,
        };
        self.change_segment(slot, id, |segment| {
            segment.insert(id, &recent);
            Some(())
        });
    }

    /// Scores the answer to an earlier request, whichever worker has served it.
    pub(super) fn score(&mut self, feedback: &Feedback, slots_in_use: usize) -> Scored {
        let own_first = self.slot.into_iter().chain((0..slots_in_use).filter(|slot| Some(*slot) != self.slot));
        let found = own_first
            .into_iter()
            .find_map(|slot| self.change_segment(slot, &feedback.id, |segment| segment.score(&feedback.id)));
        match found {
            None => Scored::Unknown,
            Some(decision) if decision.scored => Scored::Already,
            Some(decision) => {
                self.beliefs.learn(&decision.lesson(feedback.score));
                self.learned.offsets = self.beliefs.offsets();
                self.shared_beliefs.unwritten = true;
                self.write();
                Scored::Accepted(decision)
            }
        }
    }

    /// Changes the segment of a request's id in a worker's ring. If `change` has nothing to change, nothing is written.
    fn change_segment<T>(&self, slot: usize, id: &str, change: impl Fn(&mut Recent) -> Option<T>) -> Option<T> {
        let key = shared::recent_key(slot, Recent::segment(id));
        for _ in 0..SWAP_ATTEMPTS {
            let (bytes, cas) = host::shared(&key);
            let mut segment = Recent::decode(bytes.unwrap_or_default(), self.fingerprint);
            let changed = change(&mut segment)?;
            if host::set_shared(&key, segment.bytes(), cas) {
                return Some(changed);
            }
        }
        None
    }
}
