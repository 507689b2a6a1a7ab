from __future__ import annotations

import math
import statistics
from pathlib import Path

import pytest

from anytune.evaluate import Artefact, Row, compare, held_out, runs_of, verdicts
from anytune.evaluate.runs import arm_of
from anytune.manifests import Manifest, MethodRecord
from tests.report.stores import base, delta, demo_manifests


def artefacts(manifests: list[Manifest]) -> list[Artefact]:
    return [Artefact(Path(manifest.name), manifest) for manifest in manifests]


def rows_of(manifests: list[Manifest]) -> list[Row]:
    return compare(runs_of(artefacts(manifests)))


def row_of(rows: list[Row], task: str, on: str, arm: str) -> Row:
    (found,) = [row for row in rows if (row.task, row.base, row.arm) == (task, on, arm)]
    return found


@pytest.fixture(scope="module")
def demo() -> list[Manifest]:
    return demo_manifests()


def pick(manifests: list[Manifest], task: str, on: str, arm: str) -> list[Manifest]:
    return [m for m in manifests if m.task and (m.task.name, m.base.name, m.tags["arm"]) == (task, on, arm)]


def test_every_number_of_a_row_agrees_with_a_naive_reading_of_the_manifests(demo: list[Manifest]) -> None:
    row = row_of(rows_of(demo), "hpo", "v1", "initialize")
    own, fresh = pick(demo, "hpo", "v1", "initialize"), pick(demo, "hpo", "v1", "fresh")
    direct, old = pick(demo, "hpo", "v1", "direct"), pick(demo, "hpo", "v0", "fresh")

    def tests(of: list[Manifest]) -> list[float]:
        return [100 * (m.scores["test"]["accuracy"] or 0) for m in sorted(of, key=lambda m: m.seed)]

    def mean_gain(over: list[Manifest]) -> float:
        return statistics.fmean(a - b for a, b in zip(tests(own), tests(over), strict=True))

    assert row.test is not None
    assert row.test.mean == pytest.approx(statistics.fmean(tests(own)))
    assert row.test.sd == pytest.approx(statistics.stdev(tests(own)))
    for gain, over in ((row.over_fresh, fresh), (row.over_direct, direct), (row.over_outdated, old)):
        assert gain is not None
        assert gain.mean == pytest.approx(mean_gain(over))
    target = statistics.fmean(m.curve[-1].scores["accuracy"] or 0 for m in fresh)
    assert row.target == pytest.approx(100 * target)

    def first(m: Manifest) -> float:
        return next((p.step for p in m.curve if (p.scores["accuracy"] or 0) >= target), math.inf)

    assert row.steps_to_target == statistics.median(map(first, own))
    assert row.reached == sum(first(m) < math.inf for m in own)
    assert row.fresh_steps_to_target == statistics.median(map(first, fresh))
    assert row.saved == pytest.approx(1 - statistics.median(map(first, own)) / statistics.median(map(first, fresh)))
    assert (row.steps, row.old_steps, row.total_steps) == (400, 400, 800)


def test_the_arm_is_derived_from_the_recycling_method_where_no_tag_names_it() -> None:
    assert arm_of(delta("hpo", "v1", "initialize", 0, outdated="x", tagged=False)) == "initialize"
    assert arm_of(delta("hpo", "v1", "fresh", 0, tagged=False)) == "fresh"
    assert arm_of(delta("hpo", "v1", "fresh, whole budget", 0)) == "fresh, whole budget"


def test_tuning_methods_are_never_averaged_together() -> None:
    full = [delta("hpo", "v1", "fresh", seed, end=0.6) for seed in range(3)]
    lora = [delta("hpo", "v1", "fresh", seed, end=0.5, method="tune/lora") for seed in range(3)]
    recycled = [delta("hpo", "v1", "initialize", s, end=0.7, method="tune/lora", outdated="x") for s in range(3)]
    rows = rows_of(full + lora + recycled)
    assert sorted((row.arm, row.method, len(row.runs)) for row in rows) == [
        ("fresh", "tune/full", 3), ("fresh", "tune/lora", 3), ("initialize", "tune/lora", 3),
    ]  # fmt: skip
    gain = row_of(rows, "hpo", "v1", "initialize").over_fresh
    assert gain is not None
    assert gain.mean > 15  # against LoRA's 0.5 and not against full tuning's 0.6


def test_runs_of_other_settings_become_variants_and_equal_ones_count_once() -> None:
    slow = [delta("hpo", "v1", "fresh", seed) for seed in range(2)]
    quick = [delta("hpo", "v1", "fresh", seed) for seed in range(2)]
    for manifest in quick:
        manifest.training = {**manifest.training, "learning_rate": 1e-3}
        manifest.id += "q"
    again = slow[0].model_copy(update={"id": "again", "created": "2027-01-01T00:00:00+00:00"})
    rows = rows_of([*slow, *quick, again])
    assert {row.label: len(row.runs) for row in rows} == {
        "fresh (learning_rate 0.0005)": 2,
        "fresh (learning_rate 0.001)": 2,
    }
    assert any(run.manifest.id == "again" for row in rows for run in row.runs)


