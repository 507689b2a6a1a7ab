"""R3F: answers must not change when the word embeddings are moved a very little.

In plain words: the same batch is read a second time with tiny random noise on its word embeddings, and the difference
between the two answers is added to the loss. That keeps the function smooth around the texts it is trained on, and so
keeps what pre-training had put there.

Formula: L = CE(f(e)) + weight * (KL(f(e + z) || f(e)) + KL(f(e) || f(e + z))), e: [b, n, width] the word embeddings, z
of the same shape from N(0, scale^2) or uniform in [-scale, scale]; the divergence is a mean over items. For regression
the divergence is (f(e + z) - f(e))^2.

Paper: Aghajanyan et al. 2020 (R3F, "Better Fine-Tuning by Reducing Representational Collapse").
Costs: two forwards and the backward of both: about twice the time and the memory for activations; no further state.
When not to use it: under bf16, where noise of 1e-5 is lost in rounding and only dropout differs; where R-Drop already
runs, which says the same of dropout noise and is much larger.
Choices of ours: both passes draw their own dropout. With dropout on, their difference is mostly dropout's and not z's;
``dropout=0`` among the training settings leaves z alone. Gradients flow through both answers. Weight 1 and scale 1e-5
are what the literature uses most; they are not tuned by us.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import nn

from anytune.methods.consistency import disagreement, noise_like, shifted_words
from anytune.methods.protocol import Batch, Method, Run, Terms
from anytune.methods.registry import register


@register
@dataclass(kw_only=True)
class R3F(Method):
    """Robust representations through regularised fine-tuning."""

    weight: Annotated[float, Field(ge=0, le=1000, description="weight of the divergence (the paper's lambda)")] = 1.0
    scale: Annotated[
        float, Field(gt=0, le=10, description="size of the noise: its standard deviation, or for uniform its bound")
    ] = 1e-5
    noise: Annotated[Literal["normal", "uniform"], Field(description="what the noise is drawn from")] = "uniform"

    neutral = {"weight": 0.0}  # noqa: RUF012 - nothing is drawn or computed then

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Keep the anatomy and the objective, which makes the second pass."""
        self._anatomy = run.anatomy
        self._plain = run.needed("objective", self) if self.weight else None
        return model

    def objective(self, model: nn.Module, batch: Batch, output: Any, terms: Terms) -> Terms:
        """The plain terms, and how far the answer to shifted words lies from the answer."""
        if self._plain is None:
            return terms
        with shifted_words(model, self._anatomy, lambda _, words: noise_like(words, self.scale, self.noise)):
            shifted = self._plain.forward(model, batch)
        return {**terms, "r3f": self.weight * disagreement(shifted.logits, output.logits, batch)}
