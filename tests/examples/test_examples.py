"""Each example runs as it stands; the three places give one score and the same weights, and prompts are handed on."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import tiny_rows, write_rows

FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
PLACES = sorted(FOLDER.glob("tune_with_*.py"))


@pytest.fixture
def said(tiny_base, tiny_task, monkeypatch, capsys, tmp_path):
    def run(path: Path, *more: Path, last: int = 2, between: list[Path] | None = None) -> list[str]:
        monkeypatch.chdir(tmp_path)
        given = [*between, *more] if between else [tiny_task, *more]
        monkeypatch.setattr(sys, "argv", list(map(str, (path, tiny_base, *given))))
        with torch.random.fork_rng(devices=[]):
            runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out.strip().splitlines()[-last:]

    return run


def test_the_three_places_print_the_same_score_and_the_same_weights(said, tmp_path):
    lines = {path.name: said(path) for path in PLACES}
    assert set(lines) == {"tune_with_anytune.py", "tune_with_pytorch.py", "tune_with_trainer.py"}
    [first, *others] = lines.values()
    assert first[0].startswith("things: accuracy on the test split ")
    assert float(first[0].rsplit(" ", 1)[1]) > 0.2
    assert first[1].startswith("weights ")
    assert all(other == first for other in others), lines
    assert not list(tmp_path.iterdir()), "an example left something in the current folder"


def test_a_prompt_is_ranked_started_from_and_learnt_from(said, tmp_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    tasks = [
        write_rows(folder / f"{name}.csv", tiny_rows(40, seed)) for seed, name in enumerate(("walks", "finds"), 3)
    ]
    lines = said(FOLDER / "transfer_a_prompt.py", *tasks, last=3)
    ways = [line.partition(": accuracy on the test split ") for line in lines]
    assert ways[0][0] == "prompt tuning"
    assert ways[1][0] in ("from walks", "from finds")
    assert ways[2][0] == "taught by that"
    assert all(0 <= float(score) <= 1 for _, _, score in ways)
    assert not list(tmp_path.iterdir()), "an example left something in the current folder"


def test_a_shelf_is_brought_over(said, tiny_domain, tiny_task, tmp_path, tmp_path_factory):
    finds = write_rows(tmp_path_factory.mktemp("shelf") / "finds.csv", tiny_rows(40, 5))
    # said() gives the base and a task; the example wants the domain between them
    lines = said(FOLDER / "upgrade_a_shelf.py", tiny_task, finds, last=5, between=[tiny_domain])
    assert lines[0].startswith("the base moved by ")
    assert 0 < float(lines[0].split()[4]) < 100
    assert {line.partition(":")[0].rpartition("-")[0] for line in lines[1:]} == {
        f"{task}-{method}" for task in ("things", "finds") for method in ("full", "lora")
    }
    assert all(" by " in line for line in lines[1:])
    assert not list(tmp_path.iterdir()), "an example left something in the current folder"


def test_a_lora_is_scored_before_and_after_the_upgrade(said, tiny_domain, tmp_path):
    lines = said(FOLDER / "recycle_smollm2.py", tiny_domain, last=4)
    ways = [line.partition(": accuracy on the test split ") for line in lines]
    assert [way for way, _, _ in ways] == ["old base", "as it is", "10 steps from there", "10 steps afresh"]
    assert all(0 <= float(score) <= 1 for _, _, score in ways)
    assert not list(tmp_path.iterdir()), "an example left something in the current folder"


def test_every_example_is_run_here():
    runs = {"transfer_a_prompt.py", "upgrade_a_shelf.py", "recycle_smollm2.py"}
    assert {path.name for path in EXAMPLES} == {*(path.name for path in PLACES), *runs}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_is_short_and_listed(path):
    assert len(path.read_text().splitlines()) < 60
    assert f"[{path.name}]({path.name})" in (FOLDER / "README.md").read_text()
