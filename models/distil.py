"""Makes an encoder: a table of 2^bits hashed slots x columns (int8), distilled from a MiniLM sentence encoder.

    python3 models/distil.py --teacher hash14_words_distil64_int8.npz [--bits 14 --columns 48 --out models/encoder-large.npz] FILE.jsonl.gz ...

The teacher (16,384 slots x 64) was itself distilled from all-MiniLM-L6-v2 (Apache-2.0); see README.md for both steps.
Only prompts' texts are used, never scores, and none of split test, so held-out prompts stay unseen here too.
"""

import argparse
import gzip
import json
import re
import zlib

import numpy as np
import scipy.sparse as sp

import features as F


def teacher_vector(teacher, text):
    """The teacher's own recipe: crc32 words and bigrams, (1 + ln count) * idf, L2, table, bias, L2."""
    words = re.findall(r"[a-z]+|\d|[^\sa-z\d]", text.lower()[:6_000])
    hashes = [zlib.crc32(w.encode()) for w in words]
    slot = lambda h: (h * 2_654_435_761 & F.U32) >> 18
    slots = [slot(h) for h in hashes] + [slot(a * 31 + b * 1_000_003 + 17 & F.U32) for a, b in zip(hashes, hashes[1:])]
    ids, counts = np.unique(np.array(slots, dtype=np.int64), return_counts=True)
    w = (1 + np.log(counts)) * teacher["idf"][ids]
    w = w / max(np.linalg.norm(w), 1e-9)
    v = (w @ teacher["table"][ids].astype(np.float32)) * teacher["scale"] + teacher["bias"]
    return v / np.linalg.norm(v)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--teacher", required=True)
    arguments.add_argument("--out", default="models/encoder.npz")
    arguments.add_argument("--bits", type=int, default=12, help="of a slot's number, 12 to 14")
    arguments.add_argument("--columns", type=int, default=32)
    arguments.add_argument("data", nargs="+")
    arguments = arguments.parse_args()
    teacher = dict(np.load(arguments.teacher))
    rows = {r["prompt"]: r["split"] for path in arguments.data for r in map(json.loads, gzip.open(path, "rt"))}
    prompts = sorted(rows)
    split = np.array([rows[p] for p in prompts])
    Y = np.array([teacher_vector(teacher, p) for p in prompts])
    indptr, indices, values = [0], [], []
    for p in prompts:
        slots, counts, _ = F.extract(p, arguments.bits)
        indices.append(slots)
        values.append(F.weights(counts))
        indptr.append(indptr[-1] + len(slots))
    X = sp.csr_matrix((np.concatenate(values), np.concatenate(indices), indptr), shape=(len(prompts), 2**arguments.bits))

    train = split == "train"
    mean = Y[train].mean(0)
    axes = np.linalg.svd(Y[train] - mean, full_matrices=False)[2][: arguments.columns].T
    # The axes are those of the centred vectors; the mean itself stays, as the bias.
    T = Y @ axes
    bias = T[train].mean(0)
    cosine = lambda a, b: np.mean((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))
    gram, right = (X[train].T @ X[train]).toarray(), X[train].T @ (T[train] - bias)
    best = None
    for ridge in (0.03, 0.1, 0.3, 1.0, 3.0):
        table = np.linalg.solve(gram + ridge * np.eye(2**arguments.bits), right)
        score = cosine(X[split == "val"] @ table + bias, T[split == "val"])
        print(f"ridge {ridge}: cosine to the teacher on val {score:.4f}")
        if best is None or score > best[0]:
            best = (score, table)
    table = best[1]
    # One scale for all columns: the graph normalises the sum's length, so it can leave the scale out.
    scale = np.abs(table).max() / 127
    quantised = np.clip(np.rint(table / scale), -127, 127).astype(np.int8)
    test = split == "test"
    print(f"test: cosine {cosine(X[test] @ table + bias, T[test]):.4f}, int8 {cosine(X[test] @ (quantised * scale) + bias, T[test]):.4f}")
    np.savez_compressed(arguments.out, table=quantised, bias=(bias / scale).astype(np.float32))


if __name__ == "__main__":
    main()
