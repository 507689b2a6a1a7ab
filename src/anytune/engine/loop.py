"""The training loop: one readable function around the hooks of ``methods/protocol.py``.

Order of things in a step: ``before_step``, then for each micro-batch ``prepare_batch``, forward, backward (weighted by
its share of the step's items), then ``after_backward``, clipping, the optimizer, ``after_step``. Nothing in a step waits
for the device except where the launcher's processes must agree on the number of items.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from anytune.engine.checkpoints import (
    Snapshot,
    join_state,
    load_checkpoint,
    random_state,
    restore_random_state,
    save_checkpoint,
    split_state,
)
from anytune.engine.progress import JsonLines, Reporter, Silent
from anytune.engine.runtime import Runtime
from anytune.engine.settings import TrainingSettings, learning_rate_share
from anytune.errors import MethodError, TrainingError
from anytune.manifests import CurvePoint
from anytune.methods.protocol import Batch, Method, Stage, StepModule, total, trainable

#: Steps between looks at the loss: each look waits for the device once.
LOG_EVERY = 10


class Batches(Protocol):
    """Training data as a pure function of the micro-batch number."""

    batches_per_epoch: int

    def batch(self, number: int) -> Batch:
        """Micro-batch ``number`` (0, 1, 2, ... over all epochs), with its item count as ``num_items``."""


@dataclass(frozen=True)
class Evaluation:
    """Scores on held-out data: ``scores`` main metric first; ``better`` is larger for the better weights."""

    scores: dict[str, float]
    loss: float | None
    better: float


@dataclass
class TrainingResult:
    """What a run gave, besides the model itself."""

    steps: int = 0
    seconds: float = 0.0
    examples: int = 0
    items: int = 0
    best_step: int = 0
    curve: list[CurvePoint] = field(default_factory=list)


def default_groups(model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's parameter groups: matrices with decay; biases, norms and other vectors without."""
    groups = [
        {"params": [], "names": [], "lr": learning_rate, "weight_decay": decay} for decay in (weight_decay, 0.0)
    ]
    for name, parameter in trainable(model).items():
        group = groups[0 if parameter.ndim > 1 else 1]
        group["params"].append(parameter)
        group["names"].append(name)
    return [group for group in groups if group["params"]]


def stage_borders(stages: Sequence[Stage], steps: int) -> list[tuple[Stage, int, int]]:
    """Each stage with its first step and the step after its last; together they cover 0..steps."""
    borders, begin, share = [], 0, 0.0
    for stage in stages:
        share += stage.share
        end = steps if stage is stages[-1] else round(share * steps)
        borders.append((stage, begin, end))
        begin = end
    return borders


