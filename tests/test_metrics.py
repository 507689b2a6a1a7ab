"""Metrics against scikit-learn and against naive loops."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from anytune import metrics
from anytune.errors import DataError, SettingsError

LABELS = st.integers(1, 40).flatmap(
    lambda rows: st.tuples(
        st.lists(st.integers(0, 4), min_size=rows, max_size=rows),
        st.lists(st.integers(0, 4), min_size=rows, max_size=rows),
    )
)
NUMBERS = st.integers(2, 30).flatmap(
    lambda rows: st.tuples(
        st.lists(st.integers(-20, 20), min_size=rows, max_size=rows),
        st.lists(st.integers(-20, 20), min_size=rows, max_size=rows),
    )
)


@given(LABELS)
@settings(max_examples=150, deadline=None)
def test_classification_metrics_equal_those_of_scikit_learn(sides):
    predicted, gold = sides
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {
            "accuracy": oracle.accuracy_score(gold, predicted),
            "macro_f1": oracle.f1_score(gold, predicted, average="macro", zero_division=0),
            "micro_f1": oracle.f1_score(gold, predicted, average="micro"),
            "matthews": oracle.matthews_corrcoef(gold, predicted),
        }
    for name, value in expected.items():
        assert metrics.METRICS[name].function(predicted, gold) == pytest.approx(value, abs=1e-12), name


def test_a_class_that_never_occurs_changes_no_f1():
    predicted, gold = [0, 3, 3, 0], [0, 3, 0, 0]
    assert metrics.macro_f1(predicted, gold) == pytest.approx((0.8 + 2 / 3) / 2)
    assert metrics.macro_f1([0, 1, 1, 0], [0, 1, 0, 0]) == pytest.approx((0.8 + 2 / 3) / 2)


def test_a_class_that_is_only_predicted_counts_as_a_failure():
    assert metrics.macro_f1([0, 0, 2], [0, 0, 1]) == pytest.approx(1 / 3)


@pytest.mark.parametrize(("predicted", "gold"), [([1, 1, 1], [0, 1, 2]), ([0, 1, 2], [1, 1, 1]), ([1, 1], [1, 1])])
def test_matthews_is_zero_for_constant_sides(predicted, gold):
    assert metrics.matthews(predicted, gold) == 0.0


def naive_ranks(values):
    return [sum(other < value for other in values) + (values.count(value) + 1) / 2 for value in values]


def naive_pearson(left, right):
    mean_left, mean_right = sum(left) / len(left), sum(right) / len(right)
    product = sum((a - mean_left) * (b - mean_right) for a, b in zip(left, right, strict=True))
    spread = sum((a - mean_left) ** 2 for a in left) * sum((b - mean_right) ** 2 for b in right)
    return product / math.sqrt(spread) if spread > 1e-12 else 0.0


@given(NUMBERS)
@settings(max_examples=100, deadline=None)
def test_correlations_equal_naive_loops(sides):
    predicted, gold = sides
    linear = naive_pearson(predicted, gold)
    ranked = naive_pearson(naive_ranks(predicted), naive_ranks(gold))
    assert metrics.pearson(predicted, gold) == pytest.approx(linear, abs=1e-9)
    assert metrics.spearman(predicted, gold) == pytest.approx(ranked, abs=1e-9)
    assert metrics.pearson_spearman(predicted, gold) == pytest.approx((linear + ranked) / 2, abs=1e-9)
    assert metrics.mse(predicted, gold) == pytest.approx(oracle.mean_squared_error(gold, predicted))


def test_correlations_equal_numpy_on_continuous_values():
    generator = np.random.default_rng(0)
    gold = generator.normal(size=200)
    predicted = 0.3 * gold + generator.normal(size=200)
    assert metrics.pearson(predicted, gold) == pytest.approx(np.corrcoef(predicted, gold)[0, 1])


@pytest.mark.parametrize("function", [metrics.pearson, metrics.spearman, metrics.pearson_spearman])
def test_correlation_with_a_constant_is_zero(function):
    assert function([2.5, 2.5, 2.5], [1.0, 2.0, 3.0]) == 0.0
    assert function([1.0, 2.0, 3.0], [0.1, 0.1, 0.1]) == 0.0
    assert function([1.0], [2.0]) == 0.0


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_correlation_survives_huge_and_tiny_values(scale):
    assert metrics.pearson(np.array([1.0, 2.0, 4.0]) * scale, [1.0, 2.0, 4.0]) == pytest.approx(1.0)


@pytest.mark.parametrize("name", list(metrics.METRICS))
@pytest.mark.parametrize(
    ("predicted", "gold", "words"),
    [
        ([], [], "nothing to score"),
        ([1, 0], [1], "2 predictions for 1 gold"),
        ([1, float("nan")], [1, 0], "1 of 2 predicted values are not finite, the first in row 1: nan"),
        ([1, 0], [float("inf"), 0], "1 of 2 gold values are not finite"),
        ([[1, 0]], [[1, 0]], "shape"),
        (["a"], ["b"], "not numbers"),
    ],
)
def test_values_that_cannot_be_scored_are_refused_in_words(name, predicted, gold, words):
    with pytest.raises(DataError, match=words):
        metrics.score(name, predicted, gold, 2)


@pytest.mark.parametrize("predicted", [[0.5, 1], [-1, 1]])
def test_classes_must_be_whole_numbers_from_zero(predicted):
    with pytest.raises(DataError, match="is no label index"):
        metrics.accuracy(predicted, [0, 1])


def test_a_label_beyond_the_classes_is_refused():
    with pytest.raises(DataError, match="predicted label 3 is outside the 3 classes"):
        metrics.score("accuracy", [0, 3], [0, 1], 3)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("accuracy", ["accuracy", "macro_f1"]),
        ("macro_f1", ["macro_f1", "accuracy"]),
        ("pearson", ["pearson", "spearman"]),
        ("pearson_spearman", ["pearson_spearman", "pearson", "spearman"]),
        ("mse", ["mse", "pearson", "spearman"]),
    ],
)
def test_score_puts_the_main_metric_first_and_companions_after(name, keys):
    scores = metrics.score(name, [0, 1, 1], [0, 1, 0], 2)
    assert list(scores) == keys
    assert all(type(value) is float for value in scores.values())


def test_an_unknown_metric_suggests_the_near_one():
    with pytest.raises(SettingsError, match="Try: macro_f1"):
        metrics.score("macro_f2", [0], [0], 1)


def test_only_errors_are_better_when_lower():
    assert [name for name, metric in metrics.METRICS.items() if not metric.higher_is_better] == ["mse"]
    assert all(metrics.METRICS[metrics.default_metric(kind)].kind == kind for kind in ("classification", "regression"))
