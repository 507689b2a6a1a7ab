"""Comparing methods over tasks, sizes and seeds; and the tables from the lines alone."""

from __future__ import annotations

import json

import numpy as np
import pytest

import anytune
from anytune.engine.settings import TrainingSettings
from anytune.errors import AnytuneError, DataError, SettingsError
from anytune.evaluate.arms import UNTOUCHED, cost, sections
from anytune.evaluate.scores import paired_difference
from anytune.evaluate.stability import hierarchical_difference, holm
from anytune.jobs import arms as job
from anytune.jobs.arms import compare_arms, compared, merged
from anytune.metrics import accuracy
from anytune.report.arm_tables import arm_tables, summary
from anytune.store import Store
from tests.conftest import tiny_rows, write_rows

TRAINING = {"steps": 4, "batch_size": 8, "max_length": 32, "precision": "fp32", "learning_rate": 2e-2}
ARMS = {
    "bias": {"method": "bitfit"},
    "adapter": {"method": {"name": "lora", "r": 2}, "training": {"learning_rate": 1e-2}, "seeds": [0, 1]},
}


@pytest.fixture(scope="module")
def other_task(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("tasks") / "more.csv", tiny_rows(90, seed=9))


@pytest.fixture(scope="module")
def made(tmp_path_factory, session_cache, tiny_base, tiny_task, other_task):
    """(comparison, store): three arms, two tasks, two sizes; one run was made before, by hand, under other words."""
    folder = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYTUNE_CACHE", str(session_cache))
        [by_hand] = anytune.tune(
            tiny_base, tiny_task, store=folder / "s", method="full", training=TRAINING, seeds=[1], train_size=15,
            keep="scores", tags={"arm": "old"}, name="mine", score_on=[other_task], probe_on=[other_task],
        )  # fmt: skip
        found = compare_arms(
            tiny_base, [tiny_task, other_task], ARMS, out=folder / "out", store=folder / "s", seeds=[0, 1, 2],
            train_sizes=[15, 30], training=TRAINING, score_on=[tiny_task, other_task], probe_on=[other_task],
        )  # fmt: skip
    return found, folder / "s", by_hand


def test_each_arm_task_size_and_seed_is_a_line_and_a_run_made_before_is_found(made):
    found, store, by_hand = made
    entries = {entry.manifest.run: entry for entry in Store(store, create=False).find()}
    assert len(found.lines) == len(entries) == 2 * 2 * (3 + 3 + 2), "the run made by hand is one of them"
    read = [json.loads(line) for line in (found.folder / "runs.jsonl").read_text().splitlines()]
    assert read == list(found.lines)
    cells = [(line["size"], line["task"], line["arm"], line["seed"]) for line in read]
    assert len(set(cells)) == len(cells)
    [old] = [line for line in read if line["run"] == by_hand.manifest.run]
    assert (old["arm"], old["seed"], old["task"], old["size"]) == ("plain", 1, "things", 15)
    for line in read:
        entry = entries[line["run"]]
        assert line["test"] == entry.score("test")
        assert line["ood"] == {
            name: entry.score(f"test:{name}") for name in ("things", "more") if name != line["task"]
        }
        assert list(line["probe"]) == list(line["probe_base"]) == (["more"] if line["task"] == "things" else [])
        assert entry.manifest.task.counts["validation"] <= line["size"]
    rates = {line["arm"]: line["learning_rate"] for line in read}
    assert rates == {"plain": 2e-2, "bias": 2e-2, "adapter": 1e-2}


def test_predictions_and_gold_give_the_score_again(made):
    found, _, _ = made
    gold = {line["task"]: line for line in map(json.loads, (found.folder / "tasks.jsonl").read_text().splitlines())}
    for line in found.lines:
        assert accuracy(line["predictions"], gold[line["task"]]["gold"]) == pytest.approx(line["test"])


def test_nothing_is_made_again_and_the_tables_come_from_the_lines_alone(made, monkeypatch, tmp_path, tiny_base,
                                                                         tiny_task, other_task):  # fmt: skip
    found, store, _ = made
    monkeypatch.setattr(job, "tune_cell", lambda **call: pytest.fail("a run was made again"))
    again = compare_arms(
        tiny_base, [tiny_task, other_task], ARMS, out=tmp_path / "out", store=store, seeds=[0, 1, 2],
        train_sizes=[15, 30], training=TRAINING, score_on=[tiny_task, other_task], probe_on=[other_task],
    )  # fmt: skip
    assert list(again.lines) == list(found.lines)
    written = (tmp_path / "out" / "tables.md").read_text()
    (tmp_path / "out" / "tables.md").unlink()
    (tmp_path / "out" / "tasks.jsonl").unlink()
    assert str(compared(tmp_path / "out")).splitlines()[:-1] == str(found).splitlines()[:-1]
    assert (tmp_path / "out" / "tables.md").read_text() == written


