"""errors.py: three parts, and suggestions."""

from __future__ import annotations

import pickle

import pytest

from anytune import errors
from anytune.errors import AnytuneError, StoreError, nearest, unknown


def test_an_error_shows_what_is_wrong_why_it_matters_and_what_to_type():
    error = StoreError("no artefact 'x'", why="Known: y.", fix="anytune store list")
    assert str(error) == "no artefact 'x'\nKnown: y.\nTry: anytune store list"
    assert (error.what, error.why, error.fix) == ("no artefact 'x'", "Known: y.", "anytune store list")


def test_empty_parts_leave_no_empty_lines():
    assert str(AnytuneError("wrong")) == "wrong"
    assert str(AnytuneError("wrong", fix="right")) == "wrong\nTry: right"


def test_every_error_of_the_library_is_one_family_with_exit_code_2():
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(classes) >= 10
    assert all(issubclass(value, AnytuneError) and value.exit_code == 2 for value in classes)


def test_an_error_survives_the_way_back_from_a_worker_process():
    error = pickle.loads(pickle.dumps(StoreError("what", why="why", fix="fix")))
    assert isinstance(error, StoreError)
    assert (error.what, error.why, error.fix) == ("what", "why", "fix")


@pytest.mark.parametrize(
    ("word", "expected"),
    [("lerning_rate", "learning_rate"), ("LEARNING_RATE", "learning_rate"), ("dps", "DPS"), ("zzz", None), ("", None)],
)
def test_the_nearest_choice_is_found_whatever_its_case(word, expected):
    assert nearest(word, ["learning_rate", "seed", "DPS"]) == expected


def test_the_nearest_choice_is_found_in_an_iterator_too():
    assert nearest("sed", iter(["learning_rate", "seed"])) == "seed"


def test_an_unknown_word_suggests_the_near_one_else_lists_all():
    near = unknown("option", "lerning_rate", ["seed", "learning_rate"], StoreError)
    assert isinstance(near, StoreError)
    assert near.fix == "learning_rate"
    assert "unknown option 'lerning_rate'" in near.what
    assert unknown("option", "zzz", ["b", "a"]).fix == "one of a, b"
    assert "none" in unknown("option", "zzz", []).why
