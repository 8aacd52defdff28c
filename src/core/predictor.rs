//! Features to answer quality, output tokens and familiarity; the only module that names tract.
//!
//! The build script compiles the ONNX file into the plan embedded here. What comes before the plan is done by [`encoder`], since
//! a prompt touches few rows of the table; the plan is executed by tract.

use std::sync::{Mutex, PoisonError};

use tract_core::{
    internal::{Tensor, TypedSimpleState, tvec},
    model::IntoRunnable,
};

use crate::features::{FEATURE_VERSION, Features, SLOTS, SURFACE};
use crate::fleet::Model;

mod dense;
mod encoder;
mod graph;
mod plan;
mod row;
mod softmax;
use encoder::{Encoder, WIDTH};
use plan::{Plan, PlanOp};

const PLAN: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/predictor_plan.json"));
const CONSTANTS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/predictor_constants.bin"));
/// What onnxruntime makes of some texts with the predictor that is compiled in: a JSON file, for tests.
pub const GOLDEN_FILE: &str = env!("ROUTEBALANCE_GOLDEN");
/// The longest context of the models served today; the graph clips its output there.
const MAX_OUTPUT_TOKENS: f64 = 131_072.0;
/// The graph clips the deviation of quality there: no score between 0 and 1 varies more.
const MAX_QUALITY_SD: f64 = 0.5;
/// What is estimated per model: quality, ln of the median of output tokens, deviation of quality, and by how much the logarithms
/// of the 80th and the 90th percentile exceed that of the median.
const ESTIMATES: usize = 5;

/// What one model would make of a prompt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Expected score of the answer, 0 to 1.
    pub quality: f64,
    /// Standard deviation of `quality` about the mean score of the model on prompts like this one.
    pub quality_sd: f64,
    /// Median number of output tokens, at least 1.
    pub output_tokens: f64,
    /// Output tokens that 4 of 5 answers do not exceed, at least the median.
    pub output_tokens_p80: f64,
    /// Output tokens that 9 of 10 answers do not exceed, at least the 80th percentile.
    pub output_tokens_p90: f64,
}

/// How far answers of a model scatter over all prompts: what is known of its spread where only the prior is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PriorSpread {
    /// Standard deviation of quality.
    pub quality_sd: f64,
    /// 80th percentile of output tokens over their median.
    pub p80: f64,
    /// 90th percentile of output tokens over their median.
    pub p90: f64,
}

/// For models that the predictor does not know. The percentiles are those of Qwen2.5-72B-Instruct over the 1,521 rows of
/// `models/data` (1.94 and 2.69; smaller models scatter more). The deviation is an assumption: a model's mean score differs by
/// about that much from one kind of prompt to another.
impl Default for PriorSpread {
    fn default() -> PriorSpread {
        PriorSpread { quality_sd: 0.2, p80: 1.9, p90: 2.7 }
    }
}

impl Estimate {
    /// What is expected of a model's answer to any prompt.
    pub fn prior(model: &Model, spread: &PriorSpread) -> Estimate {
        let tokens = model.output_tokens_prior;
        Estimate {
            quality: model.quality_prior,
            quality_sd: spread.quality_sd,
            output_tokens: tokens,
            output_tokens_p80: spread.p80 * tokens,
            output_tokens_p90: spread.p90 * tokens,
        }
    }

    /// This estimate for a prompt of which the predictor knows as much as `familiarity` (0 to 1) says: at 0 the prior, at 1 the
    /// estimate itself, in between linear in quality, in variance, and in the logarithm of output tokens.
    #[must_use]
    pub fn shrunk_to(&self, prior: &Estimate, familiarity: f64) -> Estimate {
        let mix = |own: f64, prior: f64| prior + familiarity * (own - prior);
        let mix_ln = |own: f64, prior: f64| mix(own.ln(), prior.ln()).exp();
        Estimate {
            quality: mix(self.quality, prior.quality),
            quality_sd: mix(self.quality_sd.powi(2), prior.quality_sd.powi(2)).sqrt(),
            output_tokens: mix_ln(self.output_tokens, prior.output_tokens),
            output_tokens_p80: mix_ln(self.output_tokens_p80, prior.output_tokens_p80),
            output_tokens_p90: mix_ln(self.output_tokens_p90, prior.output_tokens_p90),
        }
    }
}

