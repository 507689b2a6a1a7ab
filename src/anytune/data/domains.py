"""Domains: unlabelled text with a name, cut once into a training part and a held-out part; streams of them.

Which texts are held out is decided by a hash of each text (or of its group, where the source knows groups such as a
document or a film), not by its place: adding texts to a file moves no old text from one part to the other as long as
their share allows, and a text that occurs twice cannot stand in both parts. Exact duplicates count once.

Dated text may be cut into periods (``split_by``), each a domain of its own: a stream over time from one file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anytune import manifests
from anytune.data import sources
from anytune.data.columns import require_column, text_columns
from anytune.data.periods import SplitBy, periods
from anytune.data.sources import is_dataset_id, read_dataset
from anytune.data.tables import SUFFIXES, Table, folder_files, read_table, read_text
from anytune.errors import DataError, SettingsError, nearest


@dataclass(frozen=True)
class Domain:
    """Unlabelled text.

    Attributes:
        name: what tables call it.
        texts: documents to train on.
        heldout: documents set aside to measure loss on.
        dates: a date for each of ``texts``, as the source writes it; None where it has none.
        ref: "sample:NAME" or a data set id, where the text can be had again; None for local files.
        content: SHA-256 over both parts.
        notes: what a careful reader should know.
        cut: of a period of dated text, the ``split_by`` and ``period`` that give it again.
    """

    name: str
    texts: tuple[str, ...]
    heldout: tuple[str, ...]
    dates: tuple[str, ...] | None
    ref: str | None
    content: str
    notes: tuple[str, ...] = ()
    cut: Mapping[str, Any] | None = None

    def record(self) -> manifests.DomainRecord:
        """What a manifest keeps of the domain; the number of tokens is known after packing."""
        return manifests.DomainRecord(name=self.name, content=self.content, texts=len(self.texts), ref=self.ref)


@dataclass(frozen=True)
class _Found:
    name: str
    ref: str | None
    texts: list[str]
    groups: list[str]
    dates: list[str] | None


def load_domain(
    source: str | Path | Mapping[str, Any],
    *,
    text: str = "text",
    name: str | None = None,
    heldout_fraction: float = 0.05,
    date: str | None = None,
    limit: int | None = None,
) -> Domain:
    """Read a domain.

    Args:
        source: a .txt file (documents parted by blank lines, or where there are none a document a line), a .csv,
            .tsv, .jsonl, .json or .parquet file, "sample:NAME", a hub data set "owner/name[:config]", or a mapping of
            these arguments (key "source").
        text: the column that holds the text; where it is missing, the only column whose name says text is taken.
        name: what tables call the domain; by default the name of the file, sample or data set.
        heldout_fraction: share of the documents set aside; 0 for none.
        date: a column of dates.
        limit: keep at most so many documents, chosen by hash.

    Raises:
        DataError: the text cannot be used as it is.
        SettingsError: an argument is unknown or out of range.
        SampleError: the sample is unknown or cannot be fetched.
    """
    given = {key: value for key, value in locals().items() if key != "source"}
    if isinstance(source, Mapping):
        return load_domain(**sources.unfolded(source, given, "domain"))
    _check_settings(heldout_fraction, limit)
    found = _find(source, text, date)
    rows, repeated = _distinct(found.texts)
    notes = (f"{repeated} exact duplicates left out",) if repeated else ()
    return _domain(found, rows, name or found.name, heldout_fraction, limit, notes)


def load_periods(
    source: str | Path | Mapping[str, Any],
    *,
    split_by: SplitBy | None = None,
    text: str = "text",
    name: str | None = None,
    heldout_fraction: float = 0.05,
    date: str | None = None,
    limit: int | None = None,
    period: str | None = None,
) -> dict[str, Domain]:
    """Dated text as a domain for each period, by its period and named ``NAME-PERIOD``, in the order of time.

    A text that occurs in several periods belongs to the earliest. Each period holds out a part of its own; what
    shares a group (a document, a film) with a text that is held out in another period is left out of training.

    Args:
        source: as for :func:`load_domain`, or a mapping of these arguments (key "source").
        split_by: "year", "month", or a list of dates at which a period begins (:mod:`anytune.data.periods`).
        text, name, heldout_fraction: as for :func:`load_domain`.
        date: the column of dates, ISO 8601; samples that are dated bring their own.
        limit: keep at most so many documents of each period, chosen by hash.
        period: this one alone, named ``name`` if that is given; the others only say what it may not train on.

    Raises:
        DataError: the text cannot be used as it is, it has no dates, or there is no such period.
        SettingsError: an argument is unknown or out of range.
    """
    given = {key: value for key, value in locals().items() if key != "source"}
    if isinstance(source, Mapping):
        return load_periods(**sources.unfolded(source, given, "domain"))
    _check_settings(heldout_fraction, limit)
    if split_by is None:
        raise SettingsError("split_by is missing", why="It says where one period ends.", fix="split_by: year")
    found = _find(source, text, date)
    if found.dates is None:
        raise DataError(
            f"{found.name} has no dates", why="It is to be split by time.", fix="date: COLUMN   (one that holds them)"
        )
    own, whole = found.dates, name or found.name
    in_time = sorted(range(len(own)), key=lambda row: own[row])
    first = {found.texts[row]: row for row in reversed(in_time)}
    rows = sorted(first.values())
    repeated = len(found.texts) - len(rows)
    notes = (f"{repeated} exact duplicates left out",) if repeated else ()
    parts = [
        (period, [rows[place] for place in places])
        for period, places in periods([own[row] for row in rows], split_by, found.name).items()
    ]
    made = [_domain(found, part, f"{whole}-{period}", heldout_fraction, limit, notes) for period, part in parts]
    group = dict(zip(found.texts, found.groups, strict=True))
    held = [{group[text] for text in domain.heldout} for domain in made]
    cut = split_by if isinstance(split_by, str) else list(split_by)
    found_periods = {
        one: replace(
            _apart(domain, set().union(*held[:place], *held[place + 1 :]), group),
            cut={"split_by": cut, "period": one},
        )
        for place, ((one, _), domain) in enumerate(zip(parts, made, strict=True))
    }
    if period is None:
        return found_periods
    if period not in found_periods:
        raise DataError(
            f"{found.name} has no period '{period}'", why=f"It has {', '.join(found_periods)}.",
            fix=f"period: {nearest(period, found_periods) or next(iter(found_periods))}",
        )  # fmt: skip
    return {period: replace(found_periods[period], name=name or f"{whole}-{period}")}


def _apart(domain: Domain, held: set[str], group: Mapping[str, str]) -> Domain:
    """The domain without training texts of a group that another period holds out."""
    keep = [place for place, text in enumerate(domain.texts) if group[text] not in held]
    if len(keep) == len(domain.texts):
        return domain
    texts = tuple(domain.texts[place] for place in keep)
    dates = tuple(domain.dates[place] for place in keep) if domain.dates is not None else None
    note = f"{len(domain.texts) - len(keep)} texts left out whose group another period holds out"
    return replace(
        domain, texts=texts, dates=dates, content=_content(texts, domain.heldout), notes=(*domain.notes, note)
    )


def _check_settings(heldout_fraction: float, limit: int | None) -> None:
    if not 0 <= heldout_fraction < 1:
        raise SettingsError(f"heldout_fraction is {heldout_fraction}", why="It lies in [0, 1).", fix="0.05")
    if limit is not None and limit < 1:
        raise SettingsError(f"limit is {limit}", why="A domain needs text.", fix="limit=10000")


def _domain(
    found: _Found, rows: list[int], name: str, heldout_fraction: float, limit: int | None, notes: tuple[str, ...]
) -> Domain:
    """The domain of some rows."""
    if limit is not None and limit < len(rows):
        rows = sorted(sorted(rows, key=lambda row: _rank("limit", found.texts[row]))[:limit])
    heldout = _heldout(rows, found, heldout_fraction)
    train = [row for row in rows if row not in heldout]
    texts = tuple(found.texts[row] for row in train)
    kept = tuple(found.texts[row] for row in rows if row in heldout)
    return Domain(
        name=name,
        texts=texts,
        heldout=kept,
        dates=tuple(found.dates[row] for row in train) if found.dates else None,
        ref=found.ref,
        content=_content(texts, kept),
        notes=notes,
    )


def load_stream(entries: Sequence[str | Path | Mapping[str, Any] | Domain]) -> tuple[Domain, ...]:
    """Domains in the order given; each entry is what ``load_domain`` takes, or a domain.

    A mapping with ``split_by`` stands for as many domains as its text has periods (:func:`load_periods`).

    Raises:
        DataError: there are none, or two share a name (tables could not tell them apart).
    """
    stream = tuple(domain for entry in entries for domain in load_domains(entry))
    if not stream:
        raise DataError("a stream without domains", why="There is nothing to pre-train on.", fix="name a domain")
    names = [domain.name for domain in stream]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(
            f"two domains of the stream are called '{twice}'",
            why="Every table and every held-out score goes by the name.",
            fix="{source: ..., name: another}",
        )
    return stream


def load_domains(entry: str | Path | Mapping[str, Any] | Domain, **given: Any) -> tuple[Domain, ...]:
    """The domain of a source, or one for each period where ``split_by`` is given, or stands in the mapping.

    Args:
        entry: what :func:`load_domain` or :func:`load_periods` takes, or a domain.
        given: arguments of theirs; those of a mapping win.
    """
    if isinstance(entry, Domain):
        return (entry,)
    if (isinstance(entry, Mapping) and "split_by" in entry) or given.get("split_by") is not None:
        return tuple(load_periods(entry, **given).values())
    return (load_domain(entry, **given),)


def joined(stream: Sequence[Domain]) -> Domain:
    """All domains of a stream as one, named ``A+B+C``: their texts and held-out texts one after the other.

    Dates are kept only where every domain has them.
    """
    if len(stream) == 1:
        return stream[0]
    texts = tuple(text for one in stream for text in one.texts)
    heldout = tuple(text for one in stream for text in one.heldout)
    dated = all(one.dates is not None for one in stream)
    return Domain(
        name="+".join(one.name for one in stream), texts=texts, heldout=heldout,
        dates=tuple(date for one in stream for date in one.dates or ()) if dated else None,
        ref=None, content=_content(texts, heldout), notes=tuple(note for one in stream for note in one.notes),
    )  # fmt: skip


def _find(source: str | Path, text: str, date: str | None) -> _Found:
    if isinstance(source, str) and source.startswith(sources.SAMPLE_PREFIX):
        return _from_sample(source.removeprefix(sources.SAMPLE_PREFIX), date)
    path = Path(source).expanduser()
    if isinstance(source, str) and not path.exists() and is_dataset_id(source):
        name = source.partition(":")[0].rpartition("/")[2]
        return _from_table(name, source, read_dataset(source)["train"], text, date)
    if path.is_dir():
        return _from_table(path.resolve().name, None, read_table(folder_files(path)["train"]), text, date)
    if path.is_file() and path.suffix.lower() in (".txt", ".text", ".md"):
        if date is not None:
            raise SettingsError(
                f"date='{date}' on {path}",
                why="A text file has no columns.",
                fix=f"a file with columns: {', '.join(SUFFIXES)}",
            )
        texts = documents(read_text(path))
        return _Found(path.stem, None, texts, texts, None)
    return _from_table(path.stem, None, read_table(path), text, date)


def documents(text: str) -> list[str]:
    """The documents of a text file: parted by blank lines; where there are none, one a line."""
    text = text.replace("\r\n", "\n").strip()
    parts = re.split(r"\n[ \t]*\n\s*", text)
    if len(parts) == 1:
        parts = text.split("\n")
    return [part.strip() for part in parts if part.strip()]


def _from_table(name: str, ref: str | None, table: Table, text: str, date: str | None) -> _Found:
    column = text
    if text not in table.columns:
        guessed = text_columns(table, None) if text == "text" else None
        if guessed is None and text == "text" and len(table.columns) == 1:
            guessed = tuple(table.columns)
        column = guessed[0] if guessed is not None and len(guessed) == 1 else require_column(table, text, "text")
    texts = sources.checked_texts(table, column)
    dates = [str(value) for value in table.columns[require_column(table, date, "date")]] if date is not None else None
    return _Found(name, ref, texts, texts, dates)


def _from_sample(name: str, date: str | None) -> _Found:
    if date is not None:
        raise SettingsError(f"date='{date}' on sample:{name}", why="Samples bring their own dates.", fix="no date")
    raw = sources.sample_rows(name).raw
    if not raw:
        raise DataError(f"sample:{name} has no raw text", why="It is a task, not a domain.", fix="anytune samples")
    texts = [row.text for row in raw]
    dates = [row.date for row in raw]
    groups = [row.group or row.text for row in raw]
    return _Found(name, f"{sources.SAMPLE_PREFIX}{name}", texts, groups, dates if all(dates) else None)


def _distinct(texts: Sequence[str]) -> tuple[list[int], int]:
    """The rows of first occurrence, and how many rows repeat an earlier one."""
    first: dict[str, int] = {}
    for row, text in enumerate(texts):
        first.setdefault(text, row)
    return list(first.values()), len(texts) - len(first)


def _rank(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _heldout(rows: Sequence[int], found: _Found, fraction: float) -> set[int]:
    """Rows to hold out: whole groups in the order of their hash, until the share is reached."""
    if not fraction:
        return set()
    members: dict[str, list[int]] = {}
    for row in rows:
        members.setdefault(found.groups[row], []).append(row)
    if len(members) < 2:
        raise DataError(
            f"domain {found.name} has {len(rows)} text{'s' if len(rows) > 1 else ''} in one group",
            why="One part is trained on, another held out; that takes at least two.",
            fix="a document a line in the text file, or heldout_fraction=0",
        )
    wanted = max(1, round(len(rows) * fraction))
    heldout: set[int] = set()
    for group in sorted(members, key=lambda group: _rank("heldout", group)):
        # a group far larger than the share asked for stays in train
        if len(heldout) < wanted and len(heldout) + len(members[group]) <= min(2 * wanted, len(rows) - 1):
            heldout.update(members[group])
    smallest = min(members, key=lambda group: (len(members[group]), group))
    return heldout or set(members[smallest])


def _content(texts: Sequence[str], heldout: Sequence[str]) -> str:
    state = hashlib.sha256()
    for part, documents_of_part in (("train", texts), ("heldout", heldout)):
        state.update(f"{part} {len(documents_of_part)}\n".encode())
        for document in documents_of_part:
            data = document.encode()
            state.update(len(data).to_bytes(8, "big") + data)
    return state.hexdigest()
