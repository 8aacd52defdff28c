//! Features to answer quality and output tokens per model; the only module that names tract.
//!
//! The build script compiles `models/predictor.onnx` into the plan embedded here. The sum over the table of slots is done
//! here, since a prompt touches few of its rows; everything after it is executed by tract.

use std::sync::Arc;

use tract_core::{
    internal::{
        AxesMapping, AxisOp, Datum, OutletId, ShapeFact, Tensor, ToDim, TypedFact, TypedModel, TypedOp,
        TypedRunnableModel, tvec,
    },
    model::{IntoRunnable, SpecialOps},
    ops::{
        array::{MultiBroadcastTo, Slice, TypedConcat},
        einsum::EinSum,
        konst::Const,
        math,
        nn::{Reduce, Reducer, Softmax, SoftmaxKind, sigmoid},
        source::TypedSource,
    },
};

use crate::features::{FEATURE_VERSION, Features, SLOTS, SURFACE};
use crate::fleet::Model;

mod plan;
use plan::{BinaryOp, Plan, PlanNode, PlanOp, ReduceOp, UnaryOp};

const PLAN: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/predictor_plan.json"));
const CONSTANTS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/predictor_constants.bin"));
const TABLE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/predictor_table.bin"));
/// The longest context of the models served today; the graph clips its output there.
const MAX_OUTPUT_TOKENS: f64 = 131_072.0;
/// Columns of the table; a constant, so that the sum compiles to straight-line code.
const COLUMNS: usize = 32;

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

/// Spread of a model's mean quality over kinds of prompts: what is not known where only the prior is.
const PRIOR_QUALITY_SD: f64 = 0.2;
/// 80th and 90th percentile of output tokens over their median, over all prompts.
const PRIOR_P80: f64 = 1.9;
const PRIOR_P90: f64 = 2.7;

