from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from anytune.data.masking import IGNORED
from anytune.errors import MethodError
from anytune.methods.pretrain.derpp import DERpp, by_rows, hidden_words, scored, squared_errors
from tests.methods.pretrain.little_stream import Little, same


def second_stage(base, domain, dropout=0.0, first=None, **settings):
    """A stage after one of two steps, with what that one left; the model is the one that stage ended with."""
    begun, method = Little(base, domain, steps=2, dropout=dropout), DERpp(**(first or settings))
    begun.train([method])
    carried = begun.finish(method)
    little = Little(base, domain, carried=carried, dropout=dropout, seed=5)
    little.model.load_state_dict(begun.model.state_dict())
    return little, carried["derpp"]


def terms_of(little, method, step=0):
    little.model.train()
    batch = method.prepare_batch(little.batches.batch(step))
    output = little.objective.forward(little.model, batch)
    return method.objective(little.model, batch, output, little.objective.terms(output, batch)), batch


def test_each_row_weighs_what_it_is_given_whatever_its_number_of_items():
    losses, weights = torch.tensor([1.0, 3.0, 10.0, 7.0, 8.0, 9.0]), torch.tensor([0.5, 0.25, 4.0, 0.125])
    found = by_rows(losses, [2, 1, 0, 3], weights)
    assert found.item() == pytest.approx(0.5 * 2.0 + 0.25 * 10.0 + 0.125 * 8.0)
    assert by_rows(losses[:0], [0], weights[:1]).item() == 0.0


def test_errors_are_squared_and_averaged_over_the_width():
    now = torch.tensor([[1.0, 2.0], [0.0, 0.0]], requires_grad=True)
    found = squared_errors(now, torch.tensor([[1.0, 4.0], [3.0, 1.0]], dtype=torch.bfloat16))
    assert found.tolist() == [2.0, 5.0]
    found.sum().backward()
    assert torch.equal(now.grad, torch.tensor([[0.0, -2.0], [-3.0, -1.0]]))
    with pytest.raises(MethodError, match=r"shape \[2, 3\] were stored, the model's are \[2, 2\]"):
        squared_errors(now, torch.zeros(2, 3))


