//! Recent decisions, for feedback to find: a ring of 4,096 per worker, cut into segments by the decision's id, so that a decision
//! writes and a feedback reads 1 KB per worker.

use super::{Reader, Subjects, Writer};
use crate::fleet::ModelId;
use crate::hash::fnv1a;
use crate::learning::beliefs::QualityLesson;

/// Segments of a worker's ring.
pub const RECENT_SEGMENTS: usize = 128;
/// Decisions in a segment.
const SEGMENT_KEPT: usize = 32;

/// What a feedback needs to know of a decision.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RecentDecision {
    /// The model.
    pub model: ModelId,
    /// The prompt's prototype; `None` without a prediction.
    pub prototype: Option<usize>,
    /// Quality as estimated, before any offset.
    pub quality: f64,
    /// Standard deviation of that estimate.
    pub quality_sd: f64,
    /// Probability that this model was chosen.
    pub propensity: f64,
    /// Whether its answer was scored.
    pub scored: bool,
}

impl RecentDecision {
    /// What a score of its answer teaches.
    pub fn lesson(&self, score: f64) -> QualityLesson {
        let RecentDecision { model, prototype, quality, quality_sd, .. } = *self;
        QualityLesson { model, prototype, score, quality, quality_sd }
    }
}

/// One segment, newest decision last. It stays in the form in which it is shared: a decision that takes its place there must cost
/// next to nothing, and hardly one is ever looked up.
#[derive(Clone, Debug, PartialEq)]
pub struct Recent(Vec<u8>);

/// Bytes before the first decision: version and fingerprint.
const HEADER_BYTES: usize = 9;
/// Bytes of a decision: the hash of the decision's id (8), model, prototype, scored, and three numbers (4 each).
const ROW_BYTES: usize = 32;
/// Where a row says whether its answer was scored.
const SCORED_AT: usize = 16;

impl Recent {
    /// The segment in which a decision of this id is.
    pub fn segment(id: &str) -> usize {
        (fnv1a(id.as_bytes()) % RECENT_SEGMENTS as u64) as usize
    }

    /// The segment from bytes; a broken one is empty. It belongs to no configuration: rows say which model they are about.
    pub fn decode(bytes: Vec<u8>) -> Recent {
        let rows = Reader::open(&bytes, 0).map(|reader| reader.0.len());
        let is_whole = rows.is_some_and(|rows| rows % ROW_BYTES == 0 && rows <= SEGMENT_KEPT * ROW_BYTES);
        Recent(if is_whole { bytes } else { Writer::new(0).0 })
    }

    /// The segment as bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Remembers a decision; the segment's oldest one gives way. One for a model that is none of the subjects is not remembered.
    pub fn insert(&mut self, id: &str, decision: &RecentDecision, subjects: &Subjects) {
        let Some(model) = subjects.short(decision.model.index()) else { return };
        if self.0.len() >= HEADER_BYTES + SEGMENT_KEPT * ROW_BYTES {
            self.0.drain(HEADER_BYTES..HEADER_BYTES + ROW_BYTES);
        }
        let RecentDecision { prototype, quality, quality_sd, propensity, scored, .. } = *decision;
        let mut writer = Writer(std::mem::take(&mut self.0));
        writer.u64(fnv1a(id.as_bytes()));
        writer.u32(model);
        writer.u32(prototype.and_then(|p| u32::try_from(p).ok()).map_or(0, |p| p.saturating_add(1)));
        writer.u32(u32::from(scored));
        [quality, quality_sd, propensity].into_iter().for_each(|value| writer.f32(value));
        self.0 = writer.0;
    }

    /// The decision of this id, the latest if it was remembered again, as it was before; from now on it is scored.
    pub fn score(&mut self, id: &str, subjects: &Subjects) -> Option<RecentDecision> {
        let hash = fnv1a(id.as_bytes());
        let (rows, _) = self.0.get_mut(HEADER_BYTES..)?.as_chunks_mut::<ROW_BYTES>();
        let row = rows.iter_mut().rev().find(|row| row.starts_with(&hash.to_le_bytes()))?;
        let mut reader = Reader(row.get(8..)?);
        let decision = RecentDecision {
            model: ModelId::new(subjects.with_short(reader.u32()?)?),
            prototype: reader.u32()?.checked_sub(1).map(|p| p as usize),
            scored: reader.u32()? != 0,
            quality: reader.f32()?,
            quality_sd: reader.f32()?,
            propensity: reader.f32()?,
        };
        row.get_mut(SCORED_AT..SCORED_AT + 4)?.copy_from_slice(&1_u32.to_le_bytes());
        let numbers = [decision.quality, decision.quality_sd, decision.propensity];
        numbers.iter().all(|number| (0.0..=1.0).contains(number)).then_some(decision)
    }
}