impl Estimate {
    /// What is expected of a model's answer to any prompt.
    pub fn prior(model: &Model) -> Estimate {
        let tokens = model.output_tokens_prior;
        Estimate {
            quality: model.quality_prior,
            quality_sd: PRIOR_QUALITY_SD,
            output_tokens: tokens,
            output_tokens_p80: PRIOR_P80 * tokens,
            output_tokens_p90: PRIOR_P90 * tokens,
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
    plan: Arc<TypedRunnableModel>,
}

impl Predictor {
    /// Rebuilds and optimises the embedded plan; an error says what does not fit. Costs milliseconds: do it once.
    pub fn load() -> Result<Predictor, String> {
        let plan: Plan = serde_json::from_slice(PLAN).map_err(|error| format!("predictor plan: {error}"))?;
        let fact = |name: &str| plan.metadata.get(name).ok_or_else(|| format!("predictor: no metadata {name}"));
        let version = fact("feature_version")?;
        if *version != FEATURE_VERSION {
            return Err(format!(
                "predictor: trained with features of version {version}, these are version {FEATURE_VERSION}"
            ));
        }
        let models: Vec<String> = serde_json::from_value(fact("models")?.clone())
            .map_err(|error| format!("predictor: metadata models: {error}"))?;
        if plan.table_columns != COLUMNS || TABLE.len() != SLOTS * COLUMNS {
            return Err(format!("predictor: the table must be {SLOTS} x {COLUMNS}"));
        }
        let shapes = plan.nodes.iter().take_while(|node| node.op == PlanOp::Source).map(|node| node.shape.as_slice());
        if !shapes.eq([[1, COLUMNS].as_slice(), &[1, SURFACE]]) {
            return Err(format!("predictor: its inputs must have {COLUMNS} and {SURFACE} values"));
        }
        let model = rebuild(&plan)?;
        let runnable = model.into_optimized().and_then(IntoRunnable::into_runnable);
        let predictor = Predictor { models, plan: runnable.map_err(|error| format!("predictor: {error:#}"))? };
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

    /// Clusters of the training prompts.
    pub fn prototypes(&self) -> usize {
        1
    }

    /// Estimates per model; `None` when the plan fails or a value is not finite.
    pub fn predict(&self, features: &Features) -> Option<Prediction> {
        let sum = weighted_sum(&features.slots)?;
        // The plan clips its inputs, and clipping would turn a NaN into a number.
        if !sum.iter().chain(&features.surface).all(|value| value.is_finite()) {
            return None;
        }
        let inputs = tvec!(row(&sum)?.into(), row(&features.surface)?.into());
        let outputs = self.plan.run(inputs).ok()?;
        let estimates = outputs.first()?.try_as_plain_ram().ok()?.as_slice::<f32>().ok()?;
        let (quality, ln_output_tokens) = estimates.split_at_checked(self.models.len())?;
        if quality.len() != ln_output_tokens.len() {
            return None;
        }
        let estimate = |(&quality, &ln): (&f32, &f32)| {
            let tokens = f64::from(ln).exp();
            (quality.is_finite() && ln.is_finite()).then(|| Estimate {
                quality: f64::from(quality).clamp(0.0, 1.0),
                quality_sd: 0.1,
                output_tokens: tokens.clamp(1.0, MAX_OUTPUT_TOKENS),
                output_tokens_p80: (1.47 * tokens).clamp(1.0, MAX_OUTPUT_TOKENS),
                output_tokens_p90: (1.8 * tokens).clamp(1.0, MAX_OUTPUT_TOKENS),
            })
        };
        let estimates = quality.iter().zip(ln_output_tokens).map(estimate).collect::<Option<_>>()?;
        Some(Prediction { estimates, familiarity: 1.0, prototype: 0 })
    }
}

impl std::fmt::Debug for Predictor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Predictor").field("models", &self.models).finish_non_exhaustive()
    }
}

/// The sum of the table's rows at the slots, each times its weight.
fn weighted_sum(slots: &[(u16, f32)]) -> Option<[f32; COLUMNS]> {
    let (rows, _) = TABLE.as_chunks::<COLUMNS>();
    let mut sum = [0.0; COLUMNS];
    for (slot, weight) in slots {
        let row = rows.get(usize::from(*slot))?;
        for (total, value) in sum.iter_mut().zip(row) {
            *total += weight * f32::from(value.cast_signed());
        }
    }
    Some(sum)
}

fn row(values: &[f32]) -> Option<Tensor> {
    Tensor::from_shape(&[1, values.len()], values).ok()
}

fn rebuild(plan: &Plan) -> Result<TypedModel, String> {
    let mut model = TypedModel::default();
    let mut outlets: Vec<OutletId> = Vec::with_capacity(plan.nodes.len());
    let mut inputs = Vec::new();
    let outlet = |outlets: &[OutletId], at: &usize| outlets.get(*at).copied().ok_or("names a later node".to_owned());
    for node in &plan.nodes {
        let problem = |problem: String| format!("predictor plan: node {}: {problem}", node.name);
        let from = node.inputs.iter().map(|at| outlet(&outlets, at)).collect::<Result<Vec<_>, _>>().map_err(problem)?;
        let op = operation(node).map_err(problem)?;
        let wires = model.wire_node(&node.name, op, &from).map_err(|error| problem(format!("{error:#}")))?;
        let [wire] = wires.as_slice() else { return Err(problem("has not exactly one output".to_owned())) };
        let fact = model.outlet_fact(*wire).map_err(|error| problem(format!("{error:#}")))?;
        if fact.shape.as_concrete() != Some(node.shape.as_slice()) {
            return Err(problem(format!("has shape {:?} instead of {:?}", fact.shape, node.shape)));
        }
        if node.op == PlanOp::Source {
            inputs.push(*wire);
        }
        outlets.push(*wire);
    }
    let output = outlet(&outlets, &plan.output).map_err(|problem| format!("predictor plan: the output {problem}"))?;
    model.set_input_outlets(&inputs).map_err(|error| format!("predictor plan: {error:#}"))?;
    model.select_output_outlets(&[output]).map_err(|error| format!("predictor plan: {error:#}"))?;
    Ok(model)
}

fn operation(node: &PlanNode) -> Result<Box<dyn TypedOp>, String> {
    let text = |error: tract_core::prelude::TractError| format!("{error:#}");
    let shape = node.shape.as_slice();
    Ok(match &node.op {
        PlanOp::Source => Box::new(TypedSource::new(TypedFact::dt_shape(f32::datum_type(), shape))),
        PlanOp::Const(at) => {
            let (values, _) = CONSTANTS.as_chunks::<4>();
            let count = shape.iter().try_fold(1_usize, |count, n| count.checked_mul(*n)).ok_or("is too large")?;
            let end = at.checked_add(count).ok_or("is too large")?;
            let values = values.get(*at..end).ok_or("lies outside the file of constants")?;
            let values = values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect::<Vec<_>>();
            let tensor = Tensor::from_shape(shape, &values).map_err(text)?;
            Box::new(Const::new(Arc::new(tensor)).map_err(text)?)
        }
        PlanOp::Binary(op) => Box::new(match op {
            BinaryOp::Add => math::add(),
            BinaryOp::Sub => math::sub(),
            BinaryOp::SubF => math::subf(),
            BinaryOp::Mul => math::mul(),
            BinaryOp::Div => math::div(),
            BinaryOp::Min => math::min(),
            BinaryOp::Max => math::max(),
        }),
        PlanOp::Unary(op) => Box::new(match op {
            UnaryOp::Neg => math::neg(),
            UnaryOp::Exp => math::exp(),
            UnaryOp::Ln => math::ln(),
            UnaryOp::Recip => math::recip(),
            UnaryOp::Rsqrt => math::rsqrt(),
            UnaryOp::Sigmoid => sigmoid(),
            UnaryOp::Sqrt => math::sqrt(),
            UnaryOp::Square => math::square(),
            UnaryOp::Tanh => math::tanh(),
        }),
        PlanOp::EinSum(axes) => Box::new(EinSum::new(axes.parse::<AxesMapping>().map_err(text)?, f32::datum_type())),
        PlanOp::AddAxis(axis) => Box::new(AxisOp::Add(*axis)),
        PlanOp::RemoveAxis(axis) => Box::new(AxisOp::Rm(*axis)),
        PlanOp::MoveAxis { from, to } => Box::new(AxisOp::Move(*from, *to)),
        PlanOp::Reshape { at, from, to } => {
            let dimensions = |sizes: &[usize]| sizes.iter().map(|size| size.to_dim()).collect();
            Box::new(AxisOp::Reshape(*at, dimensions(from), dimensions(to)))
        }
        PlanOp::Broadcast => {
            Box::new(MultiBroadcastTo { shape: ShapeFact::from_dims(shape.iter().map(ToDim::to_dim)) })
        }
        PlanOp::Concat { axis } => Box::new(TypedConcat { axis: *axis }),
        PlanOp::Slice { axis, start, end } => Box::new(Slice::new(*axis, *start, *end)),
        PlanOp::Reduce { axes, reducer } => {
            let reducer = match reducer {
                ReduceOp::Max => Reducer::Max,
                ReduceOp::Min => Reducer::Min,
                ReduceOp::Sum => Reducer::Sum,
            };
            Box::new(Reduce { axes: axes.as_slice().into(), reducer })
        }
        PlanOp::Softmax { axes } => Box::new(Softmax::new(axes.as_slice().into(), None, SoftmaxKind::default())),
    })
}

#[cfg(test)]
mod tests {
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use serde::Deserialize;

