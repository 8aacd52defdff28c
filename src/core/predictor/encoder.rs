//! What surrounds the plan: from features to its standardised input, and from there to familiarity.

use std::ops::Range;

use super::plan::{Plan, TABLE_BLOCK};
use crate::features::{Features, SURFACE, TABLE_COLUMNS};

/// The table of slots, row by row, each filled up to whole blocks.
const TABLE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/predictor_table.bin"));
/// Blocks of a row.
const BLOCKS: usize = TABLE_COLUMNS.div_ceil(TABLE_BLOCK);
/// Values of the plan's input: the embedding and the surface features.
pub(super) const WIDTH: usize = TABLE_COLUMNS + SURFACE;
/// The graph's own guard against an embedding of length 0.
const SQUARE_SUM_MIN: f32 = 1e-12;

/// The constants before and after the plan; see the initializers of the same names in the ONNX file.
#[derive(Clone, Debug)]
pub(super) struct Encoder {
    bias: [f32; TABLE_COLUMNS],
    mean: [f32; WIDTH],
    inverse_std: [f32; WIDTH],
    metric: [f32; WIDTH],
    low: f32,
    high: f32,
    familiarity_slope: f32,
    familiarity_midpoint: f32,
}

impl Encoder {
    /// Reads the constants; an error names the one that does not fit.
    pub(super) fn new(plan: &Plan, constants: &[f32]) -> Result<Encoder, String> {
        Ok(Encoder {
            bias: vector(plan, constants, "encoder_bias")?,
            mean: vector(plan, constants, "mean")?,
            inverse_std: vector(plan, constants, "inverse_std")?,
            metric: vector(plan, constants, "metric")?,
            low: scalar(plan, constants, "low")?,
            high: scalar(plan, constants, "high")?,
            familiarity_slope: scalar(plan, constants, "familiarity_slope")?,
            familiarity_midpoint: scalar(plan, constants, "familiarity_midpoint")?,
        })
    }

    /// The embedding (the sum of the table's rows, shifted, at length 1) and the surface features, standardised and clipped;
    /// `None` if a feature is not finite or a slot is not in the table.
    pub(super) fn standardised(&self, features: &Features) -> Option<[f32; WIDTH]> {
        let sum = weighted_sum(&features.slots)?;
        // Clipping would turn a NaN into a number.
        if !sum.iter().flatten().chain(&features.surface).all(|value| value.is_finite()) {
            return None;
        }
        let mut z = [0.0; WIDTH];
        let mut square_sum = 0.0;
        for ((z, sum), bias) in z.iter_mut().zip(sum.as_flattened()).zip(&self.bias) {
            *z = sum + bias;
            square_sum += *z * *z;
        }
        let norm = square_sum.max(SQUARE_SUM_MIN).sqrt();
        z.iter_mut().take(TABLE_COLUMNS).for_each(|z| *z /= norm);
        z.iter_mut().skip(TABLE_COLUMNS).zip(&features.surface).for_each(|(z, surface)| *z = *surface);
        for ((z, mean), inverse_std) in z.iter_mut().zip(&self.mean).zip(&self.inverse_std) {
            *z = ((*z - mean) * inverse_std).max(self.low).min(self.high);
        }
        Some(z)
    }

    /// How much a standardised input resembles those of training, 0 to 1: a logistic function of its squared distance to the
    /// nearest prototype, of which the logit holds all but the square of the input itself.
    pub(super) fn familiarity(&self, z: &[f32; WIDTH], greatest_logit: f32) -> f64 {
        let square: f32 = z.iter().zip(&self.metric).map(|(z, metric)| metric * z * z).sum();
        let past = f64::from(square - greatest_logit - self.familiarity_midpoint);
        1.0 / (1.0 + (f64::from(self.familiarity_slope) * past).exp())
    }
}

fn values<'a>(plan: &Plan, constants: &'a [f32], name: &str) -> Option<&'a [f32]> {
    let Range { start, end } = plan.vectors.get(name)?;
    constants.get(*start..*end)
}

fn vector<const N: usize>(plan: &Plan, constants: &[f32], name: &str) -> Result<[f32; N], String> {
    let values = values(plan, constants, name).and_then(|values| values.try_into().ok());
    values.ok_or_else(|| format!("predictor: {name} must have {N} values"))
}

fn scalar(plan: &Plan, constants: &[f32], name: &str) -> Result<f32, String> {
    let [value] = vector(plan, constants, name)?;
    Ok(value)
}

/// The sum of the table's rows at the slots, each times its weight, filled up with zeros; `None` if a slot is not in the table.
fn weighted_sum(slots: &[(u16, f32)]) -> Option<[[f32; TABLE_BLOCK]; BLOCKS]> {
    let (blocks, _) = TABLE.as_chunks::<TABLE_BLOCK>();
    let (rows, _) = blocks.as_chunks::<BLOCKS>();
    let mut sum = [[0.0; TABLE_BLOCK]; BLOCKS];
    for (at, sum) in sum.iter_mut().enumerate() {
        let mut sums = [0.0; TABLE_BLOCK];
        for (slot, weight) in slots {
            let row = rows.get(usize::from(*slot))?.get(at)?;
            sums.iter_mut().zip(row).for_each(|(sum, byte)| *sum += weight * f32::from(byte.cast_signed()));
        }
        *sum = sums;
    }
    Some(sum)
}
