from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification
from transformers.utils import logging


@pytest.fixture(autouse=True)
def _quiet():
    logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def config():
    return BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16, num_labels=2, pad_token_id=0,
    )  # fmt: skip


@pytest.fixture
def bert(config):
    return BertForSequenceClassification(config).eval()


@pytest.fixture
def ids():
    return torch.tensor([[2, 5, 6, 3], [2, 7, 8, 3]])
