"""A tiny model, a batch of a tiny task and a method prepared for them, for tests of single methods."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anytune.methods import registry
from anytune.methods.objective import objective_for
from anytune.methods.protocol import Batch, Method, Run
from anytune.methods.step import StepModule
from anytune.models.base import Base, load_base
from tests.contract.bench import without_dropout

TEXTS = [[2, 30, 41, 9, 3, 0], [2, 31, 3, 0, 0, 0], [2, 50, 33, 44, 45, 3], [2, 22, 60, 61, 3, 0]]


def batch_of(kind: str = "classification") -> Batch:
    """Four texts of up to six tokens with labels of a kind."""
    ids = torch.tensor(TEXTS)
    labels = {
        "classification": torch.tensor([0, 1, 2, 1]),
        "regression": torch.tensor([0.5, -1.0, 2.0, 0.0]),
        "token-classification": torch.where((ids > 3) & (ids % 2 == 0), ids % 3, -100),
    }[kind]
    items = len(labels) if labels.ndim == 1 else int((labels != -100).sum())
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels, "num_items": items}


@dataclass
class Prepared:
    """What a method was prepared for; ``method`` is in its first step."""

    base: Base
    model: nn.Module
    run: Run
    method: Method
    objective: Any
    step: StepModule

    def terms(self, batch: Batch) -> dict[str, torch.Tensor]:
        return self.step(self.method.prepare_batch(batch))


def prepared(
    folder: Path, name: str, kind: str = "classification", *, dropout: bool = False, steps: int = 6, **settings: Any
) -> Prepared:
    """A method on a model in fp64 for a kind of task."""
    base = load_base(folder)
    model, head_names = base.task_model(kind, () if kind == "regression" else ("a", "b", "c"), 3)
    objective = objective_for(kind, base.anatomy)
    run = Run(seed=1, steps=steps, anatomy=base.anatomy, head_names=head_names, objective=objective, base=base)
    method = registry.create(name, settings)
    model = method.prepare(model.double(), run).double()
    model = (model if dropout else without_dropout(model)).train()
    method.before_step(model)
    return Prepared(base, model, run, method, objective, StepModule(model, [method], objective))


def prepared_model(folder: Path, *methods: Method, task: str = "classification") -> tuple[nn.Module, Run]:
    """A task model of the base in a folder after each method's ``prepare``, and the run they were told of."""
    base = load_base(folder)
    model, head = base.task_model(task, ("a", "b"), 0)
    run = Run(seed=0, steps=1, anatomy=base.anatomy, head_names=head)
    for method in methods:
        model = method.prepare(model, run)
    return model, run
