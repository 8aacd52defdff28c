"""The ONNX graph: (slot_ids, slot_weights, surface) -> (quality, ln_output_tokens). build.rs cuts it at `embedding_sum`."""

import json

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import features as F
from head import CLIP, LN_LENGTH_MAX


def build(encoder, head, models, about):
    """`about`: more metadata, name to text."""
    n = len(models)
    f32 = lambda x: np.asarray(x, dtype=np.float32)
    constants = {
        "table": encoder["table"],
        "scale": f32(encoder["scale"]),
        "encoder_bias": f32(encoder["bias"]),
        "norm_min": f32([1e-12]),
        "low": f32([-CLIP]),
        "high": f32([CLIP]),
        "zero": f32([0]),
        "one": f32([1]),
        "ln_length_max": f32([LN_LENGTH_MAX]),
        "first": np.array([0], np.int64),
        "second": np.array([1], np.int64),
        "models": np.array([n], np.int64),
        "outputs": np.array([2 * n], np.int64),
        **{name: f32(value) for name, value in head.items()},
    }
    node = lambda op, inputs, output, **attributes: helper.make_node(op, inputs, [output], name=output, **attributes)
    nodes = [
        node("Gather", ["table", "slot_ids"], "rows", axis=0),
        node("Cast", ["rows"], "rows_f32", to=TensorProto.FLOAT),
        node("Unsqueeze", ["slot_weights", "second"], "column"),
        node("Mul", ["rows_f32", "column"], "weighted"),
        node("ReduceSum", ["weighted", "first"], "embedding_sum", keepdims=0),
        node("Mul", ["embedding_sum", "scale"], "scaled"),
        node("Add", ["scaled", "encoder_bias"], "shifted"),
        node("Mul", ["shifted", "shifted"], "squares"),
        node("ReduceSum", ["squares", "first"], "square_sum", keepdims=1),
        node("Sqrt", ["square_sum"], "norm"),
        node("Max", ["norm", "norm_min"], "safe_norm"),
        node("Div", ["shifted", "safe_norm"], "embedding"),
        node("Concat", ["embedding", "surface"], "x", axis=0),
        node("Sub", ["x", "mean"], "centred"),
        node("Mul", ["centred", "inverse_std"], "unclipped"),
        node("Max", ["unclipped", "low"], "z_low"),
        node("Min", ["z_low", "high"], "z"),
        node("MatMul", ["z", "linear"], "from_ridge"),
        node("MatMul", ["z", "hidden"], "hidden_sum"),
        node("Add", ["hidden_sum", "hidden_bias"], "hidden_shifted"),
        node("Relu", ["hidden_shifted"], "hidden_out"),
        node("MatMul", ["hidden_out", "output"], "from_perceptron"),
        node("Add", ["from_ridge", "from_perceptron"], "both"),
        node("Add", ["both", "output_bias"], "y"),
        node("Slice", ["y", "first", "models", "first"], "quality_raw"),
        node("Max", ["quality_raw", "zero"], "quality_low"),
        node("Min", ["quality_low", "one"], "quality"),
        node("Slice", ["y", "models", "outputs", "first"], "ln_length_raw"),
        node("Max", ["ln_length_raw", "zero"], "ln_length_low"),
        node("Min", ["ln_length_low", "ln_length_max"], "ln_output_tokens"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "routebalance_predictor",
        [
            value("slot_ids", TensorProto.INT64, ["n"]),
            value("slot_weights", TensorProto.FLOAT, ["n"]),
            value("surface", TensorProto.FLOAT, [F.SURFACE]),
        ],
        [value("quality", TensorProto.FLOAT, [n]), value("ln_output_tokens", TensorProto.FLOAT, [n])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    # Opset 17 and IR 8: the newest pair that the pinned tract is tested with.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="routebalance")
    facts = {
        "feature_version": F.FEATURE_VERSION,
        "models": list(models),
        "slots": F.SLOTS,
        "surface": F.SURFACE,
        "head_chars": F.HEAD_CHARS,
        "tail_chars": F.TAIL_CHARS,
        **about,
    }
    for key, fact in facts.items():
        model.metadata_props.add(key=key, value=json.dumps(fact))
    onnx.checker.check_model(model, full_check=True)
    return model
