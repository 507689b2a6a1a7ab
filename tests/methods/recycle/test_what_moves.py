"""Invariants of moving weights, by their numbers in the notes on recyclable tuning, for every form of delta.

Beside them stand defects B3, B4, B8, B13 and B15 for the forms that ``test_published_defects`` leaves out: each is a
fault of what a state dict is taken to hold, and here every tensor goes by its canonical name.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

import anytune
from anytune.engine.loop import Evaluation
from anytune.evaluate.connectivity import path_between
from anytune.jobs.deltas import load_delta
from anytune.jobs.opening import open_base
from anytune.jobs.outdated import Moving
from anytune.manifests import file_hashes
from anytune.models.difference import same_bits
from anytune.models.fingerprint import fingerprint_state
from anytune.store import Store
from tests.jobs.test_base_changes import METHODS, TRAINING, Shelf
from tests.jobs.upgraded import changed, nudged

POOLER = ("bert.pooler.dense.weight", "bert.pooler.dense.bias")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory, tiny_base, tiny_task):
    return Shelf(tmp_path_factory.mktemp("moves"), tiny_base, tiny_task)


def installed(shelf, form, new, scale=1.0):
    entry, base = shelf.delta(form), open_base(new)
    model, _ = base.task_model("classification", entry.manifest.label_names, seed=5)
    return Moving(entry, open_base(shelf.base), base).install(model, scale).eval()


def frozen_body(model):
    """The model's tensors by plain names, without what adapters brought."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    made = ("lora_", "modules_to_save", "original_module", "soft_prompt", "bottleneck")
    return {
        name.replace("base_layer.", ""): tensor
        for name, tensor in inner.state_dict().items()
        if not any(part in name for part in made)
    }


def test_invariant_2_a_path_ends_at_its_models_whatever_integers_they_hold(shelf, tmp_path):
    first = installed(shelf, "full", shelf.base)
    second = installed(shelf, "full", nudged(shelf.base, tmp_path / "new"))
    for model in (first, second):
        model.bert.embeddings.register_buffer("position_ids", torch.arange(64).unsqueeze(0))
        model.register_buffer("seen", torch.tensor([True, False]))
    ends = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for model in (first, second)]
    seen = []

    def look(model):
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return Evaluation(scores={}, better=0.0, loss=0.0)

    assert path_between(first, ends[0], ends[1], look).barrier == 0
    assert len(seen) == 26
    for end, found in ((ends[0], seen[0]), (ends[1], seen[-1])):
        assert all(torch.equal(end[name], found[name]) for name in end)
    for found in seen:  # B8: at 10 of 26 points whole numbers used to be off by one
        assert torch.equal(found["bert.embeddings.position_ids"], torch.arange(64).unsqueeze(0))
        assert found["seen"].tolist() == [True, False]


@pytest.mark.parametrize("form", ["full", "lora", "bottleneck"])
def test_invariant_3_at_scale_0_the_new_base_is_left_with_the_old_head(form, shelf, tmp_path):
    new = nudged(shelf.base, tmp_path / "new")
    model, entry = installed(shelf, form, new, scale=0.0), shelf.delta(form)
    plain, head = open_base(new).task_model("classification", entry.manifest.label_names, seed=5)
    old = load_delta(entry)
    tuned = old.head if form != "lora" else old.head(open_base(shelf.base).tensors(), open_base(new).anatomy)
    with torch.no_grad():
        for name in head:
            plain.state_dict()[name].copy_(tuned[name])
    rows = {"input_ids": torch.tensor([[2, 30, 41, 9, 3]])}
    with torch.no_grad():
        assert torch.equal(model(**rows).logits, plain.eval()(**rows).logits)
        assert not torch.equal(installed(shelf, form, new)(**rows).logits, plain(**rows).logits)


def test_invariant_3_what_leads_from_one_model_to_another_leads_there_and_back(shelf, tmp_path):
    base, other = open_base(shelf.base), open_base(nudged(shelf.base, tmp_path / "new"))
    delta = load_delta(shelf.delta("full"))
    there = delta.rebased(other.identity)
    assert all(torch.equal(there.difference[name], delta.difference[name]) for name in delta.difference)
    back = there.rebased(base.identity)
    assert back.corrections == {}
    one, two = (each.apply(base.tensors(), base.identity) for each in (delta, back))
    for name in delta.difference:  # without the corrections that only the own base may use, to the last place
        apart = (one[name].double() - two[name].double()).abs()
        assert (apart <= 2**-23 * (one[name].abs() + delta.difference[name].abs())).all()


@pytest.mark.parametrize("form", ["lora", "bottleneck", "prompt"])
def test_invariant_7_the_frozen_backbone_is_the_new_bases_through_training_saving_and_loading(form, shelf, tmp_path):
    new = nudged(shelf.base, tmp_path / "new")
    files = file_hashes(new)
    entry = shelf.recycle(form, new, method="initialize")
    model, _ = anytune.load(entry, store=shelf.store, base=new)
    base = open_base(new)
    delta = load_delta(entry)
    own = [name for name in frozen_body(model) if "pooler" in name]
    assert fingerprint_state(frozen_body(model), base.anatomy, own) == base.identity.backbone
    assert file_hashes(new) == files
    assert (delta.difference == {}) if form == "bottleneck" else delta.tensors


