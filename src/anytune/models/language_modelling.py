"""Language-modelling losses that compute the vocabulary only where a label asks for it.

With 15 % of the positions masked, the stock models still compute vocabulary logits [batch, length, vocabulary] for all
of them. Here the head sees only the labelled positions [labelled, width]; the loss and every gradient are the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from anytune.errors import DataError
from anytune.models.anatomy import Anatomy

#: The label of a position that asks for nothing.
NO_LABEL = -100
#: What may be handed to a model; everything else in a batch is for the loop or a method.
MODEL_INPUTS = ("input_ids", "inputs_embeds", "attention_mask", "token_type_ids", "position_ids")


def model_inputs(module: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a batch that ``module.forward`` names and that are model inputs.

    A forward with ``**kwargs`` swallows unknown keys without a word, so only named ones are ever passed.

    Raises:
        DataError: the batch has neither ``input_ids`` nor ``inputs_embeds``.
    """
    named = inspect.signature(module.forward).parameters
    found = {key: batch[key] for key in MODEL_INPUTS if key in batch and key in named}
    if "input_ids" not in found and "inputs_embeds" not in found:
        raise DataError(
            f"a batch has only {', '.join(batch) or 'nothing'}", why="A model needs 'input_ids' or 'inputs_embeds'."
        )
    return found


def masked_lm_loss(
    model: Any, batch: Mapping[str, Any], anatomy: Anatomy, reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """Cross-entropy of the words at masked positions; equals the stock model's loss exactly.

    Args:
        model: a masked-language model (or a PEFT wrapping of one).
        batch: ``input_ids`` [b, n], ``attention_mask`` [b, n], ``labels`` [b, n] with -100 off the masked positions.
        anatomy: of the model's kind.
        reduction: mean over the labelled positions, or their sum (the loop normalises over a whole step).

    Returns:
        A scalar, in fp32 or wider. A batch without a single label gives 0 with a gradient of zeros.
    """
    hidden = _hidden(model, batch, anatomy)
    return label_loss(*_logits_at(model, hidden, batch["labels"], anatomy), reduction)


def causal_lm_loss(
    model: Any, batch: Mapping[str, Any], anatomy: Anatomy, reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """Cross-entropy of each next token: position t predicts ``labels[:, t + 1]``; equals the stock model's loss.

    Args and returns as ``masked_lm_loss``; ``labels`` are not shifted by the caller.
    """
    hidden = _hidden(model, batch, anatomy)
    return label_loss(*_logits_at(model, hidden[:, :-1], batch["labels"][:, 1:], anatomy), reduction)


def language_model_loss(
    model: Any, batch: Mapping[str, Any], anatomy: Anatomy, reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """The pre-training loss of a kind of model: masked words for encoders, next words for decoders."""
    loss = masked_lm_loss if anatomy.objective == "mlm" else causal_lm_loss
    return loss(model, batch, anatomy, reduction)


def labelled_logits(model: Any, batch: Mapping[str, Any], anatomy: Anatomy) -> tuple[Tensor, Tensor]:
    """Vocabulary logits [items, vocabulary] where a label asks for them, and those labels [items].

    The items stand row by row, from left to right; a decoder's logits of position t stand beside the label of t + 1.
    """
    hidden, labels = _hidden(model, batch, anatomy), batch["labels"]
    if anatomy.objective == "clm":
        hidden, labels = hidden[:, :-1], labels[:, 1:]
    return _logits_at(model, hidden, labels, anatomy)


def label_loss(logits: Tensor, labels: Tensor, reduction: Literal["mean", "sum", "none"] = "mean") -> Tensor:
    """Cross-entropy of logits [items, classes] and labels [items], in fp32 or wider; 0 for no items."""
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    if reduction == "none":
        return functional.cross_entropy(logits, labels, reduction="none")
    total = functional.cross_entropy(logits, labels, reduction="sum")
    return total / max(1, len(labels)) if reduction == "mean" else total


def _hidden(model: Any, batch: Mapping[str, Any], anatomy: Anatomy) -> Tensor:
    backbone = anatomy.backbone(model)
    inputs = model_inputs(backbone, batch)
    if "use_cache" in inspect.signature(backbone.forward).parameters:
        inputs["use_cache"] = False
    return backbone(**inputs)[0]


def _logits_at(model: Any, hidden: Tensor, labels: Tensor, anatomy: Anatomy) -> tuple[Tensor, Tensor]:
    """hidden [b, n, width] and labels [b, n] -> logits [items, vocabulary] and labels [items] where there is a label."""
    chosen = labels != NO_LABEL
    return anatomy.pretraining_logits(model, hidden[chosen]), labels[chosen]
