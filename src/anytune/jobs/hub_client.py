"""Speaking with a hub: names of repositories, what may be fetched, and its client's troubles in three parts."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from anytune.errors import AnytuneError, HubError
from anytune.store.entry import OWN_README, README
from anytune.store.folders import refuse_links
from anytune.store.names import is_inside

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
REVISION = re.compile(r"[\w][\w./-]{0,199}", re.ASCII)
#: the kinds of file that an artefact may hold; none of them is code or a pickle
KNOWN_ENDINGS = (".safetensors", ".json", ".jsonl", ".txt", ".model", ".jinja")
WEIGHT_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf", ".h5", ".msgpack", ".onnx")
#: more than any file of settings or words needs; vocabularies of a quarter of a million words take 40 MB
TEXT_BYTES = 200_000_000


class Fetcher:
    """Downloads files of one commit into a folder; every name is checked first.

    Args:
        target: ``owner/name``.
        sha: the commit.
        folder: where to; it must exist.
        sizes: name -> bytes of every file of the commit, as the hub states them.
    """

    def __init__(self, target: str, sha: str | None, folder: Path, sizes: Mapping[str, int]) -> None:
        self.target, self.sha, self.folder, self.sizes = target, sha, folder, sizes

    def __call__(self, names: Iterable[str]) -> Path:
        """The folder with these files in it, and no links.

        Raises:
            HubError: a name leads out of the folder, is of no known kind or not there, or the hub fails.
        """
        for name in names:
            self._check(name)
            download(self.target, name, self.sha, self.folder)
        refuse_links(self.folder)
        return self.folder

    def _check(self, name: str) -> None:
        if not is_inside(name):
            raise HubError(
                f"{self.target} names a file outside its folder: {name!r}",
                why="Such a name could overwrite other files of this machine.",
            )
        if not is_known(name):
            raise HubError(
                f"{self.target} holds {name!r}",
                why=f"Only {', '.join(KNOWN_ENDINGS)} are fetched: no pickles, no code.",
                fix="ask its owner for safetensors",
            )
        if name not in self.sizes:
            raise HubError(
                f"{self.target} lacks {name}",
                why="Its manifest names it, so it is not whole.",
                fix="ask its owner to push it again",
            )
        if not name.endswith(".safetensors") and self.sizes[name] > TEXT_BYTES:
            raise HubError(f"{name} of {self.target} has {self.sizes[name]:,} bytes", why="It is no settings file.")


def download(target: str, name: str, sha: str | None, folder: Path, doing: str = "pull") -> Path:
    """One file of a commit as ``folder/name``, which is no link.

    Raises:
        HubError: the hub does not give it.
    """
    from huggingface_hub import hf_hub_download

    with trouble(target, doing), quiet_bars():
        return Path(hf_hub_download(target, name, revision=sha, local_dir=folder, library_name="anytune"))


def parsed(repository: str) -> tuple[str, str | None]:
    """(owner/name, revision or None) of ``owner/name[@revision]``.

    Raises:
        HubError: it is neither.
    """
    target, at, revision = str(repository).strip().partition("@")
    good = REPOSITORY.fullmatch(target) and not re.search(r"\.\.|--|\.git$", target)
    if not good or (at and not (REVISION.fullmatch(revision) and ".." not in revision)):
        raise HubError(
            f"'{repository}' is no name of a repository",
            why="It is owner/name, or owner/name@revision to pull a certain one.",
            fix="owner/name",
        )
    return target, revision or None


def needs_network(doing: str) -> None:
    """Raise HubError if the network was forbidden."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise HubError(
            f"cannot {doing}: HF_HUB_OFFLINE is set", why="It forbids to reach the hub.", fix="HF_HUB_OFFLINE=0"
        )


def needs_token() -> None:
    """Raise HubError if there is no token of the hub."""
    from huggingface_hub import get_token

    if not get_token():
        raise HubError(
            "no token of the hub is here",
            why="A push writes under your name.",
            fix="hf auth login   (or set HF_TOKEN; it needs the right to write)",
        )


def is_known(name: str) -> bool:
    """Whether a file is of a kind that artefacts hold."""
    path = PurePosixPath(name)
    return name in (README, OWN_README) or (path.suffix in KNOWN_ENDINGS and not path.name.startswith("."))


@contextlib.contextmanager
def quiet_bars() -> Iterator[None]:
    """No progress bars where nobody looks at them."""
    from huggingface_hub import utils

    bars: Any = utils
    hide = not sys.stderr.isatty() and not bars.are_progress_bars_disabled()
    if hide:
        bars.disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            bars.enable_progress_bars()


@contextlib.contextmanager
def trouble(target: str, doing: str) -> Iterator[None]:
    """Turn what the hub's client raises (its own errors, those of its HTTP library, OSError) into HubError."""
    from huggingface_hub import errors

    try:
        yield
    except AnytuneError:
        raise
    except errors.GatedRepoError as problem:
        raise HubError(
            f"{target} is only for those who accepted its terms",
            why="The hub refused it.",
            fix=f"accept them on its page, then: hf auth login, anytune {doing} {target}",
        ) from problem
    except errors.RevisionNotFoundError as problem:
        raise HubError(f"{target}: there is no such revision", fix=target.partition("@")[0]) from problem
    except errors.RepositoryNotFoundError as problem:
        raise HubError(
            f"there is no repository {target}, or you may not see it",
            why="A private one looks like a missing one to those without the right token.",
            fix="check the name; for a private one: hf auth login",
        ) from problem
    except Exception as problem:
        status = getattr(getattr(problem, "response", None), "status_code", None)
        if status in (401, 403):
            raise HubError(
                f"the hub does not let you {doing} {target} (HTTP {status})",
                why="The token is missing, wrong, or lacks the right.",
                fix="hf auth login" + ("   (with a token that may write)" if doing == "push" else ""),
            ) from problem
        words = getattr(problem, "server_message", None) or str(problem) or type(problem).__name__
        said = " ".join(words.split())[:200]
        raise HubError(
            f"cannot {doing} {target}: {said}",
            why="It was changed by somebody meanwhile." if status in (409, 412) else "Nothing of it is half there.",
            fix="the same command once more",
        ) from problem
