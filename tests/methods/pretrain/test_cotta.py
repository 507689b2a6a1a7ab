from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional

from anytune.methods.mixing import private_generator
from anytune.methods.pretrain.cotta import CoTTA, drawn_places, set_back
from tests.methods.pretrain.little_stream import Little, close, same, sgd, weights


@pytest.fixture
def little(tiny_base, tiny_domain):
    return lambda **given: Little(tiny_base, tiny_domain, **given)


def masks(count, probability, seeds):
    for seed in seeds:
        mask = torch.zeros(count)
        places = drawn_places(count, probability, torch.Generator().manual_seed(seed))
        assert torch.equal(places, places.unique()), "rising, each once"
        mask[places] = 1
        yield mask


@pytest.mark.parametrize("probability", [0.003, 0.2, 0.9])
def test_every_entry_is_drawn_for_itself_with_the_probability(probability):
    drawn = torch.stack(list(masks(50, probability, range(4000))))
    error = (probability * (1 - probability) / 4000) ** 0.5
    assert (drawn.mean(dim=0) - probability).abs().max() < 5 * error
    together = (drawn[:, 1:] * drawn[:, :-1]).mean()
    assert abs(together - probability**2) < 5 * (probability**2 / (4000 * 49)) ** 0.5 + 1e-4
    counts = drawn.sum(dim=1)
    assert counts.var().item() == pytest.approx(50 * probability * (1 - probability), rel=0.15)


def test_all_entries_with_certainty_and_none_of_nothing():
    assert drawn_places(5, 1.0, torch.Generator()).tolist() == [0, 1, 2, 3, 4]
    assert drawn_places(0, 0.5, torch.Generator()).tolist() == []
    assert len(drawn_places(10**6, 1e-4, torch.Generator().manual_seed(0))) == pytest.approx(100, abs=50)


def test_places_are_set_back_and_no_others():
    weight = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
    set_back(weight, -torch.ones(2, 3), torch.tensor([1, 5]))
    assert weight.tolist() == [[0.0, -1.0, 2.0], [3.0, 4.0, -1.0]]


def test_three_steps_are_those_of_the_naive_method(little):
    """By hand: soft cross-entropy with an average of weights, then each entry that is drawn gets its first value."""
    first = {name: value + 0.1 for name, value in weights(little().model).items() if name.startswith("bert.")}
    made = little(steps=3, carried={"cotta": {"first": first}})
    method = CoTTA(weight=0.7, momentum=0.6, restore=0.05)
    plain = little(steps=3)
    average = copy.deepcopy(plain.model).eval()
    optimizer = sgd(plain)
    names = plain.of_backbone()
    for step in range(3):
        batch = plain.batches.batch(step)
        chosen = batch["labels"] != -100
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        with torch.no_grad():
            taught = average(**inputs).logits[chosen].softmax(-1)
        logits = plain.model(**inputs).logits[chosen]
        loss = functional.cross_entropy(logits, batch["labels"][chosen])
        soft = -(taught * logits.log_softmax(-1)).sum(-1).mean()
        optimizer.zero_grad()
        (loss + 0.7 * soft).backward()
        optimizer.step()
        with torch.no_grad():
            for mine, theirs in zip(average.parameters(), plain.model.parameters(), strict=True):
                mine.mul_(0.6).add_(theirs, alpha=0.4)
            for index, name in enumerate(names):
                weight = plain.named()[name]
                places = drawn_places(weight.numel(), 0.05, private_generator(plain.run.seed, step, index))
                weight.view(-1)[places] = first[name].view(-1)[places]
    close(made.train([method], optimizer=sgd(made)), weights(plain.model), 1e-12)
    assert same(method.carry_state()["first"], first)


def test_the_term_is_zero_while_model_and_average_agree_and_has_no_gradient(little):
    made = little(dropout=0.0)
    method = made.prepared(CoTTA(restore=0.0))
    method.before_step(made.model)
    batch = made.batches.batch(0)
    output = made.objective.forward(made.model, batch)
    term = method.objective(made.model, batch, output, {})["consistency"]
    assert term.item() == 0
    assert all(g.abs().max() == 0 for g in torch.autograd.grad(term, [made.model.bert.embeddings.LayerNorm.bias]))
    nothing = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    output = made.objective.forward(made.model, nothing)
    term = method.objective(made.model, nothing, output, {})["consistency"]
    assert term.item() == 0
    term.backward()


def test_restoring_everything_gives_the_first_base_and_leaves_the_head(little):
    first = {name: value + 0.1 for name, value in weights(little().model).items() if name.startswith("bert.")}
    made = little(carried={"cotta": {"first": first}})
    after = made.train([CoTTA(restore=1.0)])
    assert all(torch.equal(after[name], first[name]) for name in first)
    start = weights(little().model)
    assert not torch.equal(after["cls.predictions.bias"], start["cls.predictions.bias"])


def test_a_first_stage_carries_what_it_began_with_and_only_where_it_restores(little):
    made, method = little(), CoTTA(restore=0.01)
    before = weights(made.model)
    made.train([method])
    left = made.finish(method)["cotta"]["first"]
    assert sorted(left) == sorted(made.of_backbone())
    assert all(torch.equal(left[name], before[name]) for name in left)
    other, method = little(), CoTTA(restore=0.0)
    other.train([method])
    assert other.finish(method) == {"cotta": {}}


def test_it_answers_by_the_average_without_dropout_and_draws_nothing_from_torch(little):
    made = little(dropout=0.5)
    method = made.prepared(CoTTA())
    made.model.train()
    method.before_step(made.model)
    batch = made.batches.batch(0)
    output = made.objective.forward(made.model, batch)
    state = torch.get_rng_state()
    one, other = (method.objective(made.model, batch, output, {})["consistency"].item() for _ in range(2))
    method.after_step(made.model)
    assert torch.equal(torch.get_rng_state(), state)
    assert one == other > 0


def test_kept_in_main_memory_it_gives_the_same_bits(little):
    after = [little().train([CoTTA(restore=0.05, place=place)]) for place in ("device", "cpu")]
    assert same(*after)


def test_a_run_that_is_cut_goes_on_in_the_same_bits(little):
    settings = {"weight": 0.7, "momentum": 0.6, "restore": 0.05}
    whole = little()
    after = whole.train([CoTTA(**settings)], optimizer=sgd(whole))
    begun = little(steps=2)
    first = CoTTA(**settings)
    begun.train([first], optimizer=sgd(begun))
    made, method = little(), CoTTA(**settings)
    made.prepared(method)
    made.model.load_state_dict(begun.model.state_dict())
    method.load_state_dict(first.state_dict())
    assert same(made.train([method], optimizer=sgd(made), prepared=True, first=2), after)
