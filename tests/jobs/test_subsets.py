"""Low-resource subsets: several sizes in one command, drawn once for all runs or by each run."""

from __future__ import annotations

import pytest

import anytune
from anytune.data.tasks import load_task
from anytune.errors import SettingsError
from anytune.jobs.subsets import subsets

TRAINING = {"steps": 2, "batch_size": 8, "max_length": 32, "precision": "fp32"}


def test_every_seed_is_run_at_every_size_and_is_the_run_of_that_size_alone(tiny_base, tiny_task, tmp_path):
    common = {"store": tmp_path / "s", "training": TRAINING, "keep": "scores"}
    runs = anytune.tune(tiny_base, tiny_task, train_sizes=[12, 24], seeds=[0, 1], **common)
    counts = [(run.manifest.task.counts["train"], run.manifest.seed) for run in runs]
    assert counts == [(12, 0), (12, 1), (24, 0), (24, 1)]
    assert all(run.manifest.task.counts["validation"] <= run.manifest.task.counts["train"] for run in runs)
    assert len({run.manifest.task.content for run in runs}) == 2
    [alone] = anytune.tune(tiny_base, tiny_task, train_size=24, seeds=[1], **common)
    assert alone.id == runs[3].id


def test_rows_are_drawn_once_or_by_each_run(tiny_task):
    task = load_task(tiny_task)
    same, own, other = (subsets(task, 12, None, None, seed) for seed in (None, "run", 5))
    assert same.of(12, 0) is same.of(12, 9)
    assert same.of(12, 9).content == task.subset(train_size=12).content
    assert own.of(12, 9).content == task.subset(train_size=12, seed=9).content != own.of(12, 8).content
    assert other.of(12, 9).content == task.subset(train_size=12, seed=5).content
    classes = subsets(task, None, None, 2, "run")
    assert classes.of(None, 4).content == task.subset(per_class=2, seed=4).content
    assert subsets(task, None, None, None, None).of(None, 4) is task


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"train_sizes": [12, 4000]}, ["4000", "42 training rows"]),
        ({"train_sizes": []}, ["train_sizes = []"]),
        ({"train_sizes": [12, 12]}, ["distinct"]),
        ({"train_sizes": [0]}, ["at least 1"]),
        ({"train_sizes": [12], "train_size": 12}, ["train_size=12"]),
        ({"train_sizes": [12], "per_class": 2}, ["per_class=2"]),
        ({"subset_seed": 1}, ["without a size"]),
        ({"subset_seed": "runs", "train_size": 12}, ["'runs'"]),
        ({"subset_seed": -1, "train_size": 12}, ["-1"]),
    ],
)
def test_wrong_sizes_are_refused(given, words, tiny_base, tiny_task, tmp_path):
    with pytest.raises(SettingsError) as caught:
        anytune.tune(tiny_base, tiny_task, store=tmp_path / "s", **given)
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "s").exists()


def test_the_command_line_takes_sizes_and_other_tasks(cli, tiny_base, tiny_task):
    import json

    answer = cli(
        "tune", tiny_base, tiny_task, "--train-sizes", "12,24", "--subset-seed", "run", "--score-on", tiny_task,
        "--probe-on", tiny_task, "--steps", 2, "--batch-size", 8, "--keep", "scores", "--json", "--quiet",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert all("test:things" in run["scores"] for run in json.loads(answer.out)["runs"])
    for options, word in ((("--train-sizes", "a"), "--train-sizes a"), (("--subset-seed", "x"), "--subset-seed x")):
        answer = cli("tune", tiny_base, tiny_task, *options)
        assert answer.code == 2
        assert word in answer.err
