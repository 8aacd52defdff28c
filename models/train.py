"""Trains the predictor: predictor.onnx, golden.json and a report of held-out measures.

    python3 models/train.py                                        the shipped predictor, from models/data
    python3 models/train.py --data FILE [FILE...] [--models A,B] [--exclude-dataset NAME] [--tariffs FILE.json]
                            --out DIR --report FILE.json           your own logs (format: README.md)
"""

import os

# One thread each: the same sums in the same order on every machine, and the splits run side by side.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

import card
import golden
import graph
import head
import measure
import rows as training_rows

HERE = Path(__file__).parent
DATA = HERE / "data"
LEAST_ROWS = 20
# Instances per model of the reference fleet, for its round robin.
REFERENCE_FLEET = {"Qwen2.5-3B-Instruct": 3, "Qwen2.5-7B-Instruct": 5, "Qwen2.5-32B-Instruct": 3, "Qwen2.5-72B-Instruct": 2}


def load_tariffs(path, models):
    try:
        table = json.loads(Path(path).read_text())
    except json.JSONDecodeError as error:
        raise training_rows.BadRow(f"{path}: not JSON: {error}") from None
    if not isinstance(table, dict):
        raise training_rows.BadRow(f"{path}: must be an object: {{model: [input, output]}}")
    for model in models:
        if model not in table:
            raise training_rows.BadRow(f"{path}: no tariff for model {model}")
        pair = table[model]
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(x, (int, float)) and x >= 0 for x in pair)):
            raise training_rows.BadRow(f"{path}: {model}: must be [input, output], USD per million tokens, is {pair!r}")
    return np.array([table[model] for model in models], dtype=float)


