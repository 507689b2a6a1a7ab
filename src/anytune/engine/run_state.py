"""What of a run changes from step to step, and its way into a checkpoint and back.

The position in the data is the step itself (batches are a pure function of seed and step), and the schedule is a
function of the step, too; so neither is stored. A checkpoint is taken between two optimizer steps: a run that is
killed between two micro-batches makes the whole step again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from anytune.engine.checkpoints import Snapshot, random_state, restore_random_state
from anytune.engine.runtime import Runtime
from anytune.engine.sharding import like
from anytune.engine.stages import moments, restore_moments
from anytune.errors import MethodError
from anytune.manifests import CurvePoint
from anytune.methods.parts import whole
from anytune.methods.protocol import Method
from anytune.methods.step import trainable
from anytune.models.states import join_state, split_state


@dataclass
class TrainingResult:
    """What a run gave, besides the model itself; ``best_step`` is the step whose weights the model holds."""

    steps: int = 0
    seconds: float = 0.0
    examples: int = 0
    items: int = 0
    best_step: int = 0
    curve: list[CurvePoint] = field(default_factory=list)


def library_versions() -> dict[str, str]:
    """Versions of what computes: with others the bits of a run may be others."""
    return {name: version(name) for name in ("anytune", "torch", "transformers", "peft", "accelerate")}


@dataclass(kw_only=True)
class RunState:
    """The state of a run between two steps."""

    model: nn.Module
    methods: Sequence[Method]
    runtime: Runtime
    optimizer: torch.optim.Optimizer | None = None
    #: optimizer steps made
    step: int = 0
    result: TrainingResult = field(default_factory=TrainingResult)
    best: dict[str, Tensor] | None = None
    best_value: float = -math.inf
    #: the loss since the last look, a sum still on the device, and the step of that look
    summed: Tensor = field(init=False)
    looked: int = 0

    def __post_init__(self) -> None:
        self.summed = torch.zeros((), device=self.runtime.device)

    def weights(self) -> dict[str, Tensor]:
        """What can change in training: trainable parameters and every buffer."""
        return {**trainable(self.model), **dict(self.model.named_buffers())}

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Put weights, as :meth:`weights` gave them, into the model.

        Raises:
            MethodError: their names are not those of the model now.
        """
        mine = self.weights()
        if mine.keys() != weights.keys():
            changed = sorted(mine.keys() ^ weights.keys())
            raise MethodError(f"the trained weights changed their names during the run: {changed[:3]}")
        for name, tensor in mine.items():
            tensor.copy_(like(weights[name], tensor))

    def note_best(self, value: float) -> None:
        """Keep the weights as they are now if ``value`` is above the best so far.

        Of equal values the earlier weights win, which cost less; NaN never wins.
        """
        if value > self.best_value:
            self.best_value, self.result.best_step = value, self.step
            self.best = {name: tensor.detach().clone() for name, tensor in self.weights().items()}

    def snapshot(self) -> Snapshot:
        """The whole state, as views: it is to be written before the next step changes it.

        Called by every process; what is split up over them is put together, and what differs between them stands
        under each one's rank.
        """
        assert self.optimizer is not None
        tensors: dict[str, Tensor] = {}
        values: dict[str, Any] = {}
        parts: dict[str, Mapping[str, Any]] = {
            "model": self.weights(),
            "optimizer": moments(self.optimizer),
            "best": self.best or {},
            "window": {"summed": self.runtime.mean(self.summed)},
            **{f"method.{method.name}": method.state_dict() for method in self.methods},
        }
        for rank, drawn in enumerate(self.runtime.gather(random_state(self.runtime.device))):
            parts[f"random.{rank}"] = drawn
        for prefix, state in parts.items():
            inner, values[prefix] = split_state(prefix, state)
            tensors |= inner
        tensors = {name: whole(tensor) for name, tensor in tensors.items()}
        self._add_differing(tensors, values)
        result = self.result
        values["result"] = {
            "seconds": result.seconds, "examples": result.examples, "items": result.items,
            "best_step": result.best_step, "best_value": self.best_value if math.isfinite(self.best_value) else None,
            "curve": [point.model_dump() for point in result.curve], "looked": self.looked,
        }  # fmt: skip
        return Snapshot(self.step, tensors, values)

    def _add_differing(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Methods' states that are not those of process 0, under ``process.<rank>.<method>``."""
        if self.runtime.world == 1:
            return
        for method in self.methods:
            key = f"method.{method.name}"
            mine = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{key}/")}
            digests = self.runtime.gather(_digest(mine, values[key]))
            if len(set(digests)) == 1:
                continue
            cpu = {name: tensor.detach().cpu() for name, tensor in mine.items()}
            for rank, (found, value) in enumerate(self.runtime.gather((cpu, values[key]))):
                if rank:
                    tensors |= {f"process.{rank}.{name}": tensor for name, tensor in found.items()}
                    values[f"process.{rank}.{key}"] = value

    def restore(self, saved: Snapshot) -> None:
        """Take back all but the optimizer (:meth:`restore_optimizer`) and the generators (:meth:`restore_random`)."""
        self.step = saved.step
        self.load(join_state("model", saved.tensors, {}))
        self.best = join_state("best", saved.tensors, {}) or None
        self.summed.copy_(saved.tensors["window/summed"])
        for method in self.methods:
            key = f"process.{self.runtime.rank}.method.{method.name}"
            key = key if key in saved.values else f"method.{method.name}"
            method.load_state_dict(join_state(key, saved.tensors, saved.values[key]))
        stored = dict(saved.values["result"])
        value, self.looked = stored.pop("best_value"), stored.pop("looked")
        self.best_value = -math.inf if value is None else value
        stored["curve"] = [CurvePoint(**point) for point in stored["curve"]]
        self.result = TrainingResult(**stored)

    def restore_optimizer(self, saved: Snapshot) -> None:
        """Give the optimizer, which the stage has just made, its moments back."""
        assert self.optimizer is not None
        restore_moments(self.optimizer, join_state("optimizer", saved.tensors, saved.values["optimizer"]))

    def restore_random(self, saved: Snapshot) -> None:
        """Set torch's generators; to be called last, so that nothing draws from them in between."""
        state = join_state(f"random.{self.runtime.rank}", saved.tensors, {})
        if state:
            restore_random_state(state, self.runtime.device)


def _digest(tensors: Mapping[str, Tensor], values: Any) -> str:
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + str(tensor.dtype).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
