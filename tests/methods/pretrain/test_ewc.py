from __future__ import annotations

import pytest
import torch

from anytune.errors import MethodError
from anytune.methods import create
from anytune.methods.of_stream import measuring_batches
from anytune.methods.pretrain.ewc import EWC, running_mean, squared_gradients
from tests.methods.pretrain.little_stream import Little, close, same, sgd, weights

QUICK = {"examples": 6, "rows": 2}


@pytest.fixture
def little(tiny_base, tiny_domain):
    return lambda **given: Little(tiny_base, tiny_domain, **given)


def naive_fisher(made: Little, purpose: str, rows: int) -> dict[str, torch.Tensor]:
    sums, examples = {}, 0
    for batch in measuring_batches(made.run, EWC(), purpose, 6, rows):
        made.model.zero_grad()
        made.model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]
        ).loss.backward()
        count = len(batch["input_ids"])
        for name, parameter in made.named().items():
            if name.startswith("bert.") and parameter.grad is not None:
                sums[name] = sums.get(name, 0) + (count * parameter.grad) ** 2
        examples += count
    made.model.zero_grad()
    return {name: value / examples for name, value in sums.items()}


@pytest.fixture(scope="module")
def first_stage(tiny_base, tiny_domain):
    """A stage of one step on a base that carries nothing, and what it left."""
    made, method = Little(tiny_base, tiny_domain, steps=1), EWC(**QUICK)
    after = made.train([method])
    return made, after, made.finish(method)


def test_the_fisher_estimate_is_that_of_gradients_squared_by_hand(first_stage):
    made, _, carried = first_stage
    made.model.eval()
    fisher, naive = carried["ewc"]["fisher"], naive_fisher(made, "fisher", 2)
    assert "bert.encoder.layer.1.output.dense.weight" in fisher
    assert not any(name.startswith("cls.") for name in fisher), "the pre-training head is left free"
    close(fisher, {name: value.float() for name, value in naive.items()}, 1e-9)
    assert carried["ewc"]["stages"] == 1


def test_single_examples_give_the_mean_of_their_squared_gradients(first_stage):
    made, _, _ = first_stage
    name = "bert.encoder.layer.0.output.dense.weight"
    weight = {name: made.named()[name]}
    batches = list(measuring_batches(made.run, EWC(), "x", 3, 1))
    assert len(batches) == 3
    assert len(batches[0]["input_ids"]) == 1
    singles = [squared_gradients(made.model, weight, made.objective, [batch])[name] for batch in batches]
    together = squared_gradients(made.model, weight, made.objective, batches)[name]
    torch.testing.assert_close(together, sum(singles) / 3, rtol=1e-10, atol=0)


def test_measuring_has_an_order_and_masks_of_its_own_and_at_most_the_stage_once(first_stage):
    made, _, _ = first_stage
    batches = list(measuring_batches(made.run, EWC(), "x", 10**6, 4))
    assert len(batches) == made.batches.batches_per_epoch
    again = list(measuring_batches(made.run, EWC(), "x", 10**6, 4))
    assert all(torch.equal(one["input_ids"], other["input_ids"]) for one, other in zip(batches, again, strict=True))
    left, right = ((batch["labels"] != -100) for batch in batches[:2])
    assert (left & right).sum() < 0.5 * left.sum(), "every batch has masks of its own"
    other = next(measuring_batches(made.run, EWC(), "y", 4, 4))
    assert not torch.equal(other["input_ids"], batches[0]["input_ids"])
    assert not torch.equal(made.batches.batch(0)["input_ids"], batches[0]["input_ids"])
    made.run.batches, kept = type("Other", (), {"batches_per_epoch": 9, "batch": made.batches.batch})(), made.batches
    plain = list(measuring_batches(made.run, EWC(), "x", 5, 2))
    made.run.batches = kept
    assert len(plain) == 2, "batches that are not made of blocks are taken as they are"
    assert torch.equal(plain[1]["input_ids"], made.batches.batch(1)["input_ids"])


def test_a_first_stage_is_plain_training_bit_for_bit(first_stage, little):
    assert same(first_stage[1], little(steps=1).train([]))


def test_the_step_after_it_is_the_penalty_in_the_loss(first_stage, little):
    carried = first_stage[2]
    made, plain = little(carried=carried), little()
    start, named, fisher = weights(plain.model), plain.named(), carried["ewc"]["fisher"]
    optimizer = sgd(plain)
    for step in range(4):
        optimizer.zero_grad()
        far = sum((fisher[name] * (named[name] - start[name]).square()).sum() for name in fisher)
        (plain.loss(step) + 300.0 / 2 * far).backward()
        torch.nn.utils.clip_grad_norm_(list(named.values()), 0.5)
        optimizer.step()
    held = made.train([EWC(strength=300.0)], optimizer=sgd(made), clip=0.5)
    close(held, weights(plain.model))
    free = little()
    assert not same(held, free.train([], optimizer=sgd(free), clip=0.5))


