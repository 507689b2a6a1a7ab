"""HPrompt around its losses: chance, odd batches, settings and what its log says."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch

import anytune
from anytune.engine import method_groups
from anytune.errors import MethodError, SettingsError
from anytune.manifests import METRICS_NAME
from anytune.methods import registry
from anytune.methods.agreement import vectors_of
from anytune.methods.gradient_scores import gradient_norms
from anytune.methods.pretrain.hprompt import HPrompt, without_first_labels
from anytune.methods.protocol import Run
from anytune.methods.step import total
from anytune.models.base import load_base
from anytune.models.language_modelling import text_hidden
from anytune.models.prompted import given_prompt
from tests.methods.pretrain.prompted_step import CHEAP, SMALL, gradients, ready, trajectory

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
