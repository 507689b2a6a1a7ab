"""What the methods share that hold one answer of a model against another answer to the same text.

The divergence between two answers, small noise on the word embeddings, the weight of each example in a mean over
items, and a frozen copy of the model that answers without gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from anytune.errors import MethodError
from anytune.methods.parts import whole
from anytune.methods.protocol import Batch
from anytune.methods.step import upcast
from anytune.models.anatomy import Anatomy
from anytune.models.language_modelling import NO_LABEL

Shape = Literal["normal", "uniform"]

# ---------------------------------------------------------------------- answers


def symmetric_divergence(left: Tensor, right: Tensor) -> Tensor:
    """``KL(p || q) + KL(q || p) = sum_k (p_k - q_k) (log p_k - log q_k)``, the mean over items, in fp32 or wider.

    Gradients flow into both. Zero, with a gradient of exactly zero, where the two are equal bit for bit; 0 for no
    items.

    Args:
        left: logits of p, ``[items, outputs]``.
        right: logits of q, ``[items, outputs]``.

    Raises:
        MethodError: shapes differ.
    """
    _check_shapes(left, right)
    log_p, log_q = (functional.log_softmax(upcast(logits), dim=-1) for logits in (left, right))
    per_item = ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(dim=-1)
    return per_item.sum() / max(1, len(per_item))


def squared_difference(left: Tensor, right: Tensor) -> Tensor:
    """``(left - right)^2`` of two answers of a regression ``[items, 1]``, the mean over items, in fp32 or wider.

    Raises:
        MethodError: shapes differ.
    """
    _check_shapes(left, right)
    return (upcast(left) - upcast(right)).square().sum() / max(1, len(left))


def _check_shapes(left: Tensor, right: Tensor) -> None:
    if left.shape != right.shape:
        raise MethodError(
            f"two answers to the same batch have the shapes {list(left.shape)} and {list(right.shape)}",
            why="They are compared item by item.",
        )


def is_regression(batch: Batch) -> bool:
    """Whether the labels are numbers to hit, not classes to choose."""
    return bool(batch["labels"].is_floating_point())


def disagreement(left: Tensor, right: Tensor, batch: Batch) -> Tensor:
    """How far two answers ``[items, outputs]`` to a batch lie apart, a mean over items.

    The symmetric divergence of classes, words and tags; the squared difference of a regression's numbers.
    """
    return (squared_difference if is_regression(batch) else symmetric_divergence)(left, right)


def item_labels(output: Any, batch: Batch) -> Tensor:
    """The labels ``[items]`` beside ``output.logits``: where items are tokens, the output brings its own."""
    labels: Tensor | None = getattr(output, "labels", None)
    return batch["labels"] if labels is None else labels


def example_weights(batch: Batch, causal: bool, dtype: torch.dtype = torch.float32) -> Tensor:
    """Each example's share of the micro-batch's items, ``[b]``; they add up to one (or 0 for no items).

    A mean over examples with these weights is a mean over items: micro-batches then add up as the loop weights them.

    Args:
        batch: ``labels`` [b], or [b, n] with -100 where there is none.
        causal: whether position t is predicted from t - 1, so that a label at the first place is no item.
        dtype: of the weights.
    """
    labels = batch["labels"]
    if labels.ndim == 1 or labels.is_floating_point():
        return torch.full((len(labels),), 1 / len(labels), dtype=dtype, device=labels.device)
    counts = (labels[:, 1:] if causal else labels).ne(NO_LABEL).sum(dim=1).to(dtype)
    return counts / counts.sum().clamp(min=1)


def token_weights(batch: Batch, mask: Tensor, causal: bool, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight of each token in a mean over items, ``[b, n]``: of its text, shared by the text's real tokens.

    Args:
        batch: with its labels.
        mask: 1 for real tokens, ``[b, n]``.
        causal: see ``example_weights``.
        dtype: of the weights.
    """
    real = mask.to(dtype)
    return example_weights(batch, causal, dtype)[:, None] * real / real.sum(dim=1, keepdim=True).clamp(min=1)


# ---------------------------------------------------------------------- noise


def noise_like(values: Tensor, scale: float, shape: Shape = "normal") -> Tensor:
    """Noise for each entry of ``values``: ``N(0, scale^2)``, or uniform in [-scale, scale].

    Drawn from torch's own generator, as dropout is: it goes on in the same bits when a run does.
    """
    drawn = torch.randn_like(values) if shape == "normal" else torch.rand_like(values).mul_(2).sub_(1)
    return drawn.mul_(scale)


def word_modules(model: nn.Module, anatomy: Anatomy) -> list[nn.Module]:
    """The modules that look words up: one, or where encoder and decoder share a table (T5), each one's own."""
    backbone = anatomy.backbone(model)
    names = [anatomy.word_module]
    names += [name.removesuffix(".weight") for name, source in anatomy.tied if source == anatomy.word_embeddings]
    found = dict(backbone.named_modules(remove_duplicate=False))
    modules = [found[name] for name in names if name in found]
    return list(dict.fromkeys(modules))


