from __future__ import annotations

import pytest
import torch

from anytune.models.base import load_base
from anytune.models.dropout import set_dropout
from tests.models.kinds import KINDS, make_kind


@pytest.mark.parametrize("kind", KINDS)
def test_every_dropout_of_a_kind_is_reached(kind, tmp_path):
    base = load_base(make_kind(kind, tmp_path))
    model, _ = base.task_model("classification", ["a", "b"], 0)
    batch = base.tokenizer()(["the cat sat on the mat"], return_tensors="pt")
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}

    def twice() -> list[torch.Tensor]:
        model.train()
        return [model(**inputs).logits for _ in range(2)]

    assert set_dropout(model, 0.5) > 0
    one, other = twice()
    assert not torch.equal(one, other)
    set_dropout(model, 0.0)
    one, other = twice()
    assert torch.equal(one, other)
    model.eval()
    assert torch.equal(model(**inputs).logits, one)
