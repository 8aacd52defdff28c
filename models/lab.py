"""Makes data/lab.jsonl.gz, data/lab_mix6.jsonl.gz and lab_report.json: what every contender of the lab knows of every prompt, from fits
that have not seen the prompt.

    python3 models/lab.py            # 2 minutes; prints the model card's tables

Five folds, a question in one fold only; what is said of a fold's prompts comes from fits on the other four. README.md describes
the fields.
"""

import os

# As in train.py: the same sums in the same order on every machine.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import gzip
import json

import numpy as np
from joblib import Parallel, delayed
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

import card
import contenders as C
import evaluate
import head
import measure
import rows as training_rows
import train

FOLDS = 5
THRESHOLDS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8)  # BEST-Route's published ones.
WIN_THRESHOLDS = (0.05, 0.1, 0.11593, 0.2, 0.3, 0.4, 0.5, 0.6)  # RouteLLM's; beyond .5 ours.
PERFORMANCE_WEIGHTS = (0.0, 0.25, 0.39, 0.53, 0.7, 0.8, 1.0)  # Avengers-Pro's published ones, and both ends.
GOOD_ENOUGH = 0.5  # OmniRouter's least quality.
FALLBACK = -2  # BEST-Route's as shipped: the second largest model.
DATA = train.DATA
LADDER = (["crux.jsonl.gz", "math_l5.features.jsonl.gz"], "minilm.npz", "lab.jsonl.gz")
MIX6 = (["mix6.jsonl.gz", "mix6_math.features.jsonl.gz"], None, "lab_mix6.jsonl.gz")


def folds(rows):
    """-> the fold of every row, 0 to 4: the data sets' shares alike."""
    fold = np.empty(len(rows), int)
    split = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(rows.surface, rows.datasets, rows.groups)
    for number, (_, members) in enumerate(split):
        fold[members] = number
    return fold


def centres(arrays):
    """The prototypes' places in the features' own units."""
    metric, weights = arrays["metric"], arrays["prototype"].T
    inverse = arrays["inverse_std"]
    z = np.where(metric > 0, weights / (2 * np.where(metric > 0, metric, 1.0)), 0.0)
    return arrays["mean"] + np.where(inverse > 0, z / np.where(inverse > 0, inverse, 1.0), 0.0)


def same_numbers(fitted):
    """The folds' prototypes, numbered so that one number means about the same kind of prompt in all: by the assignment to the first
    fold's with the least sum of squared distances. -> per fold, the number of each prototype"""
    first, *_ = fitted[0]
    scale = np.sqrt(first["metric"]) * first["inverse_std"]
    reference = centres(first) * scale
    out = []
    for arrays, *_ in fitted:
        own = centres(arrays) * scale
        distance = ((own[:, None] - reference[None]) ** 2).sum(2)
        number = np.empty(len(own), int)
        left, right = linear_sum_assignment(distance)
        number[left] = right
        out.append(number)
    return out


def ours(rows, fold):
    """The shipped recipe, out of fold. -> (raw estimates, as the filter uses them)"""
    embedding = head.embed(rows, dict(np.load(train.HERE / "encoder.npz")))
    fitted = Parallel(measure.JOBS)(delayed(measure.fit)(rows, embedding, fold != f) for f in range(FOLDS))
    numbers = same_numbers(fitted)
    raw, served = [head.Estimates(*(np.empty(rows.q.shape) for _ in range(5)), np.empty(len(rows)), np.empty(len(rows), int)) for _ in range(2)]
    for f, (arrays, prior, _) in enumerate(fitted):
        test = fold == f
        estimates = head.predict(arrays, embedding[test], rows.surface[test])
        estimates.prototype = numbers[f][estimates.prototype]
        for into, values in ((raw, estimates), (served, estimates.shrunk(prior))):
            for name, array in vars(values).items():
                getattr(into, name)[test] = array
    return raw, served


def one_fold(rows, vectors, usd, train_rows, test):
    """What the other learned contenders say of `test`."""
    q, tokens, groups = rows.q[train_rows], np.exp(rows.ln_len[train_rows]), rows.groups[train_rows]
    x = np.hstack([vectors, rows.surface])
    knn_q, knn_len = C.neighbours(vectors[train_rows], vectors[test], q, tokens)
    classifier, best = C.best_route(x[train_rows], q, groups, x[test])
    count, clusters = C.clusters(vectors[train_rows], q, usd[train_rows], groups)
    weight, performance, efficiency = clusters.about(vectors[test])
    _, win = C.win_rate(vectors[train_rows], q, groups, vectors[test])
    category, model = C.category_model(vectors[train_rows], rows.datasets[train_rows], q, usd[train_rows], groups, vectors[test])
    said = {"knn_q": knn_q, "knn_len": knn_len, "best_route": best, "cluster_weight": weight, "performance": performance}
    return said | {"efficiency": efficiency, "win_rate": win, "category": category, "sr": model}, classifier, count


