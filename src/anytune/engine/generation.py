"""Greedy responses of decoders and encoder-decoders.

Greedy, because a score must not depend on a draw: the likeliest token each time, until the end-of-text token or the
longest response allowed. Prompts of similar length share a batch; a decoder's are padded on the left, so that every
response begins where its prompt ends.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from anytune import compat
from anytune.data.batches import Encoded, evaluation_batches
from anytune.engine.runtime import Runtime
from anytune.models.language_modelling import NO_LABEL

#: No response of an evaluation grows longer, whatever stands in the data.
LONGEST_RESPONSE = 256


@dataclass(frozen=True)
class GreedyDecoding:
    """How responses are made.

    Attributes:
        tokenizer: turns tokens back into text and knows the end-of-text token.
        max_new_tokens: of a response, its end token included.
        position_limit: the longest prompt and response together, None for no limit.
        encoder_decoder: the prompt is read by an encoder and does not come back in front of the response.
    """

    tokenizer: Any
    max_new_tokens: int
    position_limit: int | None
    encoder_decoder: bool

    @torch.no_grad()
    def respond(self, model: nn.Module, prompts: Encoded, batch_size: int, runtime: Runtime) -> list[str]:
        """Responses as text, without special tokens and outer white space, in the order of the prompts.

        Args:
            model: a generating task model, or a PEFT wrapping of one.
            prompts: from ``data.batches.encode_prompts`` or ``prompts_of``.
        """
        answers = [""] * len(prompts)
        was_training = model.training
        model.eval()
        autocast = runtime.autocast() or contextlib.nullcontext
        for rows, batch in evaluation_batches(prompts, batch_size):
            inputs = {key: batch[key].to(runtime.device) for key in ("input_ids", "attention_mask")}
            config = self._config(model, prompts.pad_id, int(prompts.lengths[rows.numpy()].max()))
            generate: Any = model.generate
            with autocast(), compat.quiet_transformers():
                tokens = generate(**inputs, generation_config=config)
            if not self.encoder_decoder:
                tokens = tokens[:, inputs["input_ids"].shape[1] :]
            texts = self.tokenizer.batch_decode(tokens.tolist(), skip_special_tokens=True)
            for row, text in zip(rows.tolist(), texts, strict=True):
                answers[row] = text.strip()
        model.train(was_training)
        return answers

    def _config(self, model: Any, pad_id: int, longest: int) -> Any:
        """Greedy decoding, whatever the model's own generation settings say."""
        from transformers import GenerationConfig

        room = self.max_new_tokens
        if self.position_limit is not None and not self.encoder_decoder:
            room = max(1, min(room, self.position_limit - longest))
        return GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=room,
            pad_token_id=pad_id,
            eos_token_id=end_ids(self.tokenizer, model.config),
            bos_token_id=self.tokenizer.bos_token_id,
            decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
            use_cache=True,
        )


def end_ids(tokenizer: Any, config: Any) -> list[int]:
    """The tokens that end a response: the tokenizer's, which training puts there, and those of the model's config."""
    named = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    return list(dict.fromkeys(one for one in (tokenizer.eos_token_id, *named) if one is not None))


def prompts_of(encoded: Encoded, count: int | None = None) -> Encoded:
    """The prompts of an encoded generation task (the first ``count``), cut as they were in training.

    A decoder's row holds prompt and response, which begins at the first label.
    """
    rows, labels = encoded.input_ids[:count], list(encoded.labels or [])[:count]
    if encoded.layout == "target":
        prompts = rows
    else:
        begins = [next(place for place, label in enumerate(row) if label != NO_LABEL) for row in labels]
        prompts = [ids[:begin] for ids, begin in zip(rows, begins, strict=True)]
    return replace(
        encoded,
        input_ids=prompts,
        labels=None,
        lengths=np.array([len(ids) for ids in prompts], dtype=np.int64),
        padding_side="right" if encoded.layout == "target" else "left",
    )


def longest_response(encoded: Encoded) -> int:
    """Tokens of the longest response of an encoded generation task, its end token included; at most 256."""
    longest = max(sum(label != NO_LABEL for label in labels) for labels in list(encoded.labels or []))
    return min(longest, LONGEST_RESPONSE)
