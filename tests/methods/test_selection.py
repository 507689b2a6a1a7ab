"""Exactly k of many scores, whatever the scores and however they are split up."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from anytune.methods import bits
from anytune.methods.selection import (
    _without_looking,
    exact_mask,
    global_masks,
    kth_largest,
    radix_kth_largest,
    share_count,
    threshold_mask,
)


def draw(kind: str, size: int = 1000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return {
        "random": lambda: torch.rand(size, generator=generator),
        "wide": lambda: torch.exp(40 * torch.randn(size, generator=generator)),
        "tied": lambda: torch.randint(0, 4, (size,), generator=generator).float(),
        "denormal": lambda: torch.rand(size, generator=generator) * 1e-41,
        "zeros": lambda: torch.zeros(size),
        "constant": lambda: torch.full((size,), 0.3),
        "double": lambda: torch.rand(size, generator=generator, dtype=torch.float64),
        "infinite": lambda: torch.where(torch.rand(size, generator=generator) < 0.1, torch.inf, 1.0),
    }[kind]()


KINDS = ("random", "wide", "tied", "denormal", "zeros", "constant", "double", "infinite")


def by_sorting(scores: torch.Tensor, k: int) -> torch.Tensor:
    """The mask by a stable sort: largest first, then lowest index."""
    order = scores.flatten().argsort(descending=True, stable=True)
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[order[:k]] = True
    return mask.view(scores.shape)


@pytest.mark.parametrize("k", [1, 2, 499, 999, 1000])
@pytest.mark.parametrize("kind", KINDS)
def test_every_way_finds_what_a_sort_finds(kind, k):
    scores = draw(kind)
    reference = scores.sort(descending=True).values[k - 1]
    assert kth_largest(scores, k) == reference == scores.topk(k).values[-1]
    for pieces in ([scores], [scores[:1], scores[1:700], scores[700:]]):
        assert radix_kth_largest(pieces, k) == reference
    assert torch.equal(exact_mask(scores, k), by_sorting(scores, k))
    if k < 1000:  # as on a device, which is not waited for
        assert torch.equal(_without_looking(scores, reference, k), by_sorting(scores, k))
    assert torch.equal(exact_mask(scores.view(20, 50), k), by_sorting(scores, k).view(20, 50))
    split = global_masks({"a": scores[:300], "b": scores[300:301], "c": scores[301:]}, k)
    assert torch.equal(torch.cat(list(split.values())), by_sorting(scores, k))
    assert int(threshold_mask(scores, k).sum()) == int((scores >= reference).sum())


@settings(deadline=None, max_examples=60)
@given(
    arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(0, width=32, allow_nan=False)), st.integers(1, 40)
)
def test_the_count_is_exact_for_any_scores(values, k):
    scores = torch.from_numpy(values)
    wanted = by_sorting(scores, min(k, len(values)))
    assert torch.equal(exact_mask(scores, k), wanted)
    assert torch.equal(global_masks({"a": scores}, k)["a"], wanted)


def test_more_than_there_are_is_all_of_them():
    assert exact_mask(torch.zeros(3), 9).all()
    assert all(mask.all() for mask in global_masks({"a": torch.zeros(3), "b": torch.ones(2)}, 9).values())


@pytest.mark.parametrize("keep", [0.1, 0.3, 0.7, 1.0, 1e-6, 0.123456])
def test_a_share_is_counted_as_the_decimal_it_is_written_as(keep):
    for size in (1, 7, 10, 30, 4096 * 1024):
        exact = Fraction(str(keep)) * size
        assert share_count(size, keep) >= exact > share_count(size, keep) - 1
    assert share_count(30, 0.1) == 3  # in floating point 30 * 0.1 is a little more than 3


def test_a_part_of_a_tensor_in_each_of_two_processes(tmp_path):
    """Ties at the threshold lie in both parts."""
    script = tmp_path / "part.py"
    script.write_text("""
import os, sys, torch
torch.distributed.init_process_group("gloo")
from anytune.methods.selection import global_masks
from tests.methods.test_selection import KINDS, draw
rank, group, found = torch.distributed.get_rank(), torch.distributed.group.WORLD, {}
for kind in KINDS:
    half = draw(kind).view(2, 500)[rank]
    for k in (1, 400, 999):
        masks = global_masks({"a": half[:100], "b": half[100:]}, k, group)
        found[f"{kind} {k}"] = torch.cat([masks["a"], masks["b"]])
torch.save(found, sys.argv[1] + str(rank))
torch.distributed.destroy_process_group()
""")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / "found")],
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": str(port), "PYTHONPATH": os.getcwd()},
        )
        for rank in range(2)
    ]  # fmt: skip
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    left, right = (torch.load(tmp_path / f"found{rank}", weights_only=True) for rank in range(2))
    for key in left:
        kind, k = key.split()
        whole = draw(kind).view(2, 500)
        # the order of ties: tensor "a" of both processes, then tensor "b" of both
        order = torch.cat([whole[0, :100], whole[1, :100], whole[0, 100:], whole[1, 100:]])
        wanted = by_sorting(order, int(k))
        got = torch.cat([left[key][:100], right[key][:100], left[key][100:], right[key][100:]])
        assert torch.equal(got, wanted), key


@pytest.mark.parametrize("size", [1, 7, 8, 9, 64, 1001])
def test_packed_masks_come_back_in_an_eighth_of_the_bytes(size):
    mask = torch.rand(size, generator=torch.Generator().manual_seed(size)) < 0.5
    small = bits.packed(mask)
    assert small.dtype == torch.uint8
    assert small.numel() == -(-size // 8)
    assert torch.equal(bits.unpacked(small, (size,)), mask)
    if size == 64:
        assert torch.equal(bits.unpacked(bits.packed(mask.view(8, 8)), (8, 8)), mask.view(8, 8))
