"""Prompt transfer: tune a prompt that starts from one tuned on another task.

In plain words: a stored prompt of a related task knows how to ask the base for something near what is wanted. The new
task's prompt starts there, not at random numbers; the head is new, and both are trained as in prompt tuning. From
several sources their mean is the start.

Formula: P_0 = sum_k a_k P_k over the sources, a = softmax(w / t) (``weights: softmax``) or w / sum w of what is above
0 (``share``), w their similarities to the task; all a equal where no similarity is known. Then prompt tuning from P_0.
Paper: Vu et al. 2022 (SPoT: Better Frozen Model Adaptation through Soft Prompt Transfer); Zhong et al. 2024 (PANDA)
call it vanilla prompt transfer (PoT) and take its result as teacher.
Costs: those of prompt tuning; the sources must have been tuned before.
When not to use it: from a source that has little to do with the task: it can end below a fresh prompt. Rank the
sources first, and keep prompt tuning beside it.
Choices of ours: length and kind are the source's. A ``length`` of its own is refused unless ``resize: repeat`` says
what to do: the first rows, or all of them again and again. The head is fresh, as in the published code; ``head:
source`` takes the first source's, if its labels are those of the task. Only a plain table of values can start from
values, so there is no projection. Early fusion of several sources by a softmax of similarities is our reading: the
paper does not say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from anytune.errors import MethodError
from anytune.methods.fusion import Way, early_fusion, fusion_weights
from anytune.methods.prompts import RATE, Dropout, head_fits, put_on
from anytune.methods.protocol import Method, Run
from anytune.methods.registry import register
from anytune.models.soft_prompt_config import SoftPromptConfig
from anytune.models.soft_prompts import PromptSource, make_prompt


def resized(values: Tensor, length: int) -> Tensor:
    """The first ``length`` rows of ``[n, w]``, beginning anew after the last."""
    return values[torch.arange(length, device=values.device) % len(values)]


@register
@dataclass(kw_only=True)
class PromptTransfer(Method):
    """A soft prompt that starts from stored ones."""

    length: Annotated[
        int | None, Field(ge=1, le=512, description="n, how many places the prompt has; null: as many as the source")
    ] = None
    resize: Annotated[
        Literal["refuse", "repeat"],
        Field(description="a source of another length: refuse it, or take its first rows, again and again"),
    ] = "refuse"
    dropout: Dropout = 0.1
    weights: Annotated[
        Way, Field(description="of several sources, from their similarities: softmax, or share (w / sum w)")
    ] = "softmax"
    temperature: Annotated[
        float, Field(gt=0, le=100, description="t of the softmax: the lower, the more the nearest source counts")
    ] = 1.0
    head: Annotated[
        Literal["fresh", "source"],
        Field(description="the head starts afresh, or from the first source's (its labels must be the task's)"),
    ] = "fresh"

    takes = ("sources",)
    neutral = None
    neutral_reason = "starting from a source is the method; a prompt that starts at random is prompt_tuning"
    suggests = {"learning_rate": RATE}  # noqa: RUF012

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Put the sources' prompt on; beside it only the head is trained.

        Raises:
            MethodError: there is no source, sources of different kind, length or width, a head that does not fit, or
                an adapter on the model.
        """
        if not run.sources:
            raise MethodError(
                f"method '{self.name}' needs a source prompt, and none is given",
                why="It starts from a prompt that was tuned on another task.",
                fix="--source DELTA   (in Python: tune(..., sources=[...]), Run(..., sources=[...]))",
            )
        if self.head == "source":
            head_fits(model, run.sources[0], run, "source")
        config, values = self._start(run.sources)
        prompt = make_prompt(model, config, run.anatomy, run.seed, values=values)
        if self.head == "source":
            state = model.state_dict()
            with torch.no_grad():
                for name in run.head_names:
                    state[name].copy_(run.sources[0].head[name])
        return put_on(model, run, self, prompt)

    def _start(self, sources: Sequence[PromptSource]) -> tuple[SoftPromptConfig, Tensor]:
        """The prompt's settings and the values it starts from."""
        kinds = {source.config.kind for source in sources}
        if len(kinds) > 1:
            raise MethodError(
                "the sources are deep and input prompts",
                why="Their numbers mean different things, and cannot be averaged.",
                fix="--source of one kind",
            )
        lengths = {len(source.values) for source in sources}
        length = self.length or len(sources[0].values)
        if self.resize == "refuse" and lengths != {length}:
            raise MethodError(
                f"the prompt is to have length {length}, and the sources have {', '.join(map(str, sorted(lengths)))}",
                why="Which places to drop or repeat is not for anytune to guess.",
                fix="resize=repeat, or sources of that length",
            )
        values = [resized(source.values, length) for source in sources]
        weights = fusion_weights([source.similarity for source in sources], self.weights, self.temperature)
        config = SoftPromptConfig(kind=sources[0].config.kind, length=length, dropout=self.dropout)
        return config, early_fusion(values, weights)
