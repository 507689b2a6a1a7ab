"""Stages of a run and the optimizer of each: which steps, which parameters at which rate, and the moments by name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn, optim

from anytune.engine.sharding import like
from anytune.errors import MethodError
from anytune.methods.protocol import Method, Stage
from anytune.methods.step import trainable


def stage_borders(stages: Sequence[Stage], steps: int) -> list[tuple[Stage, int, int]]:
    """Each stage with its first step and the step after its last; together they cover 0..steps.

    Raises:
        MethodError: a share is not above 0, or the shares do not add up to 1.
    """
    shares = [stage.share for stage in stages]
    if not shares or min(shares) <= 0 or not math.isclose(sum(shares), 1.0, abs_tol=1e-6):
        raise MethodError(f"the stages' shares are {shares}", why="They must be above 0 and add up to 1.")
    ends = [*(round(sum(shares[:number]) * steps) for number in range(1, len(shares))), steps]
    return list(zip(stages, [0, *ends[:-1]], ends, strict=True))


def default_groups(model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's parameter groups: matrices with decay; biases, norms and other vectors without."""
    groups: list[dict[str, Any]] = [
        {"params": [], "names": [], "lr": learning_rate, "weight_decay": decay} for decay in (weight_decay, 0.0)
    ]
    for name, parameter in trainable(model).items():
        group = groups[0 if parameter.ndim > 1 else 1]
        group["params"].append(parameter)
        group["names"].append(name)
    return [group for group in groups if group["params"]]


def method_groups(
    model: nn.Module, methods: Sequence[Method], learning_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """The default groups as the methods want them, each with its ``peak`` rate: what AdamW is made from."""
    groups = default_groups(model, learning_rate, weight_decay)
    for method in methods:
        groups = method.param_groups(model, groups)
    for group in groups:
        group["peak"] = group["lr"]
    return groups


def moments(optimizer: optim.Optimizer) -> dict[str, dict[str, Any]]:
    """The optimizer's state by parameter name; a parameter that never had a gradient has none."""
    state = optimizer.state
    return {name: state[parameter] for name, parameter, _ in _named(optimizer) if parameter in state}


def restore_moments(optimizer: optim.Optimizer, stored: Mapping[str, Mapping[str, Any]]) -> None:
    """Put stored state back beside its parameters."""
    for name, parameter, group in _named(optimizer):
        if name in stored:
            optimizer.state[parameter] = {
                # as torch does it: step counts live on the CPU, but a fused AdamW wants them beside the weights
                key: like(value.to(parameter.device), parameter) if key != "step" or group.get("fused") else value
                for key, value in stored[name].items()
            }


def _named(optimizer: optim.Optimizer) -> Iterator[tuple[str, Tensor, Mapping[str, Any]]]:
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            yield name, parameter, group