def test_what_mattered_moves_less_than_without(first_stage, little):
    """Weighted by F, as the penalty is: the rest is free to move."""
    carried = first_stage[2]
    fisher, start = carried["ewc"]["fisher"], weights(little().model)

    def moved(strength):
        made = little(carried=carried, steps=12)
        after = made.train([EWC(strength=strength, **QUICK)], optimizer=sgd(made))
        return sum((fisher[name] * (after[name] - start[name]).square()).sum().item() for name in fisher)

    assert moved(30.0) < 0.75 * moved(0.0)


def test_the_fisher_matrix_is_a_running_mean_over_stages(first_stage, little):
    carried = first_stage[2]
    made, method = little(carried=carried), EWC(**QUICK)
    made.train([method])
    left = made.finish(method)["ewc"]
    made.model.eval()
    now = naive_fisher(made, "fisher", 2)
    expected = {name: (carried["ewc"]["fisher"][name] + now[name]) / 2 for name in now}
    close(left["fisher"], {name: value.float() for name, value in expected.items()}, 1e-9)
    assert left["stages"] == 2
    one, other = {"a": torch.tensor([1.0]), "b": torch.tensor([5.0])}, {"a": torch.tensor([4.0]), "c": torch.ones(1)}
    mean = running_mean(one, other, 2)
    assert {name: value.item() for name, value in mean.items()} == pytest.approx({"a": 2.0, "b": 5.0, "c": 1.0})


def test_an_estimate_before_the_first_stage_holds_the_base(little):
    made, method = little(dropout=0.3), EWC(first="estimate", **QUICK)
    made.model.train()
    before = weights(made.model)
    made.prepared(method)
    assert made.model.training
    assert same(weights(made.model), before)
    assert all(parameter.grad is None for parameter in made.named().values())
    fisher = method._before
    made.model.eval()
    close(fisher, naive_fisher(made, "fisher-before", 2), 1e-12)
    torch.manual_seed(0)
    held = made.train([method], prepared=True)
    torch.manual_seed(0)
    free = little(dropout=0.3).train([])
    assert not same(held, free)
    assert made.finish(method)["ewc"]["stages"] == 2


def test_sampled_labels_are_the_models_own_words(little):
    made = little()
    sure = torch.zeros(3, 5, dtype=torch.float64)
    sure[:, 2] = 1e4
    seen = []

    class Certain:
        def forward(self, model, batch):
            scale = model.bert.embeddings.LayerNorm.bias.sum() * 0
            return type("Answer", (), {"logits": sure + scale, "labels": torch.tensor([0, 1, 2])})()

        def terms(self, output, batch):
            seen.append(output.labels.tolist())
            return {"loss": output.loss}

    name = "bert.embeddings.LayerNorm.bias"
    batch = {"input_ids": torch.zeros(3, 2, dtype=torch.long)}
    squared_gradients(made.model, {name: made.named()[name]}, Certain(), [batch], torch.Generator())
    assert seen == [[2, 2, 2]]
    by = {}
    for labels in ("text", "sampled", "sampled again"):
        one, method = little(), EWC(labels=labels.split()[0], first="estimate", **QUICK)
        state = torch.get_rng_state()
        one.prepared(method)
        assert torch.equal(torch.get_rng_state(), state)
        by[labels] = method._before
    assert same(by["sampled"], by["sampled again"])
    assert not same(by["sampled"], by["text"])


def test_kept_in_main_memory_it_gives_the_same_bits(first_stage, little):
    carried = first_stage[2]
    after = [little(carried=carried).train([EWC(place=place)]) for place in ("device", "cpu")]
    assert same(*after)


def test_without_strength_nothing_is_measured_kept_or_left(little):
    made, method = little(steps=1), EWC(strength=0.0, first="estimate")
    made.train([method])
    assert made.finish(method) == {"ewc": {}}
    assert not method._before


def test_a_fisher_matrix_for_another_model_is_an_error(first_stage, little):
    for fisher, match in (
        ({"encoder.strange": torch.ones(2)}, "left with this base is for other weights, first encoder.strange"),
        ({"bert.embeddings.LayerNorm.bias": torch.ones(2)}, r"has the shape \[2\], the weight \[32\]"),
    ):
        made = little(carried={"ewc": {"fisher": fisher, "stages": 1}})
        with pytest.raises(MethodError, match=match):
            made.prepared(EWC())
    made = little(carried=first_stage[2])
    for parameter in made.named().values():
        parameter.requires_grad_(False)
    for name in ("ewc", "l2_anchor", "cotta"):
        with pytest.raises(MethodError, match="found no weight of the base that is trained"):
            made.prepared(create(f"pretrain/{name}"))
    made.model.cls.predictions.bias.requires_grad_(True)
    with pytest.raises(MethodError, match="ewc found no weight of the backbone that is trained"):
        made.prepared(EWC())
