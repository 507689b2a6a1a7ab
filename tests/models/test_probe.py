from __future__ import annotations

import pytest
import torch

from anytune.errors import BaseError, DeltaError
from anytune.models.probe import check_probe, make_probe
from tests.models.conftest import VOCABULARY, tiny_model


@pytest.mark.parametrize("purpose", ["pretraining", "backbone"])
def test_the_same_weights_answer_a_probe_as_before(purpose):
    probe = make_probe(tiny_model(purpose=purpose), VOCABULARY, seed=1)
    assert check_probe(tiny_model(purpose=purpose), probe) == 0.0
    assert max(len(row) for row in probe.outputs) <= 64


def test_a_transposed_matrix_is_caught_although_its_shape_and_name_fit(make_base, tuned):
    model, _ = tuned(make_base())
    probe = make_probe(model, VOCABULARY)
    with torch.no_grad():
        weight = model.bert.encoder.layer[0].attention.self.value.weight
        weight.copy_(weight.T.clone())
    with pytest.raises(DeltaError, match=r"answer .* where .* was recorded"):
        check_probe(model, probe)
    with pytest.raises(BaseError, match="base x answer"):
        check_probe(model, probe, what="base x", error=BaseError)


def test_weights_that_are_not_numbers_fail_the_probe():
    model = tiny_model()
    probe = make_probe(model, VOCABULARY)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.fill_(float("nan"))
    with pytest.raises(DeltaError, match="answer nan"):
        check_probe(model, probe)


def test_another_number_of_outputs_fails_the_probe(make_base):
    base = make_base()
    probe = make_probe(base.task_model("classification", ("a", "b"), 0)[0], VOCABULARY)
    with pytest.raises(DeltaError, match="3 values a row, 2 were recorded"):
        check_probe(base.task_model("classification", ("a", "b", "c"), 0)[0], probe)


def test_probing_leaves_modes_and_random_state_as_they_were():
    model = tiny_model().train()
    model.bert.eval()
    before = torch.get_rng_state()
    make_probe(model, VOCABULARY)
    assert model.training
    assert not model.bert.training
    assert torch.equal(torch.get_rng_state(), before)
