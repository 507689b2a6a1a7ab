from __future__ import annotations

import pytest

from tests.contract.conftest import lively
from tests.methods.recycle.outdated import Case, tuned


@pytest.fixture(scope="session")
def moving_bases(tiny_base, other_base, tmp_path_factory):
    """(old, new): two random bases of one shape, whose answers depend on the text."""
    folder = tmp_path_factory.mktemp("moving")
    return lively(tiny_base, folder / "old"), lively(other_base, folder / "new")


@pytest.fixture(scope="session")
def old_full(moving_bases, tiny_task, tmp_path_factory):
    return tuned(tmp_path_factory.mktemp("full"), moving_bases[0], tiny_task)


@pytest.fixture(scope="session")
def old_lora(moving_bases, tiny_task, tmp_path_factory):
    method = {"name": "lora", "r": 4, "targets": "all-linear"}
    return tuned(tmp_path_factory.mktemp("lora"), moving_bases[0], tiny_task, method, learning_rate=1e-2)


@pytest.fixture(scope="session")
def full_case(old_full, moving_bases, tiny_task) -> Case:
    return Case(old_full, *moving_bases, tiny_task)


@pytest.fixture(scope="session")
def lora_case(old_lora, moving_bases, tiny_task) -> Case:
    return Case(old_lora, *moving_bases, tiny_task)
