"""Trackers: what they hold is what ``metrics.jsonl`` holds, also after a kill, and they cost no run."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys

import pytest

from anytune.engine.tracking import TrackedRun, Tracking, flat, tracking
from anytune.errors import SettingsError

pytest.importorskip("tensorboard")


def read_tensorboard(folder) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, value) rows of a run's event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(row.step, row.value) for row in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def write(run: TrackedRun, steps, resume_at=0, loss=lambda step: 1 / step) -> None:
    run.start(resume_at, lambda text: print(text, file=sys.stderr))
    for step in steps:
        run.write(kind="train", step=step, loss=loss(step), learning_rate=0.5, seconds=step / 8)
    run.write(kind="validation", step=steps[-1], loss=None, seconds=1.0, scores={"accuracy": 0.75})
    run.close()


def test_a_tracker_that_is_not_installed_is_refused_with_the_command(monkeypatch):
    monkeypatch.setattr("anytune.engine.tracking._installed", lambda module: False)
    with pytest.raises(SettingsError) as problem:
        tracking("tensorboard")
    assert "pip install 'anytune[tensorboard]'" in problem.value.fix


def test_an_unknown_tracker_is_refused_with_the_near_one():
    with pytest.raises(SettingsError, match="tensorbord") as problem:
        tracking(["tensorbord"])
    assert "tensorboard" in str(problem.value.fix)


def test_none_asked_for_is_none():
    assert tracking(None) is None
    assert tracking([]) is None


def test_settings_become_one_level_of_plain_values():
    assert flat({"a": {"b": 1, "c": None}, "d": [1, 2], "e": True}) == {"a.b": 1, "d": "[1, 2]", "e": True}


def test_tensorboard_holds_the_rows(tmp_path):
    write(Tracking(("tensorboard",), tmp_path).of("run", 0, "0123456789", {"rate": 0.1}), [10, 20])
    found = read_tensorboard(tmp_path / "tensorboard" / "run-seed0-01234567")
    assert found["train/loss"] == [(10, pytest.approx(0.1)), (20, pytest.approx(0.05))]
    assert found["validation/accuracy"] == [(20, 0.75)]
    assert "validation/loss" not in found
    assert found["seconds"] == [(10, 1.25), (20, 1.0)]


def test_tensorboard_goes_on_without_doubling(tmp_path):
    runs = Tracking(("tensorboard",), tmp_path)
    write(runs.of("run", 0, "0123456789", {}), [10, 20, 30])  # killed after step 30, its last checkpoint at 20
    write(runs.of("run", 0, "0123456789", {}), [30, 40], resume_at=20)
    found = read_tensorboard(tmp_path / "tensorboard" / "run-seed0-01234567")
    assert [step for step, _ in found["train/loss"]] == [10, 20, 30, 40]


def test_a_failing_tracker_is_told_of_once_and_costs_nothing(tmp_path):
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    said: list[str] = []
    run = Tracking(("tensorboard",), tmp_path).of("run", 0, "0123456789", {})
    run.start(0, said.append)
    run.write(kind="train", step=1, loss=1.0)
    run.close()
    assert len(said) == 1
    assert "tensorboard failed" in said[0]


TRACKIO = """
import json, socket, sys
def refuse(*arguments, **named):
    print("network", arguments, file=sys.stderr)
    raise OSError("no network here")
socket.socket.connect = refuse
socket.socket.bind = refuse
socket.getaddrinfo = refuse
from pathlib import Path
from anytune.engine.tracking import Tracking
from tests.engine.test_tracking import write
runs = Tracking(("trackio",), Path(sys.argv[1]))
write(runs.of("run", 0, "0123456789", {"rate": 0.1}), [10, 20, 30])
write(runs.of("run", 0, "0123456789", {"rate": 0.1}), [30, 40], resume_at=20)
write(runs.of("other", 0, "0123456789", {}), [10])
"""


def test_trackio_is_a_local_file_without_network_or_server(tmp_path):
    pytest.importorskip("trackio")
    done = subprocess.run(
        [sys.executable, "-c", TRACKIO, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "network" not in done.stderr
    assert "failed" not in done.stderr
    assert done.stdout == "", "stdout belongs to our own output"
    with sqlite3.connect(tmp_path / "trackio" / "anytune.db") as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY run_name, step").fetchall()
    assert [(name, step) for name, step, _ in rows] == [
        ("other-seed0-01234567", 10), *(("run-seed0-01234567", step) for step in (10, 20, 30, 40)),
    ]  # fmt: skip
    assert json.loads(rows[-1][2])["validation/accuracy"] == 0.75
