from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from anytune.engine import fanout
from anytune.engine.fanout import Unit, check_order, run_units, worker_count
from anytune.engine.loop import train
from anytune.engine.runtime import make_runtime
from anytune.engine.settings import training_settings
from anytune.errors import DataError, SettingsError, TrainingError
from tests.engine.conftest import Line, Objective, Points


class Told:
    """A reporter that remembers."""

    def __init__(self):
        self.started, self.steps, self.said, self.finished = [], [], [], 0

    def start(self, title, total, done=0):
        self.started.append((title, total, done))

    def step(self, step, values):
        self.steps.append((step, values["runs done"]))

    def say(self, text):
        self.said.append(text)

    def finish(self):
        self.finished += 1


# ---------------------------------------------------------------- units that run in other processes


def write(*, folder: str, name: str, needs: list[str], steps: int, reporter) -> None:
    """Does ``steps`` steps; fails if what it waits for is not there."""
    for other in needs:
        assert (Path(folder) / other).exists(), f"{name} was started before {other} was done"
    reporter.start(name, steps)
    for step in range(1, steps + 1):
        reporter.step(step, {"loss": 1.0})
    reporter.say(f"{name} on {torch.get_num_threads()} threads, {os.environ['OMP_NUM_THREADS']} for the maths")
    (Path(folder) / name).touch()


def fail(*, folder: str, reporter) -> None:
    while not (Path(folder) / "training").exists():
        time.sleep(0.01)
    raise DataError("no rows", why="There is nothing to train on.", fix="another file")


def crash(*, reporter) -> None:
    raise ZeroDivisionError("a bug")


def die(*, reporter) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Slow(Points):
    def __init__(self, marker: Path) -> None:
        super().__init__()
        self.marker = marker

    def batch(self, step):
        if step == 3:
            self.marker.touch()
        time.sleep(0.02)
        return super().batch(step)


def train_long(*, folder: str, reporter) -> None:
    train(
        Line(), methods=[], objective=Objective(), batches=Slow(Path(folder) / "training"), steps=100_000,
        settings=training_settings({}), learning_rate=0.01, runtime=make_runtime("fp32"), work=Path(folder) / "work",
        reporter=reporter,
    )  # fmt: skip


def unit(name, folder, *after, steps=5, planned=None):
    arguments = {"folder": str(folder), "name": name, "needs": list(after), "steps": steps}
    return Unit(name, write, arguments, planned if planned is not None else steps, frozenset(after))


# ---------------------------------------------------------------- real processes


def test_units_wait_for_others_and_found_ones_still_complete_the_bar(tmp_path):
    told = Told()
    before = dict(os.environ)
    plan = [
        unit("c", tmp_path, "a", "b"),
        unit("b", tmp_path, "a"),
        unit("a", tmp_path),
        unit("d", tmp_path, steps=0, planned=7),
    ]
    run_units(plan, title="plan", reporter=told, workers=2, threads=1)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "c", "d"}
    assert told.started == [("plan", 22, 0)]
    assert told.steps[-1] == (22, "4/4")
    assert [step for step, _ in told.steps] == sorted(step for step, _ in told.steps)
    assert sorted(told.said) == [f"{name} on 1 threads, 1 for the maths" for name in "abcd"]
    assert told.finished == 1
    assert dict(os.environ) == before
    assert multiprocessing.active_children() == []


def test_a_failing_units_error_arrives_whole_and_the_others_write_their_checkpoints(tmp_path):
    plan = [
        Unit("long", train_long, {"folder": str(tmp_path)}, 100_000),
        Unit("bad", fail, {"folder": str(tmp_path)}, 1),
    ]
    with pytest.raises(DataError) as caught:
        run_units(plan, title="plan", reporter=Told(), workers=2, threads=1)
    error = caught.value
    assert (error.what, error.why, error.fix) == ("bad: no rows", "There is nothing to train on.", "another file")
    assert list((tmp_path / "work").glob("step-*/state.json")), "the long run was stopped without a checkpoint"
    assert multiprocessing.active_children() == []


def test_a_bug_in_a_unit_arrives_with_its_traceback_and_a_killed_worker_is_noticed():
    with pytest.raises(RuntimeError, match=r"(?s)broken crashed:.*in crash.*ZeroDivisionError: a bug"):
        run_units([Unit("broken", crash, {}, 1)], title="plan", reporter=Told(), workers=1, threads=1)
    with pytest.raises(TrainingError, match=r"plan: a worker process ended with code -9 while running dies") as caught:
        run_units([Unit("dies", die, {}, 1)], title="plan", reporter=Told(), workers=1, threads=1)
    assert "same command" in caught.value.fix


