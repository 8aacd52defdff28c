"""Measures of a predictor on held-out prompts; every array is [prompts, models]."""

import numpy as np
from sklearn.metrics import roc_auc_score


def auc(q, predicted, groups=None):
    """Area under the ROC curve of "this answer is good" (score >= 0.5), mean over models (and groups)."""
    values = []
    for group in [np.ones(len(q), bool)] if groups is None else [groups == g for g in np.unique(groups)]:
        for m in range(q.shape[1]):
            good = q[group, m] >= 0.5
            if good.any() and not good.all():
                values.append(roc_auc_score(good, predicted[group, m]))
    return float(np.mean(values)) if values else 0.5


def r2(y, predicted, prior):
    """Share of the variance around the per-model prior that the prediction explains."""
    return float(1 - ((y - predicted) ** 2).sum() / ((y - prior) ** 2).sum())


def frontier(cost, quality):
    """Points that no cheaper or equal point reaches in quality, by cost."""
    points, best = [], -np.inf
    for c, q in sorted(zip(cost, quality), key=lambda p: (p[0], -p[1])):
        if q > best:
            points.append((c, q))
            best = q
    return np.array(points)


def hull(points):
    """Upper concave hull: what mixing at random between the points reaches."""
    kept = []
    for c, q in points:
        while len(kept) > 1 and (kept[-1][1] - kept[-2][1]) * (c - kept[-2][0]) <= (q - kept[-2][1]) * (kept[-1][0] - kept[-2][0]):
            kept.pop()
        kept.append((c, q))
    return np.array(kept)


def area(points, low, high):
    """Mean quality over cost from low to high; beyond the last point quality stays."""
    grid = np.linspace(low, high, 2_001)
    return float(np.interp(grid, points[:, 0], points[:, 1]).mean())


def sweep(q, cost, predicted_q, predicted_cost, lambdas):
    """(lambda, mean cost, mean quality, share per model) of argmax q - lambda * cost."""
    rows, n = [], np.arange(len(q))
    for value in lambdas:
        choice = (predicted_q - value * predicted_cost).argmax(1)
        share = np.bincount(choice, minlength=q.shape[1]) / len(q)
        rows.append((float(value), float(cost[n, choice].mean()), float(q[n, choice].mean()), share.tolist()))
    return rows


def curve(q, cost, predicted_q, predicted_cost):
    """The frontier of mean cost and mean quality that argmax predicted quality - lambda * predicted cost traces."""
    lambdas = np.concatenate([[0], np.geomspace(1e-4, 1e3, 200)]) / cost.mean()
    return frontier(*zip(*((c, quality) for _, c, quality, _ in sweep(q, cost, predicted_q, predicted_cost, lambdas))))


def routing(q, cost, predicted_q, predicted_cost):
    """Gap closed, gain over the best single model, and the cost that matches it: see README.md."""
    single_cost, single_q = cost.mean(0), q.mean(0)
    low, high = single_cost.min(), single_cost.max()
    router, oracle = curve(q, cost, predicted_q, predicted_cost), curve(q, cost, q, cost)
    singles = hull(frontier(single_cost, single_q))
    base, top = area(singles, low, high), area(oracle, low, high)
    best = single_q.argmax()
    reached = router[router[:, 1] >= single_q[best], 0]
    return {
        "gap_closed": (area(router, low, high) - base) / max(top - base, 1e-9),
        "max_gain": float(router[:, 1].max() - single_q[best]),
        "cost_at_best": float(reached.min() / single_cost[best]) if len(reached) else None,
    }


def measures(q, ln_len, cost, predicted_q, predicted_ln_len, predicted_cost, prior_q, prior_ln_len, datasets):
    """All measures of one split. The prior is the per-model mean of the training rows; without lengths theirs are left out."""
    out = {
        "auc": auc(q, predicted_q),
        "auc_within": auc(q, predicted_q, datasets),
        "r2_quality": r2(q, predicted_q, prior_q),
        "r2_ln_len": None,
        "mae_ln_len": None,
    }
    if ln_len.shape[1]:
        out["r2_ln_len"] = r2(ln_len, predicted_ln_len, prior_ln_len)
        out["mae_ln_len"] = float(np.abs(ln_len - predicted_ln_len).mean())
    return out | routing(q, cost, predicted_q, predicted_cost)


def deciles(q, predicted):
    """Mean prediction and mean score in tenths of the answers, by prediction."""
    order = predicted.ravel().argsort(kind="stable")
    return [[round(float(x.ravel()[part].mean()), 3) for x in (predicted, q)] for part in np.array_split(order, 10)]


def unfamiliar(q, ln_len, cost, predicted_q, predicted_ln_len, predicted_cost, prior_q, prior_ln_len, blind_cost):
    """Measures on a task that was not trained on. Bias: of the mean quality, mean over models of its size; delta: mean quality
    over the costs from the cheapest to the dearest model, less that of the policy that knows only the priors."""
    true = q.mean(0)
    low, high = cost.mean(0).min(), cost.mean(0).max()
    blind = np.tile(prior_q, (len(q), 1))
    out = {
        "bias": float(np.abs(predicted_q.mean(0) - true).mean()),
        "bias_prior": float(np.abs(prior_q - true).mean()),
        "delta_vs_blind": area(curve(q, cost, predicted_q, predicted_cost), low, high) - area(curve(q, cost, blind, blind_cost), low, high),
        "auc": auc(q, predicted_q),
    }
    if ln_len.shape[1]:
        out["mae_ln_len"] = float(np.abs(ln_len - predicted_ln_len).mean())
        out["mae_ln_len_prior"] = float(np.abs(ln_len - prior_ln_len).mean())
    return out
