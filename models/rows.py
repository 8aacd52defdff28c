"""Training rows: JSON lines to arrays, or one sentence that names file, line and field. The format is in README.md."""

import gzip
import hashlib
import json
import math
from dataclasses import dataclass

import numpy as np

import features as F


class BadRow(Exception):
    pass


@dataclass
class Rows:
    """Aligned arrays; q, ln_len are [rows, models]."""

    models: list
    datasets: np.ndarray
    splits: np.ndarray
    groups: np.ndarray  # Equal where the prompts are: a group never falls on both sides of a split.
    slots: list
    weights: list
    surface: np.ndarray
    tokens: np.ndarray
    q: np.ndarray
    ln_len: np.ndarray

    def __len__(self):
        return len(self.q)


def fingerprint(prompt):
    """MD5 of the prompt in lower case with single spaces: the same question has the same split in every file."""
    return hashlib.md5(" ".join(prompt.lower().split()).encode("utf-8", "replace")).hexdigest()


def split_of(group):
    """Digits of the fingerprint modulo 10: 0-1 test, 2 val, 3-9 train."""
    digit = int(group, 16) % 10
    return "test" if digit < 2 else "val" if digit == 2 else "train"


def _need(condition, field, problem):
    if not condition:
        raise BadRow(f"{field}: {problem}")


def _number(value, field, low, high):
    _need(isinstance(value, (int, float)) and not isinstance(value, bool), field, "must be a number")
    _need(math.isfinite(value) and low <= value <= high, field, f"must be between {low} and {high}, is {value}")
    return float(value)


def _features(row):
    value = row["features"]
    _need(isinstance(value, dict), "features", "must be an object")
    _need(value.get("version") == F.FEATURE_VERSION, "features.version", f"must be {F.FEATURE_VERSION}")
    lists = {}
    for key in ("slots", "counts", "surface"):
        lists[key] = value.get(key)
        _need(isinstance(lists[key], list), f"features.{key}", "must be a list")
    for key, low, high in (("slots", 0, F.SLOTS - 1), ("counts", 1, 1e9), ("surface", 0, 1e9)):
        for x in lists[key]:
            _number(x, f"features.{key}", low, high)
            _need(key == "surface" or isinstance(x, int), f"features.{key}", "must be whole numbers")
    _need(len(set(lists["slots"])) == len(lists["slots"]), "features.slots", "names a slot twice")
    _need(len(lists["slots"]) == len(lists["counts"]), "features.counts", "must be as long as slots")
    _need(len(lists["surface"]) == F.SURFACE, "features.surface", f"must have {F.SURFACE} values")
    tokens = _number(value.get("tokens"), "features.tokens", 0, 1e9)
    return np.array(lists["slots"], np.int64), lists["counts"], np.array(lists["surface"], np.float32), tokens


def _parse(line, models):
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadRow(f"not JSON: {error}") from None
    _need(isinstance(row, dict), "row", "must be an object")
    unknown = set(row) - {"id", "dataset", "split", "prompt", "features", "q", "len"}
    _need(not unknown, ", ".join(sorted(unknown)), "unknown field")
    _need(("prompt" in row) != ("features" in row), "prompt", "exactly one of prompt and features is needed")
    for field in ("id", "dataset", "split"):
        _need(isinstance(row.get(field, ""), str), field, "must be a string")
    for field, low, high in (("q", 0, 1), ("len", 1, 10_000_000)):
        _need(isinstance(row.get(field), dict) and row[field], field, "must be an object with a number per model")
        for model, value in row[field].items():
            _number(value, f"{field}.{model}", low, high)
    if "prompt" in row:
        _need(isinstance(row["prompt"], str), "prompt", "must be a string")
        try:
            row["prompt"].encode()
        except UnicodeEncodeError:
            raise BadRow("prompt: half of a surrogate pair is no character") from None
        slots, counts, surface = F.extract(row["prompt"])
        tokens, group = F.estimated_tokens(row["prompt"]), fingerprint(row["prompt"])
    else:
        slots, counts, surface, tokens = _features(row)
        group = hashlib.md5(repr((slots.tolist(), list(counts), surface.tolist())).encode()).hexdigest()
    split = row.get("split", split_of(group))
    _need(split in ("train", "val", "test"), "split", f"must be train, val or test, is {split!r}")
    if models is not None and not all(m in row["q"] and m in row["len"] for m in models):
        return None
    return row, split, group, slots, F.weights(counts), surface, tokens


def load(paths, models=None, exclude=()):
    """-> Rows. `models` are by default those of the first row; rows that lack one of them are left out and counted."""
    parsed, skipped = [], 0
    for path in paths:
        opened = gzip.open(path, "rt", encoding="utf-8") if str(path).endswith(".gz") else open(path, encoding="utf-8")
        with opened as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    item = _parse(line, models)
                except BadRow as error:
                    raise BadRow(f"{path}:{number}: {error}") from None
                if models is None:
                    models = [m for m in item[0]["q"] if m in item[0]["len"]]
                if item is None or not all(m in item[0]["q"] and m in item[0]["len"] for m in models):
                    skipped += 1
                elif item[0].get("dataset", "") not in exclude:
                    parsed.append(item)
    if skipped:
        print(f"{skipped} rows lack a score or a length of {', '.join(models)}: left out")
    if not parsed:
        raise BadRow(f"no usable row in {', '.join(map(str, paths))}")
    items = [item[0] for item in parsed]
    return Rows(
        models=list(models),
        datasets=np.array([row.get("dataset", "") for row in items]),
        splits=np.array([item[1] for item in parsed]),
        groups=np.array([item[2] for item in parsed]),
        slots=[item[3] for item in parsed],
        weights=[item[4] for item in parsed],
        surface=np.array([item[5] for item in parsed]),
        tokens=np.array([item[6] for item in parsed], dtype=float),
        q=np.array([[row["q"][m] for m in models] for row in items], dtype=float),
        ln_len=np.log([[row["len"][m] for m in models] for row in items]),
    )
