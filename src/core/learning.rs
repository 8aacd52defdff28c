//! What responses and feedback teach about models, as the router reads it: a value, an argument of every decision.
//!
//! Workers share what they learn. Each one adds to tallies of its own ([`ledger`]); a read combines those of all workers, so that
//! every worker decides with the same corrections ([`lengths`], [`speed`]) and beliefs ([`beliefs`]). [`exploration`] keeps the log of
//! decisions fit for judging other policies from it, and [`feedback`] is how scores come in.

pub mod beliefs;
pub mod exploration;
pub mod feedback;
pub mod ledger;
pub mod lengths;
pub mod speed;
mod tallies;

use crate::latency::Speed;
use crate::predictor::Estimate;

/// Everything learnt so far. The default has learnt nothing and changes no estimate.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Learned {
    /// Factor on expected output tokens per model, in the fleet's order; a model beyond its end has 1.
    pub corrections: Vec<f64>,
    /// What feedback says of quality.
    pub offsets: beliefs::Offsets,
    /// The speed of each pool, in the fleet's order; a pool beyond its end is as its profile says.
    pub speeds: Vec<Speed>,
}

impl Learned {
    /// The factor on a model's expected output tokens.
    pub fn correction(&self, model: usize) -> f64 {
        self.corrections.get(model).copied().unwrap_or(1.0)
    }

    /// What is known of a pool's speed.
    pub fn speed(&self, pool: usize) -> Option<&Speed> {
        self.speeds.get(pool)
    }

    /// An estimate with what was learnt since the predictor was trained.
    #[must_use]
    pub fn applied(&self, model: usize, prototype: Option<usize>, estimate: &Estimate) -> Estimate {
        let factor = self.correction(model);
        let (quality, quality_sd) = self.offsets.revised(model, prototype, estimate.quality, estimate.quality_sd);
        Estimate {
            quality,
            quality_sd,
            output_tokens: (estimate.output_tokens * factor).max(1.0),
            output_tokens_p80: (estimate.output_tokens_p80 * factor).max(1.0),
            output_tokens_p90: (estimate.output_tokens_p90 * factor).max(1.0),
        }
    }
}
