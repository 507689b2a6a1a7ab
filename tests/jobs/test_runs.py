"""What the runs of one command say together, and the control beside them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import anytune
from anytune.data.tasks import Example, Task, load_task
from anytune.errors import SettingsError
from anytune.evaluate.scores import paired_difference
from anytune.jobs import runs
from anytune.jobs.runs import floor_of, words_floor
from anytune.jobs.tune import PLAIN
from anytune.store import Store
from tests.conftest import tiny_rows, write_rows

TRAINING = {"steps": 6, "batch_size": 8, "max_length": 32, "precision": "fp32", "learning_rate": 2e-2}


def points(entries) -> dict[int, float]:
    return {entry.manifest.seed: 100 * entry.score("test") for entry in entries}


def test_a_control_is_run_beside_with_the_same_seeds_sizes_and_settings(tiny_base, tiny_task, tmp_path):
    runs = anytune.tune(
        tiny_base, tiny_task, store=tmp_path, method="bitfit", training=TRAINING, seeds=[0, 1, 2],
        train_sizes=[15, 30], against="full",
    )  # fmt: skip
    assert len(runs) == len(runs.control) == 6
    assert {entry.manifest.form for entry in runs.control} == {"scores"}
    pairs = [(entry.manifest.seed, entry.manifest.task.content) for entry in runs]
    assert pairs == [(entry.manifest.seed, entry.manifest.task.content) for entry in runs.control]
    assert [entry.manifest.training["learning_rate"] for entry in runs.control] == [2e-2] * 6
    small, large = runs.summaries()
    assert (small.size, large.size, small.method, small.control) == (15, 30, "bitfit", "full")
    own, control = points(runs[3:]), points(runs.control[3:])
    assert large.runs.mean == pytest.approx(np.mean(list(own.values())))
    assert large.control_runs.worst == pytest.approx(min(control.values()))
    expected = paired_difference(own, control)
    assert (large.against.difference.mean, large.against.difference.low) == pytest.approx(
        (expected.mean, expected.low)
    )
    assert large.floor == pytest.approx(100 * floor_of(load_task(tiny_task).subset(train_size=30)))


def test_plain_runs_in_the_store_are_the_control_where_none_is_asked_for(tiny_base, tiny_task, tmp_path):
    common = {"store": tmp_path, "training": TRAINING, "seeds": [0, 1]}
    assert not anytune.tune(tiny_base, tiny_task, method="lora", **common).control
    plain = anytune.tune(tiny_base, tiny_task, method=PLAIN, tags={"arm": "x"}, name="y", **common)
    assert not plain.control, "plain training is no control of itself"
    again = anytune.tune(tiny_base, tiny_task, method="lora", score_on=[tiny_task], **common)
    assert [entry.id for entry in again.control] == [entry.id for entry in plain]
    assert again.summaries()[0].against is not None
    other = anytune.tune(tiny_base, tiny_task, method="lora", **{**common, "training": {**TRAINING, "steps": 5}})
    assert not other.control, "other settings are another comparison"


def test_a_control_that_is_the_method_itself_is_refused(tiny_base, tiny_task, tmp_path):
    with pytest.raises(SettingsError, match="full, which is the method itself"):
        anytune.tune(tiny_base, tiny_task, store=tmp_path / "s", against="full")
    assert not (tmp_path / "s").exists()


def test_a_control_is_forecast_and_spread_over_workers_too(tiny_base, tiny_task, tmp_path):
    common = {"store": tmp_path, "training": TRAINING, "seeds": [0, 1], "method": "lora", "against": "full"}
    planned = anytune.tune(tiny_base, tiny_task, dry_run=True, **common)
    assert [one.name for one in planned] == ["things-lora-tiny"] * 2 + ["things-full-tiny"] * 2
    runs = anytune.tune(tiny_base, tiny_task, workers=2, keep="scores", **common)
    assert [entry.manifest.seed for entry in (*runs, *runs.control)] == [0, 1, 0, 1]
    assert len(Store(tmp_path, create=False).find()) == 4


def test_the_floor_is_the_score_of_one_answer(tmp_path):
    rows = [(text, "a" if place % 3 else "b") for place, (text, _) in enumerate(tiny_rows(60))]
    task = load_task(write_rows(tmp_path / "t.csv", rows))
    gold = [task.label_names[row.label] for row in task.test]
    assert floor_of(task) == pytest.approx(gold.count("a") / len(gold))
    numbers = load_task(write_rows(tmp_path / "n.csv", [(t, f"{n / 7:.3f}") for n, (t, _) in enumerate(rows)]),
                        metric="mse")  # fmt: skip
    labels = [row.label for row in numbers.train]
    mean = sum(labels) / len(labels)
    assert floor_of(numbers) == pytest.approx(np.mean([(row.label - mean) ** 2 for row in numbers.test]))
    texts = load_task(write_rows(tmp_path / "g.csv", rows, header=("prompt", "response")))
    assert floor_of(texts) is None
    sentences = tuple(Example("a b", None, tags, ("a", "b")) for tags in ((0, 1), (1, 1), (0, 0), (1, 1)))
    tagged = Task(
        "t", "token-classification", "accuracy_tokens", sentences, (), sentences, ("O", "X"), (), "", None, ""
    )
    assert floor_of(tagged) == 5 / 8


def test_words_alone_are_asked_where_a_text_has_one_label(tmp_path, tiny_task, monkeypatch):
    task = load_task(tiny_task)
    found = words_floor(task)
    assert floor_of(task) < found <= 1
    shuffled = tuple(replace(row, label=(row.label + 1) % len(task.label_names)) for row in task.train)
    assert words_floor(replace(task, train=shuffled)) < found, "they are learnt from the training texts"
    numbers = load_task(write_rows(tmp_path / "n.csv", [(t, f"{len(t) / 7:.3f}") for t, _ in tiny_rows(60)]),
                        metric="mse")  # fmt: skip
    assert words_floor(numbers) < floor_of(numbers), "a smaller error"
    texts = load_task(write_rows(tmp_path / "g.csv", tiny_rows(), header=("prompt", "response")))
    assert words_floor(texts) is None
    monkeypatch.setattr(runs, "MOST_FOR_WORDS", 3)
    assert words_floor(task) is None


def test_the_command_prints_a_row_a_size_and_json_has_all_numbers(cli, tiny_base, tiny_task):
    words = (
        "tune", tiny_base, tiny_task, "--method", "bitfit", "--against", "full", "--seeds", 3,
        "--train-sizes", "15,30", "--steps", 4, "--batch-size", 8, "--max-length", 32, "--keep", "scores", "--quiet",
    )  # fmt: skip
    answer = cli(*words)
    assert answer.code == 0, answer.err
    lines = answer.out.splitlines()
    head = next(place for place, line in enumerate(lines) if line.startswith("method"))
    assert lines[head].split() == [
        "method", "examples", "runs", "mean", "sd", "worst", "failed", "against", "difference", "interval", "is",
    ]  # fmt: skip
    assert [line.split()[:3] for line in lines[head + 1 : head + 5]] == [
        ["bitfit", "15", "3"], ["full", "15", "3"], ["bitfit", "30", "3"], ["full", "30", "3"],
    ]  # fmt: skip
    assert "in points" in answer.out
    said = json.loads(cli(*words, "--json").out)
    assert (len(said["runs"]), len(said["control"]), len(said["summary"])) == (6, 6, 2)
    assert {"mean", "sd", "worst", "failed"} <= set(said["summary"][0]["runs"])
    assert {"p", "outcome", "no_worse", "smallest"} <= set(said["summary"][0]["against"])
    alone = cli("tune", tiny_base, tiny_task, "--steps", 2, "--batch-size", 8, "--keep", "scores")
    assert "worst" not in alone.out


def test_a_failed_run_is_named_under_the_table(capsys, tiny_base, tiny_task, tmp_path):
    from anytune.cli.stability_tables import print_summaries

    runs = anytune.tune(
        tiny_base, tiny_task, store=tmp_path, training=TRAINING, seeds=[0, 1], keep="scores", method="bitfit"
    )
    runs[0].manifest.scores = {"test": {"accuracy": 0.9}}
    runs[1].manifest.failed, runs[1].manifest.scores = "things, seed 1: the loss is nan", {"test": {"accuracy": None}}
    print_summaries(runs)
    said = capsys.readouterr().out
    assert "failed: things, seed 1: the loss is nan" in said
    assert "1 of 2" in said
    assert "--against full" in said
