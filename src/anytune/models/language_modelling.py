"""Language-modelling losses that compute the vocabulary only where a label asks for it.

With 15 % of the positions masked, the stock models still compute vocabulary logits [batch, length, vocabulary] for all
of them. Here the head sees only the labelled positions [labelled, width]; the loss and every gradient are the same.

- Encoders guess masked words: labels stand at the masked positions.
- Decoders guess the next token: labels are the input itself, position t predicts ``labels[:, t + 1]``.
- Encoder-decoders write what was cut out: the encoder reads ``input_ids``, the decoder reads the labels shifted right
  by one (its start token first) and predicts the labels.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from anytune.errors import DataError
from anytune.models.anatomy import Anatomy
from anytune.models.hyperprompt import unscored_beginning
from anytune.models.prompted import reading

#: The label of a position that asks for nothing.
NO_LABEL = -100
#: What may be handed to a model; everything else in a batch is for the loop or a method.
MODEL_INPUTS = ("input_ids", "inputs_embeds", "attention_mask", "token_type_ids", "position_ids", "decoder_input_ids",
                "decoder_attention_mask")  # fmt: skip


def model_inputs(module: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a batch that are inputs of a model: those its forward names (for PEFT, of the model inside).

    A forward with ``**kwargs`` swallows unknown keys without a word, so only named ones are ever passed. Segment ids
    go only to models with a table of segments: RoBERTa's has one row, and GPT-2 would add the embedding of word 0 to
    every position.

    Raises:
        DataError: the batch has neither ``input_ids`` nor ``inputs_embeds``.
    """
    inner = module.get_base_model() if hasattr(module, "get_base_model") else module
    kind: Any = type(inner)
    named = _named_inputs(kind)
    found = {key: batch[key] for key in MODEL_INPUTS if key in batch and key in named}
    config = getattr(inner, "config", None)
    if "token_type_ids" in found and config is not None and getattr(config, "type_vocab_size", 0) < 2:
        del found["token_type_ids"]
    if "input_ids" not in found and "inputs_embeds" not in found:
        raise DataError(
            f"a batch has only {', '.join(batch) or 'nothing'}", why="A model needs 'input_ids' or 'inputs_embeds'."
        )
    return found


@cache
def _named_inputs(module_class: Any) -> frozenset[str]:
    return frozenset(inspect.signature(module_class.forward).parameters)


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
    hidden = text_hidden(model, batch, anatomy)
    return label_loss(*_logits_at(model, hidden[:, :-1], batch["labels"][:, 1:], anatomy), reduction)


def span_lm_loss(
    model: Any, batch: Mapping[str, Any], anatomy: Anatomy, reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """Cross-entropy of what the decoder is to write; equals the stock model's loss.

    Args and returns as ``masked_lm_loss``; ``labels`` [b, m] are the decoder's targets, -100 for padding.
    """
    hidden = _written(model, batch, anatomy)
    return label_loss(*_logits_at(model, hidden, batch["labels"], anatomy), reduction)


def language_model_loss(
    model: Any, batch: Mapping[str, Any], anatomy: Anatomy, reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """The pre-training loss of a kind of model, by its objective: masked words, next words, or cut-out spans."""
    return label_loss(*labelled_logits(model, batch, anatomy), reduction)


def labelled_logits(model: Any, batch: Mapping[str, Any], anatomy: Anatomy) -> tuple[Tensor, Tensor]:
    """Vocabulary logits [items, vocabulary] where a label asks for them, and those labels [items].

    The items stand row by row, from left to right; a decoder's logits of position t stand beside the label of t + 1.
    """
    hidden, labels = labelled_hidden(model, batch, anatomy)
    return anatomy.pretraining_logits(model, hidden), labels


def labelled_hidden(model: Any, batch: Mapping[str, Any], anatomy: Anatomy) -> tuple[Tensor, Tensor]:
    """Last hidden states [items, width] where a label asks for a word, and those labels [items]; no logits yet."""
    return at_labels(text_hidden(model, batch, anatomy), batch, anatomy)


def text_hidden(model: Any, batch: Mapping[str, Any], anatomy: Anatomy) -> Tensor:
    """Last hidden states [b, n, width] of the text's tokens; of an encoder-decoder, of what its decoder reads.

    The hypernetwork of a prompted decoder reads no further than to the first label: a prompt made of the whole text
    would tell what is asked for.
    """
    if anatomy.encoder_decoder:
        return _written(model, batch, anatomy)
    with reading(model, unscored_beginning(batch["labels"], NO_LABEL) if anatomy.causal else None):
        return _hidden(model, batch, anatomy)


def at_labels(hidden: Tensor, batch: Mapping[str, Any], anatomy: Anatomy) -> tuple[Tensor, Tensor]:
    """Of ``text_hidden``'s [b, n, width] those [items, width] where a label asks for a word, and those labels."""
    labels = batch["labels"]
    if anatomy.causal:
        hidden, labels = hidden[:, :-1], labels[:, 1:]
    chosen = labels != NO_LABEL
    return hidden[chosen], labels[chosen]


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
    kind: Any = type(backbone)
    if "use_cache" in _named_inputs(kind):
        inputs["use_cache"] = False
    return backbone(**inputs)[0]


def _written(model: Any, batch: Mapping[str, Any], anatomy: Anatomy) -> Tensor:
    """Hidden states [b, m, width] of an encoder-decoder's decoder, which reads the labels shifted right by one."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    encoder, decoder = anatomy.encoder_and_decoder(inner)
    read = encoder(**model_inputs(encoder, batch))[0]
    given = batch.get("decoder_input_ids")
    return decoder(
        input_ids=shifted_right(batch["labels"], inner.config) if given is None else given,
        attention_mask=batch.get("decoder_attention_mask"),
        encoder_hidden_states=read,
        encoder_attention_mask=batch.get("attention_mask"),
        use_cache=False,
    )[0]


def shifted_right(ids: Tensor, config: Any) -> Tensor:
    """What a decoder reads to write ``ids`` [b, m]: its start token, then all but the last; padding where no label is.

    Args:
        ids: token ids, -100 for none.
        config: of the model, with ``decoder_start_token_id`` and ``pad_token_id``.
    """
    start = torch.full_like(ids[:, :1], config.decoder_start_token_id)
    shifted = torch.cat([start, ids[:, :-1]], dim=1)
    return shifted.masked_fill(shifted == NO_LABEL, config.pad_token_id)


def _logits_at(model: Any, hidden: Tensor, labels: Tensor, anatomy: Anatomy) -> tuple[Tensor, Tensor]:
    """hidden [b, n, width], labels [b, n] -> logits [items, vocabulary] and labels [items] where there is a label."""
    chosen = labels != NO_LABEL
    return anatomy.pretraining_logits(model, hidden[chosen]), labels[chosen]
