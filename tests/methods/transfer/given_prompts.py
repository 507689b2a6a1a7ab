"""Stored prompts for the tests of methods that are given some."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from anytune.models.soft_prompt_config import SoftPromptConfig
from anytune.models.soft_prompts import PromptSource, prompt_width
from tests.methods.tune.by_hand import Small


def drawn(small: Small, seed: int, *, kind: Any = "deep", length: int = 3, scale: float = 0.5) -> PromptSource:
    """A prompt for the tiny base whose values are drawn, large enough to matter."""
    width = prompt_width(small.model, kind, small.base.anatomy)
    values = torch.randn(length, width, generator=torch.Generator().manual_seed(seed)) * scale
    return PromptSource(f"of-{seed}", SoftPromptConfig(kind=kind, length=length), values)


def with_sources(base: Path, task: Path, count: int = 2, *, steps: int = 3, double: bool = True, **more: Any) -> Small:
    """The tiny model and task, and a run that is given drawn sources."""
    small = Small(base, task, steps=steps, double=double)
    small.run.sources = [drawn(small, seed, **more) for seed in range(count)]
    return small
