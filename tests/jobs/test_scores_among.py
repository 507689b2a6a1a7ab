"""The score of some of a split's rows is what a split of these rows alone would score, for every kind of task."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from anytune.data.tasks import Example
from anytune.engine.prediction import Tags
from anytune.jobs.scoring import Responses, Scorer

KEPT = np.array([0, 2, 3])


def scorer(kind: str, metric: str, labels: list, names: list[str]) -> Scorer:
    rows = [Example(f"text {place}", None, label) for place, label in enumerate(labels)]
    task = SimpleNamespace(kind=kind, metric=metric, validation=rows, label_names=names)
    return Scorer(task=task, encoded=None, split="validation", base=None, batch_size=2, runtime=None)


def test_of_classes_it_is_the_metric_of_these_rows():
    found = scorer("classification", "accuracy", [0, 1, 1, 0], ["a", "b"])
    logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert found.among(logits, KEPT) == pytest.approx(2 / 3)
    assert found.among(logits, np.arange(4)) == 0.5


def test_of_tags_it_is_f1_over_the_entities_of_these_rows():
    names = ["O", "B-x", "I-x"]
    found = scorer("token-classification", "f1_entities", [(1, 0), (1, 0), (0, 1), (0, 0)], names)
    tags = Tags(indices=[[1, 0], [0, 0], [0, 1], [0, 1]], probabilities=[], loss=0.0)
    # two of two entities found, one that is none: precision 2/3, recall 1
    assert found.among(tags, KEPT) == pytest.approx(2 * (2 / 3) / (2 / 3 + 1))


def test_of_responses_it_is_the_perplexity_per_token_or_the_share_that_match():
    losses = torch.tensor([[2.0, 1.0], [90.0, 2.0], [3.0, 2.0], [1.0, 5.0]])
    plain = scorer("generation", "perplexity", ["yes", "no", "yes", "no"], [])
    assert plain.among(Responses(losses, None), KEPT) == pytest.approx(float(np.exp(6 / 8)))
    exact = scorer("generation", "exact_match", ["yes", "no", "yes", "no"], [])
    assert exact.among(Responses(losses, ["yes", "yes", "no", "no"]), KEPT) == pytest.approx(2 / 3)
    for texts in (None, ["yes", "no"]):  # not all were decoded
        assert exact.among(Responses(losses, texts), KEPT) is None
