"""Two processes (gloo, on CPU), with a copy of the weights in each (DDP) and with the weights split up (FSDP2).

They end with equal weights, which are those of one process that accumulates both halves; and they agree on when to
stop, what is best, and what went wrong. ``in_processes.py`` is what they run.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import anytune
from anytune.engine.runtime import make_runtime
from anytune.engine.settings import decisive, total_steps, training_settings
from anytune.errors import SettingsError
from anytune.jobs.deltas import load_delta
from anytune.store import Store
from tests.contract.bench import Bench
from tests.contract.in_processes import ALIKE, CUT, LAUNCHED, case_name, folder_name, shardings

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed"),
    pytest.mark.timeout(900),  # the two processes do everything in one start
]
CHECKS = ("loops", "cuts", "errors", "reached", "taken_apart", "launched")


@pytest.fixture(scope="module")
def pair(bench: Bench, tmp_path_factory) -> Path:
    """The folder in which two processes have left what they found."""
    bench.store("for-processes")
    for name, _ in ALIKE:
        bench.base_of(name)
    bench.prompts()
    bench.lora()
    for name, sharding in CUT:
        for which in ("cut", "uncut"):
            bench.store(f"{which}-{folder_name(name, sharding)}")
    out = tmp_path_factory.mktemp("pair")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    places = (bench.base, bench.other, bench.task, bench.domain, bench.folder, out, ",".join(CHECKS))
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.contract.in_processes", *map(str, places)],
            env={**os.environ, **variables, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=800) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
    return out


def said(pair: Path, check: str) -> tuple[dict, dict]:
    first, second = (json.loads((pair / f"{check}-{rank}.json").read_text()) for rank in range(2))
    return first, second


def weights(pair: Path, name: str) -> tuple[dict, dict]:
    first, second = (load_file(pair / f"{name}-{rank}") for rank in range(2))
    assert first.keys() == second.keys()
    return first, second


@pytest.mark.parametrize(("name", "settings"), ALIKE)
def test_two_processes_end_with_the_weights_of_one_that_accumulates(bench: Bench, pair: Path, name, settings):
    alone = bench.loop(name, settings=settings, precise=True, steps=3, together=2)
    for sharding in shardings(name):
        key = case_name(name, settings, sharding)
        left, right = weights(pair, key)
        assert left.keys() == alone.after.keys()
        for found, tensor in alone.after.items():
            assert torch.equal(left[found], right[found]), found
            torch.testing.assert_close(left[found], tensor, rtol=0, atol=1e-12)
        for one in said(pair, "loops"):
            assert one[key] == {"counts": [alone.result.examples, alone.result.items], "plain": True, "hooked": []}


def test_split_up_weights_stay_tied_and_in_fp32_under_bf16(pair: Path):
    assert all(one["tied"] for one in said(pair, "loops"))
    left, right = weights(pair, "bf16")
    assert {tensor.dtype for tensor in left.values() if tensor.is_floating_point()} == {torch.float32}
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(("name", "sharding"), CUT)
def test_a_signal_to_one_process_ends_both_and_the_same_command_ends_in_the_same_bits(bench, pair, name, sharding):
    key = folder_name(name, sharding)
    one, other = (found[key] for found in said(pair, "cuts"))
    assert one == other
    assert "interrupted at step 2 of 6" in one["said"]  # micro-batches 4 to 7 are those of step 1 (the second)
    assert one["files"][0] == one["files"][1]
    assert one["scores"][0] == one["scores"][1]
    assert one["ids"][0] == one["ids"][2]
    assert one["environment"] == 2
    store = Store(bench.folder / f"cut-{key}", create=False)
    assert len(store.find()) == 2, "the outdated delta, and this run once"
    store.verify(store.get(one["references"][0]))
    assert not any((store.folder / ".work").iterdir())


@pytest.mark.parametrize("method", ["tune/lora", "tune/full"])
def test_a_delta_made_in_parts_answers_in_one_process(bench: Bench, pair: Path, method):
    key = folder_name(method, "fsdp")
    reference = said(pair, "cuts")[0][key]["references"][0]
    entry = Store(bench.folder / f"cut-{key}", create=False).get(reference)
    model, _tokenizer = anytune.load(entry.folder, base=bench.base)  # checks the stored probe
    assert load_delta(entry) is not None
    assert all(type(parameter) is torch.nn.Parameter for parameter in model.parameters())


def test_what_process_0_raises_all_raise_and_methods_that_need_whole_weights_are_refused(pair: Path):
    one, other = said(pair, "errors")
    assert one["first"] == other["first"] == ["DataError", "no rows", "another file"]
    assert one["bug"] == ["ZeroDivisionError", "a bug", ""]
    assert other["bug"] == ["TrainingError", "process 0 failed: ZeroDivisionError: a bug", ""]
    assert one["value"] == other["value"] == 0
    assert one["gathered"] == other["gathered"] == [0, 1]
    assert one["mean"] == other["mean"] == 0.5
    assert one["refused"] == other["refused"]
    assert one["refused"][:2] == ["MethodError", "method 'whole' cannot run with sharding=fsdp"]


def test_a_loss_that_is_not_finite_on_one_process_ends_both_with_the_same_error(pair: Path):
    one, other = said(pair, "errors")
    assert one["not finite"] == other["not finite"]
    assert one["not finite"][0] == "DivergedError"
    assert "the loss is nan at step 3" in one["not finite"][1]


def test_a_weight_that_a_loss_no_longer_reaches_is_an_error_unless_declared(pair: Path):
    one, other = said(pair, "errors")
    assert one["varying"] == other["varying"]
    assert one["varying"][:2] == [
        "MethodError",
        "outer.bias had a gradient in the first step and has none in this one",
    ]
    assert "varying = True" in one["varying"][2]
    for name in ("lonely", "declared"):
        left, right = weights(pair, name)
        assert all(torch.equal(left[key], right[key]) for key in left), name


def test_process_0_says_which_weights_are_best_and_dropout_differs_between_processes(pair: Path):
    one, other = said(pair, "reached")
    assert one["best_step"] == other["best_step"] == 2
    left, right = weights(pair, "best")
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert one["drawn"] != other["drawn"]


def test_a_weight_that_is_whole_though_it_should_be_split_up_is_an_error(pair: Path):
    for found in said(pair, "taken_apart"):
        assert found["noticed"][0] == "TrainingError"
        assert "first classifier.bias" in found["noticed"][1]
        assert 0.4 < found["share"] < 0.6
        assert found["same"]


# ---------------------------------------------------------------- real launchers


def launch(bench: Bench, task: Path | str, store: Path) -> subprocess.Popen:
    """``torchrun`` as a user types it, in a process group of its own, as in a terminal."""
    training = [word for key, value in LAUNCHED.items() for word in ("--training", f"{key}={value}")]
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "anytune", "tune",
         str(bench.base), str(task), "--store", str(store), "--quiet", *training],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def errors_in(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(("error: ", "interrupted"))]


def checkpoint_after(store: Path, step: int, launcher: subprocess.Popen) -> Path:
    """Wait for a checkpoint after ``step``; gives the work folder."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and launcher.poll() is None:
        for state in store.glob(".work/*/step-*/state.json"):
            if int(state.parent.name.removeprefix("step-")) > step:
                return state.parent.parent
        time.sleep(0.01)
    raise AssertionError(f"no checkpoint after step {step}: {launcher.communicate(timeout=60)}")


