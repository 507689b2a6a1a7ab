"""Turn what a loader read into a task and raw text that do not leak into each other; once, then from the cache."""

from __future__ import annotations

import hashlib
import importlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from anytune.data.samples.cache import Progress, appearing, cache_folder, locked, say_nothing
from anytune.data.samples.catalogue import Sample, get_sample
from anytune.data.samples.fetching import FETCHED, fetch
from anytune.data.samples.rows import RawText, Records, Row, SampleRows
from anytune.errors import SampleError
from anytune.manifests import digest

#: part of the cache key: raise it when loaders or the separation change what comes out
ROWS_VERSION = 2
THRESHOLD = 0.8
FRACTIONS = (0.7, 0.1, 0.2)
#: of the official train rows, where a data set has its own test rows
VALIDATION_OF_TRAIN = 0.125
FACTS = "facts.json"
HELD_OUT = ("validation", "test")
DROPPED = "dropped"
#: what may tie two rows together: the number of a near-duplicate cluster, or the name of a group
Mark = int | str


def sample_rows(
    name: str, *, cache: Path | None = None, progress: Progress | None = None, seed: int = 0
) -> SampleRows:
    """A text sample as train / validation / test rows and raw text, separated; fetched and made once, then cached.

    Near-duplicate clusters (Jaccard 0.8 of character 5-grams) are merged with the sample's groups (film, document,
    licence ...); whole merged groups go to one split, about .7 / .1 / .2. An official test split is kept: validation
    is taken from its train rows, and train rows near a test row are dropped. ``raw`` is the text of the train rows and
    of texts outside the task, of groups without any validation or test row. The same bytes on every machine.

    Args:
        name: a text sample of the catalogue.
        cache: another cache root than ``cache_folder()``.
        progress: called with one line of text at each step.
        seed: of the split by group; published numbers use 0.

    Raises:
        SampleError: not a text sample, not to be fetched, or raw text would overlap with held-out text.
    """
    sample, tell = get_sample(name), progress or say_nothing
    if sample.kind != "text":
        raise SampleError(f"sample '{sample.name}' is a model, not text", fix=f"--base sample:{sample.name}")
    fetched = fetch(sample.name, cache=cache, progress=tell)
    key = digest([ROWS_VERSION, sample.loader, seed, THRESHOLD, FRACTIONS, (fetched / FETCHED).read_text()])[:12]
    folder = (cache or cache_folder()) / "rows" / f"{sample.name}-{key}"
    if not (folder / FACTS).is_file():
        with locked(folder, tell):
            if not (folder / FACTS).is_file():
                with appearing(folder) as partial:
                    _write(make_rows(sample, fetched, seed, tell), partial)
    return _read(sample.name, folder)


def make_rows(sample: Sample, fetched: Path, seed: int, tell: Progress) -> SampleRows:
    """Load, separate and check one sample; no cache."""
    begun = time.monotonic()
    tell(f"reading {sample.name}")
    module, function = sample.loader.split(":")
    loader = getattr(importlib.import_module(f"anytune.data.samples.loaders.{module}"), function)
    records: Records = loader(fetched)
    if not records.rows and not records.outside:
        raise SampleError(f"sample '{sample.name}' is empty", why="The package is not the expected one.")
    tell(f"separating {sample.name}: {len(records.rows):,} labelled rows, {len(records.outside):,} further texts")
    result = separate(sample, records, seed)
    result.facts["warnings"] = json.loads((fetched / FETCHED).read_text())["warnings"]
    counts = ", ".join(f"{split} {count:,}" for split, count in result.facts["counts"].items())
    tell(f"made {sample.name} in {time.monotonic() - begun:.0f} s: {counts}; overlap 0")
    return result


