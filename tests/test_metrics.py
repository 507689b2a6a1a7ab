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


ROW_METRICS = [name for name, metric in metrics.METRICS.items() if metric.kind in ("classification", "regression")]


@pytest.mark.parametrize("name", ROW_METRICS)
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
    lower = [name for name, metric in metrics.METRICS.items() if not metric.higher_is_better]
    assert lower == ["mse", "perplexity"]


def test_every_kind_has_a_default_metric_of_its_own():
    for kind in ("classification", "regression", "token-classification", "generation"):
        assert metrics.METRICS[metrics.default_metric(kind, TAGS)].kind == kind
        assert metrics.METRICS[metrics.default_metric(kind)].kind == kind
    assert metrics.default_metric("token-classification", TAGS) == "f1_entities"
    assert metrics.default_metric("token-classification", ("DET", "NOUN")) == "accuracy_tokens"
    assert all(companion in metrics.METRICS for metric in metrics.METRICS.values() for companion in metric.companions)


TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def naive_entities(tags):
    """The state machine of the CoNLL script, one word after the other."""
    found, begun = [], None
    for place, tag in enumerate([*tags, "O"]):
        part, _, kind = tag.partition("-")
        if begun is not None and (part in ("O", "B") or kind != begun[1]):
            found.append((begun[0], place - 1, begun[1]))
            begun = None
        if part != "O" and begun is None:
            begun = (place, kind)
    return found


def naive_f1(predicted, gold):
    right = guessed = true = 0
    for left, other in zip(predicted, gold, strict=True):
        mine = naive_entities([TAGS[tag] for tag in left])
        theirs = naive_entities([TAGS[tag] for tag in other])
        right += sum(entity in theirs for entity in mine)
        guessed, true = guessed + len(mine), true + len(theirs)
    precision, recall = right / guessed if guessed else 0, right / true if true else 0
    return 2 * precision * recall / (precision + recall) if right else 0.0


SENTENCES = st.lists(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=9), min_size=1, max_size=5)


@given(SENTENCES)
@settings(max_examples=300, deadline=None)
def test_entities_are_counted_as_the_conll_script_counts_them(sentences):
    predicted = [[pair[0] for pair in sentence] for sentence in sentences]
    gold = [[pair[1] for pair in sentence] for sentence in sentences]
    if not any(gold):
        with pytest.raises(DataError, match="nothing to score"):
            metrics.f1_entities(predicted, gold, TAGS)
        return
    assert metrics.f1_entities(predicted, gold, TAGS) == pytest.approx(naive_f1(predicted, gold), abs=1e-12)
    assert metrics.f1_entities(gold, gold, TAGS) == (1.0 if any(map(any, gold)) else 0.0)
    same = [left == right for sentence in sentences for left, right in sentence]
    assert metrics.accuracy_tokens(predicted, gold) == pytest.approx(sum(same) / len(same))


def tagged(words):
    return [[TAGS.index(word) for word in line.split()] for line in words.split("|")]


@pytest.mark.parametrize(
    ("predicted", "gold", "expected"),
    [
        ("B-PER I-PER O", "B-PER I-PER O", 1.0),
        ("B-PER O O", "B-PER I-PER O", 0.0),  # the right type at the wrong end is wrong
        ("B-LOC I-LOC O", "B-PER I-PER O", 0.0),
        ("I-PER I-PER O", "B-PER I-PER O", 1.0),  # an I- tag after O begins an entity
        ("B-PER B-PER O", "B-PER I-PER O", 0.0),  # two entities where one is
        ("B-PER I-LOC O", "B-PER B-LOC O", 1.0),  # another type begins a new entity
        ("B-PER O B-LOC", "B-PER O O", 2 / 3),
        ("B-PER | I-PER", "B-PER | B-PER", 1.0),  # no entity reaches over the end of a sentence
        ("O O | O", "O O | O", 0.0),
    ],
)
def test_entities_by_hand(predicted, gold, expected):
    assert metrics.f1_entities(tagged(predicted), tagged(gold), TAGS) == pytest.approx(expected)


def test_a_bare_b_and_i_are_entities_of_one_type():
    assert metrics.f1_entities([[1, 2, 0]], [[1, 2, 2]], ("O", "B", "I")) == 0.0
    assert metrics.f1_entities([[1, 2, 0]], [[1, 2, 0]], ("O", "B", "I")) == 1.0


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (TAGS, True),
        (("O", "B"), True),
        (("B-PER", "I-PER"), False),
        (("O",), False),
        (("O", "PER"), False),
        (("O", "B-X", "E-X"), False),
        (("DET", "NOUN"), False),
    ],
)
def test_what_looks_like_entity_tags(names, expected):
    assert metrics.are_entity_tags(names) == expected


@pytest.mark.parametrize("name", ["f1_entities", "accuracy_tokens"])
@pytest.mark.parametrize(
    ("predicted", "gold", "words"),
    [
        ([], [], "nothing to score"),
        ([[]], [[]], "nothing to score"),
        ([[0], [0]], [[0]], "2 predictions for 1 sentences"),
        ([[0], [0, 1]], [[0], [0]], "sentence 1 has 1 tags and 2 predictions"),
        ([[5]], [[0]], "predicted tag 5 is outside the 5 tags"),
        ([[0]], [[-1]], "gold tag -1 is outside"),
    ],
)
def test_tags_that_cannot_be_scored_are_refused_in_words(name, predicted, gold, words):
    with pytest.raises(DataError, match=words):
        metrics.score(name, predicted, gold, label_names=TAGS)


def test_entities_need_tags_of_entities():
    with pytest.raises(SettingsError, match="f1_entities on the tag 'NOUN'"):
        metrics.score("f1_entities", [[0]], [[1]], label_names=("O", "NOUN"))


def test_scores_of_tags_and_texts():
    scores = metrics.score("f1_entities", [[1, 2, 0]], [[1, 2, 3]], label_names=TAGS)
    assert scores == {"f1_entities": pytest.approx(2 / 3), "accuracy_tokens": pytest.approx(2 / 3)}
    assert metrics.score("accuracy_tokens", [[0, 1]], [[1, 1]], label_names=("a", "b")) == {"accuracy_tokens": 0.5}
    texts = [" a dog\n", "a  cat", "Dog", ""], ["a dog", "a cat", "dog", " "]
    assert metrics.score("exact_match", *texts) == {"exact_match": 0.5}
    assert metrics.score("exact_match", *texts, mean_loss=math.log(7)) == {
        "exact_match": 0.5,
        "perplexity": pytest.approx(7),
    }
    assert metrics.score("perplexity", None, None, mean_loss=0.0) == {"perplexity": 1.0}


def test_texts_that_cannot_be_scored_are_refused_in_words():
    with pytest.raises(DataError, match="2 predictions for 1 gold texts"):
        metrics.exact_match(["a", "b"], ["a"])
    with pytest.raises(DataError, match="nothing to score"):
        metrics.exact_match([], [])
    with pytest.raises(DataError, match="without a mean loss"):
        metrics.score("perplexity", None, None)
    for loss in (float("nan"), float("inf"), 1e6):
        with pytest.raises(DataError, match="no finite number"):
            metrics.perplexity(loss)