def newest_step(work: Path) -> int:
    return max(int(folder.name.removeprefix("step-")) for folder in work.glob("step-*"))


def test_torchrun_cut_by_ctrl_c_and_by_a_killed_process_ends_in_the_same_bits(bench: Bench, pair: Path, tmp_path):
    store = tmp_path / "store"
    first = launch(bench, bench.task, store)
    work = checkpoint_after(store, 0, first)
    os.killpg(first.pid, signal.SIGINT)
    _, told = first.communicate(timeout=60)
    assert first.returncode != 0
    assert len(errors_in(told)) == 1, told
    assert "interrupted; the same command goes on where it was" in told

    second = launch(bench, bench.task, store)
    work = checkpoint_after(store, newest_step(work), second)
    os.kill(json.loads((work / "run.json").read_text())["process"]["id"], signal.SIGKILL)
    _, told = second.communicate(timeout=60)
    assert second.returncode != 0
    assert len(errors_in(told)) == 1, told
    assert "error: another process of this run has ended" in told

    third = launch(bench, bench.task, store)
    out, told = third.communicate(timeout=120)
    assert third.returncode == 0, told
    assert out.count("things-full-base") == 2, "the table and the next command, from one process"
    [entry] = Store(store, create=False).find()
    assert entry.manifest.id == said(pair, "launched")[0]["id"]
    assert entry.manifest.environment.processes == 2


def test_bad_input_under_a_launcher_is_said_once(bench: Bench, tmp_path):
    launcher = launch(bench, "missing.csv", tmp_path / "store")
    out, told = launcher.communicate(timeout=60)
    assert errors_in(told) == ["error: missing.csv does not exist"]
    assert out == ""
    assert told.count("exitcode: 2") or told.count("exitcode  : 2")


# ---------------------------------------------------------------- what cannot be had


def test_commands_whose_work_is_not_shared_are_refused_under_a_launcher(cli, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    answer = cli("store", "list")
    assert answer.code == 2
    assert "error: 'anytune store' was launched in 2 processes" in answer.err


def test_more_processes_than_batches_are_an_error():
    with pytest.raises(SettingsError, match="3 processes share 2 batches of 8") as caught:
        total_steps(training_settings({"batch_size": 8}), 2, world=3)
    assert "--batch-size 5" in caught.value.fix
    assert total_steps(training_settings({"batch_size": 8, "epochs": 3}), 2, world=2) == 3


def test_the_number_of_processes_and_sharding_make_another_run_and_nothing_else_does():
    runtime = make_runtime("fp32")
    assert runtime.decides() == {"precision": "fp32"}
    assert replace(runtime, world=2).decides() == {"precision": "fp32", "processes": 2}
    assert replace(runtime, world=2, sharded=True).decides() == {
        "precision": "fp32", "processes": 2, "sharding": "fsdp",
    }  # fmt: skip
    assert "sharding" not in decisive(training_settings({"sharding": "fsdp"}))


def test_accelerates_fsdp_without_a_gpu_is_an_error_and_so_is_sharding_alone(monkeypatch):
    with pytest.raises(SettingsError, match="there is one process") as caught:
        make_runtime("fp32", sharding="fsdp")
    assert "torchrun" in caught.value.fix
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match="there is no GPU") as caught:
        make_runtime("fp32")
    assert "sharding=fsdp" in caught.value.fix
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(SettingsError, match="version 1"):
        make_runtime("fp32")


def test_a_launcher_that_started_one_process_though_asked_for_several_is_an_error(monkeypatch):
    """``accelerate launch --cpu --num_processes 2`` leaves just these variables."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(SettingsError, match="asked for several processes and started one") as caught:
        make_runtime("fp32")
    assert "torchrun" in caught.value.fix
