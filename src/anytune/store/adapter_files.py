"""A PEFT folder made elsewhere, read with suspicion: can it be used here, what is its head, does it fit a base."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anytune.errors import DeltaError, WrongBaseError
from anytune.manifests import MANIFEST_NAME, Probe
from anytune.models.adapters import ADAPTER_FILE, CONFIG_FILE, INSIDE, MADE_BY_PEFT, AdapterDelta
from anytune.models.anatomy import Anatomy
from anytune.models.base import Base
from anytune.models.probe import make_probe
from anytune.models.prompt_files import BEFORE
from anytune.models.soft_prompt_config import is_soft_prompt

#: PEFT's task types that are kinds of task here.
TASK_TYPES = {
    "SEQ_CLS": "classification",
    "TOKEN_CLS": "token-classification",
    "CAUSAL_LM": "generation",
    "SEQ_2_SEQ_LM": "generation",
}
#: Ends of the names of a head's last layer, in the classes of transformers.
LAST_LAYERS = ("classifier.out_proj.weight", "classifier.weight", "score.weight", "out_proj.weight")
SHOWN = 3


def looks_like_adapter(folder: Path) -> bool:
    """Whether a folder is meant as a PEFT adapter, whole or not, or is an artefact of anytune."""
    return any((folder / file).exists() for file in (CONFIG_FILE, ADAPTER_FILE, "adapter_model.bin", MANIFEST_NAME))


def read_adapter(folder: Path) -> AdapterDelta:
    """Read a PEFT folder.

    Raises:
        DeltaError: it is missing, pickled, damaged, not finite, or made for a purpose that is no kind of task here.
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
    if adapter.config.get("task_type") not in (None, *TASK_TYPES):
        raise DeltaError(
            f"{folder.name} was made for {adapter.config['task_type']}",
            why=f"anytune stores deltas of the task types {', '.join(TASK_TYPES)}.",
            fix="an adapter made with one of these",
        )
    wrong = [name for name, tensor in adapter.tensors.items() if not bool(tensor.isfinite().all())]
    if wrong:
        raise DeltaError(
            f"{folder.name} holds NaN or infinity in {len(wrong)} tensors ({', '.join(wrong[:SHOWN])})",
            why="Its training had diverged; every answer would be NaN.",
            fix="an earlier checkpoint of that run",
        )
    return adapter


def kind_of(adapter: AdapterDelta, base: Base, name: str, kind: str | None) -> tuple[str, list[str]]:
    """The kind of task an adapter was made for, and a note where it was guessed.

    PEFT's task type says it. Where that is null, as in many adapters made by hand: a saved head means classification,
    none on a base that generates means generation.

    Args:
        kind: what the user says; it wins over a guess and must agree with a task type.

    Raises:
        DeltaError: the task type says another kind than ``kind``.
        WrongBaseError: it says generation and the base cannot generate.
    """
    stated = adapter.config.get("task_type")
    if stated is not None:
        said = TASK_TYPES[stated]
        if kind not in (None, said) and (kind, said) != ("regression", "classification"):
            raise DeltaError(
                f"{name} has the task type {stated}, and kind = {kind}",
                why=f"PEFT made it for {said}.",
                fix=f"--kind {said}",
            )
        if said == "generation" and base.anatomy.objective == "mlm":
            raise WrongBaseError(
                f"{name} was made for {stated}, and base {base.identity.short} fills in masked words",
                why="It was trained on a model that generates text.",
                fix="--base with the base that it was trained on",
            )
        return said, []
    if kind is not None:
        return ("classification" if kind == "regression" else kind), []
    generates = base.anatomy.objective != "mlm" and _last_layer(adapter, base.anatomy) is None
    guess = "generation" if generates else "classification"
    why = "no head is saved with it" if generates else "a head is saved with it"
    return guess, [f"its task type is null; {why}, so it was taken for {guess} (--kind says otherwise)"]


