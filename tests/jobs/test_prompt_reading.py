"""Reading texts with a prompt on every kind of model: features, neurons and places do not depend on padding."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from anytune import compat
from anytune.engine.runtime import make_runtime
from anytune.jobs.prompt_reading import activations, look, read_at
from anytune.models.anatomy import anatomy_of
from anytune.models.soft_prompt_config import SoftPromptConfig
from anytune.models.soft_prompts import attach_prompt, given_prompt_values, make_prompt
from tests.models.kinds import KINDS, make_config

VOCABULARY = 96


@functools.cache
def prompted(kind: str, prompt: str):
    """A tiny classifier with a prompt of three places that changes a lot."""
    config = make_config(kind, VOCABULARY)
    config.num_labels, config.pad_token_id = 3, 0
    with compat.quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = compat.model_class("sequence-classification", config)(config).eval()
    anatomy = anatomy_of(model)
    made = make_prompt(model, SoftPromptConfig(kind=prompt, length=3), anatomy, seed=1, std=0.5)
    attach_prompt(model, made, anatomy)
    return model, anatomy


def texts():
    draw = torch.Generator().manual_seed(3)
    return [torch.randint(5, VOCABULARY, (length,), generator=draw).tolist() for length in (9, 4, 7, 6)]


def batch(rows, width, side="right"):
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for place, row in enumerate(rows):
        start = 0 if side == "right" else width - len(row)
        ids[place, start : start + len(row)] = torch.tensor(row)
        mask[place, start : start + len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("prompt", ["deep", "input"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_seen_of_a_text_depends_on_it_alone(kind, prompt):
    model, anatomy = prompted(kind, prompt)
    rows, runtime = texts(), make_runtime("fp32")
    alone = [(torch.tensor([place]), batch([row], len(row))) for place, row in enumerate(rows)]
    together = [(torch.tensor([2, 0]), batch([rows[2], rows[0]], 12)), (torch.tensor([1, 3]), batch(rows[1::2], 8))]
    one, other = (look(model, anatomy, batches, runtime, logits=True, neurons=True) for batches in (alone, together))
    for pooling in one.pooled:
        assert torch.allclose(one.pooled[pooling], other.pooled[pooling], atol=2e-5), pooling
    assert torch.allclose(one.logits, other.logits, atol=2e-5)
    assert np.array_equal(one.neurons, other.neurons)
    assert len(activations(anatomy.backbone(model), anatomy)) == 2
    assert one.neurons.any()
    with given_prompt_values(model, None):
        plain = look(model, anatomy, alone, runtime)
    assert not torch.allclose(plain.pooled["mean"], one.pooled["mean"], atol=1e-4), "the prompt is read"


def test_the_place_that_is_read_is_the_first_token_or_the_last():
    right, left = batch(texts(), 10), batch(texts(), 10, "left")
    assert read_at(right["attention_mask"], last=False).tolist() == [0, 0, 0, 0]
    assert read_at(right["attention_mask"], last=True).tolist() == [8, 3, 6, 5]
    assert read_at(left["attention_mask"], last=False).tolist() == [1, 6, 3, 4]
    assert read_at(left["attention_mask"], last=True).tolist() == [9, 9, 9, 9]
