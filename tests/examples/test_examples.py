"""Each example runs as it stands, and the three places give one score and the same weights."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))


@pytest.fixture
def said(tiny_base, tiny_task, monkeypatch, capsys, tmp_path):
    def run(path: Path) -> list[str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(path), str(tiny_base), str(tiny_task)])
        with torch.random.fork_rng(devices=[]):
            runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out.strip().splitlines()[-2:]

    return run


def test_the_three_places_print_the_same_score_and_the_same_weights(said, tmp_path):
    lines = {path.name: said(path) for path in EXAMPLES}
    assert set(lines) == {"tune_with_anytune.py", "tune_with_pytorch.py", "tune_with_trainer.py"}
    [first, *others] = lines.values()
    assert first[0].startswith("things: accuracy on the test split ")
    assert float(first[0].rsplit(" ", 1)[1]) > 0.2
    assert first[1].startswith("weights ")
    assert all(other == first for other in others), lines
    assert not list(tmp_path.iterdir()), "an example left something in the current folder"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_is_short_and_listed(path):
    assert len(path.read_text().splitlines()) < 60
    assert f"[{path.name}]({path.name})" in (FOLDER / "README.md").read_text()
