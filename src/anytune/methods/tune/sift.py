"""SIFT: sparse increment fine-tuning, a difference of k entries for each matrix.

In plain words: of each matrix of the blocks only the few entries are trained whose gradient is largest at the start.
Gradients and moments exist for these entries alone, and what is stored is a list of places and values: a small delta
that merges, loads and recycles like any other.

Formula: W[i] = W0[i] + v[i] for i in S, W0[i] elsewhere, with v = 0 at the start and trained, and S the places of the
ceil(share * n) largest |dL/dW| at W0 over the first micro-batches, n the number of entries of W.

Paper: Song et al. 2024 (Sparse is enough in fine-tuning pre-trained large language models).
Costs: one forward and one backward per step (whole weight gradients are computed, one matrix at a time, and thrown
away); gradients, moments, places and start values for k entries, in fp32 28 bytes each; one forward and backward
before the first step. With ``batches`` above 1 that pass holds one whole gradient of every chosen matrix. With several
processes gradients are averaged whole, so they live until the end of each backward pass.
When not to use it: with a share of more than a quarter or so, where plain tuning costs little more; where the first
texts are unlike the rest, since the places are chosen once; with weights split up over processes (that is an error).
Choices of ours: share 0.01 of every matrix of the blocks (the published rate is 0.008 on attention); the places are
found without dropout; the values are put into the matrices right after each optimizer step (the published code does so
in the next backward pass: one step late, and the last step is lost). Besides the entries only the head is trained, to
which a vocabulary head that the base holds does not belong; with ``others: all`` everything is. Weight decay draws the
differences to 0, and so the matrices to the base's. Of equal gradients the first entries are taken; a matrix that no
gradient reaches stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn, optim

from anytune import compat
from anytune.errors import MethodError
from anytune.methods.chosen import chosen_weights
from anytune.methods.protocol import Method, Run
from anytune.methods.registry import register
from anytune.methods.selection import exact_mask, share_count
from anytune.methods.step import total

#: What the name of a difference ends in, after the name of its matrix.
SUFFIX = "difference"


@dataclass
class Entries:
    """The trained entries of one matrix, each [k]: flat places (int64), the base's values, and what is added."""

    index: Tensor
    start: Tensor
    value: nn.Parameter

    @classmethod
    def of(cls, weight: Tensor, index: Tensor) -> Entries:
        """At the start nothing is added."""
        start = weight.detach().take(index)
        return cls(index, start, nn.Parameter(torch.zeros_like(start)))

    def beside(self, weight: Tensor) -> Entries:
        """These entries on the weight's device and in its dtype; the parameter stays the same object."""
        self.index, self.start = self.index.to(weight.device), self.start.to(weight.device, weight.dtype)
        self.value.data = self.value.data.to(weight.device, weight.dtype)
        return self

    @torch.no_grad()
    def take_gradient(self, weight: nn.Parameter) -> None:
        """Add the entries' part of a whole gradient to the values' own; the whole one is let go."""
        assert weight.grad is not None
        taken, weight.grad = weight.grad.take(self.index), None
        self.value.grad = taken if self.value.grad is None else self.value.grad + taken

    @torch.no_grad()
    def write(self, weight: nn.Parameter) -> None:
        """Put start + value into the matrix."""
        weight.put_(self.index, self.start + self.value)


def largest_entries(gradient: Tensor, share: float) -> Tensor:
    """Flat places (int64, ascending) of the ``ceil(share * n)`` largest absolute entries; ties by place."""
    mask = exact_mask(gradient.detach().abs(), share_count(gradient.numel(), share))
    return mask.reshape(-1).nonzero().reshape(-1)


