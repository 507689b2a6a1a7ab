"""Tiny models of every kind with a hypernetwork, and batches for them."""

from __future__ import annotations

import copy
import functools

import torch

from anytune import compat
from anytune.models.anatomy import anatomy_of
from anytune.models.hyperprompt import make_hyperprompt
from anytune.models.hyperprompt_config import HyperPromptConfig
from anytune.models.prompted import attach
from tests.models.kinds import DECODERS, KINDS, make_config, make_model

VOCABULARY = 96
LENGTH = 4
POSITION = ("after_first", "prepend", "append")
TABLES = ("bert", "roberta", "distilbert", "electra", "gpt2")
#: everything but gpt2's and llama's, which always stand in front
PLACES = [(kind, position) for kind in KINDS for position in POSITION if kind not in DECODERS or position == "prepend"]


@functools.cache
def _made(kind: str, position: str, purpose: str):
    if purpose == "pretraining":
        model = make_model(kind, VOCABULARY)
    else:
        config = make_config(kind, VOCABULARY)
        config.num_labels, config.pad_token_id = 3, 1 if kind == "roberta" else 0
        with compat.quiet_transformers(), compat.seeded(0):
            model = compat.model_class(purpose, config)(config).eval()
    config = HyperPromptConfig(components=3, length=LENGTH, position=position)
    attach(model, make_hyperprompt(model, config, 1), anatomy_of(model))
    return model


def prompted(kind: str, position: str = "after_first", purpose: str = "pretraining"):
    return copy.deepcopy(_made(kind, position, purpose))


def batch_of(kind: str, rows: int = 3, length: int = 10, seed: int = 7, pad: int = 4):
    ids = torch.randint(5, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    if pad:
        mask[-1, -pad:] = 0
    batch = {"input_ids": ids.masked_fill(mask == 0, 1 if kind == "roberta" else 0), "attention_mask": mask}
    if kind == "t5":
        batch["decoder_input_ids"] = ids[:, :5].clone()
    return batch
