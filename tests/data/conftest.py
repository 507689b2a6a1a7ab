"""Small tokenizers and texts for the tests of this room: built here, nothing is downloaded."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = [f"{first}{second}" for first in "bdfgklmnprstvz" for second in ("a", "e", "i", "o", "u", "ai", "or")]
PIECES = ["##s", "##ed", "##ing", "##x"]


def wordpiece() -> PreTrainedTokenizerFast:
    """A BERT-kind tokenizer of about a hundred words.

    Unless told otherwise it cuts at 6 tokens and pads to 32, as some tokenizer files do.
    """
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: place for place, token in enumerate([*specials, *WORDS, *PIECES])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(6)
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]", length=32)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=6,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def causal(**specials: str) -> PreTrainedTokenizerFast:
    """A GPT-kind tokenizer: an end-of-text token unless ``specials`` say otherwise, no padding token."""
    named = specials or {"eos_token": "<|end|>"}
    vocabulary = {token: place for place, token in enumerate(["<unk>", *named.values(), *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=["input_ids", "attention_mask"], **named
    )


@pytest.fixture(scope="session")
def bert_tokenizer() -> PreTrainedTokenizerFast:
    return wordpiece()


@pytest.fixture(scope="session")
def gpt_tokenizer() -> PreTrainedTokenizerFast:
    return causal()
