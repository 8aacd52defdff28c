//! Compiles `models/predictor.onnx` into the plan that the module executes.
//!
//! The ONNX front end would cost the module 12 MB and Envoy 12 s of start-up, so it runs here: the graph is cut at the
//! weighted sum over the table of slots, type-checked and decluttered, and written as operations and constants that
//! `src/predictor.rs` rebuilds. An operation that the module does not know fails the build.

#![allow(clippy::disallowed_methods, reason = "Cargo passes OUT_DIR in the environment")]

use std::{collections::BTreeMap, env, error::Error, fs, path::Path};

use tract_onnx::{
    pb,
    prelude::*,
    tract_core::{
        internal::{AxisOp, DimLike, OutletId, TDim},
        ops::{
            array::{MultiBroadcastTo, Slice, TypedConcat},
            binary::TypedBinOp,
            einsum::EinSum,
            element_wise::ElementWiseOp,
            konst::Const,
            nn::{Reduce, Reducer, Softmax, SoftmaxKind},
            source::TypedSource,
        },
    },
};

#[path = "src/predictor/plan.rs"]
mod plan;
use plan::{BinaryOp, Plan, PlanNode, PlanOp, ReduceOp, UnaryOp};

const MODEL: &str = "models/predictor.onnx";
const TABLE: &str = "table";
const SUM: &str = "embedding_sum";
const OTHER_INPUT: &str = "surface";
/// The halves of this tensor, clipped, are the graph's two outputs; the golden cases hold the module to that.
const ESTIMATES: &str = "estimates";
const OUTPUTS: [&str; 2] = ["quality", "ln_output_tokens"];

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    println!("cargo::rerun-if-changed={MODEL}");
    println!("cargo::rerun-if-changed=src/predictor/plan.rs");
    println!("cargo::rerun-if-changed=build.rs");
    compile().map_err(|error| format!("{MODEL}: {error:#}"))?;
    Ok(())
}

fn compile() -> Result<()> {
    let onnx = tract_onnx::onnx();
    let mut proto = onnx.proto_model_for_path(MODEL)?;
    let metadata = proto
        .metadata_props
        .iter()
        .map(|property| Ok((property.key.clone(), serde_json::from_str(&property.value)?)))
        .collect::<Result<_>>()?;
    let graph = proto.graph.as_mut().ok_or("has no graph")?;
    let table = cut(graph)?;
    let model = onnx.model_for_proto_model(&proto)?.into_typed()?.into_decluttered()?;

    let mut constants = Vec::new();
    let mut nodes = Vec::new();
    let mut index = BTreeMap::new();
    // The sources come first, in the order of the inputs, so that the module need not look for them.
    let inputs = model.input_outlets()?.iter().map(|outlet| outlet.node);
    for id in
        inputs.clone().chain(model.eval_order()?.into_iter().filter(|id| !inputs.clone().any(|input| input == *id)))
    {
        let node = model.node(id);
        let [output] = node.outputs.as_slice() else {
            return Err(
                format!("node {} has {} outputs; the module knows only one", node.name, node.outputs.len()).into()
            );
        };
        let shape =
            output.fact.shape.as_concrete().ok_or_else(|| format!("node {}: its shape is not fixed", node.name))?;
        if output.fact.datum_type != f32::datum_type() {
            return Err(
                format!("node {} gives {:?}; the module knows only f32", node.name, output.fact.datum_type).into()
            );
        }
        let op = operation(node, &mut constants)?;
        let inputs = node.inputs.iter().map(|input: &OutletId| index[&input.node]).collect();
        index.insert(id, nodes.len());
        nodes.push(PlanNode { name: node.name.clone(), op, inputs, shape: shape.to_vec() });
    }
    let [output] = model.output_outlets()? else { return Err("the cut graph has not exactly one output".into()) };
    let output = index[&output.node];

    let table_columns = *table.shape().last().ok_or("the table is a scalar")?;
    let table =
        table.try_as_plain_ram()?.as_slice::<i8>()?.iter().map(|value| value.cast_unsigned()).collect::<Vec<u8>>();
    let plan = Plan { metadata, table_columns, nodes, output };
    let out = env::var("OUT_DIR")?;
    let out = Path::new(&out);
    fs::write(out.join("predictor_plan.json"), serde_json::to_vec(&plan)?)?;
    fs::write(
        out.join("predictor_constants.bin"),
        constants.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>(),
    )?;
    fs::write(out.join("predictor_table.bin"), table)?;
    Ok(())
}

