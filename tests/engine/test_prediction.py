from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from anytune.data.batches import encode_task, evaluation_batches
from anytune.data.tasks import load_task
from anytune.engine.prediction import language_loss, predict_logits, probabilities, task_evaluation
from anytune.engine.runtime import make_runtime
from anytune.models.base import load_base


def test_predictions_stand_in_the_order_of_the_examples_for_any_batch_size(tiny_base, tiny_task):
    base, task = load_base(tiny_base), load_task(tiny_task)
    model, _ = base.task_model(task.kind, task.label_names, 0)
    encoded = encode_task(task.train, base.tokenizer(), 32)
    runtime = make_runtime("fp32")
    alone = predict_logits(model, evaluation_batches(encoded, 1), len(encoded), runtime)
    together = predict_logits(model, evaluation_batches(encoded, 64), len(encoded), runtime)
    assert alone.shape == (len(task.train), 3)
    torch.testing.assert_close(alone, together, atol=1e-6, rtol=0)
    one = encoded.batch([5])
    with torch.no_grad():
        expected = model.eval()(one["input_ids"], one["attention_mask"], one["token_type_ids"]).logits[0]
    torch.testing.assert_close(alone[5], expected, atol=1e-6, rtol=0)


def test_predicting_leaves_the_model_in_the_mode_it_was_in(tiny_base, tiny_task):
    base, task = load_base(tiny_base), load_task(tiny_task)
    model, _ = base.task_model(task.kind, task.label_names, 0)
    encoded = encode_task(task.test, base.tokenizer(), 32)
    for mode in (True, False):
        model.train(mode)
        predict_logits(model, evaluation_batches(encoded, 8), len(encoded), make_runtime("fp32"))
        assert model.training is mode


def test_bf16_logits_come_back_as_fp32(tiny_base, tiny_task):
    base, task = load_base(tiny_base), load_task(tiny_task)
    model, _ = base.task_model(task.kind, task.label_names, 0)
    encoded = encode_task(task.test, base.tokenizer(), 32)
    logits = predict_logits(model, evaluation_batches(encoded, 8), len(encoded), make_runtime("bf16"))
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


def test_a_classification_is_scored_by_its_largest_logit_and_by_cross_entropy():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    found = task_evaluation(
        np.array([0, 1, 1]), "classification", lambda p, g: {"hits": float((p == g).mean())}, logits
    )
    assert found.scores == {"hits": pytest.approx(2 / 3)}
    assert found.better == found.scores["hits"]
    assert found.loss == pytest.approx(
        (math.log1p(math.exp(-2)) + math.log1p(math.exp(-1)) + math.log1p(math.exp(3))) / 3
    )


def test_a_regression_is_scored_by_its_value_and_by_squared_error():
    found = task_evaluation(
        np.array([1.0, 2.0], dtype=np.float32),
        "regression",
        lambda p, g: {"first": float(p[0])},
        torch.tensor([[1.5], [2.0]]),
    )
    assert found.scores == {"first": 1.5}
    assert found.loss == pytest.approx(0.125)


def test_probabilities_add_up_to_one():
    torch.testing.assert_close(probabilities(torch.randn(4, 3, generator=torch.Generator())).sum(-1), torch.ones(4))


def test_the_held_out_loss_is_a_mean_over_tokens_and_not_over_batches():
    objective = SimpleNamespace(forward=lambda model, batch: batch["x"], terms=lambda output, batch: {"loss": output})
    batches = [{"x": torch.tensor(1.0), "num_items": 30}, {"x": torch.tensor(4.0), "num_items": 10}]
    model = torch.nn.Linear(1, 1).train()
    assert language_loss(model, objective, batches, make_runtime("fp32")) == pytest.approx(1.75)
    assert model.training
