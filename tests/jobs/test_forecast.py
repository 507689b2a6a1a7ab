"""Dry runs: right about what would be done, and nothing on the disk is another afterwards."""

from __future__ import annotations

import hashlib

import pytest

from anytune.engine.interrupts import InterruptedRunError
from anytune.engine.progress import Silent
from anytune.jobs.forecast import Forecast, summed
from anytune.jobs.pretrain import pretrain
from anytune.jobs.recycle import recycle
from anytune.jobs.tune import tune

TRAINING = {"steps": 6, "batch_size": 4, "max_length": 32, "block_size": 32, "precision": "fp32"}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache that is seen to stay as it is."""
    monkeypatch.setenv("ANYTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def listing(folder) -> dict[str, str]:
    """Every file and folder below, files with the hash of their content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


def test_nothing_is_written_by_a_dry_run_and_what_it_says_comes_true(cache, tiny_base, tiny_task):
    asked = {"store": cache / "store", "training": TRAINING, "seeds": (0, 1), "method": {"name": "lora", "r": 2}}
    before = listing(cache)
    forecasts = tune(tiny_base, tiny_task, **asked, dry_run=True)
    assert listing(cache) == before
    assert all(isinstance(one, Forecast) and one.state == "new" for one in forecasts)
    assert forecasts[0].trial == forecasts[1].trial, "seeds cost the same: one is tried"
    made = tune(tiny_base, tiny_task, **asked)
    assert [entry.manifest.name for entry in made] == [one.name for one in forecasts]
    assert [entry.folder.parent for entry in made] == [one.place for one in forecasts]
    assert [entry.manifest.steps for entry in made] == [one.steps for one in forecasts]
    assert made[0].manifest.environment.precision_reason == forecasts[0].precision_reason == "as asked"
    before = listing(cache)
    again = tune(tiny_base, tiny_task, **asked, dry_run=True)
    assert [(one.state, one.place) for one in again] == [("stored", entry.folder) for entry in made]
    assert summed(again)["seconds"] == 0
    assert listing(cache) == before


class InterruptAt(Silent):
    """Ctrl-C at a step."""

    def __init__(self, step):
        self.at = step

    def step(self, step, values):
        if step == self.at:
            import signal

            signal.raise_signal(signal.SIGINT)


def test_a_run_that_was_cut_is_forecast_from_its_checkpoint(cache, tiny_base, tiny_task):
    asked = {"store": cache / "store", "training": TRAINING | {"evaluate_every": 1}}
    with pytest.raises(InterruptedRunError):
        tune(tiny_base, tiny_task, **asked, reporter=InterruptAt(4))
    before = listing(cache)
    [found] = tune(tiny_base, tiny_task, **asked, dry_run=True)
    assert (found.state, found.done, found.steps) == ("begun", 4, 6)
    assert summed([found])["steps"] == 2
    assert listing(cache) == before


def test_stages_of_pretraining_stand_in_for_each_other(cache, tiny_base, tiny_domain):
    stages = [{"source": str(tiny_domain), "name": name} for name in ("first", "second")]
    asked = {"store": cache / "store", "training": TRAINING}
    before = listing(cache)
    forecasts = pretrain(tiny_base, stages, **asked, dry_run=True)
    assert listing(cache) == before
    assert [one.state for one in forecasts] == ["new", "new"]
    assert [bool(one.notes) for one in forecasts] == [False, True]
    entries = pretrain(tiny_base, stages[:1], **asked)
    assert entries[0].manifest.name == forecasts[0].name
    before = listing(cache)
    found = pretrain(tiny_base, stages[:1], **asked, dry_run=True)
    assert [(one.state, one.place) for one in found] == [("stored", entries[0].folder)]
    assert listing(cache) == before


def test_recycling_without_training_takes_no_steps(cache, tiny_base, tiny_task):
    [delta] = tune(tiny_base, tiny_task, store=cache / "store", training=TRAINING)
    before = listing(cache)
    [direct] = recycle(delta, tiny_base, store=cache / "store", task=tiny_task, method="direct", dry_run=True)
    [trained] = recycle(delta, tiny_base, store=cache / "store", task=tiny_task, dry_run=True)
    assert (direct.job, direct.steps, direct.trial.step_seconds) == ("recycle", 0, 0.0)
    assert trained.steps == 6
    assert trained.trial.trainable == trained.trial.parameters
    assert listing(cache) == before


def test_several_workers_share_time_and_need_memory_each():
    from anytune.engine.trial import Memory, Trial

    trial = Trial(10, 10, 1.0, 1.0, 0.5, 0.0, (), Memory(weights=100), 0)
    runs = [Forecast("tune", "a", None, steps=4, seconds=2.0, disk=40, trial=trial) for _ in range(4)]
    assert summed(runs, workers=2) == {
        "runs": 4, "stored": 0, "steps": 16, "seconds": 4.0, "disk": 160, "memory": 200
    }  # fmt: skip


class Says(Silent):
    """Notes what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text):
        self.said.append(text)


@pytest.mark.parametrize(("precision", "times"), [("auto", 1), ("bf16", 0), ("fp32", 0)])
def test_a_precision_that_was_chosen_by_itself_is_said_once_for_all_seeds(
    cache, tiny_base, tiny_task, monkeypatch, precision, times
):
    monkeypatch.setattr("anytune.engine.runtime.bf16_by", lambda device: "amx_bf16")
    asked = {"store": cache / "store", "training": {**TRAINING, "steps": 1, "precision": precision}, "seeds": (0, 1)}
    tell = Says()
    [entry, _] = tune(tiny_base, tiny_task, **asked, reporter=tell)
    said = [line for line in tell.said if "bf16 autocast: this CPU multiplies bf16 in hardware (amx_bf16)" in line]
    assert len(said) == times
    assert entry.manifest.environment.precision == ("fp32" if precision == "fp32" else "bf16")
    tell.said.clear()
    tune(tiny_base, tiny_task, **asked, reporter=tell)
    assert tell.said == [], "nothing is computed, so no precision is chosen"


def test_trackers_get_the_lines_of_the_log_and_decide_nothing(cache, tiny_base, tiny_task):
    pytest.importorskip("tensorboard")
    import json

    from tests.engine.test_tracking import read_tensorboard

    asked = {"training": TRAINING | {"evaluate_every": 1}, "log_with": "tensorboard", "log_dir": cache / "logs"}
    [plain] = tune(tiny_base, tiny_task, store=cache / "plain", training=asked["training"])
    with pytest.raises(InterruptedRunError):
        tune(tiny_base, tiny_task, store=cache / "followed", **asked, reporter=InterruptAt(4))
    [followed] = tune(tiny_base, tiny_task, store=cache / "followed", **asked)
    assert followed.manifest.run == plain.manifest.run
    assert followed.manifest.id == plain.manifest.id, "the same bits, cut or not, followed or not"
    assert str(cache) not in (followed.folder / "anytune.json").read_text()
    [folder] = (cache / "logs" / "tensorboard").iterdir()
    rows = read_tensorboard(folder)
    lines = [json.loads(line) for line in (followed.folder / "metrics.jsonl").read_text().splitlines()]
    train = {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}
    assert rows["train/loss"] == [(step, pytest.approx(loss, rel=1e-6)) for step, loss in train.items()]
    assert [step for step, _ in rows["validation/accuracy"]] == [0, 1, 2, 3, 4, 5, 6]
    assert rows["train/learning_rate"]
