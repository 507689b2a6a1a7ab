"""The lists of a package archive: what is asked of apt, what is kept of its answer, and what becomes of failures."""

from __future__ import annotations

import json
import os
import shlex
import tarfile

import pytest

from anytune.data.samples import fetch, fetched_facts, is_fetched, package_lists
from anytune.data.samples.package_lists import chosen, download, kept_fields
from anytune.data.samples.sources import DEBIAN, Source
from anytune.errors import SampleError

LISTS = Source("apt-lists", "package-lists", "bookworm", "debian-bookworm-amd64.tar", 4, "0" * 64, DEBIAN.members)
PACKAGES = """Package: tiny
Version: 1.0
Depends: libc6,
 Section: not a field but the rest of one
Description: a synopsis
Description-md5: aa
Section: games

Package: libtiny-dev
Source: tiny (1.0)
Description-md5: bb
Section: libdevel
"""
DESCRIPTIONS = """Package: tiny
Description-md5: aa
Description-en: a synopsis
 A long text
 .
 on three lines.

Package: libtiny-dev
Description-md5: bb
Description-en: headers
 Another\x85text.
"""


def line(kind="Packages", origin="Debian", codename="bookworm", suite="oldstable", component="main", file="P") -> str:
    architecture = "amd64" if kind == "Packages" else "$(ARCHITECTURE)"
    return "\t".join((kind, origin, codename, suite, component, architecture, file))


@pytest.fixture
def fake_apt(tmp_path, fake_client, monkeypatch):
    """An apt-get that says it updated and lists the given targets, and an apt-helper that prints a file."""

    def make(targets: list[str], update: str = ":"):
        answer = tmp_path / "targets"
        answer.write_text("".join(f"{target}\n" for target in targets))
        script = f"""case "$*" in
*indextargets*) cat {shlex.quote(str(answer))} ;;
*) cp "$2" {tmp_path}/settings; test -d "${{4#Dir::State::lists=}}/partial" || exit 9; {update} ;;
esac"""
        calls = fake_client("apt-get", script)
        helper = tmp_path / "bin/apt-helper"
        helper.write_text('#!/bin/sh\nPATH=/usr/bin:/bin\ntest "$1" = cat-file && cat "$2"\n')
        helper.chmod(0o755)
        monkeypatch.setattr(package_lists, "APT_HELPER", helper)
        return calls

    return make


@pytest.fixture
def both(tmp_path) -> list[str]:
    """The lines of a list of two packages and of their descriptions."""
    (tmp_path / "P").write_text(PACKAGES)
    (tmp_path / "T").write_text(DESCRIPTIONS)
    return [line(file=str(tmp_path / "P")), line("Translations", file=str(tmp_path / "T"))]


def test_apt_is_asked_for_english_lists_in_a_folder_of_its_own(fake_apt, both, tmp_path):
    calls = fake_apt(both)
    to = tmp_path / "to"
    to.mkdir()
    assert download(LISTS, to) == to / LISTS.file
    assert os.listdir(to) == [LISTS.file]  # the lists themselves are gone
    update, targets = calls.read_text().splitlines()
    assert update.endswith(f"-o Dir::State::lists={to}/apt/lists -o Dir::Cache={to}/apt/cache update")
    assert f"-o Dir::State::lists={to}/apt/lists" in targets
    settings = (tmp_path / "settings").read_text().splitlines()
    assert 'Acquire::Languages "en";' in settings
    assert "#clear APT::Update::Post-Invoke;" in settings  # the machine's hooks would act on the machine's own lists


def test_only_the_fields_that_are_used_are_packed_and_equal_lists_give_equal_bytes(fake_apt, both, tmp_path):
    fake_apt(both)
    places = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        places.append(download(LISTS, tmp_path / name))
    assert places[0].read_bytes() == places[1].read_bytes()
    with tarfile.open(places[0]) as archive:
        texts = {name: archive.extractfile(name).read().decode() for name in archive.getnames()}
    assert texts["lists/packages.txt"] == (
        "Package: tiny\nDescription-md5: aa\nSection: games\n\n"
        "Package: libtiny-dev\nSource: tiny (1.0)\nDescription-md5: bb\nSection: libdevel\n\n"
    )
    assert texts["lists/descriptions.txt"] == (
        "Description-md5: aa\nDescription-en: a synopsis\n A long text\n .\n on three lines.\n\n"
        "Description-md5: bb\nDescription-en: headers\n Another\x85text.\n\n"
    )
    seen = json.loads(texts["lists/seen.json"])
    assert seen == {
        "releases": [["Debian", "bookworm", "main"]],
        "architectures": ["amd64"],
        "packages": 2,
        "descriptions": 2,
    }


