"""Adopt adapters made elsewhere: a plain PEFT folder becomes a delta of a store.

Only ``adapter_config.json``, ``adapter_model.safetensors`` and ``README.md`` are taken, so what a training run left
beside them (optimizer states, pickles) stays where it is. Nothing is guessed silently: the keys and shapes must fit
the base, the kind of task is PEFT's task type, the number of labels is read from the head, and what cannot be known
stands in the manifest's notes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from anytune.errors import AnytuneError, DeltaError, StoreError, WrongBaseError
from anytune.manifests import (
    MANIFEST_NAME,
    SAMPLE_NAME,
    Manifest,
    MethodRecord,
    Parent,
    TaskRecord,
    read_manifest,
    run_key,
    sha256_file,
)
from anytune.metrics import METRICS, default_metric
from anytune.models.adapters import ADAPTER_FILE, CONFIG_FILE
from anytune.models.base import Base
from anytune.models.weights import write_tensors
from anytune.store.adapter_files import (
    Models,
    config_text,
    head_outputs,
    kind_of,
    looks_like_adapter,
    read_adapter,
    try_on,
    without_embeddings,
)
from anytune.store.entry import Entry, stored_as
from anytune.store.names import absolute_paths, is_absolute
from anytune.store.store import Store

README = "README.md"


def import_adapter(
    store: Store,
    folder: str | Path,
    base: Base,
    *,
    name: str | None = None,
    task: str | TaskRecord | None = None,
    kind: str | None = None,
    label_names: Sequence[str] | None = None,
    metric: str | None = None,
    scores: Mapping[str, Mapping[str, float | None]] | None = None,
    tags: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    models: Models | None = None,
) -> Entry:
    """Adopt one PEFT folder as a delta of ``base``. Adopting the same folder again gives the same entry.

    Args:
        store: where it goes; the folder itself is left as it is.
        folder: holds ``adapter_config.json`` and ``adapter_model.safetensors``.
        base: the base it was trained on. PEFT records no hash of it, so this is taken on trust; shapes are checked.
        name: of the delta; by default the folder's name.
        task: name or record of the task; by default the delta's name.
        kind: kind of the task; by default what PEFT's task type says (SEQ_CLS, TOKEN_CLS, CAUSAL_LM, SEQ_2_SEQ_LM), or
            where that is null what the saved tensors say.
        label_names: in the order of the head's outputs; by default ``label_0`` and so on (a head of one output is a
            regression). Generation has none.
        metric: main metric of the task; by default that of its kind.
        scores: split -> metric -> value, if known.
        tags: free labels; ``origin: import`` is added.
        notes: free text for the manifest.
        models: kept from one adapter of a folder to the next, see ``adapter_files.try_on``.

    A folder that brings a manifest (``anytune export``, another store) keeps what it says: see ``import_artefact``.

    Raises:
        DeltaError: not an adapter that can be used (no safetensors, damaged, another kind of PEFT, no head).
        WrongBaseError: its keys or shapes do not fit the base.
        StoreError: the label names do not match the head, or the store cannot be written.
    """
    folder = Path(folder)
    if (folder / MANIFEST_NAME).is_file():
        if task is not None or label_names or metric or kind:
            raise StoreError(
                f"{folder.name} brings its own {MANIFEST_NAME}",
                why="Its task, kind, label names and metric are recorded there and are not replaced.",
                fix="leave them out",
            )
        return import_artefact(store, folder, base, name=name, scores=scores, tags=tags, notes=notes)
    adapter, dropped = without_embeddings(read_adapter(folder), base, folder.name)
    if isinstance(task, TaskRecord):
        kind = task.kind
    purpose, guess = kind_of(adapter, base, folder.name, kind)
    outputs = 0 if purpose == "generation" else head_outputs(adapter, base.anatomy, folder.name)
    labels = _label_names(folder.name, outputs, label_names, metric)
    named = name or folder.resolve().name
    # SEQ_CLS does not say whether its one output is a class or a value
    purpose = "regression" if purpose == "classification" and not labels else purpose
    record = task if isinstance(task, TaskRecord) else _task(task or named, purpose, labels, metric)
    config, changes = _without_paths(adapter.config, base)
    probe, findings = try_on(adapter, base, record.kind, labels, folder.name, models)
    manifest = Manifest(
        kind="delta",
        name=named,
        # The files alone do not say which base was meant, nor which labels.
        run=run_key(job="import", base=base.identity.backbone, labels=labels, task=record.model_dump(mode="json")),
        base=base.identity,
        parents=[Parent(id=base.manifest.id, role="base", name=base.name)] if base.manifest else [],
        form="peft",
        task=record,
        label_names=labels,
        methods=[_method(config)],
        scores={split: dict(values) for split, values in (scores or {}).items()},
        tags={"origin": "import", **(tags or {})},
        probe=probe,
        notes=[*_origin(config), *guess, *changes, *dropped, *findings, *notes],
    )

    def write(place: Path) -> None:
        _copy(folder, adapter.config, config, place)
        if dropped:
            write_tensors(place / ADAPTER_FILE, adapter.tensors, {"format": "pt"})

    return store.get(store.add(manifest, write))


def import_artefact(
    store: Store,
    folder: Path,
    base: Base,
    *,
    name: str | None = None,
    scores: Mapping[str, Mapping[str, float | None]] | None = None,
    tags: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Entry:
    """Adopt a delta that anytune made (of any form) with all that its manifest says; its files are checked first.

    Held-out rows that lie beside it (``anytune export --sample``) come along.

    Raises:
        StoreError: it is damaged, or no delta, or the rows beside it are not those that its manifest speaks of.
        WrongBaseError: it belongs to another base than ``base``.
    """
    source = Entry(folder, read_manifest(folder))
    manifest = source.manifest
    if manifest.kind != "delta":
        raise StoreError(f"{folder.name} is a {manifest.kind}, not a delta", why="Only deltas belong to a base.")
    if manifest.form != "scores" and not manifest.files:
        raise StoreError(f"the manifest of {folder.name} lists no files", why="Its weights could not be checked.")
    if manifest.base.backbone != base.identity.backbone:
        raise WrongBaseError(
            f"{folder.name} belongs to base {manifest.base.short}, not to {base.identity.short}",
            why="The weights differ, so the delta would give a model nobody has tested.",
            fix="--base with its own base; `anytune recycle` moves it to another afterwards",
        )
    store.verify(source)
    rows = folder / SAMPLE_NAME if manifest.sample is not None and (folder / SAMPLE_NAME).is_file() else None
    if rows is not None and manifest.sample is not None and sha256_file(rows) != manifest.sample.sha256:
        raise StoreError(
            f"{rows} is not the file that the manifest of {folder.name} speaks of",
            why="A score on other rows would say nothing about these weights.",
            fix=f"copy the folder again, or delete {SAMPLE_NAME}",
        )

    def copy(place: Path) -> None:
        if rows is not None:
            shutil.copyfile(rows, place / SAMPLE_NAME)
        for file in manifest.files:
            (place / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / stored_as(source, file), place / file)

    manifest.name = name or manifest.name
    entry = store.get(store.add(manifest, copy))
    return store.update(entry, scores=scores, tags=tags, notes=notes) if scores or tags or notes else entry


def import_folder(
    store: Store,
    folder: str | Path,
    base: Base,
    *,
    on_result: Callable[[Path, Entry | AnytuneError], None] | None = None,
    **options: Any,
) -> list[Entry]:
    """Adopt one PEFT folder, or every PEFT folder directly inside ``folder``.

    Good ones are adopted whatever the others are; ``on_result`` hears of each as it is done.

    Args:
        options: as for ``import_adapter``; ``name`` only for a single folder.

    Raises:
        DeltaError: there is none, or (for a single one) what ``import_adapter`` raises.
        StoreError: at the end, naming every folder that was not adopted; the others are in the store.
    """
    folder = Path(folder)
    if not folder.is_dir() or looks_like_adapter(folder):
        return [import_adapter(store, folder, base, **options)]
    found = sorted(path for path in folder.iterdir() if path.is_dir() and looks_like_adapter(path))
    if not found:
        raise DeltaError(
            f"{folder} holds no {CONFIG_FILE}, and no folder with one",
            why="A PEFT adapter is a folder with adapter_config.json and adapter_model.safetensors.",
            fix="anytune store import FOLDER --base BASE",
        )
    if options.get("name") and len(found) > 1:
        raise StoreError(
            f"one name ('{options['name']}') for {len(found)} adapters",
            why="They are named after their folders.",
            fix="leave the name out",
        )
    models: Models = {}
    adopted: list[Entry] = []
    refused: list[tuple[Path, AnytuneError]] = []
    for path in found:
        try:
            adopted.append(import_adapter(store, path, base, models=models, **options))
        except AnytuneError as problem:
            refused.append((path, problem))
        if on_result:
            on_result(path, refused[-1][1] if refused and refused[-1][0] == path else adopted[-1])
    if refused:
        lines = [f"  {path.name}: {problem.what}" for path, problem in refused]
        raise StoreError(
            "\n".join([f"{len(refused)} of {len(found)} adapters were not adopted:", *lines]),
            why=f"The other {len(adopted)} are in the store.",
            fix=refused[0][1].fix,
        )
    return adopted


def _label_names(adapter: str, outputs: int, given: Sequence[str] | None, metric: str | None) -> list[str]:
    regression = metric in METRICS and METRICS[metric].kind == "regression"
    if not given:
        return [] if outputs <= 1 else [f"label_{index}" for index in range(outputs)]
    if not outputs:
        raise StoreError(
            f"{len(given)} label names for {adapter}, which generates text",
            why="It has no head whose outputs could be named.",
            fix="leave the label names out",
        )
    if regression or len(given) != outputs or len(set(given)) != len(given):
        raise StoreError(
            f"{len(given)} label names ({', '.join(list(given)[:8])}) for the {outputs} outputs of {adapter}"
            + (f" with the regression metric {metric}" if regression else ""),
            why="Output i is label name i; each needs exactly one, and no name twice.",
            fix=f"give {outputs} different names, or none" if outputs > 1 else "leave the label names out",
        )
    return list(given)


def _task(name: str, kind: Any, labels: Sequence[str], metric: str | None) -> TaskRecord:
    if metric is not None and (metric not in METRICS or METRICS[metric].kind != kind):
        fitting = [known for known, entry in METRICS.items() if entry.kind == kind]
        answers = "responses" if kind == "generation" else f"{len(labels) or 1} output(s)"
        raise StoreError(
            f"'{metric}' is no metric for {kind} ({answers})",
            why="The metric must fit what the adapter answers.",
            fix=f"one of {', '.join(fitting)}",
        )
    return TaskRecord(name=name, kind=kind, metric=metric or default_metric(kind, labels))


def _method(config: Mapping[str, Any]) -> MethodRecord:
    """The adapter's own settings; those of a LoRA under the names of ``tune/lora``, so that it can be tuned on."""
    if config["peft_type"] != "LORA":
        return MethodRecord(name=str(config["peft_type"]).lower())
    names = {"r": "r", "lora_alpha": "alpha", "lora_dropout": "dropout", "target_modules": "targets"}
    settings = {ours: config[theirs] for theirs, ours in names.items() if config.get(theirs) is not None}
    if isinstance(settings.get("targets"), str) and settings["targets"] != "all-linear":
        del settings["targets"]  # a pattern of PEFT, which tune/lora does not take
    return MethodRecord(name="tune/lora", settings=settings)


