"""Settings of a training run: one strict schema for Python, recipes and the command line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from anytune.errors import SettingsError, nearest

#: Training settings that change no result: run keys leave them out, so a run that goes on may change them.
RESULTLESS = ("checkpoint_every", "checkpoints_kept", "sharding")
#: Settings that older versions lack: left out of the run key where they are not given, so that old runs are found.
ADDED_LATER = ("dropout", "stop_at", "patience")


class TrainingSettings(BaseModel):
    """How long, how large, how fast: everything of training that is not the method.

    Defaults are those of transformers' Trainer where it has one; the learning rate is the method's own suggestion.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: int | None = Field(None, gt=0, description="optimizer steps; wins over epochs")
    epochs: float | None = Field(None, gt=0, description="passes over the training data, if steps is not given")
    batch_size: int = Field(16, gt=0, le=65536, description="examples (or blocks) per process and micro-batch")
    accumulation: int = Field(1, gt=0, description="micro-batches per optimizer step")
    learning_rate: float | None = Field(None, gt=0, lt=10, description="peak rate; default: what the method suggests")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="decay after warm-up")
    warmup: float = Field(0.06, ge=0, lt=1, description="share of the steps in which the rate rises from 0")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled decay; never on biases and norms")
    max_grad_norm: float | None = Field(1.0, gt=0, description="clip the gradient's norm; null = never")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto = bf16 autocast where it is native")
    max_length: int = Field(128, gt=1, description="tokens per example (tasks)")
    block_size: int = Field(128, gt=7, description="tokens per block (pre-training)")
    evaluate_every: int | None = Field(None, gt=0, description="steps between evaluations; default: a tenth of them")
    evaluate_batch_size: int = Field(64, gt=0, description="examples per batch in evaluation")
    keep: Literal["best", "last"] = Field("best", description="weights kept: best on validation, or the last")
    checkpoint_every: int | None = Field(None, gt=0, description="steps between checkpoints; default: one a minute")
    checkpoints_kept: int = Field(2, gt=0, le=100, description="newest checkpoints that stay; older ones are dropped")
    sharding: Literal["none", "fsdp"] = Field(
        "none", description="fsdp = weights split up over the processes of a launcher; none = a copy in each"
    )
    dropout: float | None = Field(None, ge=0, lt=1, description="dropout while training; default: the base's own")
    stop_at: float | None = Field(None, description="end at the first evaluation whose main score is as good as this")
    patience: int | None = Field(None, gt=0, description="end after so many evaluations without a better main score")
    mask_probability: float = Field(0.15, gt=0, lt=1, description="share of tokens hidden (masked language modelling)")


def decisive(settings: TrainingSettings) -> dict[str, Any]:
    """The settings that decide a run's result: all but :data:`RESULTLESS`."""
    decides = {name: value for name, value in settings.model_dump().items() if name not in RESULTLESS}
    for name in ADDED_LATER:
        if decides[name] is None:
            del decides[name]
    return decides


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two runs' settings, each as ``"learning_rate 0.001 -> 0.002"``; [] if nothing does."""
    return [
        f"{name} {_shown(before.get(name))} -> {_shown(now.get(name))}"
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name)
    ]


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def training_settings(values: Mapping[str, Any] | TrainingSettings | None, **defaults: Any) -> TrainingSettings:
    """Check settings; ``defaults`` fill what is not given.

    Raises:
        SettingsError: an unknown key (suggests the near one) or a value outside its limits.
    """
    if isinstance(values, TrainingSettings):
        values = values.model_dump(exclude_unset=True)
    given = {key: value for key, value in (values or {}).items() if value is not None or key == "max_grad_norm"}
    for key in given:
        if key not in TrainingSettings.model_fields:
            near = nearest(str(key), TrainingSettings.model_fields)
            raise SettingsError(
                f"unknown training setting '{key}'",
                why=f"Known: {', '.join(TrainingSettings.model_fields)}.",
                fix=f"{near}={given[key]}" if near else "",
            )
    try:
        return TrainingSettings(**{**defaults, **given})
    except ValidationError as problem:
        first = problem.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        field = TrainingSettings.model_fields.get(key)
        raise SettingsError(
            f"training setting {key} = {first['input']!r}: {first['msg'].lower()}",
            why=f"{key}: {field.description}." if field else "",
        ) from None


def total_steps(
    settings: TrainingSettings, batches_per_epoch: int, default_epochs: float = 3.0, world: int = 1
) -> int:
    """Optimizer steps of the run: ``steps``, or ``epochs`` times the batches of an epoch (at least 1).

    Args:
        batches_per_epoch: micro-batches that make up one pass over the data.
        world: processes that share the micro-batches out among them.

    Raises:
        SettingsError: there are more processes than batches in a pass over the data.
    """
    if world > batches_per_epoch:
        raise SettingsError(
            f"{world} processes share {batches_per_epoch} batches of {settings.batch_size}",
            why="Some would see texts of the next pass in the same step as the others see those of this one.",
            fix=f"--batch-size {max(1, settings.batch_size * batches_per_epoch // world)}   (it counts per process), "
            "or fewer processes",
        )
    if settings.steps is not None:
        return settings.steps
    epochs = settings.epochs if settings.epochs is not None else default_epochs
    return max(1, round(epochs * batches_per_epoch / (settings.accumulation * world)))


def learning_rate_share(step: int, steps: int, warmup: float, schedule: str) -> float:
    """Share of the peak rate used in step ``step`` (0-based) of ``steps``.

    It rises over the first ``warmup * steps`` steps, reaches the peak in the step after them (however large ``warmup``
    is, one step is left for it), and falls; no step has a rate of zero, which would be a step for nothing.
    """
    rising = min(round(warmup * steps), steps - 1)
    if step < rising:
        return (step + 1) / (rising + 1)
    if schedule == "constant":
        return 1.0
    left = (steps - step) / (steps - rising)
    # sin^2(x / 2) = (1 - cos x) / 2, which does not round to zero in the last of many steps
    return left if schedule == "linear" else math.sin(0.5 * math.pi * left) ** 2
