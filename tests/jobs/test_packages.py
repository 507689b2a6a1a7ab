from __future__ import annotations

import pytest
from packaging.requirements import Requirement

from anytune.jobs import packages
from anytune.jobs.packages import KNOWN_BAD, KnownBad, fits, known_bad


@pytest.mark.parametrize(
    ("version", "allowed", "expected"),
    [
        ("2.13.0+cpu", ">=2.6", True),
        ("2.13.0+cpu", "==2.13.0", True),
        ("2.14.0rc1", ">=2.13", True),
        ("5.0", ">=6", False),
        ("1.0", "", True),
    ],
)
def test_build_tags_and_pre_releases_count_as_their_version(version, allowed, expected):
    assert fits(version, allowed) is expected


def test_every_known_bad_row_has_a_link_and_something_to_type():
    for row in KNOWN_BAD:
        assert row.link.startswith("https://github.com/")
        assert row.fix
        assert row.wrong
        for allowed in row.packages.values():
            Requirement(f"x{allowed}")


def test_a_row_is_told_only_if_all_its_packages_are_there_in_its_versions(monkeypatch):
    row = KnownBad({"a": ">=2", "b": "<1"}, "w", "l", "f")
    for versions, expected in (
        ({"a": "2.1", "b": "0.9"}, [row]), ({"a": "1.9", "b": "0.9"}, []), ({"a": "2.1"}, []), ({}, []),
    ):  # fmt: skip
        monkeypatch.setattr(packages, "installed", versions.get)
        assert list(known_bad((row,))) == expected


def test_a_package_built_for_another_torch_is_found(monkeypatch):
    monkeypatch.setattr(packages, "installed", {"torch": "2.13.0+cpu", "torchvision": "0.20"}.get)
    needs = {"torchvision": [Requirement("numpy"), Requirement("torch==2.5.0")]}
    monkeypatch.setattr(packages, "requirements", lambda name: needs.get(name, []))
    [row] = packages.built_for_another_torch()
    assert "torchvision 0.20 is built for torch ==2.5.0, and torch is 2.13.0" in row.wrong
    needs["torchvision"] = [Requirement("torch==2.13.0")]
    assert list(packages.built_for_another_torch()) == []


def test_the_declared_ranges_are_read_from_the_installed_metadata():
    names = {one.name for one in packages.requirements()}
    assert names >= {"torch", "transformers", "peft"}
    assert "gguf" not in names, "extras are not needed"