def separate(sample: Sample, records: Records, seed: int = 0) -> SampleRows:
    """The separation itself, pure: records in, split rows and raw text out.

    Raises:
        SampleError: raw text or train rows overlap with validation or test (a loader or separation fault).
    """
    from anytune.data.separation import SPLITS, near_duplicate_clusters, overlap, split_by_group

    rows, official = _distinct(records)
    outside = list(dict.fromkeys(records.outside))
    if not rows:
        raw = _distinct_texts(outside)
        return SampleRows(sample.name, {}, raw, _facts(sample, {}, raw, seed))
    texts = [text for row in rows for text in row.texts] + [text.text for text in outside]
    clusters = near_duplicate_clusters(texts, THRESHOLD)
    marks = _marks(rows, outside, clusters)
    if official is None:
        groups = _merged_groups(rows, outside, marks)
        labels = [row.label for row in rows] if sample.task == "classification" else None
        places = split_by_group(groups[: len(rows)], labels, seed, FRACTIONS)
        marks = [{group} for group in groups]  # from here on, nothing of a merged group may be on two sides
    else:
        places = _kept_apart(_with_validation(rows, marks, official, sample, seed), marks)
    splits = {split: tuple(row for row, place in zip(rows, places, strict=True) if place == split) for split in SPLITS}
    kept_out = set[Mark]().union(*(mark for mark, place in zip(marks, places, strict=False) if place in HELD_OUT))
    allowed = [
        RawText(text, row.group, row.date)
        for row, place in zip(rows, places, strict=True)
        for text in row.texts
        if place == "train"
    ]
    allowed += [text for text, mark in zip(outside, marks[len(rows) :], strict=True) if not mark & kept_out]
    raw = _distinct_texts(allowed)
    heldout = [text for split in HELD_OUT for row in splits[split] for text in row.texts]
    leaked = overlap([text.text for text in raw], heldout, THRESHOLD)
    if leaked:
        raise SampleError(
            f"sample '{sample.name}': {leaked} raw texts are near-duplicates of validation or test texts",
            why="Scores on them would mean nothing.",
            fix="please report this as a fault of anytune",
        )
    dropped = sum(place == DROPPED for place in places)
    return SampleRows(sample.name, splits, raw, _facts(sample, splits, raw, seed, len(set(clusters)), dropped))


def _distinct(records: Records) -> tuple[list[Row], list[str] | None]:
    """Rows without exact repeats (same texts and label), test rows first, so that a repeat in train goes."""
    seen: set[tuple[Any, ...]] = set()
    rows: list[Row] = []
    official: list[str] = []
    order = range(len(records.rows))
    if records.official is not None:
        order = sorted(order, key=lambda index: records.official[index] != "test")  # type: ignore[assignment, index]
    for index in order:
        row = records.rows[index]
        if all(row.texts) and (key := (row.text, row.text_pair, row.label)) not in seen:
            seen.add(key)
            rows.append(row)
            official.append(records.official[index] if records.official is not None else "")
    return rows, official if records.official is not None else None


def _distinct_texts(texts: Sequence[RawText]) -> tuple[RawText, ...]:
    """The first of each text."""
    return tuple({text.text: text for text in reversed(texts)}.values())[::-1]


def _marks(rows: Sequence[Row], outside: Sequence[RawText], clusters: Sequence[int]) -> list[set[Mark]]:
    """What ties each row, then each outside text, to others: the clusters of its texts, and its group."""
    marks: list[set[Mark]] = []
    number = iter(clusters)
    everything: list[Row | RawText] = [*rows, *outside]
    for owner in everything:
        count = len(owner.texts) if isinstance(owner, Row) else 1
        mark: set[Mark] = {next(number) for _ in range(count)}
        marks.append(mark | {owner.group} if owner.group else mark)
    return marks


def _merged_groups(rows: Sequence[Row], outside: Sequence[RawText], marks: Sequence[set[Mark]]) -> list[str]:
    """Name of the merged group of each row, then of each outside text; it depends on the texts, not on their order."""
    from anytune.data.separation import merge_groups, name_groups

    owners: list[int] = []
    values: list[str] = []
    for owner, mark in enumerate(marks):
        owners += [owner] * len(mark)
        values += [str(value) if isinstance(value, int) else f"group {value}" for value in mark]
    merged = dict(zip(owners, merge_groups(owners, values), strict=True))
    everything: list[Row | RawText] = [*rows, *outside]
    names = ["\n".join(owner.texts if isinstance(owner, Row) else (owner.text,)) for owner in everything]
    members = [hashlib.sha256(name.encode()).hexdigest() for name in names]
    return name_groups([merged[owner] for owner in range(len(marks))], members)


def _with_validation(
    rows: Sequence[Row], marks: Sequence[set[Mark]], official: Sequence[str], sample: Sample, seed: int
) -> list[str]:
    """The official split, with validation taken out of train by group where it has none."""
    from anytune.data.separation import split_by_group

    places = list(official)
    if "validation" in places:
        return places
    train = [index for index, place in enumerate(places) if place == "train"]
    groups = _merged_groups([rows[index] for index in train], (), [marks[index] for index in train])
    labels = [rows[index].label for index in train] if sample.task == "classification" else None
    answer = split_by_group(groups, labels, seed, (1 - VALIDATION_OF_TRAIN, VALIDATION_OF_TRAIN, 0.0))
    for index, place in zip(train, answer, strict=True):
        places[index] = place
    return places


