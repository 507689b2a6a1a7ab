from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from anytune.methods.objective import Classification, LanguageModelling, Regression
from anytune.models.base import load_base
from anytune.models.language_modelling import model_inputs


def test_only_inputs_reach_a_model():
    batch = {"input_ids": 1, "attention_mask": 2, "token_type_ids": 3, "labels": 4, "num_items": 5, "teacher_rows": 6}

    class Inside:
        def forward(self, input_ids, attention_mask, token_type_ids): ...

    class Named:
        def forward(self, input_ids, attention_mask, **rest): ...

        def get_base_model(self):  # PEFT's forward names no segment ids, the model inside does
            return Inside()

    assert model_inputs(Inside(), batch) == {"input_ids": 1, "attention_mask": 2, "token_type_ids": 3}
    assert model_inputs(Named(), batch) == {"input_ids": 1, "attention_mask": 2, "token_type_ids": 3}
    del Named.get_base_model
    assert model_inputs(Named(), batch) == {"input_ids": 1, "attention_mask": 2}
    assert model_inputs(Named(), {"input_ids": 1}) == {"input_ids": 1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_classification_loss_is_cross_entropy_in_full_precision(dtype):
    logits = torch.tensor([[1.0, 2.0], [0.5, -1.0]], dtype=dtype)
    batch = {"labels": torch.tensor([1, 0])}
    loss = Classification().terms(SimpleNamespace(logits=logits), batch)["loss"]
    wide = logits.double()
    expected = -(wide.log_softmax(-1)[[0, 1], [1, 0]]).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_a_regression_loss_is_squared_error_of_a_single_output():
    logits = torch.tensor([[1.0], [3.0]], dtype=torch.bfloat16)
    loss = Regression().terms(SimpleNamespace(logits=logits), {"labels": torch.tensor([1.5, 1.0])})["loss"]
    assert loss.item() == pytest.approx((0.25 + 4.0) / 2)


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_the_loss_is_that_of_the_stock_model(tiny_base, kind):
    base = load_base(tiny_base)
    names = ("a", "b", "c") if kind == "classification" else ()
    model, _ = base.task_model(kind, names, 0)
    model.eval()
    labels = torch.tensor([0, 2]) if names else torch.tensor([0.5, -1.0])
    batch = {"input_ids": torch.tensor([[2, 9, 3], [2, 11, 3]]), "attention_mask": torch.ones(2, 3, dtype=torch.long)}
    objective = Classification() if names else Regression()
    loss = objective.terms(objective.forward(model, batch), {**batch, "labels": labels})["loss"]
    assert loss.item() == model(**batch, labels=labels).loss.item()


def test_the_language_modelling_loss_is_that_of_the_stock_model(tiny_base):
    base = load_base(tiny_base)
    model, _ = base.pretraining_model(0)
    model.eval()
    labels = torch.tensor([[-100, 9, -100, -100], [-100, -100, 12, -100]])
    batch = {"input_ids": torch.tensor([[2, 4, 10, 3], [2, 11, 4, 3]]), "labels": labels,
             "attention_mask": torch.ones(2, 4, dtype=torch.long)}  # fmt: skip
    objective = LanguageModelling(base.anatomy)
    loss = objective.terms(objective.forward(model, batch), batch)["loss"]
    torch.testing.assert_close(loss, model(**batch).loss, atol=1e-6, rtol=0)
