"""EWC: what earlier domains needed is held, weight by weight, as firmly as they needed it.

In plain words: at the end of a stage it is measured how much each weight mattered for the stage's text. In the stages
after it every weight is drawn back towards the value it had when the stage began, the more the more it had mattered
so far. Weights that nothing needed stay free to learn the new domain.

Formula: L + strength / 2 * sum_k F_k (w_k - w*_k)^2 over the weights w of the backbone, w* their values as the stage
began; its gradient strength * F * (w - w*) is added to the complete gradient, before clipping. F after stage t is the
uniform mean of F_1 .. F_t, with F_t = sum_B (b * g_B)^2 / sum_B b over small batches B of b examples of the stage's
text, g_B the gradient of the mean loss over B's scored tokens, at the weights the stage ends with, without dropout.

Paper: Kirkpatrick et al. 2017 (Overcoming Catastrophic Forgetting in Neural Networks); one F and one w* for all stages
before as in online EWC (Schwarz et al. 2018). Among the baselines of continual pre-training (Ke et al. 2023).
Costs: one pass over the weights in a step; F and w*, 8 bytes per weight of the backbone (``place: cpu`` none on the
device, but a copy to it in every step); ``examples / rows`` forward and backward passes as a stage ends; F lies beside
the base, 4 bytes per weight. With several processes each measures all of it.
When not to use it: for a single stage on a base that carries nothing: it then is plain training that measures
(``first: estimate`` protects the base there). Where the penalty outweighs the loss, clipping shrinks both.
Choices of ours: F from squared gradients of small batches, times their size, so that their size hardly matters while
single gradients point everywhere (the mean gradient of a trained model is near zero). Masks and order of F's text are
its own draws. The pre-training head is left free: no task stands on it, and its gradients are the largest. ``labels:
sampled`` lets the model itself draw the hidden words, as the Fisher matrix is defined; the text's own words are the
common shortcut. The default strength is the value of the baseline code for continual pre-training, searched there from
500 to 50000; ``examples`` and ``rows`` are ours, not tuned. AdamW divides the penalty's gradient by the gradient's
size like the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn, optim

from anytune.methods.anchors import Anchors
from anytune.methods.gradient_scores import add_squares
from anytune.methods.mixing import private_generator
from anytune.methods.objective import Labelled
from anytune.methods.of_base import check_names
from anytune.methods.of_stream import (
    answering,
    as_in_the_first_process,
    backbone_weights,
    carried_tensors,
    measuring_batches,
    on_device,
)
from anytune.methods.parts import local
from anytune.methods.protocol import Batch, Method, Run
from anytune.methods.registry import register
from anytune.methods.step import total, trainable, upcast


def squared_gradients(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    objective: Any,
    batches: Iterable[Batch],
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """``sum_B (b * g_B)^2 / sum_B b``, entry by entry: how much the loss on these texts cares about each weight.

    Args:
        model: in the mode to measure in; its ``.grad`` stay as they are.
        weights: by name; those the loss does not reach are left out of the result.
        objective: with ``forward`` and ``terms``.
        batches: of b examples each, on the model's device; g_B is the gradient of B's mean loss.
        generator: of the model's device: labels are drawn from the model's own answers; None takes the text's.

    Returns:
        Name -> tensor of the weight's shape, in fp32 or wider.
    """
    sums: dict[str, Tensor] = {}
    examples = 0
    for batch in batches:
        output = objective.forward(model, batch)
        if generator is not None:
            answers = upcast(output.logits.detach()).softmax(dim=-1)
            drawn = torch.multinomial(answers, 1, generator=generator)[:, 0] if len(answers) else output.labels
            output = Labelled(output.logits, drawn)
        rows = len(batch["input_ids"])
        found = torch.autograd.grad(total(objective.terms(output, batch)), list(weights.values()), allow_unused=True)
        add_squares(sums, {name: upcast(g) * rows for name, g in zip(weights, found, strict=True) if g is not None})
        examples += rows
    return {name: squares / examples for name, squares in sums.items()}


def running_mean(before: Mapping[str, Tensor], now: Mapping[str, Tensor], stages: int) -> dict[str, Tensor]:
    """``(stages * before + now) / (stages + 1)`` by name; a name that only one of them has keeps that one's value.

    Args:
        before: the mean over ``stages`` stages.
        now: of the stage after them.
        stages: at least 0.
    """
    both = {
        name: torch.lerp(before[name].to(tensor.device, tensor.dtype), tensor, 1 / (stages + 1))
        if name in before
        else tensor
        for name, tensor in now.items()
    }
    return {**before, **both}


@register
@dataclass(kw_only=True)
class EWC(Method):
    """Elastic weight consolidation over the stages of a stream."""

    strength: Annotated[float, Field(ge=0, description="lambda: how strongly weights are held; 0 = not at all")] = (
        5000.0
    )
    examples: Annotated[int, Field(ge=1, description="blocks of a stage's text that F is measured on")] = 1024
    rows: Annotated[int, Field(ge=1, description="blocks in each batch whose gradient is squared")] = 8
    labels: Annotated[
        Literal["text", "sampled"],
        Field(description="F by the hidden words of the text, or by words that the model itself draws"),
    ] = "text"
    first: Annotated[
        Literal["plain", "estimate"],
        Field(description="a base that carries no F: trained plainly, or F measured on the new text beforehand"),
    ] = "plain"
    place: Annotated[
        Literal["device", "cpu"], Field(description="where F and the values to hold are kept in training")
    ] = "device"

    neutral = {"strength": 0.0}  # noqa: RUF012 - nothing is measured or kept then

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Take over F from the stage before, and the weights as this one begins.

        Raises:
            MethodError: no weight of the backbone is trained, or the F that the base carries is for other weights.
        """
        self._fisher, self._anchors = Anchors(self.place), Anchors(self.place)
        self._before: dict[str, Tensor] = {}
        self._stages = 0
        self._left: dict[str, Any] = {}
        if not self.strength:
            return model
        run.needed("objective", self)
        run.needed("batches", self)
        weights = backbone_weights(model, run, self)
        self._before = carried_tensors(run, self, "fisher", weights)
        self._stages = int(run.carried.get(self.name, {}).get("stages", 0))
        if not self._before and self.first == "estimate":
            model = model if run.device is None else model.to(run.device)  # where the loop would move it in a moment
            self._before, self._stages = self._measured(model, run, "fisher-before"), 1
        held = {name: fisher for name, fisher in self._before.items() if name in weights}
        self._fisher.take(held)
        self._anchors.take({name: weights[name] for name in held})
        return model

    def attach(self, model: nn.Module, optimizer: optim.Optimizer) -> None:
        """Refuse a run in which nothing would be held.

        Raises:
            MethodError: the model was wrapped since, and its weights have other names.
        """
        if self._before:
            check_names(self._before, model, self)

    @torch.no_grad()
    def after_backward(self, model: nn.Module) -> None:
        """Add the penalty's gradient."""
        for name, parameter in trainable(model).items():
            if name in self._fisher and parameter.grad is not None:
                way = local(parameter) - self._anchors.at(name, parameter)
                local(parameter.grad).addcmul_(self._fisher.at(name, parameter), way, value=self.strength)

    def finish(self, model: nn.Module, run: Run) -> nn.Module:
        """Measure F on this stage's text and take it into the mean over stages."""
        if self.strength:
            now = self._measured(model, run, "fisher")
            fisher = running_mean(self._before, now, self._stages)
            self._left = {
                "fisher": {name: tensor.float().cpu() for name, tensor in fisher.items()},
                "stages": self._stages + 1,
            }
        return model

    def _measured(self, model: nn.Module, run: Run, purpose: str) -> dict[str, Tensor]:
        weights = backbone_weights(model, run, self)
        device = next(iter(weights.values())).device
        batches = measuring_batches(run, self, purpose, self.examples, self.rows)
        generator = private_generator(run.seed, 0, 0, device) if self.labels == "sampled" else None
        with answering(model):
            found = squared_gradients(
                model, weights, run.objective, (on_device(batch, device) for batch in batches), generator
            )
        as_in_the_first_process(found)
        return found

    def carry_state(self) -> dict[str, Any]:
        """F, and over how many stages it is a mean."""
        return self._left
