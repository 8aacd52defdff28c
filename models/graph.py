"""The ONNX graph: (slot_ids [n], slot_weights [n], surface [1, 32]) -> (quality [1, models], ln_output_tokens [1, models]).

build.rs cuts out what lies between `embedding_sum` and `estimates`: the module sums, clips and splits by itself. Vectors are
rows of one, since tract would add and remove that axis around each product.
"""

import json

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import features as F


def build(encoder, head, models, about):
    """`about`: more metadata, name to text."""
    n = len(models)
    f32 = lambda x: np.atleast_2d(np.asarray(x, dtype=np.float32))
    constants = {
        "table": encoder["table"],
        "encoder_bias": f32(encoder["bias"]),
        "square_sum_min": f32([1e-12]),
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
        node("ReduceSum", ["weighted", "first"], "embedding_sum", keepdims=1),
        node("Add", ["embedding_sum", "encoder_bias"], "shifted"),
        node("Mul", ["shifted", "shifted"], "squares"),
        node("ReduceSum", ["squares", "second"], "square_sum", keepdims=1),
        node("Max", ["square_sum", "square_sum_min"], "square_sum_safe"),
        node("Sqrt", ["square_sum_safe"], "norm"),
        node("Div", ["shifted", "norm"], "embedding"),
        node("Concat", ["embedding", "surface"], "x", axis=1),
        node("Max", ["x", "low"], "x_low"),
        node("Min", ["x_low", "high"], "x_clipped"),
        node("MatMul", ["x_clipped", "hidden"], "hidden_product"),
        node("Add", ["hidden_product", "hidden_bias"], "hidden_sum"),
        node("Max", ["hidden_sum", "threshold"], "hidden_out"),
        node("MatMul", ["hidden_out", "output"], "output_product"),
        node("Add", ["output_product", "output_bias"], "estimates"),
        node("Max", ["estimates", "output_low"], "estimates_low"),
        node("Min", ["estimates_low", "output_high"], "estimates_clipped"),
        node("Slice", ["estimates_clipped", "first", "models", "second"], "quality"),
        node("Slice", ["estimates_clipped", "models", "outputs", "second"], "ln_output_tokens"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "routebalance_predictor",
        [
            value("slot_ids", TensorProto.INT64, ["n"]),
            value("slot_weights", TensorProto.FLOAT, ["n"]),
            value("surface", TensorProto.FLOAT, [1, F.SURFACE]),
        ],
        [value("quality", TensorProto.FLOAT, [1, n]), value("ln_output_tokens", TensorProto.FLOAT, [1, n])],
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
