from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch

from anytune.methods.objective import Classification, Labelled, LanguageModelling, Regression, objective_for
from anytune.models.base import load_base
from anytune.models.language_modelling import model_inputs
from tests.models.kinds import WORDS, make_kind


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


def stock_batch(base, kind, rows=6, seed=0):
    """A padded batch of the kind of task, and the keys the stock model takes."""
    from anytune.data.batches import encode_task
    from anytune.data.tasks import Example

    draw = random.Random(seed)
    examples = []
    for _ in range(rows):
        words = tuple(draw.choices(WORDS, k=draw.randint(2, 7)))
        tags = tuple(draw.randrange(3) for _ in words)
        response = " ".join(draw.choices(WORDS, k=draw.randint(1, 5)))
        tagged = kind == "token-classification"
        examples.append(Example(" ".join(words), None, tags if tagged else response, words if tagged else None))
    encoded = encode_task(examples, base.tokenizer(), 40, kind, base.anatomy.encoder_decoder)
    return encoded, encoded.batch(range(rows))


CASES = [("bert", "token-classification"), ("gpt2", "token-classification"), ("llama", "token-classification"),
         ("t5", "token-classification"), ("gpt2", "generation"), ("llama", "generation"), ("t5", "generation"),
         ("t5-gated", "generation")]  # fmt: skip


@pytest.mark.parametrize(("model_kind", "kind"), CASES)
def test_losses_of_tags_and_responses_are_those_of_the_stock_model(model_kind, kind, tmp_path):
    base = load_base(make_kind(model_kind, tmp_path))
    model, _ = base.task_model(kind, ("O", "B-X", "I-X") if kind == "token-classification" else (), 0)
    _, batch = stock_batch(base, kind)
    stock = {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}
    objective = objective_for(kind, base.anatomy)
    output = objective.forward(model, batch)
    assert output.logits.shape[0] == batch["num_items"] == len(output.labels)
    loss = objective.terms(output, batch)["loss"]
    torch.testing.assert_close(loss, model(**stock).loss, atol=1e-6, rtol=1e-6)
    mine = torch.autograd.grad(loss, model.get_input_embeddings().weight)[0]
    theirs = torch.autograd.grad(model(**stock).loss, model.get_input_embeddings().weight)[0]
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("model_kind", "kind"), CASES)
def test_accumulated_micro_batches_equal_one_batch(model_kind, kind, tmp_path):
    base = load_base(make_kind(model_kind, tmp_path))
    names = ("O", "B-X", "I-X") if kind == "token-classification" else ()
    model, _ = base.task_model(kind, names, 0, torch.float64)
    encoded, whole = stock_batch(base, kind)
    objective = objective_for(kind, base.anatomy)

    def gradient(batches):
        model.zero_grad()
        for batch in batches:
            loss = objective.terms(objective.forward(model, batch), batch)["loss"]
            (loss * batch["num_items"] / whole["num_items"]).backward()
        return model.get_input_embeddings().weight.grad.clone()

    pieces = [encoded.batch(rows) for rows in ([0], [1, 2], [3, 4, 5])]
    assert sum(piece["num_items"] for piece in pieces) == whole["num_items"]
    torch.testing.assert_close(gradient(pieces), gradient([whole]), atol=1e-12, rtol=1e-9)


def test_a_batch_without_a_label_gives_a_loss_of_zero():
    output = Labelled(torch.zeros(0, 3, requires_grad=True), torch.zeros(0, dtype=torch.int64))
    assert output.loss.item() == 0
    output.loss.backward()
