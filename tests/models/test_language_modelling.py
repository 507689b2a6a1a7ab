from __future__ import annotations

import pytest
import torch

from anytune.errors import DataError
from anytune.models.anatomy import anatomy_of
from anytune.models.language_modelling import (
    causal_lm_loss,
    language_model_loss,
    masked_lm_loss,
    model_inputs,
    span_lm_loss,
)
from tests.models.conftest import tiny_model
from tests.models.kinds import DECODERS, KINDS, VARIANTS, make_model


def labelled(batch, causal: bool = False):
    ids = batch["input_ids"]
    chosen = torch.rand(ids.shape, generator=torch.Generator().manual_seed(3)) < 0.4
    chosen = chosen if not causal else torch.ones_like(chosen)
    return batch | {"labels": torch.where(chosen & (batch["attention_mask"] == 1), ids, -100)}


def kind_batch(kind: str, model) -> dict:
    """Three rows of random ids with labels as the kind's objective has them, the last row padded."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(5, 90, (3, 10), generator=generator)
    attention = torch.ones_like(ids)
    attention[2, 6:] = 0
    batch = {"input_ids": ids.masked_fill(attention == 0, 1 if kind == "roberta" else 0), "attention_mask": attention}
    if not kind.startswith("t5"):
        return labelled(batch, causal=kind in DECODERS)
    targets = torch.randint(5, 90, (3, 6), generator=generator)
    targets[1, 4:] = -100
    return batch | {"labels": targets}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("kind", [*KINDS, *VARIANTS])
def test_the_loss_at_labelled_positions_is_the_stock_loss_and_so_are_its_gradients(kind, dtype, tolerance):
    model = make_model(kind, 96).to(dtype)
    batch = kind_batch(kind, model)

    def gradients(loss):
        model.zero_grad()
        loss.backward()
        return torch.cat([weight.grad.reshape(-1) for weight in model.parameters() if weight.grad is not None])

    ours, stock = language_model_loss(model, batch, anatomy_of(model)), model(**batch).loss
    # The stock loss of decoders and ModernBERT is computed in fp32 whatever the weights are.
    allowed = max(tolerance, 1e-6) if kind in (*DECODERS, "modernbert") else tolerance
    assert ours.dtype == dtype
    assert abs(ours.item() - stock.item()) <= allowed
    assert (gradients(ours) - gradients(stock)).abs().max() <= allowed


@pytest.mark.parametrize("kind", [*KINDS, *VARIANTS])
def test_every_kind_computes_its_vocabulary_at_labelled_positions_only(kind):
    model = make_model(kind, 96)
    anatomy, batch = anatomy_of(model), kind_batch(kind, model)
    seen = []
    last = model.get_submodule(anatomy.pretraining_head[-1])
    last.register_forward_hook(lambda _module, given, _out: seen.append(tuple(given[0].shape[:-1])))
    language_model_loss(model, batch, anatomy)
    labels = batch["labels"][:, 1:] if anatomy.causal else batch["labels"]
    assert seen == [(int((labels != -100).sum()),)]


@pytest.mark.parametrize("kind", ["t5", "gpt2", "deberta-v2"])
def test_the_named_loss_of_each_objective_is_the_one_that_the_kind_takes(kind):
    model = make_model(kind, 96)
    anatomy, batch = anatomy_of(model), kind_batch(kind, model)
    named = {"mlm": masked_lm_loss, "clm": causal_lm_loss, "span": span_lm_loss}[anatomy.objective]
    assert torch.equal(named(model, batch, anatomy), language_model_loss(model, batch, anatomy))
    assert torch.isclose(named(model, batch, anatomy, "sum"), language_model_loss(model, batch, anatomy, "sum"))


def test_segment_ids_go_only_to_models_that_have_more_than_one_segment():
    more = {"input_ids": 0, "attention_mask": 0, "token_type_ids": 0}
    taking = [
        kind for kind in KINDS if "token_type_ids" in model_inputs(make_model(kind, 96, purpose="backbone"), more)
    ]
    assert taking == ["bert", "electra"]


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