def test_the_tables_say_what_a_naive_loop_says(made):
    found, _, _ = made
    small = sections(found.lines)[0]
    assert (small.size, small.control, small.rows) == (15, "plain", ["plain", "bias", "adapter"])

    def scores(arm: str, task: str) -> dict[int, float]:
        return {
            line["seed"]: 100 * line["test"]
            for line in found.lines
            if (line["arm"], line["task"], line["size"]) == (arm, task, 15)
        }

    for column in small.columns:
        own = {arm: scores(arm, column.name) for arm in small.rows}
        assert small.cell("bias", column).mean == pytest.approx(np.mean(list(own["bias"].values())))
        expected = {arm: paired_difference(own[arm], own["plain"]) for arm in ("bias", "adapter")}
        adjusted = holm({arm: one.p for arm, one in expected.items()})
        for arm, one in expected.items():
            shown = small.differences[column.name][arm]
            assert (shown.difference, shown.p) == (one, adjusted[arm])
    pairs = [(scores("bias", name), scores("plain", name)) for name in ("things", "more")]
    assert small.overall["bias"].difference == hierarchical_difference(pairs)
    seconds = {
        (arm, task): np.mean([line["seconds"] for line in found.lines
                              if (line["arm"], line["task"], line["size"]) == (arm, task, 15)])
        for arm in small.rows for task in ("things", "more")
    }  # fmt: skip
    assert cost(found.lines, 15)["bias"] == pytest.approx(
        np.mean([seconds["bias", task] / seconds["plain", task] for task in ("things", "more")])
    )
    text = arm_tables(found.lines)
    for word in ("## 15 training examples: scores on test", "things -> more", "untouched base", "undecided"):
        assert word in text
    assert sections(found.lines, "probe")[0].rows[-1] == UNTOUCHED


def line(arm: str, seed: int, test: float | None, task: str = "t", metric: str = "accuracy", **more) -> dict:
    return {
        "task": task, "metric": metric, "size": 100, "arm": arm, "control": "plain", "seed": seed, "validation": test,
        "test": test, "floor": 0.5, "ood": {}, "probe": {}, "probe_base": {}, "probe_metrics": {}, "steps": 5,
        "seconds": 2.0 if arm == "slow" else 1.0, "failed": None if test is not None else "the loss is nan",
        "predictions": [], **more,
    }  # fmt: skip


def test_a_run_that_diverged_is_in_every_number_and_named():
    lines = [line("plain", seed, 0.7) for seed in range(6)]
    lines += [line("slow", seed, None if seed == 3 else 0.7) for seed in range(6)]
    [section] = sections(lines)
    cell = section.cell("slow", section.columns[0])
    assert (cell.failed, cell.mean) == (1, pytest.approx((5 * 70 + 50) / 6))
    assert section.overall["slow"].difference.mean == pytest.approx(-20 / 6)
    assert cost(lines, 100) == {"plain": 1.0, "slow": 2.0}
    assert "slow, t, 100 examples, seed 3: the loss is nan" in arm_tables(lines)
    assert "failed 1 of 6" in summary(lines)


def test_floors_stand_below_the_arms():
    lines = [line(arm, seed, 0.7, words=0.625) for arm in ("plain", "slow") for seed in range(2)]
    [section] = sections(lines)
    assert (section.columns[0].floor, section.columns[0].words) == (50.0, 62.5)
    assert "| one answer | 50.00 |" in arm_tables(lines)
    assert "| words alone | 62.50 |" in arm_tables(lines)
    assert "words alone" not in arm_tables([line("plain", 0, 0.7), line("slow", 0, 0.7)])


def test_errors_are_better_when_lower_and_are_not_mixed_with_points():
    lines = [line(arm, seed, 0.2 + 0.01 * seed - 0.1 * (arm == "slow"), metric="mse", floor=0.9)
             for arm in ("plain", "slow") for seed in range(8)]  # fmt: skip
    [section] = sections(lines)
    assert section.overall["slow"].difference.mean == pytest.approx(0.1)
    assert section.overall["slow"].outcome == "higher"
    assert section.cell("slow", section.columns[0]).worst == pytest.approx(0.17)
    [mixed] = sections([*lines, *(line("plain", seed, 0.7, task="u") for seed in range(8))])
    assert mixed.overall == {}
    assert "slow" in arm_tables([*lines, *(line("plain", seed, 0.7, task="u") for seed in range(8))])


