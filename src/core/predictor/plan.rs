//! The predictor's plan as a file: what the build script writes and the module reads. Compiled into both.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Operations in evaluation order. Their constants are `f32`, little-endian, in a second file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The ONNX file's metadata, each value JSON.
    pub(crate) metadata: BTreeMap<String, serde_json::Value>,
    /// Where constants that are not the plan's own stand in the file of constants, in values, by name.
    pub(crate) vectors: BTreeMap<String, Range<usize>>,
    /// The only source comes first.
    pub(crate) nodes: Vec<PlanNode>,
    /// Indices of the nodes that give the estimates and the prototypes' logits.
    pub(crate) outputs: Vec<usize>,
}

/// Columns of the table that are summed at once; its rows are filled up to a multiple of it.
pub(crate) const TABLE_BLOCK: usize = 16;

/// One operation with one output.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PlanNode {
    pub(crate) name: String,
    pub(crate) op: PlanOp,
    /// Indices of earlier nodes.
    pub(crate) inputs: Vec<usize>,
    /// Shape of the output.
    pub(crate) shape: Vec<usize>,
}

/// The operations that a small perceptron and a soft assignment consist of; all of them work on `f32`.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum PlanOp {
    Source,
    /// The tensor's first value in the file of constants, in values.
    Const(usize),
    /// A row times a matrix, plus a constant row or the second input, but at least a constant row.
    Dense(PlanDense),
    /// Over all of a row.
    Softmax,
    /// In the build script only: it makes them part of a `Dense`.
    Binary(BinaryOp),
    /// Axes in Einstein notation, such as `k,kn->n`; in the build script only, like `Binary`.
    EinSum(String),
}

/// Constants by their first value in the file of constants, in values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PlanDense {
    /// Row by row.
    pub(crate) weights: usize,
    /// Values of the input.
    pub(crate) rows: usize,
    pub(crate) bias: Option<usize>,
    pub(crate) floor: Option<usize>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum BinaryOp {
    Add,
    Max,
}
