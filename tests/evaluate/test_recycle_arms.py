"""Reading a grid of recycling from hand-made lines: means, gains, curves, flips and claims, against naive sums."""

from __future__ import annotations

import pytest

from anytune.evaluate.recycle_arms import (
    NO_DELTA,
    NOTHING,
    Case,
    Column,
    against,
    areas,
    broken,
    by_task,
    cost,
    reaching,
    sections,
)
from anytune.evaluate.recycle_claims import claims, fall_of, plain_arm
from anytune.report.recycle_tables import recycle_tables, summary

SEEDS = range(6)
TASKS = ("a", "b", "c")
GOLD = {"a": [0, 1, 0, 1], "b": [1, 1, 0, 0], "c": [0, 0, 1, 1]}


def line(arm: str, kind: str, test: float | None, *, task: str, seed: int, **given):
    found = {
        "arm": arm, "control": "fresh", "kind": kind, "method": None, "weights": "own", "hop": False, "budget": 1.0,
        "upgrade": "v1", "same_base": False, "form": "full", "task": task, "metric": "accuracy", "old": "full",
        "new": "8", "seed": seed, "validation": test, "test": test, "floor": 0.3, "steps": 100, "seconds": 2.0,
        "failed": None, "curve": [[0, 0.0, 0.3], [50, 1.0, 0.5], [100, 2.0, test]], "predictions": GOLD[task],
        **given,
    }  # fmt: skip
    if kind == "fresh":
        found["old"] = None
    if kind == "outdated":
        found |= {"upgrade": None, "new": None}
    return found


def grid(gains: dict[str, float], **given):
    """Lines of two upgrades, three tasks and six seeds; each arm so much above fresh tuning, with some noise."""
    made = []
    for task in TASKS:
        for seed in SEEDS:
            made.append(line("old", "outdated", 0.72, task=task, seed=seed))
            for upgrade, shift in (("v1", 0.0), ("v2", 0.02)):
                fresh = 0.6 + 0.01 * seed + shift
                where = {"task": task, "seed": seed, "upgrade": upgrade}
                made.append(line("fresh", "fresh", fresh, **where))
                for arm, gain in gains.items():
                    score = fresh + gain + 0.001 * ((seed * 7 + len(task)) % 3)
                    curve = [] if arm == "direct" else [[0, 0.0, 0.3 + gain], [50, 1.0, 0.5 + gain], [100, 2.0, score]]
                    trained = {"curve": curve, "steps": 0 if arm == "direct" else 100, **given.get(arm, {})}
                    made.append(line(arm, "recycle", score, method=arm, **where, **trained))
    return made


def test_a_case_holds_its_runs_the_old_ones_and_one_answer():
    [section] = sections(grid({"direct": 0.01, "initialize": 0.05}))
    assert section.case == Case("full", "full", "8")
    assert section.arms == [NOTHING, NO_DELTA, "direct", "initialize", "fresh"]
    assert section.columns() == [Column(upgrade, task) for upgrade in ("v1", "v2") for task in TASKS]
    assert section.mean(NOTHING) == pytest.approx(72)
    assert section.mean(NO_DELTA, "v1") == pytest.approx(30)
    assert section.mean("fresh") == pytest.approx(100 * (0.6 + 0.025 + 0.01))
    assert section.mean("fresh", "v2") - section.mean("fresh", "v1") == pytest.approx(2)


def test_upgrades_of_a_task_and_seed_are_one_observation():
    [section] = sections(grid({"initialize": 0.05}))
    found = against([section], "fresh")
    assert found["initialize"].difference.n == len(TASKS) * len(SEEDS)
    assert found["initialize"].difference.mean == pytest.approx(5.1, abs=0.05)
    assert found["initialize"].outcome == "higher"


def test_an_upgrade_that_changed_nothing_is_shown_and_not_pooled():
    lines = grid({"direct": 0.0})
    for one in lines:
        if one["upgrade"] == "v1":
            one["same_base"] = True
            one["test"] = 0.9
    [section] = sections(lines)
    assert section.mean("direct", "v1") == pytest.approx(90)
    assert section.mean("direct") == section.mean("direct", "v2")
    assert {column.upgrade for column in section.columns()} == {"v2"}
    assert "v1 (unchanged)" in recycle_tables(lines)


def test_a_run_that_diverged_counts_as_one_answer():
    lines = grid({"initialize": 0.05})
    for one in lines:
        if one["arm"] == "initialize" and one["seed"] == 0:
            one.update(test=None, failed="the loss was nan")
    [section] = sections(lines)
    values = [[30.0 if seed == 0 else section.scores("initialize", column)[seed] for seed in SEEDS]
              for column in section.columns()]  # fmt: skip
    assert section.mean("initialize") == pytest.approx(sum(map(sum, values)) / 36)
    assert "the loss was nan" in recycle_tables(lines)


