"""Forecasts of several jobs: later ones on what earlier ones would make, and nothing written."""

from __future__ import annotations

import pytest

from anytune.jobs.forecast import PENDING
from anytune.jobs.recipes import run
from anytune.jobs.tune import tune
from anytune.jobs.use_forecasts import forecast_evaluation, forecast_writing
from tests.jobs.test_forecast import TRAINING, listing


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ANYTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def recipe(base, task, domain, store) -> dict:
    return {
        "store": str(store), "training": TRAINING,
        "jobs": [
            {"job": "tune", "base": str(base), "task": str(task), "seeds": [0, 1], "name": "old"},
            {"job": "pretrain", "base": str(base), "domains": [str(domain)], "names": ["v1"]},
            {"job": "recycle", "delta": "old", "base": "v1", "task": str(task), "training": {"steps": 3}},
            {"job": "recycle", "delta": "old", "base": "v1", "task": str(task), "method": "direct"},
            {"job": "tune", "base": "v1", "task": str(task)},
            {"job": "evaluate", "delta": "old", "task": str(task)},
            {"job": "report"},
        ],
    }  # fmt: skip


def test_a_recipe_is_forecast_job_by_job_before_anything_is_made(cache, tiny_base, tiny_task, tiny_domain):
    written = recipe(tiny_base, tiny_task, tiny_domain, cache / "store")
    before = listing(cache)
    found = run(written, dry_run=True)
    assert listing(cache) == before
    assert [(one.job, one.steps) for one in found] == [
        ("tune", 6), ("tune", 6), ("pretrain", 6), ("recycle", 3), ("recycle", 3), ("recycle", 0), ("recycle", 0),
        ("tune", 6), ("evaluate", 0), ("report", 0),
    ]  # fmt: skip
    assert [PENDING in one.notes for one in found] == [False] * 3 + [True] * 6 + [False]
    del written["jobs"][5:]
    made = [entry for result in run(written) for entry in result]
    assert [(entry.name, entry.manifest.steps) for entry in made] == [(one.name, one.steps) for one in found[:8]]
    again = run(written, dry_run=True)
    assert [one.state for one in again] == ["stored"] * 8


def test_an_upgrade_is_forecast_once_what_it_needs_is_there(cache, tiny_base, tiny_task, tiny_domain):
    written = recipe(tiny_base, tiny_task, tiny_domain, cache / "store")
    written["jobs"] = [*written["jobs"][:2], {"job": "upgrade", "old": str(tiny_base), "new": "v1"}]
    *_, pending = run(written, dry_run=True)
    assert (pending.job, pending.notes) == ("upgrade", (PENDING,))
    run({**written, "jobs": written["jobs"][:2]})
    before = listing(cache)
    *_, known = run(written, dry_run=True)
    assert known.seconds > 0
    assert known.notes[0].startswith("2 deltas: at most ")
    assert known.name == pending.name == "tiny-v1"
    assert listing(cache) == before


def test_what_runs_on_a_stand_in_is_never_taken_for_a_stored_run(cache, tiny_base, tiny_task, tiny_domain):
    """Tuning on the base itself has the run key that tuning on its stand-in would have."""
    tune(tiny_base, tiny_task, store=cache / "store", training=TRAINING)
    written = recipe(tiny_base, tiny_task, tiny_domain, cache / "store")
    written["jobs"] = [written["jobs"][1], written["jobs"][4]]
    assert [one.state for one in run(written, dry_run=True)] == ["new", "new"]


def test_an_evaluation_is_forecast_from_a_part_of_the_split(cache, tiny_base, tiny_task):
    [delta] = tune(tiny_base, tiny_task, store=cache / "store", training=TRAINING)
    before = listing(cache)
    found = forecast_evaluation(delta.folder, tiny_task, batch_size=2)
    assert listing(cache) == before
    assert found.seconds > 0
    assert found.trial.trainable == 0
    [note] = found.notes
    assert note.endswith("(test) are scored")


def test_merging_and_exporting_say_what_they_would_write(cache, tiny_base, tiny_task):
    [delta] = tune(tiny_base, tiny_task, store=cache / "store", training=TRAINING, method="lora")
    before = listing(cache)
    merged = forecast_writing("merge", delta, cache / "out")
    exported = forecast_writing("export", delta, cache / "out")
    assert listing(cache) == before
    assert (merged.place / merged.name) == cache / "out"
    assert merged.disk == (tiny_base / "model.safetensors").stat().st_size
    assert exported.disk == (delta.folder / "adapter_model.safetensors").stat().st_size
