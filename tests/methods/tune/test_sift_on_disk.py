"""A sparse difference in the store: small, and handled like any other."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

import anytune
from anytune.jobs.deltas import load_delta
from anytune.models.delta import DELTA_FILE
from anytune.store import Store
from tests.contract.bench import Bench, equal
from tests.contract.conftest import bench  # noqa: F401


def size(tensors) -> int:
    return sum(one.numel() * one.element_size() for one in tensors)


@pytest.fixture(scope="module")
def shelf(bench: Bench, tmp_path_factory):  # noqa: F811
    store = Store(tmp_path_factory.mktemp("sparse") / "store")
    training = {"steps": 4, "batch_size": 8, "max_length": 32, "learning_rate": 1e-2, "precision": "fp32",
                "keep": "last"}  # fmt: skip
    made = {
        name: anytune.tune(bench.base, bench.task, store=store, method=method, training=training, name=name)[0]
        for name, method in (("sparse", {"name": "sift", "share": 0.02}), ("full", "full"))
    }
    return store, made


def test_a_stored_sparse_difference_is_small(shelf, bench: Bench):  # noqa: F811
    _, made = shelf

    def body(entry):
        return size(one for name, one in load_file(entry.folder / DELTA_FILE).items()
                    if not name.startswith("head/") and ".layer." in f".{name}")  # fmt: skip

    assert body(made["sparse"]) < 2 * 0.02 * 1.2 * body(made["full"])
    assert (made["sparse"].folder / DELTA_FILE).stat().st_size < (made["full"].folder / DELTA_FILE).stat().st_size / 3
    delta = load_delta(made["sparse"])
    for name, values in delta.difference.items():
        assert values.ndim == 2
        assert 0 < values.count_nonzero() <= -(-values.numel() * 2 // 100), name
    assert len(delta.difference) == 12


def test_it_loads_merges_and_recycles_like_any_other(shelf, bench: Bench, tmp_path):  # noqa: F811
    from transformers import AutoModelForSequenceClassification

    store, made = shelf
    model, _ = anytune.load(made["sparse"], store=store)  # asks the stored probe
    assert anytune.score(made["sparse"], bench.task, store=store) == made["sparse"].manifest.scores["test"]
    anytune.merge(made["sparse"], tmp_path / "merged", store=store)
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert equal(dict(merged.state_dict()), dict(model.state_dict()))
    [moved] = anytune.recycle(made["sparse"], bench.other, store=store, method="direct", task=bench.task)
    old, new = load_delta(made["sparse"]), load_delta(moved)
    assert equal(old.difference, new.difference)
    assert (moved.folder / DELTA_FILE).stat().st_size < 1.2 * (made["sparse"].folder / DELTA_FILE).stat().st_size