def _kept_apart(places: Sequence[str], marks: Sequence[set[Mark]]) -> list[str]:
    """Drop validation rows tied to a test row, and train rows tied to either; test rows are never dropped."""
    kept = list(places)
    taken: set[Mark] = set()
    for split in ("test", "validation", "train"):
        mine = [index for index, place in enumerate(places) if place == split]
        for index in mine:
            if marks[index] & taken:
                kept[index] = DROPPED
        taken = taken.union(*(marks[index] for index in mine))
    return kept


def _facts(
    sample: Sample,
    splits: dict[str, tuple[Row, ...]],
    raw: Sequence[RawText],
    seed: int,
    clusters: int = 0,
    dropped: int = 0,
) -> dict[str, Any]:
    labels = Counter(label for rows in splits.values() for row in rows for label in _classes_of(row, sample.task))
    content = hashlib.sha256()
    for split, rows in splits.items():
        for row in rows:
            content.update(f"{split}\t{json.dumps(row)}\n".encode())
    for text in raw:
        content.update(f"raw\t{json.dumps(text)}\n".encode())
    return {
        "name": sample.name,
        "title": sample.title,
        "licence": sample.licence,
        "package": sample.source.title,
        "domain": sample.domain,
        "kind": sample.task,
        "metric": sample.metric,
        "text_columns": list(sample.text_columns),
        "label_column": "label",
        "label_names": sorted(labels, key=lambda name: (name != "O" or sample.task == "classification", name)),
        "label_counts": {name: labels[name] for name in sorted(labels)},
        "counts": {**{split: len(rows) for split, rows in splits.items()}, "raw": len(raw)},
        "raw_characters": sum(len(text.text) for text in raw),
        "clusters": clusters,
        "dropped_near_heldout": dropped,
        "overlap": 0,
        "threshold": THRESHOLD,
        "seed": seed,
        "content": content.hexdigest(),
        "shares_text_with": list(sample.shares_text_with),
        "notes": list(sample.notes),
    }


def _classes_of(row: Row, task: str | None) -> list[str]:
    """The classes a row counts for: its label, or its tags; none where labels are numbers or texts."""
    if task == "classification":
        return [str(row.label)]
    return str(row.label).split(" ") if task == "token-classification" else []


def _write(result: SampleRows, folder: Path) -> None:
    """Parquet a split, then the facts; columns in a fixed order, so that equal rows give equal files."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    label_type = pa.float64() if result.facts["kind"] in ("regression", None) else pa.string()
    types = {"text": pa.string(), "text_pair": pa.string(), "label": label_type, "group": pa.string()}
    for split, rows in result.splits.items():
        columns = {name: [getattr(row, name) for row in rows] for name in Row._fields}
        schema = pa.schema([(name, types.get(name, pa.string())) for name in Row._fields])
        parquet.write_table(pa.table(columns, schema=schema), folder / f"{split}.parquet")
    columns = {name: [getattr(text, name) for text in result.raw] for name in RawText._fields}
    schema = pa.schema([(name, pa.string()) for name in RawText._fields])
    parquet.write_table(pa.table(columns, schema=schema), folder / "raw.parquet")
    text = json.dumps(result.facts, indent=1, sort_keys=True, ensure_ascii=False)
    (folder / FACTS).write_text(text + "\n", encoding="utf-8")


def _read(name: str, folder: Path) -> SampleRows:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        tables = {name: parquet.read_table(folder / f"{name}.parquet").to_pydict() for name in facts["counts"]}
        raw = tuple(map(RawText._make, _lines(tables.pop("raw"), RawText._fields)))
        splits = {
            name: tuple(map(Row._make, _lines(tables[name], Row._fields)))
            for name in ("train", "validation", "test")
            if name in tables
        }
    except (OSError, ValueError, KeyError, pa.ArrowException) as problem:
        raise SampleError(
            f"the cached rows of sample '{name}' are damaged: {problem}", fix=f"delete {folder} and try again"
        ) from None
    return SampleRows(name, splits, raw, facts)


def _lines(columns: dict[str, list[Any]], names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    return zip(*(columns[name] for name in names), strict=True)
