"""The head: standardised features to what is expected of every model's answer, and how familiar the prompt is.

Two parts are added. A small perceptron predicts what all models share, the prompt's mean quality, and every length. Prototypes,
the k-means centres of the training prompts, hold each model's deviation from the mean: routing needs the differences between
models, that is where the noise is, and averages over many neighbours carry less of it than any function of single rows.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GroupKFold
from sklearn.neural_network import MLPRegressor

KINDS = ("blend", "ridge", "mlp", "prototypes")
MEMBERS, HIDDEN = 2, 48  # Perceptrons, hidden units of each.
EPOCHS, BATCH = 50, 128
WEIGHT_DECAYS = (3.0, 10.0)  # The inner folds choose.
FOLDS = 3
PROTOTYPES, ROWS_PER_PROTOTYPE = 64, 40  # At most that many, with at least so many training prompts each.
SHARPNESS = 2.0  # Of the soft assignment, in mean squared distances to the nearest prototype.
SHRINKAGE = 3.0  # Rows of prior in every prototype.
MIX = 0.2  # The prototypes' part of the mean quality and of the lengths.
RIDGE_MEAN, RIDGE_DEVIATION, RIDGE_LENGTH = 100.0, 1_000.0, 100.0
LOCAL_ROWS = 50.0  # Answers of prior in every prototype's spread.
FAMILIAR, HALF_FAMILIAR = 0.9, 0.98  # Quantiles of the training prompts' distances with a familiarity of .98 and of .5.
CLIP = 4.0  # Standard deviations: what lies outside the training data cannot extrapolate without bound.
LN_LENGTH_MAX = float(np.log(131_072))  # The longest context of the models served today.
UNKNOWN_TOKENS = 256.0  # Where the data has no lengths.
QUALITY_SD_MAX = 0.5
NO_THRESHOLD = -1e30


@dataclass
class Estimates:
    """What the graph gives; every array but the last two is [rows, models]."""

    quality: np.ndarray
    ln_len: np.ndarray
    quality_sd: np.ndarray
    ln_p80: np.ndarray  # Above ln_len.
    ln_p90: np.ndarray
    familiarity: np.ndarray
    prototype: np.ndarray

    def shrunk(self, prior):
        """As the filter uses them: an unfamiliar prompt gets the models' priors."""
        f = self.familiarity[:, None]
        mix = lambda own, prior: prior + f * (own - prior)
        return Estimates(
            quality=mix(self.quality, prior["quality"]),
            ln_len=mix(self.ln_len, prior["ln_len"]),
            quality_sd=np.sqrt(mix(self.quality_sd**2, prior["quality_sd"] ** 2)),
            ln_p80=mix(self.ln_p80, prior["ln_p80"]),
            ln_p90=mix(self.ln_p90, prior["ln_p90"]),
            familiarity=self.familiarity,
            prototype=self.prototype,
        )


def embed(rows, encoder):
    """The encoder's unit vectors, as the graph computes them."""
    table = encoder["table"].astype(np.float64)
    sums = np.array([w.astype(np.float64) @ table[s] for s, w in zip(rows.slots, rows.weights)])
    vectors = sums + encoder["bias"]
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


class Scaler:
    def __init__(self, x, columns):
        self.mean, std = x.mean(0), x.std(0)
        # A feature that never varied in training says nothing about a prompt in which it does.
        self.inverse_std = np.where(std > 1e-6, 1 / np.maximum(std, 1e-6), 0.0)
        # Squared distances: those of the unit vectors as they are, plus the mean square over the surface features.
        self.metric = np.where(self.inverse_std > 0, np.concatenate([std[:columns] ** 2, np.full(len(std) - columns, 1 / (len(std) - columns))]), 0.0)

    def __call__(self, x):
        return np.clip((x - self.mean) * self.inverse_std, -CLIP, CLIP)


