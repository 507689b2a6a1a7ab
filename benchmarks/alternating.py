"""Training steps of several methods in one process, in turn: what the benchmarks of methods are made of.

Step n of every arm comes before step n + 1 of any, and nobody always comes after the same: a machine that slows down
slows all of them. What is timed is a whole step: the methods' hooks, forward, backward, clipping and the optimizer.
"""

from __future__ import annotations

import copy
import json
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anytune.engine.runtime import make_runtime
from anytune.engine.stages import method_groups
from anytune.methods.protocol import Method, Run
from anytune.methods.step import StepModule, total


class Arm:
    """One method in training.

    Args:
        name: for tables.
        methods: run together; [] is plain training.
        fresh: the model that all arms begin with a copy of.
        run: what the methods are told; the copy is prepared for it.
        precision: "fp32" or "bf16".
        weight_decay: of AdamW.
    """

    def __init__(
        self, name: str, methods: Sequence[Method], fresh: nn.Module, run: Run, precision: str,
        weight_decay: float = 0.01,
    ) -> None:  # fmt: skip
        self.name, self.methods, self.run, self.batches = name, methods, run, run.batches
        self.runtime = make_runtime(precision)
        self.model = copy.deepcopy(fresh)
        for method in self.methods:
            self.model = method.prepare(self.model, run)
        self.model.to(self.runtime.device)
        self.module = StepModule(self.model, self.methods, run.objective, self.runtime.autocast())
        groups = method_groups(self.model, self.methods, 1e-5, weight_decay)
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        for method in self.methods:
            method.attach(self.model, self.optimizer)
        self.done, self.seconds = 0, list[float]()

    def step(self) -> None:
        """One step, timed."""
        batch = self.runtime.to_device(self.batches.batch(self.done))
        began = now()
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        for method in self.methods:
            method.before_step(self.model)
        for method in self.methods:
            batch = method.prepare_batch(batch)
        total(self.module(batch)).backward()
        for method in self.methods:
            method.after_backward(self.model)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimizer.step()
        for method in self.methods:
            method.after_step(self.model)
        self.seconds.append(now() - began)
        self.done += 1


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def in_turn(arms: Sequence[Arm], cycle: int, cycles: int) -> list[dict[str, Any]]:
    """Times of whole cycles as ratios to the first arm's; one cycle is made first and not counted.

    Args:
        arms: the first is what the others are compared with.
        cycle: steps after which every method has done all that it does.
        cycles: that are counted.

    Returns:
        For each arm ``milliseconds`` of a step and ``ratio`` (medians over cycles), ``low``, ``high``, ``cycles``.
    """
    steps = cycle * (cycles + 1)
    for step in range(steps):
        for arm in [*arms[step % len(arms) :], *arms[: step % len(arms)]]:
            arm.step()
    sums = {arm.name: [sum(arm.seconds[k : k + cycle]) for k in range(cycle, steps, cycle)] for arm in arms}
    rows = []
    for arm in arms:
        ratios = [own / plain for own, plain in zip(sums[arm.name], sums[arms[0].name], strict=True)]
        rows.append({
            "arm": arm.name, "milliseconds": 1e3 * statistics.median(sums[arm.name]) / cycle,
            "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "cycles": cycles,
        })  # fmt: skip
    return rows


def write_results(folder: Path, name: str, found: Mapping[str, Any]) -> None:
    """What was found and on what, as ``folder/name.json``."""
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "python": platform.python_version(),
               "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"}  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"machine": machine, **found}, indent=1) + "\n")
    tell(f"written to {path}")


def tell(text: str) -> None:
    print(text, flush=True)


def tell_times(what: str, row: dict[str, Any]) -> None:
    tell(f"{what} {row['arm']:20} {row['milliseconds']:8.1f} ms  {row['ratio']:.3f} "
         f"({row['low']:.3f} to {row['high']:.3f})")  # fmt: skip
