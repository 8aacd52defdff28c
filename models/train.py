"""Trains the predictor: predictor.onnx, golden.json and a report of held-out measures.

    python3 models/train.py                                        the shipped predictor, from models/data
    python3 models/train.py --data FILE [FILE...] [--models A,B] [--exclude-dataset NAME] [--tariffs FILE.json]
                            --out DIR --report FILE.json           your own logs (format: README.md)
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from sklearn.model_selection import GroupShuffleSplit
from sklearn.neighbors import NearestNeighbors

import evaluate
import golden
import graph
import head
import rows as training_rows

HERE = Path(__file__).parent
SPLITS = 5
LAMBDAS = [0, 250, 500, 750, 1_000, 2_000, 3_000, 4_000, 5_000, 7_500, 10_000]  # Quality per USD.


def predicted_cost(rows, tariffs, ln_len):
    """USD per request: input tokens as estimated, output tokens from ln_len."""
    return (rows.tokens[:, None] * tariffs[:, 0] + np.exp(ln_len) * tariffs[:, 1]) / 1e6


def neighbours(embedding, surface, train, test, targets, k):
    """The paper's head: the mean of the k nearest training prompts."""
    mean, std = surface[train].mean(0), np.maximum(surface[train].std(0), 1e-6)
    # Both halves of the vector have length about 1.
    x = np.hstack([embedding, (surface - mean) / std / np.sqrt(surface.shape[1])])
    _, near = NearestNeighbors(n_neighbors=min(k, train.sum())).fit(x[train]).kneighbors(x[test])
    return targets[train][near].mean(1)


def measure(rows, embedding, tariffs, train, test, dataset=None):
    """Measures on `test` of heads fitted on `train`."""
    models = len(rows.models)
    prior_q, prior_ln = rows.q[train].mean(0), rows.ln_len[train].mean(0)
    if dataset is not None:
        test = test & (rows.datasets == dataset)
    targets = np.hstack([rows.q, rows.ln_len])
    n = test.sum()
    heads = {
        "head": head.predict(head.fit(embedding[train], rows.surface[train], rows.q[train], rows.ln_len[train]), embedding[test], rows.surface[test]),
        "prior": (np.tile(prior_q, (n, 1)), np.tile(prior_ln, (n, 1))),
    }
    for k in (10, 100):
        near = neighbours(embedding, rows.surface, train, test, targets, k)
        heads[f"knn{k}"] = near[:, :models], near[:, models:]
    cost = predicted_cost(rows, tariffs, rows.ln_len)[test]
    at = lambda ln: (rows.tokens[test][:, None] * tariffs[:, 0] + np.exp(ln) * tariffs[:, 1]) / 1e6
    return {
        name: evaluate.measures(rows.q[test], rows.ln_len[test], cost, q, ln, at(ln), prior_q, prior_ln, rows.datasets[test])
        for name, (q, ln) in heads.items()
    }


def summary(results):
    """Mean and standard deviation over splits; a measure that a split does not reach is counted, not averaged."""
    out = {}
    for name in results[0]:
        out[name] = {}
        for key in results[0][name]:
            values = [r[name][key] for r in results if r[name][key] is not None]
            out[name][key] = {"mean": float(np.mean(values)), "sd": float(np.std(values)), "splits": len(values)} if values else None
    return out


def load_tariffs(path, models):
    table = json.loads(Path(path).read_text())
    for model in models:
        if model not in table:
            raise training_rows.BadRow(f"{path}: no tariff for model {model}")
    return np.array([table[model] for model in models], dtype=float)


def policy_table(rows, q, ln, tariffs, test, weights):
    """What argmax(quality - lambda * cost) gives on the test prompts, beside one model for all and the fleet's round robin."""
    cost = predicted_cost(rows, tariffs, rows.ln_len)[test]
    true_q = rows.q[test]
    estimated = (rows.tokens[test][:, None] * tariffs[:, 0] + np.exp(ln) * tariffs[:, 1]) / 1e6
    row = lambda name, c, quality, share: {"policy": name, "quality": quality, "usd_per_1000": 1_000 * c, "share": [round(float(s), 3) for s in share]}
    out = [row(model, cost[:, i].mean(), true_q[:, i].mean(), np.eye(len(rows.models))[i]) for i, model in enumerate(rows.models)]
    if weights is not None:
        out.append(row("round robin over instances", cost.mean(0) @ weights, true_q.mean(0) @ weights, weights))
    for value, c, quality, share in evaluate.sweep(true_q, cost, q, estimated, LAMBDAS):
        out.append(row(f"lambda {value:g}", c, quality, share))
    return out