def test_other_lists_than_the_recorded_ones_are_a_warning_on_record(fake_apt, both, register, cache):
    known = (("lists/packages.txt", "3" * 64),)
    register(Source(**{**vars(LISTS), "member_sha256": known}))
    calls = fake_apt(both)
    said: list[str] = []
    fetch("tiny", cache=cache, progress=said.append)
    facts = fetched_facts("tiny", cache=cache)
    (warning,) = facts["warnings"]
    assert "lists/packages.txt of package-lists differs" in warning
    assert f"warning: {warning}" in said
    assert set(facts["files"]) == set(DEBIAN.members)
    assert str(cache) not in json.dumps(facts)
    asked = calls.read_text()
    fetch("tiny", cache=cache)
    assert calls.read_text() == asked  # once, then from the cache


@pytest.mark.parametrize(
    "other",
    [
        {"codename": "bookworm-updates"},
        {"suite": "oldstable-security"},
        {"origin": "A vendor"},
        {"component": "non-free"},
        {"codename": "trixie"},  # its descriptions did not come
    ],
    ids=lambda other: next(iter(other.values())),
)
def test_only_free_parts_of_a_release_with_both_lists_are_read(other):
    kinds = ("Packages",) if other.get("codename") == "trixie" else ("Packages", "Translations")
    said = [line(kind, **other, file="x") for kind in kinds] + ["noise", line(), line("Translations", file="T")]
    packages, descriptions = chosen("\n".join(said))
    assert [listing.file for listing in packages] == ["P"]
    assert [listing.file for listing in descriptions] == ["T"]
    assert chosen("\n".join(reversed(said))) == (packages, descriptions)


def test_fields_are_kept_with_the_lines_that_go_on_with_them():
    text = "\n\nA: 1\n more of A\nAB: 2\n more of AB\nC: 3\n\n\nAB: 4\n\nA: 5"
    assert kept_fields(text, ("A", "C")) == "A: 1\n more of A\nC: 3\n\nA: 5\n\n"


def test_an_archive_that_cannot_be_reached_is_a_clear_error_and_keeps_nothing(fake_apt, register, cache):
    # what apt says to root, at exit status 0
    warnings = "W: Download is performed unsandboxed", "W: Failed to fetch the list: Could not resolve"
    fake_apt([], update="; ".join(f"echo '{warning}' >&2" for warning in warnings))
    register(LISTS)
    with pytest.raises(SampleError, match="brought no package lists with English descriptions") as caught:
        fetch("tiny", cache=cache)
    assert caught.value.why == f"apt-get said: {warnings[1]}"
    assert "reach its archive" in caught.value.fix
    assert not is_fetched("tiny", cache=cache)
    assert not [path for path in cache.rglob("*") if path.is_file() and not path.name.endswith(".lock")]


def test_an_archive_of_another_system_is_named(fake_apt, tmp_path):
    fake_apt([line(origin="Other"), line("Translations", origin="Other")])
    with pytest.raises(SampleError, match="no package lists") as caught:
        download(LISTS, tmp_path)
    assert "Debian or Ubuntu" in caught.value.why


def test_a_repository_of_the_user_that_fails_does_not_matter(fake_apt, both, tmp_path):
    fake_apt(both, update="echo 'E: The repository is not signed.' >&2; exit 100")
    (tmp_path / "to").mkdir()
    assert download(LISTS, tmp_path / "to").is_file()


def test_lists_that_cannot_be_read_are_a_clear_error(fake_apt, both, tmp_path):
    (tmp_path / "T").unlink()
    fake_apt(both)
    (tmp_path / "to").mkdir()
    with pytest.raises(SampleError, match="cannot read the package list"):
        download(LISTS, tmp_path / "to")


def test_a_machine_without_apt_is_told_what_else_there_is(tmp_path, monkeypatch, fake_client):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SampleError, match="apt-get is not installed") as caught:
        download(LISTS, tmp_path)
    assert "anytune samples" in caught.value.fix
    fake_client("apt-get", "exit 0")
    monkeypatch.setattr(package_lists, "APT_HELPER", tmp_path / "none")
    with pytest.raises(SampleError, match="apt-helper is not installed"):
        download(LISTS, tmp_path)
