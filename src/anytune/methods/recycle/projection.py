"""Cross-task projection: learn on one task how outdated weights change, then change another task's without training.

In plain words: all that was tuned (adapter or prompt, and head) is written out as one long vector. On a task with
data a low-rank map is trained that takes the old vector to one that answers well on the new base. The map is kept
beside the result, and ``recycle(projection=...)`` sends another task's outdated vector through it: no training, no
data.

Formula: vec(new) = [vec(old)] + vec(old) W1 W2 + b, vec the tuned weights in order, P numbers; W1 [P, rank],
W2 [rank, P], b [P]; the bracket only with ``residual``. Trained are W1, W2 and b, by L = (1 - alpha) * CE + alpha *
T^2 * KL(softmax(z_old / T) || softmax(z_new / T)).

Paper: Qin, Qian et al. 2023 (Recyclable Tuning), the training-free cross-task projection of its discussion.
Costs: 2 rank P + P numbers are trained, with AdamW's two moments for each, whatever P adapters alone would cost: for a
vector of 1.5 million and rank 16 that is 50 million. One pass of the old model over the training texts. Applying it:
no pass at all.
When not to use it: with a single training task, as here, the map has seen one vector: b can hold all that this task
needs, and nothing forces it to mean anything for another. Expect little; ``direct`` costs less. For full differences
of more than a toy base (refused). For tasks with another number of labels: the head is part of the vector.
Choices of ours: ``residual`` starts at ``direct`` (W2 and b begin at 0) and is on by default; without it W1, W2 and b
begin at N(0, std^2) as published, and the vector has to be made from nothing. Of a full difference the vector is the
difference, never the base. alpha and T as in ``distill``; b has no weight decay; rank 16 is the published example.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn, optim

from anytune.errors import MethodError
from anytune.methods.outdated import outdated_of
from anytune.methods.protocol import Batch, Method, Run, Terms
from anytune.methods.registry import register
from anytune.methods.step import trainable
from anytune.methods.teaching import Asked, answer_gap, ask

#: the file beside a delta
FILE = "projection.safetensors"
#: most numbers that are trained: with their moments and gradients four times as many are held
MOST = 2**27
#: W1, W2 and b, as buffers of the model (the loop then keeps them with its best weights) and in the file
PARTS = ("projection_in", "projection_out", "projection_bias")

# ---------------------------------------------------------------------- on tensors


def shift_of(vector: Tensor, first: Tensor, second: Tensor, bias: Tensor, residual: bool) -> Tensor:
    """What is added to ``vector`` [P]: ``vector W1 W2 + b``, less the vector itself without ``residual``; [P].

    Args:
        first: W1, [P, rank].
        second: W2, [rank, P].
        bias: b, [P].
    """
    shift = (vector @ first) @ second + bias
    return shift if residual else shift - vector


def gradients_of(gradient: Tensor, vector: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of W1, W2 and b, given the loss's by the projected vector, [P]."""
    return torch.outer(vector, second @ gradient), torch.outer(vector @ first, gradient), gradient.clone()


def layout_of(weights: Mapping[str, Tensor]) -> Tensor:
    """SHA-256 of names and shapes in order, as 32 bytes: what a vector's entries mean."""
    said = repr([(name, list(tensor.shape)) for name, tensor in weights.items()])
    return torch.frombuffer(bytearray(hashlib.sha256(said.encode()).digest()), dtype=torch.uint8).clone()


# ---------------------------------------------------------------------- the method


