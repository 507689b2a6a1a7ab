"""HPrompt's losses: what they are, what is computed for them, who learns from which."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import BertModel

from anytune.methods import registry
from anytune.methods.consistency import FrozenCopy
from anytune.methods.step import StepModule, total
from anytune.models.language_modelling import text_hidden
from anytune.models.prompted import given_prompt, hyperprompt_of
from tests.methods.pretrain.prompted_step import CHEAP, gradients, ready, trajectory

# ---------------------------------------------------------------------- what the terms are


def test_the_terms_are_those_of_the_formula_computed_by_hand(tiny_base):
    one = ready(tiny_base, agreement=2.0, disagreement=0.3)
    before = copy.deepcopy(one.model).eval()
    one.moved()
    batch = one.batch()
    terms = one.terms(batch)
    hyperprompt, now = one.hyperprompt, copy.deepcopy(one.model).eval()
    written = hyperprompt(batch["input_ids"], batch["attention_mask"])
    random = one.method._random
    assert random.shape == written.shape == (4, 3, 32)

    def states(model, prompt):
        with given_prompt(model, prompt), torch.no_grad():
            return text_hidden(model, batch, one.base.anatomy)

    with given_prompt(now, written):
        plain = one.objective.forward(now, batch).loss
    torch.testing.assert_close(terms["loss"], plain)

    items = (batch["labels"] != -100).sum(1)
    u, old_u = states(now, random), states(before, random)
    agree = sum(
        items[b] / items.sum() * (1 - torch.cosine_similarity(u[b, t], old_u[b, t], dim=0)) / 16
        for b in range(4)
        for t in range(16)
    )
    torch.testing.assert_close(terms["agreement"], 2.0 * agree)
    assert agree > 1e-3

    v, old_v = states(now, written).mean(1), states(before, written).mean(1)
    share = items.double() / items.sum()
    v, old_v = v - share @ v, old_v - share @ old_v
    apart = sum(share[b] * torch.cosine_similarity(v[b], old_v[b], dim=0) ** 2 for b in range(4))
    torch.testing.assert_close(terms["disagreement"], 0.3 * apart)
    torch.testing.assert_close(total(terms), plain + 2.0 * agree + 0.3 * apart)


def test_each_weight_multiplies_its_own_term_alone(tiny_base):
    def terms(**settings):
        return {name: term.item() for name, term in ready(tiny_base, **CHEAP, **settings).moved().terms().items()}

    first = terms(agreement=1.0, disagreement=1.0)
    second = terms(agreement=3.0, disagreement=0.5)
    assert second["loss"] == first["loss"]
    assert second["agreement"] == pytest.approx(3.0 * first["agreement"])
    assert second["disagreement"] == pytest.approx(0.5 * first["disagreement"])
    assert terms(agreement=0.0, disagreement=1.0).keys() == {"loss", "disagreement"}


@pytest.mark.parametrize("centre", [False, True])
def test_at_the_beginning_the_model_agrees_exactly_and_nothing_pushes_it(tiny_base, centre):
    one = ready(tiny_base, disagreement=1.0, centre=centre, dropout=0.0)
    terms = one.terms()
    assert terms["agreement"].item() == 0.0
    assert terms["disagreement"].item() == pytest.approx(1.0)
    for term in ("agreement", "disagreement"):
        largest = max(found.abs().max() for found in gradients(one, terms[term]).values() if found is not None)
        assert largest < (1e-12 if term == "disagreement" else 1e-300)


def test_with_dropout_the_model_still_agrees_exactly_at_the_beginning(tiny_base):
    terms = ready(tiny_base, dropout=0.2, disagreement=1.0).terms()
    assert terms["agreement"].item() == 0.0
    assert terms["disagreement"].item() < 0.99, "the pass of training has dropout, the copy has none"


@pytest.mark.parametrize("form", ["gram", "dot"])
def test_some_forms_push_at_once(tiny_base, form):
    one = ready(tiny_base, **CHEAP, disagreement=1.0, disagreement_form=form)
    found = gradients(one, one.terms()["disagreement"]).values()
    assert max(one.abs().max() for one in found if one is not None) > 1e-6


@pytest.mark.parametrize("agreement_form", ["cosine", "mse", "kl"])
@pytest.mark.parametrize(
    "settings",
    [
        {"disagreement_form": "cos2", "disagreement_per": "token", "agreement_per": "text"},
        {"disagreement_form": "abs", "normalise": True},
        {"disagreement_form": "coda", "centre": False},
        {"disagreement_form": "gram", "random_prompt": "mixture"},
        {"disagreement_form": "dot", "layer": 1, "random_shared": True},
    ],
    ids=lambda settings: settings["disagreement_form"],
)
def test_every_form_gives_numbers_and_gradients(tiny_base, agreement_form, settings):
    one = ready(tiny_base, **CHEAP, agreement_form=agreement_form, disagreement=1.0, **settings).moved()
    terms = one.terms()
    assert terms.keys() == {"loss", "agreement", "disagreement"}
    for term in terms.values():
        assert torch.isfinite(term)
        assert term > 0
    for found in gradients(one, total(terms)).values():
        assert torch.isfinite(found).all()


def test_a_block_in_the_middle_can_be_compared_without_its_prompt(tiny_base):
    """BERT's last block gives what the head is given, so its states are the last ones; the first block's are not."""
    terms = {layer: ready(tiny_base, **CHEAP, disagreement=1.0, layer=layer).moved().terms() for layer in (None, 1, 2)}
    for name in ("agreement", "disagreement"):
        assert torch.equal(terms[None][name], terms[2][name])
        assert not torch.equal(terms[None][name], terms[1][name])
    one = ready(tiny_base, **CHEAP, layer=1)
    one.terms()
    assert not any(block._forward_hooks for block in one.base.anatomy.block_modules(one.model))


# ---------------------------------------------------------------------- what is computed


@pytest.fixture
def passes(monkeypatch):
    """The passes made of a BERT, as "train", "eval" (dropout off) or "frozen" (no gradient)."""
    made = []
    real = BertModel.forward

    def forward(self, *arguments, **named):
        made.append("frozen" if not torch.is_grad_enabled() else "train" if self.training else "eval")
        return real(self, *arguments, **named)

    monkeypatch.setattr(BertModel, "forward", forward)
    return made


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"agreement": 0.0, "disagreement": 0.0}, ["train"]),
        ({"agreement": 1.0, "disagreement": 0.0}, ["train", "eval", "frozen"]),
        ({"agreement": 0.0, "disagreement": 1.0}, ["train", "frozen"]),
        ({}, ["train", "eval", "frozen", "frozen"]),
        ({"detach_prompt": True}, ["train", "eval", "frozen", "eval", "frozen"]),
        ({"prompt": "none"}, ["train", "frozen"]),
        ({"prompt": "none", "agreement": 0.0, "disagreement": 0.0}, ["train"]),
    ],
)
def test_no_more_passes_are_made_than_the_losses_need(tiny_base, passes, settings, expected):
    one = ready(tiny_base, **CHEAP, **settings)
    one.terms()
    assert passes == expected


def test_without_the_two_losses_it_is_plain_training_of_a_prompted_model(tiny_base):
    one = ready(tiny_base, agreement=0.0, disagreement=0.0)
    assert one.method._teacher is None
    batch = one.batch()
    terms = one.terms(batch)
    assert terms.keys() == {"loss"}
    plain = one.objective.terms(one.objective.forward(one.model, batch), batch)["loss"]
    assert torch.equal(terms["loss"], plain)
    other = gradients(one, plain)
    for name, found in gradients(one, terms["loss"]).items():
        assert torch.equal(found, other[name]), name


def test_with_no_prompt_and_no_loss_nothing_is_made(tiny_base):
    one = ready(tiny_base, prompt="none", agreement=0.0, disagreement=0.0)
    assert hyperprompt_of(one.model) is None
    assert one.method._teacher is None


def test_no_prompt_on_a_base_that_has_a_hypernetwork_trains_the_bare_base(tiny_base):
    given = ready(tiny_base, **CHEAP)
    bare = ready(tiny_base, prompt="none", disagreement=0.0, agreement=0.0, equip=lambda model: _moved(model, given))
    assert not any(parameter.requires_grad for parameter in bare.hyperprompt.parameters())
    batch = bare.batch()
    with given_prompt(bare.model, "none"):
        plain = bare.objective.forward(bare.model, batch).loss
    assert torch.equal(bare.terms(batch)["loss"], plain)
    assert not torch.equal(bare.objective.forward(bare.model, batch).loss, plain)


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_its_agreement_on_guesses_without_a_prompt_is_learning_without_forgetting(tiny_base, weight):
    torch.manual_seed(0)
    mine = trajectory(
        ready(tiny_base, dropout=0.1, prompt="none", agreement=weight, agreement_form="kl", agreement_temperature=2.0,
              disagreement=0.0)
    )  # fmt: skip
    other = ready(tiny_base, dropout=0.1, prompt="none", agreement=0.0, disagreement=0.0)
    other.method = registry.create("pretrain/lwf", {"weight": weight, "temperature": 2.0})
    other.method.prepare(other.model, other.run)
    other.method.before_step(other.model)
    other.step = StepModule(other.model, [other.method], other.objective)
    torch.manual_seed(0)
    theirs = trajectory(other)
    for name, weights in mine.items():
        assert torch.equal(weights, theirs[name]), name
    plain = trajectory(ready(tiny_base, dropout=0.1, prompt="none", agreement=0.0, disagreement=0.0))
    assert any(not torch.equal(weights, plain[name]) for name, weights in mine.items())


def test_losses_are_due_in_every_nth_step_alone(tiny_base):
    one = ready(tiny_base, **CHEAP, loss_every=3)
    due = []
    for _ in range(7):
        due.append("agreement" in one.terms())
        one.method.before_step(one.model)
    assert due == [True, False, False, True, False, False, True]


def test_losses_on_a_share_of_the_texts_see_those_alone(tiny_base):
    one = ready(tiny_base, **CHEAP, loss_share=0.5, disagreement=1.0).moved()
    batch = one.batch()
    first = one.terms(batch)
    changed = {key: value.clone() if torch.is_tensor(value) else value for key, value in batch.items()}
    changed["input_ids"][2:] = changed["input_ids"][2:].flip(1)
    second = one.terms(changed)
    for name in ("agreement", "disagreement"):
        assert torch.equal(first[name], second[name])
    assert not torch.equal(first["loss"], second["loss"])
    half = {key: value[:2] if torch.is_tensor(value) else value for key, value in batch.items()}
    whole = ready(tiny_base, **CHEAP, disagreement=1.0).moved().terms(half)
    for name in ("agreement", "disagreement"):
        torch.testing.assert_close(first[name], whole[name])


# ---------------------------------------------------------------------- who learns from which term


def reached(one, term):
    """Names with a gradient that is not 0 throughout."""
    return {name for name, found in gradients(one, term).items() if found is not None and found.abs().max() > 0}


def test_every_weight_learns_from_guessing(tiny_base):
    one = ready(tiny_base)
    # a key's bias shifts all scores of a place alike: softmax does not see it
    of_keys = {name for name in one.named() if name.endswith("key.bias")}
    assert reached(one, one.terms()["loss"]) >= set(one.named()) - of_keys


def test_the_model_learns_from_agreement_and_the_hypernetwork_does_not(tiny_base):
    one = ready(tiny_base).moved()
    found = reached(one, one.terms()["agreement"])
    assert not any("hyperprompt" in name for name in found)
    blocks = {name for name in one.named() if ".layer." in name and not name.endswith("key.bias")}
    assert found >= blocks


@pytest.mark.parametrize("detach", [False, True])
def test_the_hypernetwork_learns_from_disagreement_unless_its_prompt_is_cut_off(tiny_base, detach):
    one = ready(tiny_base, disagreement=1.0, detach_prompt=detach).moved()
    found = reached(one, one.terms()["disagreement"])
    of_hypernetwork = {name for name in one.named() if "hyperprompt" in name}
    assert len(of_hypernetwork) > 10
    if detach:
        assert not found & of_hypernetwork
    else:
        assert "hyperprompt.components" in found
        assert len(found & of_hypernetwork) >= len(of_hypernetwork) - 2
    assert any(".layer.0." in name for name in found)


def test_the_copy_and_the_encoder_never_change_and_the_copy_holds_no_more_than_it_needs(tiny_base):
    one = ready(tiny_base, disagreement=1.0)
    teacher = one.method._teacher
    assert isinstance(teacher, FrozenCopy)
    names = [name for name, _ in teacher.model.named_parameters()]
    assert not any("hyperprompt" in name or "cls" in name for name in names)
    assert hasattr(one.model, "cls")
    assert not any(module.training for module in teacher.model.modules())
    watched = {**dict(teacher.model.named_parameters()), **dict(one.hyperprompt.encoder.named_parameters())}
    before = {name: parameter.detach().clone() for name, parameter in watched.items()}
    start = {name: parameter.detach().clone() for name, parameter in one.named().items()}
    after = trajectory(one)
    for name, parameter in watched.items():
        assert parameter.grad is None
        assert not parameter.requires_grad
        assert torch.equal(parameter, before[name]), name
    assert not torch.equal(after["hyperprompt.components"], start["hyperprompt.components"])
    with_words = ready(tiny_base, agreement_form="kl").method._teacher
    assert any("cls" in name for name, _ in with_words.model.named_parameters())


def test_in_a_first_stage_copy_and_encoder_are_one_set_of_weights(tiny_base):
    one = ready(tiny_base)
    places = {parameter.data_ptr() for parameter in one.hyperprompt.encoder.parameters()}
    copied = list(one.base.anatomy.backbone(one.method._teacher.model).named_parameters())
    assert len(copied) > 30
    assert all(parameter.data_ptr() in places for name, parameter in copied)
    mine = {parameter.data_ptr() for parameter in one.model.parameters()}
    assert not mine & places
    later = ready(tiny_base, equip=lambda model: _moved(model, one))
    there = {parameter.data_ptr() for parameter in later.hyperprompt.encoder.parameters()}
    assert not any(parameter.data_ptr() in there for parameter in later.method._teacher.model.parameters())


@torch.no_grad()
def _moved(model, one):
    """The model as a stage has left it: with a hypernetwork of an earlier base."""
    from anytune.models.hyperprompt import make_hyperprompt
    from anytune.models.prompted import attach

    made = make_hyperprompt(model, one.method.config(), 0)
    for parameter in model.parameters():
        parameter.mul_(1.01).add_(0.001)
    attach(model, made, one.base.anatomy)
    return model


def test_a_frozen_hypernetwork_stays_and_a_constant_prompt_is_one_for_all(tiny_base):
    one = ready(tiny_base, train_hypernetwork=False)
    start = {name: parameter.detach().clone() for name, parameter in one.named().items()}
    for name, weights in trajectory(one).items():
        assert torch.equal(weights, start[name]) == ("hyperprompt" in name), name
    constant = ready(tiny_base, prompt="constant")
    ids = constant.batch()["input_ids"]
    prompts = constant.hyperprompt(ids)
    assert prompts.shape == (4, 3, 32)
    assert all(torch.equal(prompts[0], other) for other in prompts)
    start = constant.hyperprompt.components.detach().clone()
    assert not torch.equal(trajectory(constant)["hyperprompt.components"], start)
    random = constant.method._random
    assert len({row.sum().item() for row in random}) == 4, "each text has another"
    assert random.std().item() == pytest.approx(start.std().item(), rel=0.3)
