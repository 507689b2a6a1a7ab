"""What the contract needs to know of a method beyond its name; a method without an entry runs on its defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from anytune.methods.tune.bitfit import is_bias


def everything(name: str, head_names: set[str]) -> bool:
    return True


@dataclass(frozen=True)
class Exercise:
    """How the contract exercises a method.

    Attributes:
        settings: settings under which it does what its card says (its defaults may be neutral).
        training: training settings, where those of the room do not suit.
        trains: which weights (by their names in the prepared model) it trains; all others must stay bit for bit.
        no_accumulation: why k micro-batches of b are not one batch of k * b for this method, if they are not.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    trains: Callable[[str, set[str]], bool] = everything
    no_accumulation: str = ""


def _adapter_or_head(name: str, head_names: set[str]) -> bool:
    return "lora_" in name or "modules_to_save" in name


def _bias_or_head(name: str, head_names: set[str]) -> bool:
    return is_bias(name) or name in head_names


EXERCISES: dict[str, Exercise] = {
    "tune/dps": Exercise(settings={"variant": "mix", "keep": 0.6, "stage_steps": 1}),
    "pretrain/sequential": Exercise(settings={"head_rate": 2.0}),
    "tune/lora": Exercise(settings={"r": 4, "targets": "all-linear", "dropout": 0.1}, trains=_adapter_or_head),
    # on a random body, biases learn the tiny task only from whole-batch gradients at a high rate
    "tune/bitfit": Exercise(
        training={"learning_rate": 2e-2, "batch_size": 42, "schedule": "constant"}, trains=_bias_or_head
    ),
}


def exercise(name: str) -> Exercise:
    return EXERCISES.get(name, Exercise())
