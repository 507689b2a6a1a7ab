"""A linear model on four numbers, and batches of it: the smallest thing that the loop can train."""

from __future__ import annotations

import pytest
import torch

from anytune.engine.loop import train
from anytune.engine.runtime import make_runtime, seeded
from anytune.engine.settings import training_settings


class Line(torch.nn.Module):
    """[b, 4] -> [b, 2], with dropout, so that the random state matters."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(4, 3)
        self.dropout = torch.nn.Dropout(0.2)
        self.outer = torch.nn.Linear(3, 2)

    def forward(self, values):
        return self.outer(self.dropout(torch.tanh(self.inner(values))))


class Points:
    """Batch n is a pure function of n; ``fail_at`` asks for trouble."""

    batches_per_epoch = 5

    def __init__(self, poison_at: int | None = None) -> None:
        self.poison_at = poison_at
        self.asked: list[int] = []

    def batch(self, step):
        self.asked.append(step)
        values = torch.randn(6, 4, generator=torch.Generator().manual_seed(step % self.batches_per_epoch))
        labels = (values.sum(1) > 0).long()
        if step == self.poison_at:
            values = values * float("nan")
        return {"input_ids": values, "labels": labels, "num_items": 6}


class Objective:
    def forward(self, model, batch):
        return model(batch["input_ids"])

    def terms(self, output, batch):
        return {"loss": torch.nn.functional.cross_entropy(output, batch["labels"])}


@pytest.fixture
def line():
    with seeded(0):
        return Line()


@pytest.fixture
def fit():
    """``fit(model, steps, **training)``: train in fp32 under a fixed seed; ``fit.drawn``: drawn afterwards."""

    def run(model, steps, *, batches=None, methods=(), evaluate=None, work=None, reporter=None, rate=0.05, **training):
        with seeded(1):
            result = train(
                model, methods=list(methods), objective=Objective(), batches=batches or Points(), steps=steps,
                settings=training_settings({"precision": "fp32", **training}), learning_rate=rate,
                runtime=make_runtime("fp32"), evaluate=evaluate, work=work, title="lines", reporter=reporter,
            )  # fmt: skip
            run.drawn = torch.rand(3)
            return result

    return run
