"""Deltas of the tiny base on their way to another one, as recycle methods are given them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

import anytune
from anytune.data.batches import ExampleBatches, encode_task
from anytune.data.tasks import load_task
from anytune.engine.runtime import make_runtime
from anytune.engine.settings import training_settings
from anytune.jobs.outdated import Moving
from anytune.methods import registry
from anytune.methods.objective import objective_for
from anytune.methods.protocol import Method, Run
from anytune.models.base import load_base
from anytune.store import Entry, Store
from tests.contract.bench import mean_loss

SETTINGS: dict[str, Any] = {"steps": 30, "learning_rate": 5e-3, "batch_size": 12, "max_length": 32,
                            "precision": "fp32", "keep": "last", "evaluate_every": 30}  # fmt: skip


def tuned(folder: Path, base: Path, task: Path, method: Any = "full", **training: Any) -> Entry:
    """A delta tuned on a base, in a store of its own."""
    [entry] = anytune.tune(base, task, store=folder, method=method, training={**SETTINGS, **training}, name="old")
    return entry


class Case:
    """A delta, its base, a new base and the task: what a run of a recycle method is made of."""

    def __init__(self, entry: Entry, old: Path, new: Path, task: Path) -> None:
        self.task = load_task(task)
        self.moving = Moving(entry, load_base(old), load_base(new))
        self.new = self.moving.new
        settings = training_settings(SETTINGS)
        self.encoded = encode_task(self.task.train, self.new.tokenizer(), 32, self.task.kind)
        self.batches = ExampleBatches(self.encoded, 12, seed=3)
        self.objective = objective_for(self.task.kind, self.new.anatomy)
        self.outdated = self.moving.in_run(self.task, self.encoded, settings, 3, make_runtime("fp32"))

    def model(self) -> tuple[nn.Module, list[str]]:
        return self.new.task_model(self.task.kind, self.task.label_names, 7)

    def run(self, **changes: Any) -> Run:
        given: dict[str, Any] = {
            "seed": 11, "steps": 4, "anatomy": self.new.anatomy, "head_names": self.model()[1],
            "outdated": self.outdated, "objective": self.objective, "batches": self.batches, "base": self.new,
            "device": torch.device("cpu"), "label_names": self.task.label_names, "validate": self.validate,
        }  # fmt: skip
        return Run(**{**given, **changes})

    def validate(self, model: nn.Module) -> float:
        return -mean_loss(model, self.objective, [self.batches.batch(number) for number in range(5)])

    def prepared(self, name: str, **settings: Any) -> tuple[nn.Module, Method]:
        """The model after the method, and the method."""
        method = registry.create(f"recycle/{name}", settings)
        return method.prepare(self.model()[0], self.run()).eval(), method


def logits(case: Case, model: nn.Module) -> torch.Tensor:
    """Answers to the first twelve rows of the task."""
    batch = case.encoded.batch(range(12))
    with torch.no_grad():
        return case.objective.forward(model.eval(), batch).logits


def store_of(entry: Entry) -> Store:
    return Store(entry.folder.parent.parent)