@contextlib.contextmanager
def postponed_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C waits for the end of a step: yields a function that says whether it was pressed. A second one is at once."""
    pressed = False

    def note(_signal: int, _frame: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def train(
    model: nn.Module,
    *,
    methods: Sequence[Method],
    objective: Any,
    batches: Batches,
    steps: int,
    settings: TrainingSettings,
    learning_rate: float,
    runtime: Runtime,
    evaluate: Callable[[nn.Module], Evaluation] | None = None,
    work: Path | None = None,
    title: str = "training",
    reporter: Reporter | None = None,
) -> TrainingResult:
    """Train ``model`` in place; afterwards it holds the weights ``settings.keep`` asks for.

    The caller has prepared the model (``method.prepare``) and seeded torch. If ``work`` holds a checkpoint of this run,
    training goes on from it and ends in the same bits as a run that was never cut.

    Args:
        model: on any device; moved to the runtime's.
        steps: optimizer steps in all; 0 only evaluates.
        evaluate: called on the model in evaluation mode before step 0, every ``evaluate_every`` steps and at the end.
        work: folder for checkpoints and ``metrics.jsonl``; None keeps nothing.

    Raises:
        TrainingError: the loss is not finite, nothing is trainable, a checkpoint cannot be written, or Ctrl-C was
            pressed (after a checkpoint, so that the same command goes on).
    """
    return _Loop(
        model, methods, objective, batches, steps, settings, learning_rate, runtime, evaluate, work, title,
        reporter or Silent(),
    ).run()


class _Loop:
    """One run: its state between steps, and what happens in a step."""

    def __init__(
        self, model: nn.Module, methods: Sequence[Method], objective: Any, batches: Batches, steps: int,
        settings: TrainingSettings, learning_rate: float, runtime: Runtime,
        evaluate: Callable[[nn.Module], Evaluation] | None, work: Path | None, title: str, reporter: Reporter,
    ) -> None:  # fmt: skip
        self.methods, self.batches, self.steps, self.settings = methods, batches, steps, settings
        self.learning_rate, self.runtime, self.evaluate, self.work = learning_rate, runtime, evaluate, work
        self.title, self.reporter = title, reporter
        self.model = model.to(runtime.device)
        if steps and not trainable(model):
            raise TrainingError("nothing is trainable", why="Every weight is frozen.", fix="another --method")
        self.module = StepModule(self.model, methods, objective, runtime.autocast())
        stages = next((method.stages() for method in methods if type(method).stages is not Method.stages), (Stage(),))
        self.borders = stage_borders(stages, steps)
        self.every = settings.evaluate_every or max(1, math.ceil(steps / 10))
        self.result = TrainingResult()
        self.best: dict[str, Tensor] | None = None
        self.best_value = -math.inf
        self.optimizer: torch.optim.Optimizer | None = None
        self.step = 0

    # ------------------------------------------------------------------ the run

    def run(self) -> TrainingResult:
        resumed = load_checkpoint(self.work) if self.work else None
        if resumed is not None:
            self._restore(resumed)
        self.log = JsonLines(self.work / "metrics.jsonl" if self.work else None, resume_at=self.step)
        self.reporter.start(self.title, self.steps, self.step)
        try:
            if resumed is None:
                self._evaluate()
            for stage, begin, end in self.borders:
                if self.step < end:
                    self._stage(stage, begin, end, resumed)
                    resumed = None
        finally:
            self.reporter.finish()
            self.log.close()
        if self.settings.keep == "best" and self.best is not None:
            self._load(self.best)
        self.result.steps = self.step
        return self.result

    def _stage(self, stage: Stage, begin: int, end: int, resumed: Snapshot | None) -> None:
        groups = default_groups(self.model, self.learning_rate, self.settings.weight_decay)
        for method in self.methods:
            groups = method.param_groups(self.model, groups)
        for group in groups:
            group["peak"] = group["lr"]
        self.optimizer = torch.optim.AdamW(groups, fused=self.runtime.device.type in ("cpu", "cuda"))
        module, self.optimizer = self.runtime.accelerator.prepare(self.module, self.optimizer)
        if resumed is not None and begin < self.step:
            self._restore_optimizer(resumed)
        if resumed is not None:
            # last, so that nothing made above has drawn from it
            restore_random_state(join_state("random", resumed.tensors, {}), self.runtime.device)
        last_save = time.monotonic()
        summed, looked = torch.zeros((), device=self.runtime.device), self.step
        with postponed_interrupt() as interrupted:
            while self.step < end:
                began = time.perf_counter()
                share = learning_rate_share(self.step - begin, end - begin, self.settings.warmup, self.settings.schedule)
                summed += self._step(module, share)
                self.step += 1
                look = self.step % LOG_EVERY == 0 or self.step == end
                loss = summed.item() / (self.step - looked) if look else None
                self.result.seconds += time.perf_counter() - began
                if loss is not None:
                    self._look(loss, share)
                    summed.zero_()
                    looked = self.step
                if self.step % self.every == 0 or self.step == self.steps:
                    self._evaluate()
                stop = interrupted()
                if self.work and self.runtime.rank == 0 and self.step < self.steps:
                    due = (
                        self.step % self.settings.checkpoint_every == 0
                        if self.settings.checkpoint_every
                        else time.monotonic() - last_save > 60
                    )
                    if due or stop:
                        save_checkpoint(self.work, self._snapshot())
                        last_save = time.monotonic()
                if stop and self.step < self.steps:
                    raise TrainingError(
                        f"{self.title}: interrupted at step {self.step} of {self.steps}",
                        why="Everything up to here is kept." if self.work else "",
                        fix="the same command again: it goes on at this step" if self.work else "",
                    )

    # ------------------------------------------------------------------ a step

    def _step(self, module: nn.Module, share: float) -> Tensor:
        """One optimizer step; returns its loss (a mean over the step's items), still on the device."""
        runtime, settings = self.runtime, self.settings
        optimizer = self.optimizer
        assert optimizer is not None
        self.model.train()
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share
        first = self.step * settings.accumulation
        micro = [
            self.batches.batch((first + k) * runtime.world + runtime.rank) for k in range(settings.accumulation)
        ]
        items = sum(batch["num_items"] for batch in micro)
        if runtime.world > 1:
            counted = torch.tensor([items], device=runtime.device)
            torch.distributed.all_reduce(counted)
            items_everywhere = int(counted.item())
        else:
            items_everywhere = items
        optimizer.zero_grad(set_to_none=True)
        summed = torch.zeros((), device=runtime.device)
        for k, batch in enumerate(micro):
            if k == 0:
                for method in self.methods:
                    method.before_step(self.model)
            # DDP averages gradients over processes; times world makes it the sum we weight ourselves
            weight = batch["num_items"] * runtime.world / items_everywhere
            self.result.examples += len(batch["input_ids"])
            batch = runtime.to_device(batch)
            for method in self.methods:
                batch = method.prepare_batch(batch)
            last = k == len(micro) - 1
            with contextlib.nullcontext() if last else runtime.accelerator.no_sync(module):
                loss = total(module(batch))
                if len(micro) > 1 or runtime.world > 1:
                    loss = loss * weight
                runtime.accelerator.backward(loss)
            summed += loss.detach()
        self.result.items += items
        for method in self.methods:
            method.after_backward(self.model)
        if settings.max_grad_norm is not None:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        optimizer.step()
        for method in self.methods:
            method.after_step(self.model)
        return summed

    def _look(self, loss: float, share: float) -> None:
        if not math.isfinite(loss):
            raise TrainingError(
                f"{self.title}: the loss is {loss} at step {self.step}",
                why="The weights are no longer usable; nothing of this run is stored.",
                fix=f"a lower learning rate than {self.learning_rate:g}, or precision=fp32",
            )
        self.log.write(kind="train", step=self.step, loss=loss, learning_rate=self.learning_rate * share,
                       seconds=round(self.result.seconds, 3))  # fmt: skip
        self.reporter.step(self.step, {"loss": loss})

    def _evaluate(self) -> None:
        if self.evaluate is None:
            return
        self.model.eval()
        with torch.no_grad():
            found = self.evaluate(self.model)
        seconds = round(self.result.seconds, 3)
        scores: dict[str, float | None] = dict(found.scores)
        self.result.curve.append(CurvePoint(step=self.step, seconds=seconds, scores=scores, loss=found.loss))
        self.log.write(kind="validation", step=self.step, loss=found.loss, seconds=seconds, **found.scores)
        # ">": of equal scores the earlier weights win, which cost less
        if self.settings.keep == "best" and found.better > self.best_value:
            self.best_value, self.result.best_step = found.better, self.step
            self.best = {name: tensor.detach().clone() for name, tensor in self._weights().items()}

    # ------------------------------------------------------------------ state

    def _weights(self) -> dict[str, Tensor]:
        """What can change in training: trainable parameters and every buffer."""
        return {**trainable(self.model), **dict(self.model.named_buffers())}

    @torch.no_grad()
    def _load(self, weights: dict[str, Tensor]) -> None:
        mine = self._weights()
        if mine.keys() != weights.keys():
            changed = sorted(mine.keys() ^ weights.keys())
            raise MethodError(f"the trained weights changed their names during the run: {changed[:3]}")
        for name, tensor in mine.items():
            tensor.copy_(weights[name])

    def _snapshot(self) -> Snapshot:
        assert self.optimizer is not None
        moments = {
            name: self.optimizer.state[parameter]
            for group in self.optimizer.param_groups
            for name, parameter in zip(group["names"], group["params"], strict=True)
            if parameter in self.optimizer.state
        }
        tensors: dict[str, Tensor] = {}
        values: dict[str, Any] = {}
        for prefix, state in {
            "model": self._weights(),
            "optimizer": moments,
            "best": self.best or {},
            "random": random_state(self.runtime.device),
            **{f"method.{method.name}": method.state_dict() for method in self.methods},
        }.items():
            inner, values[prefix] = split_state(prefix, state)
            tensors |= inner
        result = self.result
        values["result"] = {
            "seconds": result.seconds, "examples": result.examples, "items": result.items,
            "best_step": result.best_step, "best_value": self.best_value if math.isfinite(self.best_value) else None,
            "curve": [point.model_dump() for point in result.curve],
        }  # fmt: skip
        return Snapshot(self.step, tensors, values)

    def _restore(self, saved: Snapshot) -> None:
        self.step = saved.step
        self._load(join_state("model", saved.tensors, {}))
        self.best = join_state("best", saved.tensors, {}) or None
        for method in self.methods:
            key = f"method.{method.name}"
            method.load_state_dict(join_state(key, saved.tensors, saved.values[key]))
        stored = dict(saved.values["result"])
        value = stored.pop("best_value")
        self.best_value = -math.inf if value is None else value
        stored["curve"] = [CurvePoint(**point) for point in stored["curve"]]
        self.result = TrainingResult(**stored)

    def _restore_optimizer(self, saved: Snapshot) -> None:
        assert self.optimizer is not None
        stored = join_state("optimizer", saved.tensors, saved.values["optimizer"])
        for group in self.optimizer.param_groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                if name in stored:
                    self.optimizer.state[parameter] = {
                        key: value.to(parameter.device) if key != "step" else value
                        for key, value in stored[name].items()
                    }
