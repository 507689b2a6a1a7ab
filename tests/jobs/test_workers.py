"""Seeds of one command spread over processes."""

from __future__ import annotations

import pytest

import anytune
from anytune.errors import DataError, SettingsError
from anytune.models.base import load_base
from anytune.store import Store
from tests.engine.test_fanout import Told

TRAINING = {"steps": 4, "batch_size": 8, "max_length": 32, "precision": "fp32", "learning_rate": 1e-3}


def test_seeds_over_workers_end_in_the_bits_of_one_process(tiny_base, tiny_task, tmp_path):
    together = {"training": TRAINING, "seeds": [0, 1, 2], "tags": {"arm": "x"}}
    alone = anytune.tune(tiny_base, tiny_task, store=tmp_path / "alone", **together)
    told = Told()
    anytune.tune(tiny_base, tiny_task, store=tmp_path / "spread", training=TRAINING, seeds=[1], tags={"arm": "x"})
    spread = anytune.tune(tiny_base, tiny_task, store=tmp_path / "spread", workers=2, reporter=told, **together)
    assert [entry.manifest.seed for entry in spread] == [0, 1, 2]
    assert [entry.manifest.id for entry in spread] == [entry.manifest.id for entry in alone]
    assert [entry.manifest.recipe for entry in spread] == [entry.manifest.recipe for entry in alone]
    assert [entry.manifest.environment.threads for entry in spread] == [1, 1, 1]
    assert told.started == [("tune things", 8, 0)], "a seed that is in the store was made again"
    assert told.steps[-1] == (8, "2/2")
    assert len(Store(tmp_path / "spread", create=False).find()) == 3


def test_what_a_worker_meets_arrives_as_its_own_error_and_an_open_base_is_refused(tiny_base, tiny_task, tmp_path):
    with pytest.raises(SettingsError, match="open base"):
        anytune.tune(load_base(tiny_base), tiny_task, store=tmp_path, training=TRAINING, seeds=[0, 1], workers=2)
    with pytest.raises(DataError):
        anytune.tune(tiny_base, tmp_path / "missing.csv", store=tmp_path, seeds=[0, 1], workers=2)
    with pytest.raises(SettingsError, match="way to fan out"):
        anytune.tune(tiny_base, tiny_task, store=tmp_path, training=TRAINING, seeds=[0, 1], workers=2, fan_out="slurm")
