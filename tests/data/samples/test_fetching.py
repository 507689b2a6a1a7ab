"""Fetching: once, whole or not at all, checked, and shared between processes."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import textwrap

import pytest

from anytune.data.samples import fetch, fetched_facts, is_fetched, sample_folder
from anytune.data.samples.fetching import FETCHED, MODEL_FILES, source_folder
from anytune.data.samples.sources import Source
from anytune.errors import SampleError

from .conftest import deb_archive, sha256, tar_archive, tar_bytes, wheel, zip_archive

TEXTS = {"package/ca01": b"a\n", "package/ca02": b"b\n", "package/evil.js": b"boom()"}


@pytest.fixture
def npm_sample(tmp_path, fake_client, register):
    """A tiny sample whose archive a fake npm copies into place; returns the sample and the list of calls."""
    archive = tar_archive(tmp_path / "tiny-1.0.0.tgz", TEXTS)
    calls = fake_client("npm", f"cp {archive} .")
    source = Source("npm", "tiny", "1.0.0", archive.name, 9, sha256(archive), ("package/c*",))
    return register(source), calls


def test_a_sample_is_fetched_once_and_then_read_from_the_cache(npm_sample, cache):
    _, calls = npm_sample
    said: list[str] = []
    assert not is_fetched("tiny", cache=cache)
    folder = fetch("tiny", cache=cache, progress=said.append)
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == ["ca01", "ca02", FETCHED]
    assert any("npm: tiny 1.0.0" in line and "CC0-1.0" in line for line in said)
    assert fetch("sample:tiny", cache=cache) == folder
    assert is_fetched("tiny", cache=cache)
    assert len(calls.read_text().splitlines()) == 1


def test_what_was_fetched_is_recorded_without_any_path_of_this_machine(npm_sample, cache):
    sample, _ = npm_sample
    fetch("tiny", cache=cache)
    facts = fetched_facts("tiny", cache=cache)
    assert facts["sha256"] == sample.sha256
    assert facts["version"] == "1.0.0"
    assert set(facts["files"]) == {"package/ca01", "package/ca02"}
    assert str(cache) not in json.dumps(facts)


def test_facts_of_what_was_not_fetched_are_a_clear_error(npm_sample, cache):
    with pytest.raises(SampleError, match="not in the cache") as caught:
        fetched_facts("tiny", cache=cache)
    assert caught.value.fix == "anytune samples fetch tiny"


def test_a_wrong_hash_keeps_nothing(npm_sample, register, cache):
    sample, _ = npm_sample
    register(dataclasses.replace(sample.source, sha256="2" * 64))
    with pytest.raises(SampleError, match=r"SHA-256 is \w{12}\.\.\., the catalogue says 2222"):
        fetch("tiny", cache=cache)
    assert not [path for path in cache.rglob("*") if path.is_file() and not path.name.endswith(".lock")]
    assert not is_fetched("tiny", cache=cache)


def test_an_archive_with_an_unsafe_member_keeps_nothing(tmp_path, fake_client, register, cache):
    archive = tar_archive(tmp_path / "tiny-1.0.0.tgz", {"package/ca01": b"a"}, {"package/ca02": "/etc/passwd"})
    fake_client("npm", f"cp {archive} .")
    register(Source("npm", "tiny", "1.0.0", archive.name, 9, sha256(archive), ("package/c*",)))
    with pytest.raises(SampleError, match="not a regular file"):
        fetch("tiny", cache=cache)
    assert not list(cache.rglob("ca0*"))


def test_a_folder_of_older_members_is_fetched_again(npm_sample, register, cache):
    sample, calls = npm_sample
    fetch("tiny", cache=cache)
    register(dataclasses.replace(sample.source, members=("package/ca01",)))
    folder = fetch("tiny", cache=cache)
    assert [path.name for path in (folder / "package").iterdir()] == ["ca01"]
    assert len(calls.read_text().splitlines()) == 2


def test_a_newer_debian_build_of_the_same_data_is_taken_without_a_word(tmp_path, fake_client, register, cache):
    archive = deb_archive(tmp_path / "dict-tiny_2_all.deb", {"usr/a.dict": b"words"})
    fake_client("apt-get", f"cp {archive} .")
    (tmp_path / "words").write_bytes(b"words")
    known = (("usr/a.dict", sha256(tmp_path / "words")),)
    register(Source("apt-get", "dict-tiny", "1", "dict-tiny_1_all.deb", 4, "0" * 64, ("usr/*",), known))
    said: list[str] = []
    fetch("tiny", cache=cache, progress=said.append)
    assert fetched_facts("tiny", cache=cache)["warnings"] == []
    assert not any("warning" in line for line in said)


def test_other_debian_data_is_taken_with_a_warning_on_record(tmp_path, fake_client, register, cache):
    archive = deb_archive(tmp_path / "dict-tiny_2_all.deb", {"usr/a.dict": b"other words"})
    fake_client("apt-get", f"cp {archive} .")
    known = (("usr/a.dict", "3" * 64),)
    register(Source("apt-get", "dict-tiny", "1", "dict-tiny_1_all.deb", 4, "0" * 64, ("usr/*",), known))
    said: list[str] = []
    fetch("tiny", cache=cache, progress=said.append)
    (warning,) = fetched_facts("tiny", cache=cache)["warnings"]
    assert "usr/a.dict of dict-tiny differs" in warning
    assert f"warning: {warning}" in said


def test_data_inside_an_archive_inside_an_archive_is_reached(tmp_path, fake_client, register, cache):
    inner = tar_bytes({"data/a.txt": b"a", "data/run.py": b"boom()"}, kind="gz")
    archive = zip_archive(tmp_path / "tiny-1.zip", {"tiny-1/data.tar.gz": inner, "tiny-1/setup.py": b"boom()"})
    fake_client("npm", f"cp {archive} .")
    source = Source("npm", "tiny", "1", archive.name, 9, sha256(archive), ("data/*.txt",), inner="tiny-1/data.tar.gz")
    register(source)
    folder = fetch("tiny", cache=cache)
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == ["a.txt", FETCHED]


def test_a_wheel_comes_through_pip_itself(local_index, register, cache):
    place = wheel(local_index, "tiny-model", "1.0", {f"tiny/m/{name}": b"{}" for name in MODEL_FILES})
    register(
        Source("pip", "tiny-model", "1.0", place.name, 1, sha256(place), ("tiny/m/*",)), kind="model", loader="tiny/m"
    )
    folder = sample_folder("tiny", cache=cache)
    assert sorted(path.name for path in folder.iterdir()) == sorted(MODEL_FILES)


def test_two_processes_that_fetch_at_once_download_once(npm_sample, tmp_path, cache):
    _, calls = npm_sample
    archive = tmp_path / "tiny-1.0.0.tgz"
    (tmp_path / "bin/npm").write_text(
        f"#!/bin/sh\nPATH=/usr/bin:/bin\necho call >> {calls}\nsleep 1\ncp {archive} .\n"
    )
    script = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        from anytune.data.samples import catalogue, fetch
        from anytune.data.samples.sources import Source
        source = Source("npm", "tiny", "1.0.0", "tiny-1.0.0.tgz", 9, "{sha256(archive)}", ("package/c*",))
        catalogue._SAMPLES["tiny"] = catalogue.Sample("tiny", "text", "t", "l", source, "general:brown")
        print(fetch("tiny", cache=Path("{cache}")))
    """)
    running = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = {process.communicate(timeout=60)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0]
    assert len(answers) == 1
    assert calls.read_text().split() == ["call"]


def test_text_is_not_a_model(cache):
    with pytest.raises(SampleError, match="is text, not a model"):
        sample_folder("hpo", cache=cache)


def test_a_bundled_model_that_is_incomplete_says_what_is_missing(register):
    register(Source("bundled", "anytune", "", "", 0, "", ()), name="tiny", kind="model", loader="no-such-folder")
    with pytest.raises(SampleError, match=r"lacks config\.json, model\.safetensors"):
        sample_folder("tiny")


def test_folder_names_hold_no_sign_that_a_file_system_refuses(tmp_path):
    source = Source("apt-get", "@scope/tiny", "1:3.0", "", 0, "", ())
    assert source_folder(source, tmp_path).name == "@scope_tiny-1_3.0"


def test_a_cache_that_cannot_be_written_is_a_clear_error(npm_sample, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(SampleError, match="cannot write") as caught:
        fetch("tiny", cache=tmp_path / "file")
    assert "ANYTUNE_CACHE" in caught.value.fix
