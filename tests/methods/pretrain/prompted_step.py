"""A tiny prompted model, a masked batch and hprompt prepared for them, for the tests of that method."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anytune.data.batches import BlockBatches
from anytune.data.packing import Blocks, pack
from anytune.methods import registry
from anytune.methods.objective import LanguageModelling
from anytune.methods.pretrain.hprompt import HPrompt
from anytune.methods.protocol import Batch, Run
from anytune.methods.step import StepModule, total
from anytune.models.base import Base, load_base
from anytune.models.dropout import set_dropout
from anytune.models.hyperprompt import HyperPrompt
from anytune.models.prompted import hyperprompt_of

CHEAP: dict[str, Any] = {"encoder": "embeddings"}
SMALL: dict[str, Any] = {
    "agreement_form": "cosine",
    "agreement_temperature": 1.0,
    "components": 4,
    "length": 3,
    "layers": 1,
}
SENTENCE = "we found the old catling near a small fern and the dogfur under slate dust by some owlpaw"


@dataclass
class Ready:
    """``method`` is in its first step; ``model`` is in train mode, without dropout unless asked for."""

    base: Base
    model: nn.Module
    run: Run
    method: HPrompt
    objective: LanguageModelling
    step: StepModule
    batches: BlockBatches

    @property
    def hyperprompt(self) -> HyperPrompt:
        found = hyperprompt_of(self.model)
        assert found is not None
        return found

    def batch(self, number: int = 0) -> Batch:
        return self.batches.batch(number)

    def terms(self, batch: Batch | None = None) -> dict[str, Tensor]:
        return self.step(self.method.prepare_batch(self.batch() if batch is None else batch))

    def named(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters())

    @torch.no_grad()
    def moved(self, by: float = 0.05) -> Ready:
        """The model after something else has trained it: every weight a little elsewhere."""
        generator = torch.Generator().manual_seed(5)
        for parameter in self.model.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator).to(parameter))
        return self


def blocks_of(base: Base, texts: int = 24, size: int = 16) -> Blocks:
    words = SENTENCE.split()
    rows = [" ".join(words[n % 7 :] + words[: n % 11]) for n in range(texts)]
    return pack(rows, base.tokenizer(), size, objective=base.anatomy.objective, cache=None)


def ready(
    folder: Path, *, dropout: float = 0.0, dtype: torch.dtype = torch.float64, seed: int = 1, rows: int = 4,
    equip: Any = None, **settings: Any,
) -> Ready:  # fmt: skip
    """hprompt on a fresh pre-training model of the base in a folder.

    Args:
        equip: called with the model before the method prepares it; gives the model to prepare.
    """
    base = load_base(folder)
    model, _ = base.pretraining_model(3)
    set_dropout(model, dropout)
    objective = LanguageModelling(base.anatomy)
    batches = BlockBatches(blocks_of(base), rows, 3, base.anatomy.objective, base.tokenizer())
    run = Run(seed=seed, steps=6, anatomy=base.anatomy, objective=objective, batches=batches, base=base)
    method = registry.create("pretrain/hprompt", {**SMALL, **settings})
    model = model if equip is None else equip(model)
    model = method.prepare(model.to(dtype), run).to(dtype).train()
    method.before_step(model)
    return Ready(base, model, run, method, objective, StepModule(model, [method], objective), batches)


def gradients(one, term):
    found = torch.autograd.grad(term, list(one.named().values()), retain_graph=True, allow_unused=True)
    return dict(zip(one.named(), found, strict=True))


def trajectory(one, steps=3, rate=1e-2):
    """Weights after a few steps of plain gradient descent."""
    for number in range(steps):
        if number:
            one.method.before_step(one.model)
        loss = total(one.terms(one.batch(number)))
        parameters = [parameter for parameter in one.model.parameters() if parameter.requires_grad]
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.data -= rate * gradient
        one.method.after_step(one.model)
    return {name: parameter.detach().clone() for name, parameter in one.named().items()}
