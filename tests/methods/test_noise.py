"""Methods that draw noise: with the same noise for every token, their steps add up like everybody's.

The contract leaves them out where micro-batches or processes are held against one batch, for each draws its own. Here
the noise is put in by hand, and what the contract asks of the others is asked of them.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from anytune.errors import MethodError
from anytune.methods import registry
from tests.contract.bench import Bench, equal
from tests.methods.noise_in_processes import NOISY, with_equal_noise


@pytest.fixture(scope="module")
def bench(tiny_base, other_base, tiny_task, tiny_domain, tmp_path_factory) -> Bench:
    return Bench(tiny_base, other_base, tiny_task, tiny_domain, tmp_path_factory.mktemp("noise"))


def test_they_are_all_here(bench: Bench):
    from tests.contract.settings import EXERCISES, NOISE

    assert set(NOISY) == {name for name, one in EXERCISES.items() if one.no_accumulation == NOISE}


@pytest.mark.parametrize("name", NOISY)
def test_with_equal_noise_micro_batches_equal_the_whole_batch(name, bench: Bench, monkeypatch):
    with_equal_noise(monkeypatch.setattr)
    settings = {"precise": True, "steps": 4, "batch_size": 6, "learning_rate": 1e-3, "settings": NOISY[name]}
    whole, cut = bench.loop(name, **settings), bench.loop(name, **settings, pieces=2)
    for found, tensor in cut.after.items():
        torch.testing.assert_close(tensor, whole.after[found], rtol=0, atol=1e-12)
    plain = bench.loop(name, methods=[], **{**settings, "settings": None})
    assert not equal(plain.after, whole.after)


@pytest.mark.parametrize("name", NOISY)
def test_each_run_of_a_seed_draws_the_same_noise_and_another_scale_is_another_run(name, bench: Bench):
    once, again = (bench.loop(name, settings=NOISY[name], precise=True, steps=2) for _ in range(2))
    assert equal(once.after, again.after)
    assert not equal(once.after, bench.loop(name, precise=True, steps=2).after)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
def test_with_equal_noise_two_processes_equal_one_that_accumulates(bench: Bench, monkeypatch, tmp_path):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    places = (bench.base, bench.other, bench.task, bench.domain, bench.folder, tmp_path, ",".join(NOISY))
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.methods.noise_in_processes", *map(str, places)],
            env={**os.environ, **variables, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=200) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
    with_equal_noise(monkeypatch.setattr)
    for name, settings in NOISY.items():
        alone = bench.loop(name, settings=settings, precise=True, steps=3, together=2).after
        for sharding in ("none", "fsdp") if registry.get(name).sharded else ("none",):
            left, right = (load_file(tmp_path / f"{name.split('/')[1]}-{sharding}-{rank}") for rank in range(2))
            assert left.keys() == alone.keys()
            for key, tensor in alone.items():
                assert torch.equal(left[key], right[key]), (name, sharding, key)
                torch.testing.assert_close(left[key], tensor, rtol=0, atol=1e-12)


def test_what_cannot_be_split_up_says_so():
    from anytune.engine.sharding import check_sharded

    with pytest.raises(MethodError, match="'smart' cannot run with sharding=fsdp"):
        check_sharded([registry.create("tune/smart")])
