from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from transformers import BertModel

import anytune
from anytune.engine import method_groups
from anytune.errors import MethodError, SettingsError
from anytune.manifests import METRICS_NAME
from anytune.methods import registry
from anytune.methods.agreement import vectors_of
from anytune.methods.consistency import FrozenCopy
from anytune.methods.gradient_scores import gradient_norms
from anytune.methods.pretrain.hprompt import HPrompt, without_first_labels
from anytune.methods.protocol import Run
from anytune.methods.step import StepModule, total
from anytune.models.base import load_base
from anytune.models.language_modelling import text_hidden
from anytune.models.prompted import given_prompt, hyperprompt_of
from tests.methods.pretrain.prompted_step import SMALL, ready

CHEAP = {"encoder": "embeddings"}


def gradients(one, term):
    found = torch.autograd.grad(term, list(one.named().values()), retain_graph=True, allow_unused=True)
    return dict(zip(one.named(), found, strict=True))


def trajectory(one, steps=3, rate=1e-2):
    """Weights after a few steps of plain gradient descent."""
    for number in range(steps):
        if number:
            one.method.before_step(one.model)
        loss = total(one.terms(one.batch(number)))
        parameters = [parameter for parameter in one.model.parameters() if parameter.requires_grad]
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.data -= rate * gradient
        one.method.after_step(one.model)
    return {name: parameter.detach().clone() for name, parameter in one.named().items()}


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


# ---------------------------------------------------------------------- chance


def test_neither_loss_draws_from_the_generator_that_dropout_draws_from(tiny_base):
    ended = []
    for settings in ({"agreement": 0.0, "disagreement": 0.0}, {}, {"random_prompt": "mixture"}):
        one = ready(tiny_base, dropout=0.3, **settings)
        torch.manual_seed(3)
        loss = one.terms()["loss"]
        ended.append((loss.item(), torch.rand(1).item()))
    assert len(set(ended)) == 1


def test_a_random_prompt_depends_on_seed_step_and_text_and_not_on_the_batch_it_is_in(tiny_base):
    one = ready(tiny_base)
    batch = one.batch()
    whole = one.method._drawn(one.model, batch)
    halves = [{"input_ids": batch["input_ids"][part]} for part in (slice(0, 1), slice(1, 4))]
    assert torch.equal(torch.cat([one.method._drawn(one.model, half) for half in halves]), whole)
    assert len({row.sum().item() for row in whole}) == 4
    assert torch.equal(one.method._drawn(one.model, batch), whole)
    one.method.before_step(one.model)
    assert not torch.equal(one.method._drawn(one.model, batch), whole)
    assert not torch.equal(ready(tiny_base, seed=2).method._drawn(one.model, batch), whole)
    shared = ready(tiny_base, random_shared=True)
    first = shared.method._drawn(shared.model, batch)
    assert first.shape == (1, 3, 32)
    assert torch.equal(first, shared.method._drawn(shared.model, {"input_ids": batch["input_ids"].flip(1)}))


def test_a_hidden_word_does_not_show_through_the_prompt(tiny_base):
    one = ready(tiny_base)
    batch = one.batch()
    first = one.method._written(one.model, batch)
    changed = {**batch, "labels": torch.where(batch["labels"] == -100, -100, 7)}
    assert (changed["labels"] != batch["labels"]).any()
    assert torch.equal(one.method._written(one.model, changed), first)


def test_steps_are_counted_on_where_a_run_goes_on(tiny_base):
    one, other = ready(tiny_base), ready(tiny_base)
    for _ in range(3):
        one.method.before_step(one.model)
    other.method.load_state_dict(one.method.state_dict())
    assert torch.equal(other.method._drawn(other.model, one.batch()), one.method._drawn(one.model, one.batch()))


# ---------------------------------------------------------------------- odd batches


@pytest.mark.parametrize("settings", [{}, {"agreement_form": "kl"}, {"disagreement_form": "gram"}, {"centre": False}])
def test_a_batch_without_a_hidden_word_costs_nothing(tiny_base, settings):
    one = ready(tiny_base, **CHEAP, **settings).moved()
    batch = {**one.batch(), "num_items": 0}
    batch["labels"] = torch.full_like(batch["labels"], -100)
    terms = one.terms(batch)
    assert all(term.item() == 0.0 for term in terms.values())
    for found in gradients(one, total(terms)).values():
        assert found is None or (torch.isfinite(found).all() and found.abs().max() == 0)