@pytest.mark.parametrize("form", ["lora", "bottleneck", "prompt"])
def test_defects_b3_and_b4_every_hop_keeps_the_whole_head_and_nothing_of_the_backbone(form, shelf, tmp_path):
    hops = [nudged(shelf.base, tmp_path / f"hop{number}", number) for number in (1, 2)]
    kept = [shelf.delta(form)]
    for before, new in zip([shelf.base, *hops], hops, strict=False):
        [made] = anytune.recycle(kept[-1], new, method="initialize", task=shelf.task, old_base=before,
                                 store=shelf.store)  # fmt: skip
        kept.append(made)
    held = []
    for entry in kept:
        file = entry.folder / ("delta.safetensors" if form == "bottleneck" else "adapter_model.safetensors")
        held.append(set(load_file(file)))
    assert held[0] == held[1] == held[2]
    backbone = {name.removeprefix("bert.") for name in open_base(shelf.base).tensors()}
    for name in held[0]:
        assert not any(name.endswith(f".{one}") and "lora_" not in name for one in backbone), name
    assert any("classifier.weight" in name for name in held[0])
    assert any("pooler" in name for name in held[0])


@pytest.mark.parametrize("width", [1, 8, 24])
def test_defect_b13_adapters_load_from_any_folder_at_any_width(width, shelf, tmp_path, monkeypatch):
    [entry] = anytune.tune(shelf.base, shelf.task, store=shelf.store, method={"name": "bottleneck", "width": width},
                           training={**TRAINING, "steps": 1}, name=f"w{width}")  # fmt: skip
    place = anytune.export(entry, tmp_path / "x", store=shelf.store, base=shelf.base)
    model, _ = anytune.load(place, base=shelf.base)
    assert {one.down.out_features for one in model.bottleneck.values()} == {width}
    assert torch.equal(shelf.answers(place, shelf.base), shelf.answers(entry, shelf.base))


def test_defect_b15_a_base_whose_file_holds_position_ids_moves_like_one_without(shelf, tmp_path):
    """Older files hold position ids first; newer ones hold none. The word embeddings move either way."""

    def with_ids(state):
        return {"bert.embeddings.position_ids": torch.arange(64).unsqueeze(0), **state}

    plain, older = nudged(shelf.base, tmp_path / "plain"), tmp_path / "older"
    changed(plain, older, with_ids)
    found = [shelf.recycle("full", new, name=new.name) for new in (plain, older)]
    one, other = (load_delta(entry) for entry in found)
    assert one.difference.keys() == other.difference.keys()
    assert "embeddings.word_embeddings.weight" in one.difference
    assert not any("position_ids" in name for name in other.body)
    assert torch.equal(shelf.answers(found[0], plain), shelf.answers(found[1], older))


@pytest.mark.parametrize("form", ["full", "lora", "prompt", "bottleneck"])
def test_a_pooler_that_the_upgrade_lost_goes_along_with_the_head(form, shelf, tmp_path):
    draw = torch.Generator().manual_seed(3)
    pooler = {POOLER[0]: torch.randn(32, 32, generator=draw) * 0.1, POOLER[1]: torch.randn(32, generator=draw) * 0.1}
    old = changed(shelf.base, tmp_path / "old", lambda state: {**state, **pooler})
    store = Store(tmp_path / "store")
    [entry] = anytune.tune(old, shelf.task, store=store, method=METHODS[form], training=TRAINING)
    [moved] = anytune.recycle(entry, shelf.base, store=store, method="direct", task=shelf.task, old_base=old)
    assert any("pooler" in name for name in load_file(next(moved.folder.glob("*.safetensors"))))
    answers = [anytune.predict(one, ["a small owl"], store=store, base=base)[0]["probabilities"]
               for one, base in ((entry, old), (moved, shelf.base))]  # fmt: skip
    assert answers[0] == pytest.approx(answers[1], abs=1e-6)


def test_a_scaled_bottleneck_adds_that_share_of_what_it_added(shelf, tmp_path):
    new = nudged(shelf.base, tmp_path / "new")
    whole, half = (installed(shelf, "bottleneck", new, scale).bottleneck for scale in (1.0, 0.5))
    given = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    for name in whole:
        torch.testing.assert_close(half[name](given) - given, (whole[name](given) - given) / 2)
    entry = shelf.recycle("bottleneck", new, method={"name": "scaled", "grid": [0.5]})
    anytune.load(entry, store=shelf.store, base=new)


def test_where_the_bases_agree_a_recycled_full_difference_is_the_tuned_model_bit_for_bit(shelf, tmp_path):
    same = changed(shelf.base, tmp_path / "copy")
    one, other = (installed(shelf, "full", base).state_dict() for base in (shelf.base, same))
    assert all(same_bits(one[name], other[name]).all() for name in one)