def others(rows, vectors, usd, fold):
    """-> (arrays by name over all rows, facts about the fits)"""
    results = Parallel(measure.JOBS)(delayed(one_fold)(rows, vectors, usd, fold != f, fold == f) for f in range(FOLDS))
    out = {}
    for name, first in results[0][0].items():
        out[name] = np.empty((len(rows), *first.shape[1:]), object if first.dtype.kind == "U" else first.dtype)
        for f in range(FOLDS):
            out[name][fold == f] = results[f][0][name]
    return out, {"best_route_classifiers": [r[1] for r in results], "avengers_clusters": [r[2] for r in results]}


def rounded(values, digits):
    """As lists; whole numbers without a point."""
    if isinstance(values, (list, np.ndarray)):
        return [rounded(v, digits) for v in values]
    value = round(float(values), digits)
    return int(value) if value == int(value) else value


def lines(rows, fold, raw, said=None):
    tokens = lambda above: np.minimum(np.exp(raw.ln_len + above), np.exp(head.LN_LENGTH_MAX))
    percentiles = [np.maximum(tokens(0.0), 1.0), tokens(raw.ln_p80), tokens(raw.ln_p90)]
    by_model = lambda values: dict(zip(rows.models, values))
    for i in range(len(rows)):
        estimate = lambda m: [*rounded([raw.quality[i, m], raw.quality_sd[i, m]], 4), *rounded([p[i, m] for p in percentiles], 1)]
        row = {
            "id": rows.ids[i],
            "dataset": rows.datasets[i],
            "fold": int(fold[i]),
            "prompt_tokens": int(rows.tokens[i]),
            "q": by_model(rounded(rows.q[i], 4)),
            "len": by_model(rounded(np.exp(rows.ln_len[i]), 0)),
            "ours": [estimate(m) for m in range(len(rows.models))],
            "familiarity": rounded(raw.familiarity[i], 4),
        }
        if said is not None:
            clusters = zip(said["cluster_weight"][i], said["performance"][i], said["efficiency"][i])
            row |= {
                "prototype": int(raw.prototype[i]),
                "knn": {"q": rounded(said["knn_q"][i], 4), "len": rounded(said["knn_len"][i], 1)},
                "best_route": rounded(said["best_route"][i], 4),
                "avengers": [{"weight": rounded(w, 4), "performance": rounded(p, 4), "efficiency": rounded(e, 4)} for w, p, e in clusters],
                "routellm": rounded(said["win_rate"][i], 4),
                "sr": rows.models[said["sr"][i]],
            }
        yield json.dumps(row, separators=(",", ":")) + "\n"


def write(name, text):
    path = DATA / name
    path.write_bytes(gzip.compress("".join(text).encode(), 9, mtime=0))
    print(f"{path.name}: {path.stat().st_size:,} bytes\n")


def settings(rows, usd_of, served, said):
    """-> {contender: [(setting, the model chosen for every prompt)]}, from what spends most to what spends least"""
    n, models = len(rows), len(rows.models)
    knn_ln = np.log(said["knn_len"])
    best = said["best_route"]
    out = {model: [("", np.full(n, m))] for m, model in enumerate(rows.models)}
    for name, quality, ln_len in (("ours", served.quality, served.ln_len), ("knn", said["knn_q"], knn_ln)):
        usd = usd_of(ln_len)
        out[name] = [(f"lambda {value:g}", (quality - value * usd).argmax(1)) for value in measure.LAMBDAS]
        enough = quality >= GOOD_ENOUGH
        cheapest = np.where(enough, usd, np.inf).argmin(1)
        out[f"omnirouter, {name}"] = [(f"quality {GOOD_ENOUGH:g}", np.where(enough.any(1), cheapest, quality.argmax(1)))]
    for fallback in (FALLBACK % models, 0):
        unsure = [(t, best.max(1) < t) for t in THRESHOLDS]
        name = f"best-route, else {rows.models[fallback]}"
        out[name] = [(f"threshold {t:g}", np.where(mask, fallback, best.argmax(1))) for t, mask in unsure]
    about = said["cluster_weight"], said["performance"], said["efficiency"]
    out["avengers-pro"] = [(f"p_w {w:g}", C.by_clusters(*about, w)) for w in reversed(PERFORMANCE_WEIGHTS)]
    out["routellm"] = [(f"threshold {t:g}", np.where(said["win_rate"] >= t, models - 1, 0)) for t in WIN_THRESHOLDS]
    out["semantic router"] = [("", said["sr"])]
    true = usd_of(rows.ln_len)
    out["oracle"] = [("", np.lexsort((true, -rows.q), axis=1)[:, 0])]
    return out