@pytest.mark.parametrize("form", ["cos2", "abs", "dot", "gram", "coda"])
def test_a_batch_of_one_text_gives_numbers(tiny_base, form):
    one = ready(tiny_base, **CHEAP, disagreement=1.0, disagreement_form=form, rows=1).moved()
    terms = one.terms()
    for found in gradients(one, total(terms)).values():
        assert torch.isfinite(found).all()


def test_padding_enters_neither_loss(tiny_base):
    one = ready(tiny_base, **CHEAP, disagreement=1.0).moved()
    batch = one.batch()
    padded = {
        "input_ids": torch.nn.functional.pad(batch["input_ids"], (0, 5)),
        "attention_mask": torch.nn.functional.pad(batch["attention_mask"], (0, 5)),
        "labels": torch.nn.functional.pad(batch["labels"], (0, 5), value=-100),
        "num_items": batch["num_items"],
    }
    hidden = torch.randn(4, 21, 8)
    rows, weights = vectors_of(hidden, padded["attention_mask"], padded, "token", False)
    assert rows.shape == (64, 8)
    assert weights.sum().item() == pytest.approx(1.0)
    one.method._drawn = lambda model, batch: torch.ones(1, 3, 32, dtype=torch.float64)
    first, second = one.terms(batch), one.terms(padded)
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-9, atol=1e-12)


def test_under_autocast_the_losses_are_in_fp32(tiny_base):
    one = ready(tiny_base, dtype=torch.float32, disagreement=1.0, disagreement_form="gram").moved()
    exact = one.terms()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = one.terms()
    for name, term in terms.items():
        assert term.dtype == torch.float32
        assert term.item() == pytest.approx(exact[name].item(), rel=0.15)
        assert term.item() != exact[name].item()


# ---------------------------------------------------------------------- settings


