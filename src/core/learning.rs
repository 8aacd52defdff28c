//! What responses and feedback teach about models, as the router reads it: a value, an argument of every decision.
//!
//! Workers share what they learn. Each one adds to tallies of its own ([`ledger`]); a read combines those of all workers, so that every
//! worker decides with the same corrections ([`lengths`], [`speed`]) and beliefs ([`beliefs`]). It is kept until Envoy ends.
//!
//! # What is learnt
//!
//! - **Lengths** ([`lengths`]). `usage.completion_tokens` of every whole, successful response with one answer corrects the expected output
//!   tokens (median, P80, P90) of its model, predicted or prior, by a factor between 1/8 and 8. About 50 answers are remembered, weighed so
//!   that no single one moves the factor by more than a few percent; after a model's lengths double or halve, 200 answers bring the error
//!   back to what it was. An answer that `max_tokens` cut counts as far as it shows that it would have been longer.
//! - **Times** ([`speed`]): see [`latency`](crate::latency).
//! - **Quality** ([`beliefs`]), from [`feedback`]. Scores move the expected quality of that model on that kind of prompt (the predictor's
//!   prototypes) most, of that model on all kinds less, as much as the predictor was unsure; about 500 scores per model and kind are
//!   remembered. The ids that clients give (`x-request-id`) name nothing here: two clients may choose the same one.
//! - **Exploration** ([`exploration`]). With probability e a request goes to a uniformly drawn model among those admitted. The log says
//!   with which probability its model was chosen (`propensity`), so that logs can value a policy that was not running (inverse propensity
//!   weighting; unbiased if e > 0).
//!
//! # Configuration
//!
//! `learning.output_tokens`, `learning.feedback.secret`, `policies[].exploration`, `latency.estimate`.
//!
//! # Limits
//!
//! Streams teach lengths where the client asks for usage (`stream_options.include_usage`). Beliefs follow the sample that is scored: it
//! must not depend on the score. Several gateways do not share what they have learnt.

pub mod beliefs;
pub mod exploration;
pub mod feedback;
pub mod ledger;
pub mod lengths;
pub mod speed;
mod tallies;

use crate::fleet::{ModelId, PoolId};
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
    pub fn correction(&self, model: ModelId) -> f64 {
        self.corrections.get(model.index()).copied().unwrap_or(1.0)
    }

    /// What is known of a pool's speed.
    pub fn speed(&self, pool: PoolId) -> Option<&Speed> {
        self.speeds.get(pool.index())
    }

    /// An estimate with what was learnt since the predictor was trained.
    #[must_use]
    pub fn applied(&self, model: ModelId, prototype: Option<usize>, estimate: &Estimate) -> Estimate {
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
