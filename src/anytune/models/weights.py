"""Reading the weights of a model folder: safetensors only, one file or many, tensor by tensor."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from anytune.errors import BaseError, StoreError
from anytune.manifests import PARTIAL_PREFIX, load_json

SINGLE_FILE = "model.safetensors"
#: the weights and settings of the hypernetwork of a prompted base, beside those of the bare one
HYPERPROMPT_TENSORS, HYPERPROMPT_SETTINGS = "hyperprompt.safetensors", "hyperprompt.json"
INDEX_FILE = "model.safetensors.index.json"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        BaseError: unreadable, not JSON, or not an object.
    """
    try:
        value = load_json(path)
    except (OSError, ValueError) as problem:
        raise BaseError(f"cannot read {path}: {problem}", why="The model folder is damaged or incomplete.") from None
    if not isinstance(value, dict):
        raise BaseError(f"{path} holds a {type(value).__name__}, not an object", why="The model folder is damaged.")
    return value


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, in order; a hypernetwork's comes last.

    Raises:
        BaseError: none is there (pickled weights are refused, with the command that converts them), or a shard is
            missing, or one of a hypernetwork's two files.
    """
    there = [name for name in (HYPERPROMPT_SETTINGS, HYPERPROMPT_TENSORS) if (folder / name).is_file()]
    if len(there) == 1:
        lacks = HYPERPROMPT_TENSORS if there == [HYPERPROMPT_SETTINGS] else HYPERPROMPT_SETTINGS
        raise BaseError(
            f"{folder} has {there[0]} and no {lacks}",
            why="A prompted base needs both: without its hypernetwork it computes something else.",
            fix=f"copy {lacks} as well (or delete {there[0]} to have the bare base)",
        )
    return _plain_weight_files(folder) + ([folder / HYPERPROMPT_TENSORS] if there else [])


def _plain_weight_files(folder: Path) -> list[Path]:
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    if (folder / INDEX_FILE).is_file():
        shards = read_json(folder / INDEX_FILE).get("weight_map", {})
        # Only names inside the folder: an index may come from anywhere.
        names = sorted({Path(str(name)).name for name in shards.values()}) if isinstance(shards, dict) else []
        missing = [name for name in names if not (folder / name).is_file()]
        if missing or not names:
            lacks = ", ".join(missing[:3]) or "its weight files"
            raise BaseError(
                f"{folder} lacks {lacks} ({len(missing)} of {len(names)} files)",
                why=f"{INDEX_FILE} names them.",
                fix="copy or download the folder again",
            )
        return [folder / name for name in names]
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    if pickles:
        raise BaseError(
            f"{folder} has its weights only as {pickles[0]}",
            why="Such files are pickles, which can run any code when opened; anytune reads safetensors only.",
            fix='python -c "import transformers as t; '
            f"t.AutoModelForPreTraining.from_pretrained('{folder}').save_pretrained('NEW_FOLDER')\"   "
            "(only for a file you trust), then copy the tokenizer files",
        )
    raise BaseError(
        f"{folder} has no {SINGLE_FILE}",
        why="A base is a transformers folder: config.json, model.safetensors and the tokenizer's files.",
        fix="--base sample:bert-tiny   (or another folder, or a hub id)",
    )


class StoredWeights(Mapping[str, Tensor]):
    """The tensors of a model folder by the names in its files; each is read when asked for, in its stored dtype.

    Raises:
        BaseError: as ``weight_files``, or a file is truncated or no safetensors file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._place: dict[str, Any] = {}
        for path in weight_files(self.folder):
            try:
                handle = safe_open(str(path), framework="pt")
            except (SafetensorError, OSError) as problem:
                raise BaseError(
                    f"cannot read {path} ({path.stat().st_size:,} bytes): {problem}",
                    why="The file is truncated or no safetensors file.",
                    fix="copy or download it again",
                ) from None
            for name in handle.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                self._place[name] = handle
        if not self._place:
            raise BaseError(f"{self.folder} holds no tensors", why="Its weight files are empty.")

    def __getitem__(self, name: str) -> Tensor:
        # A copy: what the handle gives is a view of the file, shared by all who ask for it.
        return self._place[name].get_tensor(name).clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._place)

    def __len__(self) -> int:
        return len(self._place)

    def __reduce__(self) -> tuple[Any, ...]:
        # Open files do not travel to other processes: the folder is opened again there.
        return StoredWeights, (self.folder,)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return tuple(self._place[name].get_slice(name).get_shape())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, whole or not at all; its folder is made if missing. Equal tensors give equal bytes.

    Args:
        path: of the file.
        tensors: name -> tensor, each stored for itself (views and shared memory are fine).
        metadata: one key at most: several are written in an order that changes from run to run.

    Raises:
        StoreError: it cannot be written (full disk, read-only); an earlier file stays as it was.
    """
    assert len(metadata) <= 1, metadata
    partial = path.with_name(f"{PARTIAL_PREFIX}{path.name}-{secrets.token_hex(4)}")
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(own, partial, metadata=dict(metadata))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, SafetensorError) as problem:
        raise StoreError(
            f"cannot write {path}: {problem}", why="Nothing was kept of it.", fix="free some space, or another folder"
        ) from problem