def test_presets_set_what_was_left_at_its_default():
    paper = HPrompt(preset="paper")
    assert (paper.components, paper.length, paper.layers) == (100, 50, 6)
    assert (paper.agreement, paper.agreement_form, paper.agreement_temperature) == (1.0, "kl", 2.0)
    assert paper.disagreement == 0.01
    assert registry.create("hprompt", {"preset": "paper", "length": 7}).length == 7
    light = registry.create("hprompt", {"preset": "light"})
    assert (light.encoder, light.loss_share, light.loss_every) == ("embeddings", 0.5, 3)
    again = registry.create("hprompt", registry.settings_of(light))
    assert registry.settings_of(again) == registry.settings_of(light)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": 2.0}, "Only softmax weights have a temperature"),
        ({"components": 0}, "components = 0"),
        ({"agreement": -1}, "agreement = -1"),
        ({"preset": "huge"}, "preset = 'huge'"),
        ({"loss_share": 0}, "loss_share = 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(SettingsError, match=words):
        raise_with_why(settings)


def raise_with_why(settings):
    try:
        registry.create("pretrain/hprompt", settings)
    except SettingsError as problem:
        raise SettingsError(f"{problem.what} {problem.why}") from None


def test_a_block_that_is_not_there_and_an_objective_without_states_are_refused(tiny_base):
    with pytest.raises(MethodError, match="layer = 3, and this base has 2 blocks"):
        ready(tiny_base, **CHEAP, layer=3)
    one = ready(tiny_base, **CHEAP)

    class Other:
        def forward(self, model, batch):
            return model(input_ids=batch["input_ids"])

    one.method._plain = Other()
    with pytest.raises(MethodError, match="needs the hidden states of the text"):
        one.method.forward(one.model, one.batch())
    base = load_base(tiny_base)
    model, _ = base.pretraining_model(0)
    with pytest.raises(MethodError, match="needs to know the run's objective"):
        HPrompt(**SMALL).prepare(model, Run(seed=0, steps=1, anatomy=base.anatomy))


def test_the_hypernetwork_may_have_a_rate_of_its_own(tiny_base):
    one = ready(tiny_base, **CHEAP, hypernetwork_rate=10.0)
    rates = {
        name: group["lr"]
        for group in method_groups(one.model, [one.method], 1e-3, 0.01)
        for name in group["names"]
    }  # fmt: skip
    assert rates.keys() == one.named().keys()
    for name, rate in rates.items():
        assert rate == pytest.approx(1e-2 if "hyperprompt" in name else 1e-3), name


# ---------------------------------------------------------------------- looking on


def test_figures_say_how_many_components_are_in_use_and_how_like_prompts_are_to_random_ones(tiny_base):
    one = ready(tiny_base)
    assert one.method.figures() == {}
    one.terms()
    found = one.method.figures()
    assert found.keys() == {
        "agreement", "disagreement", "components", "entropy", "cosine_between_texts", "cosine_to_random",
    }  # fmt: skip
    prompts = one.method._prompt.detach().flatten(1)
    pairs = [(a, b) for a in range(len(prompts)) for b in range(len(prompts)) if a != b]
    alike = [float(torch.cosine_similarity(prompts[a], prompts[b], dim=0)) for a, b in pairs]
    assert found["cosine_between_texts"] == pytest.approx(sum(alike) / len(alike), abs=1e-5)
    assert 1 <= found["components"] <= 4
    assert 0 <= found["entropy"] <= math.log(4)
    assert -1 <= found["cosine_to_random"] <= 1
    one.method._random = one.method._prompt
    assert one.method.figures()["cosine_to_random"] == pytest.approx(1.0)
    one.method._random = -one.method._prompt[:1]
    assert one.method.figures()["cosine_to_random"] < 1
    with torch.no_grad():
        one.hyperprompt.weigh.weight.zero_()
        one.hyperprompt.weigh.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    one.terms()
    assert one.method.figures()["components"] == pytest.approx(1.0)
    assert one.method.figures()["cosine_between_texts"] == pytest.approx(1.0), "one component for all texts"


def test_gradient_norms_of_the_terms_are_those_of_their_gradients(tiny_base):
    one = ready(tiny_base, **CHEAP, disagreement=1.0).moved()
    terms = one.terms()
    weights = [parameter for name, parameter in one.named().items() if ".layer." in name]
    found = gradient_norms(terms, weights)
    assert found.keys() == terms.keys()
    for name, term in terms.items():
        by_hand = torch.autograd.grad(term, weights, retain_graph=True)
        assert found[name] == pytest.approx(torch.cat([one.flatten() for one in by_hand]).norm().item())
    total(terms).backward()


def test_labels_of_first_tokens_are_taken_off_and_the_last_one_stays():
    labels = torch.arange(8).view(2, 4)
    assert without_first_labels(labels, 2).tolist() == [[-100, -100, 2, 3], [-100, -100, 6, 7]]
    assert without_first_labels(labels, 9).tolist() == [[-100, -100, -100, 3], [-100, -100, -100, 7]]
    assert labels[0, 0] == 0


def test_agreement_keeps_what_the_model_thinks_under_other_prompts_nearer_to_what_it_thought(tiny_base):
    """At equal steps; under random prompts and on texts that were not trained on."""
    drift = {}
    for weight in (0.0, 3.0):
        one = ready(tiny_base, agreement=weight, disagreement=0.0, encoder="embeddings")
        before = copy.deepcopy(one.model)
        trajectory(one, steps=8, rate=0.5)
        generator = torch.Generator().manual_seed(9)
        prompts = one.hyperprompt.random(4, generator).double()
        batch = one.batch(40)
        hidden = []
        for model in (before.eval(), one.model.eval()):
            with given_prompt(model, prompts), torch.no_grad():
                hidden.append(text_hidden(model, batch, one.base.anatomy))
        drift[weight] = (hidden[0] - hidden[1]).norm().item()
    assert drift[3.0] < 0.8 * drift[0.0]


def test_the_log_of_a_run_holds_the_figures(tiny_base, tiny_domain, tmp_path):
    training = {"steps": 2, "block_size": 32, "batch_size": 4, "evaluate_every": 2}
    [made] = anytune.pretrain(tiny_base, [tiny_domain], method="hprompt", training=training, store=tmp_path / "s")
    lines = [json.loads(line) for line in (made.folder / METRICS_NAME).read_text().splitlines()]
    [looked] = [line for line in lines if line["kind"] == "train"]
    assert 1 <= looked["hprompt.components"] <= 32
    assert looked["hprompt.agreement"] > 0


def test_blocks_that_leave_no_room_for_the_prompt_are_refused_before_anything_is_computed(
    tiny_base, tiny_domain, tmp_path
):
    limit = load_base(tiny_base).position_limit
    training = {"steps": 2, "block_size": limit, "batch_size": 4}
    with pytest.raises(MethodError, match=f"blocks of {limit} tokens and a prompt of 10 places") as problem:
        anytune.pretrain(tiny_base, [tiny_domain], method="hprompt", training=training, store=tmp_path / "s")
    assert f"block_size={limit - 10}" in problem.value.fix
    training["block_size"] = limit - 10
    assert anytune.pretrain(tiny_base, [tiny_domain], method="hprompt", training=training, store=tmp_path / "s")
