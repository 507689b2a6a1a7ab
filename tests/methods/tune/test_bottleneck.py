"""Bottleneck adapters through the jobs a user calls: tuned, loaded, recycled, gone on with, exported."""

from __future__ import annotations

import pytest
import torch

import anytune
from anytune.errors import DeltaError, MethodError
from anytune.jobs.deltas import load_delta
from anytune.jobs.model_card import model_card
from anytune.jobs.opening import open_base
from anytune.jobs.use_forecasts import forecast_writing
from anytune.models.bottleneck import bottlenecks_of
from anytune.models.fingerprint import fingerprint_state
from anytune.store import Store
from anytune.store.importing import import_folder

TRAINING = {"steps": 6, "learning_rate": 5e-3, "batch_size": 8, "max_length": 32, "precision": "fp32",
            "keep": "last"}  # fmt: skip
METHOD = {"name": "bottleneck", "width": 4}
TEXTS = ["the old oakleaf was near flintrock", "a small owl seen by dogpaw"]


@pytest.fixture(scope="module")
def shelf(tiny_base, tiny_task, tmp_path_factory):
    store = tmp_path_factory.mktemp("shelf") / "store"
    [entry] = anytune.tune(tiny_base, tiny_task, store=store, method=METHOD, training=TRAINING, name="thin")
    return store, entry


def test_it_is_stored_as_a_head_alone_and_answers_the_same_when_loaded(shelf, tiny_base):
    store, entry = shelf
    delta = load_delta(entry)
    assert delta.difference == {}
    assert delta.bottleneck == {"width": 4, "activation": "gelu_tanh"}
    model, _ = anytune.load(entry, store=store, base=tiny_base)  # holds its numeric probe against the run's
    assert len(bottlenecks_of(model)) == 4
    held = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("bottleneck.")}
    base = open_base(tiny_base)
    assert fingerprint_state(held, base.anatomy, delta.head) == base.identity.backbone
    assert all(0 <= row["probability"] <= 1 for row in anytune.predict(entry, TEXTS, store=store, base=tiny_base))


def test_it_is_recycled_directly_and_tuned_on(shelf, tiny_base, other_base, tiny_task):
    store, entry = shelf
    given = {"store": store, "task": tiny_task, "old_base": tiny_base}
    [direct] = anytune.recycle(entry, other_base, method="direct", **given)
    old, moved = load_delta(entry), load_delta(direct)
    assert moved.head.keys() == old.head.keys()
    assert all(torch.equal(moved.head[name], old.head[name]) for name in old.head)
    assert moved.difference == {}
    [more] = anytune.recycle(entry, other_base, method="initialize", **given)
    tuned_on = load_delta(more)
    assert (tuned_on.difference, tuned_on.bottleneck) == ({}, old.bottleneck)
    changed = {name for name in old.head if not torch.equal(tuned_on.head[name], old.head[name])}
    assert any(name.startswith("bottleneck.") for name in changed)
    assert any(name.startswith("classifier.") for name in changed)
    anytune.load(more, store=store, base=other_base)


def test_a_run_that_starts_from_it_goes_on_with_its_own_networks(shelf, tiny_base, tiny_task):
    store, entry = shelf
    training = {**TRAINING, "learning_rate": 1e-12, "steps": 1}
    [again] = anytune.tune(
        tiny_base, tiny_task, store=store, method=METHOD, start_from=entry, training=training, name="same"
    )
    old, new = load_delta(entry), load_delta(again)
    assert all(torch.allclose(new.head[name], old.head[name], rtol=0, atol=1e-9) for name in old.head)
    with pytest.raises(MethodError, match=r"width = 5[\s\S]*--set width=4"):
        anytune.tune(tiny_base, tiny_task, store=store, method={**METHOD, "width": 5}, start_from=entry,
                     training=training, name="other")  # fmt: skip


def test_it_is_exported_as_it_is_and_never_merged(shelf, tiny_base, tmp_path):
    store, entry = shelf
    with pytest.raises(DeltaError, match="cannot be merged"):
        anytune.merge(entry, tmp_path / "merged", store=store, base=tiny_base)
    with pytest.raises(DeltaError, match="cannot be merged"):
        forecast_writing("merge", entry, tmp_path / "merged", store=store, base=tiny_base)
    assert forecast_writing("export", entry, tmp_path / "out", store=store, base=tiny_base).notes == (
        "the delta as it is stored",
    )
    out = anytune.export(entry, tmp_path / "out", store=store, base=tiny_base)
    assert (out / "delta.safetensors").read_bytes() == (entry.folder / "delta.safetensors").read_bytes()
    assert not (tmp_path / "merged").exists()
    [again] = import_folder(Store(tmp_path / "other"), out, open_base(tiny_base))
    assert again.manifest.id == entry.manifest.id
    anytune.load(again, store=tmp_path / "other", base=tiny_base)


def test_its_card_on_a_hub_does_not_promise_that_it_can_be_merged(shelf):
    _, entry = shelf
    card = model_card(entry.manifest, "owner/thin")
    assert "Bottleneck adapters: " in card
    assert "anytune merge" not in card
