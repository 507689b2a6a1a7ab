from __future__ import annotations

import pytest

from anytune.errors import DataError
from anytune.evaluate.flips import disagreement, flips, flips_of_lines


def test_flips_are_counted_example_by_example():
    #         kept right, broken, mended, kept wrong, changed wrong
    gold = [1, 1, 1, 1, 1]
    old = [1, 1, 0, 0, 0]
    new = [1, 2, 1, 0, 2]
    found = flips(old, new, gold)
    assert (found.negative, found.positive, found.changed) == (1, 1, 3)
    assert (found.old_right, found.new_right) == (2, 2)
    assert found.negative_rate == 0.2
    assert found.broken == 0.5
    assert found.disagreement == 0.6
    assert disagreement(old, new) == 0.6


def test_scores_differ_by_positive_less_negative_flips():
    gold, old, new = [0, 1, 2, 0, 1], [0, 1, 1, 1, 1], [0, 0, 2, 0, 0]
    found = flips(old, new, gold)
    assert found.new_right - found.old_right == found.positive - found.negative


def test_real_values_are_right_within_a_tolerance():
    assert flips([1.0], [1.3], [1.1], tolerance=0.15).negative == 1
    assert flips([1.0], [1.2], [1.1], tolerance=0.15).negative == 0


def test_lines_of_predictions_and_tags_word_by_word():
    old = [{"gold": ["O", "B"], "predicted": ["O", "B"]}, {"gold": ["O"], "predicted": ["B"]}]
    new = [{"gold": ["O", "B"], "predicted": ["O", "O"]}, {"gold": ["O"], "predicted": ["O"]}]
    found = flips_of_lines(old, new)
    assert (found.examples, found.negative, found.positive) == (3, 1, 1)


def test_other_examples_and_missing_answers_are_refused():
    with pytest.raises(DataError, match="different examples"):
        flips_of_lines([{"gold": "a", "predicted": "a"}], [{"gold": "b", "predicted": "a"}])
    with pytest.raises(DataError, match="holds no answer"):
        flips_of_lines([{"gold": "a", "loss": 1.0}], [{"gold": "a", "predicted": "a"}])
    with pytest.raises(DataError, match="0 old answers"):
        flips([], [], [])
    with pytest.raises(DataError, match="2 old answers, 1 new ones"):
        flips([1, 2], [1], [1, 2])
