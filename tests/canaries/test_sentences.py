"""A canary must say who leans on it: each sentence names a file of ours that is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "src" / "anytune"
FILES = sorted(path for path in HERE.glob("test_*.py") if path.name != Path(__file__).name)


def sentences(function: ast.FunctionDef) -> list[str]:
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    found = [call.args[0] for call in calls if isinstance(call.func, ast.Name) and call.func.id == "assumption"]
    return [text.value for text in found if isinstance(text, ast.Constant)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_canary_has_one_sentence_that_names_what_leans_on_it(path):
    tests = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    tests = [node for node in tests if node.name.startswith("test_")]
    assert tests
    for test in tests:
        said = sentences(test)
        assert len(said) == 1, test.name
        upstream, _, ours = said[0].partition(": ")
        assert re.search(r"\b(no longer|now)\b", upstream), said[0]
        named = re.findall(r"[a-z_]+(?:/[a-z_]+)*\.py", ours)
        assert named, said[0]
        assert all((SOURCE / name).is_file() for name in named), said[0]
