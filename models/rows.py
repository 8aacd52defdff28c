"""Training rows: JSON lines to arrays, or one sentence that names file, line and field. The format is in README.md."""

import gzip
import hashlib
import json
import math
import re
from dataclasses import dataclass

import numpy as np

import features as F

COMMON = 0.95  # A model counts as one of the data's own when this share of the rows has it.
MAX_TOKENS = 10_000_000


class BadRow(Exception):
    pass


@dataclass
class Rows:
    """Aligned arrays; q, ln_len are [rows, models]. Without lengths ln_len has no columns."""

    models: list
    ids: np.ndarray  # Of the file; empty where it has none.
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

    @property
    def has_lengths(self):
        return self.ln_len.shape[1] > 0


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
    for key, expected in (("version", F.FEATURE_VERSION), ("slot_bits", F.SLOT_BITS_MAX)):
        _need(value.get(key) == expected, f"features.{key}", f"must be {expected}")
    lists = {}
    for key in ("slots", "counts", "surface"):
        lists[key] = value.get(key)
        _need(isinstance(lists[key], list), f"features.{key}", "must be a list")
    for key, low, high in (("slots", 0, 2**F.SLOT_BITS_MAX - 1), ("counts", 1, 1e9), ("surface", 0, 1e9)):
        for x in lists[key]:
            _number(x, f"features.{key}", low, high)
            _need(key == "surface" or isinstance(x, int), f"features.{key}", "must be whole numbers")
    _need(len(set(lists["slots"])) == len(lists["slots"]), "features.slots", "names a slot twice")
    _need(len(lists["slots"]) == len(lists["counts"]), "features.counts", "must be as long as slots")
    _need(len(lists["surface"]) == F.SURFACE, "features.surface", f"must have {F.SURFACE} values")
    tokens = _number(value.get("tokens"), "features.tokens", 0, 1e9)
    return lists["slots"], lists["counts"], np.array(lists["surface"], np.float32), tokens


def _parse(line):
    """-> (row, group): a checked row; what costs time is left for the rows that are used."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadRow(f"not JSON: {error}") from None
    _need(isinstance(row, dict), "row", "must be an object")
    _need(("prompt" in row) != ("features" in row), "prompt", "exactly one of prompt and features is needed")
    for field in ("dataset", "split", "group"):
        _need(isinstance(row.get(field, ""), str), field, "must be a string")
    _need("q" in row, "q", "is missing")
    for field, low, high in (("q", 0, 1), ("len", 0, MAX_TOKENS)):
        _need(isinstance(row.get(field, {}), dict), field, "must be an object with a number per model")
        for model, value in row.get(field, {}).items():
            _number(value, f"{field}.{model}", low, high)
    _need(row["q"], "q", "names no model")
    if "prompt" in row:
        _need(isinstance(row["prompt"], str), "prompt", "must be a string")
        try:
            row["prompt"].encode()
        except UnicodeEncodeError:
            raise BadRow("prompt: half of a surrogate pair is no character") from None
        group = fingerprint(row["prompt"])
    else:
        row["features"] = _features(row)
        group = hashlib.md5(repr(row["features"][:2]).encode()).hexdigest()
    group = row.get("group", group)
    _need(re.fullmatch("[0-9a-f]{32}", group), "group", "must be 32 hexadecimal digits, lower case")
    row.setdefault("split", split_of(group))
    _need(row["split"] in ("train", "val", "test"), "split", f"must be train, val or test, is {row['split']!r}")
    return row, group


def _lines(path):
    opened = gzip.open(path, "rt", encoding="utf-8") if str(path).endswith(".gz") else open(path, encoding="utf-8")
    with opened as lines:
        try:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, line
        except UnicodeDecodeError as error:
            raise BadRow(f"{path}: not UTF-8: {error}") from None


def load(paths, models=None, exclude=(), bits=F.SLOT_BITS_MAX):
    """-> Rows with slots of `bits` bits. `models` are by default those that COMMON of the rows have; rows that lack one of the
    models are left out and counted. Fields that this reader does not know are left alone."""
    parsed = []
    for path in paths:
        for number, line in _lines(path):
            try:
                row, group = _parse(line)
            except BadRow as error:
                raise BadRow(f"{path}:{number}: {error}") from None
            if row.get("dataset", "") not in exclude:
                parsed.append((row, group))
    if not parsed:
        raise BadRow(f"no row in {', '.join(map(str, paths))}")
    if models is None:
        count = {}
        for row, _ in parsed:
            for model in row["q"]:
                count[model] = count.get(model, 0) + 1
        models = [model for model, n in count.items() if n >= COMMON * len(parsed)]
        if not models:
            raise BadRow(f"no model has a score in {COMMON:.0%} of the rows: name the models with --models")
    has_lengths = any(row.get("len") for row, _ in parsed)
    usable = lambda row: all(m in row["q"] and (not has_lengths or m in row.get("len", {})) for m in models)
    kept = [(row, group) for row, group in parsed if usable(row)]
    if len(kept) < len(parsed):
        needed = "a score or a length" if has_lengths else "a score"
        print(f"{len(parsed) - len(kept)} of {len(parsed)} rows lack {needed} of {', '.join(models)}: left out")
    if not kept:
        raise BadRow(f"no row has all of {', '.join(models)}")
    slots, weights, surface, tokens = [], [], [], []
    for row, _ in kept:
        if "prompt" in row:
            s, c, u = F.extract(row["prompt"], bits)
            t = F.estimated_tokens(row["prompt"])
        else:
            s, c, u, t = row["features"]
            s, c, u = F.fold(s, c, u, bits)
        slots.append(s)
        weights.append(F.weights(c))
        surface.append(u)
        tokens.append(t)
    rows = [row for row, _ in kept]
    # An empty answer has no logarithm; it costs about what one token does.
    lengths = [[max(row["len"][m], 1) for m in models] for row in rows] if has_lengths else np.ones((len(rows), 0))
    return Rows(
        models=list(models),
        ids=np.array([str(row.get("id", "")) for row in rows]),
        datasets=np.array([row.get("dataset", "") for row in rows]),
        splits=np.array([row["split"] for row in rows]),
        groups=np.array([group for _, group in kept]),
        slots=slots,
        weights=weights,
        surface=np.array(surface),
        tokens=np.array(tokens, dtype=float),
        q=np.array([[row["q"][m] for m in models] for row in rows], dtype=float),
        ln_len=np.log(np.array(lengths, dtype=float)),
    )
