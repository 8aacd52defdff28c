"""The ONNX graph: (slot_ids [n], slot_weights [n], surface [1, 32]) -> what is expected of every model, and familiarity.

src/core/build.rs cuts it at `z`: the module sums, standardises and clips by itself and executes what lies between `z` and the outputs
`estimates` and `prototype_logits`. Vectors are rows of one, since tract would add and remove that axis around each product.
"""

import json

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import features as F
import head as H

OUTPUTS = ("quality", "ln_output_tokens", "quality_sd", "ln_p80", "ln_p90")


def build(encoder, arrays, prior, models, about):
    """`about`: more metadata, name to value."""
    n = len(models)
    slots = len(encoder["table"])
    f32 = lambda x: np.atleast_2d(np.asarray(x, dtype=np.float32))
    at = {f"at_{i}": np.array([i * n], np.int64) for i in range(6)}
    constants = {
        "table": encoder["table"],
        "encoder_bias": f32(encoder["bias"]),
        "square_sum_min": f32([1e-12]),
        "first": np.array([0], np.int64),
        "second": np.array([1], np.int64),
        "zero": f32([0.0]),
        "one": f32([1.0]),
        "ln_length_max": f32([H.LN_LENGTH_MAX]),
        "quality_sd_max": f32([H.QUALITY_SD_MAX]),
        "clip_low": f32(-arrays["clip"]),
        "clip_high": f32(arrays["clip"]),
        "metric": f32(arrays["metric"]).T,
        **at,
        **{name: f32(arrays[name]) for name in arrays if name not in ("clip", "metric")},
    }
    node = lambda op, inputs, output, **attributes: helper.make_node(op, inputs, [output], name=output, **attributes)
    between = lambda name, value, low, high: [
        node("Max", [value, low], f"{name}_low"),
        node("Min", [f"{name}_low", high], name),
    ]
    part = lambda i, name: node("Slice", ["estimates", f"at_{i}", f"at_{i + 1}", "second"], f"{name}_estimate")
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
        node("Sub", ["x", "mean"], "centred"),
        node("Mul", ["centred", "inverse_std"], "standardised"),
        *between("z", "standardised", "clip_low", "clip_high"),
        node("MatMul", ["z", "hidden"], "hidden_product"),
        node("Add", ["hidden_product", "hidden_bias"], "hidden_sum"),
        node("Max", ["hidden_sum", "threshold"], "hidden_out"),
        node("MatMul", ["hidden_out", "output"], "output_product"),
        node("Add", ["output_product", "output_bias"], "shared_estimates"),
        node("MatMul", ["z", "prototype"], "prototype_product"),
        node("Add", ["prototype_product", "prototype_bias"], "prototype_logits"),
        node("Softmax", ["prototype_logits"], "assignment", axis=1),
        node("MatMul", ["assignment", "prototype_values"], "local_estimates"),
        node("Add", ["shared_estimates", "local_estimates"], "estimates"),
        *(part(i, name) for i, name in enumerate(OUTPUTS)),
        *between("quality", "quality_estimate", "zero", "one"),
        *between("ln_output_tokens", "ln_output_tokens_estimate", "zero", "ln_length_max"),
        *between("quality_sd", "quality_sd_estimate", "zero", "quality_sd_max"),
        *between("ln_p80", "ln_p80_estimate", "zero", "ln_length_max"),
        node("Max", ["ln_p90_estimate", "ln_p80"], "ln_p90_low"),
        node("Min", ["ln_p90_low", "ln_length_max"], "ln_p90"),
        node("Mul", ["z", "z"], "z_squares"),
        node("MatMul", ["z_squares", "metric"], "z_length"),
        node("ReduceMax", ["prototype_logits"], "nearest_logit", axes=[1], keepdims=1),
        node("Sub", ["z_length", "nearest_logit"], "distance"),
        node("Sub", ["familiarity_midpoint", "distance"], "nearness"),
        node("Mul", ["nearness", "familiarity_slope"], "familiarity_logit"),
        node("Sigmoid", ["familiarity_logit"], "familiarity"),
    ]
    prototypes = arrays["prototype"].shape[1]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "routebalance_predictor",
        [
            value("slot_ids", TensorProto.INT64, ["n"]),
            value("slot_weights", TensorProto.FLOAT, ["n"]),
            value("surface", TensorProto.FLOAT, [1, F.SURFACE]),
        ],
        [
            *(value(name, TensorProto.FLOAT, [1, n]) for name in OUTPUTS),
            value("familiarity", TensorProto.FLOAT, [1, 1]),
            value("prototype_logits", TensorProto.FLOAT, [1, prototypes]),
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    # Opset 17 and IR 8: the newest pair that the pinned tract is tested with.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="routebalance")
    rounded = lambda values, digits: [round(float(x), digits) for x in values]
    facts = {
        "feature_version": F.FEATURE_VERSION,
        "models": list(models),
        "slots": slots,
        "slot_bits": slots.bit_length() - 1,
        "surface": F.SURFACE,
        "prototypes": prototypes,
        "head_chars": F.HEAD_CHARS,
        "tail_chars": F.TAIL_CHARS,
        "prior_quality": rounded(prior["quality"], 4),
        "prior_quality_sd": rounded(prior["quality_sd"], 4),
        "prior_output_tokens": rounded(np.exp(prior["ln_len"]), 1),
        "prior_ln_p80": rounded(prior["ln_p80"], 4),
        "prior_ln_p90": rounded(prior["ln_p90"], 4),
        **about,
    }
    for key, fact in facts.items():
        model.metadata_props.add(key=key, value=json.dumps(fact))
    onnx.checker.check_model(model, full_check=True)
    return model


def run(session, slots, weights, surface):
    """-> the outputs by name, each a vector."""
    names = [*OUTPUTS, "familiarity", "prototype_logits"]
    values = session.run(names, {"slot_ids": slots, "slot_weights": weights, "surface": surface[None]})
    return {name: value[0] for name, value in zip(names, values)}
