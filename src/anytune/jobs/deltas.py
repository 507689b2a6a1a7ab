"""Deltas in and out of task models: loaded from the store, installed, and taken from a tuned model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from anytune.errors import DeltaError
from anytune.manifests import BaseIdentity
from anytune.models.adapters import AdapterDelta
from anytune.models.base import Base
from anytune.models.bottleneck import bottleneck_names, bottlenecks_of
from anytune.models.delta import FullDelta
from anytune.models.soft_prompts import prompt_of
from anytune.store import Entry

AnyDelta = FullDelta | AdapterDelta


@dataclass(frozen=True)
class Outdated:
    """Weights that a run starts from: a delta of the same base."""

    entry: Entry
    delta: AnyDelta
    base: Base

    def install(self, model: nn.Module) -> nn.Module:
        """Put the weights into a task model of the base; an adapter wraps it."""
        return install_delta(self.delta, model, self.base, trainable=True)


def refuse_adapter_on_full(start: Outdated, model: nn.Module) -> None:
    """An adapter on top of a full difference would be stored without that difference: refuse it.

    Raises:
        DeltaError: the run starts from a full difference and a method has wrapped the model with PEFT.
    """
    if isinstance(start.delta, FullDelta) and hasattr(model, "peft_config"):
        raise DeltaError(
            f"'{start.entry.reference}' is a full difference, and an adapter cannot start from it",
            why="The adapter would be stored alone, and mean something else on the base without that difference.",
            fix=f"anytune merge {start.entry.reference}   (gives a plain model), then tune an adapter on that",
        )


def load_delta(entry: Entry) -> AnyDelta:
    """The weights of a delta.

    Raises:
        DeltaError: they are damaged, or only the run's scores were kept.
    """
    if entry.manifest.form == "full":
        return FullDelta.load(entry.folder)
    if entry.manifest.form == "peft":
        return AdapterDelta.load(entry.folder)
    raise DeltaError(
        f"'{entry.reference}' holds scores and no weights",
        why="It was run with keep=scores, as a control.",
        fix="run it again with keep=weights",
    )


def install_delta(delta: AnyDelta, model: nn.Module, base: Base, *, trainable: bool) -> nn.Module:
    """Put a delta of ``base`` into a task model made by ``base``; returns the model to use (PEFT wraps it)."""
    if isinstance(delta, AdapterDelta):
        return delta.attach(model, trainable=trainable)
    delta.install(model, base.tensors(pretraining_head=True), base.identity)
    return model


def delta_of(model: nn.Module, base: Base, head_names: list[str], identity: BaseIdentity) -> AnyDelta:
    """The delta a tuned model is: a soft prompt, an adapter if PEFT wraps it, else the full difference to its base."""
    if prompt_of(model) is not None:
        return AdapterDelta.from_model(model, identity, head_names)
    if hasattr(model, "peft_config"):
        return AdapterDelta.from_model(model, identity)
    tensors, inserted = base.tensors(pretraining_head=True), bottlenecks_of(model)
    return FullDelta.extract(
        tensors, model.state_dict(), [*head_names, *bottleneck_names(model)], base.anatomy, identity,
        inserted.config.to_record() if inserted is not None else None,
    )  # fmt: skip
