"""What the figures of a grid of recycling show, from hand-made lines, against naive sums."""

from __future__ import annotations

import numpy as np
import pytest

from anytune.evaluate.recycle_arms import NO_DELTA, NOTHING, against, broken, sections
from anytune.evaluate.recycle_points import flips_against_gain, landings, learning, over_runs
from tests.evaluate.test_recycle_arms import GOLD, SEEDS, TASKS, grid, line

DISTANCES = {"v1": 0.2, "v2": 0.1}


def only(lines):
    [section] = sections(lines)
    return section


def test_an_arm_stands_on_every_upgrade_near_ones_first():
    section = only(grid({"direct": 0.0, "initialize": 0.05}))
    found = {(one.arm, one.upgrade): one for one in landings(section, DISTANCES)}
    assert [upgrade for arm, upgrade in found if arm == "direct"] == ["v2", "v1"]
    assert {arm for arm, _ in found} == set(section.arms)
    for (arm, upgrade), one in found.items():
        assert one.distance == DISTANCES[upgrade]
        assert one.score.mean == pytest.approx(section.mean(arm, upgrade))
        assert one.runs == len(TASKS) * len(SEEDS)
    assert found["fresh", "v1"].gain is None
    assert found["initialize", "v1"].gain.mean == pytest.approx(5.1, abs=0.05)
    assert found["initialize", "v1"].gain.low < 5.1 < found["initialize", "v1"].gain.high
    assert {one.upgrade for one in landings(section, {"v2": 0.1})} == {"v2"}, "no distance, no place"


def test_gains_on_an_upgrade_are_of_it_alone():
    lines = grid({"initialize": 0.05})
    for one in lines:
        if one["arm"] == "initialize" and one["upgrade"] == "v2":
            one["test"] -= 0.1
    section = only(lines)
    by = {one.upgrade: one.gain.mean for one in landings(section, DISTANCES) if one.arm == "initialize"}
    assert by["v1"] == pytest.approx(5.1, abs=0.05)
    assert by["v2"] == pytest.approx(-4.9, abs=0.05)
    assert against([section], "fresh")["initialize"].difference.mean == pytest.approx(np.mean([*by.values()]))


def test_an_upgrade_that_changed_nothing_has_its_place():
    lines = grid({"direct": 0.0})
    for one in lines:
        one["same_base"] = one["upgrade"] == "v2"
    found = {one.upgrade for one in landings(only(lines), {"v1": 0.2, "v2": 0.0}) if one.gain}
    assert found == {"v1", "v2"}


def test_an_arm_without_a_task_has_no_mean_beside_the_others():
    lines = [one for one in grid({"direct": 0.0}) if (one["arm"], one["task"]) != ("direct", "a")]
    found = {one.arm: one for one in landings(only(lines), {"v1": 0.2})}
    assert found["direct"].score is None
    assert found["direct"].gain is not None
    assert found["fresh"].score is not None


def test_a_run_that_diverged_stands_at_one_answer():
    lines = grid({"initialize": 0.05})
    for one in lines:
        if one["arm"] == "initialize" and one["seed"] == 0:
            one.update(test=None, failed="the loss was nan")
    section = only(lines)
    found = {one.arm: one for one in landings(section, {"v1": 0.2})}
    assert found["initialize"].score.mean == pytest.approx(section.mean("initialize", "v1"))


def test_the_interval_of_a_score_is_over_runs_with_the_tasks_held_fixed():
    draw = np.random.default_rng(3)
    tasks = [list(level + draw.normal(0, 2, 40)) for level in (20, 80)]
    found = over_runs(tasks)
    width = 2 * 1.96 * np.sqrt(sum(np.var(one) / 40 for one in tasks)) / 2
    assert found.mean == pytest.approx(np.mean([np.mean(one) for one in tasks]))
    assert found.high - found.low == pytest.approx(width, rel=0.1)
    assert found == over_runs(tasks)
    assert over_runs([[3.0], [5.0]]) == (4.0, None, None)
    assert over_runs([[3.0], [5.0]]).ends == (4.0, 4.0)


