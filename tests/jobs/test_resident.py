"""One base in memory: what is written into it is taken out again, bit for bit, and nothing piles up."""

from __future__ import annotations

import gc

import pytest
import torch

import anytune
from anytune.errors import DeltaError
from anytune.jobs.deltas import load_delta
from anytune.jobs.resident import Resident
from anytune.models.adapters import AdapterDelta
from anytune.models.base import load_base
from tests.conftest import tiny_rows, write_rows

TRAINING = {"steps": 3, "batch_size": 8, "learning_rate": 1e-2, "max_length": 16, "precision": "fp32", "keep": "last"}
KINDS = {
    "full": "full",
    "lora": {"name": "lora", "r": 2},
    "prompt": {"name": "prompt_tuning", "length": 3},
    "bottleneck": "bottleneck",
}


@pytest.fixture(scope="module")
def shelf(tiny_base, tiny_task, tmp_path_factory):
    """A store with a delta of each kind, and one of a task with two classes."""
    folder = tmp_path_factory.mktemp("shelf")
    made = {}
    for name, method in KINDS.items():
        [made[name]] = anytune.tune(tiny_base, tiny_task, store=folder / "store", method=method, training=TRAINING)
    two = write_rows(folder / "two.csv", [row for row in tiny_rows(40, 5) if row[1] != "stone"])
    [made["two classes"]] = anytune.tune(tiny_base, two, store=folder / "store", method="full", training=TRAINING)
    return folder / "store", made


def batch():
    return {"input_ids": torch.arange(6, 18).reshape(2, 6), "attention_mask": torch.ones(2, 6, dtype=torch.long)}


def held(resident, entry):
    manifest = entry.manifest
    return resident.holding(load_delta(entry), manifest.task.kind, manifest.label_names)


def states(resident):
    return {
        (key, name): tensor.clone()
        for key, fitted in resident._fitted.items()
        for name, tensor in fitted.model.state_dict().items()
    }


def test_every_kind_answers_as_loaded_alone_and_leaves_no_bit_behind(shelf, tiny_base):
    store, made = shelf
    resident = Resident(load_base(tiny_base))
    assert load_delta(made["full"]).difference, "a delta that changes nothing would leave nothing behind"
    for entry in made.values():  # every head is made
        with held(resident, entry):
            pass
    before, parts = states(resident), {key: list(dict(one.model.named_modules())) for key, one in
                                       resident._fitted.items()}  # fmt: skip
    for name in [*made, *made]:
        alone, _ = anytune.load(made[name], store=store)
        with held(resident, made[name]) as model, torch.no_grad():
            assert torch.equal(model(**batch()).logits, alone(**batch()).logits), name
        after = states(resident)
        assert after.keys() == before.keys(), name
        assert all(torch.equal(after[key], before[key]) for key in before), name
    assert parts == {key: list(dict(one.model.named_modules())) for key, one in resident._fitted.items()}
    assert all(not hasattr(one.model, "peft_config") for one in resident._fitted.values())


def test_heads_of_all_kinds_share_one_backbone(shelf, tiny_base):
    _, made = shelf
    resident = Resident(load_base(tiny_base))
    for name in ("full", "two classes"):
        with held(resident, made[name]):
            pass
    one, other = (dict(fitted.model.named_parameters()) for fitted in resident._fitted.values())
    shared = [name for name in one if one[name] is other[name]]
    own = {name for name in one if name not in shared}
    assert len(shared) > 20
    assert own
    assert all("classifier" in name or "pooler" in name for name in own)  # this base holds no pooler


def test_a_delta_that_does_not_fit_leaves_the_base_as_it_was(shelf, tiny_base):
    _, made = shelf
    resident = Resident(load_base(tiny_base))
    with held(resident, made["lora"]):
        pass
    before = states(resident)
    delta = load_delta(made["lora"])
    broken = AdapterDelta(delta.config, {name: tensor[:1] for name, tensor in delta.tensors.items()})
    with pytest.raises(DeltaError), resident.holding(broken, "classification", made["lora"].manifest.label_names):
        pass
    assert all(torch.equal(tensor, before[key]) for key, tensor in states(resident).items())


def test_memory_does_not_grow_with_the_shelf(shelf, tiny_base):
    _, made = shelf
    resident = Resident(load_base(tiny_base))

    def swapped(times: int) -> tuple[int, int]:
        for _ in range(times):
            for entry in made.values():
                with held(resident, entry) as model, torch.no_grad():
                    model(**batch())
        gc.collect()
        tensors = [one for one in gc.get_objects() if isinstance(one, torch.Tensor)]
        return len(tensors), sum(one.numel() * one.element_size() for one in tensors)

    first = swapped(2)
    assert swapped(6) == first