def _origin(config: Mapping[str, Any]) -> list[str]:
    version = config.get("peft_version")
    made = f"made by PEFT {version}" if version else "made by PEFT"
    return [f"adopted from a folder {made}; seed, data and training are not known"]


def _without_paths(config: Mapping[str, Any], base: Base) -> tuple[dict[str, Any], list[str]]:
    """The adapter's config with no path of the machine it was made on, and a note of what was changed."""
    cleaned, notes = dict(config), []
    where = str(config.get("base_model_name_or_path") or "")
    if is_absolute(where) or where.startswith((".", "~")):
        cleaned["base_model_name_or_path"] = base.ref or base.name
        notes.append(f"base_model_name_or_path was a local path; it is now {base.ref or base.name}")
    for key, text in absolute_paths(cleaned):
        raise DeltaError(
            f"{CONFIG_FILE} holds an absolute path: {key} = {text!r}",
            why="Artefacts are copied and shared; a path of one machine means nothing on another.",
            fix=f"remove '{key}' from {CONFIG_FILE}, or make it relative",
        )
    return cleaned, notes


def _copy(source: Path, old: Mapping[str, Any], new: dict[str, Any], place: Path) -> None:
    (place / CONFIG_FILE).write_text(config_text(new), encoding="utf-8")
    shutil.copyfile(source / ADAPTER_FILE, place / ADAPTER_FILE)
    where, now = (str(config.get("base_model_name_or_path") or "") for config in (old, new))
    try:
        card = (source / README).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return  # none, or not a text: left behind
    (place / README).write_text(card.replace(where, now) if where != now else card, encoding="utf-8")
