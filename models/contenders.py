"""What the learned contenders of the lab know of a prompt. Each fits on some rows and speaks of others; fit(...) never sees the
others' scores. Arrays are [rows, models], models from small to large; q of the data is 0 or 1.

Sources: specifications of the published routers, re-implemented on our rows; where they use an encoder that is not at hand, all
use the same sentence vectors (all-MiniLM-L6-v2, data/minilm.npz).
"""

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

INNER_FOLDS = 3
NEIGHBOURS, NEAREST = 10, 1e-6  # RouteBalance: k, and what is added to every distance.
STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0)  # Of the logistic regressions (scikit-learn's C).
PERCEPTRON_DECAYS, HIDDEN, EPOCHS = (3.0, 10.0, 30.0), 48, 60
CLUSTERS = (16, 32, 64)
TOP_CLUSTERS, SHARPNESS, KMEANS_SEED, KMEANS_STARTS = 3, 5.0, 42, 10  # Avengers-Pro: top_k, beta, and its k-means.
PERFORMANCE_WEIGHT = 0.8  # Avengers-Pro's headline setting: for it the number of clusters is chosen.


def inner_folds(groups):
    return list(GroupKFold(INNER_FOLDS).split(groups, groups=groups))


def neighbours(train, test, q, tokens):
    """RouteBalance's own estimates: means over the k nearest training prompts, weights 1 / (1 - cosine + 1e-6).
    -> (quality, mean output tokens)"""
    distance = 1.0 - test @ train.T
    near = np.argsort(distance, axis=1, kind="stable")[:, :NEIGHBOURS]
    weight = 1.0 / (np.maximum(np.take_along_axis(distance, near, 1), 0.0) + NEAREST)
    weight /= weight.sum(1, keepdims=True)
    mean = lambda of: (weight[:, :, None] * of[near]).sum(1)
    return mean(q), mean(tokens)


def best_model(q):
    """The best model of every prompt, of equals the smallest."""
    return q.argmax(1)


def among_best(q):
    """[rows, models]: 1 over the number of best models for each of them, 0 for the others."""
    best = q == q.max(1, keepdims=True)
    return best / best.sum(1, keepdims=True)


def logistic():
    for strength in STRENGTHS:
        yield f"logistic, C {strength:g}", lambda strength=strength: LogisticRegression(C=strength, max_iter=5_000)


def perceptrons():
    for decay in PERCEPTRON_DECAYS:
        make = lambda decay=decay: MLPClassifier((HIDDEN,), alpha=decay, max_iter=EPOCHS, batch_size=128, random_state=0)
        yield f"perceptron, decay {decay:g}", make


def probabilities(make, x, classes, others):
    """Of a classifier fitted on x, whose rows belong to each class with the given weights. -> [others, classes]"""
    row, label = np.nonzero(classes)
    scaler, model = StandardScaler().fit(x), make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # The number of epochs is the regulariser.
        model.fit(scaler.transform(x)[row], label, sample_weight=classes[row, label])
    out = np.zeros((len(others), classes.shape[1]))
    out[:, model.classes_] = model.predict_proba(scaler.transform(others))
    return out


def chosen_classifier(candidates, x, classes, groups):
    """The candidate with the smallest log loss over the inner folds. -> (name, maker)"""

    def loss(make):
        predicted = np.empty(classes.shape)
        for left, right in inner_folds(groups):
            predicted[right] = probabilities(make, x[left], classes[left], x[right])
        return -(classes * np.log(np.maximum(predicted, 1e-9))).sum()

    return min(candidates, key=lambda candidate: loss(candidate[1]))


def best_route(x, q, groups, others):
    """BEST-Route with a class per model: probabilities that each model is the best. Its labels come from a judge's scores, which are
    seldom equal; ours are 0 or 1, so the best models of a prompt share it. (Given to the smallest, half of the prompts would
    be the smallest model's.) -> (name of the classifier, probabilities)"""
    classes = among_best(q)
    name, make = chosen_classifier([*logistic(), *perceptrons()], x, classes, groups)
    return name, probabilities(make, x, classes, others)


