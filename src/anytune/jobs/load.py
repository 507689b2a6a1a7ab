"""Use a delta: load it, predict with it, score it, merge it into its base, export it."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from anytune.data.batches import encode_prompts, encode_task, evaluation_batches
from anytune.data.tasks import Example, Task
from anytune.engine.generation import LONGEST_RESPONSE, GreedyDecoding
from anytune.engine.prediction import predict_logits, predict_tags, probabilities
from anytune.engine.runtime import make_runtime
from anytune.errors import DataError, DeltaError, StoreError
from anytune.jobs.deltas import install_delta, load_delta
from anytune.jobs.opening import base_of_delta, open_delta, open_store, open_task
from anytune.jobs.recycle import check_labels, known_columns
from anytune.jobs.scoring import EncodedTask, Scorer
from anytune.jobs.tune import Source
from anytune.manifests import MANIFEST_NAME, SAMPLE_NAME, Manifest, staged_folder
from anytune.models.base import Base, save_base
from anytune.models.delta_file import read_delta
from anytune.models.peft_models import merge as merge_adapter
from anytune.models.probe import check_probe
from anytune.models.soft_prompts import prompt_of
from anytune.store import Entry, Store
from anytune.store.entry import stored_as


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
    place = store_for(delta, store)
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
    texts: Iterable[str | tuple[str, str] | Sequence[str]],
    *,
    store: Store | Source | None = None,
    base: Base | Entry | Source | None = None,
    batch_size: int = 64,
    max_length: int | None = None,
    max_new_tokens: int = LONGEST_RESPONSE,
) -> list[dict[str, Any]]:
    """Answer texts, in their order, as the delta's kind of task asks for.

    Args:
        texts: texts, or pairs of texts as tuples. For token classification each is a list of words, or a text that
            is split at white space or holds a JSON list of words; for generation a prompt.
        max_length: longest text (for decoders: prompt) in tokens; default: as it was tuned.
        max_new_tokens: longest response in tokens (generation).

    Returns:
        Per text ``{"label": name, "probability": p, "probabilities": {name: p}}`` (classification), ``{"value": x}``
        (regression), ``{"words": [...], "tags": [...], "probabilities": [...]}`` with one tag and its probability a
        word (token classification), or ``{"response": text}`` (generation).

    Raises:
        DataError: there is no text, or one is empty.
    """
    place = store_for(delta, store)
    entry = open_delta(delta, place)
    manifest = entry.manifest
    kind = manifest.task.kind if manifest.task else "classification"
    rows = text_examples(texts, kind)
    check_pairs(manifest, rows)
    belongs = base_of_delta(entry, place, base)
    model, tokenizer = load(entry, store=place, base=belongs)
    runtime = make_runtime("fp32")
    model = model.to(runtime.device)
    length = max_length or int(manifest.training.get("max_length", 128))
    if kind == "generation":
        decoding = GreedyDecoding(
            tokenizer=tokenizer, max_new_tokens=max_new_tokens, position_limit=belongs.position_limit,
            encoder_decoder=belongs.anatomy.encoder_decoder,
        )  # fmt: skip
        prompts = encode_prompts([row.text for row in rows], tokenizer, length, belongs.anatomy.encoder_decoder)
        return [{"response": text} for text in decoding.respond(model, prompts, batch_size, runtime)]
    encoded = encode_task(rows, tokenizer, length, None)
    names = manifest.label_names
    if kind == "token-classification":
        words = [list(row.words or ()) for row in rows]
        outside = names.index("O") if "O" in names else 0
        found = predict_tags(model, encoded, list(map(len, words)), batch_size, runtime, outside)
        return [
            {"words": said, "tags": [names[tag] for tag in tags], "probabilities": sure}
            for said, tags, sure in zip(words, found.indices, found.probabilities, strict=True)
        ]
    logits = predict_logits(model, evaluation_batches(encoded, batch_size), len(rows), runtime)
    if not names:
        return [{"value": value} for value in logits.squeeze(-1).tolist()]
    answers = []
    for row in probabilities(logits).tolist():
        best = max(range(len(row)), key=row.__getitem__)
        answers.append(
            {"label": names[best], "probability": row[best], "probabilities": dict(zip(names, row, strict=True))}
        )
    return answers


def text_examples(texts: Iterable[str | tuple[str, str] | Sequence[str]], kind: str) -> list[Example]:
    """Texts as examples without labels, checked."""
    rows = []
    for number, text in enumerate(texts):
        if kind == "token-classification":
            words = tuple(_words(text) if isinstance(text, str) else text)
            if not words or not all(isinstance(word, str) and word.strip() for word in words):
                raise DataError(
                    f"text {number + 1} is {'empty' if not words else 'no list of words'}",
                    why="Each word gets a tag.",
                    fix='a text, or a list of words: ["Ada", "met", "Charles"]',
                )
            rows.append(Example(" ".join(words), None, 0, words))
            continue
        first, second = text if isinstance(text, tuple) else (text, None)
        if not isinstance(first, str) or not first.strip():
            raise DataError(f"text {number + 1} is empty", why="There is nothing to predict from.")
        rows.append(Example(first, second, 0))
    if not rows:
        raise DataError("there is no text to predict for", fix='anytune predict DELTA "some text"')
    return rows


def _words(text: str) -> list[Any]:
    """The words of a text: those of a JSON list, or what stands between white space."""
    if text.lstrip().startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            listed = json.loads(text)
            if isinstance(listed, list):
                return listed
    return text.split()


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
    place = store_for(delta, store)
    entry = open_delta(delta, place)
    manifest = entry.manifest
    belongs, data, length = scored_task(entry, place, task, split, base, columns)
    model, _ = load(entry, store=place, base=belongs)
    runtime = make_runtime("fp32")
    scorer = Scorer(
        task=data, encoded=getattr(EncodedTask.of(data, belongs, length), split), split=split, base=belongs,
        batch_size=batch_size, runtime=runtime,
    )  # fmt: skip
    found, _ = scorer(model.to(runtime.device))
    if manifest.task is not None and manifest.task.content == data.content:
        place.update(entry, scores={split: found.scores})
    return dict(found.scores)


def scored_task(
    entry: Entry, place: Store, task: Task | Source | None, split: str, base: Any, columns: Mapping[str, Any]
) -> tuple[Base, Task, int]:
    """The base of a delta, the task it is scored on, and the tokens it reads of each example."""
    manifest = entry.manifest
    if split not in ("train", "validation", "test"):
        raise DataError(f"split = '{split}'", fix="train, validation or test")
    source = task if task is not None else manifest.task.ref if manifest.task else None
    if source is None:
        raise StoreError(f"'{entry.reference}' does not say where its task's data are", fix="--task FILE")
    data = open_task(source, **{**known_columns(manifest), **columns})
    check_labels(manifest, data)
    return base_of_delta(entry, place, base), data, int(manifest.training.get("max_length", 128))


def merge(
    delta: Entry | Source,
    out: str | Path,
    *,
    store: Store | Source | None = None,
    base: Base | Entry | Source | None = None,
) -> Path:
    """Write base and delta as one plain transformers folder.

    ``AutoModelForSequenceClassification`` loads it, or the class of the delta's kind:
    ``AutoModelForTokenClassification``, ``AutoModelForCausalLM``, ``AutoModelForSeq2SeqLM``. On a base with a
    hypernetwork that is the bare model: the two files beside it, which write its prompts, only anytune reads.

    Raises:
        StoreError: ``out`` exists or cannot be written.
        DeltaError: bottleneck adapters, which no weight of the base can take in.
    """
    final = free_place(out)
    place = store_for(delta, store)
    entry = open_delta(delta, place)
    belongs = base_of_delta(entry, place, base)
    if is_plugged_in(entry):
        raise unmergeable(entry)
    model, _ = load(entry, store=place, base=belongs)
    if hasattr(model, "peft_config") or prompt_of(model) is not None:
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
    sample: bool = False,
) -> Path:
    """Write a delta for other tools: an adapter as a plain PEFT folder, a full difference as a merged model.

    Bottleneck adapters, which nothing else reads, are written as they are stored.

    The manifest goes along, and every file that it lists, so that the folder can be imported again.

    Args:
        sample: also write the delta's held-out rows (texts and labels of its task), which stay behind otherwise.
    """
    place = store_for(delta, store)
    entry = open_delta(delta, place)
    place.verify(entry)
    if entry.manifest.form == "full" and not is_plugged_in(entry):
        merged = merge(entry, out, store=place, base=base)
        if sample and (entry.folder / SAMPLE_NAME).is_file():
            shutil.copyfile(entry.folder / SAMPLE_NAME, merged / SAMPLE_NAME)
        return merged
    if entry.manifest.form == "scores":
        load_delta(entry)  # raises: there are no weights
    final = free_place(out)
    with staged_folder(final) as folder:
        rows = (SAMPLE_NAME,) if sample else ()
        for name in dict.fromkeys((*entry.manifest.files, "README.md", *rows, MANIFEST_NAME)):
            held = entry.folder / stored_as(entry, name)
            if held.is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(held, folder / name)
    return final


def is_plugged_in(entry: Entry) -> bool:
    """Whether a full delta has bottleneck adapters: it then stays beside its base, as PEFT's do."""
    return entry.manifest.form == "full" and read_delta(entry.folder).bottleneck is not None


def unmergeable(entry: Entry) -> DeltaError:
    """The error for bottleneck adapters that are to become part of a base's weights."""
    return DeltaError(
        f"'{entry.reference}' has bottleneck adapters and cannot be merged",
        why="They bend what they are given, so no matrix of the base can take them in.",
        fix="anytune export   (the delta as it is), or anytune.load(DELTA) beside its base",
    )


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


def free_place(out: str | Path) -> Path:
    """The folder to write, which must not be there yet (StoreError)."""
    final = Path(out)
    if final.exists():
        raise StoreError(f"{final} exists", why="Nothing is written over.", fix=f"another --out, or remove {final}")
    return final


def store_for(delta: Entry | Source, store: Store | Source | None) -> Store:
    """The store given; else the one around the delta's folder; else the default one."""
    if store is None and not isinstance(delta, Entry) and Path(delta).is_dir():
        root = Path(delta).resolve().parent.parent
        return Store(root if (root / "deltas").is_dir() else Path(delta).resolve().parent, create=False)
    if store is None and isinstance(delta, Entry):
        return Store(delta.folder.parent.parent, create=False)
    return open_store(store, create=False)
