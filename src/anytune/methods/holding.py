"""Hold entries of weights still through an optimizer's step: the entries, their moments and their decay.

A gradient of zero does not hold an entry: AdamW's first moment goes on moving it, and weight decay shrinks it. So the
step is made in groups of weights; after each the held entries of the weight and of its moments get their old values
back. Only one group's copies are alive at a time, and they are used while they are still in the cache. For every
optimizer whose state is tensors of the weight's shape (and a step count), the other entries get the bits they would
have got without.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn, optim

from anytune.methods.parts import local

#: A group's copies take at most this share of what copies of all held weights would.
LARGEST_GROUP = 1 / 8


def step_holding(optimizer: optim.Optimizer, held: Sequence[tuple[nn.Parameter, Tensor]]) -> None:
    """One optimizer step of the given weights alone, their held entries left as they are.

    The gradients of all other weights are put aside meanwhile and are back afterwards; those of the weights given are
    used up (set to None), so that a step of the rest can follow.

    Args:
        optimizer: makes a step for each group, without the hooks hung on it.
        held: weights with a boolean mask of what is held, of the shape of this process's part.
    """
    every = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = {parameter: parameter.grad for parameter in every if parameter.grad is not None}
    moving = {parameter for parameter, _ in held}
    for parameter in gradients:
        parameter.grad = None
    try:
        for group in _groups([pair for pair in held if pair[0] in gradients]):
            for parameter, _ in group:
                parameter.grad = gradients[parameter]
            _step_group(optimizer, group)
            for parameter, _ in group:
                parameter.grad = None
    finally:
        for parameter, gradient in gradients.items():
            if parameter not in moving:
                parameter.grad = gradient


@torch.no_grad()
def _step_group(optimizer: optim.Optimizer, group: Sequence[tuple[nn.Parameter, Tensor]]) -> None:
    before = [[values.clone() for values in _values(optimizer, parameter)] for parameter, _ in group]
    # without the hooks on the optimizer: they are called once, by the step that this is a part of
    step = type(optimizer).step
    getattr(step, "__wrapped__", step)(optimizer)
    for (parameter, mask), old in zip(group, before, strict=True):
        _put_back(list(_values(optimizer, parameter)), old, mask)


def _groups(pairs: Sequence[tuple[nn.Parameter, Tensor]]) -> Iterator[list[tuple[nn.Parameter, Tensor]]]:
    """Consecutive weights, at most a share of all entries in a group, or one weight."""
    limit = LARGEST_GROUP * sum(mask.numel() for _, mask in pairs)
    group: list[tuple[nn.Parameter, Tensor]] = []
    size = 0
    for pair in pairs:
        if group and size + pair[1].numel() > limit:
            yield group
            group, size = [], 0
        group.append(pair)
        size += pair[1].numel()
    if group:
        yield group


def _values(optimizer: optim.Optimizer, parameter: nn.Parameter) -> Iterator[Tensor]:
    """The weight and every tensor of its state that has an entry for each of its entries."""
    yield local(parameter.detach())
    state: Mapping[str, Any] = optimizer.state.get(parameter, {})
    for value in state.values():
        if isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim:
            yield local(value)


def _put_back(values: Sequence[Tensor], old: Sequence[Tensor], mask: Tensor) -> None:
    for place, tensor in enumerate(values):
        if place < len(old):
            torch.where(mask, old[place], tensor, out=tensor)
        else:  # a moment that this step made: before it there was none, which is zero
            tensor.masked_fill_(mask, 0)
