from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anytune.evaluate.curves import Curve, Reached, align, area, censored_median, curve_of, reach
from anytune.manifests import CurvePoint


def curve(steps: list[float], scores: list[float], pace: float = 0.5) -> Curve:
    return Curve(np.array(steps, float), np.array(steps, float) * pace, np.array(scores, float))


def test_points_without_a_number_or_of_another_split_are_left_out_and_order_is_by_step() -> None:
    points = [
        CurvePoint(step=20, seconds=2, scores={"accuracy": 0.6}),
        CurvePoint(step=0, seconds=0, scores={"accuracy": 0.1}),
        CurvePoint(step=10, seconds=1, scores={"accuracy": None}),
        CurvePoint(step=15, seconds=1.5, scores={"accuracy": math.nan}),
        CurvePoint(step=5, seconds=1, split="train", scores={"accuracy": 0.9}),
        CurvePoint(step=20, seconds=3, scores={"accuracy": 0.7}),
    ]
    found = curve_of(points, "accuracy")
    assert found is not None
    assert found.steps.tolist() == [0, 20]
    assert found.scores.tolist() == [0.1, 0.7]  # evaluated twice: the later one counts
    assert curve_of(points, "macro_f1") is None


def test_reach_is_the_first_point_there_and_none_if_never() -> None:
    one = curve([0, 10, 20, 30], [0.1, 0.5, 0.4, 0.6])
    assert reach(one, 0.5) == Reached(10.0, 5.0)
    assert reach(one, 0.05) == Reached(0.0, 0.0)
    assert reach(one, 0.61) is None
    assert reach(curve([0, 10], [3.0, 1.0]), 2.0, higher=False) == Reached(10.0, 5.0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_reach_agrees_with_a_plain_loop(scores: list[float], target: float) -> None:
    expected = None
    for step, score in enumerate(scores):
        if score >= target:
            expected = step
            break
    found = reach(curve(list(range(len(scores))), scores), target)
    assert (found.step if found else None) == expected


def test_the_median_counts_a_seed_that_never_arrived_as_later_than_all() -> None:
    assert censored_median([50, None, 100]) == 100
    assert censored_median([50, None, None]) is None
    assert censored_median([50, 100, None, None]) is None
    assert censored_median([50, 100]) == 75
    assert censored_median([]) is None


def test_area_is_the_mean_height_by_trapezoids() -> None:
    assert area(curve([0, 10, 30], [0.0, 1.0, 1.0])) == pytest.approx((5 + 20) / 30)
    assert area(curve([0, 10, 30], [0.4, 0.4, 0.4]), "seconds") == pytest.approx(0.4)
    assert area(curve([7], [0.4])) is None


def test_curves_at_equal_steps_are_joined_point_by_point() -> None:
    band = align([curve([0, 10], [0.0, 1.0]), curve([0, 10], [0.2, 0.6])])
    assert band is not None
    assert (band.mean.tolist(), band.low.tolist(), band.high.tolist()) == ([0.1, 0.8], [0.0, 0.6], [0.2, 1.0])
    along = align([curve([0, 10], [0, 1], pace=1.0), curve([0, 10], [0, 1], pace=3.0)], "seconds")
    assert along is not None
    assert along.x.tolist() == [0, 20]


def test_curves_at_other_steps_are_read_off_over_the_range_in_common() -> None:
    band = align([curve([0, 20], [0.0, 1.0]), curve([10, 30], [0.5, 0.5])])
    assert band is not None
    assert band.x.tolist() == [10, 20]
    assert band.mean.tolist() == [0.5, 0.75]
    assert align([curve([0, 5], [0, 1]), curve([10, 20], [0, 1])]) is None
    assert align([]) is None