@contextmanager
def shifted_words(model: nn.Module, anatomy: Anatomy, shift: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Inside, every word embedding that the model looks up is shifted: what it reads is ``e + shift(n, e)``.

    A hook on the word embeddings, so that every kind of model is changed at the same place, whatever it does next.

    Args:
        model: the model, or a PEFT wrapping of one.
        anatomy: of its kind.
        shift: given the number of the look-up (0, 1, ... since the block was entered; T5 makes two a pass) and the
            embeddings ``[b, n, width]``, says what to add.
    """
    count = 0

    def hook(module: nn.Module, arguments: Any, embedded: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return embedded + shift(count - 1, embedded)

    handles = [module.register_forward_hook(hook) for module in word_modules(model, anatomy)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if not count:
        raise MethodError(
            "the model looked up no word while noise was to be added to its word embeddings",
            why="The batch holds embeddings in place of words, or something replaced the module that looks words up.",
        )


# ---------------------------------------------------------------------- copies


class FrozenCopy:
    """A second copy of the model, without gradients and without dropout; it follows the model when told to.

    Made in ``prepare``, where the model is whole. Every process holds the whole copy, also where the model's own
    weights are split up (FSDP2): ``follow`` then puts them together, tensor by tensor, and must be called by all.

    Args:
        model: as ``prepare`` has it. A method that wraps the model must come before the one that copies it.
        owner: the method's name, for errors.
        without: modules of the model that the copy does not need; it has none of their weights.
    """

    def __init__(self, model: nn.Module, owner: str, without: Sequence[nn.Module] = ()) -> None:
        self.owner = owner
        left_out = {id(module): module for module in without}
        copied = copy.deepcopy(model, dict(left_out))  # which takes them as they are ...
        for module in list(copied.modules()):
            for name, inner in list(module._modules.items()):
                if id(inner) in left_out:  # ... so that they can be taken out
                    del module._modules[name]
        self.model = copied.requires_grad_(False).eval()
        self._placed = False
        #: what training changes, and so what a checkpoint has to hold
        there = dict(self.model.named_parameters())
        self._names = [
            name for name, parameter in model.named_parameters() if parameter.requires_grad and name in there
        ]

    @torch.no_grad()
    def follow(self, model: nn.Module, keep: float = 0.0) -> None:
        """``copy <- keep * copy + (1 - keep) * model``; with ``keep`` 0 the copy becomes the model, bit for bit.

        Raises:
            MethodError: see ``place``.
        """
        self.place(model)
        theirs = dict(model.named_parameters())
        mine = dict(self.model.named_parameters())
        for name, own in mine.items():
            now = whole(theirs[name].detach())
            if keep == 0.0:
                own.copy_(now)
            else:
                own.lerp_(now, 1 - keep)

    def place(self, model: nn.Module) -> None:
        """Move it to where the model computes, and into its precision: the model was moved since ``prepare``.

        Raises:
            MethodError: a method wrapped the model after the copy was made.
        """
        if self._placed:
            return
        parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
        lost = [name for name, _ in self.model.named_parameters() if name not in parameters]
        if lost:
            raise MethodError(
                f"'{self.owner}' copied the model before another method changed its parts",
                why=f"The model no longer has {lost[0]}.",
                fix=f"the other method first:   --method OTHER --method {self.owner}",
            )
        for name, own in self.model.named_parameters():
            own.data = own.data.to(parameters[name].device, parameters[name].dtype)
        for prefix, module in self.model.named_modules():
            for name, buffer in module.named_buffers(recurse=False):
                there = buffers[f"{prefix}.{name}" if prefix else name]
                setattr(module, name, buffer.to(there.device, there.dtype))
        self._placed = True

    def state_dict(self) -> dict[str, Tensor]:
        """The copy's weights that differ from what ``prepare`` makes."""
        mine = dict(self.model.named_parameters())
        return {name: mine[name].detach() for name in self._names}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what ``state_dict`` gave."""
        mine = dict(self.model.named_parameters())
        for name in self._names:
            mine[name].data = state[name].detach().clone().to(mine[name].device)


class MovingAverage(FrozenCopy):
    """A moving average of the model's weights that begins at the model before the first step.

    Args:
        keep: share of the average that each step keeps.
    """

    def __init__(self, model: nn.Module, owner: str, keep: float) -> None:
        super().__init__(model, owner)
        self.keep = keep
        self._begun = False

    def before_step(self, model: nn.Module) -> None:
        """Before the first step the average is the model, wherever it has been moved to."""
        if not self._begun:
            self.follow(model)
            self._begun = True
        self.place(model)

    def after_step(self, model: nn.Module) -> None:
        """The average moves a little towards the model."""
        self.follow(model, self.keep)

    def state_dict(self) -> dict[str, Tensor]:
        """The average, once it has begun."""
        return super().state_dict() if self._begun else {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back the average."""
        if state:
            super().load_state_dict(state)
            self._begun = True


class EarlierSelf:
    """The model as it was when this was made, without a second copy: what is trained is kept, the rest is shared.

    For models of which little is trained, such as adapters on a frozen base; not where weights are split up (FSDP2).

    Args:
        model: as ``prepare`` has it, its adapters in place.
        owner: the method's name, for errors.
    """

    def __init__(self, model: nn.Module, owner: str) -> None:
        self.owner = owner
        self._kept = {
            name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad
        }

    def place(self, model: nn.Module) -> None:
        """Move what is kept to where the model computes.

        Raises:
            MethodError: a method wrapped the model since.
        """
        now = dict(model.named_parameters())
        lost = next((name for name in self._kept if name not in now), None)
        if lost is not None:
            raise MethodError(
                f"'{self.owner}' kept the trained weights before another method changed the model's parts",
                why=f"The model no longer has {lost}.",
                fix=f"the other method first:   --method OTHER --method {self.owner}",
            )
        self._kept = {name: kept.to(now[name].device, now[name].dtype) for name, kept in self._kept.items()}

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model has the earlier weights; those it has now stay untouched, and so do graphs of them."""
        modules = dict(model.named_modules())
        before: list[tuple[nn.Module, str, Any]] = []
        try:
            for name, kept in self._kept.items():
                owner, _, own = name.rpartition(".")
                before.append((modules[owner], own, modules[owner]._parameters[own]))
                modules[owner]._parameters[own] = nn.Parameter(kept, requires_grad=False)
            yield
        finally:
            for module, own, parameter in before:
                module._parameters[own] = parameter
