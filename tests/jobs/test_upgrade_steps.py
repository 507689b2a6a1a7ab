"""The ladder and the choice, on numbers alone."""

from __future__ import annotations

import pytest

from anytune.errors import SettingsError
from anytune.jobs.upgrade_steps import (
    Attempt,
    best_coefficient,
    decide,
    goal_of,
    ladder,
    next_step,
    reaches,
    seconds_of,
    share_of,
    worth,
)

ALL = ["keep", "scale", "initialize", "combined", "retune"]


def attempts(**scores):
    return [Attempt(name, score, 1.0) for name, score in scores.items()]


def test_the_ladder_holds_what_a_delta_can_climb():
    assert ladder(rows=True, texts=False, fits=True, scales=True) == ALL
    assert ladder(rows=True, texts=True, fits=True, scales=False) == ["keep", "initialize", "combined", "retune"]
    assert ladder(rows=True, texts=False, fits=False, scales=False) == ["distill", "retune"]
    assert ladder(rows=False, texts=False, fits=True, scales=True) == ["keep", "scale"]
    assert ladder(rows=False, texts=True, fits=True, scales=True) == ["keep", "scale", "distill"]
    assert ladder(rows=False, texts=True, fits=False, scales=True) == ["distill"]
    assert ladder(rows=True, texts=True, fits=True, scales=True, only=["retune", "keep"]) == ["keep", "retune"]


def test_the_cheapest_step_not_tried_comes_next_until_one_is_enough():
    goal = 0.89
    assert next_step(attempts(old=0.9), ALL, goal, "accuracy") == "keep"
    assert next_step(attempts(old=0.9, keep=0.8), ALL, goal, "accuracy") == "scale"
    assert next_step(attempts(old=0.9, keep=0.8, scale=0.89), ALL, goal, "accuracy") is None
    assert next_step([*attempts(old=0.9, keep=0.8), Attempt("scale", None, 1.0, problem="x")], ALL, goal,
                     "accuracy") == "initialize"  # fmt: skip
    assert next_step(attempts(old=0.9, **dict.fromkeys(ALL, 0.5)), ALL, goal, "accuracy") is None


def test_errors_count_downwards():
    assert goal_of(0.9, "accuracy", 0.01) == pytest.approx(0.89)
    assert goal_of(2.0, "mse", 0.01) == pytest.approx(2.02)
    assert reaches(2.01, 2.02, "mse")
    assert not reaches(2.03, 2.02, "mse")
    assert worth(1.0, "perplexity") > worth(2.0, "perplexity")
    assert worth(float("nan"), "accuracy") == worth(None, "mse") == -float("inf")


def test_the_first_step_that_is_enough_is_taken_even_if_another_is_better():
    taken = decide(attempts(old=0.9, keep=0.895, scale=0.95), ALL, "accuracy", 0.01, lacks_rows=False)
    assert (taken.step, taken.flag, taken.final) == ("keep", "", True)
    assert "0.895" in taken.reason
    assert "within 1 point of 0.9" in taken.reason
    taken = decide(attempts(old=2.0, keep=2.01), ALL, "mse", 0.01, lacks_rows=False)
    assert "within 1 % of 2" in taken.reason
    taken = decide(attempts(old=0.9, keep=0.5), ["keep"], "accuracy", 0.02, lacks_rows=True, lacking="no such file")
    assert "within 2 points of 0.9" in taken.reason
    assert "no training rows for more (no such file)" in taken.reason


@pytest.mark.parametrize(
    ("scores", "climb", "lacks", "flag", "final"),
    [
        (dict.fromkeys(ALL, 0.5) | {"initialize": 0.6}, ALL, False, "short", True),
        ({"keep": 0.5, "scale": 0.55, "initialize": 0.6}, ALL, False, "budget", False),
        ({"keep": 0.5, "scale": 0.6}, ["keep", "scale"], True, "rows", False),
    ],
)
def test_where_none_is_enough_the_best_is_taken_and_flagged(scores, climb, lacks, flag, final):
    taken = decide(attempts(old=0.9, **scores), climb, "accuracy", 0.01, lacks_rows=lacks)
    assert (taken.score, taken.flag, taken.final) == (0.6, flag, final)


def test_of_equal_scores_the_cheaper_step_is_taken():
    taken = decide(attempts(old=0.9, keep=0.5, scale=0.5, retune=0.5), ALL, "accuracy", 0.01, lacks_rows=False)
    assert taken.step == "keep"


def test_nothing_is_taken_where_everything_failed():
    tried = [Attempt("old", 0.9, 1.0), Attempt("keep", None, 0.0, problem="another shape")]
    taken = decide(tried, ["keep"], "accuracy", 0.01, lacks_rows=False)
    assert taken.step is None
    assert "another shape" in taken.reason


def test_attempts_come_back_from_their_records():
    one = Attempt("scale", 0.0, 1.5, {"accuracy": 0.0}, {"coefficient": 0.5}, None)
    assert Attempt(**{"score": None, **one.record()}) == one


@pytest.mark.parametrize(
    ("values", "enough", "best", "asked"),
    [
        ({0.75: 0.6, 0.5: 0.7, 0.25: 0.4, 1.25: 0.2}, 0.9, 0.5, [0.75, 0.5, 0.25, 1.25]),
        ({0.75: 0.6, 0.5: 0.7}, 0.7, 0.5, [0.75, 0.5]),
        ({0.75: 0.1, 1.25: 0.8}, 0.9, 1.25, [0.75, 1.25]),
        ({0.75: 0.5, 0.5: 0.5, 0.25: 0.4, 1.25: 0.5}, 0.9, 1.0, [0.75, 0.5, 0.25, 1.25]),
    ],
)
def test_coefficients_are_walked_away_from_1_as_long_as_that_helps(values, enough, best, asked):
    seen = []

    def value(coefficient):
        seen.append(coefficient)
        return values[coefficient]

    assert best_coefficient(value, 0.5, enough) == best
    assert seen == asked


def test_spans_and_shares():
    assert [seconds_of(text) for text in ("30m", "45s", "2h", "90", 12.5, "1.5 min", None)] == [
        1800, 45, 7200, 90, 12.5, 90, None]  # fmt: skip
    assert [share_of(text) for text in ("1%", "0.5 %", 0.02, "0.02")] == pytest.approx([0.01, 0.005, 0.02, 0.02])
    for wrong in ("soon", "-3m", "0", "3d"):
        with pytest.raises(SettingsError):
            seconds_of(wrong)
    assert share_of("100%") == 1.0
    for wrong in ("much", "120%", -0.1, float("nan"), "1", 1, 1.0):  # 1 for 1 % would let everything pass
        with pytest.raises(SettingsError):
            share_of(wrong)
