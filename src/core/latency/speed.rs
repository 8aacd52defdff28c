//! What is known of a pool's speed beyond its profile: a value that forecasts read.

use super::Residuals;
use crate::fleet::LatencyProfile;

/// Which knowledge of a pool's speed forecasts use (`latency.estimate`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// The profile as configured.
    Prior,
    /// What responses have shown, without the profile; the profile until they have shown enough.
    Learned,
    /// The profile, corrected by what responses show.
    #[default]
    Both,
}

/// How fast an instance works, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Of a request, whatever its prompt and the load.
    pub overhead_seconds: f64,
    /// Per prompt token.
    pub prompt_token_seconds: f64,
    /// Of a step that decodes one sequence.
    pub step_seconds: f64,
    /// More of a step per further sequence.
    pub step_seconds_per_running: f64,
    /// More of a step per token in the KV of all sequences. What is learnt from responses has it in the other two.
    pub step_seconds_per_context_token: f64,
}

impl Pace {
    /// The pace that a profile promises.
    pub fn from_profile(profile: &LatencyProfile) -> Pace {
        let step_seconds = profile.tpot_ms / 1e3;
        Pace {
            overhead_seconds: profile.overhead_ms / 1e3,
            prompt_token_seconds: 1.0 / profile.prefill_tokens_per_second,
            step_seconds,
            step_seconds_per_running: step_seconds * profile.tpot_growth_per_running,
            step_seconds_per_context_token: step_seconds * profile.tpot_growth_per_thousand_context_tokens / 1e3,
        }
    }
}

/// The mean request of a pool's traffic.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Traffic {
    /// Prompt tokens, as the gateway estimates them.
    pub prompt_tokens: f64,
    /// Output tokens of the whole answer.
    pub output_tokens: f64,
}

/// What is known of one pool. The default knows nothing and leaves the profile's word.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// The pace learnt from responses alone; `None` where the profile's is used.
    pub pace: Option<Pace>,
    /// Factor on the time to the first token.
    pub ttft_factor: f64,
    /// Factor on the time per output token.
    pub tpot_factor: f64,
    /// The mean of recent requests; `None` if there were too few.
    pub traffic: Option<Traffic>,
    /// Actual over predicted time to the first token.
    pub ttft_residuals: Residuals,
    /// Actual over predicted time per output token.
    pub tpot_residuals: Residuals,
}

/// What forecasts read of a pool's speed: its pace, with the profile's word where nothing is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tempo {
    pub(super) pace: Pace,
    pub(super) traffic: Option<Traffic>,
    pub(super) ttft_factor: f64,
    pub(super) tpot_factor: f64,
}

impl Default for Speed {
    fn default() -> Self {
        Speed {
            pace: None,
            ttft_factor: 1.0,
            tpot_factor: 1.0,
            traffic: None,
            ttft_residuals: Residuals::default(),
            tpot_residuals: Residuals::default(),
        }
    }
}

impl Speed {
    /// The pace learnt, or else what the profile promises.
    pub fn pace_on(&self, profile: &LatencyProfile) -> Pace {
        self.pace.unwrap_or_else(|| Pace::from_profile(profile))
    }

    /// What forecasts read of it, for a pool with this profile.
    pub fn tempo_on(&self, profile: &LatencyProfile) -> Tempo {
        let Speed { traffic, ttft_factor, tpot_factor, .. } = *self;
        Tempo { pace: self.pace_on(profile), traffic, ttft_factor, tpot_factor }
    }

    /// Probability that the first token comes within `limit`, where it is predicted after `predicted` (both in seconds).
    pub fn probability_ttft_within(&self, predicted: f64, limit: f64) -> f64 {
        self.ttft_residuals.probability_within(predicted, limit)
    }

    /// Probability that an answer's mean time per output token is at most `limit`, where it is predicted as `predicted` (both in
    /// seconds).
    pub fn probability_tpot_within(&self, predicted: f64, limit: f64) -> f64 {
        self.tpot_residuals.probability_within(predicted, limit)
    }
}
