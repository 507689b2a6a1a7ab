"""DAS: units that matter for what is known learn little, and the whole network is told apart from what it knew.

In plain words: of every attention head, feed-forward neuron and block output it is measured how much the model leans
on it: before the first stage by how far answers move when units fall out, after each stage by the masked words of
its text. In training the gradients of a unit's weights are multiplied by 1 - importance. And a text's representation
is drawn to itself under other dropout and away from what the network gives when only its important units speak.

Formula: gates g of ones on the units of each part of each block; G = dL/dg, a mean over items; importance I =
|tanh((G - mean G) / std G)| within each part, the largest over the stages so far; gradients of the weights that lead
to unit i or from it are multiplied by 1 - protect * I_i. With z, z+ [b, width] the mean last hidden states of a text
under two draws of dropout and k those with gates I:
L + contrast * mean_b - log(exp(s(z_b, z+_b) / t) / sum_c (exp(s(z_b, z+_c) / t) + exp(s(z_b, k_c) / t))),
s the cosine, c over the texts of the micro-batch. Before the first stage L is KL(p_noisy || p) of the answers at the
hidden words, p_noisy with a share ``drop`` of the units set to 0.

Paper: Ke, Shao, Lin, Konishi, Kim, Liu 2023 (Continual Pre-training of Language Models).
Costs: the contrast takes two more forward passes and one more backward (``contrast: 0`` none); the soft mask one pass
over the weights of the blocks; ``examples / rows`` forward and backward passes as a stage ends and, with a forward
more, before the first; a number for each unit beside the base. ``form: update`` a copy of the blocks' weights in a
step. With several processes each measures all.
When not to use it: with weights split up over processes (fsdp), which it refuses. Accumulated micro-batches are not
one large batch for the contrast, which sees other texts of its own micro-batch alone.
Choices of ours: AdamW divides each entry's gradient by its own size, so a factor that stays the same through a stage
hardly acts there, by clipping and by the optimizer's epsilon alone: ``form: gradient`` is the paper's all the same and
the default; ``form: update`` multiplies the optimizer's step instead, decay included, and does act. The published
proxy before the first stage compares a model with its like in the same state, whose answers are equal; ours drops
units by draws of its own. Gradients by gates are added up with their signs. A part whose gradients are all alike has
importance 0; of two heads both always have tanh(1) = 0.76, being equally far from their mean. Weights that lead from a
head or neuron are its own as well as those that lead to it; a map between both gets both factors. Where keys are
shared by heads, the most important head counts. Other weights (embeddings, norms, the pre-training head) are left
alone. No gradient flows into k. Texts are represented by the mean of their tokens, of an encoder-decoder the
encoder's. temperature is the published value; contrast, drop, examples and rows are ours, not tuned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn, optim
from torch.nn import functional

from anytune.errors import MethodError
from anytune.methods.distillation import logit_distillation
from anytune.methods.mixing import private_generator
from anytune.methods.of_base import check_names
from anytune.methods.of_stream import (
    answering,
    as_in_the_first_process,
    carried_tensors,
    measuring_batches,
    on_device,
)
from anytune.methods.protocol import Batch, Method, Run, Terms
from anytune.methods.registry import register
from anytune.methods.step import total, trainable, upcast
from anytune.methods.units import Kind, Units, gate_gradients, gated, spread, units_of


def importance(gradients: Tensor) -> Tensor:
    """``|tanh(z)|`` of the z-scores of a part's gate gradients, ``[count]`` in [0, 1).

    Zero where all are alike but for rounding: a z-score would make noise important.
    """
    centred = gradients - gradients.mean()
    deviation = centred.square().mean().sqrt()
    noise = 8 * torch.finfo(gradients.dtype).eps * gradients.abs().amax()
    scores = centred / deviation.clamp(min=torch.finfo(gradients.dtype).tiny)
    return torch.where(deviation > noise, scores, 0).tanh().abs()


def contrastive_loss(one: Tensor, other: Tensor, known: Tensor, temperature: float) -> Tensor:
    """``- log`` of the share that ``other_b`` has of ``one_b``'s similarity to all of ``other`` and ``known``.

    Args:
        one: ``[b, width]``.
        other: the same texts under other dropout, ``[b, width]``.
        known: the same texts by what the network knew, ``[b, width]``.
        temperature: that cosines are divided by.

    Returns:
        The mean over texts, a scalar in fp32 or wider.
    """
    one, other, known = (functional.normalize(upcast(values), dim=-1) for values in (one, other, known))
    scores = one @ torch.cat([other, known]).T / temperature
    return functional.cross_entropy(scores, torch.arange(len(one), device=one.device))


def mean_token(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean hidden state of each text's real tokens: ``[b, n, width]``, ``[b, n]`` -> ``[b, width]``."""
    real = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)


