from __future__ import annotations

import pytest

from anytune.data.columns import choose_columns
from anytune.data.tables import Table
from anytune.errors import DataError, SettingsError


def choose(*names, text=None, label=None):
    return choose_columns(Table("rows.csv", {name: ["x"] for name in names}, [1]), text, label)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("id", "text", "label"), (("text",), "label")),
        (("Review", "Category"), (("Review",), "Category")),
        (("premise", "hypothesis", "label"), (("premise", "hypothesis"), "label")),
        (("text", "text_pair", "score"), (("text", "text_pair"), "score")),
        (("words", "class"), (("words",), "class")),
        (("sentence", "gold"), (("sentence",), "gold")),
    ],
)
def test_columns_are_guessed_where_names_make_them_clear(names, expected):
    assert choose(*names) == expected


@pytest.mark.parametrize(
    ("names", "words", "option"),
    [
        (("text", "label", "category"), "columns label, category could each be the label", "--label"),
        (("text", "review", "label"), "columns text, review could each be the text", "--text"),
        (("a", "b"), "no column is called label", "--label"),
        (("a", "b", "label"), "no column is called text", "--text"),
        (("text", "a", "b"), "no column is called label", "--label"),
    ],
)
def test_an_unsafe_guess_lists_the_columns_and_the_option(names, words, option):
    with pytest.raises(DataError, match=words) as caught:
        choose(*names)
    assert all(name in caught.value.why for name in names)
    assert option in caught.value.fix


def test_named_columns_are_taken_as_they_are():
    assert choose("text", "review", "y", "z", text="review", label="z") == (("review",), "z")
    assert choose("a", "b", "c", text=["a", "c"], label="b") == (("a", "c"), "b")
    assert choose("a", "b", "c", text="a, c", label="b") == (("a", "c"), "b")
    assert choose("a,b", "label", text="a,b") == (("a,b",), "label")
    assert choose("label", "score", label="score") == (("label",), "score")


def test_a_missing_column_suggests_the_near_one():
    with pytest.raises(DataError, match="has no column 'lable'") as caught:
        choose("text", "label", "x", label="lable")
    assert caught.value.fix == "--label label"
    with pytest.raises(DataError, match="has no column 'zzz'"):
        choose("text", "label", text="zzz")


@pytest.mark.parametrize("text", [[], ["a", "b", "c"], ["a", "a"]])
def test_one_or_two_different_text_columns_are_needed(text):
    with pytest.raises(SettingsError, match=f"{len(text)} text columns are named"):
        choose("a", "b", "c", "label", text=text)


def test_one_column_cannot_be_text_and_label():
    with pytest.raises(SettingsError, match="'text' is named as text and as label"):
        choose("text", "label", text="text", label="text")
