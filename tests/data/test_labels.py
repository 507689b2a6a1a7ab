from __future__ import annotations

import pytest

from anytune.data import labels
from anytune.data.tables import Table
from anytune.errors import DataError, SettingsError


def table(values):
    return Table("rows.csv", {"text": ["words"] * len(values), "label": values}, range(2, len(values) + 2), "line")


@pytest.mark.parametrize(
    ("value", "word"),
    [(3, "3"), (3.0, "3"), (2.5, "2.5"), (" a ", "a"), (True, "True"), ("NA", "NA"), ("3.0", "3.0")]
    + [(value, "") for value in (None, float("nan"), "", "  ", "NaN", "nan", ["a"], {})],
)
def test_labels_become_words_and_missing_ones_nothing(value, word):
    assert labels.label_word(value) == word


@pytest.mark.parametrize("value", [None, float("nan"), "", "nan"])
def test_a_missing_label_names_the_row(value):
    with pytest.raises(DataError, match=r"line 3 of rows\.csv has no label in column 'label': .* \(2 such rows\)"):
        labels.read_rows(table(["a", value, "b", value]), ["text"], "label")


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["b", "a", "B", "b"], ("B", "a", "b")),
        (["10", "9", "-1", "9"], ("-1", "9", "10")),
        (["10", "9", "x"], ("10", "9", "x")),
    ],
)
def test_label_names_sort_numbers_by_value_and_words_alphabetically(words, names):
    assert labels.label_names(words, None) == names
    assert labels.label_names(words[::-1], None) == names


def test_given_label_names_keep_their_order():
    assert labels.label_names(["a"], ["z", "a"]) == ("z", "a")
    assert labels.label_names(["a"], "z, a") == ("z", "a")
    for wrong in (["a"], ["a", "a"]):
        with pytest.raises(SettingsError, match="two different names"):
            labels.label_names(["a"], wrong)


def test_kind_is_guessed_from_fractions_and_distinct_values():
    fractions = [str(value / 7) for value in range(30)]
    assert labels.guess_kind(fractions) == "regression"
    assert labels.guess_kind([*fractions, "unknown"]) == "classification"
    assert labels.guess_kind([str(value) for value in range(77)]) == "classification"
    assert labels.guess_kind(["0.5", "1.5"] * 50) == "classification"


def test_an_unknown_label_names_row_and_near_name():
    rows = labels.read_rows(table(["pos", "negg"]), ["text"], "label")
    with pytest.raises(DataError, match=r"line 3 of rows\.csv has the unknown label 'negg'") as caught:
        labels.indices(rows, ["neg", "pos"])
    assert caught.value.fix == "neg"
    assert labels.indices(labels.read_rows(table(["pos", "neg"]), ["text"], "label"), ["neg", "pos"]) == [1, 0]


@pytest.mark.parametrize("wrong", ["high", "inf"])
def test_regression_labels_must_be_finite_numbers(wrong):
    rows = labels.read_rows(table(["1.5", 2, wrong]), ["text"], "label")
    with pytest.raises(DataError, match=f"line 4 of rows.csv has the label '{wrong}', which is no finite number"):
        labels.numbers(rows)
    assert labels.numbers(labels.read_rows(table(["1.5", 2]), ["text"], "label")) == [1.5, 2.0]


@pytest.mark.parametrize(("kind", "what"), [("classification", "one class"), ("regression", "one value")])
def test_labels_that_never_differ_are_refused(kind, what):
    with pytest.raises(DataError, match=rf"all 2 training rows of rows\.csv have {what}: '1'"):
        labels.refuse_constant(labels.read_rows(table(["1", 1]), ["text"], "label"), kind)
