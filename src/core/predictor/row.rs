//! What the operations of our own share: rows of numbers in, one row out.

use tract_core::internal::*;

/// Computes an output of this shape from the rows of the inputs.
pub(super) fn eval(
    shape: &[usize],
    inputs: &[TValue],
    compute: impl FnOnce(&[&[f32]], &mut [f32]),
) -> TractResult<TVec<TValue>> {
    let mut output = Tensor::zero::<f32>(shape)?;
    let views = inputs.iter().map(|input| input.try_as_plain_ram()).collect::<TractResult<TVec<_>>>()?;
    let rows = views.iter().map(|view| view.as_slice::<f32>()).collect::<TractResult<TVec<_>>>()?;
    let mut plain = output.try_as_plain_ram_mut()?;
    compute(&rows, plain.as_slice_mut::<f32>()?);
    Ok(tvec!(output.into_tvalue()))
}
