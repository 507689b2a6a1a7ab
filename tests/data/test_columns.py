from __future__ import annotations

import pytest

from anytune.data.columns import choose_columns, choose_response_columns, choose_word_columns, guess_kind
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


def table(**columns):
    return Table("rows.json", {name: [value] for name, value in columns.items()}, [1])


LIST = ["a", "b"]


@pytest.mark.parametrize(
    ("columns", "text", "label", "expected"),
    [
        ({"tokens": LIST, "ner_tags": LIST}, None, None, "token-classification"),
        ({"Words": LIST, "x": [0, 1]}, None, None, "token-classification"),
        ({"text": LIST, "label": LIST}, None, None, "token-classification"),
        ({"a": LIST, "b": "x"}, "a", None, "token-classification"),
        ({"a": LIST, "b": "x"}, None, "a", "token-classification"),
        ({"text": "a b", "tokens": LIST, "label": "pos"}, None, None, None),
        ({"text": "a b", "tokens": LIST, "spans": LIST, "label": "pos"}, None, None, None),
        ({"text": "a b", "tokens": LIST, "spans": LIST}, "text", None, None),
        ({"tokens": LIST, "y": "pos"}, None, None, None),
        ({"prompt": "a", "response": "b", "id": 3}, None, None, "generation"),
        ({"Instruction": "a", "Output": "b"}, None, None, "generation"),
        ({"question": "a", "answer": "b"}, None, None, "generation"),
        ({"question": "a", "answer": "b", "label": 1}, None, None, None),
        ({"prompt": "a", "response": "b"}, "prompt", None, None),
        ({"prompt": "a", "response": "b", "completion": "c"}, None, None, None),
        ({"input": "a", "target": "b"}, None, None, None),
        ({"text": "a", "label": "b"}, None, None, None),
    ],
)
def test_the_kind_is_guessed_from_columns_alone_where_they_make_it_clear(columns, text, label, expected):
    assert guess_kind(table(**columns), text, label) == expected


@pytest.mark.parametrize(
    ("columns", "text", "label", "expected"),
    [
        ({"id": "1", "tokens": LIST, "ner_tags": LIST}, None, None, ("tokens", "ner_tags")),
        ({"tokens": LIST, "pos_tags": LIST, "ner_tags": LIST}, None, "pos_tags", ("tokens", "pos_tags")),
        ({"a": LIST, "b": LIST}, "b", None, ("b", "a")),
        ({"a": LIST, "b": LIST}, None, "b", ("a", "b")),
        ({"words": LIST, "gold": LIST}, None, None, ("words", "gold")),
    ],
)
def test_columns_of_words_and_tags(columns, text, label, expected):
    assert choose_word_columns(table(**columns), text, label) == expected


@pytest.mark.parametrize(
    ("columns", "text", "words", "option"),
    [
        ({"tokens": LIST, "pos_tags": LIST, "ner_tags": LIST}, None, "pos_tags, ner_tags could each be the tags",
         "--label"),
        ({"a": LIST, "b": LIST}, None, "a, b could each be the words", "--text"),
        ({"text": "a b", "label": "x"}, None, "no column of lists that could be the words", "tokens"),
        ({"tokens": LIST, "label": "x"}, None, "no column of lists that could be the tags", "tags"),
        ({"tokens": LIST}, "tokns", "has no column 'tokns'", "--text tokens"),
    ],
)  # fmt: skip
def test_columns_of_words_that_are_not_clear(columns, text, words, option):
    with pytest.raises(DataError, match=words) as caught:
        choose_word_columns(table(**columns), text, None)
    assert option in caught.value.fix


@pytest.mark.parametrize(
    ("columns", "text", "label", "expected"),
    [
        ({"id": 1, "prompt": "a", "response": "b"}, None, None, ("prompt", "response")),
        ({"input": "a", "target": "b", "n": 1}, None, None, ("input", "target")),
        ({"text": "a", "label": "b", "id": 1}, None, None, ("text", "label")),
        ({"word": "a", "gloss": "b"}, "word", None, ("word", "gloss")),
        ({"word": "a", "gloss": "b", "x": "c"}, "gloss", "word", ("gloss", "word")),
        ({"question": "a", "answer": "b", "prompt": "c", "response": "d"}, "prompt", None, ("prompt", "response")),
    ],
)
def test_columns_of_prompts_and_responses(columns, text, label, expected):
    assert choose_response_columns(table(**columns), text, label) == expected


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"a": "x", "b": "y"}, "no two columns are called prompt and response"),
        ({"instruction": "a", "input": "b", "output": "c"}, "instruction and output, input and output could each be"),
    ],
)
def test_columns_of_prompts_that_are_not_clear(columns, words):
    with pytest.raises(DataError, match=words) as caught:
        choose_response_columns(table(**columns), None, None)
    assert caught.value.fix == "--text PROMPT --label COLUMN"


@pytest.mark.parametrize("choose_two", [choose_word_columns, choose_response_columns])
def test_words_or_prompts_are_one_column_and_not_the_label(choose_two):
    with pytest.raises(SettingsError, match="2 text columns are named: a, b"):
        choose_two(table(a=LIST, b=LIST, c=LIST), "a,b", "c")
    with pytest.raises(SettingsError, match="'a' is named as text and as label"):
        choose_two(table(a=LIST, b=LIST), "a", "a")