/// What the predictor makes of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// One per model, in the order of [`Predictor::models`], as if the prompt were of a kind that the predictor knows.
    pub estimates: Vec<Estimate>,
    /// How much the prompt resembles the training prompts: 0 not at all, 1 fully.
    pub familiarity: f64,
    /// The training prompts' cluster that is nearest, below [`Predictor::prototypes`].
    pub prototype: usize,
}

/// The trained predictor, ready to run.
pub struct Predictor {
    models: Vec<String>,
    spreads: Vec<PriorSpread>,
    prototypes: usize,
    encoder: Encoder,
    /// The plan with its buffers; making them anew for each prompt costs as much as running it.
    state: Mutex<TypedSimpleState>,
}

impl Predictor {
    /// Rebuilds the embedded plan; an error says what does not fit. Costs milliseconds: do it once.
    pub fn load() -> Result<Predictor, String> {
        let plan: Plan = serde_json::from_slice(PLAN).map_err(|error| format!("predictor plan: {error}"))?;
        let facts = Facts::from_plan(&plan)?;
        let (constants, _) = CONSTANTS.as_chunks::<4>();
        let constants: Vec<f32> = constants.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let source = plan.nodes.first().filter(|node| node.op == PlanOp::Source);
        if source.is_none_or(|source| source.shape != [1, WIDTH]) {
            return Err(format!("predictor: its plan must begin with {WIDTH} values"));
        }
        let encoder = Encoder::new(&plan, &constants)?;
        let runnable = graph::rebuild(&plan, &constants)?.into_runnable();
        let state = runnable.and_then(|plan| plan.spawn()).map_err(|error| format!("predictor: {error:#}"))?;
        let Facts { models, spreads, prototypes } = facts;
        let predictor = Predictor { models, spreads, prototypes, encoder, state: Mutex::new(state) };
        let empty = Features { slots: Vec::new(), surface: [0.0; SURFACE] };
        match predictor.predict(&empty) {
            Some(_) => Ok(predictor),
            None => Err("predictor: no finite estimate for an empty prompt".to_owned()),
        }
    }

    /// Names of the models, in the order of the estimates.
    pub fn models(&self) -> &[String] {
        &self.models
    }

    /// The spread of each model's answers over the training prompts, in the order of [`Predictor::models`].
    pub fn prior_spreads(&self) -> &[PriorSpread] {
        &self.spreads
    }

    /// Clusters of the training prompts.
    pub fn prototypes(&self) -> usize {
        self.prototypes
    }

    /// Estimates per model; `None` when the plan fails or a value is not finite.
    pub fn predict(&self, features: &Features) -> Option<Prediction> {
        let z = self.encoder.standardised(features)?;
        let input = Tensor::from_shape(&[1, WIDTH], &z).ok()?;
        let outputs = {
            // A panic elsewhere leaves values behind that the next run replaces.
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let outputs = state.run(tvec!(input.into()));
            if outputs.is_err() {
                state.reset_turn().ok()?;
            }
            outputs.ok()?
        };
        let [estimates, logits] = outputs.as_slice() else { return None };
        let (estimates, logits) = (estimates.try_as_plain_ram().ok()?, logits.try_as_plain_ram().ok()?);
        let (estimates, logits) = (estimates.as_slice::<f32>().ok()?, logits.as_slice::<f32>().ok()?);
        let models = self.models.len();
        let sizes_fit = estimates.len() == ESTIMATES.saturating_mul(models) && logits.len() == self.prototypes;
        if !sizes_fit || !estimates.iter().chain(logits).all(|value| value.is_finite()) {
            return None;
        }
        let (prototype, greatest) = greatest(logits)?;
        let value = |what: usize, model: usize| estimates.get(what * models + model).copied().map(f64::from);
        let estimate = |model: usize| {
            let [quality, ln_tokens, quality_sd, ln_p80, ln_p90] =
                [value(0, model)?, value(1, model)?, value(2, model)?, value(3, model)?, value(4, model)?];
            Some(bounded(quality, ln_tokens, quality_sd, ln_p80, ln_p90))
        };
        Some(Prediction {
            estimates: (0..models).map(estimate).collect::<Option<_>>()?,
            familiarity: self.encoder.familiarity(&z, greatest),
            prototype,
        })
    }
}

