"""Statistics over training runs, against naive loops and known numbers."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from anytune.evaluate.scores import Difference, paired_difference
from anytune.evaluate.stability import (
    across_tasks,
    against_control,
    brown_forsythe,
    counted,
    f_tail,
    has_failed,
    hierarchical_difference,
    holm,
    incomplete_beta,
    no_worse,
    normal_quantile,
    smallest_shown,
    stability,
    t_quantile,
)


def arm(values) -> dict[int, float | None]:
    return dict(enumerate(values))


def test_an_arm_in_numbers():
    found = stability(arm([80.0, 90.0, 50.0, None]), 50.0)
    assert (found.n, found.failed, found.share_failed) == (4, 2, 0.5)
    assert found.mean == pytest.approx((80 + 90 + 50 + 50) / 4), "a run that diverged is worth the floor"
    assert found.sd == pytest.approx(np.std([80, 90, 50, 50], ddof=1))
    assert found.worst == 50.0
    assert stability({}, 50.0) is None
    assert stability(arm([None, None]), None).mean is None
    assert stability(arm([3.0]), None).sd is None
    errors = stability(arm([0.2, 0.9, None]), 0.8, higher=False)
    assert (errors.worst, errors.failed) == (0.9, 2)


def test_a_run_at_the_floor_has_failed_and_one_above_has_not():
    assert has_failed(None, None)
    assert has_failed(float("nan"), 1.0)
    assert has_failed(50.0, 50.0)
    assert not has_failed(50.1, 50.0)
    assert not has_failed(0.0, None)
    assert has_failed(0.8, 0.8, higher=False)
    assert not has_failed(0.7, 0.8, higher=False)
    assert counted(arm([1.0, None]), None) == {0: 1.0}


def test_holm_against_the_definition_and_its_textbook_numbers():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    draw = random.Random(0)
    for _ in range(50):
        p = {key: draw.random() ** 3 for key in range(draw.randint(1, 8))}
        ordered = sorted(p.values())
        for key, value in holm(p).items():
            place = ordered.index(p[key])
            assert value == pytest.approx(max(min(1, ordered[j] * (len(p) - j)) for j in range(place + 1)))
    assert holm({}) == {}


def test_the_incomplete_beta_function_against_sums_of_the_binomial():
    for a, b, x in [(1, 1, 0.3), (2, 5, 0.2), (7, 3, 0.9), (20, 31, 0.4), (1, 9, 0.999)]:
        n = a + b - 1
        exact = sum(math.comb(n, j) * x**j * (1 - x) ** (n - j) for j in range(a, n + 1))
        assert incomplete_beta(x, a, b) == pytest.approx(exact, rel=1e-12)
    assert incomplete_beta(0.0, 2, 3) == 0.0
    assert incomplete_beta(1.0, 2, 3) == 1.0
    assert incomplete_beta(0.5, 0.5, 0.5) == pytest.approx(0.5, rel=1e-13)


def test_distributions_against_tables():
    assert f_tail(4.964603, 1, 10) == pytest.approx(0.05, abs=1e-7)
    assert f_tail(3.354131, 2, 27) == pytest.approx(0.05, abs=1e-7)
    assert f_tail(0.0, 2, 9) == 1.0
    assert t_quantile(0.975, 9) == pytest.approx(2.262157, abs=1e-6)
    assert t_quantile(0.975, 1) == pytest.approx(12.706205, abs=1e-5)
    assert normal_quantile(0.975) == pytest.approx(1.959964, abs=1e-6)


def test_brown_forsythe_against_scipy_and_by_hand():
    statistics = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(3)
    for sizes in ((20, 20), (5, 9, 12), (2, 3)):
        groups = [draw.normal(size=size) * (place + 1) for place, size in enumerate(sizes)]
        expected = statistics.levene(*groups, center="median")
        assert brown_forsythe(groups) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-9)
    assert brown_forsythe([[1.0, 1.0], [2.0, 2.0]]) == (0.0, 1.0)
    assert brown_forsythe([[1.0, 1.0], [2.0, 4.0]]) == (math.inf, 0.0)


def test_the_smallest_difference_by_hand_and_by_simulation():
    assert smallest_shown(10, 2.0) == pytest.approx((2.262157 + 0.883404) * 2 / math.sqrt(10), rel=1e-5)
    draw, n = np.random.default_rng(0), 20
    shift = smallest_shown(n, 1.0)
    rows = draw.normal(size=(4000, n)) + shift
    t = rows.mean(axis=1) / (rows.std(axis=1, ddof=1) / math.sqrt(n))
    assert (np.abs(t) > t_quantile(0.975, n - 1)).mean() == pytest.approx(0.8, abs=0.03)


def test_one_task_alone_is_the_paired_bootstrap():
    draw = np.random.default_rng(1)
    a, b = arm(draw.normal(1, 1, 10)), arm(draw.normal(0, 1, 10))
    found, plain = hierarchical_difference([(a, b)]), paired_difference(a, b)
    assert (found.n, found.mean, found.p, found.outcome) == pytest.approx(
        (plain.n, plain.mean, plain.p, plain.outcome)
    )
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=0.1)


def test_the_hierarchical_bootstrap_against_a_naive_loop():
    draw = np.random.default_rng(2)
    tasks = [
        (arm(draw.normal(shift, 1, size)), arm(draw.normal(0, 1, size))) for shift, size in ((3, 8), (0, 5), (1, 12))
    ]
    found = hierarchical_difference(tasks)
    differences = [[a[k] - b[k] for k in a] for a, b in tasks]
    assert found.mean == pytest.approx(np.mean([np.mean(one) for one in differences]))
    assert found.n == 25
    loose, means = random.Random(0), []
    for _ in range(4000):
        total = 0.0
        for _ in differences:
            own = loose.choice(differences)
            total += sum(loose.choice(own) for _ in own) / len(own)
        means.append(total / len(differences))
    means.sort()
    assert found.low == pytest.approx(means[100], abs=0.15)
    assert found.high == pytest.approx(means[3899], abs=0.15)
    runs_alone = np.concatenate([np.array(one) for one in differences])
    assert found.high - found.low > 3 * runs_alone.std() / math.sqrt(25), "tasks vary, and that is counted"
    assert hierarchical_difference(tasks) == found, "the same input gives the same interval"
    assert hierarchical_difference([]) is None
    assert hierarchical_difference([(arm([1.0]), arm([0.0]))]).outcome == "undecided"


def test_several_scores_of_the_same_runs_are_one_observation_each():
    draw = np.random.default_rng(5)
    same = draw.normal(1, 1, 6)
    zero = arm(np.zeros(6))
    copies = [(arm(same), zero)] * 3
    once, thrice = hierarchical_difference([(arm(same), zero)]), hierarchical_difference(copies, groups=["t"] * 3)
    assert thrice.n == 6
    assert (thrice.mean, thrice.p) == (pytest.approx(once.mean), once.p), "copies of a score add nothing"
    assert thrice.low == pytest.approx(once.low, abs=0.15)
    assert thrice.high == pytest.approx(once.high, abs=0.15)
    assert hierarchical_difference(copies).p < thrice.p / 4, "taken for three tasks they would"
    assert hierarchical_difference(copies, groups="abc") == hierarchical_difference(copies)


def test_groups_against_a_naive_loop():
    draw = np.random.default_rng(6)
    tables = {"x": draw.normal((1, 3), 1, (6, 2)).T, "y": draw.normal(0, 1, (5, 1)).T}
    tasks = [(arm(row), arm(np.zeros(row.size))) for table in tables.values() for row in table]
    found = hierarchical_difference(tasks, groups=["x", "x", "y"])
    assert found.n == 11
    assert found.mean == pytest.approx(np.mean([table.mean() for table in tables.values()]))
    loose, means = random.Random(0), []
    for _ in range(4000):
        total = 0.0
        for _ in tables:
            table = loose.choice(list(tables.values()))
            rows = [loose.randrange(table.shape[0]) for _ in range(table.shape[0])]
            runs = [loose.randrange(table.shape[1]) for _ in range(table.shape[1])]
            total += table[np.ix_(rows, runs)].mean()
        means.append(total / 2)
    means.sort()
    assert found.low == pytest.approx(means[100], abs=0.2)
    assert found.high == pytest.approx(means[3899], abs=0.2)
    lacking = [(arm([1.0, None]), arm([0.0, 0.0])), (arm([3.0, 9.0]), arm([0.0, 0.0]))]
    assert hierarchical_difference(lacking, groups="xx").mean == 2.0, "a run counts where all its scores are there"


def test_the_p_over_tasks_weighs_tasks_equally():
    """By hand, over all signs: |mean of the tasks' means| at least as large."""
    import itertools

    tasks = [(arm([1.0, 2.0]), arm([0.0, 0.0])), (arm([3.0, -1.0, 0.5]), arm([0.0, 0.0, 0.0]))]
    seen = (1.5 + 2.5 / 3) / 2
    hits = 0
    for signs in itertools.product((1, -1), repeat=5):
        first = (signs[0] * 1 + signs[1] * 2) / 2
        second = (signs[2] * 3 - signs[3] * 1 + signs[4] * 0.5) / 3
        hits += abs((first + second) / 2) >= seen - 1e-12
    assert hierarchical_difference(tasks).p == pytest.approx(hits / 32)