def points(rows, usd, chosen):
    """Mean quality and cost of every setting; the difference to the best single model with the standard error of the mean of the
    paired differences; and the share of prompts whose cheapest best model is chosen."""
    n, best = np.arange(len(rows)), rows.q[:, rows.q.mean(0).argmax()]
    for setting, choice in chosen:
        q = rows.q[n, choice]
        yield {
            "setting": setting,
            "quality": float(q.mean()),
            "usd_per_1000": float(1_000 * usd[n, choice].mean()),
            "gain": float((q - best).mean()),
            "gain_se": float((q - best).std(ddof=1) / np.sqrt(len(rows))),
            "best_model": float((choice == C.best_model(rows.q)).mean()),
            "share": [round(float((choice == m).mean()), 4) for m in range(len(rows.models))],
        }


def gap_closed(rows, usd, measured):
    """As in evaluate.routing; any contender may also send a share to the cheapest model."""
    single = list(zip(usd.mean(0), rows.q.mean(0)))
    low, high = min(single)[0], max(single)[0]
    of = lambda points: evaluate.area(evaluate.frontier(*zip(*points, min(single))), low, high)
    base = evaluate.area(evaluate.hull(evaluate.frontier(*zip(*single))), low, high)
    oracle = evaluate.area(evaluate.curve(rows.q, usd, rows.q, usd), low, high)
    return (of([(p["usd_per_1000"] / 1_000, p["quality"]) for p in measured]) - base) / (oracle - base)


def report(rows, fold, usd_of, served, said, facts):
    usd = usd_of(rows.ln_len)
    best = C.among_best(rows.q)
    wins = rows.q[:, -1] > rows.q[:, 0]
    prior_q, prior_ln = rows.q.mean(0), rows.ln_len.mean(0)
    estimates = {}
    for name, quality, ln_len in (("ours", served.quality, served.ln_len), ("knn", said["knn_q"], np.log(said["knn_len"]))):
        estimates[name] = {
            "auc": evaluate.auc(rows.q, quality),
            "r2_quality": evaluate.r2(rows.q, quality, prior_q),
            "r2_ln_len": evaluate.r2(rows.ln_len, ln_len, prior_ln),
            "mae_ln_len": float(np.abs(rows.ln_len - ln_len).mean()),
        }
    chosen = {}
    for name, choices in settings(rows, usd_of, served, said).items():
        measured = list(points(rows, usd, choices))
        chosen[name] = {"gap_closed": gap_closed(rows, usd, measured), "settings": measured}
    return {
        "models": rows.models,
        "rows": len(rows),
        "folds": np.bincount(fold).tolist(),
        **facts,
        "estimates": estimates,
        "best_route": {
            # As if one of the best models had been drawn for every prompt.
            "accuracy": float(best[np.arange(len(rows)), said["best_route"].argmax(1)].mean()),
            "accuracy_of_most_frequent": float(best.mean(0).max()),
            "published_accuracy": 0.392,
        },
        "routellm": {"auc": float(roc_auc_score(wins, said["win_rate"])), "wins": float(wins.mean()), "mean_win_rate": float(said["win_rate"].mean())},
        "semantic_router": {"category_accuracy": float((said["category"] == rows.datasets).mean())},
        "contenders": chosen,
    }


def main():
    files, minilm, name = LADDER
    rows = training_rows.load([DATA / file for file in files], bits=12)
    tariffs = train.load_tariffs(train.HERE / "tariffs.json", rows.models)
    usd_of = lambda ln_len: measure.costs(rows, tariffs, ln_len, np.ones(len(rows), bool))
    fold = folds(rows)
    raw, served = ours(rows, fold)
    said, facts = others(rows, train.load_minilm(DATA / minilm, rows), usd_of(rows.ln_len), fold)
    write(name, lines(rows, fold, raw, said))
    results = report(rows, fold, usd_of, served, said, facts)

    files, _, name = MIX6
    rows = training_rows.load([DATA / file for file in files], bits=12)
    fold = folds(rows)
    write(name, lines(rows, fold, ours(rows, fold)[0]))
    (train.HERE / "lab_report.json").write_text(json.dumps(results, indent=1) + "\n")
    card.show_lab(results)


if __name__ == "__main__":
    main()