def run(arguments):
    rows = training_rows.load(arguments.data, arguments.models and arguments.models.split(","), arguments.exclude_dataset)
    tariffs = load_tariffs(arguments.tariffs, rows.models)
    encoder = dict(np.load(HERE / "encoder.npz"))
    embedding = head.embed(rows, encoder)
    train, test = rows.splits == "train", rows.splits == "test"
    if not train.any():
        raise training_rows.BadRow("no row of split train")
    held_out = set(rows.groups[~train])
    if held_out & set(rows.groups[train]):
        raise training_rows.BadRow("split: the same prompt is in train and in another split")
    demo_path = HERE / "data" / "demo_prompts.jsonl"
    demo = [json.loads(line) for line in demo_path.read_text(encoding="utf-8").splitlines()]
    if {training_rows.fingerprint(row["prompt"]) for row in demo} & set(rows.groups[train]):
        raise training_rows.BadRow(f"{demo_path}: a demo prompt is among the training rows")

    fitted = head.fit(embedding[train], rows.surface[train], rows.q[train], rows.ln_len[train])
    about = {
        "trained_on": {name: int((train & (rows.datasets == name)).sum()) for name in sorted(set(rows.datasets))},
        "prior_quality": [round(float(x), 4) for x in rows.q[train].mean(0)],
        "prior_output_tokens": [round(float(x), 1) for x in np.exp(rows.ln_len[train].mean(0))],
    }
    model = graph.build(encoder, fitted, rows.models, about)
    arguments.out.mkdir(parents=True, exist_ok=True)
    onnx_path = arguments.out / "predictor.onnx"
    onnx_path.write_bytes(model.SerializeToString(deterministic=True))
    session = onnxruntime.InferenceSession(str(onnx_path), providers=["CPUExecutionProvider"])
    infer = lambda i: session.run(None, {"slot_ids": rows.slots[i], "slot_weights": rows.weights[i], "surface": rows.surface[i][None]})

    q, ln = head.predict(fitted, embedding, rows.surface)
    exported = [np.concatenate(x) for x in zip(*(infer(i) for i in range(len(rows))))]
    error = max(np.abs(exported[0] - q).max(), np.abs(exported[1] - ln).max())
    if error > 1e-4:
        raise SystemExit(f"{onnx_path}: the graph differs from the head by {error}")

    prompts = {row["id"]: row["prompt"] for row in demo[:6]}
    cases = golden.cases(session, prompts)
    lines = ",\n".join(json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in cases)
    (arguments.out / "golden.json").write_text(
        f'{{"models":{json.dumps(rows.models)},"cases":[\n{lines}\n]}}\n', encoding="utf-8"
    )

    names = [None, *sorted(set(rows.datasets))]
    report = {
        "models": rows.models,
        "rows": {name: {s: int(((rows.splits == s) & (rows.datasets == name)).sum()) for s in ("train", "val", "test")} for name in names[1:]},
        "bytes": {"predictor.onnx": onnx_path.stat().st_size, "table": int(encoder["table"].nbytes)},
        "graph_error": float(error),
        "test": {},
        "splits": {},
        "policies": {},
    }
    if test.any():
        weights = None
        if rows.models == ["Qwen2.5-3B-Instruct", "Qwen2.5-7B-Instruct", "Qwen2.5-32B-Instruct", "Qwen2.5-72B-Instruct"]:
            weights = np.array([3, 5, 3, 2]) / 13  # Instances per model of the reference fleet.
        for name in names:
            chosen = test if name is None else test & (rows.datasets == name)
            if chosen.any():
                report["test"][name or "all"] = measure(rows, embedding, tariffs, train, test, name)
                report["policies"][name or "all"] = policy_table(rows, q[chosen], ln[chosen], tariffs, chosen, weights)
    splits = list(GroupShuffleSplit(SPLITS, test_size=0.2, random_state=0).split(embedding, groups=rows.groups))
    for name in names:
        results = []
        for left, right in splits:
            masks = np.zeros((2, len(rows)), bool)
            masks[0, left] = masks[1, right] = True
            if name is None or (masks[1] & (rows.datasets == name)).sum() >= 10:
                results.append(measure(rows, embedding, tariffs, *masks, name))
        if results:
            report["splits"][name or "all"] = summary(results)
    arguments.report.write_text(json.dumps(report, indent=1) + "\n")
    print_report(report)


def print_report(report):
    shown = ["auc", "auc_within", "r2_quality", "r2_ln_len", "mae_ln_len", "gap_closed", "max_gain", "cost_at_best"]
    number = lambda x: "    -" if x is None else f"{x:5.3f}"
    for name, heads in report["test"].items():
        print(f"\nsplit test, {name}\n{'':8}" + "".join(f"{k:>14}" for k in shown))
        for title, values in heads.items():
            print(f"{title:8}" + "".join(f"{number(values[k]):>14}" for k in shown))
    for name, heads in report["splits"].items():
        print(f"\n{SPLITS} grouped splits, {name}: mean (sd)\n{'':8}" + "".join(f"{k:>14}" for k in shown))
        for title, values in heads.items():
            cell = lambda v: "-" if v is None else f"{v['mean']:.3f} ({v['sd']:.3f})"
            print(f"{title:8}" + "".join(f"{cell(values[k]):>14}" for k in shown))
    for name, table in report["policies"].items():
        print(f"\npolicies on split test, {name}: quality, USD per 1,000 requests, share per model")
        for row in table:
            print(f"  {row['policy']:28}{row['quality']:.3f}  {row['usd_per_1000']:.4f}  {row['share']}")
    print(f"\n{report['bytes']}, graph against head: {report['graph_error']:.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=[HERE / "data" / "crux.jsonl.gz", HERE / "data" / "math_l5.features.jsonl.gz"])
    parser.add_argument("--models", help="comma-separated; by default those of the first row")
    parser.add_argument("--exclude-dataset", action="append", default=[], metavar="NAME", help="leave a data set out")
    parser.add_argument("--tariffs", type=Path, default=HERE / "tariffs.json", help="{model: [input, output]} USD per million tokens")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--report", type=Path, default=HERE / "report.json")
    arguments = parser.parse_args()
    try:
        run(arguments)
    except (training_rows.BadRow, OSError) as error:
        sys.exit(f"train.py: {error}")


if __name__ == "__main__":
    main()
