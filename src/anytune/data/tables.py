"""Reading tables: CSV, TSV, JSON lines, JSON, Parquet and CoNLL files, and folders of them.

Values arrive as they stand in the file: nothing is guessed to be missing, so that the text 'NA' stays a text. Every
kind of unusable file is a ``DataError`` that names the file, the line or the byte, and what to type instead.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from anytune.errors import DataError, nearest

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".conll")
#: File names (without suffix) that a folder may hold for each split.
SPLIT_FILES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
_BYTE_ORDER_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_UTF8_MARK = b"\xef\xbb\xbf"
#: The largest the csv module takes on every platform.
_LONGEST_FIELD = 2**31 - 1


@dataclass(frozen=True)
class Table:
    """Columns of equal length.

    Attributes:
        source: the file, sample or data set the rows came from, as errors name it.
        columns: column name -> values, as they stand in the file.
        numbers: where each row stands in its source, counted from 1.
        unit: what ``numbers`` counts: "line" or "row".
        class_names: for columns whose classes the source names in order (hub data sets), those names.
    """

    source: str
    columns: dict[str, list[Any]]
    numbers: Sequence[int]
    unit: str = "row"
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.numbers)

    def place(self, row: int) -> str:
        """Where row ``row`` (from 0) stands, in words: "line 7 of reviews.csv"."""
        return f"{self.unit} {self.numbers[row]} of {self.source}"

    def rows(self, wanted: Sequence[int]) -> Table:
        """Some of the rows (from 0), in the order given."""
        columns = {name: [values[row] for row in wanted] for name, values in self.columns.items()}
        return replace(self, columns=columns, numbers=[self.numbers[row] for row in wanted])


def shown(value: Any, limit: int = 60) -> str:
    """A value as an error shows it: quoted, one line, bounded."""
    text = repr(value[: limit * 2] if isinstance(value, str | bytes) else value)
    return text if len(text) <= limit else f"{text[: limit - 4]} ..."


def listed(names: Sequence[str], limit: int = 12) -> str:
    """Names as an error lists them: each bounded, no more than ``limit`` of them."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(name if len(name) <= 40 else f"{name[:36]} ..." for name in names[:limit]) + more


def read_table(path: str | Path) -> Table:
    """Read one file; its suffix says how.

    Raises:
        DataError: it does not exist, is empty, has a header only, is not UTF-8, or is not what its suffix says.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        missing_source(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(
            f"{path} has the suffix '{path.suffix}'",
            why="The suffix says how a file is read.",
            fix=f"one of {', '.join(SUFFIXES)}",
        )
    table = _read_parquet(path) if suffix == ".parquet" else _READERS[suffix](path, read_text(path))
    if not len(table):
        raise DataError(
            f"{path} has no rows, only the columns {listed(list(table.columns))}",
            why="There is nothing to learn from.",
            fix="check how the file was written",
        )
    return table


def missing_source(path: Path) -> NoReturn:
    """Say that ``path`` does not exist, with the nearest name in its folder."""
    folder = path.parent
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    near = nearest(path.name, names)
    why = "" if folder.is_dir() else f"The folder {folder} does not exist either."
    fix = str(folder / near) if near else "the path of a file, sample:NAME (see: anytune samples), or owner/name"
    raise DataError(f"{path} does not exist", why=why, fix=fix)


def read_bytes(path: Path) -> bytes:
    """The bytes of a file; a file that cannot be read, or holds nothing, is a ``DataError``."""
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise DataError(f"cannot read {path}: {problem.strerror or problem}") from None
    if not data:
        raise DataError(f"{path} is empty", why="It has 0 bytes.", fix="check how the file was written")
    return data


def read_text(path: Path) -> str:
    """The text of a UTF-8 file; a byte order mark is passed over.

    Raises:
        DataError: the file is empty, of another encoding (the first wrong byte is named), or no text at all.
    """
    data = read_bytes(path)
    converted = path.with_name(f"{path.stem}.utf8{path.suffix}")
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            raise DataError(
                f"{path} is {encoding}: it begins with the bytes {data[: len(mark)].hex(' ')}",
                why="Text files are read as UTF-8.",
                fix=f"iconv -f {encoding} -t UTF-8 '{path}' > '{converted}'",
            )
    start = len(_UTF8_MARK) if data.startswith(_UTF8_MARK) else 0
    try:
        text = data[start:].decode("utf-8")
    except UnicodeDecodeError as problem:
        offset = problem.start + start
        line = data.count(b"\n", 0, offset) + 1
        raise DataError(
            f"{path} is not UTF-8: byte 0x{data[offset]:02x} at offset {offset}, in line {line}",
            why="Text files are read as UTF-8; this one was probably written in a Windows or Latin encoding.",
            fix=f"iconv -f WINDOWS-1252 -t UTF-8 '{path}' > '{converted}'",
        ) from None
    if "\x00" in text:
        line = text.count("\n", 0, text.index("\x00")) + 1
        raise DataError(f"{path} holds a zero byte in line {line}", why="It is no text file.")
    if not text.strip():
        raise DataError(f"{path} is empty", why="It holds white space only.", fix="check how the file was written")
    return text


def _read_csv(path: Path, text: str) -> Table:
    return _from_records(path, _quoted_records(path, text, ","))


def _read_tsv(path: Path, text: str) -> Table:
    """Tab-separated: where every line has as many fields as the header, quotes are part of the text.

    Some writers put texts with quotes into quotes, as in CSV, others never do. Lines that fit are taken as they are,
    and a field is unwrapped only where it is quoted throughout; otherwise the file is read as CSV with tabs.
    """
    lines = [(number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    width = lines[0][1].count("\t")
    if all(line.count("\t") == width for _, line in lines):
        records = iter([(number, [_unwrapped(value) for value in line.split("\t")]) for number, line in lines])
        return _from_records(path, records)
    return _from_records(path, _quoted_records(path, text, "\t"))


def _unwrapped(value: str) -> str:
    inner = value[1:-1]
    if len(value) < 2 or value[0] != '"' or value[-1] != '"' or '"' in inner.replace('""', ""):
        return value
    return inner.replace('""', '"')


def _quoted_records(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(line where the record begins, fields) of every record that is not blank."""
    limit = csv.field_size_limit(_LONGEST_FIELD)  # whole documents stand in one field
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        begins = 1
        for record in reader:
            if record:
                yield begins, record
            begins = reader.line_num + 1
    except csv.Error as problem:
        raise DataError(
            f"{path} cannot be read: {problem}, in the record that begins in line {begins}",
            why="A double quote is opened and not closed, or text follows a closing quote.",
            fix='double each quote inside a quoted text: "She said ""no""."',
        ) from None
    finally:
        csv.field_size_limit(limit)


