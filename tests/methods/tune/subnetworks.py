"""A small net and a bare loop for methods that work on matrices: every hook is called as the protocol says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from anytune.methods.protocol import Method, Run

STEPS = 24


class Net(nn.Module):
    """Two hidden maps and a head, with an embedding in front whose weights no method on matrices may touch."""

    def __init__(self, width: int = 8, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(10, width)
        self.first = nn.Linear(width, 12)
        self.second = nn.Linear(12, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 3)

    def forward(self, words: Tensor) -> Tensor:
        hidden = self.embedding(words).mean(1)
        return self.head(self.norm(hidden + self.second(torch.tanh(self.first(hidden)))))


MATRICES = ("first.weight", "second.weight", "head.weight")


def data(step: int, rows: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    words = torch.randint(0, 10, (rows, 4), generator=generator)
    return words, words.sum(1) % 3


def loss_of(model: nn.Module, step: int) -> Tensor:
    words, labels = data(step)
    logits = model(words)
    return nn.functional.cross_entropy(logits.float() if logits.dtype == torch.bfloat16 else logits, labels)


def adamw(parameters: Any, **more: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, **{"lr": 0.01, "weight_decay": 0.1, **more})


def sgd(parameters: Any, **more: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, **{"lr": 0.05, **more})


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [{"params": [parameter for _, parameter in named], "names": [name for name, _ in named]}]


class Training:
    """A run of methods on a net, step by step."""

    def __init__(
        self, methods: Sequence[Method], *, model: nn.Module | None = None, steps: int = STEPS, seed: int = 3,
        optimizer: Callable[..., torch.optim.Optimizer] = adamw, clip: float | None = 0.5,
        loss: Callable[[nn.Module, int], Tensor] = loss_of, **more: Any,
    ) -> None:  # fmt: skip
        self.methods, self.clip, self.loss = list(methods), clip, loss
        self.model = Net() if model is None else model
        anatomy: Any = SimpleNamespace(model_type="net", block_stacks=lambda model: [])
        self.run = Run(seed=seed, steps=steps, anatomy=anatomy)
        for method in self.methods:
            self.model = method.prepare(self.model, self.run)
        self.optimizer = optimizer(groups_of(self.model), **more)
        for method in self.methods:
            method.attach(self.model, self.optimizer)
        self.done = 0

    def step(self) -> None:
        self.model.train()
        self.optimizer.zero_grad()
        for method in self.methods:
            method.before_step(self.model)
        self.loss(self.model, self.done).backward()
        for method in self.methods:
            method.after_backward(self.model)
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        for method in self.methods:
            method.after_step(self.model)
        self.done += 1

    def go(self, steps: int) -> Training:
        for _ in range(steps):
            self.step()
        return self

    def finish(self) -> nn.Module:
        for method in reversed(self.methods):
            self.model = method.finish(self.model, self.run)
        return self.model

    @property
    def weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def moments(self) -> dict[str, dict[str, Tensor]]:
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        return {
            names[parameter]: {key: value.clone() for key, value in state.items() if isinstance(value, Tensor)}
            for parameter, state in self.optimizer.state.items()
        }


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
