from __future__ import annotations

import pytest

from anytune.data.responses import read_responses, refuse_one_response
from anytune.data.tables import Table
from anytune.errors import DataError


def responses(*values):
    return read_responses(Table("rows.csv", {"answer": list(values)}, range(2, 2 + len(values)), "line"), "answer")


def test_responses_stay_as_they_stand_and_numbers_become_text():
    assert responses(" two words\n", "nan", "3.0", 3, 3.0, -2.5, 0) == [
        " two words\n", "nan", "3.0", "3", "3", "-2.5", "0",
    ]  # fmt: skip


@pytest.mark.parametrize("value", [None, "", " \n", float("nan"), []])
def test_an_empty_response_is_refused_with_its_row(value):
    with pytest.raises(DataError, match=r"line 3 of rows.csv has no response in column 'answer'.*2 such rows"):
        responses("a", value, value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (["a", "b"], r"line 3 of rows.csv has \['a', 'b'\] in column 'answer', which is no text"),
        ({"a": 1}, "which is no text"),
        (True, "has True in column"),
        ("\udc80", "half a character"),
    ],
)
def test_what_is_no_response_is_refused_with_its_row(value, words):
    with pytest.raises(DataError, match=words):
        responses("a", value)


def test_one_response_to_everything_is_refused():
    with pytest.raises(DataError, match="all 2 training rows of t have one response: 'yes'"):
        refuse_one_response(Table("t", {}, [1, 2]), ["yes", "yes"])
