"""Interpolation distillation: every point between the old model and the new one should answer as the old one does.

In plain words: draw a straight line from the old tuned model to the one that is trained. Beside the labels, the new
model learns that the models on this line, built anew in each step, answer like the old model too. That keeps the two
in one valley: what is between them stays good.

Formula: theta(x) = (1 - x) * theta_old + x * theta_new over all parameters, adapters with their backbones. L = (1 -
weight) * CE at x = 1 + weight * mean over x in {points, 1} of [T^2 * KL(softmax(z_old / T) || softmax(z_x / T)) + beta
* 1/2 * mean (h_x - h_old)^2]. Gradients reach theta_new alone, through the factor x. For regression the squared
difference of the two numbers stands in place of T^2 KL.

Paper: Qin, Qian et al. 2023 (Recyclable Tuning); its published code holds this loss and runs it nowhere.
Costs: for each point between, one more forward and backward pass, all their graphs held at once: with one point a
step takes two to three times as long as in plain tuning. A second copy of the weights; of LoRA and prompts that of
the whole base. One pass of the old model over the training texts before the first step.
When not to use it: when the bases differ in shape; when time counts: ``distill`` costs a look-up in a step.
Choices of ours: one point in the middle; the mean over points, where the published code sums, so that more points do
not mean more weight; the state of one text is its mean over tokens, of all layers. What a point answers is compared
with the old model's stored answers, not asked anew. Dropout is drawn at each point. ``random`` points are uniform
between 0 and 1, equal in all processes and micro-batches of a step. weight 0.5 and T 5 are not tuned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn, optim
from torch.func import functional_call

from anytune.data.splits import stable_seed
from anytune.errors import MethodError
from anytune.methods.consistency import example_weights
from anytune.methods.distillation import patience
from anytune.methods.outdated import outdated_of
from anytune.methods.protocol import Batch, Method, Run, Terms
from anytune.methods.registry import register
from anytune.methods.teacher_cache import Kept, row_keys
from anytune.methods.teaching import Asked, BlockStates, answer_gap, ask, state_at


def between(old: Mapping[str, Tensor], new: Mapping[str, Tensor], x: float) -> dict[str, Tensor]:
    """``(1 - x) * old + x * new`` by name; gradients flow into ``new``. Integers stay as in ``new``."""
    return {
        name: torch.lerp(old[name].to(tensor), tensor, x) if tensor.is_floating_point() else tensor
        for name, tensor in new.items()
    }


def drawn_points(count: int, seed: int, step: int) -> list[float]:
    """Uniform numbers between 0 and 1, the same for the same seed and step."""
    generator = Generator().manual_seed(stable_seed("points", seed, step))
    return torch.rand(count, generator=generator, dtype=torch.float64).tolist()


class _Answering(nn.Module):
    """A model's answers under an objective as one module, so that its weights can be given with the call."""

    def __init__(self, model: nn.Module, objective: Any) -> None:
        super().__init__()
        self.model, self._objective = model, objective

    def forward(self, batch: Batch) -> Any:
        """What the objective makes of the batch."""
        return self._objective.forward(self.model, batch)


