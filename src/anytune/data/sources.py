"""Where labelled rows and raw text come from: files, folders, named samples and hub data sets, behind one door."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from anytune.data.tables import SPLIT_FILES, SUFFIXES, Table, folder_files, listed, read_table, shown
from anytune.errors import DataError, SampleError, SettingsError, unknown

SAMPLE_PREFIX = "sample:"
#: "owner/name" or "owner/name:config"
_DATASET_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+)?")


@dataclass(frozen=True)
class Source:
    """Labelled rows as found.

    Attributes:
        name: of the file, folder, sample or data set.
        ref: where they can be had again, None for local files.
        tables: rows of "train", and of "validation" and "test" where the source brings them.
        kind, metric, label_names, text_columns: what the source itself says of its task; empty for files.
        notes: what a careful reader should know.
    """

    name: str
    ref: str | None
    tables: dict[str, Table]
    kind: str | None = None
    metric: str | None = None
    label_names: tuple[str, ...] = ()
    text_columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())


def find(source: str | Path, *, validation: str | Path | None = None, test: str | Path | None = None) -> Source:
    """Read the rows of ``source``; ``validation`` and ``test`` are files that stand in for its own splits.

    Raises:
        DataError: nothing is there, or it cannot be read.
        SampleError: the sample is unknown, cannot be fetched, or has no labels.
    """
    found = _find(source)
    own = {split: read_table(path) for split, path in (("validation", validation), ("test", test)) if path is not None}
    # with files of the user's own, the ref alone would no longer give the same task
    return replace(found, tables={**found.tables, **own}, ref=None if own else found.ref)


def _find(source: str | Path) -> Source:
    if isinstance(source, str) and source.startswith(SAMPLE_PREFIX):
        return _sample(source.removeprefix(SAMPLE_PREFIX))
    path = Path(source).expanduser()
    if path.is_dir():
        files = folder_files(path)
        return Source(path.resolve().name, None, {split: read_table(file) for split, file in files.items()})
    if path.exists() or not (isinstance(source, str) and is_dataset_id(source)):
        return Source(path.stem, None, {"train": read_table(path)})
    return _dataset(source)


def sample_rows(name: str) -> Any:
    """The separated rows of a named sample (loaded only when one is asked for)."""
    return importlib.import_module("anytune.data.samples").sample_rows(name)


def _sample(name: str) -> Source:
    sample = sample_rows(name)
    facts = sample.facts
    tables = {}
    for split, rows in sample.splits.items():
        columns: dict[str, list[Any]] = {"text": [row.text for row in rows], "label": [row.label for row in rows]}
        if facts.get("kind") == "token-classification":  # there words and tags stand joined by one space
            columns = {name: [joined.split(" ") for joined in values] for name, values in columns.items()}
        if rows and rows[0].text_pair is not None:
            columns["text_pair"] = [row.text_pair for row in rows]
        if rows and all(getattr(row, "date", None) for row in rows):
            columns["date"] = [row.date for row in rows]
        tables[split] = Table(f"{SAMPLE_PREFIX}{name} ({split})", columns, range(1, len(rows) + 1))
    if "train" not in tables:
        raise SampleError(
            f"sample:{name} has no labelled rows",
            why="It is raw text: a domain, not a task.",
            fix="a sample with labels: anytune samples",
        )
    return Source(
        name=name,
        ref=f"{SAMPLE_PREFIX}{name}",
        tables={split: table for split, table in tables.items() if len(table)},
        kind=facts.get("kind"),
        metric=facts.get("metric") or None,
        label_names=tuple(map(str, facts.get("label_names") or ())),
        text_columns=tuple(facts.get("text_columns") or ()),
        notes=tuple(facts.get("notes") or ()),
    )


def _dataset(identifier: str) -> Source:
    tables, notes = read_dataset(identifier), []
    for split in ("validation", "test"):
        table = tables.get(split)
        hidden = [name for name in table.class_names if not any(table.columns[name])] if table else []
        if hidden:  # many benchmarks publish their test texts with every label set to -1
            del tables[split]
            notes.append(f"the {split} split of {identifier} has no labels ({listed(hidden)}); it is not used")
    name = identifier.partition(":")[0].rpartition("/")[2]
    return Source(name, identifier, tables, notes=tuple(notes))


def unfolded(source: Mapping[str, Any], given: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The arguments of a loader whose source is a mapping of them, as in a recipe; the mapping's values win.

    Raises:
        SettingsError: a key is unknown (the near one is suggested), or "source" is missing.
    """
    extra = sorted(str(key) for key in source if key not in given and key != "source")
    if extra:
        raise unknown(f"{what} setting", extra[0], [*given, "source"], SettingsError)
    if "source" not in source:
        raise SettingsError(f"a {what} without 'source': {shown(dict(source))}", fix="source: FILE or sample:NAME")
    return {**given, **source}