def test_task_by_task_arms_are_compared_where_both_have_runs():
    lines = grid({"direct": 0.0, "initialize": 0.05})
    lines = [one for one in lines if (one["arm"], one["upgrade"], one["task"]) != ("initialize", "v2", "a")]
    for one in lines:
        if one["arm"] == "initialize" and one["seed"] == 0:
            one.update(test=None, failed="the loss was nan")

    def naive(arm: str, task: str) -> float:
        """Over the upgrades, then the seeds; a run that diverged as always one answer."""
        tests = {(one["upgrade"], one["seed"], one["arm"]): 0.3 if one["failed"] else one["test"]
                 for one in lines if one["task"] == task}  # fmt: skip
        means = []
        for upgrade in ("v1", "v2"):
            gains = [tests[upgrade, seed, arm] - tests[upgrade, seed, "fresh"] for seed in SEEDS
                     if (upgrade, seed, arm) in tests]  # fmt: skip
            means += [sum(gains) / len(gains)] if gains else []
        return 100 * sum(means) / len(means)

    [section] = sections(lines)
    assert by_task(section, NOTHING) == pytest.approx(dict.fromkeys(TASKS, 72))
    for arm in ("direct", "initialize"):
        found = by_task(section, arm, "fresh")
        assert found == pytest.approx({task: naive(arm, task) for task in TASKS})
        assert f"{arm}, over fresh" in recycle_tables(lines)
        assert f"{found['b']:+.2f}" in recycle_tables(lines)


def test_a_run_that_was_refused_is_left_out_and_named():
    lines = grid({"masked": 0.05, "direct": 0.0})
    for one in lines:
        if one["arm"] == "masked":
            one.update(test=None, refused="there is nothing to mask")
    [section] = sections(lines)
    assert section.arms == [NOTHING, NO_DELTA, "direct", "fresh"]
    assert "there is nothing to mask" in recycle_tables(lines)


def test_areas_are_read_of_curves_as_long_as_the_controls():
    lines = grid({"initialize": 0.1, "long": 0.1}, long={"curve": [[0, 0.0, 0.4], [300, 6.0, 0.7]]})
    [section] = sections(lines)
    column = Column("v1", "a")
    # mean height of 0.4, 0.6 and the end, by trapezoids
    end = section.runs["initialize"][column][2]["test"]
    assert areas(section, "initialize", column)[2] == pytest.approx(100 * ((0.4 + 0.6) / 2 + (0.6 + end) / 2) / 2)
    assert areas(section, "long", column) == {}


def test_a_run_that_diverged_has_the_floor_for_a_curve_on_either_side():
    lines = grid({"initialize": 0.1})
    for one in lines:
        if (one["seed"], one["arm"]) in ((0, "initialize"), (1, "fresh")):
            one.update(test=None, failed="the loss was nan", curve=one["curve"][:2])
    [section] = sections(lines)
    column = Column("v1", "a")
    assert areas(section, "initialize", column)[0] is None
    assert areas(section, "fresh", column)[1] is None
    assert areas(section, "initialize", column)[1] > 50
    both = [{seed: 30.0 if one is None else one for seed, one in areas(section, arm, column).items()}
            for arm in ("initialize", "fresh")]  # fmt: skip
    plain = sum(both[0][seed] - both[1][seed] for seed in SEEDS) / 6
    found = against([section], "fresh", areas, upgrade="v1")["initialize"]
    assert found.difference.mean == pytest.approx(plain, abs=0.2)


def test_steps_to_the_controls_score_are_a_share_of_its_run():
    lines = grid({"initialize": 0.5, "late": -0.2, "direct": 0.5})
    [section] = sections(lines)
    quick, late, direct = (reaching([section], arm) for arm in ("initialize", "late", "direct"))
    assert (quick.reached, quick.runs, quick.steps, quick.seconds) == (36, 36, 0.0, 0.0)
    assert (late.reached, late.runs, late.steps) == (0, 36, None)
    assert (direct.reached, direct.steps) == (36, 0.0)
    assert reaching([section], NOTHING).runs == 0, "its curve is of the old base"
    half = grid({"initialize": 0.15})
    assert reaching(sections(half), "initialize").steps == 0.5


def test_flips_are_counted_against_the_old_weights():
    lines = grid({"direct": 0.0})
    for one in lines:
        if one["arm"] == "direct":
            one["predictions"] = [1 - GOLD[one["task"]][0], *GOLD[one["task"]][1:]]
        if one["kind"] == "outdated" and one["task"] == "a":
            one["predictions"] = [1 - GOLD["a"][0], *GOLD["a"][1:]]
    [section] = sections(lines)
    assert broken(section, "direct", GOLD) == pytest.approx(100 * (0 + 0.25 + 0.25) / 3)
    assert broken(section, "fresh", GOLD) == 0
    assert broken(section, "direct", {}) is None


