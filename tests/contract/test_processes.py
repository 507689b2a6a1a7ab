"""Two processes (gloo, on CPU) end with equal weights, which are those of one process that accumulates both halves."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from anytune.methods import registry
from tests.contract.bench import TRAINING_METHODS, Bench
from tests.contract.settings import exercise


def one_process(names: list[str], bench: Bench, out: Path) -> None:
    """What each of the processes runs: every method for a few steps in fp64 without dropout."""
    for name in names:
        trained = bench.loop(name, precise=True, steps=3)
        rank = os.environ["RANK"]
        save_file(
            {key: value.contiguous() for key, value in trained.after.items()}, out / f"{name.replace('/', '-')}-{rank}"
        )
        (out / f"{name.replace('/', '-')}-{rank}.txt").write_text(f"{trained.result.examples} {trained.result.items}")


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
def test_two_processes_end_with_the_weights_of_one_that_accumulates(bench: Bench, tmp_path):
    bench.store("for-processes")
    names = [name for name in TRAINING_METHODS if not exercise(name).no_accumulation]
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    script = (
        "import sys; from pathlib import Path\n"
        "from tests.contract.bench import Bench\n"
        "from tests.contract.test_processes import one_process\n"
        "one_process(sys.argv[7].split(','), Bench(*map(Path, sys.argv[1:6])), Path(sys.argv[6]))\n"
    )
    places = (bench.base, bench.other, bench.task, bench.domain, bench.folder, tmp_path, ",".join(names))
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, *map(str, places)],
            env={**os.environ, **variables, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=150) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
    for name in names:
        left, right = (load_file(tmp_path / f"{name.replace('/', '-')}-{rank}") for rank in range(2))
        alone = bench.loop(name, precise=True, steps=3, together=2)
        assert left.keys() == right.keys() == alone.after.keys()
        for found, tensor in alone.after.items():
            assert torch.equal(left[found], right[found]), found
            torch.testing.assert_close(left[found], tensor, rtol=0, atol=1e-12)
        counts = (tmp_path / f"{name.replace('/', '-')}-0.txt").read_text()
        assert counts == f"{alone.result.examples} {alone.result.items}"
        assert registry.get(name).trains