def test_outcomes_need_the_interval_and_the_corrected_p():
    control = arm([70.0 + 0.01 * seed for seed in range(8)])
    better = {seed: score + 5 + 0.1 * (seed % 3) for seed, score in control.items()}
    same = {seed: score + (0.1 if seed % 2 else -0.1) for seed, score in control.items()}
    found = against_control({"plain": control, "better": better, "same": same}, "plain")
    assert found["better"].outcome == "higher"
    assert found["better"].p == pytest.approx(2 * 2 / 2**8)
    assert found["same"].outcome == "undecided"
    assert found["same"].no_worse
    assert 0 < found["same"].smallest < 0.2
    assert against_control({"plain": better, "other": control}, "plain")["other"].outcome == "lower"
    crowd = {f"arm {n}": {seed: score + 0.2 * n for seed, score in better.items()} for n in range(20)}
    many = against_control({"plain": control, **crowd}, "plain")
    assert {one.outcome for one in many.values()} == {"undecided"}, "20 arms at p = 2 / 256 each"
    assert all(one.difference.outcome == "higher" for one in many.values())


def test_a_run_that_diverged_counts_at_the_floor_in_the_difference():
    control = arm([70.0] * 6)
    unstable = arm([80.0, None, 80.0, 80.0, 80.0, 80.0])
    [found] = against_control({"plain": control, "x": unstable}, "plain", floor=40.0).values()
    assert found.difference.mean == pytest.approx((5 * 10 - 30) / 6)
    [left_out] = against_control({"plain": control, "x": unstable}, "plain").values()
    assert (left_out.difference.n, left_out.difference.mean) == (5, 10.0)


