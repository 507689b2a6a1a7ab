from __future__ import annotations

import pytest
import torch

from anytune.errors import DataError
from anytune.models.anatomy import anatomy_of
from anytune.models.language_modelling import causal_lm_loss, language_model_loss, masked_lm_loss, model_inputs
from tests.models.conftest import tiny_model


def labelled(batch, causal: bool = False):
    ids = batch["input_ids"]
    chosen = torch.rand(ids.shape, generator=torch.Generator().manual_seed(3)) < 0.4
    chosen = chosen if not causal else torch.ones_like(chosen)
    return batch | {"labels": torch.where(chosen & (batch["attention_mask"] == 1), ids, -100)}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "llama"])
def test_the_loss_at_labelled_positions_is_the_stock_loss_and_so_are_its_gradients(kind, dtype, tolerance, batch):
    model = tiny_model(kind).to(dtype)
    batch = labelled(batch, causal=kind == "llama")

    def gradients(loss):
        model.zero_grad()
        loss.backward()
        return torch.cat([weight.grad.reshape(-1) for weight in model.parameters() if weight.grad is not None])

    ours, stock = language_model_loss(model, batch, anatomy_of(model)), model(**batch).loss
    # The stock causal loss is computed in fp32 whatever the weights are.
    allowed = tolerance if kind != "llama" else max(tolerance, 1e-6)
    assert ours.dtype == dtype
    assert abs(ours.item() - stock.item()) <= allowed
    assert (gradients(ours) - gradients(stock)).abs().max() <= allowed


def test_the_causal_loss_is_shifted_cross_entropy_written_out(batch):
    model = tiny_model("llama").double()
    batch = labelled(batch, causal=True)
    predicted = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(-1)
    terms = [
        -predicted[row, place - 1, batch["labels"][row, place]]
        for row in range(3)
        for place in range(1, 10)
        if batch["labels"][row, place] != -100
    ]
    expected = torch.stack(terms).mean()
    assert abs((causal_lm_loss(model, batch, anatomy_of(model)) - expected).item()) <= 1e-12


def test_a_sum_is_the_mean_times_the_labelled_positions(batch):
    model, batch = tiny_model(), labelled(batch)
    count = int((batch["labels"] != -100).sum())
    total = masked_lm_loss(model, batch, anatomy_of(model), reduction="sum")
    assert torch.isclose(total, masked_lm_loss(model, batch, anatomy_of(model)) * count)


def test_the_vocabulary_is_computed_at_labelled_positions_only(batch):
    model, batch = tiny_model(), labelled(batch)
    seen = []
    model.cls.register_forward_hook(lambda _module, _given, out: seen.append(out.shape))
    masked_lm_loss(model, batch, anatomy_of(model))
    assert seen == [((batch["labels"] != -100).sum(), 96)]


def test_a_batch_without_labels_gives_zero_and_zero_gradients(batch):
    model = tiny_model()
    loss = masked_lm_loss(model, batch | {"labels": torch.full((3, 10), -100)}, anatomy_of(model))
    loss.backward()
    assert loss.item() == 0.0
    assert all(not weight.grad.any() for weight in model.parameters() if weight.grad is not None)


def test_half_precision_weights_give_a_loss_in_fp32(batch):
    model = tiny_model().to(torch.bfloat16)
    assert masked_lm_loss(model, labelled(batch), anatomy_of(model)).dtype == torch.float32


def test_only_inputs_that_the_model_names_are_handed_to_it(batch):
    more = batch | {"labels": 1, "num_items": 3, "teacher": 0, "token_type_ids": torch.zeros_like(batch["input_ids"])}
    assert set(model_inputs(tiny_model("bert").bert, more)) == {"input_ids", "attention_mask", "token_type_ids"}
    assert set(model_inputs(tiny_model("distilbert").distilbert, more)) == {"input_ids", "attention_mask"}


def test_a_batch_without_input_is_refused():
    with pytest.raises(DataError, match="only labels"):
        model_inputs(tiny_model().bert, {"labels": 1})