def fallen(count: int, drop: float, generator: torch.Generator) -> Tensor:
    """Gates ``[count]`` of which each is 0 with probability ``drop``, else 1 / (1 - drop); on the CPU."""
    return (torch.rand(count, generator=generator) >= drop).float() / (1 - drop)


class _Listener:
    """What a module gives, pass by pass, while it listens."""

    def __init__(self, module: nn.Module) -> None:
        self.heard: list[Tensor] = []
        self._handle = module.register_forward_hook(self._hear)

    def _hear(self, module: nn.Module, given: Any, made: Any) -> None:
        self.heard.append(made[0])

    def close(self) -> None:
        self._handle.remove()


@register
@dataclass(kw_only=True)
class DAS(Method):
    """Soft-masked gradients and contrast with the important units' network."""

    protect: Annotated[
        float, Field(ge=0, le=1, description="gradients of a unit are multiplied by 1 - protect * importance")
    ] = 1.0
    contrast: Annotated[float, Field(ge=0, le=1000, description="weight of the contrast with the known network")] = 1.0
    temperature: Annotated[float, Field(gt=0, le=100, description="that the contrast divides cosines by")] = 0.05
    form: Annotated[
        Literal["gradient", "update"],
        Field(description="what is multiplied: the gradient, as published, or the optimizer's whole update"),
    ] = "gradient"
    heads: Annotated[bool, Field(description="attention heads are units that are measured and protected")] = True
    neurons: Annotated[bool, Field(description="feed-forward neurons are units that are measured and protected")] = (
        True
    )
    outputs: Annotated[bool, Field(description="outputs of feed-forward parts are such units too")] = True
    drop: Annotated[
        float, Field(gt=0, lt=1, description="share of units that fall out in the proxy before the first stage")
    ] = 0.1
    examples: Annotated[int, Field(ge=1, description="blocks of text that importances are measured on")] = 1024
    rows: Annotated[int, Field(ge=1, description="blocks in each batch that is measured on")] = 8

    neutral = {"protect": 0.0, "contrast": 0.0}  # noqa: RUF012 - nothing is measured then
    sharded = False  # a unit's weights are looked up in whole weights

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Take over the importances from the stage before; where there is none, measure them by the proxy.

        Raises:
            MethodError: no kind of unit is chosen, or the base carries importances for other units.
        """
        self._anatomy, self._plain = run.anatomy, run.objective
        self._units: list[Units] = []
        self._importance: dict[str, Tensor] = {}
        self._factors: dict[str, list[Tensor]] = {}
        self._model: nn.Module | None = None
        self._listener: _Listener | None = None
        self._aside: dict[str, Tensor] = {}
        self._depth = 0
        if not self.protect and not self.contrast:
            return model
        run.needed("objective", self)
        run.needed("batches", self)
        chosen: list[Kind] = [kind for kind in ("heads", "neurons", "outputs") if getattr(self, kind)]
        if not chosen:
            raise MethodError(
                "das has no units to measure",
                why="Heads, neurons and outputs are all switched off.",
                fix="--set neurons=true",
            )
        self._units = units_of(model, run.anatomy, chosen)
        self._importance = carried_tensors(
            run, self, "importance", {one.key: torch.empty(one.count) for one in self._units}
        )
        if not self._importance:
            model = model if run.device is None else model.to(run.device)  # where the loop would move it in a moment
            self._importance = self._measured(model, run, proxy=True)
        self._factors = self._weight_factors(model)
        return model

    # ------------------------------------------------------------------ importances

    def _measured(self, model: nn.Module, run: Run, *, proxy: bool) -> dict[str, Tensor]:
        """The importance of each unit for this stage's text, on the CPU."""
        device = next(model.parameters()).device
        purpose = "units-proxy" if proxy else "units"
        batches = measuring_batches(run, self, purpose, self.examples, self.rows)
        draws = private_generator(run.seed, 0, 0)

        def loss(batch: Batch) -> Tensor:
            output = run.objective.forward(model, batch)
            if not proxy:
                return total(run.objective.terms(output, batch))
            falls_out = {one.key: fallen(one.count, self.drop, draws).to(device) for one in self._units}
            with torch.no_grad(), gated(model, self._units, falls_out):
                moved = run.objective.forward(model, batch).logits
            return logit_distillation(output.logits, moved) if len(moved) else output.logits.sum()

        with answering(model):
            found = gate_gradients(model, self._units, (on_device(batch, device) for batch in batches), loss)
        found = {key: importance(values).float() for key, values in found.items()}
        as_in_the_first_process(found)
        return {key: values.cpu() for key, values in found.items()}

    def finish(self, model: nn.Module, run: Run) -> nn.Module:
        """Leave no hook behind, and measure what this stage's text leans on."""
        self._close()
        self._model = None
        if self._units:
            now = self._measured(model, run, proxy=False)
            self._importance = {
                **self._importance,
                **{key: values.maximum(self._importance.get(key, values)) for key, values in now.items()},
            }
        return model

    def carry_state(self) -> dict[str, Any]:
        """The largest importance of each unit over the stages so far."""
        return {"importance": self._importance} if self._importance else {}

    # ------------------------------------------------------------------ the soft mask

    def _weight_factors(self, model: nn.Module) -> dict[str, list[Tensor]]:
        """By weight: 1 - protect * importance along each dimension that units lie along, to be spread over it."""
        parameters, factors = dict(model.named_parameters()), dict[str, list[Tensor]]()
        for one in self._units if self.protect else ():
            if one.key not in self._importance:
                continue
            for name, dimension in one.weights:
                weight = parameters[name]
                free = 1 - self.protect * spread(self._importance[one.key], one.size, weight.shape[dimension])
                shape = [1] * weight.ndim
                shape[dimension] = -1
                factors.setdefault(name, []).append(free.view(shape))
        return factors

    def attach(self, model: nn.Module, optimizer: optim.Optimizer) -> None:
        """Where updates are multiplied, hang that on the optimizer.

        Raises:
            MethodError: the model was wrapped since, and its weights have other names.
        """
        if self._factors:
            check_names(self._factors, model, self)
            if self.form == "update":
                optimizer.register_step_pre_hook(self._set_aside)
                optimizer.register_step_post_hook(self._shorten)

    @torch.no_grad()
    def after_backward(self, model: nn.Module) -> None:
        """Multiply the gradients, in that form."""
        self._close()
        if self.form == "gradient":
            for name, weight in trainable(model).items():
                if weight.grad is not None:
                    for factor in self._factors_of(name, weight):
                        weight.grad.mul_(factor)

    def _factors_of(self, name: str, weight: Tensor) -> list[Tensor]:
        if name in self._factors:  # where the weight is now, from the first look on
            self._factors[name] = [factor.to(weight.device, weight.dtype) for factor in self._factors[name]]
        return self._factors.get(name, [])

    @torch.no_grad()
    def _set_aside(self, optimizer: optim.Optimizer, *_: Any) -> None:
        self._depth += 1  # a method may make the optimizer's step in parts, by a hook of its own
        if self._depth == 1:
            self._aside = {
                name: weight.detach().clone()
                for group in optimizer.param_groups
                for name, weight in zip(group["names"], group["params"], strict=True)
                if name in self._factors
            }

    @torch.no_grad()
    def _shorten(self, optimizer: optim.Optimizer, *_: Any) -> None:
        self._depth -= 1
        if self._depth:
            return
        for group in optimizer.param_groups:
            for name, weight in zip(group["names"], group["params"], strict=True):
                if name in self._aside:
                    way = weight - self._aside[name]
                    for factor in self._factors_of(name, weight):
                        way.mul_(factor)
                    weight.copy_(self._aside[name].add_(way))
        self._aside = {}

    # ------------------------------------------------------------------ the contrast

    def before_step(self, model: nn.Module) -> None:
        """Keep the model, which ``prepare_batch`` does not see."""
        self._model, self._depth = model, 0

    def prepare_batch(self, batch: Batch) -> Batch:
        """Listen to the hidden states of the pass that is about to be made."""
        self._close()
        if self.contrast and self._model is not None:
            anatomy, model = self._anatomy, self._model
            reader = anatomy.encoder_and_decoder(model)[0] if anatomy.encoder_decoder else anatomy.backbone(model)
            self._listener = _Listener(reader)
        return batch

    def objective(self, model: nn.Module, batch: Batch, output: Any, terms: Terms) -> Terms:
        """The plain terms and the contrast."""
        if self._listener is None:
            return terms
        self._plain.forward(model, batch)
        device = batch["input_ids"].device
        gates = {key: values.to(device) for key, values in self._importance.items()}
        with torch.no_grad(), gated(model, self._units, gates):
            self._plain.forward(model, batch)
        one, other, known = (mean_token(hidden, batch["attention_mask"]) for hidden in self._listener.heard)
        self._close()
        return {**terms, "contrast": self.contrast * contrastive_loss(one, other, known, self.temperature)}

    def _close(self) -> None:
        if self._listener is not None:
            self._listener.close()
        self._listener = None