@pytest.mark.parametrize("outputs", ["hidden", "logits"])
def test_what_is_stored_is_what_the_model_puts_out_at_the_end_of_the_stage(outputs, tiny_base, tiny_domain):
    little, state = second_stage(tiny_base, tiny_domain, dropout=0.3, size=6, outputs=outputs)
    beside = state["beside"]
    assert state["outputs"] == outputs
    assert len(state["blocks"]) == 6
    assert beside["outputs"].dtype == torch.bfloat16
    little.model.eval()
    for row in range(6):
        read, labels = beside["read"][row : row + 1].long(), beside["labels"][row : row + 1].long()
        assert torch.equal(torch.where(labels == IGNORED, read, labels)[0], state["blocks"][row].long())
        assert (labels != IGNORED).sum() == 5, "15 % of 32"
        stock = little.model(input_ids=read, output_hidden_states=True)
        wanted = (stock.hidden_states[-1] if outputs == "hidden" else stock.logits)[labels != IGNORED]
        found = beside["outputs"][row].double()
        torch.testing.assert_close(found, wanted, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("outputs", ["hidden", "logits"])
def test_without_dropout_the_distance_is_rounding_as_the_next_stage_begins_and_grows(outputs, tiny_base, tiny_domain):
    little, _ = second_stage(tiny_base, tiny_domain, outputs=outputs, share=0.5)
    method = little.prepared(DERpp(outputs=outputs, share=0.5))
    terms, _ = terms_of(little, method)
    assert 0 < terms["dark"].item() < 1e-4
    with torch.no_grad():
        for weight in little.model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    assert terms_of(little, method)[0]["dark"].item() > 1e-2


def test_both_terms_are_what_a_naive_loop_over_the_rows_gives(tiny_base, tiny_domain):
    settings = {"alpha": 0.7, "beta": 0.3, "share": 0.5}
    little, _ = second_stage(tiny_base, tiny_domain, **settings)
    with torch.no_grad():
        for weight in little.model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    method = little.prepared(DERpp(**settings))
    terms, batch = terms_of(little, method)
    met = batch["derpp"]
    assert met.places == [1, 3]
    beside = (batch["labels"] != IGNORED).sum(dim=1)[met.places].double() / batch["num_items"]
    dark, replay, start = 0.0, 0.0, 0
    for number, weight in enumerate(beside):
        row = {key: values[number : number + 1] for key, values in met.inputs.items()}
        hidden = little.model.bert(row["input_ids"], attention_mask=row["attention_mask"])[0][row["labels"] != IGNORED]
        stored = met.outputs[start : start + len(hidden)].double()
        start += len(hidden)
        dark += weight * (hidden - stored).square().mean()
        row = {key: values[number + 2 : number + 3] for key, values in met.inputs.items()}
        logits = little.model(row["input_ids"], attention_mask=row["attention_mask"]).logits
        replay += weight * functional.cross_entropy(logits.flatten(0, 1), row["labels"].flatten())
    assert terms["dark"].item() == pytest.approx(0.7 * (dark / 0.5).item(), rel=1e-10)
    assert terms["replay"].item() == pytest.approx(0.3 * (replay / 0.5).item(), rel=1e-10)
    assert terms["loss"].item() == pytest.approx(little.loss(0).item(), rel=1e-12), "the batch's own loss is as ever"


def test_the_first_stage_is_plain_training_and_each_weight_alone_brings_its_own_term(tiny_base, tiny_domain):
    assert same(Little(tiny_base, tiny_domain).train([DERpp()]), Little(tiny_base, tiny_domain).train([]))
    for settings, names in (({"alpha": 0.0}, {"loss", "replay"}), ({"beta": 0.0}, {"loss", "dark"})):
        little, state = second_stage(tiny_base, tiny_domain, **settings)
        assert set(terms_of(little, little.prepared(DERpp(**settings)))[0]) == names
        assert bool(state["beside"]) == ("alpha" not in settings), "what nobody compares is not stored"


def test_blocks_of_earlier_stages_keep_what_was_stored_with_them(tiny_base, tiny_domain):
    little, state = second_stage(tiny_base, tiny_domain, size=8)
    method = DERpp(size=8)
    little.train([method])
    after = little.finish(method)["derpp"]
    before = {tuple(row): place for place, row in enumerate(state["beside"]["read"].tolist())}
    kept = [(place, before[tuple(row)]) for place, row in enumerate(after["beside"]["read"].tolist())
            if tuple(row) in before]  # fmt: skip
    assert 0 < len(kept) < 8
    for now, then in kept:
        assert torch.equal(after["beside"]["outputs"][now], state["beside"]["outputs"][then])
        assert torch.equal(after["blocks"][now], state["blocks"][then])
    assert after["seen"] == state["seen"] + 16
    assert after["beside"]["outputs"].abs().sum(dim=(1, 2)).min() > 0, "each block has its outputs"


def test_what_cannot_be_compared_is_refused(tiny_base, tiny_domain):
    little, _ = second_stage(tiny_base, tiny_domain)
    with pytest.raises(MethodError, match="has stored hidden with its blocks, and is to compare logits") as caught:
        little.prepared(DERpp(outputs="logits"))
    assert caught.value.fix == "--set outputs=hidden"
    little, _ = second_stage(tiny_base, tiny_domain, alpha=0.0)
    with pytest.raises(MethodError, match="has stored no outputs") as caught:
        little.prepared(DERpp())
    assert caught.value.fix == "--set alpha=0"


def test_outputs_that_would_fill_the_memory_are_refused_before_anything_is_trained(tiny_base, tiny_domain):
    little = Little(tiny_base, tiny_domain)
    # 10000 blocks * 5 positions * 200 words * 2 bytes
    with pytest.raises(MethodError, match="would store 20 MB of outputs: 10000 blocks with 5 scored positions of 200"):
        little.prepared(DERpp(outputs="logits", size=10_000, most_megabytes=10))
    little.prepared(DERpp(outputs="logits", size=4_999, most_megabytes=10))
    little.prepared(DERpp(outputs="hidden", size=10_000, most_megabytes=10))


def test_equally_many_words_are_hidden_in_every_row(tiny_base, tiny_domain):
    batches = Little(tiny_base, tiny_domain).batches
    batch = hidden_words(batches, batches.blocks[[0, 5, 2]], 1)
    assert scored(batch["labels"], causal=False) == [5, 5, 5]
    assert torch.equal(batch["labels"], hidden_words(batches, batches.blocks[[0, 5, 2]], 1)["labels"])
