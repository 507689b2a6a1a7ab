"""Which trained weights the base brought, as against the head; for methods that hold on to the base's values."""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Iterable, Mapping
from typing import Any

from torch import nn

from anytune.errors import MethodError
from anytune.methods.protocol import Method, Run
from anytune.methods.step import trainable


def weights_of_base(model: nn.Module, run: Run, method: Method) -> dict[str, nn.Parameter]:
    """Name -> parameter of everything trained that the base's file holds: all but the head.

    Raises:
        MethodError: there is none: all of the base is frozen, or an adapter is trained in its place.
    """
    head = set(run.head_names)
    found = {name: weight for name, weight in trainable(model).items() if name not in head}
    if found and not hasattr(model, "peft_config"):
        return found
    raise MethodError(
        f"{method.name} found no weight of the base that is trained",
        why="An adapter is trained in its place." if found else "All of the base is frozen, so nothing would be done.",
        fix=f"--method {method.name}   (alone, or after methods that train the base)",
    )


def check_names(names: Iterable[str], model: nn.Module, method: Method) -> None:
    """Refuse a run in which the method would silently do nothing.

    Raises:
        MethodError: no weight of the model has one of these names any more: a later method has wrapped it.
    """
    present = {name for name, _ in model.named_parameters()}
    if present.isdisjoint(names):
        raise MethodError(
            f"{method.name} finds none of its weights in the model any more",
            why="A method named after it has wrapped the model, and nothing would be done.",
            fix=f"--method {method.name}   (alone)",
        )


def split_groups(
    groups: list[dict[str, Any]], part: Callable[[str, nn.Parameter], Hashable]
) -> list[tuple[Any, dict[str, Any]]]:
    """The optimizer's groups cut up so that each holds weights of one part only: (part, group), in order.

    Args:
        groups: as ``Method.param_groups`` gets them.
        part: what a weight, given its name, belongs to.
    """
    found: list[tuple[Any, dict[str, Any]]] = []
    for group in groups:
        inner: dict[Hashable, dict[str, Any]] = {}
        for name, parameter in zip(group["names"], group["params"], strict=True):
            mine = inner.setdefault(part(name, parameter), {**group, "params": [], "names": []})
            mine["names"].append(name)
            mine["params"].append(parameter)
        found.extend(inner.items())
    return found


def with_gradient(
    group: Mapping[str, Any], names: Container[str], without: Container[str] = ()
) -> list[tuple[str, Any]]:
    """(name, parameter) of a group's weights that are among ``names``, not ``without``, and have a gradient."""
    return [
        (name, parameter)
        for name, parameter in zip(group["names"], group["params"], strict=True)
        if name in names and name not in without and parameter.grad is not None
    ]