@register
@dataclass(kw_only=True)
class Projection(Method):
    """A low-rank map of the outdated weights, trained here or on another task."""

    rank: Annotated[int, Field(ge=1, le=1024, description="of the map: W1 is [P, rank], W2 [rank, P]")] = 16
    alpha: Annotated[float, Field(ge=0, le=1, description="share of the old model's answers; labels get the rest")] = (
        0.7
    )
    temperature: Annotated[float, Field(gt=0, le=1000, description="T: both answers are softened by it")] = 5.0
    residual: Annotated[
        bool, Field(description="add the old vector itself; false = the published map, which starts from noise")
    ] = True
    std: Annotated[
        float, Field(gt=0, le=10, description="standard deviation that what starts at random is drawn with")
    ] = 0.02

    neutral = None
    neutral_reason = "the map takes the place of the weights; before its first step it is direct reuse (residual)"
    sharded = False
    suggests = {"learning_rate": 1e-3}  # noqa: RUF012 - W2 begins at 0, like the B of a LoRA

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Put the outdated weights on, and the map of their vector beside them; or send them through a given one.

        Raises:
            MethodError: there are no outdated weights, the map would be too large, or a given one belongs to other
                weights.
            DeltaError: they do not fit the new base.
        """
        outdated = outdated_of(run, self.name)
        model = outdated.install(model)
        differences = outdated.difference() if outdated.kind in ("full", "sparse") else {}
        tuned = {*run.head_names, *outdated.head, *differences}
        plain = outdated.kind in ("full", "sparse", "bottleneck")
        weights = {
            name: weight
            for name, weight in trainable(model).items()
            if not plain or name in tuned or run.anatomy.canonical(name) in differences
        }
        self._names, self._start = list(weights), {name: one.detach().clone() for name, one in weights.items()}
        parts = [differences.get(run.anatomy.canonical(name), self._start[name]) for name in weights]
        self._vector = torch.cat([part.detach().float().flatten() for part in parts])
        self._layout = layout_of(weights)
        self._asked: Asked | None = None
        self._last: dict[str, Tensor] = {}
        self._hooks: list[Any] = []
        self._held: dict[str, Tensor] = {}
        if run.projection is not None:
            self._put(weights, self._given(run.projection))
            return model
        self._check_size(outdated.kind)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in weights)
        generator = torch.Generator().manual_seed(run.seed)
        shapes = ((len(self._vector), self.rank), (self.rank, len(self._vector)), (len(self._vector),))
        for number, (name, shape) in enumerate(zip(PARTS, shapes, strict=True)):
            drawn = torch.randn(shape, generator=generator) * self.std
            still = self.residual and number > 0
            model.register_buffer(name, torch.zeros(shape) if still else drawn, persistent=False)
        if not self.residual:
            self._put(weights, self._shift({name: model.get_buffer(name) for name in PARTS}, False))
        if self.alpha:
            self._asked = ask(run, self, logits=True)
        return model

    def _check_size(self, kind: str) -> None:
        numbers = (2 * self.rank + 1) * len(self._vector)
        if numbers > MOST:
            raise MethodError(
                f"a map of rank {self.rank} for {len(self._vector):,} {kind} weights has {numbers:,} numbers",
                why=f"At most {MOST:,} are trained; it is meant for adapters and prompts.",
                fix="a delta tuned with lora or prompt_tuning, or --set rank=1",
            )

    def _given(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The shift that a stored map gives this vector.

        Raises:
            MethodError: it was trained for other names or shapes.
        """
        if not torch.equal(parts["layout"], self._layout):
            raise MethodError(
                f"the projection was trained for {len(parts[PARTS[2]]):,} weights of its own layout, "
                f"these are {len(self._vector):,}",
                why="Entry i of the vector must mean the same weight: same kind, size and number of labels.",
                fix="a projection trained on a delta of the same method, settings and label count",
            )
        return self._shift(parts, bool(parts["residual"].item()))

    def _shift(self, parts: Mapping[str, Tensor], residual: bool) -> Tensor:
        first, second, bias = (parts[name].detach() for name in PARTS)
        return shift_of(self._vector, first, second, bias, residual)

    @torch.no_grad()
    def _put(self, weights: Mapping[str, Tensor], shift: Tensor) -> None:
        """Write start + shift into the weights."""
        for name, part in zip(self._names, shift.split([self._start[n].numel() for n in self._names]), strict=True):
            weight = weights[name]
            weight.copy_(self._start[name].to(weight) + part.view_as(weight).to(weight))

    def param_groups(self, model: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The map in place of all weights; b without decay."""
        if not groups:
            return groups
        self._vector = self._vector.to(model.get_buffer(PARTS[0]))
        # the same memory: what the loop keeps and puts back is the parameters' own
        self._map = {name: nn.Parameter(model.get_buffer(name)) for name in PARTS}
        made = []
        for names, decay in ((PARTS[:2], groups[0]["weight_decay"]), (PARTS[2:], 0.0)):
            params = [self._map[name] for name in names]
            made.append({**groups[0], "names": list(names), "params": params, "weight_decay": decay})
        return made

    def attach(self, model: nn.Module, optimizer: optim.Optimizer) -> None:
        """Write the projected vector into the model as the last part of each optimizer step."""
        self._detach()

        def write(*_: Any) -> None:
            self._put(self._weights(model), self._shift(self._map, self.residual))

        self._hooks.append(optimizer.register_step_post_hook(write))

    def _weights(self, model: nn.Module) -> dict[str, nn.Parameter]:
        there = dict(model.named_parameters())
        return {name: there[name] for name in self._names}

    def before_step(self, model: nn.Module) -> None:
        """A step begins without gradients, whoever's loop it is."""
        for weight in self._weights(model).values():
            weight.grad = None

    def objective(self, model: nn.Module, batch: Batch, output: Any, terms: Terms) -> Terms:
        """The labels' term with its share, and the distance to what the old model said."""
        if self._asked is None:
            return terms
        asked = self._asked = self._asked.to(batch["input_ids"].device)
        found = {name: term for name, term in terms.items() if name != "loss"}
        if self.alpha < 1:
            found = {"loss": (1 - self.alpha) * terms["loss"], **found}
        assert asked.logits is not None
        gap = answer_gap(output.logits, asked.logits.of(batch), batch, self.temperature)
        self._last["answers_apart"] = gap.detach()
        return {**found, "teacher": self.alpha * gap}

    @torch.no_grad()
    def after_backward(self, model: nn.Module) -> None:
        """The gradient of the weights becomes one of the map."""
        weights = self._weights(model)
        parts = [(torch.zeros_like(one) if one.grad is None else one.grad).flatten() for one in weights.values()]
        gradient = torch.cat(parts).to(self._vector)
        first, second, _ = (self._map[name] for name in PARTS)
        for name, found in zip(PARTS, gradients_of(gradient, self._vector, first, second), strict=True):
            self._map[name].grad = found
        for weight in weights.values():
            weight.grad = None

    def figures(self) -> dict[str, float]:
        """How far the answers were from the old model's in the last micro-batch."""
        return {name: value.item() for name, value in self._last.items()}

    def finish(self, model: nn.Module, run: Run) -> nn.Module:
        """Take the map off; its weights are those that were kept."""
        self._detach()
        if run.projection is None:
            self._held = {name: model.get_buffer(name).detach().cpu().clone() for name in PARTS}
            for name in PARTS:
                del model._buffers[name]
        self._asked = None
        return model

    def _detach(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def files(self) -> dict[str, dict[str, Tensor]]:
        """The map, where one was trained."""
        if not self._held:
            return {}
        said = {"layout": self._layout, "residual": torch.tensor([self.residual])}
        return {FILE: {**{name: one.contiguous() for name, one in self._held.items()}, **said}}
