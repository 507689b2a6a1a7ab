"""SMART: smooth against the worst small change of the words, and slow to leave the last answers.

In plain words: two terms are added. The first looks, by a gradient step, for the tiny change of the word embeddings
that changes the answer most, and asks that even this one changes it little. The second holds the answer near that of
a moving average of the model's own weights, so that no single step throws away what the steps before it had found.

Formula: L = CE(f(e)) + weight * D(f(e + d), f(e)) + bregman * D(f(e), g(e)), e the word embeddings, D the symmetric KL
divergence of answers [items, classes], a mean over items (for regression the squared difference). d: [b, n, width]
begins as N(0, noise^2) and is moved ``steps`` times by d <- clamp(d + step_size * G / max|G|, -eps, eps), with G the
gradient of D by d, its largest entry taken for each word. g is the model under the average of weights, which moves
after every step: average <- momentum * average + (1 - momentum) * weights.

Paper: Jiang et al. 2020 (SMART).
Costs: the dearest of its kind. With one step of the search: three forwards and two backwards (the search's own stops
at the embeddings and computes no weight gradients), and one more forward without gradients for the average; a second
copy of the weights. About three times the time of plain training.
When not to use it: where time counts; with weights split up over processes (fsdp), which it refuses: the search's
backward runs inside the forward pass; under bf16, where changes of 1e-5 are lost in rounding.
Choices of ours: the gradient is divided by its largest entry, for a raw gradient is far smaller than eps; one momentum
for the whole run, 0.99 (the paper is said to go over to 0.999 after a tenth of it: at 50 to 300 steps such an average
would stand still); the average answers without dropout; the other passes draw their own, as in R3F. weight, bregman,
eps, step_size and noise are the values told of the paper, which was not at hand; they are not tuned by us.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from anytune.methods.consistency import MovingAverage, disagreement, noise_like, shifted_words
from anytune.methods.protocol import Batch, Method, Run, Terms
from anytune.methods.registry import register


def ascended(change: Tensor, gradient: Tensor, step_size: float, bound: float) -> Tensor:
    """One projected ascent step: ``clamp(change + step_size * gradient / max|gradient|, -bound, bound)``.

    Args:
        change: of the embeddings, ``[..., width]``.
        gradient: of what is to grow, by ``change``; its largest entry is taken over the width. Where it is zero the
            change stays.
        step_size: of the largest entry.
        bound: of every entry of the result.
    """
    largest = gradient.abs().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(gradient.dtype).tiny)
    return (change + step_size * gradient / largest).clamp(-bound, bound)


@register
@dataclass(kw_only=True)
class SMART(Method):
    """Smoothness-inducing adversarial regularisation with a Bregman proximal term."""

    weight: Annotated[float, Field(ge=0, le=1000, description="weight of the adversarial divergence")] = 1.0
    bregman: Annotated[float, Field(ge=0, le=1000, description="weight of the divergence from the average model")] = (
        1.0
    )
    eps: Annotated[float, Field(gt=0, le=10, description="largest change of any entry of a word embedding")] = 1e-5
    step_size: Annotated[
        float, Field(gt=0, le=10, description="largest step of any entry in the search for the worst change")
    ] = 1e-3
    noise: Annotated[
        float, Field(gt=0, le=10, description="standard deviation of the noise that the search begins with")
    ] = 1e-5
    steps: Annotated[int, Field(ge=1, le=100, description="gradient steps of the search for the worst change")] = 1
    momentum: Annotated[
        float, Field(ge=0, lt=1, description="share of the average of weights that each step keeps")
    ] = 0.99

    neutral = {"weight": 0.0, "bregman": 0.0}  # noqa: RUF012 - nothing is drawn or computed then
    # a backward pass inside the forward pass would make FSDP free weights that the rest of the pass needs
    sharded = False

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Copy the model, which the average begins at."""
        self._anatomy = run.anatomy
        self._plain: Any = run.needed("objective", self) if self.weight or self.bregman else None
        self._average = MovingAverage(model, self.name, self.momentum) if self.bregman else None
        return model

    def before_step(self, model: nn.Module) -> None:
        """Begin the average before the first step."""
        if self._average is not None:
            self._average.before_step(model)

    def objective(self, model: nn.Module, batch: Batch, output: Any, terms: Terms) -> Terms:
        """The plain terms, the adversarial divergence and the divergence from the average model."""
        if self._plain is None:
            return terms
        terms = dict(terms)
        if self.weight:
            changes = self._worst(model, batch, output.logits.detach())
            answer = self._answer(model, batch, lambda n, _: changes[n])
            terms["adversarial"] = self.weight * disagreement(answer, output.logits, batch)
        if self._average is not None:
            with torch.no_grad():
                before = self._plain.forward(self._average.model, batch).logits
            terms["bregman"] = self.bregman * disagreement(output.logits, before, batch)
        return terms

    def _worst(self, model: nn.Module, batch: Batch, clean: Tensor) -> list[Tensor]:
        """The change of each look-up's embeddings that the search ends with."""
        changes: list[Tensor] = []

        def begin(_: int, words: Tensor) -> Tensor:
            changes.append(noise_like(words.detach(), self.noise))
            return changes[-1].requires_grad_()

        answer = self._answer(model, batch, begin)
        for number in range(self.steps):
            if number:
                answer = self._answer(model, batch, lambda n, _: changes[n].requires_grad_())
            # only as far as the embeddings: no weight gets a gradient from the search
            gradients = torch.autograd.grad(disagreement(answer, clean, batch), changes)
            changes[:] = [
                ascended(change.detach(), gradient, self.step_size, self.eps)
                for change, gradient in zip(changes, gradients, strict=True)
            ]
        return changes

    def _answer(self, model: nn.Module, batch: Batch, shift: Callable[[int, Tensor], Tensor]) -> Tensor:
        with shifted_words(model, self._anatomy, shift):
            logits: Tensor = self._plain.forward(model, batch).logits
        return logits

    def after_step(self, model: nn.Module) -> None:
        """The average moves a little towards the model."""
        if self._average is not None:
            self._average.after_step(model)

    def state_dict(self) -> dict[str, Any]:
        """The average, once it has begun."""
        return {"average": self._average.state_dict()} if self._average is not None else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back the average."""
        if self._average is not None:
            self._average.load_state_dict(state["average"])
