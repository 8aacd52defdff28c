//! Quality: what feedback says beyond the predictor, per model and kind of prompt.
//!
//! The score of an answer of model m to a prompt of kind k is taken to be `quality + a_m + b_mk + noise`: an offset of the model
//! on all prompts, one on this kind, and noise of variance [`NOISE`]. A priori both offsets are normal about 0 and their
//! variances add up to the square of the estimate's `quality_sd`, a share of [`SHARED`] of it the model's. That is the
//! hierarchical normal model with known variances (Gelman et al., *Bayesian Data Analysis*, 3rd ed., section 5.4). With `n`
//! scores of kind k whose mean residual is `r`, `s = SHARED sd^2` and `o = (1 - SHARED) sd^2`:
//!
//! - `a_m` is normal with precision `1/s + sum of w` and mean `sum of (w r) / precision`, sums over kinds, `w = 1 / (o + NOISE/n)`;
//! - given `a_m`, the kind's whole offset has mean `g r + (1 - g) a_m` and variance `o (1 - g)`, where `g = n o / (n o + NOISE)`;
//! - so its variance is `o (1 - g) + (1 - g)^2 var(a_m)`: `sd^2` without evidence, and less with every score.
//!
//! A kind is a prototype of the predictor; prompts without a prediction are one kind of their own.

use crate::fleet::ModelId;
use crate::learning::ledger::{Ledger, Tallies, Tally};

/// Scores of a model on one kind of prompt after which a share of 1/e is left of what came before.
const MEMORY: f64 = 500.0;
/// Variance of a score about its expectation: at most 0.25 for scores of 0 and 1.
const NOISE: f64 = 0.2;
/// The model's share of the variance of what is not known of its quality on a kind of prompt.
const SHARED: f64 = 0.25;
/// Variance of a score in 0 to 1 can be no larger.
const VARIANCE_MAX: f64 = 0.25;

/// What a score says about a model's quality.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QualityLesson {
    /// The model.
    pub model: ModelId,
    /// The prompt's prototype; `None` without a prediction.
    pub prototype: Option<usize>,
    /// The score, 0 to 1.
    pub score: f64,
    /// Quality as estimated, before any offset.
    pub quality: f64,
    /// Standard deviation of that estimate.
    pub quality_sd: f64,
}

fn kind(prototype: Option<usize>) -> usize {
    prototype.map_or(0, |p| p.saturating_add(1))
}

/// Model and kind in one key; `None` beyond what 16 bits each can hold.
fn key(model: ModelId, kind: usize) -> Option<u32> {
    Some(u32::from(u16::try_from(model.index()).ok()?) << 16 | u32::from(u16::try_from(kind).ok()?))
}

/// The scores of all models as one worker knows them.
#[derive(Clone, Debug, PartialEq)]
pub struct Beliefs(Ledger<2>);

impl Default for Beliefs {
    fn default() -> Self {
        Beliefs(Ledger::new(MEMORY))
    }
}

impl Beliefs {
    /// Learns from a score.
    pub fn learn(&mut self, lesson: &QualityLesson) {
        let Some(key) = key(lesson.model, kind(lesson.prototype)) else { return };
        let residual = (lesson.score - lesson.quality).clamp(-1.0, 1.0);
        let variance = lesson.quality_sd.powi(2).min(VARIANCE_MAX);
        self.0.add(key, 1.0, [residual, variance]);
    }

    /// What decisions read.
    pub fn offsets(&self) -> Offsets {
        let mut offsets = Offsets::default();
        for key in self.0.keys() {
            let (model, kind) = ((key >> 16) as usize, (key & 0xffff) as usize);
            if offsets.0.len() <= model {
                offsets.0.resize_with(model + 1, ModelOffset::default);
            }
            let Some(of_model) = offsets.0.get_mut(model) else { continue };
            if of_model.kinds.len() <= kind {
                of_model.kinds.resize(kind + 1, Tally::default());
            }
            if let Some(tally) = of_model.kinds.get_mut(kind) {
                *tally = self.0.combined(key);
            }
        }
        offsets.0.iter_mut().for_each(ModelOffset::settle);
        offsets
    }

    /// What this worker writes for the others.
    pub fn own(&self) -> &Tallies<2> {
        self.0.own()
    }

    /// Goes on where another worker has stopped.
    pub fn adopt(&mut self, own: Tallies<2>) {
        self.0.adopt(own);
    }

    /// Takes what the other workers have written.
    pub fn read(&mut self, others: &[Tallies<2>]) {
        self.0.read(others);
    }

    /// A tally of another worker, if its numbers are possible.
    pub fn sound(tally: Tally<2>) -> Option<Tally<2>> {
        tally.sound(1.0)
    }
}

/// What feedback says of every model and kind, ready for decisions: a look-up and a few multiplications each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Offsets(Vec<ModelOffset>);

/// One model: the offset on all prompts, and the evidence on each kind.
#[derive(Clone, Debug, PartialEq)]
struct ModelOffset {
    shared: f64,
    /// Variance that is left of the shared offset, as a fraction of what it had a priori.
    shared_left: f64,
    kinds: Vec<Tally<2>>,
}

impl Default for ModelOffset {
    fn default() -> Self {
        ModelOffset { shared: 0.0, shared_left: 1.0, kinds: Vec::new() }
    }
}

impl ModelOffset {
    /// Computes the shared offset, at the mean variance of the estimates that were scored.
    fn settle(&mut self) {
        let evidence = self.kinds.iter().fold(0.0, |sum, tally| sum + tally.weight);
        let variance = self.kinds.iter().fold(0.0, |sum, tally| sum + tally.sums[1]) / evidence;
        if !(variance > 0.0 && variance.is_finite()) {
            return;
        }
        let (shared, own) = (SHARED * variance, (1.0 - SHARED) * variance);
        let (mut precision, mut sum) = (1.0 / shared, 0.0);
        for tally in self.kinds.iter().filter(|tally| tally.weight > 0.0) {
            let weight = 1.0 / (own + NOISE / tally.weight);
            precision += weight;
            sum += weight * tally.mean(0);
        }
        self.shared = sum / precision;
        self.shared_left = 1.0 / (precision * shared);
    }
}

impl Offsets {
    /// An estimate of quality and its standard deviation with the offset of this model on this kind of prompt. Quality stays in
    /// 0 to 1; the deviation never grows.
    pub fn revised(&self, model: ModelId, prototype: Option<usize>, quality: f64, quality_sd: f64) -> (f64, f64) {
        let Some(of_model) = self.0.get(model.index()) else { return (quality, quality_sd) };
        let variance = quality_sd.powi(2);
        let (shared, own) = (SHARED * variance, (1.0 - SHARED) * variance);
        let tally = of_model.kinds.get(kind(prototype)).copied().unwrap_or_default();
        let evidence = tally.weight * own;
        let gain = evidence / (evidence + NOISE);
        let offset = gain * tally.mean(0) + (1.0 - gain) * of_model.shared;
        let left = own * (1.0 - gain) + (1.0 - gain).powi(2) * shared * of_model.shared_left;
        ((quality + offset).clamp(0.0, 1.0), left.sqrt().min(quality_sd))
    }
}

#[cfg(test)]
mod tests;
