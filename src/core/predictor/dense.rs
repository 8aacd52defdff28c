//! A row times a constant matrix as one operation of tract's; `build/fuse.rs` says why tract's own does not do.

use tract_core::internal::*;

use super::row;

/// Columns whose sums stay in registers.
const BLOCK: usize = 16;

/// `max(input * weights + bias + second input, floor)`.
#[derive(Clone, Debug)]
pub(super) struct Dense {
    /// Shape of the output, which is one row.
    shape: TVec<usize>,
    /// Per block of columns the bias, and the weights row by row.
    blocks: Vec<([f32; BLOCK], Vec<[f32; BLOCK]>)>,
    floor: Vec<f32>,
}

impl Dense {
    /// `weights` row by row, each as long as the output; no bias is one of 0, and no floor one of minus infinity.
    pub(super) fn new(weights: &[f32], shape: &[usize], bias: Option<&[f32]>, floor: Option<&[f32]>) -> Dense {
        let columns = shape.iter().product::<usize>();
        let part = |row: &[f32], start: usize| {
            let mut part = [0.0; BLOCK];
            part.iter_mut().zip(row.iter().skip(start)).for_each(|(to, from)| *to = *from);
            part
        };
        let starts = (0..columns).step_by(BLOCK);
        let blocks = starts
            .map(|start| {
                let rows = weights.chunks(columns.max(1)).map(|row| part(row, start)).collect();
                (part(bias.unwrap_or_default(), start), rows)
            })
            .collect();
        Dense {
            shape: shape.into(),
            blocks,
            floor: floor.map_or_else(|| vec![f32::NEG_INFINITY; columns], <[f32]>::to_vec),
        }
    }

    fn apply(&self, input: &[f32], added: &[f32], output: &mut [f32]) {
        let (mut added, mut floor) = (added.iter(), self.floor.iter());
        for ((bias, rows), output) in self.blocks.iter().zip(output.chunks_mut(BLOCK)) {
            let mut sums = *bias;
            // What a floor of 0 has cut adds nothing.
            for (value, row) in input.iter().zip(rows).filter(|(value, _)| **value != 0.0) {
                sums.iter_mut().zip(row).for_each(|(sum, weight)| *sum += value * weight);
            }
            for (output, sum) in output.iter_mut().zip(sums) {
                let floor = floor.next().copied().unwrap_or(f32::NEG_INFINITY);
                *output = (sum + added.next().copied().unwrap_or(0.0)).max(floor);
            }
        }
    }
}

// tract asks of every operation that it can be compared; weights make no two of these the same.
impl PartialEq for Dense {
    fn eq(&self, other: &Dense) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Dense {}

impl Op for Dense {
    fn name(&self) -> StaticName {
        "Dense".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Dense {
    op_out_of_plan!();

    fn eval(&self, _context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        row::eval(&self.shape, &inputs, |rows, output| {
            let row = |at: usize| rows.get(at).copied().unwrap_or_default();
            self.apply(row(0), row(1), output);
        })
    }
}

impl TypedOp for Dense {
    fn output_facts(&self, _inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(f32::fact(&self.shape)))
    }

    as_op!();
}
