"""Distillation from the old model: its terms against naive ones, what it never reads, and bases of another kind."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import anytune
from anytune.engine.runtime import make_runtime
from anytune.errors import DataError, DeltaError, MethodError
from anytune.jobs.deltas import load_delta
from anytune.methods import registry
from anytune.methods.step import StepModule, total, trainable
from anytune.methods.teaching import layer_pairs, state_at
from tests.conftest import VOCABULARY, write_tiny_tokenizer
from tests.contract.bench import equal, without_dropout
from tests.methods.recycle.outdated import SETTINGS, Case, store_of

SHORT = {**SETTINGS, "steps": 2, "evaluate_every": 2}


# ---------------------------------------------------------------------- pure functions


def test_layers_are_matched_by_their_share_of_the_depth_or_from_the_top():
    assert layer_pairs(3, 3, "uniform") == layer_pairs(3, 3, "last") == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert layer_pairs(2, 6, "uniform") == [(0, 0), (1, 3), (2, 6)]
    assert layer_pairs(4, 2, "uniform") == [(0, 0), (1, 1), (2, 1), (3, 2), (4, 2)]
    assert layer_pairs(2, 6, "last") == [(0, 4), (1, 5), (2, 6)]
    assert layer_pairs(4, 2, "last") == [(2, 0), (3, 1), (4, 2)]
    assert layer_pairs(3, 3, "uniform", last=False) == [(0, 0), (1, 1), (2, 2)]
    assert layer_pairs(2, 6, [-1, 2, 5]) == [(1, 2), (2, 5)]


@pytest.mark.parametrize(("given", "last"), [([0, 1], True), ([0, 1, 7], True), ([-1, -1, 6], False)])
def test_a_layer_map_that_fits_no_layers_is_refused(given, last):
    with pytest.raises(MethodError):
        layer_pairs(2, 6, given, last=last)


@pytest.mark.parametrize("causal", [False, True])
def test_the_state_of_a_text_leaves_padding_and_prompts_out(causal):
    hidden = torch.randn(2, 7, 3)  # two places of a prompt, five of text
    batch = {"attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])}
    assert torch.allclose(
        state_at(hidden, batch, "mean", causal), torch.stack([hidden[0, 2:5].mean(0), hidden[1, 2:].mean(0)])
    )
    places = (4, 6) if causal else (2, 2)
    expected = torch.stack([hidden[row, place] for row, place in enumerate(places)])
    assert torch.equal(state_at(hidden, batch, "first", causal), expected)


# ---------------------------------------------------------------------- terms


def step_of(case: Case, name: str = "distill", **settings):
    """A step module of the method without dropout, and the model."""
    method = registry.create(f"recycle/{name}", settings)
    model = without_dropout(method.prepare(case.model()[0], case.run())).train()
    method.attach(model, torch.optim.SGD(model.parameters(), lr=0.0))
    return StepModule(model, [method], case.objective), model, method


def naive(case: Case, model: nn.Module, batch, *, temperature, first=False, without_last=False, over_classes=False):
    """(CE, T^2 KL, patience) by the formulas, with both models run side by side."""
    teacher = case.outdated.make_teacher()
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "token_type_ids")}
    with torch.no_grad():
        old, new = (one(**inputs, output_hidden_states=True) for one in (teacher, model.eval()))
    divergence = 0.0
    for row in range(len(batch["labels"])):
        p = torch.softmax(old.logits[row] / temperature, 0)
        q = torch.softmax(new.logits[row] / temperature, 0)
        divergence += float((p * (p / q).log()).sum())
    divergence *= temperature**2 / len(batch["labels"])
    if over_classes:
        divergence /= old.logits.shape[1]
    layers = range(len(old.hidden_states) - int(without_last))
    squares = []
    for layer in layers:
        for row in range(len(batch["labels"])):
            own = [1] if first else list(range(int(batch["attention_mask"][row].sum())))
            places = [0] if first else own
            h = [one.hidden_states[layer][row, places].mean(0) for one in (old, new)]
            squares.append((h[0] - h[1]).square().mean())
    cross = nn.functional.cross_entropy(new.logits, batch["labels"])
    return float(cross), divergence, 0.5 * float(torch.stack(squares).mean())


def test_its_terms_are_those_of_the_formula(full_case):
    step, model, _ = step_of(full_case, alpha=0.6, temperature=3.0, beta=2.0)
    batch = full_case.encoded.batch([3, 1, 40, 7, 12])
    terms = step(batch)
    cross, divergence, patience = naive(full_case, model, batch, temperature=3.0)
    found = {name: term.item() for name, term in terms.items()}
    assert found == pytest.approx(
        {"loss": 0.4 * cross, "teacher": 0.6 * divergence, "patience": 2 * patience}, rel=1e-4
    )
    assert divergence > 1e-3
    assert patience > 1e-3


def test_paper_code_divides_by_classes_takes_the_first_token_and_leaves_the_last_layer_out(full_case):
    step, model, _ = step_of(full_case, preset="paper_code")
    batch = full_case.encoded.batch([3, 1, 40, 7])
    terms = step(batch)
    cross, divergence, patience = naive(
        full_case, model, batch, temperature=10.0, first=True, without_last=True, over_classes=True
    )
    found = {name: term.item() for name, term in terms.items()}
    assert found == pytest.approx(
        {"loss": 0.1 * cross, "teacher": 0.9 * divergence, "patience": 10 * patience}, rel=1e-4
    )


def test_on_the_same_base_the_old_weights_have_nothing_to_learn_from_the_old_model(old_full, moving_bases, tiny_task):
    case = Case(old_full, moving_bases[0], moving_bases[0], tiny_task)
    step, model, _ = step_of(case, "combined", alpha=1.0, beta=1.0)
    terms = step(case.encoded.batch(range(8)))
    # the stored answers were given at another padding, so they agree to rounding; equal ones give exactly zero
    assert set(terms) == {"teacher", "patience"}
    assert max(abs(term.item()) for term in terms.values()) < 1e-6
    total(terms).backward()
    assert max(float(one.grad.abs().max()) for one in model.parameters() if one.grad is not None) < 1e-4


def test_a_batch_given_twice_over_weighs_what_it_weighs_once(full_case):
    step, _, _ = step_of(full_case, alpha=0.5, beta=1.0)
    once, twice = step(full_case.encoded.batch([1, 2, 3])), step(full_case.encoded.batch([1, 2, 3, 1, 2, 3]))
    assert {name: term.item() for name, term in once.items()} == pytest.approx(
        {name: term.item() for name, term in twice.items()}, rel=1e-5
    )


def trained(case: Case, other_labels: bool, **settings) -> dict[str, torch.Tensor]:
    step, model, _ = step_of(case, **settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for number in range(3):
        batch = case.batches.batch(number)
        if other_labels:
            batch = {**batch, "labels": (batch["labels"] + 1) % 3}
        total(step(batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("settings", [{"label_free": True, "alpha": 0.5, "beta": 1.0}, {"alpha": 1.0}])
def test_without_labels_no_label_reaches_any_weight(full_case, settings):
    assert equal(trained(full_case, False, **settings), trained(full_case, True, **settings))
    assert not equal(trained(full_case, False, alpha=0.5), trained(full_case, True, alpha=0.5))


def test_the_old_model_is_asked_about_each_row_once_and_not_in_any_step(full_case, monkeypatch):
    seen: list[int] = []
    make = full_case.outdated.make_teacher

    def counted():
        teacher = make()
        teacher.register_forward_hook(lambda module, args, output: seen.append(len(output.logits)))
        return teacher

    monkeypatch.setattr(full_case.outdated, "make_teacher", counted)
    step, _, _ = step_of(full_case, beta=1.0)
    assert sum(seen) == len({tuple(row) for row in full_case.encoded.input_ids})
    seen.clear()
    for number in range(3):
        total(step(full_case.batches.batch(number))).backward()
    assert seen == []


def test_a_row_the_old_model_was_not_asked_about_is_an_error(full_case):
    step, _, _ = step_of(full_case)
    batch = copy.deepcopy(full_case.encoded.batch([0]))
    batch["input_ids"][0, 1] += 1
    with pytest.raises(MethodError, match="not among those"):
        step(batch)


# ---------------------------------------------------------------------- other bases


def write_base(folder, *, layers=2, width=32, reverse=False, seed=5):
    """A random BERT of another depth or width, or whose words stand in another order."""
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BertForMaskedLM(config).save_pretrained(folder)
    write_tiny_tokenizer(folder)
    if reverse:
        file = folder / "tokenizer.json"
        content = json.loads(file.read_text())
        words = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)
        words = words[:5] + words[:4:-1]  # special tokens stay
        content["model"]["vocab"] = {word: number for number, word in enumerate(words)}
        file.write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("larger") / "larger", layers=3, width=48)


@pytest.fixture(scope="module")
def reordered(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("reordered") / "reordered", reverse=True)


def test_a_base_of_another_depth_and_width_learns_through_maps_that_are_thrown_away(old_full, larger, tiny_task):
    store = store_of(old_full)
    settings = {"name": "distill", "beta": 1.0, "projection": True}
    [entry] = anytune.recycle(old_full, larger, store=store, method=settings, task=tiny_task, training=SHORT)
    assert entry.manifest.steps == 2
    delta = load_delta(entry)
    assert delta.difference
    assert not [name for name in (*delta.head, *delta.body) if "state_maps" in name]
    model, _ = anytune.load(entry, store=store)
    assert not [name for name, _ in model.named_modules() if "state_maps" in name]


def test_the_maps_are_trained_beside_a_lora(old_lora, larger, tiny_task, moving_bases):
    case = Case(old_lora, moving_bases[0], larger, tiny_task)
    lora = registry.create("tune/lora", {"r": 2})
    distill = registry.create("recycle/distill", {"beta": 1.0, "projection": True})
    run = case.run()
    model = distill.prepare(lora.prepare(case.model()[0], run), run).train()
    assert any("state_maps" in name for name in trainable(model))
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-2)
    distill.attach(model, optimizer)
    before = [one.clone() for name, one in model.named_parameters() if "state_maps" in name]
    total(StepModule(model, [lora, distill], case.objective)(case.batches.batch(0))).backward()
    optimizer.step()
    after = [one for name, one in model.named_parameters() if "state_maps" in name]
    assert len(before) == 4
    assert not any(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert not any("state_maps" in name for name in distill.finish(model, run).state_dict())


def test_another_width_without_a_map_says_what_to_set(old_full, larger, tiny_task):
    with pytest.raises(MethodError, match="48 wide, the old one's 32") as caught:
        anytune.recycle(
            old_full, larger, store=store_of(old_full), method={"name": "distill", "beta": 1.0}, task=tiny_task,
            training=SHORT,
        )  # fmt: skip
    assert "projection=true" in caught.value.fix


@pytest.mark.parametrize("method", ["direct", "initialize", "combined"])
def test_what_copies_weights_is_refused_at_once_and_told_of_distillation(old_full, larger, tiny_task, method):
    with pytest.raises(DeltaError) as caught:
        anytune.recycle(old_full, larger, store=store_of(old_full), method=method, task=tiny_task, training=SHORT)
    assert "--method distill" in caught.value.fix


def test_with_other_words_the_old_model_reads_the_same_texts_in_its_own(old_full, reordered, moving_bases, tiny_task):
    case = Case(old_full, moving_bases[0], reordered, tiny_task)
    theirs = case.outdated.teacher_rows(case.encoded)
    assert theirs is not case.encoded
    assert theirs.input_ids != case.encoded.input_ids
    tokenizers = [one.tokenizer() for one in (case.moving.old, case.moving.new)]
    for row in (0, 7, 30):
        assert tokenizers[0].decode(theirs.input_ids[row]) == tokenizers[1].decode(case.encoded.input_ids[row])
    step, _, method = step_of(case, alpha=1.0)
    rows = [4, 9, 2]
    with torch.no_grad():
        said = case.objective.forward(case.outdated.make_teacher(), theirs.batch(rows)).logits
    assert torch.allclose(method._asked.logits.of(case.encoded.batch(rows)), said, atol=1e-5)
    assert "teacher" in step(case.encoded.batch(rows))


def test_with_equal_words_both_read_the_very_same_rows(full_case):
    assert full_case.outdated.teacher_rows(full_case.encoded) is full_case.encoded


# ---------------------------------------------------------------------- through the job


def test_a_recycled_adapter_trains_what_a_fresh_one_trains(lora_case):
    run = lora_case.run()
    fresh = registry.create("tune/lora", {"r": 4, "targets": "all-linear"})
    plain = set(trainable(fresh.prepare(lora_case.model()[0], run)))
    distill = registry.create("recycle/distill", {"beta": 1.0})
    assert set(trainable(distill.prepare(fresh.prepare(lora_case.model()[0], run), run))) == plain
    for name in ("initialize", "combined"):
        assert set(trainable(lora_case.prepared(name)[0])) == plain


def test_a_distilled_lora_is_a_lora_like_the_old_one(old_lora, moving_bases, tiny_task):
    [entry] = anytune.recycle(
        old_lora, moving_bases[1], store=store_of(old_lora), method="distill", task=tiny_task, training=SHORT
    )
    old, new = load_delta(old_lora), load_delta(entry)
    assert set(old.tensors) == set(new.tensors)
    assert {key: old.config[key] for key in ("r", "lora_alpha")} == {
        key: new.config[key] for key in ("r", "lora_alpha")
    }
    assert [record.name for record in entry.manifest.methods] == ["tune/lora", "recycle/distill"]
    assert {parent.role for parent in entry.manifest.parents} == {"delta"}
    assert not torch.equal(*(one.tensors[next(iter(old.tensors))] for one in (old, new)))


def test_texts_without_labels_are_trained_on_and_decide_the_run(old_full, moving_bases, tiny_task, tiny_domain):
    def run(**given):
        [entry] = anytune.recycle(
            old_full, moving_bases[1], store=store_of(old_full), task=tiny_task, training=SHORT,
            method={"name": "distill", "label_free": True, "alpha": 1.0}, **given,
        )  # fmt: skip
        return entry

    on_task, on_domain, on_list = run(), run(unlabelled=tiny_domain), run(unlabelled=["a cat", "an old oak", "slate"])
    assert len({entry.manifest.run for entry in (on_task, on_domain, on_list)}) == 3
    assert len({entry.manifest.id for entry in (on_task, on_domain, on_list)}) == 3


def test_texts_that_no_method_reads_are_an_error(old_full, moving_bases, tiny_task, tiny_domain):
    for method in ("initialize", "distill", {"name": "combined", "alpha": 0.5}):
        with pytest.raises(DataError, match="no method reads them"):
            anytune.recycle(
                old_full, moving_bases[1], store=store_of(old_full), task=tiny_task, training=SHORT, method=method,
                unlabelled=tiny_domain,
            )  # fmt: skip


def test_pairs_are_not_what_a_task_of_single_texts_reads(old_full, moving_bases, tiny_task):
    for texts in ([("a", "b")], []):
        with pytest.raises(DataError):
            anytune.recycle(
                old_full, moving_bases[1], store=store_of(old_full), task=tiny_task, training=SHORT,
                method={"name": "distill", "label_free": True}, unlabelled=texts,
            )  # fmt: skip


def test_a_distillation_can_be_forecast(old_full, moving_bases, tiny_task):
    before = sorted(store_of(old_full).folder.rglob("*"))
    [forecast] = anytune.recycle(
        old_full, moving_bases[1], store=store_of(old_full), task=tiny_task, training={**SHORT, "steps": 3},
        method={"name": "distill", "temperature": 2.5}, dry_run=True,
    )  # fmt: skip
    assert (forecast.state, forecast.steps) == ("new", 3)
    assert sorted(store_of(old_full).folder.rglob("*")) == before


def test_nothing_to_learn_from_is_an_error():
    with pytest.raises(MethodError, match="label_free with alpha=0"):
        registry.create("recycle/distill", {"label_free": True, "alpha": 0.0})


# ---------------------------------------------------------------------- what methods are given


def test_a_difference_put_back_is_the_outdated_model(full_case, lora_case):
    for case in (full_case, lora_case):
        model = case.outdated.install_difference(case.model()[0], case.outdated.difference()).eval()
        direct = case.outdated.install(case.model()[0]).eval()
        batch = case.encoded.batch(range(6))
        with torch.no_grad():
            left, right = (case.objective.forward(one, batch).logits for one in (model, direct))
        if case is full_case:
            assert equal(model.state_dict(), direct.state_dict())
        assert torch.allclose(left, right, atol=1e-5)
        assert not hasattr(model, "peft_config")


def test_nothing_is_read_before_it_is_asked_for(old_full, moving_bases, tiny_task):
    case = Case(old_full, *moving_bases, tiny_task)
    case.run()
    assert "own" not in vars(case.moving)
    assert "_landed" not in vars(case.moving)
    assert case.outdated.kind == "full"
    assert "_landed" not in vars(case.moving)
    assert case.outdated.refusal is None


def test_a_teacher_has_no_gradients_and_answers_as_the_stored_model(full_case, old_full):
    teacher = full_case.outdated.make_teacher()
    assert not teacher.training
    assert not any(one.requires_grad for one in teacher.parameters())
    model, _ = anytune.load(old_full, store=store_of(old_full))
    assert equal(teacher.state_dict(), model.state_dict())
    assert make_runtime("fp32").autocast() is full_case.outdated.autocast is None