@register
@dataclass(kw_only=True)
class InterpolationDistillation(Method):
    """Distillation at points between the old model and the trained one."""

    weight: Annotated[
        float, Field(ge=0, le=1, description="share of the old model's terms; the labels get the rest; 0 = plain")
    ] = 0.5
    points: Annotated[
        list[Annotated[float, Field(ge=0, lt=1)]],
        Field(description="fixed points between the old model (0) and the trained one (1, which always counts)"),
    ] = field(default_factory=lambda: [0.5])
    random: Annotated[int, Field(ge=0, le=100, description="further points, drawn anew in every step")] = 0
    temperature: Annotated[float, Field(gt=0, le=1000, description="T: both answers are softened by it")] = 5.0
    beta: Annotated[float, Field(ge=0, le=1e6, description="weight of the hidden states' term; 0 = none")] = 0.0
    store: Annotated[Kept, Field(description="how the old model's answers are kept: fp32 or fp16")] = "fp32"

    neutral = {"weight": 0.0}  # noqa: RUF012 - the old model is not even read
    begins: ClassVar[Literal["moved", "made", "fresh"]] = "fresh"
    sharded = False

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Ask the old model about every training row, and keep its weights.

        Raises:
            MethodError: there are no outdated weights, the old model has other parameters than the trained one, or
                the trained one computes parts of its passes twice.
        """
        self._seed, self._step, self._anatomy = run.seed, -1, run.anatomy
        self._asked: Asked | None = None
        self._old: dict[str, Tensor] = {}
        self._states: BlockStates | None = None
        self._last: Tensor | None = None
        if not self.weight:
            return model
        if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
            raise MethodError(
                f"{self.name} and gradient checkpointing",
                why="A point's passes would be computed again with other weights than its own, and its gradients be "
                "wrong.",
                fix="without gradient checkpointing, or --method distill",
            )
        self._plain: Any = run.needed("objective", self)
        self._causal_items = getattr(getattr(self._plain, "anatomy", None), "objective", "") == "clm"
        old = {name: tensor.detach() for name, tensor in outdated_of(run, self.name).make_teacher().named_parameters()}
        self._check(model, old)
        depth = len(run.anatomy.block_stacks(model)[0][1])
        self._asked = ask(
            run, self, logits=True, layers="uniform" if self.beta else None, student_depth=depth, kept=self.store
        )
        device = run.needed("device", self)
        self._old = {name: tensor.to(device) for name, tensor in old.items()}
        return model

    def _check(self, model: nn.Module, old: Mapping[str, Tensor]) -> None:
        new = dict(model.named_parameters())
        reasons = [f"{name}: the old model has none" for name in new if name not in old]
        reasons += [f"{name}: the trained model has none" for name in old if name not in new]
        reasons += [
            f"{name}: {list(old[name].shape)} became {list(new[name].shape)}"
            for name in new
            if name in old and old[name].shape != new[name].shape
        ]
        if reasons:
            raise MethodError(
                f"the old model and the trained one differ in {len(reasons)} parameters: {'; '.join(reasons[:5])}",
                why="Nothing lies between weights of other shapes.",
                fix="--method distill",
            )

    def attach(self, model: nn.Module, optimizer: optim.Optimizer) -> None:
        """Listen in on the blocks from here on, where hidden states are compared."""
        if self._asked is not None and self.beta:
            if self._states is not None:
                self._states.remove()
            self._states = BlockStates(model, self._anatomy, training=True)

    def before_step(self, model: nn.Module) -> None:
        """Count the step: its points are drawn from its number."""
        self._step += 1

    def objective(self, model: nn.Module, batch: Batch, output: Any, terms: Terms) -> Terms:
        """The labels' term with its share, and how far the points between lie from the old model's answers."""
        if self._asked is None:
            return terms
        self._asked = self._asked.to(batch["labels"].device)
        keys = row_keys(batch)
        logits, states = self._asked.logits, None
        assert logits is not None
        taught = logits.of(batch, keys)
        if self.beta:
            states = self._asked.states_of(batch, keys)
        total = self._apart(output, batch, taught, states)
        # as the step module calls it, names stand without any launcher's prefix
        new = {f"model.{name}": parameter for name, parameter in model.named_parameters()}
        old = {f"model.{name}": tensor for name, tensor in self._old.items()}
        answering = _Answering(model, self._plain)
        points = [*self.points, *drawn_points(self.random, self._seed, self._step)]
        for x in points:
            there = functional_call(answering, between(old, new, x), (batch,))
            total = total + self._apart(there, batch, taught, states)
        distance = total / (len(points) + 1)
        self._last = distance.detach()
        found = {name: term for name, term in terms.items() if name != "loss"}
        if self.weight < 1:
            found = {"loss": (1 - self.weight) * terms["loss"], **found}
        return {**found, "between": self.weight * distance}

    def _apart(self, output: Any, batch: Batch, taught: Tensor, states: list[Tensor] | None) -> Tensor:
        """How far one point's answers and states lie from the old model's."""
        apart = answer_gap(output.logits, taught, batch, self.temperature)
        if states is None or self._states is None or self._asked is None:
            return apart
        given = self._states.take()
        mine = [state_at(given[place], batch, "mean", self._anatomy.causal) for place, _ in self._asked.pairs]
        weights = None if batch["labels"].ndim == 1 else example_weights(batch, self._causal_items)
        return apart + self.beta * patience(mine, states, weights)

    def figures(self) -> dict[str, float]:
        """How far the points were from the old model in the last micro-batch."""
        return {} if self._last is None else {"apart": self._last.item()}

    def finish(self, model: nn.Module, run: Run) -> nn.Module:
        """Let go of the old weights."""
        if self._states is not None:
            self._states.remove()
        self._asked, self._states, self._old = None, None, {}
        return model

    def state_dict(self) -> dict[str, Any]:
        """Steps made: the points of a step are drawn from its number."""
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the count back."""
        self._step = state["step"]
