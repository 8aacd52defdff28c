//! The soft assignment to prototypes as one operation of tract's, whose own needs kernels that register themselves at start-up:
//! `vendor/inventory` says why nothing does here.

use tract_core::internal::*;

use super::row;

/// `exp(x - max x) / sum exp(x - max x)` over one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Softmax {
    /// Shape of input and output.
    pub(super) shape: TVec<usize>,
}

impl Softmax {
    fn apply(input: &[f32], output: &mut [f32]) {
        let greatest = input.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0.0;
        for (output, input) in output.iter_mut().zip(input) {
            *output = (input - greatest).exp();
            sum += *output;
        }
        // At least 1: the greatest contributes that.
        let scale = 1.0 / sum;
        output.iter_mut().for_each(|value| *value *= scale);
    }
}

impl Op for Softmax {
    fn name(&self) -> StaticName {
        "Softmax".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Softmax {
    op_out_of_plan!();

    fn eval(&self, _context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let apply =
            |rows: &[&[f32]], output: &mut [f32]| Softmax::apply(rows.first().copied().unwrap_or_default(), output);
        row::eval(&self.shape, &inputs, apply)
    }
}

impl TypedOp for Softmax {
    fn output_facts(&self, _inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(f32::fact(&self.shape)))
    }

    as_op!();
}
