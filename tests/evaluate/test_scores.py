from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anytune.evaluate.scores import Summary, number, paired_difference, sign_flip, summarise

finite = st.floats(-100, 100, allow_nan=False)


@given(st.lists(finite, min_size=2, max_size=8))
@settings(max_examples=40, deadline=None)
def test_a_summary_agrees_with_the_definitions_written_out(values: list[float]) -> None:
    found = summarise(values)
    mean = sum(values) / len(values)
    sd = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    assert found is not None
    assert found.sd is not None
    assert (found.n, found.minimum, found.maximum) == (len(values), min(values), max(values))
    assert found.mean == pytest.approx(mean, abs=1e-9)
    assert found.sd == pytest.approx(sd, abs=1e-9)


def test_missing_values_are_left_out_and_one_value_has_no_spread() -> None:
    assert summarise([None, 3.0, math.nan, math.inf]) == Summary(1, 3.0, None, 3.0, 3.0)
    assert summarise([None]) is None
    assert summarise([]) is None
    assert number(True) is None


def test_only_seeds_that_both_have_are_paired() -> None:
    found = paired_difference({0: 5.0, 1: 7.0, 2: None, 3: 9.0}, {1: 6.0, 2: 1.0, 0: 3.0, 4: 8.0})
    assert found is not None
    assert (found.n, found.mean) == (2, 1.5)
    assert found.outcome == "undecided"  # two seeds never decide, however far apart
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_a_single_pair_has_no_interval() -> None:
    found = paired_difference({0: 2.0}, {0: 1.0})
    assert found is not None
    assert (found.mean, found.low, found.high, found.outcome) == (1.0, None, None, "undecided")


def test_the_interval_of_three_seeds_agrees_with_every_possible_resample() -> None:
    differences = [0.3, 1.1, 2.5]
    found = paired_difference(dict(enumerate(differences)), dict.fromkeys(range(3), 0.0), resamples=40_000)
    means = [sum(drawn) / 3 for drawn in itertools.product(differences, repeat=3)]
    low, high = np.quantile(means, (0.025, 0.975), method="inverted_cdf")
    assert found is not None
    assert found.low == pytest.approx(low)
    assert found.high == pytest.approx(high)
    assert found.outcome == "higher"


@pytest.mark.parametrize(
    ("differences", "outcome"),
    [([1, 2, 3], "higher"), ([-1, -2, -3], "lower"), ([-1, 2, 3], "undecided"), ([0, 0, 0], "undecided")],
)
def test_the_outcome_is_undecided_when_the_interval_holds_zero(differences: list[float], outcome: str) -> None:
    found = paired_difference(dict(enumerate(differences)), dict.fromkeys(range(3), 0.0))
    assert found is not None
    assert found.outcome == outcome


def test_the_same_input_gives_the_same_interval() -> None:
    a, b = {n: n * 0.37 for n in range(6)}, dict.fromkeys(range(6), 1.0)
    assert paired_difference(a, b) == paired_difference(a, b)


def test_sign_flip_agrees_with_counting_all_signs() -> None:
    differences = np.array([0.5, 1.0, -0.2, 2.0])
    count = 0
    for signs in itertools.product((1, -1), repeat=4):
        flipped = sum(sign * value for sign, value in zip(signs, differences, strict=True)) / 4
        count += abs(flipped) >= abs(differences.mean()) - 1e-12
    assert sign_flip(differences) == pytest.approx(count / 16)
    assert sign_flip(np.array([1.0, 2.0, 3.0])) == pytest.approx(0.25)  # the floor of three seeds
