"""What the documents tell a reader to type exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/concepts.md",
    "docs/diagnose.md",
    "docs/recycling.md",
    "docs/stability.md",
    "docs/transfer.md",
    "docs/upgrade.md",
)


def commands() -> list[str]:
    """Every ``anytune ...`` line of a code block, and every inline one that has an argument."""
    found = []
    for name in DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        for block in re.findall(r"```\n(.*?)```", text, flags=re.DOTALL):
            found += [line.split("#")[0].strip() for line in block.splitlines() if line.startswith("anytune ")]
        found += re.findall(r"`(anytune [a-z]+[^`\n]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("line", commands())
def test_every_command_and_option_in_the_documents_is_known(line, cli):
    words = shlex.split(line)[1:]
    depth = 2 if words[0] in ("store", "samples", "transfer") and len(words) > 1 and words[1].islower() else 1
    answer = cli(*words[:depth], "--help")
    assert answer.code == 0, line
    for option in [word for word in words[depth:] if word.startswith("--")]:
        assert option in answer.out, f"{line}: no {option}"


def test_the_documents_name_recipes_that_are_there():
    for name in DOCUMENTS:
        for recipe in re.findall(r"recipes/[\w-]+\.yaml", (ROOT / name).read_text(encoding="utf-8")):
            assert (ROOT / recipe).is_file(), recipe