PARENT = """
from pathlib import Path
from anytune.engine.fanout import Unit, run_units
from tests.engine.test_fanout import Told, train_long

if __name__ == "__main__":
    run_units([Unit("long", train_long, {{"folder": {folder!r}}}, 100_000)], title="plan", reporter=Told(), workers=1)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent_and_leave_a_checkpoint(tmp_path, number):
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(folder=str(tmp_path)))
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    parent = subprocess.Popen([sys.executable, str(script)], env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "training").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    parent.send_signal(number)
    _, said = parent.communicate(timeout=60)  # ends only when the worker, which holds stderr too, has ended
    assert list((tmp_path / "work").glob("step-*/state.json"))
    if number == signal.SIGTERM:
        assert "InterruptedRunError: plan: interrupted" in said
        assert parent.returncode == 1
    else:
        assert parent.returncode == -signal.SIGKILL


# ---------------------------------------------------------------- the parent alone


class Process:
    exitcode = None

    def is_alive(self):
        return self.exitcode is None


def drive(plan, processes, messages, told):
    work = queue.Queue()
    thread = threading.Thread(target=messages, args=(work, inbox := queue.Queue()), daemon=True)
    thread.start()
    fanout._drive(plan, fanout.LocalWorkers(work, inbox, processes), "plan", told)


def test_a_dead_worker_is_noticed_though_another_reports_all_the_time(tmp_path, monkeypatch):
    monkeypatch.setattr(fanout, "LOOK_SECONDS", 0.05)
    processes = [Process(), Process()]

    def messages(work, inbox):
        work.get()
        for number in range(2000):
            inbox.put(("steps", "a", 1))
            time.sleep(0.005)
            if number == 5:
                processes[1].exitcode = -9

    with pytest.raises(TrainingError, match="ended with code -9 while running a, b"):
        drive([unit("a", tmp_path), unit("b", tmp_path)], processes, messages, Told())


def test_never_more_units_are_handed_out_than_there_are_workers(tmp_path):
    handed = []

    def messages(work, inbox):
        for _ in range(4):
            handed.append(work.get(timeout=5).name)
            time.sleep(0.05)
            assert work.empty(), "with one worker, a second unit was handed out"
            inbox.put(("done", handed[-1], None))

    told = Told()
    drive([unit(name, tmp_path) for name in "abcd"], [Process()], messages, told)
    assert handed == list("abcd")
    assert told.steps[-1] == (20, "4/4")


def test_a_resumed_unit_counts_the_steps_it_had_made_before():
    inbox = queue.Queue()
    reporter = fanout.ToParent("u", inbox.put)
    reporter.start("first run", 10, done=6)
    reporter.step(8, {})
    reporter.step(10, {})
    reporter.start("second run", 10)
    reporter.step(10, {})
    assert [inbox.get_nowait()[2] for _ in range(inbox.qsize())] == [6, 2, 2, 10]


@pytest.mark.parametrize(
    ("names", "after", "words"),
    [
        (["a", "a"], {}, "several units are called a"),
        (["a", "b"], {"b": ["x"]}, "'b' waits for x"),
        (["a", "b", "c"], {"b": ["c"], "c": ["b"]}, "'b' waits for c"),
        (["a"], {"a": ["a"]}, "'a' waits for a"),
    ],
)
def test_a_plan_that_could_never_finish_is_refused_at_once(tmp_path, names, after, words):
    plan = [unit(name, tmp_path, *after.get(name, [])) for name in names]
    with pytest.raises(SettingsError, match=words):
        check_order(plan)
    with pytest.raises(SettingsError, match=words):
        run_units(plan, title="plan", reporter=Told())


def test_a_plan_without_units_is_done():
    run_units([], title="plan", reporter=Told())


def test_there_are_never_more_workers_than_units_or_cores(monkeypatch):
    monkeypatch.setattr(fanout, "core_count", lambda: 4)
    assert [worker_count(units) for units in (0, 1, 3, 9)] == [1, 1, 3, 4]
    assert worker_count(9, wanted=6) == 6
    assert worker_count(2, wanted=6) == 2
    monkeypatch.setattr(fanout, "core_count", lambda: 96)
    assert worker_count(100) == 8


def test_a_worker_whose_parent_is_gone_ends(monkeypatch):
    class Gone:
        def is_alive(self):
            return False

    monkeypatch.setattr(multiprocessing, "parent_process", Gone)
    assert fanout._next(queue.Queue()) is None
