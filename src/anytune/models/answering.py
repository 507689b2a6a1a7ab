"""What a task model answers to a batch, whatever side it is padded on and whatever token pads it.

A decoder classifies by the hidden state of a text's last token, an encoder-decoder by that of the last token its
decoder was given. The stock models find that token by its id: the last one that is not ``pad_token_id`` (decoders), or
the last ``eos_token_id``, of which each row must hold equally many (T5). So a text that ends with the padding id is
read too early (and many decoders pad with the end-of-text token), and a text that holds "</s>" cannot be read at all.
Here the attention mask says where a text ends. Wherever the stock models read the right token, the answers are the
same.

Rows that are padded on the left are first moved to the left: positions then count from each text's first token, as if
it stood alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from anytune import compat
from anytune.models.anatomy import ANATOMIES, Anatomy
from anytune.models.language_modelling import model_inputs, shifted_right


@dataclass(frozen=True)
class Answer:
    """``logits`` [b, outputs]."""

    logits: Tensor


def task_output(model: Any, batch: Mapping[str, Any]) -> Any:
    """The output of a task model (or of a PEFT wrapping of one), with ``.logits``.

    Args:
        model: for classification or regression ``.logits`` is [b, outputs]; every other model is called as it is.
        batch: ``input_ids`` or ``inputs_embeds``, ``attention_mask``; other keys are passed over.

    Raises:
        DataError: the batch holds no input.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    anatomy = ANATOMIES.get(getattr(getattr(inner, "config", None), "model_type", None) or "")
    classes: tuple[Any, Any] = (type(inner), type(getattr(inner, "config", None)))
    reads_last = anatomy is not None and _classifies(*classes)
    if anatomy is None or anatomy.last_token_head is None or not reads_last or _prompted(model):
        return model(**model_inputs(model, batch))
    return Answer(_at_last_token(inner, batch, anatomy, anatomy.last_token_head))


def left_aligned(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch with the tokens of each row first and its padding after them; rows so already keep their bits.

    Args:
        batch: ``attention_mask`` [b, n] of 0 and 1; without one the batch is given back as it is.
    """
    mask = batch.get("attention_mask")
    if mask is None:
        return dict(batch)
    order = (mask == 0).to(torch.uint8).argsort(dim=1, stable=True)
    moved = dict(batch)
    for key in ("input_ids", "attention_mask", "token_type_ids", "position_ids"):
        if key in batch:
            moved[key] = batch[key].expand(order.shape).gather(1, order)
    if "inputs_embeds" in batch:
        wide = order.unsqueeze(-1).expand(-1, -1, batch["inputs_embeds"].shape[-1])
        moved["inputs_embeds"] = batch["inputs_embeds"].gather(1, wide)
    return moved


def _at_last_token(inner: Any, batch: Mapping[str, Any], anatomy: Anatomy, head: str) -> Tensor:
    backbone = anatomy.backbone(inner)
    inputs = left_aligned(model_inputs(backbone, batch))
    if anatomy.encoder_decoder:
        inputs.setdefault("decoder_input_ids", shifted_right(inputs["input_ids"], inner.config))
    hidden = backbone(**inputs, use_cache=False)[0]
    if "attention_mask" in inputs:
        last = inputs["attention_mask"].sum(dim=1).clamp(min=1) - 1
        hidden = hidden[torch.arange(len(last), device=hidden.device), last]
    else:
        hidden = hidden[:, -1]
    return getattr(inner, head)(hidden)


@cache
def _classifies(model_class: type, config_class: type) -> bool:
    """Whether a class is the one transformers classifies texts with, for this config."""
    return compat.classifier_class(config_class) is model_class


def _prompted(model: Any) -> bool:
    """Whether PEFT puts trained prompts in front inside its own forward, which must then be the one that is called."""
    config = getattr(model, "active_peft_config", None)
    return bool(getattr(config, "is_prompt_learning", False))
