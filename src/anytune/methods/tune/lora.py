"""LoRA: train a low-rank difference beside frozen matrices; saved as a plain PEFT folder.

In plain words: each chosen matrix W gets two thin matrices A and B whose product is added to it. Only A, B and the
head are trained. What is saved is an ordinary PEFT adapter that PEFT, vLLM and others load.

Formula: y = W x + (alpha / r) B A x, with A: [r, in] random, B: [out, r] zero at the start, so training begins at the
base's own function.

Paper: Hu et al. 2022 (LoRA).
Costs: one forward and one backward per step (no weight gradients for W); optimizer state for r * (in + out) weights
per matrix; deltas of some hundred kilobytes.
When not to use it: when the task is far from the base and there is enough data for full tuning; when the target base
has another width (the matrices then do not fit, see ``recycle``).
Choices of ours: attention projections are the targets by default, as in the paper; the head is every module the base
does not hold, a freshly made pooler included, and travels in ``modules_to_save`` (PEFT alone would lose that pooler).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from anytune.methods.protocol import Method, Run
from anytune.methods.registry import register
from anytune.models.peft_models import make_lora


@register
@dataclass(kw_only=True)
class LoRA(Method):
    """Low-rank adaptation through PEFT."""

    r: Annotated[int, Field(gt=0, le=4096, description="rank of the difference")] = 8
    alpha: Annotated[float, Field(gt=0, description="the difference is scaled by alpha / r")] = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1, description="dropout on the adapter's input")] = 0.0
    targets: Annotated[
        Literal["attention", "all-linear"] | list[str],
        Field(description="which matrices: the anatomy's attention projections, all of a block, or names"),
    ] = "attention"

    neutral = None
    neutral_reason = "training A and B instead of W is the method; rank 0 is not defined by PEFT"
    suggests = {"learning_rate": 1e-3}  # noqa: RUF012

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Wrap the model with PEFT; base frozen, adapter and head trained. A is drawn from the run's seed."""
        within: Literal["attention", "all"] = "all" if self.targets == "all-linear" else "attention"
        targets = self.targets if isinstance(self.targets, list) else run.anatomy.linear_maps(model, within)
        return make_lora(
            model, head_names=run.head_names, r=self.r, alpha=self.alpha, dropout=self.dropout, targets=targets,
            seed=run.seed,
        )  # fmt: skip