def _from_records(path: Path, records: Iterator[tuple[int, list[str]]]) -> Table:
    _, header = next(records)
    names = [name.strip() for name in header]
    _check_header(path, names)
    numbers, rows = [], []
    for number, record in records:
        if len(record) != len(names):
            raise DataError(
                f"line {number} of {path} has {len(record)} fields, the header has {len(names)}: {shown(record[0])}",
                why="A separator inside a text that is not quoted shifts all columns after it.",
                fix='put such texts in double quotes: "Good, but long",positive',
            )
        numbers.append(number)
        rows.append(record)
    values = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in names]
    columns = {name or f"column {place + 1}": values[place] for place, name in enumerate(names)}
    return Table(str(path), columns, numbers, "line")


def _check_header(path: Path, names: list[str]) -> None:
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise DataError(f"{path} has more than one column '{shown(twice[0])[1:-1]}'", why="Names must be unique.")
    if len(names) == 1 and path.suffix.lower() == ".csv":
        for sign, word in ((";", "semicolons"), ("\t", "tabs")):
            if sign in names[0]:
                raise DataError(
                    f"the header of {path} has one column, {shown(names[0])}",
                    why=f"It seems to be separated by {word}; .csv means commas, .tsv tabs.",
                    fix="save it with commas" if sign == ";" else f"mv '{path}' '{path.with_suffix('.tsv')}'",
                )


def _parse(path: Path, text: str, line: int) -> Any:
    """The JSON value of ``text``, which begins in line ``line`` of the file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as problem:
        raise DataError(
            f"line {line + problem.lineno - 1} of {path} is not JSON: {problem.msg} at column {problem.colno}: "
            f"{shown(text.split(chr(10))[problem.lineno - 1])}",
            why="JSON lines hold one object a line.",
        ) from None
    except RecursionError:
        raise DataError(f"line {line} of {path} is nested too deeply to be read") from None


def _read_jsonl(path: Path, text: str) -> Table:
    records, numbers = [], []
    # split at newlines alone: splitlines() would also cut inside texts, at U+2028 for one
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            records.append(_parse(path, line, number))
            numbers.append(number)
    return _from_objects(path, records, numbers, "line")


def _read_json(path: Path, text: str) -> Table:
    """A list of objects, an object of columns (lists of equal length), or JSON lines under the wrong suffix."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as problem:
        if problem.msg == "Extra data" and text.lstrip().startswith("{"):
            return _read_jsonl(path, text)
        value = _parse(path, text, 1)  # raises, with the line
    except RecursionError:
        raise DataError(f"{path} is nested too deeply to be read") from None
    if isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values()):
        sizes = {len(column) for column in value.values()}
        if len(sizes) == 1:
            return Table(str(path), value, range(1, sizes.pop() + 1))
        raise DataError(f"the columns of {path} have different lengths: {sorted(sizes)[:6]}")
    if not isinstance(value, list):
        raise DataError(
            f"{path} holds {_kind_of(value)}",
            why="A JSON file is a list of objects, or an object whose values are lists of equal length.",
            fix='[{"text": "...", "label": "..."}, ...]',
        )
    return _from_objects(path, value, range(1, len(value) + 1), "row")


