"""Plain objectives: what training means before any method changes it.

Each has ``forward(model, batch) -> output`` and ``terms(output, batch) -> {"loss": scalar}``, the scalar being the
mean over the micro-batch's items. Only the inputs of a model are handed to it; other batch keys (labels, counts, what
methods add) never reach a forward that would swallow them without an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from anytune.methods.protocol import Batch, Terms
from anytune.methods.step import upcast
from anytune.models.anatomy import Anatomy
from anytune.models.language_modelling import language_model_loss

#: The batch keys that are inputs of a model; everything else (labels, counts, indices) stays outside.
MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def model_inputs(batch: Batch) -> dict[str, Tensor]:
    """The part of a batch that is input to the model."""
    return {key: batch[key] for key in MODEL_INPUTS if key in batch}


@dataclass(frozen=True)
class Classification:
    """Cross-entropy of ``logits [b, classes]`` against ``labels [b]``."""

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """The model's output, with ``.logits``."""
        return model(**model_inputs(batch))

    def terms(self, output: Any, batch: Batch) -> Terms:
        """``{"loss": mean over examples}``."""
        return {"loss": functional.cross_entropy(upcast(output.logits), batch["labels"])}


@dataclass(frozen=True)
class Regression:
    """Squared error of ``logits [b, 1]`` against ``labels [b]``."""

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """The model's output, with ``.logits``."""
        return model(**model_inputs(batch))

    def terms(self, output: Any, batch: Batch) -> Terms:
        """``{"loss": mean over examples}``."""
        predicted = upcast(output.logits).squeeze(-1)
        return {"loss": functional.mse_loss(predicted, batch["labels"].to(predicted.dtype))}


@dataclass(frozen=True)
class LanguageModelling:
    """Masked or causal language modelling; the vocabulary head is computed only where a label is.

    That gives exactly the loss of the stock forward: positions with label -100 do not enter it.
    """

    anatomy: Anatomy

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss itself: mean over scored tokens, in nats."""
        return language_model_loss(model, batch, self.anatomy)

    def terms(self, output: Tensor, batch: Batch) -> Terms:
        """``{"loss": mean over scored tokens}``."""
        return {"loss": output}
