"""Tiny random models from config: nothing is downloaded, each is made in milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from anytune import compat

KINDS = ("bert", "roberta", "distilbert", "llama")
VOCABULARY = 96
LABELS = ("red", "green", "blue")


def tiny_config(kind: str):
    from transformers import BertConfig, DistilBertConfig, LlamaConfig, RobertaConfig

    sizes = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "max_position_embeddings": 40, "vocab_size": VOCABULARY,
    }  # fmt: skip
    if kind == "distilbert":
        return DistilBertConfig(vocab_size=VOCABULARY, dim=16, n_layers=2, n_heads=2, hidden_dim=32,
                                max_position_embeddings=40)  # fmt: skip
    if kind == "llama":
        return LlamaConfig(**sizes, num_key_value_heads=1, tie_word_embeddings=True, pad_token_id=0)
    return {"bert": BertConfig, "roberta": RobertaConfig}[kind](**sizes)


def scatter(model: nn.Module, seed: int) -> nn.Module:
    """Move every weight (biases and norms start at exact zeros and ones, which would hide mistakes)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.05)
    return model


def tiny_model(kind: str = "bert", purpose: str = "pretraining", seed: int = 0):
    """A random model: "pretraining" (with its head) or "backbone" (bare; for BERT with a pooler)."""
    from transformers import AutoModel

    config = tiny_config(kind)
    with compat.seeded(seed), compat.quiet_transformers():
        if purpose == "backbone":
            model = AutoModel.from_config(config)
        else:
            model = compat.model_class("clm" if kind == "llama" else "mlm", config)(config)
    return scatter(model, seed).eval()


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{index}" for index in range(VOCABULARY - 5))]
    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=40,
    ).save_pretrained(folder)  # fmt: skip


def save(model, folder: Path, tokenizer: bool = True, **options) -> Path:
    with compat.quiet_transformers():
        model.save_pretrained(folder, **options)
    if tokenizer:
        write_tokenizer(folder)
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ANYTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def make_base(tmp_path) -> Callable:
    """``make_base(name, kind, purpose, seed)`` -> Base, saved by transformers itself and loaded by us."""
    from anytune.models.base import load_base

    def make(name: str = "base", kind: str = "bert", purpose: str = "pretraining", seed: int = 0, dtype=None):
        model = tiny_model(kind, purpose, seed)
        return load_base(save(model.to(dtype) if dtype else model, tmp_path / name))

    return make


@pytest.fixture
def tuned():
    """``tuned(base, seed)`` -> (task model with every weight moved, head names)."""

    def make(base, seed: int = 1, dtype=torch.float32):
        model, head = base.task_model("classification", LABELS, seed=seed, dtype=dtype)
        return scatter(model, seed + 100).eval(), head

    return make


@pytest.fixture
def batch():
    """Three rows of token ids, the last padded; no id is a padding id."""
    ids = torch.randint(5, VOCABULARY, (3, 10), generator=torch.Generator().manual_seed(7))
    attention = torch.ones_like(ids)
    attention[2, 6:] = 0
    return {"input_ids": ids.masked_fill(attention == 0, 0), "attention_mask": attention}


def logits(model, batch) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def equal_bits(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and left[name].contiguous().reshape(-1).view(torch.uint8).equal(
            right[name].contiguous().reshape(-1).view(torch.uint8))
        for name in left
    )  # fmt: skip
