"""A base with a hypernetwork through its whole life: stored, loaded, tuned, recycled, merged, damaged."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch

import anytune
from anytune.engine.hf_trainer import hf_trainer
from anytune.errors import BaseError, DataError, DeltaError, SettingsError, WrongBaseError
from anytune.jobs.bases import add_base
from anytune.jobs.deltas import load_delta
from anytune.jobs.opening import open_base
from anytune.models.base import load_base, save_base
from anytune.models.fingerprint import fingerprint_folder
from anytune.models.hyperprompt import make_hyperprompt
from anytune.models.hyperprompt_config import HyperPromptConfig
from anytune.models.prompted import attach, given_prompt, hyperprompt_of
from anytune.store import Store
from tests.models.kinds import KINDS, make_kind

TRAINING = {"steps": 6, "learning_rate": 5e-3, "batch_size": 8, "precision": "fp32", "evaluate_every": 3,
            "max_length": 32, "keep": "last"}  # fmt: skip
PRETRAINING = {"steps": 4, "learning_rate": 1e-3, "batch_size": 4, "block_size": 32, "precision": "fp32"}


def write_prompted(folder, source, seed: int = 1, **settings):
    """The base in ``source`` with a fresh hypernetwork, in ``folder``."""
    base = load_base(source)
    model, _ = base.pretraining_model()
    config = HyperPromptConfig(**{"components": 3, "length": 4, **settings})
    attach(model, make_hyperprompt(base, config, seed), base.anatomy)
    save_base(model, base, folder, base.held_over())
    return folder


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(scope="module")
def prompted(tmp_path_factory, tiny_base):
    """``tiny_base`` with a hypernetwork."""
    return write_prompted(tmp_path_factory.mktemp("bases") / "prompted", tiny_base)


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory, other_base, prompted):
    """``other_base`` with the hypernetwork of ``prompted``, moved: a later stage of the same stream."""
    folder = tmp_path_factory.mktemp("bases") / "upgraded"
    base = load_base(other_base)
    model, _ = base.pretraining_model()
    before, _ = load_base(prompted).pretraining_model()
    own = hyperprompt_of(before)
    with torch.no_grad():
        for weight in own.parameters():
            weight.mul_(1.1)
    attach(model, own, base.anatomy)
    save_base(model, base, folder, base.held_over())
    return folder


def ids_of(base) -> torch.Tensor:
    return torch.randint(5, base.tensors().shape(base.anatomy.word_embeddings)[0] - 20, (2, 9),
                         generator=torch.Generator().manual_seed(3))  # fmt: skip


def state_of(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("encoder", ["frozen_base", "embeddings"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_prompted_base_loads_as_it_was_saved_and_the_bare_one_stays_inside(kind, encoder, tmp_path):
    bare = load_base(make_kind(kind, tmp_path / "bare"))
    model, _ = bare.pretraining_model()
    attach(model, make_hyperprompt(bare, HyperPromptConfig(components=3, length=4, encoder=encoder), 1), bare.anatomy)
    save_base(model, bare, tmp_path / "prompted", bare.held_over())
    base = load_base(tmp_path / "prompted")
    again, fresh = base.pretraining_model()
    assert not fresh
    expected, found = model.state_dict(), again.state_dict()
    assert list(expected) == list(found)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    inputs = {"input_ids": ids_of(base)}
    if bare.anatomy.encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    plain, info = type(model).from_pretrained(tmp_path / "prompted", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with given_prompt(again, "none"):
        assert torch.equal(plain.eval()(**inputs).logits, again(**inputs).logits)
    assert set(base.tensors()) - set(bare.tensors()) == {
        name for name in expected if name.startswith("hyperprompt.") and not bare.anatomy.is_ignored(name)
    }
    heads = [one.task_model("classification", ["a", "b"], 0)[1] for one in (bare, base)]
    assert heads[0] == heads[1]
    # saved once more, from what was loaded: the same bytes
    save_base(again, base, tmp_path / "twice", base.held_over())
    for name in ("hyperprompt.json", "hyperprompt.safetensors", "model.safetensors"):
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "prompted" / name).read_bytes()


def test_bases_that_differ_in_a_hypernetwork_are_different_bases(prompted, tiny_base, tmp_path):
    bare, own = (fingerprint_folder(folder) for folder in (tiny_base, prompted))
    assert own.backbone != bare.backbone
    assert own.config != bare.config
    assert own.vocabulary == bare.vocabulary
    other = fingerprint_folder(write_prompted(tmp_path / "seed", tiny_base, seed=2))
    assert (other.config, other.backbone == own.backbone) == (own.config, False)
    moved = fingerprint_folder(write_prompted(tmp_path / "position", tiny_base, position="append"))
    assert (moved.backbone, moved.config == own.config) == (own.backbone, False)
    # one setting changed in place is seen, cache or not
    folder = shutil.copytree(prompted, tmp_path / "changed")
    for path in folder.iterdir():
        os.utime(path, (1e9, 1e9))  # old enough for the cache to trust
    assert fingerprint_folder(folder) == own
    settings = json.loads((folder / "hyperprompt.json").read_text())
    (folder / "hyperprompt.json").write_text(json.dumps({**settings, "pooling": "first"}))
    assert fingerprint_folder(folder).config != own.config


def test_a_poolers_weights_are_held_over_beside_a_hypernetwork(prompted, tmp_path):
    base = load_base(prompted)
    assert not [name for name in base.held_over() if "hyperprompt" in name]
    model, _ = base.task_model("classification", ["a", "b"], 0)
    folder = shutil.copytree(prompted, tmp_path / "pooled")
    from safetensors.torch import load_file, save_file

    stored = load_file(folder / "model.safetensors")
    pooler = {f"bert.{name}": tensor for name, tensor in model.bert.state_dict().items() if "pooler" in name}
    save_file({**stored, **pooler}, folder / "model.safetensors", metadata={"format": "pt"})
    assert set(load_base(folder).held_over()) == set(pooler)


def test_a_hypernetwork_in_half_precision_is_stored_and_loaded(prompted, tmp_path):
    base = load_base(prompted)
    save_base(base.pretraining_model()[0], base, tmp_path / "half", dtype=torch.bfloat16)
    half = load_base(tmp_path / "half")
    assert {tensor.dtype for tensor in half.tensors().values()} == {torch.bfloat16}
    model, _ = half.pretraining_model(dtype=torch.bfloat16)
    assert hyperprompt_of(model).encoder.dtype == torch.bfloat16
    assert bool(model(ids_of(half)).logits.isfinite().all())


# ---------------------------------------------------------------------- tuning and recycling


def test_full_tuning_trains_the_hypernetwork_and_stores_no_frozen_encoder(prompted, tiny_task, store):
    [entry] = anytune.tune(prompted, tiny_task, store=store, training=TRAINING)
    assert anytune.score(entry, tiny_task, store=store, split="test") == pytest.approx(entry.manifest.scores["test"])
    delta = load_delta(entry)
    changed = {name for name in delta.difference if name.startswith("hyperprompt.")}
    assert "hyperprompt.components" in changed
    assert "hyperprompt.weigh.weight" in changed
    assert not [name for name in changed if name.startswith("hyperprompt.encoder.")]
    model, _ = anytune.load(entry, store=store)
    assert hyperprompt_of(model) is not None
    texts = ["the old oakleaf", "a foxpaw is near"]
    answers = anytune.predict(entry, texts, store=store)
    assert answers == [one for text in texts for one in anytune.predict(entry, [text], store=store)]


def test_a_delta_stays_on_its_side(prompted, tiny_base, tiny_task, store):
    """Of a prompted base never on the bare one, and of the bare one on the prompted only by recycling."""
    [bare] = anytune.tune(tiny_base, tiny_task, store=store, training=TRAINING)
    [own] = anytune.tune(prompted, tiny_task, store=store, training=TRAINING)
    for entry, folder in ((bare, prompted), (own, tiny_base)):
        with pytest.raises((WrongBaseError, DeltaError)):
            anytune.load(entry, store=store, base=folder)
    with pytest.raises(DeltaError, match="hyperprompt"):
        anytune.recycle(own, tiny_base, store=store, method="direct", task=tiny_task)


def test_a_delta_of_a_bare_base_moves_onto_a_prompted_one_and_on(prompted, upgraded, tiny_base, tiny_task, store):
    [old] = anytune.tune(tiny_base, tiny_task, store=store, training=TRAINING)
    [first] = anytune.recycle(old, prompted, store=store, method="direct", task=tiny_task)
    [second] = anytune.recycle(first, upgraded, store=store, method="direct", task=tiny_task)
    [at_once] = anytune.recycle(old, upgraded, store=store, method="direct", task=tiny_task)
    models = [state_of(anytune.load(entry, store=store)[0]) for entry in (old, first, second, at_once)]
    for model, folder in zip(models[1:], (prompted, upgraded, upgraded), strict=True):
        tensors = load_base(folder).tensors()
        own = {name for name in tensors if name.startswith("hyperprompt.")}
        assert own
        assert all(torch.equal(model[name], tensors[name]) for name in own)
    assert all(torch.equal(models[2][name], models[3][name]) for name in models[2])
    shared = [name for name in models[0] if "query.weight" in name]
    # the difference moved; on a base of the same words it is the tuned model's within rounding
    assert shared
    assert all(torch.allclose(models[0][name], models[1][name], atol=1e-6) for name in shared)
    [tuned] = anytune.recycle(first, upgraded, store=store, method="initialize", task=tiny_task, training=TRAINING)
    assert any(name.startswith("hyperprompt.") for name in load_delta(tuned).difference)


def test_a_delta_of_a_prompted_base_takes_the_hypernetworks_difference_along(prompted, upgraded, tiny_task, store):
    [old] = anytune.tune(prompted, tiny_task, store=store, training=TRAINING)
    [new] = anytune.recycle(old, upgraded, store=store, method="direct", task=tiny_task)
    before, after = (state_of(anytune.load(entry, store=store)[0]) for entry in (old, new))
    first, second = (load_base(folder).tensors() for folder in (prompted, upgraded))
    name = "hyperprompt.components"
    assert torch.allclose(after[name] - second[name], before[name] - first[name], atol=1e-6)
    assert not torch.equal(after[name], before[name])


def test_lora_on_a_prompted_base_is_loaded_merged_and_recycled(prompted, upgraded, tiny_task, store, tmp_path):
    [entry] = anytune.tune(prompted, tiny_task, store=store, method="lora", training=TRAINING)
    assert anytune.score(entry, tiny_task, store=store, split="test") == pytest.approx(entry.manifest.scores["test"])
    tensors = load_delta(entry).tensors
    assert not [name for name in tensors if "hyperprompt" in name]
    anytune.recycle(entry, upgraded, store=store, method="direct", task=tiny_task)
    merged = load_base(anytune.merge(entry, tmp_path / "merged", store=store))
    own, base = merged.tensors(), load_base(prompted).tensors()
    assert all(torch.equal(own[name], base[name]) for name in base if name.startswith("hyperprompt."))


@pytest.mark.parametrize("method", ["bitfit", "top_k_layers", "mixout", "recadam"])
def test_other_methods_of_tuning_work_on_a_prompted_base(method, prompted, tiny_task, store):
    [entry] = anytune.tune(prompted, tiny_task, store=store, method=method, training=TRAINING)
    assert anytune.score(entry, tiny_task, store=store, split="test") == pytest.approx(entry.manifest.scores["test"])
    changed = [name for name in load_delta(entry).difference if name.startswith("hyperprompt.encoder.")]
    assert not changed


def test_plain_pretraining_goes_on_from_a_prompted_base(prompted, tiny_domain, store):
    [first] = anytune.pretrain(prompted, [tiny_domain], store=store, names=["v1"], training=PRETRAINING)
    base = open_base("v1", store)
    before, after = load_base(prompted).tensors(), base.tensors()
    assert base.hyperprompt == load_base(prompted).hyperprompt
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert "hyperprompt.components" in moved
    assert not [name for name in moved if name.startswith("hyperprompt.encoder.")]
    assert first.manifest.base.backbone == base.identity.backbone


def test_the_trainer_saves_a_prompted_model_as_a_bare_folder_with_two_files_beside(prompted, tmp_path):
    from transformers import AutoModelForMaskedLM, TrainingArguments

    base = load_base(prompted)
    model, _ = base.pretraining_model()
    arguments = TrainingArguments(output_dir=str(tmp_path / "out"), report_to=[], use_cpu=True, max_steps=1)
    trainer = hf_trainer(model, "full", args=arguments, head_names=[])
    trainer.save_model(str(tmp_path / "saved"))
    _, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["unexpected_keys"]
    saved = load_base(tmp_path / "saved")
    assert saved.identity.backbone == base.identity.backbone
    assert saved.identity.config == base.identity.config


def test_a_store_takes_a_prompted_base_whole(prompted, store):
    entry = add_base(prompted, store=store, name="mine")
    assert open_base("mine", store).identity.backbone == load_base(prompted).identity.backbone
    assert {"hyperprompt.json", "hyperprompt.safetensors"} <= set(entry.manifest.files)


# ---------------------------------------------------------------------- lengths


def test_texts_leave_room_for_the_prompt(prompted, tiny_base, tiny_task, tiny_domain, store):
    assert load_base(tiny_base).position_limit == 64
    assert load_base(prompted).position_limit == 60
    with pytest.raises(SettingsError, match="at most 60 tokens"):
        anytune.tune(prompted, tiny_task, store=store, training={**TRAINING, "max_length": 61})
    longest = {**PRETRAINING, "steps": 1, "block_size": 60}
    anytune.pretrain(prompted, [tiny_domain], store=store, training=longest)
    model, _ = load_base(prompted).pretraining_model()
    with pytest.raises(DataError, match="need 65 positions"):
        model(torch.full((1, 61), 7))


# ---------------------------------------------------------------------- damage


def damaged(prompted, folder, change):
    folder = shutil.copytree(prompted, folder)
    change(folder)
    return folder


def test_half_a_hypernetwork_is_no_base(prompted, tmp_path):
    for name in ("hyperprompt.json", "hyperprompt.safetensors"):
        folder = damaged(prompted, tmp_path / name, lambda place, name=name: (place / name).unlink())
        with pytest.raises(BaseError, match=f"no {name}"):
            load_base(folder)


@pytest.mark.parametrize("change", [
    {"componets": 3}, {"components": 0}, {"position": "middle"}, {"format": 9}, {"length": None},
])  # fmt: skip
def test_damaged_settings_are_named_with_their_file(change, prompted, tmp_path):
    def edit(folder):
        path = folder / "hyperprompt.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))

    with pytest.raises(BaseError, match=r"hyperprompt\.json") as caught:
        load_base(damaged(prompted, tmp_path / "base", edit))
    assert caught.value.why
    assert caught.value.fix


def test_truncated_foreign_or_misshapen_tensors_are_refused(prompted, tmp_path):
    def cut(folder):
        path = folder / "hyperprompt.safetensors"
        path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(BaseError, match=r"hyperprompt\.safetensors"):
        load_base(damaged(prompted, tmp_path / "cut", cut))

    def edit(folder):
        path = folder / "hyperprompt.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "components": 7}))

    base = load_base(damaged(prompted, tmp_path / "shapes", edit))
    with pytest.raises(BaseError, match=r"components: \[3, 4, 32\] in the file, \[7, 4, 32\]"):
        base.pretraining_model()

    def lose(folder):
        from safetensors.torch import load_file, save_file

        path = folder / "hyperprompt.safetensors"
        stored = load_file(path)
        del stored["hyperprompt.net.norm.weight"]
        save_file(stored, path)

    with pytest.raises(BaseError, match=r"net\.norm\.weight: missing"):
        load_base(damaged(prompted, tmp_path / "lost", lose)).pretraining_model()
