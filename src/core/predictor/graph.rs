//! The plan as operations of tract's.

use std::sync::Arc;

use tract_core::{
    internal::{Datum, OutletId, Tensor, TypedFact, TypedModel, TypedOp},
    model::SpecialOps,
    ops::{konst::Const, source::TypedSource},
};

use super::dense::Dense;
use super::plan::{Plan, PlanNode, PlanOp};
use super::softmax::Softmax;

/// The plan as a graph of tract's.
///
/// # Errors
/// What does not fit, by the name of the node.
pub(super) fn rebuild(plan: &Plan, constants: &[f32]) -> Result<TypedModel, String> {
    let mut model = TypedModel::default();
    let mut outlets: Vec<OutletId> = Vec::with_capacity(plan.nodes.len());
    let mut inputs = Vec::new();
    let outlet = |outlets: &[OutletId], at: &usize| outlets.get(*at).copied().ok_or("names a later node".to_owned());
    for node in &plan.nodes {
        let problem = |problem: String| format!("predictor plan: node {}: {problem}", node.name);
        let from = node.inputs.iter().map(|at| outlet(&outlets, at)).collect::<Result<Vec<_>, _>>().map_err(problem)?;
        let op = operation(node, constants).map_err(problem)?;
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
    let outputs = plan.outputs.iter().map(|at| outlet(&outlets, at)).collect::<Result<Vec<_>, _>>();
    let outputs = outputs.map_err(|problem| format!("predictor plan: an output {problem}"))?;
    model.set_input_outlets(&inputs).map_err(|error| format!("predictor plan: {error:#}"))?;
    model.select_output_outlets(&outputs).map_err(|error| format!("predictor plan: {error:#}"))?;
    Ok(model)
}

fn operation(node: &PlanNode, constants: &[f32]) -> Result<Box<dyn TypedOp>, String> {
    let text = |error: tract_core::prelude::TractError| format!("{error:#}");
    let shape = node.shape.as_slice();
    Ok(match &node.op {
        PlanOp::Source => Box::new(TypedSource::new(TypedFact::dt_shape(f32::datum_type(), shape))),
        PlanOp::Const(at) => {
            let values = part(constants, *at, shape)?;
            let tensor = Tensor::from_shape(shape, values).map_err(text)?;
            Box::new(Const::new(Arc::new(tensor)).map_err(text)?)
        }
        PlanOp::Dense(dense) => {
            let columns = shape.iter().product();
            let weights = part(constants, dense.weights, &[dense.rows, columns])?;
            let bias = dense.bias.map(|at| part(constants, at, &[columns])).transpose()?;
            let floor = dense.floor.map(|at| part(constants, at, &[columns])).transpose()?;
            Box::new(Dense::new(weights, shape, bias, floor))
        }
        PlanOp::Softmax => Box::new(Softmax { shape: shape.into() }),
        other => return Err(format!("is {other:?}, which the module does not execute")),
    })
}

/// A constant of this shape.
fn part<'a>(constants: &'a [f32], at: usize, shape: &[usize]) -> Result<&'a [f32], String> {
    let count = shape.iter().try_fold(1_usize, |count, n| count.checked_mul(*n)).ok_or("is too large")?;
    let end = at.checked_add(count).ok_or("is too large")?;
    constants.get(at..end).ok_or_else(|| "lies outside the file of constants".to_owned())
}