def find_places(
    model: nn.Module, chosen: Mapping[str, nn.Parameter], losses: list[Callable[[], Tensor]], share: float
) -> dict[str, Tensor]:
    """Name -> places of the largest gradients of the sum of some losses; matrices that no loss reaches are left out.

    Nothing is returned where all gradients are 0.

    Args:
        model: all of its weights but the chosen ones go without gradients.
        chosen: name -> matrix.
        losses: each called once, with gradients on. Of the last one no two whole gradients are alive together.
        share: of the entries of each matrix.

    Raises:
        MethodError: a gradient is not finite.
    """
    were = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    places: dict[str, Tensor] = {}
    last, anything = False, False

    def take(name: str, weight: Tensor) -> None:
        nonlocal anything
        if not last:
            return
        gradient, weight.grad = weight.grad, None
        assert gradient is not None
        if not bool(gradient.isfinite().all()):
            raise MethodError(
                f"sift: the gradient of {name} is not finite before the first step",
                why="The largest entries of such a gradient mean nothing.",
                fix="--training precision=fp32, or look at the training data",
            )
        anything = anything or bool(gradient.any())
        places[name] = largest_entries(gradient, share)

    for parameter, _ in were:
        parameter.requires_grad_(False)
    hooks = [
        weight.requires_grad_().register_post_accumulate_grad_hook(partial(take, name))
        for name, weight in chosen.items()
    ]
    try:
        with torch.enable_grad():
            for number, loss in enumerate(losses, 1):
                last = number == len(losses)
                loss().backward()
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, trained in were:
            parameter.requires_grad_(trained)
            parameter.grad = None
    return {name: places[name] for name in chosen if name in places} if anything else {}


