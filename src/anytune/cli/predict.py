"""``anytune predict``: label texts with a delta (:func:`anytune.jobs.load.predict`)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from anytune.cli import options, show, values

Text = str | tuple[str, str]


def predict(
    delta: Annotated[str, typer.Argument(metavar="DELTA", help="The delta: name, id or folder.")],
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT", help="Texts; '-' reads them from stdin, one a line.", show_default=False),
    ] = None,
    file: Annotated[
        str | None, typer.Option(help="Texts from a .txt (one a line), .csv, .tsv, .jsonl, .json or .parquet file.")
    ] = None,
    text: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Text column of --file, or two: FIRST,SECOND.")
    ] = None,
    store: options.Store = None,
    base: Annotated[str | None, typer.Option(help="The delta's base, if it is not found by itself.")] = None,
    batch_size: Annotated[int, typer.Option(help="Texts per batch.", min=1)] = 64,
    max_length: Annotated[int | None, typer.Option(help="Tokens per text (default: as it was tuned).", min=2)] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON lines, one object per text.")] = False,
) -> None:
    """Predict labels (or values) for texts.

    Example: anytune predict reviews-lora-bert-tiny "A quiet, moving film."
    """
    rows = given_texts(texts or [], file, text)
    from anytune.jobs.load import predict as job

    answers = job(delta, rows, store=store, base=base, batch_size=batch_size, max_length=max_length)
    if json:
        for row, answer in zip(rows, answers, strict=True):
            pair = {"text": row} if isinstance(row, str) else {"text": row[0], "text_pair": row[1]}
            show.print_json_line({**pair, **answer})
        return
    columns = ["value"] if "value" in answers[0] else ["label", "probability"]
    shown = [[*(answer[column] for column in columns), _short(row)] for row, answer in zip(rows, answers, strict=True)]
    show.print_table([*columns, "text"], shown)


def given_texts(words: list[str], file: str | None, column: str | None) -> list[Text]:
    """The texts of the arguments, of stdin (``-``), or of a file.

    Raises:
        DataError: none or several of these are given, or the file cannot be used.
    """
    from anytune.errors import DataError

    if file is not None and words:
        raise DataError(
            "texts are given and --file too", why="One place to take them from.", fix=f"--file {file} alone"
        )
    if file is not None:
        return file_texts(file, column)
    if column is not None:
        raise DataError("--text names a column, and no --file is given", fix="--file FILE --text COLUMN")
    if words == ["-"]:
        return [line for line in sys.stdin.buffer.read().decode("utf-8-sig", "replace").splitlines() if line.strip()]
    return list(words)


def file_texts(file: str, column: str | None) -> list[Text]:
    """The texts of a file: of one column, or pairs of two.

    Raises:
        DataError: it cannot be read, or has no such column.
    """
    from anytune.data.columns import require_column
    from anytune.data.sources import checked_texts
    from anytune.data.tables import missing_source, read_table, read_text
    from anytune.errors import DataError

    path = Path(file).expanduser()
    if path.suffix.lower() == ".txt":
        if not path.is_file():
            missing_source(path)
        return [line for line in read_text(path).splitlines() if line.strip()]
    found = read_table(path)
    names = values.names(column) or [_text_column(found.columns)]
    if len(names) > 2:
        raise DataError(
            f"--text {column} names {len(names)} columns", why="A text or a pair.", fix="--text FIRST,SECOND"
        )
    texts = [checked_texts(found, require_column(found, name, "text")) for name in names]
    return list(zip(*texts, strict=True)) if len(texts) == 2 else list(texts[0])


def _text_column(columns: dict[str, Any]) -> str:
    """The only column, or the one called text."""
    return next(iter(columns)) if len(columns) == 1 else "text"


def _short(row: Text) -> str:
    return show.shorten(row if isinstance(row, str) else " | ".join(row), 80)
