//! Compiles the predictor's ONNX file into the plan that the module executes.
//!
//! The ONNX front end would cost the module 12 MB and Envoy 12 s of start-up, so it runs in a program of its own, once per ONNX file, when the core is built (`src/core/build.rs`): the graph is cut where the
//! module's own sum over the table of slots ends, type-checked and decluttered, and written as operations and constants that
//! `src/core/predictor/graph.rs` rebuilds. An operation that the module does not know fails the build.

use std::{collections::BTreeMap, env, error::Error, fs, iter, ops::RangeInclusive, path::Path};

use tract_onnx::{
    pb,
    prelude::*,
    tract_core::{
        internal::OutletId,
        ops::{
            binary::TypedBinOp,
            einsum::EinSum,
            konst::Const,
            nn::{Softmax, SoftmaxKind},
            source::TypedSource,
        },
    },
};

#[path = "../core/predictor/plan.rs"]
mod plan;
use plan::{BinaryOp, Plan, PlanNode, PlanOp, TABLE_BLOCK};
mod fuse;

const TABLE: &str = "table";
/// Where the graph is cut: the module computes this tensor, the standardised and clipped input of everything after it.
const CUT: &str = "z";
/// What the plan computes. Clipping and splitting the estimates costs the plan as many operations as computing them, so the
/// module does that too; the golden cases hold it to the graph's own outputs.
const OUTPUTS: [&str; 2] = ["estimates", "prototype_logits"];
/// Rows of one that the module reads; what they are is said in src/core/predictor/encoder.rs.
const VECTORS: [&str; 4] = ["encoder_bias", "mean", "inverse_std", "metric"];
const SCALARS: [&str; 2] = ["familiarity_slope", "familiarity_midpoint"];
/// Shapes that the module's constants and its memory allow.
const SLOT_BITS: RangeInclusive<u32> = 12..=14;
const TABLE_COLUMNS: RangeInclusive<usize> = 16..=64;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    let [file, folder] = arguments.as_slice() else {
        return Err("usage: routebalance-onnx PREDICTOR.onnx FOLDER".into());
    };
    let (file, folder) = (Path::new(file), Path::new(folder));
    compile(file, folder).map_err(|error| format!("{}: {error:#}", file.display()).into())
}

