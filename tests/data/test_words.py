from __future__ import annotations

import json

import pytest

from anytune.data.tables import Table, read_table
from anytune.data.words import entity_notes, read_tagged, refuse_one_tag, tag_indices, tag_names
from anytune.errors import DataError, SettingsError


def tagged(words, tags):
    return read_tagged(
        Table("rows.jsonl", {"tokens": words, "tags": tags}, range(5, 5 + len(words))), "tokens", "tags"
    )


def test_words_and_tags_are_read_as_they_stand():
    rows = tagged([["New", "York", "!"], ["1 000"]], [["B-LOC", "I-LOC", "O"], [3.0]])
    assert rows.words == [("New", "York", "!"), ("1 000",)]
    assert rows.tags == [("B-LOC", "I-LOC", "O"), ("3",)]


@pytest.mark.parametrize(
    ("words", "tags", "message"),
    [
        (["a", "b"], ["O"], "row 6 of rows.jsonl has 2 words in column 'tokens' and 1 tags in column 'tags'"),
        (["a"], [None], "has None as tag 1 in column 'tags', which is neither a text nor a whole number"),
        (["a"], [0.5], "has 0.5 as tag 1"),
        (["a"], [True], "has True as tag 1"),
        (["a", "b"], ["O", " "], "has ' ' as tag 2 in column 'tags', which is empty"),
        (["a", 5], ["O", "O"], "has 5 as word 2 in column 'tokens', which is no text"),
        (["a", "\t"], ["O", "O"], r"has '\\t' as word 2 in column 'tokens', which is no visible sign"),
        (["\ud800"], ["O"], "which is half a character"),
        ([], [], "has no words in column 'tokens': its list is empty"),
        (["a"], [], "has no tags in column 'tags': its list is empty"),
        ([["a", "b"]], ["O"], r"has a list within the list in column 'tokens', place 1: \['a', 'b'\]"),
        (["a"], [{"tag": "O"}], "has a list within the list in column 'tags'"),
        ("a b", ["O", "O"], "has 'a b' in column 'tokens', which is no list of words"),
        (["a"], None, "has None in column 'tags', which is no list of tags"),
    ],
)
def test_rows_that_cannot_be_read_are_named_with_the_place_and_the_value(words, tags, message):
    with pytest.raises(DataError, match=message) as caught:
        tagged([["fine"], words], [["O"], tags])
    assert "row 6 of rows.jsonl" in caught.value.what
    assert caught.value.why
    assert caught.value.fix


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ([["VERB", "O"], ["NOUN"]], ("O", "NOUN", "VERB")),
        ([["10", "9"], ["-1"]], ("-1", "9", "10")),
        ([["O", "I-PER"], ["B-LOC"]], ("O", "B-LOC", "B-PER", "I-LOC", "I-PER")),
        ([["O", "B"]], ("O", "B", "I")),
        ([["B-X", "I-X"]], ("B-X", "I-X")),
    ],
)
def test_names_have_a_stable_order_and_entities_both_their_tags(train, expected):
    assert tag_names(train, None) == expected
    assert tag_names(train[::-1], None) == expected


def test_chosen_names_stay_in_their_order_and_number_the_tags():
    names = tag_names([["0", "2"]], ["O", "B-X", "I-X"])
    assert names == ("O", "B-X", "I-X")
    assert tag_indices(tagged([["a", "b"]], [[2, "B-X"]]), names) == [(2, 1)]
    assert tag_indices(tagged([["a", "b"]], [[5, 7]]), ("5", "7")) == [(0, 1)]
    assert tag_indices(tagged([["a", "b"]], [[1, 0]]), ("1", "0")) == [(0, 1)]  # names, though they are numbers
    with pytest.raises(SettingsError, match="At least two"):
        tag_names([["O"]], ["O", "O"])


def test_an_unknown_tag_names_the_row_the_word_and_the_near_tag():
    with pytest.raises(
        DataError, match=r"row 6 of rows.jsonl has the unknown tag 'B-PRE' at word 2, 'York'"
    ) as caught:
        tag_indices(tagged([["a"], ["New", "York"]], [["O"], ["O", "B-PRE"]]), ("O", "B-PER", "I-PER"))
    assert caught.value.fix == "B-PER"
    with pytest.raises(DataError, match="unknown tag '3'"):
        tag_indices(tagged([["a"]], [[3]]), ("O", "B-PER", "I-PER"))


def test_one_tag_in_all_words_is_refused():
    with pytest.raises(DataError, match=r"all words of the 2 training rows of rows.jsonl have one tag: 'O'"):
        refuse_one_tag(tagged([["a"], ["b", "c"]], [["O"], ["O", "O"]]))


def test_entities_that_begin_with_i_are_counted_in_a_note():
    names = ("O", "B-LOC", "B-PER", "I-LOC", "I-PER")
    index = {name: place for place, name in enumerate(names)}

    def noted(*sentences):
        return entity_notes([[index[tag] for tag in tags.split()] for tags in sentences], names)

    assert noted("B-PER I-PER I-PER O", "O B-LOC B-LOC I-LOC") == []
    (note,) = noted("I-PER I-PER O I-PER", "B-PER I-LOC I-LOC", "I-LOC")
    assert note.startswith("4 entities of train begin with an I- tag")
    assert entity_notes([[0, 1]], ("INTJ", "NOUN")) == []


def test_lists_come_from_parquet_as_from_json(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    columns = {"tokens": [["a", "b"], ["c"]], "tags": [[0, 1], [0]]}
    parquet.write_table(pa.table(columns), tmp_path / "rows.parquet")
    (tmp_path / "rows.json").write_text(json.dumps(columns))
    first, second = (
        read_tagged(read_table(tmp_path / name), "tokens", "tags") for name in ("rows.parquet", "rows.json")
    )
    assert (first.words, first.tags) == (second.words, second.tags) == ([("a", "b"), ("c",)], [("0", "1"), ("0",)])
