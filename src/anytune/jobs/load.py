"""Use a delta: load it, predict with it, score it, merge it into its base, export it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from anytune.data.batches import encode_task, evaluation_batches
from anytune.data.tasks import Example, Task
from anytune.engine.prediction import predict_logits, probabilities
from anytune.engine.runtime import make_runtime
from anytune.errors import DataError, StoreError
from anytune.jobs.opening import base_of_delta, open_delta, open_store, open_task
from anytune.jobs.recycle import check_labels
from anytune.jobs.tune import Source
from anytune.jobs.tuning import EncodedTask, evaluator, install_delta, load_delta
from anytune.manifests import MANIFEST_NAME, Manifest, staged_folder
from anytune.models.adapters import merge as merge_adapter
from anytune.models.base import Base, save_base
from anytune.models.probe import check_probe
from anytune.store import Entry, Store


def load(
    delta: Entry | Source,
    *,
    store: Store | Source | None = None,
    base: Base | Entry | Source | None = None,
    check: bool = True,
) -> tuple[Any, Any]:
    """A ready model (in evaluation mode) and its tokenizer.

    The file hashes and the numeric probe of the manifest are checked, so that the model answers as it did when it was
    stored.

    Args:
        delta: name, id or folder.
        base: only needed where the delta's base is not found by itself.
        check: False leaves the checks out.

    Raises:
        WrongBaseError: ``base`` is not the one it belongs to.
        StoreError, DeltaError: it is missing, damaged, or does not answer as it did.
    """
    place = _store_for(delta, store)
    entry = open_delta(delta, place)
    if check:
        place.verify(entry)
    belongs = base_of_delta(entry, place, base)
    model = _installed(entry, belongs)
    if check and entry.manifest.probe is not None:
        check_probe(model, entry.manifest.probe)
    return model.eval(), belongs.tokenizer()


def predict(
    delta: Entry | Source,
    texts: Iterable[str | tuple[str, str]],
    *,
    store: Store | Source | None = None,
    base: Base | Entry | Source | None = None,
    batch_size: int = 64,
    max_length: int | None = None,
) -> list[dict[str, Any]]:
    """Predict labels for texts (or pairs of texts), in their order.

    Returns:
        Per text ``{"label": name, "probability": p, "probabilities": {name: p}}``, or ``{"value": x}`` for regression.

    Raises:
        DataError: there is no text, or one is empty.
    """
    place = _store_for(delta, store)
    entry = open_delta(delta, place)
    pairs = [text if isinstance(text, tuple) else (text, None) for text in texts]
    rows = [Example(first, second, 0) for first, second in pairs]
    if not rows:
        raise DataError("there is no text to predict for", fix='anytune predict DELTA "some text"')
    for number, row in enumerate(rows):
        if not isinstance(row.text, str) or not row.text.strip():
            raise DataError(f"text {number + 1} is empty", why="There is nothing to predict from.")
    check_pairs(entry.manifest, rows)
    model, tokenizer = load(entry, store=place, base=base)
    length = max_length or int(entry.manifest.training.get("max_length", 128))
    runtime = make_runtime("fp32")
    encoded = encode_task(rows, tokenizer, length, None)
    logits = predict_logits(model.to(runtime.device), evaluation_batches(encoded, batch_size), len(rows), runtime)
    names = entry.manifest.label_names
    if not names:
        return [{"value": value} for value in logits.squeeze(-1).tolist()]
    answers = []
    for row in probabilities(logits).tolist():
        best = max(range(len(row)), key=row.__getitem__)
        answers.append(
            {"label": names[best], "probability": row[best], "probabilities": dict(zip(names, row, strict=True))}
        )
    return answers


def evaluate(
    delta: Entry | Source,
    task: Task | Source | None = None,
    *,
    split: str = "test",
    store: Store | Source | None = None,
    base: Base | Entry | Source | None = None,
    batch_size: int = 64,
    **columns: Any,
) -> dict[str, float]:
    """Score a delta on a split of a task; the scores are also written into its manifest if it is the same task.

    Returns:
        Metric -> value, the task's main metric first.
    """
    place = _store_for(delta, store)
    entry = open_delta(delta, place)
    manifest = entry.manifest
    if split not in ("train", "validation", "test"):
        raise DataError(f"split = '{split}'", fix="train, validation or test")
    source = task if task is not None else manifest.task.ref if manifest.task else None
    if source is None:
        raise StoreError(f"'{entry.reference}' does not say where its task's data are", fix="--task FILE")
    data = open_task(source, **{"label_names": manifest.label_names or None, **columns})
    check_labels(manifest, data)
    model, tokenizer = load(entry, store=place, base=base)
    runtime = make_runtime("fp32")
    encoded = getattr(EncodedTask.of(data, tokenizer, int(manifest.training.get("max_length", 128))), split)
    found, _ = evaluator(data, encoded, split, batch_size, runtime)(model.to(runtime.device))
    if manifest.task is not None and manifest.task.content == data.content:
        place.update(entry, scores={split: found.scores})
    return dict(found.scores)


def merge(
    delta: Entry | Source,
    out: str | Path,
    *,
    store: Store | Source | None = None,
    base: Base | Entry | Source | None = None,
) -> Path:
    """Write base and delta as one plain transformers folder that ``AutoModelForSequenceClassification`` loads.

    Raises:
        StoreError: ``out`` exists or cannot be written.
    """
    final = _free(out)
    place = _store_for(delta, store)
    entry = open_delta(delta, place)
    belongs = base_of_delta(entry, place, base)
    model, _ = load(entry, store=place, base=belongs)
    if hasattr(model, "peft_config"):
        model = merge_adapter(model)
    with staged_folder(final) as folder:
        save_base(model, belongs, folder)
    return final


def export(
    delta: Entry | Source,
    out: str | Path,
    *,
    store: Store | Source | None = None,
    base: Base | Entry | Source | None = None,
) -> Path:
    """Write a delta for other tools: an adapter as a plain PEFT folder, a full difference as a merged model.

    The manifest goes along, so that the folder can be imported again.
    """
    place = _store_for(delta, store)
    entry = open_delta(delta, place)
    place.verify(entry)
    if entry.manifest.form == "full":
        return merge(entry, out, store=place, base=base)
    if entry.manifest.form == "scores":
        load_delta(entry)  # raises: there are no weights
    final = _free(out)
    with staged_folder(final) as folder:
        for name in ("adapter_config.json", "adapter_model.safetensors", "README.md", MANIFEST_NAME):
            if (entry.folder / name).is_file():
                shutil.copyfile(entry.folder / name, folder / name)
    return final


def check_pairs(manifest: Manifest, rows: Sequence[Example]) -> None:
    """Texts must come as the delta was tuned: alone, or in pairs.

    Raises:
        DataError: they do not; the model would answer all the same, about something it has never seen.
    """
    columns = manifest.task.text_columns if manifest.task else []
    pairs = sum(row.text_pair is not None for row in rows)
    if len(columns) == 2 and pairs < len(rows):
        raise DataError(
            f"'{manifest.name}' was tuned on pairs ({', '.join(columns)}) and {len(rows) - pairs} texts stand alone",
            why="It would answer about a pair that is not there.",
            fix="two texts each: --file pairs.csv --text FIRST,SECOND",
        )
    if len(columns) == 1 and pairs:
        raise DataError(
            f"'{manifest.name}' was tuned on single texts and {pairs} pairs were given",
            why="It has never seen a second text.",
            fix="one text each",
        )


def _installed(entry: Entry, base: Base) -> Any:
    manifest = entry.manifest
    kind = manifest.task.kind if manifest.task else "classification"
    model, _ = base.task_model(kind, manifest.label_names, seed=0)
    return install_delta(load_delta(entry), model, base, trainable=False)


def _free(out: str | Path) -> Path:
    final = Path(out)
    if final.exists():
        raise StoreError(f"{final} exists", why="Nothing is written over.", fix=f"another --out, or remove {final}")
    return final


def _store_for(delta: Entry | Source, store: Store | Source | None) -> Store:
    """The store given; else the one around the delta's folder; else the default one."""
    if store is None and not isinstance(delta, Entry) and Path(delta).is_dir():
        root = Path(delta).resolve().parent.parent
        return Store(root if (root / "deltas").is_dir() else Path(delta).resolve().parent, create=False)
    if store is None and isinstance(delta, Entry):
        return Store(delta.folder.parent.parent, create=False)
    return open_store(store, create=False)
