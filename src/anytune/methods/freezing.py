"""Parameters that a method freezes, and that no later method may train."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

from torch import nn

from anytune.errors import MethodError
from anytune.methods.protocol import Method


def freeze(model: nn.Module, frozen: Container[int]) -> None:
    """Parameters whose ``id`` is among ``frozen`` are trained no more."""
    for parameter in model.parameters():
        if id(parameter) in frozen:
            parameter.requires_grad_(False)


def refuse_thawed(groups: Sequence[Mapping[str, Any]], frozen: Container[int], method: Method) -> None:
    """See that no parameter that ``method`` froze is in the optimizer's groups.

    Raises:
        MethodError: another method trains one.
    """
    for group in groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            if id(parameter) in frozen:
                raise MethodError(
                    f"{method.name} froze {name}, and another method trains it",
                    why="It came later and says itself what is trained.",
                    fix=f"give that method before {method.name}: --method OTHER --method {method.name}",
                )