/// The graph's clipping, and percentiles in their order.
fn bounded(quality: f64, ln_tokens: f64, quality_sd: f64, ln_p80: f64, ln_p90: f64) -> Estimate {
    let output_tokens = ln_tokens.exp().clamp(1.0, MAX_OUTPUT_TOKENS);
    let output_tokens_p80 = (output_tokens * ln_p80.max(0.0).exp()).min(MAX_OUTPUT_TOKENS);
    let output_tokens_p90 = (output_tokens * ln_p90.max(0.0).exp()).min(MAX_OUTPUT_TOKENS);
    Estimate {
        quality: quality.clamp(0.0, 1.0),
        quality_sd: quality_sd.clamp(0.0, MAX_QUALITY_SD),
        output_tokens,
        output_tokens_p80,
        output_tokens_p90: output_tokens_p90.max(output_tokens_p80),
    }
}

/// The first of the greatest values, and where it stands.
fn greatest(values: &[f32]) -> Option<(usize, f32)> {
    let pairs = values.iter().copied().enumerate();
    pairs.reduce(|best, other| if other.1 > best.1 { other } else { best })
}

/// What the file's metadata says.
struct Facts {
    models: Vec<String>,
    spreads: Vec<PriorSpread>,
    prototypes: usize,
}

impl Facts {
    fn from_plan(plan: &Plan) -> Result<Facts, String> {
        let version: u32 = fact(plan, "feature_version")?;
        if version != FEATURE_VERSION {
            return Err(format!(
                "predictor: trained with features of version {version}, these are version {FEATURE_VERSION}"
            ));
        }
        for (name, expected) in [("slots", SLOTS), ("surface", SURFACE)] {
            let value: usize = fact(plan, name)?;
            if value != expected {
                return Err(format!("predictor: metadata {name} must be {expected}"));
            }
        }
        let models: Vec<String> = fact(plan, "models")?;
        let [quality_sd, ln_p80, ln_p90]: [Vec<f64>; 3] =
            [fact(plan, "prior_quality_sd")?, fact(plan, "prior_ln_p80")?, fact(plan, "prior_ln_p90")?];
        let spreads: Vec<PriorSpread> = quality_sd
            .iter()
            .zip(ln_p80.iter().zip(&ln_p90))
            .map(|(sd, (p80, p90))| PriorSpread { quality_sd: *sd, p80: p80.exp(), p90: p90.exp() })
            .collect();
        if spreads.len() != models.len() {
            return Err("predictor: metadata must have as many priors as models".to_owned());
        }
        let is_sound = |s: &PriorSpread| s.quality_sd >= 0.0 && 1.0 <= s.p80 && s.p80 <= s.p90 && s.p90.is_finite();
        if !spreads.iter().all(is_sound) {
            return Err(
                "predictor: metadata prior_quality_sd, prior_ln_p80 and prior_ln_p90 must be finite and in order"
                    .to_owned(),
            );
        }
        Ok(Facts { models, spreads, prototypes: fact(plan, "prototypes")? })
    }
}

fn fact<T: serde::de::DeserializeOwned>(plan: &Plan, name: &str) -> Result<T, String> {
    let value = plan.metadata.get(name).ok_or_else(|| format!("predictor: no metadata {name}"))?;
    T::deserialize(value).map_err(|error| format!("predictor: metadata {name}: {error}"))
}

impl std::fmt::Debug for Predictor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Predictor").field("models", &self.models).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
