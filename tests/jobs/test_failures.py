"""A seed that diverges among others is a failed run; alone it is the error it always was."""

from __future__ import annotations

import pytest

import anytune
from anytune.errors import DivergedError
from anytune.jobs import tuning
from anytune.store import Store

TRAINING = {"steps": 4, "batch_size": 8, "max_length": 32, "precision": "fp32", "learning_rate": 1e-3}


@pytest.fixture
def bad_seeds(monkeypatch):
    """Seeds whose weights are broken before their first step."""
    bad: set[int] = set()
    real = tuning.prepared

    import contextlib

    @contextlib.contextmanager
    def prepared(plan, encoded, runtime):
        with real(plan, encoded, runtime) as ready:
            if plan.seed in bad:
                ready.model.classifier.bias.data.fill_(float("nan"))
            yield ready

    monkeypatch.setattr(tuning, "prepared", prepared)
    return bad


def test_one_seed_that_diverges_leaves_the_others_alone_and_is_stored_as_failed(
    bad_seeds, tiny_base, tiny_task, tmp_path
):
    bad_seeds.add(1)
    runs = anytune.tune(tiny_base, tiny_task, store=tmp_path, training=TRAINING, seeds=[0, 1, 2])
    assert [bool(run.manifest.failed) for run in runs] == [False, True, False]
    failed = runs[1]
    assert "seed 1" in failed.manifest.failed
    assert "nan" in failed.manifest.failed
    assert (failed.manifest.form, failed.score("test"), failed.score()) == ("scores", None, None)
    assert any("nan" in note for note in failed.manifest.notes)
    assert not Store(tmp_path, create=False).work_folders()
    bad_seeds.clear()
    again = anytune.tune(tiny_base, tiny_task, store=tmp_path, training=TRAINING, seeds=[0, 1, 2])
    assert [run.id for run in again] == [run.id for run in runs], "a failure is a result and is found again"
    with pytest.raises(DivergedError, match="seed 1"):
        anytune.tune(tiny_base, tiny_task, store=tmp_path, training=TRAINING, seeds=[1])
    [anew] = anytune.tune(tiny_base, tiny_task, store=tmp_path, training=TRAINING, seeds=[1], resume="never")
    assert anew.score("test") is not None
    assert len(Store(tmp_path, create=False).find()) == 3


@pytest.mark.parametrize("seeds", [[1], [1, 2]])
def test_where_all_diverge_it_is_an_error(seeds, bad_seeds, tiny_base, tiny_task, tmp_path):
    bad_seeds.update(seeds)
    with pytest.raises(DivergedError, match=r"seed 1.* is nan") as caught:
        anytune.tune(tiny_base, tiny_task, store=tmp_path, training=TRAINING, seeds=seeds)
    assert caught.value.fix
    if len(seeds) == 1:
        assert not list(tmp_path.iterdir())


def test_predictions_that_are_no_numbers_are_a_diverged_run_of_a_regression_too(bad_seeds, tiny_base, tmp_path):
    from tests.conftest import tiny_rows, write_rows

    task = write_rows(tmp_path / "n.csv", [(text, f"{len(text) / 7:.4f}") for text, _ in tiny_rows()])
    bad_seeds.add(0)
    with pytest.raises(DivergedError, match=r"seed 0.* is nan"):
        anytune.tune(tiny_base, task, store=tmp_path / "s", training=TRAINING, kind="regression")


def test_a_worker_that_diverges_ends_nothing(tiny_base, tiny_task, tmp_path):
    """A rate so high that every run diverges, in processes: the error comes after all of them were made."""
    training = {
        **TRAINING,
        "learning_rate": 9.9,
        "steps": 30,
        "max_grad_norm": None,
        "warmup": 0,
        "weight_decay": 9e30,
    }
    with pytest.raises(DivergedError, match="all seeds: 0, 1"):
        anytune.tune(tiny_base, tiny_task, store=tmp_path, training=training, seeds=[0, 1], workers=2)
    assert [bool(entry.manifest.failed) for entry in Store(tmp_path, create=False).find()] == [True, True]