def without_embeddings(adapter: AdapterDelta, base: Base, name: str) -> tuple[AdapterDelta, list[str]]:
    """The adapter without copies of the base's own embeddings, and a note if there were any.

    PEFT saves word embeddings and vocabulary head along where an adapter targets them, though they were not trained.

    Raises:
        DeltaError: they are not the base's: the vocabulary was changed, or another base is meant.
    """
    saved = adapter.config.get("modules_to_save") or []
    held = base.tensors(pretraining_head=True)
    copies = {}
    for key in adapter.tensors:
        bare = base.anatomy.canonical(key.removeprefix(INSIDE).replace(".base_layer.", "."))
        table = bare == base.anatomy.word_embeddings or base.anatomy.is_pretraining_head(bare)
        if table and bare in held and not any(bare.rsplit(".", 1)[0].endswith(module) for module in saved):
            copies[key] = bare
    for key, bare in copies.items():
        mine, theirs = adapter.tensors[key], held[bare]
        if mine.shape != theirs.shape or not torch.equal(mine, theirs.to(mine.dtype)):
            raise DeltaError(
                f"{name} brings its own {bare}, {list(mine.shape)}; base {base.name} has {list(theirs.shape)}"
                + (" with other values" if mine.shape == theirs.shape else ""),
                why="Words were added to its vocabulary, or it was made on another base.",
                fix="--base with the very model it was trained on, its vocabulary as it was then",
            )
    if not copies:
        return adapter, []
    kept = {key: tensor for key, tensor in adapter.tensors.items() if key not in copies}
    return AdapterDelta(adapter.config, kept), [
        f"copies of the base's own {', '.join(sorted(set(copies.values())))} were left out"
    ]


def head_outputs(adapter: AdapterDelta, anatomy: Anatomy, name: str) -> int:
    """How many outputs the head saved with an adapter has.

    Raises:
        DeltaError: no head was saved, so the adapter's answers cannot be had again.
    """
    last = _last_layer(adapter, anatomy)
    if last is None:
        outside = _outside(adapter, anatomy)
        raise DeltaError(
            f"{name} holds no head (saved beside the adapter: {', '.join(outside) or 'nothing'})",
            why="Without the trained classifier its answers cannot be had again.",
            fix="save it again with task_type='SEQ_CLS' or modules_to_save=['classifier']",
        )
    return int(_outside(adapter, anatomy)[last].shape[0])


def _outside(adapter: AdapterDelta, anatomy: Anatomy) -> dict[str, Tensor]:
    """Tensors that PEFT did not make and the backbone does not hold, by their names in the model."""
    before = BEFORE if is_soft_prompt(adapter.config) else INSIDE
    plain = {
        key.removeprefix(before): tensor
        for key, tensor in adapter.tensors.items()
        if not any(part.startswith(MADE_BY_PEFT) for part in key.split("."))
    }
    return {key: tensor for key, tensor in plain.items() if not anatomy.is_backbone(key)}


def _last_layer(adapter: AdapterDelta, anatomy: Anatomy) -> str | None:
    """The name of the head's last weight, None where no head was saved."""
    outside = _outside(adapter, anatomy)
    return next((key for end in LAST_LAYERS for key in outside if f".{key}".endswith(f".{end}")), None)


#: Task models by kind and label names, with the names of their heads.
Models = dict[tuple[Any, ...], tuple[Any, list[str]]]


def try_on(
    adapter: AdapterDelta, base: Base, kind: Any, labels: Sequence[str], name: str, models: Models | None = None
) -> tuple[Probe, list[str]]:
    """Put an adapter onto its base once: every name and shape is checked, and a probe of its answers is taken.

    Args:
        models: models that adapters of one base share: a LoRA without a head can be taken off again, so a shelf of
            two hundred reads its base once.

    Returns:
        (probe, notes on what the manifest should say: head modules that were lost, why it cannot be moved).

    Raises:
        WrongBaseError: it does not fit this base; the first names and shapes are given.
    """
    shared: Models = models if models is not None and leaves_no_trace(adapter) else {}
    # taken out while it is in use: one that failed half-way is not used again
    key = (kind, *labels)
    plain, head_names = shared.pop(key) if key in shared else base.task_model(kind, labels, seed=0)
    try:
        model = adapter.attach(plain, trainable=False)
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
    probe = make_probe(model, int(base.config.vocab_size))
    if leaves_no_trace(adapter):
        shared[key] = model.unload(), head_names
    return probe, notes


def leaves_no_trace(adapter: AdapterDelta) -> bool:
    """Whether a model is what it was once the adapter is taken off: LoRA alone, no copies of other modules."""
    plain = adapter.config.get("init_lora_weights", True) in (True, False, "gaussian")
    made = all(any(part.startswith(MADE_BY_PEFT) for part in name.split(".")) for name in adapter.tensors)
    settled = not adapter.config.get("modules_to_save") and adapter.config.get("bias", "none") == "none"
    return adapter.config.get("peft_type") == "LORA" and plain and made and settled


def config_text(config: dict[str, Any]) -> str:
    """The content of ``adapter_config.json``."""
    return json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