def test_no_worse_is_about_the_lower_end():
    assert no_worse(Difference(9, 0.0, -0.4, 0.4, 1.0, "undecided"))
    assert not no_worse(Difference(9, 0.0, -0.5, 0.5, 1.0, "undecided"))
    assert no_worse(Difference(2, 0.0, -0.4, 0.4, 1.0, "undecided")) is None, "two runs decide nothing"
    assert no_worse(Difference(1, 0.0, None, None, 1.0, "undecided")) is None


def test_spread_is_decided_by_twenty_runs_and_not_by_ten():
    draw = np.random.default_rng(0)
    for runs, outcome in ((20, "lower"), (10, "undecided")):
        arms = {"plain": arm(draw.normal(70, 5, runs)), "calm": arm(draw.normal(70, 0.2, runs))}
        found = against_control(arms, "plain")["calm"]
        assert found.spread == outcome
        assert found.spread_p < 0.05


def test_arms_over_tasks_count_with_the_tasks_they_have():
    draw = np.random.default_rng(5)
    tasks = [
        {
            "plain": arm(draw.normal(70, 0.5, 6)),
            "good": arm(draw.normal(74, 0.5, 6)),
            "rare": arm(draw.normal(70, 1, 6)),
        }
        for _ in range(4)
    ]
    for missing in tasks[1:]:
        del missing["rare"]
    found = across_tasks(tasks, "plain")
    assert found["good"].outcome == "higher"
    assert (found["good"].difference.n, found["rare"].difference.n) == (24, 6)
    width = found["good"].difference.high - found["good"].difference.low
    assert found["good"].smallest == pytest.approx((1.959964 + 0.841621) * width / (2 * 1.959964), rel=1e-5)
    floored = across_tasks([{"plain": arm([5.0]), "x": arm([None])}], "plain", floors=[2.0])
    assert floored["x"].difference.mean == -3.0