def test_whole_tasks_are_compared_together_however_many_rows_they_have():
    lines = [line(arm, seed, 0.7 + 0.1 * (arm == "slow"), task=task, size=None)
             for task in ("t", "u") for arm in ("plain", "slow") for seed in range(6)]  # fmt: skip
    lines += [line(arm, 0, 0.7, size=50) for arm in ("plain", "slow")]
    few, whole = sections(lines)
    assert (few.size, whole.size, len(whole.columns)) == (50, None, 2)
    assert whole.overall["slow"].outcome == "higher"
    assert "## All training examples: scores on test" in arm_tables(lines)


def test_cells_are_shared_out_over_processes_and_a_recipe_says_it(tmp_path, tiny_base, tiny_task, capsys):
    recipe = {
        "job": "compare", "base": str(tiny_base), "tasks": str(tiny_task), "arms": {"bias": {"method": "bitfit"}},
        "out": str(tmp_path / "out"), "store": str(tmp_path / "s"), "seeds": 2, "training": TRAINING, "workers": 2,
    }  # fmt: skip
    planned = anytune.run(recipe, dry_run=True)
    assert [one.seed for one in planned] == [0, 1, 0, 1]
    assert not (tmp_path / "out").exists()
    found = anytune.run(recipe)
    assert [(one["arm"], one["seed"]) for one in found.lines] == [("plain", 0), ("plain", 1), ("bias", 0), ("bias", 1)]
    assert {entry.manifest.environment.threads for entry in Store(tmp_path / "s", create=False).find()} == {1}


def test_the_command_prints_the_summary_or_all_tables(cli, made):
    found, _, _ = made
    short, long = cli("compare", found.folder), cli("compare", found.folder, "--tables")
    assert (short.code, long.code) == (0, 0)
    assert "15 training examples, 2 tasks" in short.out
    assert "| arm |" in long.out
    numbers = json.loads(cli("compare", found.folder, "--json").out)
    assert numbers["test"][0]["all"]["bias"]["outcome"] in ("higher", "lower", "undecided")
    assert numbers["probe"][0]["runs"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"tasks": []}, ["no tasks"]),
        ({"tasks": ["T", "T"]}, ["two tasks are called 'things'"]),
        ({"arms": {}}, ["no arms"]),
        ({"arms": {"x": {"method": "lora", "train_sizes": [9000]}}}, ["9000"]),
        ({"arms": {"x": {"method": "lora", "seeds": [1, 1]}}}, ["distinct"]),
        ({"arms": {"x": {"method": "lora", "training": {"stesp": 1}}}}, ["stesp"]),
        ({"control": "bas"}, ["'bas'", "bias"]),
        ({"train_sizes": [9000]}, ["9000"]),
        ({"label_map": {"nowhere": {}}}, ["nowhere"]),
        ({"score_on": ["missing.csv"]}, ["missing.csv"]),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(changed, words, tiny_base, tiny_task, tmp_path):
    given = {"tasks": ["T"], "arms": {"bias": {"method": "bitfit"}}, "training": TRAINING, **changed}
    given["tasks"] = [tiny_task for _ in given["tasks"]]
    with pytest.raises(AnytuneError) as caught:
        compare_arms(tiny_base, out=tmp_path / "out", store=tmp_path / "s", **given)
    for word in words:
        assert word in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "x\n", "{}\n", "[1]\n"])
def test_a_damaged_file_is_refused(text, tmp_path):
    (tmp_path / "runs.jsonl").write_text(text)
    with pytest.raises(DataError, match=r"runs\.jsonl"):
        compared(tmp_path)
    with pytest.raises(DataError, match="cannot read"):
        compared(tmp_path / "missing")


def test_an_open_base_cannot_be_sent_to_workers(tiny_base, tiny_task, tmp_path):
    with pytest.raises(SettingsError, match="open base"):
        compare_arms(
            anytune.open_base(tiny_base), [tiny_task], {"b": {"method": "bitfit"}}, out=tmp_path / "o",
            store=tmp_path / "s", training=TRAINING, workers=2,
        )  # fmt: skip


def test_an_arms_own_epochs_take_the_place_of_shared_steps_which_would_win_over_them():
    shared = {"steps": 60, "batch_size": 8}
    assert merged(shared, {"epochs": 2}) == {"batch_size": 8, "epochs": 2}
    assert merged(TrainingSettings(**shared), {"epochs": 2}) == {"batch_size": 8, "epochs": 2}
    assert merged(shared, {"epochs": 2, "steps": 5}) == {"batch_size": 8, "epochs": 2, "steps": 5}
    assert merged(shared, None) == shared == {"steps": 60, "batch_size": 8}