def test_curves_are_means_over_tasks_of_means_over_runs():
    section = only(grid({"direct": 0.0, "initialize": 0.05, "scaled": 0.1, "combined": 0.2}))
    found = {one.arm: one for one in learning(section)}
    assert list(found) == ["fresh", "initialize", "combined"], "plain arms with a curve alone"
    own = found["initialize"]
    assert list(own.steps) == [0, 50, 100]
    ends = [[section.runs["initialize"][column][seed]["test"] for seed in SEEDS] for column in section.columns()]
    assert own.mean == pytest.approx([35, 55, 100 * np.mean(ends)])
    assert own.low[0] == pytest.approx(own.high[0])
    assert own.low[2] < own.mean[2] < own.high[2]
    assert (own.runs, own.left_out) == (len(TASKS) * len(SEEDS), 0), "two upgrades are no two observations"


def test_curves_are_compared_on_the_columns_that_all_of_them_have():
    lines = [one for one in grid({"initialize": 0.05, "distill": 0.0})
             if (one["arm"], one["upgrade"]) != ("distill", "v2")]  # fmt: skip
    section = only(lines)
    fresh = learning(section)[0]
    assert fresh.mean[-1] == pytest.approx(section.mean("fresh", "v1"))
    assert [one.arm for one in learning(section)] == ["fresh", "initialize", "distill"]


def test_a_seed_with_a_run_that_diverged_is_left_out_of_curves_and_counted():
    lines = grid({"initialize": 0.05})
    for one in lines:
        if (one["arm"], one["seed"], one["task"], one["upgrade"]) == ("initialize", 5, "a", "v1"):
            one.update(failed="the loss was nan", test=None, curve=[[0, 0.0, 0.9], [10, 1.0, 0.9]])
    found = {one.arm: one for one in learning(only(lines))}
    assert (found["initialize"].runs, found["initialize"].left_out) == (17, 1)
    assert found["initialize"].mean[0] == pytest.approx(35)
    assert list(found["initialize"].steps) == [0, 50, 100]
    assert found["fresh"].left_out == 0


def test_curves_of_other_steps_are_read_between_their_points():
    lines = grid({"initialize": 0.0})
    for one in lines:
        if one["arm"] == "initialize" and one["seed"] == 1:
            one["curve"] = [[0, 0.0, 0.3], [100, 2.0, 0.7], [200, 4.0, 0.9]]
    found = {one.arm: one for one in learning(only(lines))}
    assert list(found["initialize"].steps) == [0, 50, 100], "the range that all have"
    assert found["initialize"].mean[1] == pytest.approx(50)
    lone = [one for one in grid({"direct": 0.0}) if one["kind"] != "fresh"]
    assert learning(only([*lone, line("three", "fresh", 0.5, task="a", seed=0, curve=[])])) == []


def test_flips_stand_beside_the_gain_on_the_same_tasks():
    lines = grid({"direct": 0.0, "initialize": 0.05})
    for one in lines:
        if one["arm"] == "direct":
            one["predictions"] = [1 - GOLD[one["task"]][0], *GOLD[one["task"]][1:]]
        if one["arm"] == "initialize" and one["task"] == "c":
            one["test"] = 0.0
    section = only(lines)
    gold = {task: GOLD[task] for task in ("a", "b")}
    found = {one.arm: one for one in flips_against_gain(section, gold)}
    assert list(found) == [NOTHING, "direct", "initialize", "fresh"]
    assert found["direct"].flips.mean == pytest.approx(broken(section, "direct", gold)) == pytest.approx(25)
    assert found["initialize"].gain.mean == pytest.approx(5.1, abs=0.05), "the task without right answers is left out"
    assert found["fresh"].gain == (0.0, None, None)
    assert found[NOTHING].flips.mean == 0
    assert found["direct"].runs == 2 * len(SEEDS)
    assert NO_DELTA not in found
    assert flips_against_gain(section, {}) == []