def load_minilm(path, rows):
    """The paper's sentence vectors of all rows, or None where the file lacks some."""
    if not Path(path).exists():
        return None
    stored = np.load(path)
    at = {key.tobytes().hex(): i for i, key in enumerate(stored["keys"])}
    missing = sum(group not in at for group in rows.groups)
    if missing:
        print(f"{path} lacks {missing} of {len(rows)} prompts: no row minilm_knn10 (minilm.py makes the file)")
        return None
    vectors = stored["vectors"][[at[group] for group in rows.groups]].astype(np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def demo_prompts():
    """The demo's prompts: never trained on."""
    lines = (DATA / "demo_prompts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def check_leaks(rows, train, demo):
    held_out = set(rows.groups[~train])
    if held_out & set(rows.groups[train]):
        raise training_rows.BadRow("split: the same prompt is in train and in another split")
    if {training_rows.fingerprint(row["prompt"]) for row in demo} & set(rows.groups[train]):
        raise training_rows.BadRow("data/demo_prompts.jsonl: a demo prompt is among the training rows")


def export(arguments, rows, encoder, embedding, fitted, train, demo):
    """Writes predictor.onnx and golden.json. -> facts for the report."""
    arrays, prior, _ = fitted
    about = {"trained_on": {name: int((train & (rows.datasets == name)).sum()) for name in sorted(set(rows.datasets))}}
    model = graph.build(encoder, arrays, prior, rows.models, about)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "predictor.onnx"
    path.write_bytes(model.SerializeToString(deterministic=True))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected = head.predict(arrays, embedding, rows.surface)
    error = 0.0
    for i in range(len(rows)):
        out = graph.run(session, rows.slots[i], rows.weights[i], rows.surface[i])
        for name, values in (("quality", expected.quality), ("ln_output_tokens", expected.ln_len), ("quality_sd", expected.quality_sd), ("ln_p80", expected.ln_p80), ("ln_p90", expected.ln_p90), ("familiarity", expected.familiarity[:, None])):
            error = max(error, float(np.abs(out[name] - values[i]).max()))
    # Familiarity is steep: its argument has f32's relative error of a sum of squares.
    if error > 1e-3:
        raise SystemExit(f"{path}: the graph differs from the head by {error}")
    bits = len(encoder["table"]).bit_length() - 1
    cases = golden.cases(session, {row["id"]: row["prompt"] for row in demo[:6]}, bits)
    lines = ",\n".join(json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in cases)
    (arguments.out / "golden.json").write_text(f'{{"models":{json.dumps(rows.models)},"cases":[\n{lines}\n]}}\n', encoding="utf-8")
    return {"bytes": {"predictor.onnx": path.stat().st_size, "table": int(encoder["table"].nbytes)}, "graph_error": error}


def run(arguments):
    encoder = dict(np.load(arguments.encoder))
    bits = len(encoder["table"]).bit_length() - 1
    rows = training_rows.load(arguments.data, arguments.models and arguments.models.split(","), arguments.exclude_dataset, bits)
    tariffs = load_tariffs(arguments.tariffs, rows.models)
    embedding = head.embed(rows, encoder)
    minilm = load_minilm(arguments.minilm, rows)
    train, test = rows.splits == "train", rows.splits == "test"
    if train.sum() < LEAST_ROWS:
        raise training_rows.BadRow(f"split: {train.sum()} rows of split train; at least {LEAST_ROWS} are needed, and about 1,000 to be of use")
    if len(rows.models) < 2:
        raise training_rows.BadRow("q: one model leaves nothing to choose; at least two are needed")
    if not rows.has_lengths:
        print(f"no lengths: output tokens are taken for {head.UNKNOWN_TOKENS:g}, and every request for equally long in the costs")
    demo = demo_prompts()
    check_leaks(rows, train, demo)

    fitted = measure.fit(rows, embedding, train, kind=arguments.head)
    names = [None, *sorted(set(rows.datasets))]
    report = {
        "models": rows.models,
        "head": arguments.head,
        "weight_decay": fitted[2],
        "rows": {name: {s: int(((rows.splits == s) & (rows.datasets == name)).sum()) for s in ("train", "val", "test")} for name in names[1:]},
        **export(arguments, rows, encoder, embedding, fitted, train, demo),
        "test": {},
        "policies": {},
    }
    if test.any():
        heads, ours = measure.compare(rows, embedding, minilm, train, test, fitted)
        report["calibration_test"] = measure.calibration(rows, test, ours)
        weights = np.array([REFERENCE_FLEET.get(model, 0) for model in rows.models], float)
        weights = weights / weights.sum() if set(rows.models) == set(REFERENCE_FLEET) else None
        for name in names:
            chosen = test if name is None else test & (rows.datasets == name)
            if chosen.any():
                report["test"][name or "all"] = measure.measures(rows, tariffs, train, test, heads, name)
                estimates = measure.served(rows, embedding, fitted, chosen)
                report["policies"][name or "all"] = measure.policies(rows, estimates, tariffs, chosen, weights)
    report["splits"], report["calibration"] = measure.splits(rows, embedding, minilm, tariffs, arguments.head)
    report["held_out_task"] = measure.held_out_tasks(rows, embedding, tariffs, arguments.head, fitted[2])
    arguments.report.parent.mkdir(parents=True, exist_ok=True)
    arguments.report.write_text(json.dumps(report, indent=1) + "\n")
    card.show(report)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=[DATA / "crux.jsonl.gz", DATA / "math_l5.features.jsonl.gz"])
    parser.add_argument("--models", help="comma-separated; by default those that nearly all rows have")
    parser.add_argument("--exclude-dataset", action="append", default=[], metavar="NAME", help="leave a data set out")
    parser.add_argument("--tariffs", type=Path, default=HERE / "tariffs.json", help="{model: [input, output]} USD per million tokens")
    parser.add_argument("--head", choices=head.KINDS, default="blend")
    parser.add_argument("--encoder", type=Path, default=HERE / "encoder.npz", help="or encoder-large.npz: 1 MB")
    parser.add_argument("--minilm", type=Path, default=DATA / "minilm.npz", help="sentence vectors for the paper's head (minilm.py)")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--report", type=Path, default=HERE / "report.json")
    arguments = parser.parse_args()
    try:
        run(arguments)
    except (training_rows.BadRow, OSError) as error:
        sys.exit(f"train.py: {error}")


if __name__ == "__main__":
    main()
