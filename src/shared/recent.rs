//! Recent decisions, for feedback to find: a ring of 4,096 per worker, cut into segments by the request's id, so that a decision
//! writes and a feedback reads 1 KB per worker.

use super::{Reader, Writer, fnv1a};
use crate::learning::beliefs::Lesson;

/// Segments of a worker's ring.
pub const RECENT_SEGMENTS: usize = 128;
/// Decisions in a segment.
const SEGMENT_KEPT: usize = 32;

/// What a feedback needs to know of a decision.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RecentDecision {
    /// Index of the model.
    pub model: usize,
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
    pub fn lesson(&self, score: f64) -> Lesson {
        let RecentDecision { model, prototype, quality, quality_sd, .. } = *self;
        Lesson { model, prototype, score, quality, quality_sd }
    }
}

/// One segment, newest decision last.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recent(Vec<(u64, RecentDecision)>);

impl Recent {
    /// The segment in which a request's decision is.
    pub fn segment(id: &str) -> usize {
        (fnv1a(id.as_bytes()) % RECENT_SEGMENTS as u64) as usize
    }

    /// Remembers a decision; the segment's oldest one gives way.
    pub fn insert(&mut self, id: &str, decision: RecentDecision) {
        if self.0.len() >= SEGMENT_KEPT {
            self.0.remove(0);
        }
        self.0.push((fnv1a(id.as_bytes()), decision));
    }

    /// The decision on a request; the latest, if several had the same id.
    pub fn decision(&mut self, id: &str) -> Option<&mut RecentDecision> {
        let hash = fnv1a(id.as_bytes());
        self.0.iter_mut().rev().find(|(h, _)| *h == hash).map(|(_, decision)| decision)
    }

    /// The segment as bytes.
    pub fn encode(&self, fingerprint: u64) -> Vec<u8> {
        let mut writer = Writer::new(fingerprint);
        for (hash, decision) in &self.0 {
            let RecentDecision { model, prototype, quality, quality_sd, propensity, scored } = *decision;
            writer.u64(*hash);
            writer.u32(u32::try_from(model).unwrap_or(u32::MAX));
            writer.u32(prototype.and_then(|p| u32::try_from(p).ok()).map_or(0, |p| p.saturating_add(1)));
            writer.u32(u32::from(scored));
            [quality, quality_sd, propensity].into_iter().for_each(|value| writer.f32(value));
        }
        writer.0
    }

    /// The segment from bytes; a broken one is empty.
    pub fn decode(bytes: &[u8], fingerprint: u64) -> Recent {
        let rows = Reader::open(bytes, fingerprint).and_then(|mut reader| {
            reader.rows(|r| {
                let hash = r.u64()?;
                let decision = RecentDecision {
                    model: r.u32()? as usize,
                    prototype: r.u32()?.checked_sub(1).map(|p| p as usize),
                    scored: r.u32()? != 0,
                    quality: r.f32()?,
                    quality_sd: r.f32()?,
                    propensity: r.f32()?,
                };
                let numbers = [decision.quality, decision.quality_sd, decision.propensity];
                numbers.iter().all(|number| (0.0..=1.0).contains(number)).then_some((hash, decision))
            })
        });
        Recent(rows.unwrap_or_default())
    }
}