def test_costs_are_multiples_of_the_controls():
    lines = grid({"distill": 0.0, "direct": 0.0}, distill={"seconds": 3.0, "steps": 200})
    [section] = sections(lines)
    assert cost(section, "distill") == pytest.approx((2.0, 1.5))
    assert cost(section, "direct")[0] == 0
    assert cost(section, NOTHING) is None


def words(lines, paths=()):
    return {(one.text, one.form): one for one in claims(sections(lines), paths)}


def test_claims_are_confirmed_not_confirmed_or_undecided():
    found = words(grid({"direct": 0.0, "initialize": 0.05, "distill": -0.05, "combined": 0.1}))
    assert found["outdated weights stay partly compatible", "full"].word == "confirmed"
    assert found["starting from them learns faster", "full"].word == "confirmed"
    assert found["initialize scores higher than tuning afresh", "full"].word == "confirmed"
    assert found["distill scores higher than tuning afresh", "full"].word == "not confirmed"
    assert found["both together are best", "full"].word == "confirmed"
    less = words(grid({"initialize": 0.1, "distill": 0.0, "combined": 0.05}))
    assert less["both together are best", "full"].word == "not confirmed"
    as_one = words(grid({"initialize": 0.05, "distill": 0.0, "combined": 0.05}))
    assert as_one["both together are best", "full"].word == "undecided", "above one of the two is not above both"
    low = words([one for one in grid({"direct": 0.05, "initialize": 0.05}) if one["seed"] < 1])
    assert {one.word for one in low.values()} == {"undecided"}, "one run decides nothing"


def test_an_arm_with_other_weights_is_no_case_for_a_claim():
    lines = grid({"initialize": 0.05}, initialize={"weights": "random"})
    assert plain_arm(sections(lines), "initialize") is None
    assert ("initialize scores higher than tuning afresh", "full") not in words(lines)


def path(scores, *, seed=0, task="a", arm="fresh"):
    points = [{"x": place, "loss": 1.0, "scores": {"accuracy": score}} for place, score in enumerate(scores)]
    walked = {"metric": "accuracy", "points": points, "barrier": 0.1}
    return {"arm": arm, "upgrade": "v1", "same_base": False, "form": "full", "task": task, "metric": "accuracy",
            "old": "full", "new": "8", "seed": seed, "path": walked, "problem": None,
            "similarity": {"mean_js": 0.9, "mean_null_js": 0.5, "mean_cka": 0.95}}  # fmt: skip


def test_the_line_is_held_against_its_lower_end():
    assert fall_of(path([0.8, 0.9, 0.7])) == 0
    assert fall_of(path([0.8, 0.5, 0.7])) == pytest.approx(20)
    lines = grid({"direct": 0.0})
    key = ("both tuned models are connected", "full")
    flat = [path([0.8, 0.81, 0.8], seed=seed, task=task) for seed in SEEDS for task in TASKS]
    deep = [path([0.8, 0.4 + 0.01 * seed, 0.8], seed=seed, task=task) for seed in SEEDS for task in TASKS]
    assert words(lines, flat)[key].word == "confirmed"
    assert words(lines, deep)[key].word == "not confirmed"
    assert words(lines, [one for one in deep if one["seed"] < 2])[key].word == "undecided"
    assert key not in words(lines, [path([0.8, 0.8], arm="initialize")])


def test_tables_and_summary_hold_every_arm():
    lines = grid({"direct": 0.0, "initialize": 0.05})
    upgrades = [{"upgrade": name, "after": None, "domains": ["d"], "tokens": 10, "seconds": 1.0, "same_base": False,
                 "distance": {"relative": far, "cosine": 0.9}, "steps": 1,
                 "losses": {"heldout:d": {"loss": 2.0}, "before:heldout:d": {"loss": 3.0}}}
                for name, far in (("v1", 0.2), ("v2", 0.1))]  # fmt: skip
    tasks = [{"task": task, "kind": "classification", "gold": GOLD[task]} for task in TASKS]
    said = recycle_tables(lines, upgrades, [path([0.8, 0.5, 0.7])], tasks)
    assert "| v2 |" in said.split("Against the distance")[1].split("| v1 |")[0], "ordered by distance"
    assert "d 3.00 to 2.00" in said
    [section] = sections(lines)
    for upgrade in ("v1", "v2"):
        kept = f"| {100 * (section.mean('direct', upgrade) - 30) / (72 - 30):.0f} % |"
        assert kept in said, "what direct reuse keeps above one answer"
    for arm in ("direct", "initialize", NOTHING, NO_DELTA):
        assert arm in said
        assert arm in summary(lines)