@register
@dataclass(kw_only=True)
class Sift(Method):
    """A sparse difference: k entries of each matrix are trained."""

    share: Annotated[float, Field(gt=0, le=1, description="part of the entries of each matrix that is trained")] = 0.01
    include: Annotated[
        Literal["backbone", "attention", "feed_forward"],
        Field(description="which matrices: all of the blocks, or those of these parts of them"),
    ] = "backbone"
    batches: Annotated[
        int, Field(ge=1, description="micro-batches, the first of the run, whose gradient says which entries")
    ] = 1
    others: Annotated[
        Literal["head", "all"],
        Field(description="what else is trained, whole: only the head, or every weight outside the matrices"),
    ] = "head"

    neutral = None
    neutral_reason = "with share 1 every entry is trained, but as a difference: W0 + v rounds otherwise than W"
    sharded = False
    suggests = {"learning_rate": 8e-5}  # noqa: RUF012 - the top of the published range

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Freeze what is not trained; the entries are found when the first optimizer is made, beside the device.

        Raises:
            MethodError: there is no matrix to choose from, an adapter is trained, the data are fewer micro-batches,
                or the run does not say its data and objective.
        """
        if hasattr(model, "peft_config"):
            raise MethodError(
                "sift cannot be combined with an adapter",
                why="Both are differences of the same matrices, and an adapter's file can hold no entries.",
                fix="--method sift   or   --method lora",
            )
        run.needed("objective", self)
        in_all = run.needed("batches", self).batches_per_epoch
        if self.batches > in_all:
            raise MethodError(
                f"sift: batches = {self.batches}, and the training data are {in_all} micro-batches",
                why="A second look at the same ones changes nothing.",
                fix=f"batches={in_all}   (or fewer)",
            )
        self._chosen = list(chosen_weights(model, run.anatomy, self.include))
        if not self._chosen:
            raise MethodError(
                "sift found no matrix of the blocks that can be trained",
                why="They are frozen by another method, or quantised.",
                fix="--method sift alone, on a base that is not quantised",
            )
        self._run = run
        self._entries: dict[str, Entries] = {}
        self._hooks: list[Any] = []
        whole = {*run.head_names, *self._chosen}
        for name, parameter in model.named_parameters():
            if name not in whole and self.others == "head":
                parameter.requires_grad_(False)
        return model

    def _find(self, model: nn.Module) -> dict[str, Entries]:
        """The entries, at the weights as they are now.

        Raises:
            MethodError: a matrix is gone, no gradient reaches one, or a gradient is not finite.
        """
        there = dict(model.named_parameters())
        gone = [name for name in self._chosen if name not in there]
        chosen = {name: there[name] for name in self._chosen if name in there and there[name].requires_grad}
        if gone or not chosen:
            raise MethodError(
                f"sift has no entry left to train: {gone[0] if gone else self._chosen[0]} is "
                + ("gone" if gone else "frozen"),
                why="A method after it froze or wrapped the matrices it had chosen.",
                fix="give sift last: --method OTHER --method sift",
            )
        objective, device = self._run.objective, next(iter(chosen.values())).device
        micro = [self._run.batches.batch(number) for number in range(self.batches)]
        items = sum(batch["num_items"] for batch in micro)

        def loss(batch: dict[str, Any]) -> Tensor:
            moved = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
            return total(objective.terms(objective.forward(model, moved), moved)) * (batch["num_items"] / items)

        mode = model.training
        model.eval()  # without dropout, so that the same entries are found wherever the run computes
        try:
            with compat.seeded(self._run.seed):
                places = find_places(model, chosen, [partial(loss, batch) for batch in micro], self.share)
        finally:
            model.train(mode)
        if not places:
            raise MethodError(
                "sift found no entry to train: every gradient is 0",
                why="The loss of the first micro-batches does not depend on the matrices of the blocks.",
                fix="batches=8, or look at the training data",
            )
        if _processes() > 1:  # sums on a GPU may differ in their last bits, and with them the entries
            for index in places.values():
                torch.distributed.broadcast(index, src=0)
        return {name: Entries.of(chosen[name], index) for name, index in places.items()}

    def param_groups(self, model: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """In place of each chosen matrix its difference, called ``NAME.difference``, at the same rate and decay.

        Raises:
            MethodError: nothing can be selected.
        """
        self._entries = self._entries or self._find(model)
        made = []
        for group in groups:
            trained = {}
            for name, parameter in zip(group["names"], group["params"], strict=True):
                if name in self._entries:
                    trained[f"{name}.{SUFFIX}"] = self._entries[name].beside(parameter).value
                elif name not in self._chosen:  # a matrix that no gradient reached stays as it is
                    trained[name] = parameter
            made.append({**group, "names": list(trained), "params": list(trained.values())})
        return [group for group in made if group["params"]]

    def attach(self, model: nn.Module, optimizer: optim.Optimizer) -> None:
        """Write the differences into the matrices as the last part of each optimizer step."""
        self._detach()
        trained = {name for group in optimizer.param_groups for name in group["names"]}
        weights = {
            name: (entries, model.get_parameter(name))
            for name, entries in self._entries.items()
            if f"{name}.{SUFFIX}" in trained
        }

        def write(*_: Any) -> None:
            for entries, weight in weights.values():
                entries.write(weight)

        self._hooks.append(optimizer.register_step_post_hook(write))
        if _processes() == 1:  # several average whole gradients first: there after_backward takes them
            for entries, weight in weights.values():
                self._hooks.append(weight.register_post_accumulate_grad_hook(entries.take_gradient))

    def before_step(self, model: nn.Module) -> None:
        """A step begins without gradients, whoever's loop it is."""
        for entries in self._entries.values():
            entries.value.grad = None
        for name in self._chosen:
            model.get_parameter(name).grad = None

    def after_backward(self, model: nn.Module) -> None:
        """Take what whole gradients there still are.

        Raises:
            MethodError: no entry has a gradient.
        """
        for name, entries in self._entries.items():
            weight = model.get_parameter(name)
            if weight.grad is not None:
                entries.take_gradient(weight)
        if all(entries.value.grad is None for entries in self._entries.values()):
            raise MethodError(
                "sift: no chosen entry has a gradient in this step",
                why="The loss of the other methods does not reach the matrices, so nothing would be trained.",
                fix="--method sift alone",
            )

    def finish(self, model: nn.Module, run: Run) -> nn.Module:
        """Let go of the matrices."""
        self._detach()
        return model

    def _detach(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def state_dict(self) -> dict[str, Any]:
        """Places, start values and differences, each name -> [k]."""
        return {
            "index": {name: entries.index for name, entries in self._entries.items()},
            "start": {name: entries.start for name, entries in self._entries.items()},
            "value": {name: entries.value.detach() for name, entries in self._entries.items()},
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave.

        Raises:
            MethodError: it is of other matrices, or of another share of them, than have been found.
        """
        stored = {
            name: Entries(index, state["start"][name], nn.Parameter(state["value"][name].clone()))
            for name, index in state["index"].items()
        }
        if not self._entries:
            self._entries = stored
            return
        # the optimizer was made before: it holds the parameters that there are
        if {name: one.value.shape for name, one in stored.items()} != {
            name: one.value.shape for name, one in self._entries.items()
        }:
            raise MethodError(
                "sift: the checkpoint holds entries of other matrices than this run trains",
                why="Their gradients and moments would be mixed up.",
                fix="the same base, data and settings, or the run anew",
            )
        for name, entries in self._entries.items():
            entries.index.copy_(stored[name].index)
            entries.start.copy_(stored[name].start)
            entries.value.copy_(stored[name].value)


def _processes() -> int:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1
