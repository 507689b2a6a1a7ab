"""The rooms' order is a contract in pyproject.toml; this checks that the contract speaks of every room."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "anytune"


def contract() -> dict:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return next(one for one in settings["tool"]["importlinter"]["contracts"] if one["type"] == "layers")


def test_the_contract_names_every_room_and_no_room_that_is_not_there():
    named = {room.strip() for layer in contract()["layers"] for room in layer.split("|")}
    rooms = {path.name for path in SOURCE.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    floor = {path.stem for path in SOURCE.glob("*.py")} - {"__init__", "__main__", "_version"}
    assert named == rooms | floor


def test_rooms_of_methods_are_independent_by_contract():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    named = next(one for one in settings["tool"]["importlinter"]["contracts"] if one["type"] == "independence")
    rooms = {
        f"anytune.methods.{path.name}" for path in (SOURCE / "methods").iterdir() if (path / "__init__.py").exists()
    }
    assert set(named["modules"]) == rooms


def test_nothing_is_called_utils_helpers_or_common():
    names = {path.stem for path in SOURCE.rglob("*")}
    assert not names & {"utils", "util", "helpers", "helper", "common", "misc"}


def test_importing_the_package_imports_nothing_heavy():
    heavy = {"torch", "transformers", "pydantic", "pandas", "typer"}
    code = f"import sys, anytune; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_of_the_package_resolves():
    import anytune

    assert all(getattr(anytune, name) is not None for name in anytune.__all__)
