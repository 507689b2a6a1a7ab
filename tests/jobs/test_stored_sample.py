"""Held-out rows beside a delta: which, how they come back, and that they are not shared."""

from __future__ import annotations

import pytest

import anytune
from anytune.data.tasks import load_task
from anytune.errors import StoreError
from anytune.jobs.stored_sample import bare_task, chosen_rows, read_sample, write_sample
from anytune.manifests import SAMPLE_NAME, BaseIdentity, Manifest, SampleRecord
from anytune.store import Entry, Store
from tests.conftest import tiny_rows, write_rows

TRAINING = {"steps": 2, "batch_size": 8, "max_length": 16, "precision": "fp32"}
ROWS = {
    "classification": "text,label\na cat,animal\nan oak,plant\na dog,animal\na fern,plant\n",
    "regression": "text,label\na cat,0.25\nan oak,1.5\na dog,-3\na fern,0.125\n",
    "token-classification": '{"tokens": ["Ada", "met"], "tags": ["B-PER", "O"]}\n{"tokens": ["a"], "tags": ["O"]}\n',
    "generation": '{"prompt": "2 + 2", "response": "4"}\n{"prompt": "1 + 1", "response": "2"}\n',
}


@pytest.mark.parametrize("kind", ROWS)
def test_rows_come_back_as_they_were(kind, tmp_path):
    path = tmp_path / ("rows.csv" if kind in ("classification", "regression") else "rows.jsonl")
    path.write_text(ROWS[kind])
    task = load_task(path, kind=kind, validation=path, test=path)
    record = write_sample(tmp_path, task)
    manifest = Manifest(kind="delta", name="x", base=BaseIdentity(backbone="a"), task=task.record(),
                        label_names=list(task.label_names), sample=record)  # fmt: skip
    found = read_sample(Entry(tmp_path, manifest))
    assert found.validation == task.validation
    assert (found.kind, found.metric, found.label_names) == (task.kind, task.metric, task.label_names)
    assert (record.rows, record.of) == (len(task.validation),) * 2
    assert bare_task(manifest).validation == ()


def test_no_more_than_256_rows_each_class_in_its_share(tmp_path):
    task = load_task(write_rows(tmp_path / "many.csv", tiny_rows(900)), validation_fraction=0.5)
    rows = chosen_rows(task.validation, task.kind)
    assert len(rows) == 256
    assert rows == chosen_rows(task.validation, task.kind)
    counts = [sum(row.label == label for row in rows) for label in range(3)]
    assert max(counts) - min(counts) <= 1
    assert set(rows) <= set(task.validation)


def test_rows_are_kept_by_default_and_change_neither_the_id_nor_what_is_exported(tiny_base, tiny_task, tmp_path):
    [kept] = anytune.tune(tiny_base, tiny_task, store=tmp_path / "one", training=TRAINING)
    [bare] = anytune.tune(tiny_base, tiny_task, store=tmp_path / "two", training=TRAINING, keep_sample=False)
    assert (kept.folder / SAMPLE_NAME).is_file()
    assert not (bare.folder / SAMPLE_NAME).exists()
    assert kept.id == bare.id
    assert kept.manifest.run == bare.manifest.run
    assert kept.manifest.sample.rows == kept.manifest.sample.of == len(load_task(tiny_task).validation)
    assert bare.manifest.sample is None
    assert read_sample(bare) is None
    assert SAMPLE_NAME not in kept.manifest.files
    Store(tmp_path / "one").verify(kept)
    [adapter] = anytune.tune(tiny_base, tiny_task, store=tmp_path / "one", method="lora", training=TRAINING)
    assert not (anytune.export(adapter, tmp_path / "out", store=tmp_path / "one") / SAMPLE_NAME).exists()
    assert (anytune.export(adapter, tmp_path / "whole", store=tmp_path / "one", sample=True) / SAMPLE_NAME).is_file()
    for sample in (False, True):  # a full difference leaves as a merged model
        out = anytune.export(kept, tmp_path / f"merged-{sample}", store=tmp_path / "one", sample=sample)
        assert (out / SAMPLE_NAME).is_file() == sample


def test_damaged_rows_are_refused_and_missing_ones_are_none(tmp_path):
    task = load_task(write_rows(tmp_path / "things.csv", tiny_rows(60)))
    manifest = Manifest(kind="delta", name="x", base=BaseIdentity(backbone="a"), task=task.record(),
                        label_names=list(task.label_names), sample=write_sample(tmp_path, task))  # fmt: skip
    entry = Entry(tmp_path, manifest)
    path = tmp_path / SAMPLE_NAME
    path.write_text(path.read_text().replace("animal", "stone", 1))
    with pytest.raises(StoreError, match="damaged"):
        read_sample(entry)
    path.unlink()
    assert read_sample(entry) is None
    assert SampleRecord(rows=1, of=2, sha256="x").rows == 1
