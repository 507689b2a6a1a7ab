"""What a run will cost, from a few of its own steps: parameters, seconds, memory; nothing is written.

:func:`trial` takes what :func:`~anytune.engine.loop.train` takes and makes three real steps of the run: the largest
of a sample first, which also warms up, then the two that are nearest to the mean size. Time grows with the tokens of a
batch, padding included, so those two stand for all.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anytune.engine.loop import Batches, Evaluation, Loop
from anytune.engine.progress import Silent
from anytune.engine.runtime import Runtime
from anytune.engine.settings import TrainingSettings
from anytune.errors import SettingsError
from anytune.methods.protocol import Batch, Method
from anytune.methods.step import trainable

#: Steps whose batches are looked at, spread evenly over the run; making a batch costs about a millisecond.
SAMPLED_STEPS = 24
#: An evaluation shorter than this (seconds) is made twice: the first one of a process is slower than the others.
SHORT_EVALUATION = 0.5


@dataclass(frozen=True)
class Memory:
    """Bytes that a run needs on its device at once, by what they hold."""

    weights: int = 0
    gradients: int = 0
    moments: int = 0
    #: the best weights so far, kept beside those in training
    best: int = 0
    #: what the forward pass keeps for the backward pass, measured on the largest batch
    activations: int = 0
    #: what methods keep: teachers' outputs, masks, anchors
    methods: int = 0
    #: most that the device held at once during the trial; 0 on a CPU
    measured: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.moments + self.best + self.activations + self.methods


@dataclass(frozen=True)
class Trial:
    """What a run will cost.

    Attributes:
        parameters: weights of the model, ``trainable`` those that are trained.
        examples: per optimizer step, over all processes; ``tokens`` likewise, without padding.
        step_seconds: of one optimizer step.
        evaluation_seconds: of one evaluation; ``evaluated`` after which steps there is one.
        process_memory: most that this process held at once so far, data and libraries included.
    """

    parameters: int
    trainable: int
    examples: float
    tokens: float
    step_seconds: float
    evaluation_seconds: float
    evaluated: tuple[int, ...]
    memory: Memory
    process_memory: int


def trial(
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
) -> Trial:
    """Try a run: afterwards the model and the methods are spent, for they have made steps of it.

    Args:
        steps: optimizer steps in all; with 0 only the evaluation is tried.

    Raises:
        TrainingError: as ``train``: nothing is trainable.
        SettingsError: the weights are split up over processes; then a step cannot be tried alone.
    """
    if runtime.sharded:
        raise SettingsError(
            "--dry-run with sharded weights is not supported",
            why="What one process needs depends on how the others hold their parts.",
            fix="the dry run with sharding=none: weights, gradients and moments are shared out over the processes",
        )
    loop = Loop(
        model=model, methods=methods, objective=objective, batches=batches, steps=steps, settings=settings,
        learning_rate=learning_rate, runtime=runtime, evaluate=evaluate, work=None, title="trial", reporter=Silent(),
    )  # fmt: skip
    if runtime.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(runtime.device)
    evaluation_seconds = _evaluation(loop)
    activations, step_seconds, sizes = 0, 0.0, _Sizes(0.0, 0.0, 0.0)
    if steps:
        activations, step_seconds, sizes = _steps(loop)
    changing = list(trainable(loop.model).values())
    # what a method trains in place of whole weights may be smaller than they are
    optimizer = loop.state.optimizer
    trained = [one for group in optimizer.param_groups for one in group["params"]] if optimizer else changing
    memory = Memory(
        weights=_bytes([*loop.model.parameters(), *loop.model.buffers()]),
        gradients=_bytes(trained) if steps else 0,
        moments=2 * _bytes(trained) if steps else 0,
        best=_bytes(changing) if steps and settings.keep == "best" and evaluate is not None else 0,
        activations=activations,
        methods=sum(_bytes(_tensors(method.state_dict())) for method in methods),
        measured=torch.cuda.max_memory_allocated(runtime.device) if runtime.device.type == "cuda" else 0,
    )
    evaluated = sorted({0, steps, *range(loop.every, steps + 1, loop.every)}) if evaluate is not None else []
    return Trial(
        parameters=sum(parameter.numel() for parameter in loop.model.parameters()),
        trainable=sum(parameter.numel() for parameter in trained),
        examples=sizes.examples, tokens=sizes.tokens, step_seconds=step_seconds,
        evaluation_seconds=evaluation_seconds, evaluated=tuple(evaluated), memory=memory,
        process_memory=peak_memory(),
    )  # fmt: skip


@dataclass(frozen=True)
class _Sizes:
    """Of one optimizer step: examples, tokens, and tokens with padding (which is what computing costs)."""

    examples: float
    tokens: float
    padded: float


def _steps(loop: Loop) -> tuple[int, float, _Sizes]:
    """Bytes of activations, seconds of a step, and the mean sizes of a step."""
    sampled = sorted({step * loop.steps // SAMPLED_STEPS for step in range(SAMPLED_STEPS)})
    sizes = {step: _size(loop, step) for step in sampled}
    mean = _Sizes(*(sum(getattr(size, key) for size in sizes.values()) / len(sizes)
                    for key in ("examples", "tokens", "padded")))  # fmt: skip
    largest = max(sampled, key=lambda step: sizes[step].padded)
    typical = sorted(sampled, key=lambda step: abs(sizes[step].padded - mean.padded))[:2]
    placed = loop.prepare()
    held = _Held(loop.model)
    accumulation = loop.settings.accumulation
    loop.settings = loop.settings.model_copy(update={"accumulation": 1})  # one micro-batch is held at a time
    with held.counted():
        _timed(loop, placed, largest)
    loop.settings = loop.settings.model_copy(update={"accumulation": accumulation})
    seconds = sum(_timed(loop, placed, step) for step in typical)
    padded = sum(sizes[step].padded for step in typical)
    return held.bytes, seconds * mean.padded / padded, mean


def _timed(loop: Loop, placed: Any, step: int) -> float:
    """Make step ``step`` of the run; seconds until its loss is known."""
    loop.state.step = step
    began = time.perf_counter()
    loop.step(placed, 1.0).item()
    return time.perf_counter() - began


def _size(loop: Loop, step: int) -> _Sizes:
    runtime, accumulation = loop.runtime, loop.settings.accumulation
    numbers = [(step * accumulation + k) * runtime.world + runtime.rank for k in range(accumulation)]
    found = [_batch_size(loop.batches.batch(number)) for number in numbers]
    return _Sizes(*(runtime.world * sum(getattr(one, key) for one in found)
                    for key in ("examples", "tokens", "padded")))  # fmt: skip


def _batch_size(batch: Batch) -> _Sizes:
    ids = batch["input_ids"]
    mask = batch.get("attention_mask")
    return _Sizes(len(ids), ids.numel() if mask is None else int(mask.sum()), ids.numel())


def _evaluation(loop: Loop) -> float:
    """Seconds of one evaluation; 0 if there is none."""
    seconds = 0.0
    if loop.evaluate is None:
        return seconds
    for _ in range(2):
        began = time.perf_counter()
        loop.scored(loop.evaluate)
        seconds = time.perf_counter() - began
        if seconds > SHORT_EVALUATION:
            break
    return seconds


class _Held:
    """Counts the bytes that autograd keeps for the backward pass, weights left out, each storage once."""

    def __init__(self, model: nn.Module) -> None:
        self._weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self._storages: dict[int, int] = {}

    @property
    def bytes(self) -> int:
        """What was counted."""
        return sum(self._storages.values())

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count inside the block."""

        def keep(tensor: Tensor) -> Tensor:
            if tensor.layout == torch.strided:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self._weights:
                    self._storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield


def peak_memory() -> int:
    """Most bytes this process has held in main memory at once; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from _tensors(value)
