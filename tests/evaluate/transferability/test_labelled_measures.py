"""Measures that read features and labels of the target, each against a naive reference."""

from __future__ import annotations

import math

import numpy as np
import pytest

from anytune.errors import DataError, SettingsError
from anytune.evaluate import transferability as measures
from anytune.evaluate.transferability.hscore import shrinkage


def sample(
    rows: int = 60, width: int = 5, classes: int = 3, signal: float = 1.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Features whose class means lie ``signal`` standard deviations out, and labels."""
    draw = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    centres = draw.normal(size=(classes, width))
    return draw.normal(size=(rows, width)) + signal * centres[labels], labels


def turned(features: np.ndarray, seed: int = 3) -> np.ndarray:
    width = features.shape[1]
    return features @ np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]


# LogME


def reference_logme(features: np.ndarray, columns: np.ndarray) -> float:
    """The same evidence by its definition, log N(y; 0, I / beta + F F^T / alpha), n^3 a look."""
    optimise = pytest.importorskip("scipy.optimize")
    values, n = [], len(features)
    for y in columns.T:

        def minus(log_precisions: np.ndarray, y: np.ndarray = y) -> float:
            alpha, beta = np.exp(np.clip(log_precisions, -30, 30))
            covariance = np.eye(n) / beta + features @ features.T / alpha
            sign, log_determinant = np.linalg.slogdet(covariance)
            assert sign > 0
            return 0.5 * (n * math.log(2 * math.pi) + log_determinant + y @ np.linalg.solve(covariance, y)) / n

        exact = {"xatol": 1e-8, "fatol": 1e-13}
        starts = [(a, b) for a in (-4.0, 0.0, 4.0) for b in (0.0, 3.0)]
        values.append(
            -min(optimise.minimize(minus, start, method="Nelder-Mead", options=exact).fun for start in starts)
        )
    return float(np.mean(values))


@pytest.mark.parametrize(("rows", "width", "signal"), [(24, 4, 1.0), (16, 20, 0.5), (24, 4, 0.0)])
def test_logme_is_the_maximal_evidence(rows, width, signal):
    features, labels = sample(rows, width, 2, signal)
    found = measures.logme(features, labels, classes=2)
    assert found == pytest.approx(reference_logme(features, np.eye(2)[labels]), abs=1e-8)


def test_logme_of_numbers():
    features, _ = sample(24, 4)
    numbers = features @ [1.0, -2.0, 0.5, 0.0] + np.random.default_rng(1).normal(size=24)
    found = measures.logme(features, numbers, classes=None)
    assert found == pytest.approx(reference_logme(features, numbers[:, None]), abs=1e-8)


def test_logme_rises_with_the_signal_and_is_blind_to_rotation_scale_and_order():
    found = [measures.logme(*sample(signal=signal), classes=3) for signal in (0.0, 0.5, 1.0, 2.0, 4.0)]
    assert found == sorted(found)
    assert found[-1] > found[0] + 0.5
    features, labels = sample()
    same = measures.logme(features, labels, classes=3)
    order = np.random.default_rng(0).permutation(len(labels))
    for other in (turned(features), 1e3 * features, 1e-3 * features):
        assert measures.logme(other, labels, classes=3) == pytest.approx(same, abs=1e-9)
    assert measures.logme(features[order], labels[order], classes=3) == pytest.approx(same, abs=1e-9)
    assert measures.logme(features, labels, classes=7) == pytest.approx(same, abs=1e-12)  # four that do not occur


def test_logme_stays_a_number_where_labels_are_exactly_linear_or_features_say_nothing():
    labels = np.arange(20) % 2
    for features in (np.eye(2)[labels], np.zeros((20, 3)), np.ones((20, 3)), np.eye(20)):
        assert math.isfinite(measures.logme(features, labels, classes=2))
    nothing = measures.logme(np.zeros((20, 3)), labels, classes=2)
    assert nothing == pytest.approx(-0.5 * (math.log(2 * math.pi * 0.5) + 1))  # mean square of a column is 1/2
    assert measures.logme(np.eye(2)[labels], labels, classes=2) > nothing + 1


# LEEP and NCE


def test_leep_and_nce_against_loops():
    draw = np.random.default_rng(0)
    theta, labels = draw.dirichlet(np.ones(4), 30), draw.integers(0, 3, 30)
    joint = np.zeros((3, 4))
    for row, label in zip(theta, labels, strict=True):
        joint[label] += row / 30
    total = 0.0
    for row, label in zip(theta, labels, strict=True):
        total += math.log(sum(joint[label, z] / joint[:, z].sum() * row[z] for z in range(4)))
    assert measures.leep(theta, labels, classes=3) == pytest.approx(total / 30)
    hard = theta.argmax(axis=1)
    counts = np.array([[np.sum((labels == y) & (hard == z)) for z in range(4)] for y in range(3)]) / 30
    entropy = -sum(p * math.log(p / counts[:, z].sum()) for y in range(3) for z, p in enumerate(counts[y]) if p)
    assert measures.nce(theta, labels, classes=3) == pytest.approx(-entropy)


def test_leep_and_nce_are_0_for_a_source_that_knows_and_the_entropy_of_labels_for_one_that_does_not():
    labels = np.array([0, 1, 2, 0, 1, 2])
    knows = np.eye(3)[[1, 2, 0, 1, 2, 0]]  # by other names
    same = np.tile([0.2, 0.5, 0.3], (6, 1))
    for function in (measures.leep, measures.nce):
        assert function(knows, labels, classes=3) == pytest.approx(0, abs=1e-12)
        assert function(same, labels, classes=3) == pytest.approx(-math.log(3))
        assert function(same, labels, classes=5) == pytest.approx(-math.log(3))
    with pytest.raises(DataError, match="do not sum to 1"):
        measures.leep(2 * same, labels, classes=3)
    with pytest.raises(DataError, match="5 labels for 6 answers"):
        measures.nce(same, labels[:5], classes=3)


# H-score and TransRate


def test_the_shrinkage_is_ledoit_and_wolfs():
    covariance = pytest.importorskip("sklearn.covariance")
    for rows, width in ((60, 5), (12, 30)):
        features, _ = sample(rows, width)
        features = features - features.mean(axis=0)
        assert shrinkage(features) == pytest.approx(covariance.ledoit_wolf_shrinkage(features, assume_centered=True))


@pytest.mark.parametrize(("rows", "width"), [(60, 5), (12, 30)])
def test_h_score_against_its_formula(rows, width):
    features, labels = sample(rows, width)
    centred = features - features.mean(axis=0)
    means = np.array([centred[labels == label].mean(axis=0) for label in labels])
    share, covariance = shrinkage(centred), centred.T @ centred / rows
    shrunk = (1 - share) * covariance + share * np.trace(covariance) / width * np.eye(width)
    expected = (1 - share) * np.trace(np.linalg.inv(shrunk) @ means.T @ means / rows)
    assert measures.h_score(features, labels, classes=3) == pytest.approx(expected)


def test_trans_rate_against_its_formula():
    features, labels = sample(12, 20)
    labels[:3] = 0  # classes of different size
    rows = features - features.mean(axis=0)
    rows = rows / np.sqrt((rows**2).sum(axis=1).mean())

    def rate(part: np.ndarray) -> float:
        return 0.5 * np.linalg.slogdet(np.eye(20) + part.T @ part / (len(part) * 0.01))[1]

    expected = rate(rows) - sum(np.mean(labels == c) * rate(rows[labels == c]) for c in range(3))
    assert measures.trans_rate(features, labels, classes=3, distortion=0.01) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["h_score", "trans_rate"])
def test_class_measures_rise_with_the_signal_and_are_blind_to_rotation_scale_and_origin(name):
    function = getattr(measures, name)
    found = [function(*sample(signal=signal), classes=3) for signal in (0.0, 1.0, 3.0)]
    assert found == sorted(found)
    features, labels = sample()
    for other in (turned(features), 1e4 * features, features + 7):
        assert function(other, labels, classes=3) == pytest.approx(function(features, labels, classes=3), rel=1e-7)
    assert function(np.ones((6, 4)), [0, 1, 2, 0, 1, 2], classes=3) == 0


# Linear probe


def test_a_linear_probe_scores_rows_it_has_not_seen():
    features, labels = sample(90, 5, signal=4.0)
    assert measures.linear_probe(features, labels, classes=3) > 0.9
    wide, noise = sample(90, 120, signal=0.0)  # enough features to fit the training rows exactly
    assert measures.linear_probe(wide, noise, classes=3) < 0.55
    numbers = features @ np.arange(5.0) + 0.1 * np.random.default_rng(0).normal(size=90)
    assert measures.linear_probe(features, numbers, classes=None) > 0.95
    assert -1.0 < measures.linear_probe(features, numbers, classes=None, metric="mse") < 0
    assert measures.linear_probe(features, labels, classes=3, metric="matthews") > 0.85
    again = [measures.linear_probe(*sample(30, 5), classes=3, seed=seed) for seed in (1, 1, 2)]
    assert again[0] == again[1]


def test_a_linear_probe_of_few_rows():
    assert 0 <= measures.linear_probe(*sample(4, 3, 2), classes=2) <= 1
    with pytest.raises(DataError, match="2 rows"):
        measures.linear_probe(np.eye(2), [0, 1], classes=2)
    with pytest.raises(SettingsError, match="folds=2"):
        measures.linear_probe(*sample(), classes=3, folds=2)
    with pytest.raises(SettingsError, match="metric for classification 'pearson'"):
        measures.linear_probe(*sample(), classes=3, metric="pearson")


# Bad input, the same for all


@pytest.mark.parametrize("name", ["logme", "h_score", "trans_rate", "linear_probe", "leep", "nce"])
def test_one_class_wrong_labels_and_nan_are_said(name):
    function = getattr(measures, name)
    features, labels = np.full((6, 2), 0.5), np.array([0, 1, 0, 1, 0, 1])
    function(features, labels, classes=2)
    with pytest.raises(DataError, match="all 6 labels are class 0"):
        function(features, labels * 0, classes=2)
    for bad in (-100, 2, 0.5):
        with pytest.raises(DataError, match="outside the 2 classes"):
            function(features, np.where(labels == 1, bad, 0), classes=2)
    with pytest.raises(DataError, match="1 of 12 numbers"):
        function(np.where(np.arange(12).reshape(6, 2) == 3, np.nan, features), labels, classes=2)
    with pytest.raises(DataError, match="5 labels for 6"):
        function(features, labels[:5], classes=2)


def test_constant_numbers_are_said_and_numbers_are_binned_for_measures_of_classes():
    with pytest.raises(DataError, match="all 6 labels are 2"):
        measures.logme(np.eye(6), np.full(6, 2.0), classes=None)
    found = measures.binned(np.arange(20.0))
    assert np.bincount(found).tolist() == [4] * 5
    assert (np.diff(found) >= 0).all()
    assert measures.binned([1, 1, 1, 1, 9, 9], bins=3).tolist() == [0, 0, 0, 0, 1, 1]


def test_the_table_of_measures_names_functions_that_are_there():
    prefixes = {"neuron_overlap": "overlap", "size": "size_score", "random": "random_score", "tfidf": "tfidf_cosines"}
    for name, one in measures.MEASURES.items():
        assert one.name == name
        assert callable(getattr(measures, prefixes.get(name, name.removeprefix("prompt_"))))