def _kind_of(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def _from_objects(path: Path, records: Sequence[Any], numbers: Sequence[int], unit: str) -> Table:
    names: dict[str, None] = {}
    for number, record in zip(numbers, records, strict=True):
        if not isinstance(record, dict):
            raise DataError(
                f"{unit} {number} of {path} is {_kind_of(record)}: {shown(record)}",
                why="Each row is an object with its columns by name.",
                fix='{"text": "...", "label": "..."}',
            )
        names.update(dict.fromkeys(record))
    return Table(str(path), {name: [record.get(name) for record in records] for name in names}, numbers, unit)


def _read_conll(path: Path, text: str) -> Table:
    """One word a line with its tags, blank lines between sentences: the columns "tokens" and "tags" hold lists.

    "tags" is the last field of each line; fields between are columns of lists too, "field 2", "field 3" ... Fields are
    separated by tabs if a line has one, else by spaces. Lines that begin with -DOCSTART- part sentences.
    """
    sentences: list[list[list[str]]] = [[]]
    numbers: list[int] = []
    width = 0
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.startswith("-DOCSTART-"):
            if sentences[-1]:
                sentences.append([])
            continue
        fields = [field.strip() for field in line.split("\t")] if "\t" in line.strip() else line.split()
        width = width or len(fields)
        if len(fields) != width or width < 2:
            raise DataError(
                f"line {number} of {path} has {len(fields)} fields"
                + (f", the first has {width}" if width > 1 else "")
                + f": {shown(line.rstrip())}",
                why="A CoNLL file has one word a line, followed by its tag, and blank lines between sentences.",
                fix="Berlin B-LOC",
            )
        if not sentences[-1]:
            numbers.append(number)
        sentences[-1].append(fields)
    whole = [list(zip(*sentence, strict=True)) for sentence in sentences if sentence]
    names = ["tokens", *(f"field {place + 1}" for place in range(1, width - 1)), "tags"]
    columns = {name: [list(fields[place]) for fields in whole] for place, name in enumerate(names)}
    return Table(str(path), columns, numbers, "line")


_READERS = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".conll": _read_conll,
}


def _read_parquet(path: Path) -> Table:
    import pyarrow
    import pyarrow.parquet

    data = read_bytes(path)
    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
        columns = table.to_pydict()
    except (pyarrow.ArrowException, OSError, ValueError) as problem:
        raise DataError(
            f"{path} is no readable Parquet file: {shown(str(problem), 160)}",
            why="It is damaged, cut short, or of another kind.",
        ) from None
    return Table(str(path), columns, range(1, table.num_rows + 1))


def folder_files(folder: Path) -> dict[str, Path]:
    """The files of a folder by split: train, and where they are there validation and test.

    Raises:
        DataError: there is no train file, or two files for one split.
    """
    found: dict[str, Path] = {}
    entries = sorted(entry for entry in folder.iterdir() if entry.is_file() and entry.suffix.lower() in SUFFIXES)
    for split, stems in SPLIT_FILES.items():
        files = [entry for entry in entries if entry.stem.lower() in stems]
        if len(files) > 1:
            raise DataError(
                f"{folder} holds {len(files)} files for {split}: {listed([file.name for file in files])}",
                why="Each split is one file.",
                fix=f"{files[0]}   (name the file you mean)",
            )
        if files:
            found[split] = files[0]
    if "train" not in found:
        names = listed([entry.name for entry in entries]) or "no data file"
        raise DataError(
            f"{folder} holds no train file, but {names}",
            why="A folder is read as train.*, validation.* and test.*.",
            fix=f"{entries[0]}" if len(entries) == 1 else f"{folder}/train.csv",
        )
    return found