def test_missing_and_none_scores_leave_gaps_and_never_raise() -> None:
    lost, none = delta("hpo", "v1", "fresh", 0), delta("hpo", "v1", "initialize", 0, outdated="gone")
    lost.scores, lost.curve = {}, []
    none.scores = {"test": {"accuracy": None}, "validation": {}}
    none.curve[3].scores = {"accuracy": None}
    rows = rows_of([lost, none])
    assert all(row.test is None for row in rows)
    assert row_of(rows, "hpo", "v1", "initialize").over_fresh is None
    assert verdicts(rows)


def test_for_an_error_metric_a_gain_is_a_lower_value() -> None:
    fresh = [delta("sts", "v1", "fresh", s, start=3.0, end=1.0, metric="mse") for s in range(3)]
    better = [delta("sts", "v1", "initialize", s, start=2.0, end=0.5, metric="mse", outdated="x") for s in range(3)]
    row = row_of(rows_of(fresh + better), "sts", "v1", "initialize")
    assert row.over_fresh is not None
    assert row.over_fresh.outcome == "higher"
    assert row.steps_to_target is not None
    assert row.steps_to_target < 400
    assert row.test is not None
    assert row.test.mean < 1  # not in points


def test_the_verdicts_say_where_recycling_did_not_help(demo: list[Manifest]) -> None:
    sentences = verdicts(rows_of(demo))
    assert len(sentences) == 2 + 6
    (poor,) = [text for text in sentences if text.startswith("On rotten-tomatoes after v2,")]
    assert "did not reach fresh tuning's final validation score within its 400 steps (0 of 3 seeds did)" in poor
    assert "3.3 points below fresh tuning's" in poor
    (good,) = [text for text in sentences if text.startswith("On hpo after v1,")]
    row = row_of(rows_of(demo), "hpo", "v1", "initialize")
    assert f"after {row.steps_to_target:.0f} of 400 steps (3 of 3 seeds" in good
    assert "direct reuse lost 6.6 points" in good
    assert "It saved no steps on rotten-tomatoes after v2." in sentences[1]


def test_two_seeds_are_called_undecided_and_one_seed_has_no_interval() -> None:
    two = " ".join(verdicts(rows_of(demo_manifests(seeds=2))))
    assert "undecided: 2 seeds, interval" in two
    assert "(undecided: 1 seed)" in " ".join(verdicts(rows_of(demo_manifests(seeds=1))))


def test_a_store_without_recycling_says_so_and_an_empty_one_says_nothing() -> None:
    (only,) = verdicts(rows_of([delta("hpo", "v0", "fresh", 0)]))
    assert only == "Nothing has been recycled in this store yet: it holds 1 tuned delta of 1 task on 1 base."
    assert verdicts([]) == []


def test_steps_of_a_chain_of_recycled_deltas_are_all_counted() -> None:
    first = delta("hpo", "v0", "fresh", 0)
    second = delta("hpo", "v1", "initialize", 0, outdated=first.id, steps=100)
    third = delta("hpo", "v2", "initialize", 0, outdated=second.id, steps=50)
    first.parents = [*first.parents, third.parents[-1].model_copy(update={"id": third.id})]  # a loop must end
    row = row_of(rows_of([first, second, third]), "hpo", "v2", "initialize")
    assert row.old_steps >= 500


def test_held_out_loss_before_comes_from_the_record_or_from_the_parent() -> None:
    v1 = base("v1", "v0", "law", {"law": (6.0, 4.0)}, "2026-01-01T00:00:00+00:00")
    v2 = base("v2", "v1", "news", {"law": (9.0, 4.5), "news": (5.0, 3.0)}, "2026-01-02T00:00:00+00:00")
    del v2.scores["before:heldout:law"]
    del v2.scores["before:heldout:news"]
    found = {(one.base, one.domain): one for one in held_out(artefacts([v2, v1]))}
    assert found["v1", "law"].change == -2.0
    assert found["v1", "law"].trained
    assert (found["v2", "law"].before, found["v2", "law"].after) == (4.0, 4.5)
    assert found["v2", "news"].before is None
    assert found["v2", "news"].change is None


def test_a_method_with_settings_of_its_own_is_read() -> None:
    manifest = delta("hpo", "v1", "fresh", 0)
    manifest.methods = [MethodRecord(name="tune/dps", settings={"keep": 0.3}), MethodRecord(name="tune/llrd")]
    (row,) = rows_of([manifest])
    assert row.method == "tune/dps + tune/llrd"
