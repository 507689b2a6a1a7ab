"""Scaled reuse: how much of the outdated difference to add, chosen on validation data.

In plain words: after an upgrade the old difference may be too long a step in a direction that is still good. Add none
of it, a quarter, half ... and keep what does best on held-out rows. One number is chosen, nothing is trained.

Formula: theta(c) = M_{i+1} + c (tuned(M_i) - M_i) for every c of the grid, head_new = head_old; the c with the best
validation score is kept. For a LoRA c goes into alpha, so that it stays a LoRA and its matrices keep their bits; a
bottleneck adapter adds c times what it added.

Paper: the coefficient of task arithmetic (Ilharco et al. 2022), here across an upgrade of the base.
Costs: one pass over the validation data for each c, no backward pass; a copy of the model while they are compared.
When not to use it: without held-out rows; with so few of them that the best c is luck. For soft prompts, which are no
differences.
Choices of ours: 0 (the new base under the old head) and 1 (``direct``) always stand in the grid, so that by
validation the method is never worse than either; among equal scores the c nearest to 1 wins. The whole body has one c.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from anytune.errors import MethodError
from anytune.methods.of_stream import as_in_the_first_process
from anytune.methods.outdated import outdated_of
from anytune.methods.protocol import Method, Run
from anytune.methods.registry import register


def whole_grid(grid: Sequence[float]) -> list[float]:
    """The coefficients to try, ascending, each once, with 0 and 1 among them."""
    return sorted({0.0, 1.0, *map(float, grid)})


def chosen_scale(scales: Sequence[float], scores: Sequence[float]) -> float:
    """The coefficient with the highest score; of equal ones the nearest to 1, then the smaller.

    Raises:
        MethodError: no score is a number.
    """
    tried = [(score, scale) for scale, score in zip(scales, scores, strict=True) if score == score]
    if not tried:
        raise MethodError("no coefficient has a validation score", why="Every score is NaN.", fix="--method direct")
    best = max(score for score, _ in tried)
    return min((scale for score, scale in tried if score == best), key=lambda scale: (abs(scale - 1.0), scale))


@register
@dataclass(kw_only=True)
class Scaled(Method):
    """Outdated weights times one coefficient."""

    grid: Annotated[
        tuple[Annotated[float, Field(ge=-2, le=4)], ...],
        Field(min_length=1, max_length=101, description="the coefficients that are tried, 0 and 1 beside them"),
    ] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)

    trains = False
    neutral = None
    neutral_reason = "nothing is trained; with the grid [1] it chooses between direct reuse and the new base alone"

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Try every coefficient and put the best one's weights into the model.

        Raises:
            MethodError: there are no outdated weights, they are a soft prompt, or no validation data are at hand.
            DeltaError: they do not fit the new base, or are an adapter that has no coefficient.
        """
        outdated = outdated_of(run, self.name)
        if outdated.kind == "prompt":
            raise MethodError(
                "a soft prompt cannot be scaled",
                why="It stands beside the base's weights; half of it is another one, not half of a change.",
                fix="--method direct",
            )
        validate = run.needed("validate", self)
        scales = whole_grid(self.grid)
        # an adapter wraps the model it is put on, so each coefficient gets a copy of its own
        found = [float(validate(outdated.install(copy.deepcopy(model), scale))) for scale in scales]
        scores = torch.tensor(found, dtype=torch.float64, device=run.device if run.device is not None else "cpu")
        as_in_the_first_process({"scores": scores})
        self._scores = dict(zip(scales, scores.tolist(), strict=True))
        self._scale = chosen_scale(scales, list(self._scores.values()))
        model = outdated.install(model, self._scale)
        return model

    def notes(self) -> list[str]:
        """The coefficient that was chosen, and the score of each."""
        tried = ", ".join(f"{scale:g}: {score:.4f}" for scale, score in self._scores.items())
        return [f"scaled: {self._scale:g} of the difference, by validation score ({tried})"]
