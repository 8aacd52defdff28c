"""Makes models/data from ZeroEval's scored answers (Apache-2.0), for the Qwen2.5 ladder.

    python3 models/prepare_data.py zeroeval_gsm_math_crux.jsonl.gz

- crux.jsonl.gz: all CRUX rows with their texts (CRUXEval, MIT);
- math_l5.features.jsonl.gz: MATH level 5 as features, scores and lengths only: the texts may not be published;
- demo_prompts.jsonl: the CRUX rows of split test, for the demo: the predictor has seen none of them.
"""

import gzip
import json
import sys
from pathlib import Path

import features as F

MODELS = ["Qwen2.5-3B-Instruct", "Qwen2.5-7B-Instruct", "Qwen2.5-32B-Instruct", "Qwen2.5-72B-Instruct"]


def write(path, rows):
    data = "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows).encode()
    # No time stamp: the same rows give the same bytes.
    path.write_bytes(gzip.compress(data, 9, mtime=0) if path.suffix == ".gz" else data)
    print(f"{path}: {len(rows)} rows, {path.stat().st_size:,} bytes")


def main(source):
    crux, math = [], []
    for line in gzip.open(source, "rt"):
        row = json.loads(line)
        if row["dataset"] not in ("crux", "math-l5"):
            continue
        keep = {key: row[key] for key in ("id", "dataset", "split", "prompt")}
        keep |= {key: {model: row[key][model] for model in MODELS} for key in ("q", "len")}
        if row["dataset"] == "crux":
            crux.append(keep)
        else:
            slots, counts, surface = F.extract(keep["prompt"])
            order = slots.argsort()  # By slot: the order of words is not published either.
            keep["features"] = {
                "version": F.FEATURE_VERSION,
                "slots": slots[order].tolist(),
                "counts": counts[order].tolist(),
                "surface": [float(str(x)) for x in surface],
                "tokens": F.estimated_tokens(keep.pop("prompt")),
            }
            math.append(keep)
    data = Path(__file__).parent / "data"
    data.mkdir(exist_ok=True)
    write(data / "crux.jsonl.gz", crux)
    write(data / "math_l5.features.jsonl.gz", math)
    write(data / "demo_prompts.jsonl", [{k: v for k, v in row.items() if k != "split"} for row in crux if row["split"] == "test"])


if __name__ == "__main__":
    main(sys.argv[1])