def one_of(labels, count):
    return np.eye(count)[labels]


def win_rate(vectors, q, groups, others):
    """RouteLLM's probability that the largest model beats the smallest (an equal score is no win). For one pair of models its matrix
    factorisation is a logistic function of the sentence vector; so that is fitted. -> (name, probabilities)"""
    classes = one_of((q[:, -1] > q[:, 0]).astype(int), 2)
    name, make = chosen_classifier(logistic(), vectors, classes, groups)
    return name, probabilities(make, vectors, classes, others)[:, 1]


def category_model(vectors, datasets, q, usd, groups, others):
    """vLLM Semantic Router: a classifier of categories (here: of data sets), and per category the model with the best mean score,
    of equals the cheapest. -> (categories, models)"""
    names, labels = np.unique(datasets, return_inverse=True)
    classes = one_of(labels, len(names))
    _, make = chosen_classifier(logistic(), vectors, classes, groups)
    category = probabilities(make, vectors, classes, others).argmax(1)
    best = [max(range(q.shape[1]), key=lambda m: (q[labels == c, m].mean(), -usd[labels == c, m].mean())) for c in range(len(names))]
    return names[category], np.array(best)[category]


@dataclass
class Clusters:
    """Avengers-Pro: k-means of the sentence vectors; per cluster every model's performance and efficiency, each 0 to 1."""

    centres: np.ndarray
    performance: np.ndarray
    efficiency: np.ndarray

    @staticmethod
    def fit(vectors, q, usd, count):
        means = KMeans(count, n_init=KMEANS_STARTS, random_state=KMEANS_SEED).fit(vectors)
        of = lambda values: np.array([values[means.labels_ == k].mean(0) for k in range(count)])
        score, cost = of(q), of(usd)
        low, high = score.min(1, keepdims=True), score.max(1, keepdims=True)
        # As its code has it: scores from the cluster's worst to its best model, costs from 0 to its dearest.
        performance = np.where(high > low, (score - low) / np.where(high > low, high - low, 1.0), 1.0)
        return Clusters(means.cluster_centers_, performance, 1.0 - cost / cost.max(1, keepdims=True))

    def nearest(self, vectors):
        """-> (clusters, weights), [rows, 3]"""
        distance = 1.0 - vectors @ self.centres.T
        near = np.argsort(distance, axis=1, kind="stable")[:, :TOP_CLUSTERS]
        weight = np.exp(-SHARPNESS * (np.take_along_axis(distance, near, 1) - distance.min(1, keepdims=True)))
        return near, weight / weight.sum(1, keepdims=True)

    def about(self, vectors):
        """-> (weights [rows, 3], performance [rows, 3, models], efficiency)"""
        near, weight = self.nearest(vectors)
        return weight, self.performance[near], self.efficiency[near]


def by_clusters(weight, performance, efficiency, performance_weight):
    """Avengers-Pro's choice: every near cluster ranks the models by p_w performance + (1 - p_w) efficiency and gives its weight / rank
    to each; of equals the smaller model."""
    score = performance_weight * performance + (1.0 - performance_weight) * efficiency
    rank = np.argsort(np.argsort(-score, axis=2, kind="stable"), axis=2, kind="stable")
    return (weight[:, :, None] / (rank + 1)).sum(1).argmax(1)


def clusters(vectors, q, usd, groups):
    """-> (number of clusters, Clusters). The number with the best mean score at the headline setting over the inner folds."""

    def mean_score(count):
        total = 0.0
        for left, right in inner_folds(groups):
            choice = by_clusters(*Clusters.fit(vectors[left], q[left], usd[left], count).about(vectors[right]), PERFORMANCE_WEIGHT)
            total += q[right, choice].sum()
        return total

    count = max(CLUSTERS, key=mean_score)
    return count, Clusters.fit(vectors, q, usd, count)
