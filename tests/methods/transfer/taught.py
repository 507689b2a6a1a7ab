"""Teachers for the tests of PANDA: drawn prompts with drawn heads, on a run of any kind of task."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anytune.methods.objective import objective_for
from anytune.methods.prompts import head_in_place
from anytune.methods.protocol import Batch, Run
from anytune.models.base import load_base
from anytune.models.soft_prompts import PromptSource, attach_prompt, make_prompt
from tests.methods.prepared import batch_of
from tests.methods.transfer.given_prompts import drawn
from tests.methods.tune.by_hand import Small


def taught(small: Any, seed: int = 5, *, similarity: float | None = None, **more: Any) -> PromptSource:
    """A prompt with a head, both drawn large enough to matter."""
    draw = torch.Generator().manual_seed(seed)
    state = small.model.state_dict()
    head = {name: torch.randn(state[name].shape, generator=draw) * 0.3 for name in small.head_names}
    return replace(drawn(small, seed, **more), head=head, similarity=similarity)


def with_teachers(base: Path, task: Path, *teachers: dict[str, Any], double: bool = True, **more: Any) -> Small:
    """The tiny model and task, and a run that is given drawn teachers (one by default)."""
    small = Small(base, task, double=double, **more)
    small.run.teachers = [taught(small, 5 + place, **one) for place, one in enumerate(teachers or ({},))]
    return small


@dataclass
class Fixed:
    """The same few batches again and again."""

    every: list[Batch]

    @property
    def batches_per_epoch(self) -> int:
        return len(self.every)

    def batch(self, step: int) -> Batch:
        return self.every[step % len(self.every)]


class OfKind:
    """A tiny model for a kind of task with one batch of four texts, in fp64, and a drawn teacher."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.base = load_base(folder)
        names = () if kind == "regression" else ("a", "b", "c")
        self.model, self.head_names = self.base.task_model(kind, names, 3)
        self.model.double()
        self.objective, self.batch = objective_for(kind, self.base.anatomy), batch_of(kind)
        self.teacher = taught(self)
        self.run = Run(
            seed=1, steps=10, anatomy=self.base.anatomy, head_names=self.head_names, objective=self.objective,
            batches=Fixed([self.batch]), base=self.base, device=torch.device("cpu"), teachers=[self.teacher],
        )  # fmt: skip


@torch.no_grad()
def answers_of(base: Path, kind: str, head_names: list[str], teacher: PromptSource, batch: Batch) -> Tensor:
    """What a teacher answers, by a model of its own that it stands on."""
    opened = load_base(base)
    names = () if kind == "regression" else ("a", "b", "c")
    model, _ = opened.task_model(kind, names, 3)
    model.double()
    attach_prompt(model, make_prompt(model, teacher.config, opened.anatomy, 0, values=teacher.values), opened.anatomy)
    with head_in_place(model, dict(teacher.head)):
        return objective_for(kind, opened.anatomy).forward(model.eval(), batch).logits
