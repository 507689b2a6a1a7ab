"""Killed at any moment, the same command goes on and ends in the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from anytune.data.batches import BlockBatches, ExampleBatches
from anytune.engine.interrupts import InterruptedRunError
from anytune.engine.progress import Silent
from anytune.store import Store
from tests.contract.bench import TRAINING_METHODS, Bench

#: 8 steps of 2 micro-batches with a checkpoint after every third step: batches 0..15, checkpoints after 5 and 11.
TRAINING = {"steps": 8, "accumulation": 2, "checkpoint_every": 3, "evaluate_every": 4}


class Killed(BaseException):
    """Nothing catches it, as nothing catches a SIGKILL."""


@pytest.fixture(scope="module")
def uncut(bench: Bench):
    made = {}

    def of(name):
        if name not in made:
            made[name] = bench.job(name, bench.store(f"uncut-{name.replace('/', '-')}"), **TRAINING).manifest
        return made[name]

    return of


def kill_at(monkeypatch, batches: list[int]) -> list[int]:
    """Kill the process when it asks for these batches, one after the other; gives the batches it asked for."""
    asked: list[int] = []
    left = list(batches)
    for cls in (ExampleBatches, BlockBatches):

        def batch(self, step, real=cls.batch):
            asked.append(step)
            if left and step == left[0]:
                left.pop(0)
                raise Killed
            return real(self, step)

        monkeypatch.setattr(cls, "batch", batch)
    return asked


def assert_same(resumed, manifest) -> None:
    assert resumed.files == manifest.files
    assert resumed.scores == manifest.scores
    assert [point.model_dump(exclude={"seconds"}) for point in resumed.curve] == [
        point.model_dump(exclude={"seconds"}) for point in manifest.curve
    ]
    assert (resumed.steps, resumed.best_step, resumed.examples) == (
        manifest.steps,
        manifest.best_step,
        manifest.examples,
    )


@pytest.mark.parametrize("kills", [[1], [7, 12], [11, 15]], ids=["before a checkpoint", "inside steps", "at the end"])
@pytest.mark.parametrize("name", TRAINING_METHODS)
def test_cut_and_resumed_ends_in_the_same_bits(name, kills, bench: Bench, uncut, monkeypatch, tmp_path):
    manifest = uncut(name)
    store = bench.store(f"cut-{tmp_path.name}")
    asked = kill_at(monkeypatch, kills)
    for _ in kills:
        with pytest.raises(Killed):
            bench.job(name, store, **TRAINING)
    asked.clear()
    resumed = bench.job(name, store, **TRAINING)
    assert asked[0] == max((first for first in (6, 12) if first <= kills[-1]), default=0), "it began anew"
    assert_same(resumed.manifest, manifest)
    assert not list((store.folder / ".work").glob("*/step-*"))


class Signals(Silent):
    """Sends a signal to this process in a step."""

    def __init__(self, at: int, number: signal.Signals) -> None:
        self.at, self.number = at, number

    def step(self, step, values) -> None:
        if step == self.at:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("at", [4, 8], ids=["in the middle", "in the last step"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_an_interrupt_writes_a_checkpoint_and_says_that_the_same_command_goes_on(
    at, number, bench: Bench, uncut, tmp_path
):
    store = bench.store(f"interrupted-{tmp_path.name}")
    before = signal.getsignal(number)
    with pytest.raises(InterruptedRunError, match=f"interrupted at step {at} of 8") as caught:
        bench.job("tune/lora", store, reporter=Signals(at, number), **TRAINING)
    assert "the same command again: it goes on at this step" in caught.value.fix
    assert signal.getsignal(number) == before
    assert list((store.folder / ".work").glob(f"*/step-{at:08d}")), "the steps since the last checkpoint would be lost"
    resumed = bench.job("tune/lora", store, **TRAINING)
    assert_same(resumed.manifest, uncut("tune/lora"))


def test_a_killed_process_goes_on_where_its_last_checkpoint_was(bench: Bench, uncut):
    store = bench.store("killed")
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from anytune.store import Store\n"
        "from tests.contract.bench import Bench\n"
        "from tests.contract.test_resume import TRAINING, Signals\n"
        "bench = Bench(*map(Path, sys.argv[1:6]))\n"
        "bench.job('tune/full', Store(sys.argv[6]), reporter=Signals(4, signal.SIGKILL), **TRAINING)\n"
    )
    places = (bench.base, bench.other, bench.task, bench.domain, bench.folder, store.folder)
    ended = subprocess.run([sys.executable, "-c", script, *map(str, places)], timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert [path.name for path in (store.folder / ".work").glob("*/step-*")] == ["step-00000003"]
    resumed = bench.job("tune/full", Store(store.folder), **TRAINING)
    assert_same(resumed.manifest, uncut("tune/full"))


def logged(entry) -> list[dict]:
    lines = [json.loads(line) for line in (entry.folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_the_log_of_a_resumed_run_is_that_of_an_uncut_one(bench: Bench, monkeypatch):
    whole = bench.job("tune/full", bench.store("logged-whole"), **TRAINING)
    store = bench.store("logged-cut")
    kill_at(monkeypatch, [11])
    with pytest.raises(Killed):
        bench.job("tune/full", store, **TRAINING)
    cut = bench.job("tune/full", store, **TRAINING)
    assert logged(cut) == logged(whole)
    assert [line["step"] for line in logged(cut)] == [0, 4, 4, 8, 8]


def test_a_resumed_run_goes_on_with_the_threads_it_was_begun_with_and_leaves_them_as_they_were(
    bench: Bench, uncut, monkeypatch
):
    import torch

    seen = []
    real = ExampleBatches.batch
    kill_at(monkeypatch, [9])
    store = bench.store("threads")
    with pytest.raises(Killed):
        bench.job("tune/full", store, **TRAINING)
    monkeypatch.setattr(
        ExampleBatches, "batch", lambda self, step: seen.append(torch.get_num_threads()) or real(self, step)
    )
    torch.set_num_threads(2)
    try:
        resumed = bench.job("tune/full", store, **TRAINING).manifest
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert resumed.files["delta.safetensors"] == uncut("tune/full").files["delta.safetensors"]
