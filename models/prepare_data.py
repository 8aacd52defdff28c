"""Makes models/data from public scored answers.

    python3 models/prepare_data.py --zeroeval zeroeval_gsm_math_crux.jsonl.gz --mix6 mix6_code_math_chat.jsonl.gz

The inputs are JSON lines {id, dataset, split, prompt, q, len} made from ZeroEval (Apache-2.0) and lookahead-routing (MIT). Texts of
MATH may not be published: those rows become features, scores and lengths only.

- crux.jsonl.gz, math_l5.features.jsonl.gz: the Qwen2.5 ladder;
- demo_prompts.jsonl: the CRUX rows of split test, for the demo: the predictor has seen none of them;
- mix6.jsonl.gz, mix6_math.features.jsonl.gz: five models of 7 to 34 B. SelfOSS is left out: its authors kept only prompts on which
  the models disagree, so its quality cannot be predicted.
"""

import argparse
import gzip
import json
from pathlib import Path

import features as F
import rows as training_rows

LADDER = ["Qwen2.5-3B-Instruct", "Qwen2.5-7B-Instruct", "Qwen2.5-32B-Instruct", "Qwen2.5-72B-Instruct"]
MIX6 = ["Llama-3.1-8B-Instruct", "Qwen2.5-Coder-7B-Instruct", "Phi-3-medium-4k-instruct", "internlm2_5-20b-chat", "Yi-1.5-34B-Chat"]
DATA = Path(__file__).parent / "data"


def write(name, rows):
    data = "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows).encode()
    path = DATA / name
    # No time stamp: the same rows give the same bytes.
    path.write_bytes(gzip.compress(data, 9, mtime=0) if path.suffix == ".gz" else data)
    print(f"{path}: {len(rows)} rows, {path.stat().st_size:,} bytes")


def without_text(row):
    slots, counts, surface = F.extract(row["prompt"])
    order = slots.argsort()  # By slot: the order of words is not published either.
    row["group"] = training_rows.fingerprint(row["prompt"])
    row["features"] = {
        "version": F.FEATURE_VERSION,
        "slot_bits": F.SLOT_BITS_MAX,
        "slots": slots[order].tolist(),
        "counts": counts[order].tolist(),
        "surface": [float(str(x)) for x in surface],
        "tokens": F.estimated_tokens(row.pop("prompt")),
    }
    return row


def read(path, models, datasets):
    for row in map(json.loads, gzip.open(path, "rt", encoding="utf-8")):
        if row["dataset"] in datasets and all(m in row["q"] and m in row["len"] for m in models):
            yield {key: row[key] for key in ("id", "dataset", "split", "prompt")} | {key: {m: row[key][m] for m in models} for key in ("q", "len")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--zeroeval", required=True)
    parser.add_argument("--mix6", required=True)
    arguments = parser.parse_args()
    DATA.mkdir(exist_ok=True)
    ladder = list(read(arguments.zeroeval, LADDER, ("crux", "math-l5")))
    crux = [row for row in ladder if row["dataset"] == "crux"]
    write("crux.jsonl.gz", crux)
    write("demo_prompts.jsonl", [{k: v for k, v in row.items() if k != "split"} for row in crux if row["split"] == "test"])
    write("math_l5.features.jsonl.gz", [without_text(row) for row in ladder if row["dataset"] == "math-l5"])
    texts = ("GSM8k", "MBPP", "HumanEval", "ArenaHard", "MT-Bench")
    write("mix6.jsonl.gz", list(read(arguments.mix6, MIX6, texts)))
    write("mix6_math.features.jsonl.gz", [without_text(row) for row in read(arguments.mix6, MIX6, ("MATH",))])


if __name__ == "__main__":
    main()
