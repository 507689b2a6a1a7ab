"""Tiny archives of every kind, a fake registry for each client, and samples that stand for the real ones."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from anytune.data.samples import catalogue
from anytune.data.samples.catalogue import Sample
from anytune.data.samples.sources import Source

Contents = dict[str, bytes]


def zip_archive(place: Path, contents: Contents) -> Path:
    with zipfile.ZipFile(place, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return place


def tar_archive(place: Path, contents: Contents, links: dict[str, str] | None = None) -> Path:
    place.write_bytes(tar_bytes(contents, links, "gz"))
    return place


def tar_bytes(contents: Contents, links: dict[str, str] | None = None, kind: str = "xz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{kind}") as archive:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return buffer.getvalue()


def deb_archive(place: Path, contents: Contents, kind: str = "xz") -> Path:
    """An ar archive of debian-binary, control.tar and data.tar, as dpkg-deb writes it (odd sizes padded)."""
    data = tar_bytes({f"./{name}": content for name, content in contents.items()}, None, kind)
    members = (
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", tar_bytes({"./control": b"odd"})),
        (f"data.tar.{kind}", data),
    )
    with place.open("wb") as target:
        target.write(b"!<arch>\n")
        for name, content in members:
            target.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode())
            target.write(content + b"\n" * (len(content) % 2))
    return place


def wheel(folder: Path, package: str, version: str, contents: Contents) -> Path:
    """The smallest wheel that pip accepts."""
    name = package.replace("-", "_")
    info = f"{name}-{version}.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    return zip_archive(folder / f"{name}-{version}-py3-none-any.whl", {**contents, **files})


def sha256(place: Path) -> str:
    return hashlib.sha256(place.read_bytes()).hexdigest()


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def fake_client(tmp_path, monkeypatch) -> Callable[[str, str], Path]:
    """Puts a shell script named like a client alone on the PATH; it notes each call in a file it gives back."""

    def make(name: str, script: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        calls = tmp_path / f"{name}-calls"
        (folder / name).write_text(f'#!/bin/sh\nPATH=/usr/bin:/bin\necho "$@" >> {calls}\n{script}\n')
        (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))
        return calls

    return make


@pytest.fixture
def register(monkeypatch) -> Callable[..., Sample]:
    """Adds a sample to the catalogue for one test."""

    def add(
        source: Source, *, name: str = "tiny", loader: str = "general:brown", kind: str = "text", **facts
    ) -> Sample:
        sample = Sample(name, kind, "a tiny sample", "CC0-1.0", source, loader, **facts)
        monkeypatch.setitem(catalogue._SAMPLES, name, sample)
        return sample

    return add


@pytest.fixture
def local_index(tmp_path, monkeypatch) -> Path:
    """A folder that pip takes for its only index."""
    folder = tmp_path / "index"
    folder.mkdir()
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder
