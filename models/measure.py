"""What a head is worth on prompts that it was not fitted on: repeated grouped splits, and tasks left out."""

import numpy as np
from joblib import Parallel, delayed
from sklearn.model_selection import GroupShuffleSplit
from sklearn.neighbors import NearestNeighbors

import evaluate
import head as H

SPLITS = 5
JOBS = 2
TASK_ROWS, OTHER_ROWS = 30, 200  # A task is left out if it has at least so many rows, and the others have.
LAMBDAS = [0, 250, 500, 750, 1_000, 2_000, 3_000, 4_000, 5_000, 7_500, 10_000]  # Quality per USD.
VARIANTS = ("ridge", "mlp", "prototypes")


def costs(rows, tariffs, ln_len, chosen):
    """USD per request: input tokens as estimated, output tokens from ln_len. Without lengths every request costs alike."""
    if not rows.has_lengths:
        return np.tile(tariffs.mean(1) / 1e6, (chosen.sum(), 1))
    return (rows.tokens[chosen][:, None] * tariffs[:, 0] + np.exp(ln_len) * tariffs[:, 1]) / 1e6


def neighbours(vectors, train, test, targets, k):
    """The paper's head: the mean of the k nearest training prompts."""
    _, near = NearestNeighbors(n_neighbors=min(k, train.sum())).fit(vectors[train]).kneighbors(vectors[test])
    return targets[train][near].mean(1)


def scaled(embedding, surface, train):
    """Embedding and surface features side by side, both of length about 1."""
    mean, std = surface[train].mean(0), np.maximum(surface[train].std(0), 1e-6)
    return np.hstack([embedding, (surface - mean) / std / np.sqrt(surface.shape[1])])


def fit(rows, embedding, train, **options):
    return H.fit(embedding[train], rows.surface[train], rows.q[train], rows.ln_len[train], rows.groups[train], **options)


def served(rows, embedding, fitted, chosen):
    """Estimates as the filter uses them: shrunk to the priors where the prompt is unfamiliar."""
    arrays, prior, _ = fitted
    return H.predict(arrays, embedding[chosen], rows.surface[chosen]).shrunk(prior)


def compare(rows, embedding, minilm, train, test, fitted=None, kind="blend"):
    """-> ({head: (quality, ln length) on `test`}, our estimates)."""
    fitted = fitted or fit(rows, embedding, train, kind=kind)
    ours = served(rows, embedding, fitted, test)
    n, models = test.sum(), len(rows.models)
    heads = {"head": (ours.quality, ours.ln_len)}
    for variant in VARIANTS:
        decay = fitted[2] if variant == "mlp" else H.WEIGHT_DECAYS[0]
        other = served(rows, embedding, fit(rows, embedding, train, kind=variant, weight_decay=decay), test)
        heads[variant] = other.quality, other.ln_len
    heads["prior"] = np.tile(rows.q[train].mean(0), (n, 1)), np.tile(rows.ln_len[train].mean(0), (n, 1))
    targets, vectors = np.hstack([rows.q, rows.ln_len]), scaled(embedding, rows.surface, train)
    for name, space, k in (("knn10", vectors, 10), ("knn100", vectors, 100), ("minilm_knn10", minilm, 10)):
        if space is not None:
            near = neighbours(space, train, test, targets, k)
            heads[name] = near[:, :models], near[:, models:]
    return heads, ours


def measures(rows, tariffs, train, test, heads, dataset=None):
    """Measures of every head on `test`, or on one data set's part of it."""
    part = np.ones(test.sum(), bool) if dataset is None else rows.datasets[test] == dataset
    chosen = test.copy()
    chosen[test] = part
    cost = costs(rows, tariffs, rows.ln_len[chosen], chosen)
    prior_q, prior_ln = rows.q[train].mean(0), rows.ln_len[train].mean(0)
    return {
        name: evaluate.measures(
            rows.q[chosen], rows.ln_len[chosen], cost, q[part], ln[part], costs(rows, tariffs, ln[part], chosen), prior_q, prior_ln, rows.datasets[chosen]
        )
        for name, (q, ln) in heads.items()
    }


def calibration(rows, test, ours):
    """Quality by decile, and the share of answers within the median, the 80th and the 90th percentile of length."""
    out = {"quality_deciles": evaluate.deciles(rows.q[test], ours.quality), "familiarity": float(ours.familiarity.mean())}
    if rows.has_lengths:
        for name, above in (("p50", 0), ("p80", ours.ln_p80), ("p90", ours.ln_p90)):
            out[f"within_{name}"] = float((rows.ln_len[test] <= ours.ln_len + above).mean())
    return out


def one_split(rows, embedding, minilm, tariffs, kind, left, right):
    train, test = np.zeros((2, len(rows)), bool)
    train[left] = test[right] = True
    heads, ours = compare(rows, embedding, minilm, train, test, kind=kind)
    names = [None, *sorted(set(rows.datasets))]
    enough = lambda name: name is None or (test & (rows.datasets == name)).sum() >= 10
    return {name or "all": measures(rows, tariffs, train, test, heads, name) for name in names if enough(name)}, calibration(rows, test, ours)


def left_out(rows, embedding, tariffs, kind, weight_decay, task):
    """Trained without a task, measured on it."""
    test = rows.datasets == task
    # The same question may be in two tasks.
    train = ~test & ~np.isin(rows.groups, rows.groups[test])
    arrays, prior, _ = fit(rows, embedding, train, kind=kind, weight_decay=weight_decay)
    raw = H.predict(arrays, embedding[test], rows.surface[test])
    ours = raw.shrunk(prior)
    cost = lambda ln: costs(rows, tariffs, ln, test)
    blind = np.tile(rows.ln_len[train].mean(0), (test.sum(), 1))
    of = lambda e: evaluate.unfamiliar(
        rows.q[test], rows.ln_len[test], cost(rows.ln_len[test]), e.quality, e.ln_len, cost(e.ln_len), prior["quality"], blind, cost(blind)
    )
    believed = of(raw)
    return {
        "dataset": task,
        "rows": int(test.sum()),
        "familiarity": float(raw.familiarity.mean()),
        **of(ours),
        "bias_if_believed": believed["bias"],
        "delta_if_believed": believed["delta_vs_blind"],
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


def splits(rows, embedding, minilm, tariffs, kind):
    """-> (measures per data set and head, calibration), each over SPLITS splits by group, 80 to 20."""
    halves = GroupShuffleSplit(SPLITS, test_size=0.2, random_state=0).split(embedding, groups=rows.groups)
    results = Parallel(JOBS)(delayed(one_split)(rows, embedding, minilm, tariffs, kind, *half) for half in halves)
    names = [name for name in results[0][0] if all(name in measured for measured, _ in results)]
    calibrations = [c for _, c in results]
    mean = lambda key: np.mean([c[key] for c in calibrations], axis=0).round(3).tolist()
    return {name: summary([measured[name] for measured, _ in results]) for name in names}, {key: mean(key) for key in calibrations[0]}


def held_out_tasks(rows, embedding, tariffs, kind, weight_decay):
    """One row per task that is large enough."""
    count = {name: int((rows.datasets == name).sum()) for name in sorted(set(rows.datasets))}
    tasks = [name for name, n in count.items() if n >= TASK_ROWS and len(rows) - n >= OTHER_ROWS]
    return Parallel(JOBS)(delayed(left_out)(rows, embedding, tariffs, kind, weight_decay, task) for task in tasks)


def policies(rows, ours, tariffs, test, weights):
    """What argmax(quality - lambda * cost) gives on the test prompts, beside one model for all and the fleet's round robin."""
    cost, true_q = costs(rows, tariffs, rows.ln_len[test], test), rows.q[test]
    row = lambda name, c, quality, share: {"policy": name, "quality": quality, "usd_per_1000": 1_000 * c, "share": [round(float(s), 3) for s in share]}
    out = [row(model, cost[:, i].mean(), true_q[:, i].mean(), np.eye(len(rows.models))[i]) for i, model in enumerate(rows.models)]
    if weights is not None:
        out.append(row("round robin over instances", cost.mean(0) @ weights, true_q.mean(0) @ weights, weights))
    for value, c, quality, share in evaluate.sweep(true_q, cost, ours.quality, costs(rows, tariffs, ours.ln_len, test), LAMBDAS):
        out.append(row(f"lambda {value:g}", c, quality, share))
    return out