class Prototypes:
    """Soft assignment to k-means centres; logit k is minus the scaled squared distance, less what all prototypes share."""

    def __init__(self, z, metric, seed):
        count = max(1, min(PROTOTYPES, len(z) // ROWS_PER_PROTOTYPE))
        root = np.sqrt(metric)
        means = KMeans(count, n_init=1, max_iter=50, random_state=seed).fit(z * root)
        # A metric of 0 leaves the centre anywhere: at 0.
        centres = means.cluster_centers_ / np.where(root > 0, root, np.inf)
        self.metric = metric * SHARPNESS / max(means.inertia_ / len(z), 1e-9)
        self.weights = 2 * (centres * self.metric).T
        self.bias = -(centres**2 @ self.metric)

    def logits(self, z):
        return z @ self.weights + self.bias

    def distance(self, z, logits):
        return z**2 @ self.metric - logits.max(1)


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def ridge(x, y, strength):
    return np.linalg.solve(x.T @ x + strength * np.eye(x.shape[1]), x.T @ y)


def split_mean(q):
    """-> (mean over models, deviation of every model from it)."""
    mean = q.mean(1, keepdims=True)
    return mean, q - mean


class Point:
    """Quality and ln length of every model: y = max(z @ hidden + hidden_bias, threshold) @ output + bias + assignment @ values."""

    def __init__(self, z, q, ln_len, prototypes, kind, weight_decay, seed):
        models, lengths = q.shape[1], ln_len.shape[1]
        mean, deviation = split_mean(q)
        prior = np.concatenate([q.mean(0), ln_len.mean(0)])
        # What the parts predict: the mean, the deviations, the lengths, all about their priors.
        spread = np.hstack([np.ones((1, models)), np.zeros((1, lengths))])  # The mean goes to every model's quality.
        targets = np.hstack([mean - mean.mean(), ln_len - ln_len.mean(0)])
        to_outputs = np.vstack([spread, np.hstack([np.zeros((lengths, models)), np.eye(lengths)])])
        self.values = np.zeros((prototypes.weights.shape[1], models + lengths))
        self.hidden, self.hidden_bias = np.zeros((z.shape[1], 0)), np.zeros(0)
        self.threshold, self.output, self.bias = np.zeros(0), np.zeros((0, models + lengths)), prior
        share = {"blend": MIX, "ridge": 0.0, "mlp": 0.0, "prototypes": 1.0}[kind]
        assignment = softmax(prototypes.logits(z))
        if share > 0:
            self.values += share * ridge(assignment, targets, SHRINKAGE) @ to_outputs
        if kind in ("blend", "prototypes"):
            self.values[:, :models] += ridge(assignment, deviation - deviation.mean(0), SHRINKAGE)
        if kind in ("blend", "mlp"):
            # The multi-layer head alone has to know the deviations as well.
            own = targets if kind == "blend" else np.hstack([q - q.mean(0), ln_len - ln_len.mean(0)])
            self._perceptrons(z, own, to_outputs if kind == "blend" else np.eye(models + lengths), (1 - share), weight_decay, seed)
        if kind == "prototypes":
            # A graph needs a hidden layer: this one adds nothing.
            self.hidden, self.hidden_bias = np.zeros((z.shape[1], 2)), np.zeros(2)
            self.threshold, self.output = np.zeros(2), np.zeros((2, models + lengths))
        if kind == "ridge":
            linear = np.hstack(
                [ridge(z, mean - mean.mean(), RIDGE_MEAN) + ridge(z, deviation - deviation.mean(0), RIDGE_DEVIATION), ridge(z, ln_len - ln_len.mean(0), RIDGE_LENGTH)]
            )
            self.hidden, self.hidden_bias = linear, np.zeros(models + lengths)
            self.threshold, self.output = np.full(models + lengths, NO_THRESHOLD), np.eye(models + lengths)

    def _perceptrons(self, z, targets, to_outputs, share, weight_decay, seed):
        std = np.maximum(targets.std(0), 1e-6)
        for member in range(MEMBERS):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # The number of epochs is the regulariser.
                net = MLPRegressor(
                    hidden_layer_sizes=(HIDDEN,), alpha=weight_decay, max_iter=EPOCHS, batch_size=min(BATCH, len(z)), random_state=seed * MEMBERS + member
                ).fit(z, (targets / std) if targets.shape[1] > 1 else (targets / std).ravel())
            part = share / MEMBERS * std
            self.hidden = np.hstack([self.hidden, net.coefs_[0]])
            self.hidden_bias = np.concatenate([self.hidden_bias, net.intercepts_[0]])
            self.threshold = np.concatenate([self.threshold, np.zeros(HIDDEN)])
            self.output = np.vstack([self.output, (net.coefs_[1] * part) @ to_outputs])
            self.bias = self.bias + (net.intercepts_[1] * part) @ to_outputs

    def __call__(self, z, assignment):
        return np.maximum(z @ self.hidden + self.hidden_bias, self.threshold) @ self.output + self.bias + assignment @ self.values


def out_of_fold(z_of, rows, kind, weight_decay, seed):
    """-> (predictions, distances): for every training row those of a fit without its group. Without a decay only distances."""
    x, q, ln_len, groups = rows
    predicted, distance = np.empty((len(x), q.shape[1] + ln_len.shape[1])), np.empty(len(x))
    for left, right in GroupKFold(min(FOLDS, len(set(groups)))).split(x, groups=groups):
        scaler = z_of(x[left])
        z, held = scaler(x[left]), scaler(x[right])
        prototypes = Prototypes(z, scaler.metric, seed)
        logits = prototypes.logits(held)
        if weight_decay is not None:
            predicted[right] = Point(z, q[left], ln_len[left], prototypes, kind, weight_decay, seed)(held, softmax(logits))
        distance[right] = prototypes.distance(held, logits)
    return predicted, distance


def local_spread(residual, nearest, count, level):
    """Quantile of the residuals in every prototype, shrunk to that of all: [prototypes, models], at least 0."""
    everywhere = np.quantile(residual, level, axis=0)
    out = np.tile(everywhere, (count, 1))
    for k in range(count):
        own = residual[nearest == k]
        if len(own) >= 5:
            out[k] = (len(own) * np.quantile(own, level, axis=0) + LOCAL_ROWS * everywhere) / (len(own) + LOCAL_ROWS)
    return np.maximum(out, 0.0)


def between(residual, nearest, count):
    """Variance of a prototype's mean residual beyond what its number of rows explains, [models]; and mean variance within."""
    within, excess, rows = 0.0, 0.0, 0
    for k in range(count):
        own = residual[nearest == k]
        if len(own) >= 5:
            variance = own.var(0, ddof=1)
            within = within + len(own) * variance
            excess = excess + len(own) * (own.mean(0) ** 2 - variance / len(own))
            rows += len(own)
    if rows == 0:
        return np.zeros(residual.shape[1]), residual.var(0)
    return np.maximum(excess / rows, 0.0), within / rows


def quality_spread(residual, nearest, count):
    """Standard deviation of the predicted quality about the mean score of prompts of that prototype, [prototypes, models]: what
    differs between kinds of prompts and is not predicted, and what the number of training rows leaves open."""
    kinds, within = between(residual, nearest, count)
    rows = np.bincount(nearest, minlength=count)[:, None]
    return np.minimum(np.sqrt(kinds + within / (rows + 1)), QUALITY_SD_MAX)


def error_of_means(truth, predicted, models):
    """Squared error of the mean quality and of the mean length, each in units of its variance."""
    parts = [part for part in (slice(0, models), slice(models, None)) if truth[:, part].shape[1]]
    relative = lambda part: ((truth - predicted)[:, part].mean(1) ** 2).mean() / max(truth[:, part].mean(1).var(), 1e-9)
    return sum(relative(part) for part in parts)


def fit(embedding, surface, q, ln_len, groups, kind="blend", weight_decay=None, seed=0):
    """-> (arrays of the graph, priors, weight decay). The inner folds choose the decay and measure the spreads; with a decay
    given, the spreads are left out: what is fitted is for measuring quality, median lengths and familiarity."""
    x = np.hstack([embedding, surface])
    columns, models = embedding.shape[1], q.shape[1]
    has_lengths = ln_len.shape[1] > 0
    z_of = lambda part: Scaler(part, columns)
    truth = np.hstack([q, ln_len])
    rows = (x, q, ln_len, groups)
    if weight_decay is None:
        choices = WEIGHT_DECAYS if kind in ("blend", "mlp") else WEIGHT_DECAYS[:1]
        inner = {decay: out_of_fold(z_of, rows, kind, decay, seed) for decay in choices}
        weight_decay = min(inner, key=lambda decay: error_of_means(truth, inner[decay][0], models))
        predicted, distance = inner[weight_decay]
    else:
        predicted, distance = truth, out_of_fold(z_of, rows, kind, None, seed)[1]

    scaler = z_of(x)
    z = scaler(x)
    prototypes = Prototypes(z, scaler.metric, seed)
    point = Point(z, q, ln_len, prototypes, kind, weight_decay, seed)
    logits = prototypes.logits(z)
    nearest, count = logits.argmax(1), logits.shape[1]
    residual = truth - predicted
    sd = quality_spread(residual[:, :models], nearest, count)
    length_residual = residual[:, models:] if has_lengths else np.zeros((len(x), models))
    p80, p90 = (local_spread(length_residual, nearest, count, level) for level in (0.8, 0.9))

    familiar, midpoint = np.quantile(distance, (FAMILIAR, HALF_FAMILIAR))
    slope = 4.0 / max(midpoint - familiar, 1e-3)

    wide = lambda part: np.hstack([part, np.zeros((len(part), 5 * models - part.shape[1]))])
    bias = np.concatenate([point.bias, [] if has_lengths else np.full(models, np.log(UNKNOWN_TOKENS))])
    arrays = {
        "mean": scaler.mean,
        "inverse_std": scaler.inverse_std,
        "clip": np.array([CLIP]),
        "metric": prototypes.metric,
        "hidden": point.hidden,
        "hidden_bias": point.hidden_bias,
        "threshold": point.threshold,
        "output": wide(point.output),
        "output_bias": np.concatenate([bias, np.zeros(3 * models)]),
        "prototype": prototypes.weights,
        "prototype_bias": prototypes.bias,
        "prototype_values": np.hstack([wide(point.values)[:, : 2 * models], sd, p80, np.maximum(p80, p90)]),
        "familiarity_slope": np.array([slope]),
        "familiarity_midpoint": np.array([midpoint]),
    }
    prior_residual = ln_len - ln_len.mean(0) if has_lengths else np.zeros((len(x), models))
    kinds, _ = between(q - q.mean(0), nearest, count)
    prior = {
        "quality": q.mean(0),
        "quality_sd": np.sqrt(kinds),
        "ln_len": ln_len.mean(0) if has_lengths else np.full(models, np.log(UNKNOWN_TOKENS)),
        "ln_p80": np.maximum(np.quantile(prior_residual, 0.8, axis=0), 0.0),
        "ln_p90": np.maximum(np.quantile(prior_residual, 0.9, axis=0), 0.0),
    }
    return arrays, prior, weight_decay


def predict(arrays, embedding, surface):
    """-> Estimates, as the graph computes them."""
    a = arrays
    z = np.clip((np.hstack([embedding, surface]) - a["mean"]) * a["inverse_std"], -CLIP, CLIP)
    logits = z @ a["prototype"] + a["prototype_bias"]
    y = np.maximum(z @ a["hidden"] + a["hidden_bias"], a["threshold"]) @ a["output"] + a["output_bias"] + softmax(logits) @ a["prototype_values"]
    quality, ln_len, sd, p80, p90 = np.split(y, 5, axis=1)
    distance = z**2 @ a["metric"] - logits.max(1)
    with np.errstate(over="ignore"):
        familiarity = 1 / (1 + np.exp(a["familiarity_slope"][0] * (distance - a["familiarity_midpoint"][0])))
    p80 = np.clip(p80, 0.0, LN_LENGTH_MAX)
    return Estimates(
        quality=np.clip(quality, 0.0, 1.0),
        ln_len=np.clip(ln_len, 0.0, LN_LENGTH_MAX),
        quality_sd=np.clip(sd, 0.0, QUALITY_SD_MAX),
        ln_p80=p80,
        ln_p90=np.clip(np.maximum(p90, p80), 0.0, LN_LENGTH_MAX),
        familiarity=familiarity,
        prototype=logits.argmax(1),
    )
