"""A store with two deltas that tests of bad input may damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.bad_input.checks import STORE


@pytest.fixture(scope="session")
def tuned_store(tmp_path_factory, tiny_base, tiny_task) -> Path:
    """A store with one full and one LoRA delta of the tiny task; only copied, never changed."""
    from anytune.jobs.tune import tune

    store = tmp_path_factory.mktemp("tuned") / "store"
    for method in ("full", "lora"):
        tune(str(tiny_base), str(tiny_task), store=store, method=method, training={"steps": 2, "batch_size": 8})
    return store


@pytest.fixture
def own_store(tuned_store, tmp_path) -> Path:
    return Path(shutil.copytree(tuned_store, tmp_path / STORE))
