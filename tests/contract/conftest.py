from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.contract.bench import Bench


def lively(folder: Path, out: Path) -> Path:
    """A copy of a random base with larger matrices in its blocks.

    As drawn, its [CLS] hardly depends on the text, so that a method that trains little of the body learns nothing.
    """
    shutil.copytree(folder, out)
    tensors = load_file(out / "model.safetensors")
    for name, tensor in tensors.items():
        if ".layer." in name and tensor.ndim == 2:
            tensor *= 5.0
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


@pytest.fixture(scope="session")
def bench(tiny_base, other_base, tiny_task, tiny_domain, tmp_path_factory) -> Bench:
    folder = tmp_path_factory.mktemp("contract")
    base, other = lively(tiny_base, folder / "base"), lively(other_base, folder / "other")
    return Bench(base, other, tiny_task, tiny_domain, folder)