/// Takes out the table and everything before the weighted sum of its rows, which becomes an input, and what
/// follows the estimates: clipping and splitting them costs the plan as many operations as computing them.
fn cut(graph: &mut pb::GraphProto) -> Result<Tensor> {
    let names = graph.output.iter().map(|output| output.name.as_str()).collect::<Vec<_>>();
    if names != OUTPUTS {
        return Err(format!("its outputs are {names:?} instead of {OUTPUTS:?}").into());
    }
    let mut wanted = vec![ESTIMATES.to_owned()];
    let mut kept = Vec::new();
    // Backwards from the estimates; nodes of an ONNX graph are sorted.
    for node in graph.node.drain(..).rev() {
        if node.output.iter().any(|output| wanted.contains(output) && output != SUM) {
            wanted.extend(node.input.iter().cloned());
            kept.push(node);
        }
    }
    kept.reverse();
    graph.node = kept;
    if !wanted.iter().any(|name| name == SUM) {
        return Err(format!("{ESTIMATES} does not depend on {SUM}").into());
    }
    let at =
        graph.initializer.iter().position(|tensor| tensor.name == TABLE).ok_or(format!("has no tensor {TABLE}"))?;
    let proto = graph.initializer.remove(at);
    let (Ok([rows, columns]), true) =
        (<[i64; 2]>::try_from(proto.dims.clone()), proto.data_type == pb::tensor_proto::DataType::Int8 as i32)
    else {
        return Err(format!("tensor {TABLE} must be a matrix of int8").into());
    };
    let bytes = if proto.raw_data.is_empty() {
        proto.int32_data.iter().map(|value| *value as i8).collect::<Vec<i8>>()
    } else {
        proto.raw_data.iter().map(|byte| byte.cast_signed()).collect()
    };
    let table = Tensor::from_shape(&[rows as usize, columns as usize], &bytes)?;
    graph.initializer.retain(|tensor| wanted.contains(&tensor.name));

    let mut sum = graph
        .input
        .iter()
        .find(|input| input.name == OTHER_INPUT)
        .ok_or(format!("has no input {OTHER_INPUT}"))?
        .clone();
    graph.input.retain(|input| input.name == OTHER_INPUT);
    sum.name = SUM.to_owned();
    if let Some(pb::type_proto::Value::TensorType(tensor)) =
        sum.r#type.as_mut().and_then(|r#type| r#type.value.as_mut())
    {
        let dimension = |size| pb::tensor_shape_proto::Dimension {
            value: Some(pb::tensor_shape_proto::dimension::Value::DimValue(size)),
            ..Default::default()
        };
        tensor.shape = Some(pb::TensorShapeProto { dim: vec![dimension(1), dimension(columns)] });
    }
    graph.input.insert(0, sum);
    // Without a type: it is inferred.
    graph.output = vec![pb::ValueInfoProto { name: ESTIMATES.to_owned(), ..Default::default() }];
    Ok(table)
}

fn operation(node: &TypedNode, constants: &mut Vec<f32>) -> Result<PlanOp> {
    let unknown = |what: String| -> Box<dyn Error> {
        format!("node {}: the module does not know the operation {what}; add it to src/predictor/plan.rs, build.rs and src/predictor.rs", node.name).into()
    };
    if node.op_is::<TypedSource>() {
        return Ok(PlanOp::Source);
    }
    if let Some(op) = node.op_as::<Const>() {
        let at = constants.len();
        constants.extend_from_slice(op.val().try_as_plain_ram()?.as_slice::<f32>()?);
        return Ok(PlanOp::Const(at));
    }
    if let Some(op) = node.op_as::<TypedBinOp>() {
        return Ok(PlanOp::Binary(match op.0.name() {
            "Add" => BinaryOp::Add,
            "Sub" => BinaryOp::Sub,
            "SubF" => BinaryOp::SubF,
            "Mul" => BinaryOp::Mul,
            "Div" => BinaryOp::Div,
            "Min" => BinaryOp::Min,
            "Max" => BinaryOp::Max,
            other => return Err(unknown(other.to_owned())),
        }));
    }
    if let Some(op) = node.op_as::<ElementWiseOp>() {
        return Ok(PlanOp::Unary(match op.0.name().as_str() {
            "Neg" => UnaryOp::Neg,
            "Exp" => UnaryOp::Exp,
            "Ln" => UnaryOp::Ln,
            "Recip" => UnaryOp::Recip,
            "Rsqrt" => UnaryOp::Rsqrt,
            "Sigmoid" => UnaryOp::Sigmoid,
            "Sqrt" => UnaryOp::Sqrt,
            "Square" => UnaryOp::Square,
            "Tanh" => UnaryOp::Tanh,
            other => return Err(unknown(other.to_owned())),
        }));
    }
    if let Some(op) = node.op_as::<EinSum>() {
        if op.q_params.is_some() || op.operating_dt != f32::datum_type() {
            return Err(unknown(format!("{op:?}")));
        }
        return Ok(PlanOp::EinSum(op.axes.to_string()));
    }
    if let Some(op) = node.op_as::<AxisOp>() {
        return Ok(match op {
            AxisOp::Add(axis) => PlanOp::AddAxis(*axis),
            AxisOp::Rm(axis) => PlanOp::RemoveAxis(*axis),
            AxisOp::Move(from, to) => PlanOp::MoveAxis { from: *from, to: *to },
            AxisOp::Reshape(at, from, to) => PlanOp::Reshape { at: *at, from: concrete(from)?, to: concrete(to)? },
        });
    }
    if node.op_is::<MultiBroadcastTo>() {
        return Ok(PlanOp::Broadcast);
    }
    if let Some(op) = node.op_as::<TypedConcat>() {
        return Ok(PlanOp::Concat { axis: op.axis });
    }
    if let Some(op) = node.op_as::<Slice>() {
        return Ok(PlanOp::Slice { axis: op.axis, start: op.start.to_usize()?, end: op.end.to_usize()? });
    }
    if let Some(op) = node.op_as::<Reduce>() {
        let reducer = match op.reducer {
            Reducer::Max => ReduceOp::Max,
            Reducer::Min => ReduceOp::Min,
            Reducer::Sum => ReduceOp::Sum,
            other => return Err(unknown(format!("Reduce<{other:?}>"))),
        };
        return Ok(PlanOp::Reduce { axes: op.axes.to_vec(), reducer });
    }
    if let Some(op) = node.op_as::<Softmax>()
        && op.quant_output_dt.is_none()
        && op.kind == SoftmaxKind::Softmax
    {
        return Ok(PlanOp::Softmax { axes: op.axes.to_vec() });
    }
    Err(unknown(node.op.name().to_string()))
}

fn concrete(dimensions: &[TDim]) -> Result<Vec<usize>> {
    dimensions.iter().map(|dimension| Ok(dimension.to_usize()?)).collect()
}