def is_dataset_id(source: str) -> bool:
    """Whether ``source`` reads as a hub id, "owner/name" or "owner/name:config", and as no local path."""
    if not _DATASET_ID.fullmatch(source) or Path(source).suffix.lower() in SUFFIXES:
        return False
    return not Path(source).exists() and not Path(source).parts[0].startswith(".") and not Path(source).parent.is_dir()


def read_dataset(identifier: str) -> dict[str, Table]:
    """The splits of a hub data set, as train, validation and test; no code from the hub is run.

    Columns of class numbers become class names; a split whose name is not known is left out.

    Raises:
        DataError: the data set cannot be had (offline, unknown, needs code), or has no train split.
    """
    import datasets

    name, _, config = identifier.partition(":")
    try:
        loaded = datasets.load_dataset(name, config or None)
    except Exception as problem:  # the hub's clients raise of many kinds, none of them documented as complete
        raise DataError(
            f"cannot load the data set {identifier}: {type(problem).__name__}: {shown(str(problem), 200)}",
            why="No file of that name exists here, and the hub did not give one.",
            fix="a local file, or a sample that needs no hub: anytune samples",
        ) from None
    tables = {}
    for split, names in SPLIT_FILES.items():
        found = next((key for key in loaded if key in names), None)
        if found is not None:
            tables[split] = _from_dataset(f"{identifier} ({found})", loaded[found])
    if "train" not in tables:
        raise DataError(f"{identifier} has no train split, but {listed([str(key) for key in loaded])}")
    return tables


def _from_dataset(source: str, dataset: Any) -> Table:
    columns = {name: list(dataset[name]) for name in dataset.column_names}
    class_names = {}
    for name, feature in dataset.features.items():
        if type(feature).__name__ == "ClassLabel":
            class_names[name] = tuple(feature.names)
            columns[name] = [_class_name(feature, value) for value in columns[name]]
            continue
        inner = getattr(feature, "feature", None)  # of a list of tags
        if inner is not None and type(inner).__name__ == "ClassLabel":
            class_names[name] = tuple(inner.names)
            columns[name] = [tags and [_class_name(inner, tag) for tag in tags] for tags in columns[name]]
    return Table(source, columns, range(1, len(dataset) + 1), "row", class_names)


def _class_name(feature: Any, value: int | None) -> str | None:
    name: str | None = feature.names[value] if value is not None and value >= 0 else None
    return name


def checked_texts(table: Table, column: str) -> list[str]:
    """The texts of a column.

    Raises:
        DataError: a row has no text, or something that is no text; the first such row is named.
    """
    values = table.columns[column]
    missing = [row for row, value in enumerate(values) if _is_missing(value)]
    if missing:
        raise DataError(
            f"{table.place(missing[0])} has no text in column '{column}'"
            + (f" ({len(missing)} such rows)" if len(missing) > 1 else ""),
            why="A model needs at least one word to read.",
            fix="remove these rows",
        )
    for row, value in enumerate(values):
        if isinstance(value, list):
            raise DataError(
                f"{table.place(row)} has a list in column '{column}', which is no text: {shown(value)}",
                why="A column of lists holds the words of a sentence, for tasks that tag each word.",
                fix="kind=token-classification, if a column of lists holds their tags; else --text COLUMN",
            )
        if not isinstance(value, str):
            raise DataError(
                f"{table.place(row)} has {shown(value)} in column '{column}', which is no text",
                why=f"Its columns are: {listed(list(table.columns))}.",
                fix="--text COLUMN   (one that holds text)",
            )
        if not is_writable(value):
            raise DataError(
                f"{table.place(row)} holds half a character (a lone surrogate) in column '{column}': {shown(value)}",
                why="Such text cannot be encoded, and no tokenizer takes it.",
                fix="correct the row",
            )
    return values


def _is_missing(value: Any) -> bool:
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    )


def is_writable(text: str) -> bool:
    """Whether a text can be encoded as UTF-8: it holds no lone surrogate."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
