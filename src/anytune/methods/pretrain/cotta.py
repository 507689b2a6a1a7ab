"""CoTTA: a slow average of the model says what to answer, and a few weights are set back to the first base's.

In plain words: beside the model runs the average of its weights over the last steps. At the hidden words the model is
trained to give the text's word and to answer like its average, so that no short run of text carries it away. After
every step a few weights, drawn at random, get back the value they had in the first base of the stream.

Formula: L + weight * H(q, p), H(q, p) = - sum_v q_v log p_v at each scored token, a mean over them, p the model's
answer and q that of the model under the average of weights, without dropout. After each step
average <- momentum * average + (1 - momentum) * w, then w <- m * w0 + (1 - m) * w with m of 0 and 1, 1 with
probability ``restore``, one draw for each entry of each weight; w0 the first base's weights.

Paper: Wang, Fink, Van Gool, Dai 2022 (Continual Test-Time Domain Adaptation), made for a stream of images without
labels; a baseline of continual pre-training in Jiang et al. 2023, fitted to hidden words in a way not known to us.
Costs: one more forward pass without gradients; a second copy of the weights; w0, 4 bytes per weight of the backbone
(``place: cpu`` none on the device, but a copy to it in every step) and as much beside every base of the stream; draws
for about a share ``restore`` of the entries in a step, made on the CPU.
When not to use it: where the new domain must be learnt well: over 1 / restore steps an entry is set back once on
average, so no more than that many steps' learning is ever kept.
Choices of ours: masked-word training stays and CoTTA's terms stand beside it (the paper has no labels at all). The
term shown is H(q, p) - H(q), which has the same gradient and is 0 where the two agree. No average over augmented
views of the input. The model is handed over, not the average, which begins anew with every stage: at 0.99 it remembers
100 steps. Only the backbone is set back, the pre-training head is not; AdamW's moments are left as they are.
momentum is the default of the published code; its ``restore`` of 0.1 is for a handful of steps, ours is 0.001 and not
tuned, nor is weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn, optim

from anytune.methods.anchors import Anchors
from anytune.methods.consistency import MovingAverage
from anytune.methods.distillation import logit_distillation
from anytune.methods.mixing import private_generator
from anytune.methods.of_base import check_names
from anytune.methods.of_stream import backbone_weights, first_values
from anytune.methods.parts import is_part, local, part_of
from anytune.methods.protocol import Batch, Method, Run, Terms
from anytune.methods.registry import register
from anytune.methods.step import trainable


def drawn_places(count: int, probability: float, generator: torch.Generator) -> Tensor:
    """Which of ``count`` entries are chosen, each for itself with ``probability``; int64 [chosen], rising, on the CPU.

    The gaps between chosen entries are drawn (they are geometric), so the work is that of the chosen ones alone.

    Args:
        count: of entries.
        probability: above 0, at most 1.
        generator: a CPU generator; it is moved on.
    """
    if probability >= 1:
        return torch.arange(count)
    expected = count * probability
    at_once = int(expected + 4 * math.sqrt(expected)) + 8
    places, last = [], -1
    while last < count:
        uniform = 1 - torch.rand(at_once, dtype=torch.float64, generator=generator)  # in (0, 1]
        gaps = (uniform.log() / math.log1p(-probability)).clamp(max=count).long() + 1
        places.append(gaps.cumsum(0) + last)
        last = int(places[-1][-1])
    found = torch.cat(places)
    return found[found < count]


@torch.no_grad()
def set_back(weight: Tensor, anchor: Tensor, places: Tensor) -> None:
    """``weight[places] = anchor[places]`` over the flattened entries, in place; also where the weight is split up.

    Args:
        weight: of any shape.
        anchor: its first value; where the weight is split up, this process's part of it.
        places: int64, in the whole weight.
    """
    if is_part(weight):
        mask = torch.zeros(weight.shape, dtype=torch.bool)
        mask.view(-1)[places] = True
        own = local(weight.detach())
        own.copy_(torch.where(part_of(mask, weight), anchor, own))
        return
    places = places.to(weight.device)
    weight.detach().view(-1)[places] = anchor.reshape(-1)[places]


@register
@dataclass(kw_only=True)
class CoTTA(Method):
    """Consistency with an average of weights, and stochastic restoring of the first base's weights."""

    weight: Annotated[
        float, Field(ge=0, le=1000, description="weight of the cross-entropy with the average model's answers")
    ] = 1.0
    momentum: Annotated[
        float, Field(ge=0, lt=1, description="share of the average of weights that each step keeps")
    ] = 0.99
    restore: Annotated[
        float, Field(ge=0, le=1, description="probability that an entry is set back to the first base's in a step")
    ] = 0.001
    place: Annotated[
        Literal["device", "cpu"], Field(description="where the first base's weights are kept in training")
    ] = "device"

    neutral = {"weight": 0.0, "restore": 0.0}  # noqa: RUF012 - nothing is copied or drawn then

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Copy the model, which the average begins at, and take over the first base's weights.

        Raises:
            MethodError: no weight of the backbone is trained, or the base carries values for other weights.
        """
        self._plain: Any = run.needed("objective", self) if self.weight else None
        self._average = MovingAverage(model, self.name, self.momentum) if self.weight else None
        self._seed, self._step = run.seed, 0
        self._first: dict[str, Tensor] = {}
        self._names: list[str] = []
        self._anchors = Anchors(self.place)
        if self.restore:
            weights = backbone_weights(model, run, self)
            self._first = first_values(run, self, weights)
            self._names = list(weights)
            self._anchors.take({name: self._first[name] for name in weights})
        return model

    def attach(self, model: nn.Module, optimizer: optim.Optimizer) -> None:
        """Refuse a run in which nothing would be set back.

        Raises:
            MethodError: the model was wrapped since, and its weights have other names.
        """
        if self._names:
            check_names(self._names, model, self)

    def before_step(self, model: nn.Module) -> None:
        """Begin the average before the first step."""
        if self._average is not None:
            self._average.before_step(model)

    def objective(self, model: nn.Module, batch: Batch, output: Any, terms: Terms) -> Terms:
        """The plain terms and the consistency with the average model."""
        if self._average is None:
            return terms
        with torch.no_grad():
            taught = self._plain.forward(self._average.model, batch).logits
        if not len(taught):  # a micro-batch without a hidden word
            return {**terms, "consistency": output.logits.sum()}
        return {**terms, "consistency": self.weight * logit_distillation(output.logits, taught)}

    def after_step(self, model: nn.Module) -> None:
        """The average moves towards the model; then a few of the model's entries are set back."""
        if self._average is not None:
            self._average.after_step(model)
        if self.restore:
            weights = trainable(model)
            for index, name in enumerate(self._names):
                if name in weights:
                    weight = weights[name]
                    places = drawn_places(
                        weight.numel(), self.restore, private_generator(self._seed, self._step, index)
                    )
                    set_back(weight, self._anchors.at(name, weight), places)
        self._step += 1

    def carry_state(self) -> dict[str, Any]:
        """The weights the stream began with."""
        return {"first": self._first} if self._first else {}

    def state_dict(self) -> dict[str, Any]:
        """The number of steps made, from which the draws follow, and the average once it has begun."""
        average = {"average": self._average.state_dict()} if self._average is not None else {}
        return {"step": self._step, **average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on at that step with that average."""
        self._step = int(state["step"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
