"""A PEFT folder made elsewhere, read with suspicion: can it be used here, what is its head, does it fit a base."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anytune.errors import DeltaError, WrongBaseError
from anytune.manifests import MANIFEST_NAME, Probe
from anytune.models.adapters import ADAPTER_FILE, CONFIG_FILE, INSIDE, MADE_BY_PEFT, AdapterDelta
from anytune.models.anatomy import Anatomy
from anytune.models.base import Base
from anytune.models.probe import make_probe

#: Ends of the names of a head's last layer, in the classes of transformers.
LAST_LAYERS = ("classifier.out_proj.weight", "classifier.weight", "score.weight", "out_proj.weight")
SHOWN = 3


def looks_like_adapter(folder: Path) -> bool:
    """Whether a folder is meant as a PEFT adapter, whole or not, or is an artefact of anytune."""
    return any((folder / file).exists() for file in (CONFIG_FILE, ADAPTER_FILE, "adapter_model.bin", MANIFEST_NAME))


def read_adapter(folder: Path) -> AdapterDelta:
    """Read a PEFT folder.

    Raises:
        DeltaError: it is missing, pickled, damaged, not finite, or made for another purpose than a head on a text.
    """
    if not looks_like_adapter(folder):
        state = (
            "not there" if not folder.exists() else "a file" if folder.is_file() else f"no adapter: no {CONFIG_FILE}"
        )
        raise DeltaError(
            f"{folder} is {state}",
            why=f"A PEFT adapter is a folder with {CONFIG_FILE} and {ADAPTER_FILE}.",
            fix="anytune store import FOLDER --base BASE",
        )
    adapter = AdapterDelta.load(folder)
    if adapter.config.get("task_type") not in (None, "SEQ_CLS"):
        raise DeltaError(
            f"{folder.name} was made for {adapter.config['task_type']}",
            why="anytune stores deltas of text classification and regression (SEQ_CLS) so far.",
            fix="an adapter made with task_type='SEQ_CLS'",
        )
    wrong = [name for name, tensor in adapter.tensors.items() if not bool(tensor.isfinite().all())]
    if wrong:
        raise DeltaError(
            f"{folder.name} holds NaN or infinity in {len(wrong)} tensors ({', '.join(wrong[:SHOWN])})",
            why="Its training had diverged; every answer would be NaN.",
            fix="an earlier checkpoint of that run",
        )
    return adapter


def head_outputs(adapter: AdapterDelta, anatomy: Anatomy, name: str) -> int:
    """How many outputs the head saved with an adapter has.

    Raises:
        DeltaError: no head was saved, so the adapter's answers cannot be had again.
    """
    plain = {
        key.removeprefix(INSIDE): tensor
        for key, tensor in adapter.tensors.items()
        if not any(part.startswith(MADE_BY_PEFT) for part in key.split("."))
    }
    outside = [key for key in plain if not anatomy.is_backbone(key)]
    last = next((key for end in LAST_LAYERS for key in outside if f".{key}".endswith(f".{end}")), None)
    if last is None:
        raise DeltaError(
            f"{name} holds no head (saved beside the adapter: {', '.join(outside) or 'nothing'})",
            why="Without the trained classifier its answers cannot be had again.",
            fix="save it again with task_type='SEQ_CLS' or modules_to_save=['classifier']",
        )
    return int(plain[last].shape[0])


def try_on(adapter: AdapterDelta, base: Base, kind: Any, labels: Sequence[str], name: str) -> tuple[Probe, list[str]]:
    """Put an adapter onto its base once: every name and shape is checked, and a probe of its answers is taken.

    Returns:
        (probe, notes on what the manifest should say: head modules that were lost, why it cannot be moved).

    Raises:
        WrongBaseError: it does not fit this base; the first names and shapes are given.
    """
    model, head_names = base.task_model(kind, labels, seed=0)
    try:
        model = adapter.attach(model, trainable=False)
    except DeltaError as problem:
        was = adapter.config.get("base_model_name_or_path")
        raise WrongBaseError(
            f"{name} does not fit base {base.identity.short}: {problem.what}",
            why=f"It was made on '{was}'." if was else "It may have been made on another model.",
            fix="--base with the base that it was trained on",
        ) from problem
    notes = []
    lost = adapter.saved_head_missing(head_names)
    if lost:
        notes.append(
            f"its head lacks {', '.join(lost)}: the base has none, PEFT did not save it, and it is drawn from seed 0 "
            "on loading; answers differ from those of the training run"
        )
    unmovable = adapter.why_not_movable()
    if unmovable:
        notes.append(f"it cannot be moved to another base: {unmovable}")
    return make_probe(model, int(base.config.vocab_size)), notes


def config_text(config: dict[str, Any]) -> str:
    """The content of ``adapter_config.json``."""
    return json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
