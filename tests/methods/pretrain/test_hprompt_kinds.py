"""Every kind of model, adapters, and a stream of stages as a user runs it."""

from __future__ import annotations

import pytest
import torch

import anytune
from anytune.errors import MethodError
from anytune.jobs.opening import open_base
from anytune.methods.consistency import EarlierSelf
from anytune.methods.step import total
from anytune.models.peft_models import make_lora
from anytune.models.prompted import hyperprompt_of
from tests.methods.pretrain.prompted_step import SMALL, ready
from tests.models.kinds import DECODERS, KINDS, VARIANTS, make_kind


@pytest.mark.parametrize("form", ["cosine", "kl"])
@pytest.mark.parametrize("kind", [*KINDS, *VARIANTS])
def test_in_every_kind_it_begins_in_agreement_and_every_part_learns(kind, form, tmp_path):
    one = ready(make_kind(kind, tmp_path), agreement_form=form, disagreement=1.0, layer=2 if form == "kl" else None)
    terms = one.terms()
    assert terms["agreement"].item() == pytest.approx(0.0, abs=1e-12)
    assert terms["disagreement"].item() == pytest.approx(1.0)
    terms = one.moved(0.02).terms()
    assert 0 < terms["agreement"].item() < 100
    assert 0 < terms["disagreement"].item() < 1
    found = torch.autograd.grad(total(terms), list(one.named().values()), allow_unused=True)
    for name, gradient in zip(one.named(), found, strict=True):
        assert gradient is not None, name
        assert torch.isfinite(gradient).all(), name
    reached = {name for name, gradient in zip(one.named(), found, strict=True) if gradient.abs().max() > 0}
    assert any("hyperprompt.net" in name for name in reached)
    assert "hyperprompt.components" in reached


@pytest.mark.parametrize("kind", DECODERS)
def test_a_decoder_is_not_asked_for_what_its_prompt_was_written_from(kind, tmp_path):
    one = ready(make_kind(kind, tmp_path), reads=5)
    batch = one.batch()
    given = one.method.prepare_batch(batch)
    assert (given["labels"][:, :5] == -100).all()
    assert torch.equal(given["labels"][:, 5:], batch["labels"][:, 5:])
    prompt = one.method._written(one.model, given)
    for place, shows in ((4, True), (5, False), (15, False)):
        changed = {**given, "input_ids": given["input_ids"].clone()}
        changed["input_ids"][:, place] = 9
        assert (changed["input_ids"] != given["input_ids"]).any()
        assert torch.equal(one.method._written(one.model, changed), prompt) != shows
    # scored where nothing is said of labels: an eighth of the block
    default = ready(make_kind(kind, tmp_path / "again")).method.prepare_batch(batch)
    assert (default["labels"] == -100).sum(1).tolist() == [2] * 4
    assert torch.equal(ready(make_kind(kind, tmp_path / "bare"), prompt="none").method.prepare_batch(batch)["labels"],
                       batch["labels"])  # fmt: skip


def adapted(base_folder):
    def equip(model):
        return make_lora(model, head_names=[], r=4, alpha=8, dropout=0.0, targets=["query", "value"], seed=0)

    return equip


def test_adapters_are_held_against_themselves_without_a_second_copy(tiny_base):
    one = ready(tiny_base, equip=adapted(tiny_base), disagreement=1.0)
    teacher = one.method._teacher
    assert isinstance(teacher, EarlierSelf)
    trained = {name for name, parameter in one.named().items() if parameter.requires_grad}
    assert any("lora_A" in name for name in trained)
    assert any("hyperprompt.components" in name for name in trained)
    assert all("lora_" in name or "hyperprompt" in name for name in trained)
    terms = one.terms()
    assert terms["agreement"].item() == 0.0
    with torch.no_grad():
        for name in trained:
            one.named()[name].add_(0.1)
    before = {name: parameter.detach().clone() for name, parameter in one.named().items()}
    objects = {name: id(parameter) for name, parameter in one.named().items()}
    moved = one.terms()
    assert moved["agreement"] > 1e-6
    total(moved).backward()
    for name, parameter in one.named().items():
        assert id(parameter) == objects[name]
        assert torch.equal(parameter, before[name])
        assert (parameter.grad is not None) == (name in trained), name
    # a plain copy of the prompted model as it was gives the same
    plain = ready(tiny_base, disagreement=1.0)
    with torch.no_grad():
        for name in trained:
            if "hyperprompt" in name:
                plain.named()[name.removeprefix("base_model.model.")].add_(0.1)
    plain.method._drawn = lambda model, batch: one.method._random
    merged = one.model.merge_and_unload()
    weights = {name: tensor for name, tensor in merged.state_dict().items() if "hyperprompt" not in name}
    plain.model.load_state_dict(weights, strict=False)
    for name, term in plain.terms().items():
        torch.testing.assert_close(term, moved[name])


FAST = {"training": {"steps": 3, "batch_size": 4, "block_size": 32, "learning_rate": 1e-3, "precision": "fp32",
                     "evaluate_every": 3}}  # fmt: skip


def test_a_stream_goes_on_with_the_hypernetwork_of_its_first_stage_and_tasks_are_tuned_with_it(
    tiny_base, tiny_domain, tiny_task, tmp_path
):
    other = tmp_path / "other.txt"
    other.write_text("\n".join(tiny_domain.read_text(encoding="utf-8").splitlines()[::-1]), encoding="utf-8")
    store, method = tmp_path / "store", {"name": "hprompt", **SMALL}
    first, second = anytune.pretrain(tiny_base, [tiny_domain, other], store=store, method=method, **FAST)
    models = [open_base(entry).pretraining_model()[0] for entry in (first, second)]
    made, trained_on = (hyperprompt_of(model) for model in models)
    assert made.config == trained_on.config
    assert made.config.components == 4
    for name, tensor in made.encoder.state_dict().items():
        assert torch.equal(tensor, trained_on.encoder.state_dict()[name])
    assert not torch.equal(made.components, trained_on.components)
    with pytest.raises(MethodError, match="a hypernetwork with length = 3, the settings say 10"):
        anytune.pretrain(first, [other], store=store, method={**method, "length": 10}, names=["never"], **FAST)

    tuning = {"steps": 3, "batch_size": 8, "max_length": 24, "precision": "fp32", "learning_rate": 1e-3,
              "keep": "last"}  # fmt: skip
    whole = anytune.tune(second, tiny_task, store=store, training=tuning, name="whole")[0]
    kept = anytune.tune(
        second, tiny_task, store=store, training=tuning, name="kept",
        method={"name": "freeze", "parts": ["hyperprompt"]},
    )[0]  # fmt: skip
    names = [_delta_names(entry) for entry in (whole, kept)]
    assert any(name.endswith("hyperprompt.components") for name in names[0])
    assert not any("hyperprompt" in name for name in names[1])
    assert any("encoder.layer.0" in name for name in names[1])


def _delta_names(entry):
    from safetensors import safe_open

    with safe_open(entry.folder / "delta.safetensors", "pt") as file:
        return set(file.keys())
