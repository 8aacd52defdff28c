//! The predictor's plan as a file: what the build script writes and the module reads. Compiled into both.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Operations in evaluation order. Their constants are `f32`, little-endian, in a second file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The ONNX file's metadata, each value JSON.
    pub(crate) metadata: BTreeMap<String, serde_json::Value>,
    /// Columns of the table of slots; the first source is the weighted sum of its rows.
    pub(crate) table_columns: usize,
    pub(crate) nodes: Vec<PlanNode>,
    /// Index of the node that gives the quality of every model and then the ln of output tokens of every model.
    pub(crate) output: usize,
}

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

/// The operations that small perceptrons and linear heads consist of; all of them work on `f32`.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum PlanOp {
    Source,
    /// The tensor's first value in the file of constants, in values.
    Const(usize),
    Binary(BinaryOp),
    Unary(UnaryOp),
    /// Axes in Einstein notation, such as `k,kn->n`.
    EinSum(String),
    AddAxis(usize),
    RemoveAxis(usize),
    MoveAxis {
        from: usize,
        to: usize,
    },
    Reshape {
        at: usize,
        from: Vec<usize>,
        to: Vec<usize>,
    },
    Broadcast,
    Concat {
        axis: usize,
    },
    Slice {
        axis: usize,
        start: usize,
        end: usize,
    },
    Reduce {
        axes: Vec<usize>,
        reducer: ReduceOp,
    },
    Softmax {
        axes: Vec<usize>,
    },
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum BinaryOp {
    Add,
    Sub,
    /// The second operand less the first.
    SubF,
    Mul,
    Div,
    Min,
    Max,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum UnaryOp {
    Neg,
    Exp,
    Ln,
    Recip,
    Rsqrt,
    Sigmoid,
    Sqrt,
    Square,
    Tanh,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum ReduceOp {
    Max,
    Min,
    Sum,
}
