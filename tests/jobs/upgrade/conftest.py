"""A shelf of deltas, and bases it may go to."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import anytune
from tests.conftest import tiny_rows, write_rows

TRAINING = {"steps": 100, "batch_size": 16, "learning_rate": 1e-2, "max_length": 16, "precision": "fp32"}


@pytest.fixture(scope="session")
def things(tmp_path_factory) -> Path:
    """Enough rows for 40 held-out ones."""
    return write_rows(tmp_path_factory.mktemp("rows") / "things.csv", tiny_rows(400))


@pytest.fixture(scope="session")
def made(tiny_base, things, tiny_domain, tmp_path_factory):
    """A store with a full difference, a LoRA and a prompt, and a base pre-trained on a little."""
    folder = tmp_path_factory.mktemp("made") / "store"
    methods = {"full": 2e-3, "lora": 2e-3, "prompt_tuning": 1e-2}
    for name, rate in methods.items():
        method = {"name": "lora", "r": 8, "targets": "all-linear"} if name == "lora" else name
        [one] = anytune.tune(
            tiny_base, things, store=folder, method=method, training={**TRAINING, "learning_rate": rate}
        )
        # a random base answers no prompt; of the others, bad ones would show nothing
        assert one.score() > 0.6 or name == "prompt_tuning"
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


@pytest.fixture(autouse=True)
def _beside(tmp_path, things):
    shutil.copyfile(things, tmp_path / "things.csv")


@pytest.fixture
def far(shelf, other_base, tmp_path):
    """A shelf whose new base has nothing in common with the old one, so that weights do not carry over."""
    return shelf[0], other_base