    use super::*;
    use crate::features::{TextWindow, extract};

    #[derive(Deserialize)]
    struct Golden {
        models: Vec<String>,
        cases: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        name: String,
        parts: Vec<(String, usize)>,
        chars: u64,
        estimated_tokens: u64,
        slots: Vec<u16>,
        weight_bits: Vec<u32>,
        surface_bits: Vec<u32>,
        quality: Vec<f64>,
        output_tokens: Vec<f64>,
    }

    /// What Python and onnxruntime made of the same texts when the predictor was trained.
    fn golden() -> Golden {
        serde_json::from_str(include_str!("../models/golden.json")).unwrap()
    }

    fn window(parts: &[(String, usize)]) -> TextWindow {
        let mut window = TextWindow::default();
        for (piece, times) in parts {
            (0..*times).for_each(|_| window.push_str(piece));
        }
        window
    }

    #[test]
    fn features_equal_those_of_training_bit_for_bit() {
        for case in golden().cases {
            let window = window(&case.parts);
            let features = extract(&window);
            let (slots, weights): (Vec<u16>, Vec<u32>) = features.slots.iter().map(|(s, w)| (*s, w.to_bits())).unzip();
            assert_eq!(window.chars(), case.chars, "{}", case.name);
            assert_eq!(window.estimated_tokens(), case.estimated_tokens, "{}", case.name);
            assert_eq!(slots, case.slots, "{}", case.name);
            assert_eq!(weights, case.weight_bits, "{}", case.name);
            for (i, (ours, theirs)) in features.surface.iter().zip(&case.surface_bits).enumerate() {
                assert_eq!(*ours, f32::from_bits(*theirs), "{}: surface {i}", case.name);
            }
        }
    }

    #[test]
    fn estimates_equal_onnxruntime() {
        let predictor = Predictor::load().unwrap();
        let golden = golden();
        assert_eq!(predictor.models(), golden.models);
        for case in golden.cases {
            let Prediction { estimates, .. } = predictor.predict(&extract(&window(&case.parts))).unwrap();
            assert_eq!(estimates.len(), golden.models.len());
            for (estimate, (quality, tokens)) in estimates.iter().zip(case.quality.iter().zip(&case.output_tokens)) {
                assert!((estimate.quality - quality).abs() < 1e-4, "{}: {estimate:?}, {quality}", case.name);
                assert!((estimate.output_tokens / tokens - 1.0).abs() < 1e-4, "{}: {estimate:?}, {tokens}", case.name);
            }
        }
    }

    #[test]
    fn threads_may_share_a_predictor() {
        fn shared<T: Send + Sync>(_: &T) {}
        shared(&Predictor::load().unwrap());
    }

    #[test]
    fn features_from_elsewhere_give_no_estimate_or_a_sound_one() {
        let predictor = Predictor::load().unwrap();
        let none = [
            Features { slots: vec![(u16::MAX, 1.0)], surface: [0.0; SURFACE] },
            Features { slots: vec![(1, f32::NAN)], surface: [0.0; SURFACE] },
            Features { slots: vec![(1, f32::MAX), (2, f32::MAX)], surface: [0.0; SURFACE] },
            Features { slots: vec![(1, 1.0)], surface: [f32::INFINITY; SURFACE] },
        ];
        for features in none {
            assert_eq!(predictor.predict(&features), None, "{features:?}");
        }
        for value in [f32::MAX, f32::MIN, 1e20, -1e20] {
            let features = Features { slots: vec![(1, 1.0)], surface: [value; SURFACE] };
            for estimate in predictor.predict(&features).unwrap().estimates {
                assert!(
                    (0.0..=1.0).contains(&estimate.quality) && estimate.output_tokens >= 1.0,
                    "{value}: {estimate:?}"
                );
            }
        }
    }
}
