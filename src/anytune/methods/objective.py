"""Plain objectives: what training means before any method changes it.

Each has ``forward(model, batch) -> output`` and ``terms(output, batch) -> {"loss": scalar}``, the scalar being the
mean over the micro-batch's items. ``output.logits`` has one row per item, ``[items, outputs]``, for every kind: per
example (classification, regression), per labelled word (token classification), per labelled token (generation,
language modelling). So a method that compares two models' logits, such as distillation, reads them the same way
everywhere.

Only the inputs of a model are handed to it; other batch keys (labels, counts, what methods add) never reach a forward
that would swallow them without an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from anytune.methods.protocol import Batch, Terms
from anytune.methods.step import upcast
from anytune.models.anatomy import Anatomy
from anytune.models.answering import task_output
from anytune.models.language_modelling import NO_LABEL, at_labels, label_loss, text_hidden


@dataclass(frozen=True)
class Labelled:
    """Logits where there are labels: ``logits`` [items, outputs] beside ``labels`` [items].

    Of language modelling also ``hidden`` [b, n, width], what the head was computed from (see ``text_hidden``).
    """

    logits: Tensor
    labels: Tensor
    hidden: Tensor | None = None

    @cached_property
    def loss(self) -> Tensor:
        """Mean cross-entropy over the items, a scalar in fp32 or wider; 0 with a gradient of zeros for no items."""
        return label_loss(self.logits, self.labels)


@dataclass(frozen=True)
class Classification:
    """Cross-entropy of ``logits [b, classes]`` against ``labels [b]``."""

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """The model's output, with ``.logits``."""
        return task_output(model, batch)

    def terms(self, output: Any, batch: Batch) -> Terms:
        """``{"loss": mean over examples}``."""
        return {"loss": functional.cross_entropy(upcast(output.logits), batch["labels"])}


@dataclass(frozen=True)
class Regression:
    """Squared error of ``logits [b, 1]`` against ``labels [b]``."""

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """The model's output, with ``.logits``."""
        return task_output(model, batch)

    def terms(self, output: Any, batch: Batch) -> Terms:
        """``{"loss": mean over examples}``."""
        predicted = upcast(output.logits).squeeze(-1)
        return {"loss": functional.mse_loss(predicted, batch["labels"].to(predicted.dtype))}


@dataclass(frozen=True)
class TokenClassification:
    """Cross-entropy at the labelled positions (the first piece of each word): ``logits [words, tags]``.

    The head is computed everywhere: beside a block it costs nothing, and its dropout is drawn as in the stock model.
    """

    def forward(self, model: nn.Module, batch: Batch) -> Labelled:
        """Logits and labels of the labelled positions, row by row."""
        chosen = batch["labels"] != NO_LABEL
        return Labelled(task_output(model, batch).logits[chosen], batch["labels"][chosen])

    def terms(self, output: Labelled, batch: Batch) -> Terms:
        """``{"loss": mean over labelled words}``."""
        return {"loss": output.loss}


@dataclass(frozen=True)
class LanguageModelling:
    """Masked or causal language modelling; the vocabulary head is computed only where a label is.

    That gives exactly the loss of the stock forward: positions with label -100 do not enter it.
    """

    anatomy: Anatomy

    def forward(self, model: nn.Module, batch: Batch) -> Labelled:
        """Vocabulary logits and labels of the scored tokens; the output's ``.loss`` is in nats."""
        hidden = text_hidden(model, batch, self.anatomy)
        chosen, labels = at_labels(hidden, batch, self.anatomy)
        return Labelled(self.anatomy.pretraining_logits(model, chosen), labels, hidden)

    def terms(self, output: Labelled, batch: Batch) -> Terms:
        """``{"loss": mean over scored tokens}``."""
        return {"loss": output.loss}


@dataclass(frozen=True)
class Generation(LanguageModelling):
    """Language modelling of the response alone, given its prompt.

    A decoder reads prompt and response in one row, an encoder-decoder reads the prompt with its encoder and predicts
    the response with its decoder; either way only the response's tokens carry labels.
    """


TaskObjective = Classification | Regression | TokenClassification | Generation


def objective_for(kind: str, anatomy: Anatomy) -> TaskObjective:
    """The plain objective of a kind of task (a key of ``data.tasks.KINDS``) on a kind of model."""
    made: dict[str, TaskObjective] = {
        "classification": Classification(),
        "regression": Regression(),
        "token-classification": TokenClassification(),
        "generation": Generation(anatomy),
    }
    return made[kind]
