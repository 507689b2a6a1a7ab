"""Stored prompts side by side, for methods that join several: of one kind and length, and fit for a model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from anytune.errors import MethodError
from anytune.methods.protocol import Method, Run
from anytune.models.soft_prompt_config import SoftPromptConfig
from anytune.models.soft_prompts import make_prompt


def several_prompts(model: Any, run: Run, method: Method, dropout: float) -> tuple[SoftPromptConfig, Tensor]:
    """The settings of a prompt like the run's sources, and the values of all of them.

    Args:
        model: what they are for.
        dropout: of the prompt to be made.

    Returns:
        The settings, and the sources' values [k, n, w] in their order.

    Raises:
        MethodError: there is no source; they differ in kind or length; one does not fit the model or holds NaN.
    """
    sources = run.sources
    if not sources:
        raise MethodError(
            f"method '{method.name}' needs source prompts, and none is given",
            why="It joins prompts that were tuned on other tasks.",
            fix="--source DELTA --source DELTA   (in Python: tune(..., sources=[...]), Run(..., sources=[...]))",
        )
    first, length = sources[0], len(sources[0].values)
    for other in sources[1:]:
        for what, mine, its in (
            ("kind", first.config.kind, other.config.kind), ("length", length, len(other.values)),
        ):  # fmt: skip
            if mine != its:
                raise MethodError(
                    f"{method.name}: source '{first.name}' has {what} {mine}, source '{other.name}' has {what} {its}",
                    why="They are joined place by place.",
                    fix=f"--source prompts of one {what}",
                )
    config = SoftPromptConfig(kind=first.config.kind, length=length, dropout=dropout)
    for source in sources:
        try:
            make_prompt(model, config, run.anatomy, run.seed, values=source.values)
        except MethodError as problem:
            raise MethodError(f"source '{source.name}': {problem.what}", why=problem.why, fix=problem.fix) from None
    return config, torch.stack([source.values for source in sources])
