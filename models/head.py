"""The head: standardised features to quality and ln(output tokens) of every model.

The mean of a ridge and of a small perceptron. The ridge predicts the prompt's mean over models, and each model's deviation
from that mean, regularised more (quality: from the surface features alone): routing needs the differences, and those are
where the noise is. The strengths were chosen on splits train and val (README.md).
"""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor

QUALITY_RIDGE = (100.0, 1_000.0)  # mean, deviation
LENGTH_RIDGE = (100.0, 300.0)
HIDDEN = 64
WEIGHT_DECAY = 10.0
EPOCHS = 30
LN_LENGTH_MAX = float(np.log(131_072))  # The longest context of the models served today.
NO_THRESHOLD = -1e30
CLIP = 4.0  # Standard deviations: what lies outside the training data cannot extrapolate without bound.


def embed(rows, encoder):
    """The encoder's unit vectors, as the graph computes them."""
    table = encoder["table"].astype(np.float64)
    sums = np.array([w.astype(np.float64) @ table[s] for s, w in zip(rows.slots, rows.weights)])
    vectors = sums + encoder["bias"]
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def ridge(z, y, strength):
    return np.linalg.solve(z.T @ z + strength * np.eye(z.shape[1]), z.T @ (y - y.mean(0)))


def mean_and_deviations(z, y, strengths, deviation_columns):
    mean = y.mean(1, keepdims=True)
    w = np.repeat(ridge(z, mean, strengths[0]), y.shape[1], axis=1)
    w[deviation_columns] += ridge(z[:, deviation_columns], y - mean, strengths[1])
    return w


def fit(embedding, surface, q, ln_len, seed=0):
    """-> arrays of the graph: outputs are quality of all models, then ln output tokens of all models.

    x = clip(x, low, high); hidden = max(x @ hidden + hidden_bias, threshold); y = clip(hidden @ output + output_bias, ...).
    Standardising is folded into the first matrix. The ridge is hidden units without a threshold: one product for both.
    """
    x = np.hstack([embedding, surface])
    mean, std = x.mean(0), x.std(0)
    # A feature that never varied in training says nothing about a prompt in which it does.
    inverse_std = np.where(std > 1e-6, 1 / np.maximum(std, 1e-6), 0.0)
    z = np.clip((x - mean) * inverse_std, -CLIP, CLIP)
    y = np.hstack([q, ln_len])
    y_mean, y_std = y.mean(0), np.maximum(y.std(0), 1e-6)
    columns = np.arange(embedding.shape[1], x.shape[1])
    linear = np.hstack(
        [mean_and_deviations(z, q, QUALITY_RIDGE, columns), mean_and_deviations(z, ln_len, LENGTH_RIDGE, np.arange(x.shape[1]))]
    )
    linear_bias = y_mean - z.mean(0) @ linear
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # The number of epochs is the regulariser.
        perceptron = MLPRegressor(
            hidden_layer_sizes=(HIDDEN,), alpha=WEIGHT_DECAY, max_iter=EPOCHS, batch_size=32, random_state=seed
        ).fit(z, (y - y_mean) / y_std)
    first = np.hstack([linear, perceptron.coefs_[0]])
    models = len(q[0])
    return {
        "low": mean - CLIP * std,
        "high": mean + CLIP * std,
        "hidden": first * inverse_std[:, None],
        "hidden_bias": np.concatenate([linear_bias, perceptron.intercepts_[0]]) - mean * inverse_std @ first,
        "threshold": np.concatenate([np.full(2 * models, NO_THRESHOLD), np.zeros(HIDDEN)]),
        "output": np.vstack([np.eye(2 * models), perceptron.coefs_[1] * y_std]) / 2,
        "output_bias": (perceptron.intercepts_[1] * y_std + y_mean) / 2,
        "output_low": np.zeros(2 * models),
        "output_high": np.concatenate([np.ones(models), np.full(models, LN_LENGTH_MAX)]),
    }


def predict(head, embedding, surface):
    """-> (quality, ln output tokens), as the graph computes them."""
    x = np.clip(np.hstack([embedding, surface]), head["low"], head["high"])
    hidden = np.maximum(x @ head["hidden"] + head["hidden_bias"], head["threshold"])
    y = np.clip(hidden @ head["output"] + head["output_bias"], head["output_low"], head["output_high"])
    models = y.shape[1] // 2
    return y[:, :models], y[:, models:]