/// Writes the plan of the ONNX file, its constants, its table and the table's shape into the folder.
fn compile(file: &Path, folder: &Path) -> Result<()> {
    let onnx = tract_onnx::onnx();
    let mut proto = onnx.proto_model_for_path(file)?;
    let metadata = proto
        .metadata_props
        .iter()
        .map(|property| Ok((property.key.clone(), serde_json::from_str(&property.value)?)))
        .collect::<Result<BTreeMap<String, serde_json::Value>>>()?;
    let graph = proto.graph.as_mut().ok_or("has no graph")?;
    let table = table(graph)?;
    let mut constants = Vec::new();
    let mut vectors = BTreeMap::new();
    for (name, values) in encoder(graph)? {
        vectors.insert(name, constants.len()..constants.len() + values.len());
        constants.extend(values);
    }
    cut(graph)?;
    let model = onnx.model_for_proto_model(&proto)?.into_typed()?.into_decluttered()?;

    let mut nodes = Vec::new();
    let mut index = BTreeMap::new();
    // The source comes first, so that the module need not look for it.
    let [input] = model.input_outlets()? else { return Err("the cut graph has not exactly one input".into()) };
    for id in iter::once(input.node).chain(model.eval_order()?.into_iter().filter(|id| *id != input.node)) {
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
    let outputs = model.output_outlets()?.iter().map(|outlet| index[&outlet.node]).collect();
    let (nodes, outputs) = fuse::dense(nodes, outputs);
    if let Some(node) = nodes.iter().find(|node| matches!(node.op, PlanOp::Binary(_) | PlanOp::EinSum(_))) {
        return Err(unknown(&node.name, &format!("{:?} outside a layer", node.op)));
    }
    let plan = Plan { metadata, vectors, nodes, outputs };

    fs::write(folder.join("predictor_plan.json"), serde_json::to_vec(&plan)?)?;
    fs::write(
        folder.join("predictor_constants.bin"),
        constants.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>(),
    )?;
    let shape = format!(
        "/// Bits of a slot's number.\npub(crate) const SLOT_BITS: u32 = {};\n\
         /// Columns of the predictor's table.\npub(crate) const TABLE_COLUMNS: usize = {};\n",
        table.slot_bits, table.columns
    );
    fs::write(folder.join("predictor_shape.rs"), shape)?;
    fs::write(folder.join("predictor_table.bin"), table.padded())?;
    Ok(())
}

/// The table of slots, taken out of the graph.
struct Table {
    slot_bits: u32,
    columns: usize,
    /// Row by row; two's complement.
    bytes: Vec<u8>,
}

impl Table {
    /// The rows, each filled up with zeros to whole blocks.
    fn padded(&self) -> Vec<u8> {
        let row = |row: &[u8]| {
            let mut row = row.to_vec();
            row.resize(self.columns.next_multiple_of(TABLE_BLOCK), 0);
            row
        };
        self.bytes.chunks(self.columns).flat_map(row).collect()
    }
}

fn table(graph: &mut pb::GraphProto) -> Result<Table> {
    let proto = take(graph, TABLE)?;
    let (Ok([rows, columns]), true) =
        (<[i64; 2]>::try_from(proto.dims.clone()), proto.data_type == pb::tensor_proto::DataType::Int8 as i32)
    else {
        return Err(format!("tensor {TABLE} must be a matrix of int8").into());
    };
    let bytes = if proto.raw_data.is_empty() {
        proto.int32_data.iter().map(|value| (*value as i8).cast_unsigned()).collect()
    } else {
        proto.raw_data.to_vec()
    };
    let (rows, columns) = (usize::try_from(rows)?, usize::try_from(columns)?);
    let slot_bits = rows.ilog2();
    if !(rows.is_power_of_two() && SLOT_BITS.contains(&slot_bits) && TABLE_COLUMNS.contains(&columns)) {
        return Err(format!(
            "tensor {TABLE} is {rows} x {columns}; it must have 2^12 to 2^14 rows and 16 to 64 columns"
        )
        .into());
    }
    Ok(Table { slot_bits, columns, bytes })
}

fn take(graph: &mut pb::GraphProto, name: &str) -> Result<pb::TensorProto> {
    let at = graph.initializer.iter().position(|tensor| tensor.name == name).ok_or(format!("has no tensor {name}"))?;
    Ok(graph.initializer.remove(at))
}

/// The constants of what the module computes before the cut and after the plan, by name.
fn encoder(graph: &pb::GraphProto) -> Result<Vec<(String, Vec<f32>)>> {
    let values = |name: &str| -> Result<Vec<f32>> {
        let tensor = graph.initializer.iter().find(|tensor| tensor.name == name);
        let tensor = tensor.ok_or(format!("has no tensor {name}"))?;
        if tensor.data_type != pb::tensor_proto::DataType::Float as i32 {
            return Err(format!("tensor {name} must be float").into());
        }
        let (bytes, _) = tensor.raw_data.as_chunks::<4>();
        let raw = bytes.iter().map(|bytes| f32::from_le_bytes(*bytes));
        Ok(if tensor.raw_data.is_empty() { tensor.float_data.clone() } else { raw.collect() })
    };
    let mut found = Vec::new();
    for name in VECTORS.into_iter().chain(SCALARS) {
        found.push((name.to_owned(), values(name)?));
    }
    let made_by = |name: &str| {
        let node = graph.node.iter().find(|node| node.output.iter().any(|output| output == name));
        node.ok_or_else(|| format!("no node makes {name}"))
    };
    // Clip(x, low, high) or Min(Max(x, low), high).
    let last = made_by(CUT)?;
    let (low, high) = match (last.op_type.as_str(), last.input.as_slice()) {
        ("Clip", [_, low, high]) => (low, high),
        ("Min", [inner, high]) => match made_by(inner)? {
            pb::NodeProto { op_type, input, .. } if op_type == "Max" && input.len() == 2 => (&input[1], high),
            _ => return Err(format!("{CUT} must be Clip, or Min after Max").into()),
        },
        _ => return Err(format!("{CUT} must be Clip, or Min after Max").into()),
    };
    found.push(("low".to_owned(), values(low)?));
    found.push(("high".to_owned(), values(high)?));
    Ok(found)
}

/// Leaves what lies between the cut and the outputs of the plan.
fn cut(graph: &mut pb::GraphProto) -> Result<()> {
    let mut wanted = OUTPUTS.map(str::to_owned).to_vec();
    let mut kept = Vec::new();
    // Backwards from the outputs; nodes of an ONNX graph are sorted.
    for node in graph.node.drain(..).rev() {
        if node.output.iter().any(|output| wanted.contains(output) && output != CUT) {
            wanted.extend(node.input.iter().cloned());
            kept.push(node);
        }
    }
    kept.reverse();
    for output in OUTPUTS {
        if !kept.iter().any(|node| node.output.iter().any(|name| name == output)) {
            return Err(format!("no node makes {output}").into());
        }
    }
    graph.node = kept;
    if let Some(other) = graph.input.iter().find(|input| wanted.contains(&input.name)) {
        return Err(format!("{OUTPUTS:?} depend on {} not only through {CUT}", other.name).into());
    }
    let mean = graph.initializer.iter().find(|tensor| tensor.name == "mean").ok_or("has no tensor mean")?;
    let width = mean.dims.iter().product::<i64>();
    graph.initializer.retain(|tensor| wanted.contains(&tensor.name));

    let mut input = graph.input.first().ok_or("has no input")?.clone();
    CUT.clone_into(&mut input.name);
    if let Some(pb::type_proto::Value::TensorType(tensor)) =
        input.r#type.as_mut().and_then(|r#type| r#type.value.as_mut())
    {
        let dimension = |size| pb::tensor_shape_proto::Dimension {
            value: Some(pb::tensor_shape_proto::dimension::Value::DimValue(size)),
            ..Default::default()
        };
        tensor.elem_type = pb::tensor_proto::DataType::Float as i32;
        tensor.shape = Some(pb::TensorShapeProto { dim: vec![dimension(1), dimension(width)] });
    }
    graph.input = vec![input];
    // Without types: they are inferred.
    graph.output =
        OUTPUTS.iter().map(|name| pb::ValueInfoProto { name: (*name).to_owned(), ..Default::default() }).collect();
    Ok(())
}

fn unknown(node: &str, what: &str) -> Box<dyn Error> {
    format!("node {node}: the module does not know the operation {what}; add it to src/core/predictor/plan.rs, src/core/predictor/graph.rs and src/onnx/main.rs").into()
}

fn operation(node: &TypedNode, constants: &mut Vec<f32>) -> Result<PlanOp> {
    let unknown = |what: &str| unknown(&node.name, what);
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
            "Max" => BinaryOp::Max,
            other => return Err(unknown(other)),
        }));
    }
    if let Some(op) = node.op_as::<EinSum>() {
        if op.q_params.is_some() || op.operating_dt != f32::datum_type() {
            return Err(unknown(&format!("{op:?}")));
        }
        return Ok(PlanOp::EinSum(op.axes.to_string()));
    }
    if let Some(op) = node.op_as::<Softmax>()
        && op.quant_output_dt.is_none()
        && op.kind == SoftmaxKind::Softmax
        && let Some([1, _]) = node.outputs.first().and_then(|output| output.fact.shape.as_concrete())
        && op.axes.as_slice() == [1]
    {
        return Ok(PlanOp::Softmax);
    }
    Err(unknown(&node.op.name()))
}
