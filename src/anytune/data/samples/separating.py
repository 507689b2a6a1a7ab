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
ROWS_VERSION = 1
THRESHOLD = 0.8
FRACTIONS = (0.7, 0.1, 0.2)
#: of the official train rows, where a data set has its own test rows
VALIDATION_OF_TRAIN = 0.125
FACTS = "facts.json"


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
    from anytune.data.separation import near_duplicate_clusters, overlap

    rows, official = _distinct(records)
    outside = list(dict.fromkeys(records.outside))
    if not rows:
        raw = _distinct_texts(outside)
        return SampleRows(sample.name, {}, raw, _facts(sample, {}, raw, 0, 0, seed))
    texts = [text for row in rows for text in row.texts] + [text.text for text in outside]
    clusters = near_duplicate_clusters(texts, THRESHOLD)
    groups = _merged_groups(rows, outside, clusters)
    places = _places(sample, rows, groups[: len(rows)], official, seed)
    splits: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    for row, place in zip(rows, places, strict=True):
        if place in splits:
            splits[place].append(row)
    kept_out = {
        group for group, place in zip(groups[: len(rows)], places, strict=True) if place in ("validation", "test")
    }
    allowed = [
        RawText(text, row.group, row.date)
        for row, place, group in zip(rows, places, groups[: len(rows)], strict=True)
        for text in row.texts
        if place == "train" and group not in kept_out
    ]
    allowed += [text for text, group in zip(outside, groups[len(rows) :], strict=True) if group not in kept_out]
    raw = _distinct_texts(allowed)
    heldout = [text for split in ("validation", "test") for row in splits[split] for text in row.texts]
    leaked = overlap([text.text for text in raw], heldout, THRESHOLD)
    if leaked:
        raise SampleError(
            f"sample '{sample.name}': {leaked} raw texts are near-duplicates of validation or test texts",
            why="Scores on them would mean nothing.",
            fix="please report this as a fault of anytune",
        )
    frozen = {split: tuple(members) for split, members in splits.items()}
    return SampleRows(
        sample.name, frozen, raw, _facts(sample, frozen, raw, len(set(clusters)), len(set(groups)), seed)
    )


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


def _merged_groups(rows: Sequence[Row], outside: Sequence[RawText], clusters: Sequence[int]) -> list[str]:
    """Name of the merged group of each row, then of each outside text."""
    from anytune.data.separation import merge_groups, name_groups

    owner_texts = [list(row.texts) for row in rows] + [[text.text] for text in outside]
    own_groups = [row.group for row in rows] + [text.group for text in outside]
    first, second, place = [], [], 0
    for texts in owner_texts:
        first.append(clusters[place])
        second.append(clusters[place + len(texts) - 1])
        place += len(texts)
    # A pair joins two clusters: merge over both columns, which must speak of the same clusters.
    joined = merge_groups(first + second, [*range(len(first)), *range(len(first))])[: len(first)]
    merged = merge_groups(joined, own_groups)
    members = [hashlib.sha256("\n".join(texts).encode()).hexdigest() for texts in owner_texts]
    return name_groups(merged, members)


def _places(
    sample: Sample, rows: Sequence[Row], groups: Sequence[str], official: Sequence[str] | None, seed: int
) -> list[str]:
    """Split of each row; "dropped" for official train rows whose group has a test row."""
    from anytune.data.separation import split_by_group

    labels = [row.label for row in rows] if sample.task == "classification" else None
    if official is None:
        return split_by_group(groups, labels, seed, FRACTIONS)
    tested = {group for group, split in zip(groups, official, strict=True) if split == "test"}
    places = ["test" if split == "test" else "dropped" for split in official]
    free = [index for index, group in enumerate(groups) if group not in tested]
    answer = split_by_group(
        [groups[index] for index in free],
        None if labels is None else [labels[index] for index in free],
        seed,
        (1 - VALIDATION_OF_TRAIN, VALIDATION_OF_TRAIN, 0.0),
    )
    for index, place in zip(free, answer, strict=True):
        places[index] = place
    return places


def _facts(
    sample: Sample,
    splits: dict[str, tuple[Row, ...]],
    raw: Sequence[RawText],
    clusters: int,
    groups: int,
    seed: int,
) -> dict[str, Any]:
    labels = Counter(row.label for rows in splits.values() for row in rows)
    content = hashlib.sha256()
    for split, rows in splits.items():
        for row in rows:
            content.update(f"{split}\t{json.dumps(row)}\n".encode())
    for text in raw:
        content.update(f"raw\t{json.dumps(text)}\n".encode())
    classes = sample.task == "classification"
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
        "label_names": sorted(map(str, labels)) if classes else [],
        "label_counts": {str(name): labels[name] for name in sorted(labels, key=str)} if classes else {},
        "counts": {**{split: len(rows) for split, rows in splits.items()}, "raw": len(raw)},
        "raw_characters": sum(len(text.text) for text in raw),
        "clusters": clusters,
        "groups": groups,
        "overlap": 0,
        "threshold": THRESHOLD,
        "seed": seed,
        "content": content.hexdigest(),
        "shares_text_with": list(sample.shares_text_with),
        "notes": list(sample.notes),
    }


def _write(result: SampleRows, folder: Path) -> None:
    """Parquet a split, then the facts; columns in a fixed order, so that equal rows give equal files."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    label_type = pa.string() if result.facts["kind"] == "classification" else pa.float64()
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
