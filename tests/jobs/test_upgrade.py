"""A shelf of deltas upgraded: what is taken and why, and what becomes of interruptions and of bad deltas."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import anytune
from anytune.jobs.stored_sample import read_sample
from anytune.jobs.upgrade import upgrade
from anytune.manifests import SAMPLE_NAME
from anytune.store import Store

TRAINING = {"steps": 24, "batch_size": 8, "learning_rate": 5e-3, "max_length": 16, "precision": "fp32"}


@pytest.fixture(scope="module")
def made(tiny_base, tiny_task, tiny_domain, tmp_path_factory):
    """A store with a full difference, a LoRA and a prompt, and a base pre-trained on a little."""
    folder = tmp_path_factory.mktemp("made") / "store"
    for method in ("full", {"name": "lora", "r": 4}, {"name": "prompt_tuning", "length": 4}):
        anytune.tune(tiny_base, tiny_task, store=folder, method=method, training=TRAINING)
    [near] = anytune.pretrain(
        tiny_base, tiny_domain, store=folder, names=["near"],
        training={"steps": 2, "batch_size": 4, "block_size": 16, "learning_rate": 1e-4, "precision": "fp32"},
    )  # fmt: skip
    return folder, near


@pytest.fixture
def shelf(made, tmp_path) -> tuple[Path, str]:
    folder, near = made
    shutil.copytree(folder, tmp_path / "store")
    return tmp_path / "store", near.reference


def lines(result):
    return [json.loads(line) for line in result.journal.read_text().splitlines()]


def content(store: Path) -> dict[str, dict[str, str]]:
    """Name of each upgraded delta -> hashes of its files, which are its bits."""
    return {entry.reference: entry.manifest.files for entry in Store(store).find("delta")
            if entry.manifest.decision is not None}  # fmt: skip


def test_a_small_upgrade_keeps_everything_as_it_is(shelf, tiny_base):
    store, near = shelf
    result = upgrade(store, old=tiny_base, new=near, tolerance="2%")
    assert [one.decision.step for one in result.outcomes] == ["keep"] * 3
    assert not result.problems
    for one in result.outcomes:
        entry = Store(store).get(one.made)
        record = entry.manifest.decision
        assert record["step"] == "keep"
        assert record["flag"] == ""
        assert record["score"] >= record["goal"] == pytest.approx(record["old"] - 0.02)
        assert entry.manifest.base.backbone == Store(store).get(near).manifest.base.backbone
        assert entry.manifest.parents[-1].name == Store(store).get(one.delta).name
        assert "test" not in entry.manifest.scores  # nothing but the held-out rows was read
        assert (entry.folder / SAMPLE_NAME).is_file()
        assert read_sample(entry) is not None
        anytune.load(entry, store=store)  # the probe and the files agree
        direct = anytune.recycle(one.delta, near, store=store, method="direct", old_base=tiny_base,
                                 task=_task_file(store), keep="weights")[0]  # fmt: skip
        weights = "delta.safetensors" if entry.manifest.form == "full" else "adapter_model.safetensors"
        assert entry.manifest.files[weights] == direct.manifest.files[weights]
    found = lines(result)
    assert [line["step"] for line in found] == ["keep"] * 3
    assert all(line["reason"] and line["seconds"] > 0 for line in found)
    assert "3 of 3 deltas" in result.page.read_text()
    assert not list((store / ".work").iterdir())


def _task_file(store: Path) -> Path:
    return store.parent / "things.csv"


@pytest.fixture(autouse=True)
def _beside(tmp_path, tiny_task):
    shutil.copyfile(tiny_task, tmp_path / "things.csv")
