"""What a claim is read from where a run or a point of a path has no number."""

from __future__ import annotations

import math

import pytest

from anytune.evaluate.recycle_arms import reaching, sections
from anytune.evaluate.recycle_claims import claims, fall_of
from tests.evaluate.test_recycle_arms import SEEDS, TASKS, grid, path


def test_a_run_that_diverged_never_reached_the_controls_score():
    gone = {"validation": None, "test": None, "curve": [], "failed": "the loss is not finite"}
    lines = [
        one | gone if one["arm"] == "initialize" and one["seed"] < 4 else one for one in grid({"initialize": 0.5})
    ]
    found = reaching(sections(lines), "initialize")
    assert (found.reached, found.runs) == (12, 36)
    assert found.steps is None, "most runs never got there"


def test_a_comparison_counts_its_runs_once():
    lines = grid({"initialize": 0.0, "distill": 0.0, "combined": 0.1})
    [both] = [one for one in claims(sections(lines)) if one.text == "both together are best"]
    assert both.n == len(SEEDS) * len(TASKS)


@pytest.mark.parametrize("gap", [None, math.nan])
def test_a_path_with_a_point_without_a_score_is_no_level_line(gap):
    assert fall_of(path([0.8, 0.8, 0.8])) == 0
    assert fall_of(path([0.8, gap, 0.8])) is None


def test_of_an_error_the_worst_point_is_the_highest():
    line = path([0.2, 0.9, 0.3])
    for point in line["path"]["points"]:
        point["scores"] = {"mse": point["scores"]["accuracy"]}
    line["path"]["metric"] = "mse"
    assert fall_of(line) == pytest.approx(0.6), "in its own unit"
