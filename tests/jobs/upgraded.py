"""Upgrades of the tiny base that change its words, its positions or its shape, written as folders."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS = "model.safetensors"


def changed(
    source: Path,
    target: Path,
    weights: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
    config: Mapping[str, Any] | None = None,
    words: Callable[[dict[str, int]], dict[str, int]] | None = None,
) -> Path:
    """A copy of a base with other weights, other settings, another vocabulary."""
    shutil.copytree(source, target)
    save_file(weights(load_file(source / WEIGHTS)), target / WEIGHTS, {"format": "pt"})
    settings = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**settings, **(config or {})}))
    if words is not None:
        tokenizer = json.loads((source / "tokenizer.json").read_text())
        tokenizer["model"]["vocab"] = words(tokenizer["model"]["vocab"])
        (target / "tokenizer.json").write_text(json.dumps(tokenizer))
    return target


def renumbered(source: Path, target: Path, seed: int = 3, added: int = 7, padded: int = 5) -> Path:
    """The same base with its words in another order, the unused ones dropped, new ones added and a longer table.

    It answers every text as the first one does: each word has its old row under a new number.
    """
    vocabulary = json.loads((source / "tokenizer.json").read_text())["model"]["vocab"]
    specials = [word for word in vocabulary if word.startswith("[") and "unused" not in word]
    kept = [word for word in vocabulary if word not in specials and "unused" not in word]
    random.Random(seed).shuffle(kept)
    after = {word: number for number, word in enumerate([*specials, *kept, *(f"novelty{n}" for n in range(added))])}
    rows = len(after) + padded

    def words(_: dict[str, int]) -> dict[str, int]:
        return after

    def weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
        draw, moved = torch.Generator().manual_seed(seed), {}
        for name, tensor in state.items():
            if tensor.shape[:1] == (len(vocabulary),):
                fresh = torch.randn((rows, *tensor.shape[1:]), generator=draw) * 0.02
                for word, row in after.items():
                    if word in vocabulary:
                        fresh[row] = tensor[vocabulary[word]]
                tensor = fresh
            moved[name] = tensor.contiguous()
        return moved

    return changed(source, target, weights, {"vocab_size": rows}, words)


def positions(source: Path, target: Path, count: int) -> Path:
    """The same base with a longer or shorter table of positions; new rows are random."""

    def weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
        name = "bert.embeddings.position_embeddings.weight"
        fresh = torch.randn((count, state[name].shape[1]), generator=torch.Generator().manual_seed(1)) * 0.02
        both = min(count, len(state[name]))
        fresh[:both] = state[name][:both]
        return {**state, name: fresh}

    return changed(source, target, weights, {"max_position_embeddings": count})


def nudged(source: Path, target: Path, seed: int = 0) -> Path:
    """The same base after some more pre-training: every weight a little off."""

    def weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(seed)
        return {name: tensor + torch.randn(tensor.shape, generator=draw) * 0.01 for name, tensor in state.items()}

    return changed(source, target, weights)


def other_shape(target: Path, **settings: Any) -> Path:
    """A random base of the tiny one's kind and words in another shape."""
    from transformers import BertConfig, BertForMaskedLM

    from anytune import compat
    from tests.conftest import VOCABULARY, write_tiny_tokenizer

    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 64, "max_position_embeddings": 64, "pad_token_id": 0}  # fmt: skip
    with compat.seeded(7), compat.quiet_transformers():
        BertForMaskedLM(BertConfig(**{**sizes, **settings})).save_pretrained(target)
    write_tiny_tokenizer(target)
    return target
