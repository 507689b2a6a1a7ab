"""What is asked of pip, apt-get and npm, and what becomes of their failures."""

from __future__ import annotations

import sys

import pytest

from anytune.data.samples import clients
from anytune.data.samples.clients import download
from anytune.data.samples.sources import Source
from anytune.errors import SampleError

from .conftest import sha256, wheel

APT = Source("apt-get", "dict-tiny", "1", "dict-tiny_1_all.deb", 4, "0" * 64, ("*",))
NPM = Source("npm", "corpus-tiny", "1.0.0", "corpus-tiny-1.0.0.tgz", 4, "0" * 64, ("*",))


def pip_source(place, **changes) -> Source:
    facts = {"package": "tiny-data", "version": "1.0", "sha256": sha256(place), **changes}
    return Source("pip", file=place.name, size_bytes=1, members=("tiny/*.txt",), **facts)


def test_pip_downloads_the_exact_file(local_index, tmp_path):
    place = wheel(local_index, "tiny-data", "1.0", {"tiny/a.txt": b"a"})
    wheel(local_index, "tiny-data", "2.0", {"tiny/a.txt": b"newer"})
    (tmp_path / "to").mkdir()
    assert sha256(download(pip_source(place), tmp_path / "to")) == sha256(place)


def test_pip_refuses_a_file_of_another_hash(local_index, tmp_path):
    place = wheel(local_index, "tiny-data", "1.0", {"tiny/a.txt": b"a"})
    (tmp_path / "to").mkdir()
    with pytest.raises(SampleError, match="SHA-256 is not the catalogue's") as caught:
        download(pip_source(place, sha256="1" * 64), tmp_path / "to")
    assert "Nothing was kept" in caught.value.why


def test_a_package_the_index_lacks_is_a_clear_error(local_index, tmp_path):
    place = wheel(local_index, "tiny-data", "1.0", {"tiny/a.txt": b"a"})
    (tmp_path / "to").mkdir()
    with pytest.raises(SampleError, match="pip could not download tiny-data 9") as caught:
        download(pip_source(place, version="9"), tmp_path / "to")
    assert "reach its registry" in caught.value.fix


def test_a_python_without_pip_is_told_how_to_get_it(monkeypatch, tmp_path):
    (tmp_path / "python").write_text('#!/bin/sh\necho "python: No module named pip" >&2\nexit 1\n')
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    (tmp_path / "to").mkdir()
    with pytest.raises(SampleError, match="no pip") as caught:
        download(Source("pip", "tiny", "1", "tiny.whl", 1, "0" * 64, ("*",)), tmp_path / "to")
    assert "ensurepip" in caught.value.fix


@pytest.mark.parametrize("source", [APT, NPM], ids=["apt-get", "npm"])
def test_a_missing_client_is_named_with_a_way_out(source, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SampleError, match=f"{source.client} is not installed") as caught:
        download(source, tmp_path)
    assert caught.value.fix


def test_apt_and_npm_are_asked_for_one_package_and_run_no_scripts(fake_client, tmp_path):
    for source, script in ((APT, "echo data > dict-tiny_1_all.deb"), (NPM, "echo data > corpus-tiny-1.0.0.tgz")):
        to = tmp_path / f"to-{source.client}"
        to.mkdir()
        calls = fake_client(source.client, script)
        assert download(source, to) == to / source.file
        asked = calls.read_text().strip()
        assert (
            asked == {"apt-get": "download dict-tiny", "npm": "pack --ignore-scripts corpus-tiny@1.0.0"}[source.client]
        )


@pytest.mark.parametrize(
    ("source", "script", "expected"),
    [
        (APT, "echo 'E: Unable to locate package dict-tiny' >&2; exit 100", "apt-get update"),
        (NPM, "echo 'npm error network ENOTFOUND' >&2; exit 1", "reach its registry"),
        (NPM, "exit 0", "reach its registry"),  # says it worked, but left no file
    ],
)
def test_a_client_that_fails_is_quoted_with_advice(source, script, expected, fake_client, tmp_path):
    fake_client(source.client, script)
    (tmp_path / "to").mkdir()
    with pytest.raises(SampleError, match="could not download") as caught:
        download(source, tmp_path / "to")
    assert expected in caught.value.fix
    assert f"{source.client} said:" in caught.value.why


def test_a_download_that_hangs_is_given_up(fake_client, tmp_path, monkeypatch):
    fake_client("npm", "exec sleep 20")
    monkeypatch.setattr(clients, "TIMEOUT_SECONDS", 0.3)
    (tmp_path / "to").mkdir()
    with pytest.raises(SampleError, match="took more than"):
        download(NPM, tmp_path / "to")
