"""The anytime matrix: its numbers, what they need, and comparisons whose unit is the stream."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest

from anytune.errors import DataError, SettingsError
from anytune.evaluate.anytime import (
    METRICS,
    AccuracyMatrix,
    check_metrics,
    columns,
    cost,
    crossed_interval,
    every,
    matrices,
    mean_matrix,
    needed,
)
from anytune.evaluate.anytime_losses import loss_matrices, loss_table

ABC = ("a", "b", "c")
WORKED = AccuracyMatrix(ABC, ((1, 2, 3), (4, 5, 6), (7, 8, 9)))


def random_matrix(n: int, seed: int) -> AccuracyMatrix:
    draw = random.Random(seed)
    rows = tuple(tuple(draw.uniform(0, 100) for _ in range(n)) for _ in range(n + 1))
    return AccuracyMatrix(tuple(f"d{j}" for j in range(n)), rows)


def test_the_worked_example():
    assert WORKED.value("a_acc") == 5
    assert WORKED.value("o_acc") == pytest.approx(11 / 3, abs=1e-15)
    assert WORKED.value("f_acc") == 8
    assert WORKED.value("forgetting") == -4.5


@pytest.mark.parametrize("n", [2, 3, 6])
def test_the_metrics_are_the_sums_of_their_definitions(n):
    matrix = random_matrix(n, n)
    a = {(i, j): matrix.rows[i][j - 1] for i in range(n + 1) for j in range(1, n + 1)}
    unseen = [(i, j) for i in range(1, n + 1) for j in range(i + 1, n + 1)]
    wanted = {
        "a_acc": sum(a[i, i] for i in range(1, n + 1)) / n,
        "o_acc": 2 / (n * (n - 1)) * sum(a[cell] for cell in unseen),
        "f_acc": sum(a[n, j] for j in range(1, n + 1)) / n,
        "forgetting": sum(a[i, i] - a[n, i] for i in range(1, n)) / (n - 1),
        "a_gain": sum(a[i, i] - a[0, i] for i in range(1, n + 1)) / n,
        "o_gain": sum(a[i, j] - a[0, j] for i, j in unseen) / len(unseen),
        "f_gain": sum(a[n, j] - a[0, j] for j in range(1, n + 1)) / n,
        "worst_unseen_drop": min(a[i, j] - a[0, j] for i, j in unseen),
    }
    assert wanted.keys() == METRICS.keys()
    for name, value in wanted.items():
        assert matrix.value(name) == pytest.approx(value), name
    assert matrix.gains()[n - 1][0] == a[n, 1] - a[0, 1]


def test_a_constant_matrix_gives_the_constant_and_no_change():
    same = AccuracyMatrix(ABC, ((7.5,) * 3,) * 4)
    assert [same.value(name) for name in METRICS] == [7.5, 7.5, 7.5, 0, 0, 0, 0, 0]


def test_one_domain_has_nothing_unseen_and_nothing_to_forget():
    one = AccuracyMatrix(("a",), ((1.0,), (2.0,)))
    assert (one.value("a_acc"), one.value("f_acc"), one.value("a_gain")) == (2, 2, 1)
    assert [one.value(name) for name in ("o_acc", "o_gain", "forgetting", "worst_unseen_drop")] == [None] * 4


@pytest.mark.parametrize(("n", "count"), [(5, 19), (6, 26), (1, 1)])
def test_the_three_metrics_need_the_diagonal_the_upper_triangle_and_the_last_row(n, count):
    cells = needed(["a_acc", "o_acc", "f_acc"], n)
    assert len(cells) == count
    assert len(needed(METRICS, n)) == count + n, "and row 0 for the gains"
    assert cells < every(n)
    assert len(every(n)) == n * (n + 1)


def test_a_needed_cell_that_is_missing_is_named_and_others_are_not_missed():
    cells = dict.fromkeys(needed(["a_acc", "o_acc", "f_acc"], 3), 50.0)
    matrix = AccuracyMatrix.of_cells(ABC, cells)
    assert matrix.at(2, 1) is None
    assert (matrix.value("a_acc"), matrix.value("o_acc"), matrix.value("f_acc")) == (50, 50, 50)
    with pytest.raises(DataError, match=r"O gain needs cell \(0, 2\).*'b' before the first stage"):
        matrix.value("o_gain")
    for cell, (name, words) in {
        (2, 2): ("A_Acc", "'b' after stage 2 \\('b'\\)"), (1, 3): ("O_Acc", "'c' after stage 1 \\('a'\\)"),
        (3, 1): ("F_Acc", "'a' after stage 3 \\('c'\\)"),
    }.items():  # fmt: skip
        hole = AccuracyMatrix.of_cells(ABC, {**cells, cell: math.nan})
        metric = next(key for key, one in METRICS.items() if one.title == name)
        with pytest.raises(DataError, match=rf"{name} needs cell \({cell[0]}, {cell[1]}\): the score on {words}"):
            hole.value(metric)
        assert hole.missing(metric) == [cell]


@pytest.mark.parametrize("rows", [((1, 2),), ((1,), (2,)), ((1, 2), (3, 4, 5)), ((1, 2),) * 4])
def test_a_matrix_of_another_shape_is_refused(rows):
    with pytest.raises(DataError, match="for 2 domains"):
        AccuracyMatrix(("a", "b"), rows)


def test_metrics_are_named_rightly():
    assert check_metrics(None) == list(METRICS)
    with pytest.raises(SettingsError, match="o_ac") as caught:
        check_metrics(["o_ac"])
    assert caught.value.fix == "o_acc"
    with pytest.raises(SettingsError, match="no metric"):
        check_metrics([])


def test_means_over_runs_are_cell_by_cell_and_of_one_order():
    one, two = random_matrix(3, 1), random_matrix(3, 2)
    mean = mean_matrix([one, two])
    assert mean.at(2, 3) == pytest.approx((one.at(2, 3) + two.at(2, 3)) / 2)
    holed = AccuracyMatrix(one.domains, (*one.rows[:3], (None, *one.rows[3][1:])))
    assert mean_matrix([holed, two]).at(3, 1) is None
    with pytest.raises(DataError, match="several orders"):
        mean_matrix([one, AccuracyMatrix(ABC, one.rows)])


def line(arm, order, seed, stage, task, test, stream=ABC, **more):
    return {"arm": arm, "order": order, "stream": stream, "seed": seed, "stage": stage, "task": task,
            "metric": "accuracy", "test": test, "floor": 0.2, "failed": None, **more}  # fmt: skip


def test_lines_become_matrices_in_the_order_of_each_stream_and_share_row_0():
    turned = ("c", "a", "b")
    lines = [line(None, None, 0, 0, name, 0.1 * place, None) for place, name in enumerate(ABC)]
    lines += [line("x", 0, 0, 1, "b", 0.5), line("x", 1, 0, 1, "b", 0.6, turned), line("x", 0, 0, 2, "b", None)]
    lines += [line("x", 0, 0, 3, "b", None, failed="the loss is nan")]
    found = matrices(lines)["x"]
    assert found[0, 0].rows[0] == pytest.approx((0, 10, 20))
    assert found[1, 0].rows[0] == pytest.approx((20, 0, 10))
    assert (found[0, 0].at(1, 2), found[1, 0].at(1, 3)) == (50, 60)
    assert found[0, 0].at(2, 2) is None
    assert found[0, 0].at(3, 2) == 20, "a run that diverged counts as always giving one answer"


def arms(runs: int, gain: float = 2.0, noise: float = 0.3) -> dict:
    """Two arms of paired runs in two orders; the second is ``gain`` better in every cell after row 0."""
    draw = np.random.default_rng(1)
    made: dict = {"plain": {}, "other": {}}
    for run in range(runs):
        base = draw.uniform(40, 60, (4, 3))
        names = ABC if run % 2 else ABC[::-1]
        better = base + draw.normal(gain, noise, (4, 3))
        better[0] = base[0]
        for arm, values in (("plain", base), ("other", better)):
            made[arm][run % 2, run] = AccuracyMatrix(names, tuple(map(tuple, values.tolist())))
    return made


def test_differences_are_means_over_runs_with_intervals_that_hold_the_truth():
    both = arms(6)
    for column in columns(both, "plain", METRICS):
        per_run = [column.values["other"][run] - column.values["plain"][run] for run in both["plain"]]
        sign = -1 if column.metric == "forgetting" else 1
        found = column.against["other"]
        assert found.difference.n == 6
        assert found.difference.mean == pytest.approx(sign * np.mean(per_run))
        if column.metric in ("a_acc", "o_acc", "f_acc", "a_gain", "o_gain", "f_gain"):
            assert found.difference.low < found.difference.mean < found.difference.high
            assert found.difference.low > 1.5
            assert found.outcome == "higher"
            assert found.p == pytest.approx(2 / 2**6)
        assert column.summary("other").n == 6


def test_five_runs_decide_nothing_and_one_has_no_interval():
    few = next(iter(columns(arms(5), "plain", ["a_acc"]))).against["other"]
    assert (few.difference.outcome, few.outcome) == ("higher", "undecided"), "p is 0.0625 at best"
    one = next(iter(columns(arms(1), "plain", ["a_acc"]))).against["other"]
    assert (one.difference.low, one.outcome, one.no_worse) == (None, "undecided", None)


def test_an_arm_without_the_cells_of_a_metric_is_left_out_of_it():
    both = arms(6)
    cells = {(stage, j): 50.0 + stage for stage in (0, 3) for j in (1, 2, 3)}
    both["joint"] = {run: AccuracyMatrix.of_cells(one.domains, cells) for run, one in both["plain"].items()}
    final, adapted = columns(both, "plain", ["f_acc", "a_acc"])
    assert final.summary("joint").mean == 53
    assert "joint" in final.against
    assert adapted.summary("joint") is None
    assert "joint" not in adapted.against


def test_tasks_and_runs_are_resampled_apart_and_weighed_by_their_terms():
    sums, counts = np.array([[2.0, 8.0], [0.0, 3.0], [0.0, 0.0]]), np.array([[1.0, 2.0], [0.0, 1.0], [0.0, 0.0]])
    wanted = []
    for tasks in itertools.product(range(2), repeat=2):
        for runs in itertools.product(range(2), repeat=2):
            above = sum(sums[t, r] for t in tasks for r in runs)
            below = sum(counts[t, r] for t in tasks for r in runs)
            if below:
                wanted.append(above / below)
    low, high = crossed_interval(sums, counts, level=0.9999)
    assert (low, high) == pytest.approx((min(wanted), max(wanted)))
    assert crossed_interval(sums, counts) == crossed_interval(sums, counts)
    assert crossed_interval(np.full((3, 4), 2.0), np.ones((3, 4))) == (2.0, 2.0)


def test_losses_and_cost_are_means_over_seeds():
    def stage(arm, seed, number, before, after, seconds):
        return {"arm": arm, "order": 0, "seed": seed, "stage": number, "first": number == 1, "seconds": seconds,
                "losses": {"a": {"before": before, "after": after}}}  # fmt: skip

    lines = [stage("x", 0, 1, 3.0, 2.0, 2.0), stage("x", 0, 2, 2.0, 2.5, 2.0), stage("x", 1, 1, 3.0, 2.2, 4.0),
             stage("y", 0, 1, 3.0, 2.0, 8.0)]  # fmt: skip
    assert loss_table(lines)["x"][0]["a"] == {0: 3.0, 1: pytest.approx(2.1), 2: 2.5}
    assert cost(lines, "x") == {"x": 1.0, "y": 2.0}


def test_losses_are_read_with_the_metrics_of_scores_as_gains():
    draw = random.Random(5)
    before = {name: draw.uniform(3, 6) for name in ABC}
    after = {(i, name): draw.uniform(3, 6) for i in (1, 2, 3) for name in ABC}
    lines = [
        {"arm": "x", "order": 1, "seed": 4, "stream": list(ABC), "stage": i, "first": i == 1,
         "losses": {name: {"before": before[name] if i == 1 else after[i - 1, name], "after": after[i, name]}
                    for name in ABC}}
        for i in (1, 2, 3)
    ]  # fmt: skip
    matrix = loss_matrices(lines)["x"][1, 4]
    fell = {(i, name): 100 * (before[name] - loss) for (i, name), loss in after.items()}
    assert matrix.value("a_gain") == pytest.approx((fell[1, "a"] + fell[2, "b"] + fell[3, "c"]) / 3)
    assert matrix.value("o_gain") == pytest.approx((fell[1, "b"] + fell[1, "c"] + fell[2, "c"]) / 3)
    assert matrix.value("f_gain") == pytest.approx(sum(fell[3, name] for name in ABC) / 3)
    assert matrix.value("forgetting") == pytest.approx((fell[1, "a"] - fell[3, "a"] + fell[2, "b"] - fell[3, "b"]) / 2)
    lines[1]["losses"]["c"]["after"] = None
    assert loss_matrices(lines)["x"][1, 4].missing("o_gain") == [(2, 3)]
    assert loss_matrices([{**line, "losses": {}} for line in lines])["x"][1, 4].missing("a_gain")
