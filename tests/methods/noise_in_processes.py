"""What each of two processes does for ``test_noise.py``: the methods that draw noise, all with the same."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from anytune.methods import consistency, registry
from anytune.methods.tune import lnsr, r3f, smart
from tests.contract.bench import Bench

#: larger than their defaults, so that what the noise does is far above rounding
NOISY: dict[str, dict[str, Any]] = {
    "tune/r3f": {"scale": 0.05, "weight": 10.0},
    "tune/smart": {"noise": 0.05, "eps": 0.05, "steps": 2, "momentum": 0.5, "weight": 10.0, "bregman": 10.0},
    "tune/lnsr": {"norm": 1.0},
}


def same_everywhere(values: torch.Tensor, scale: float, shape: str = "normal") -> torch.Tensor:
    """Noise that is the same for every token of every text."""
    wave = torch.arange(values.shape[-1], dtype=values.dtype, device=values.device).add(1).sin()
    return (scale * wave).expand(values.shape).clone()


def with_equal_noise(patch: Callable[[Any, str, Any], None]) -> None:
    for module in (consistency, lnsr, r3f, smart):
        patch(module, "noise_like", same_everywhere)


def main() -> None:
    *places, out, names = sys.argv[1:]
    with_equal_noise(setattr)
    bench, rank = Bench(*map(Path, places)), os.environ["RANK"]
    for name in names.split(","):
        for sharding in ("none", "fsdp") if registry.get(name).sharded else ("none",):
            trained = bench.loop(name, settings=NOISY.get(name), precise=True, steps=3, sharding=sharding)
            save_file(
                {key: value.contiguous().clone() for key, value in trained.after.items()},
                Path(out) / f"{name.split('/')[1]}-{sharding}-{rank}",
            )
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
