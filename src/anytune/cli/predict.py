"""``anytune predict``: answer texts with a delta (:func:`anytune.jobs.load.predict`)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from anytune.cli import options, show, values

Text = str | tuple[str, str] | list[str]


def predict(
    delta: Annotated[str, typer.Argument(metavar="DELTA", help="The delta: name, id or folder.")],
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT",
            help="Texts (for generation prompts; for tags words between white space, or a JSON list of words); "
            "'-' reads them from stdin, one a line.",
            show_default=False,
        ),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(help="Texts from a .txt (one a line), .csv, .tsv, .jsonl, .json, .parquet or .conll file."),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="Text column of --file (for tags: of lists of words), or two: FIRST,SECOND."
        ),
    ] = None,
    store: options.Store = None,
    base: Annotated[str | None, typer.Option(help="The delta's base, if it is not found by itself.")] = None,
    batch_size: Annotated[int, typer.Option(help="Texts per batch.", min=1)] = 64,
    max_length: Annotated[int | None, typer.Option(help="Tokens per text (default: as it was tuned).", min=2)] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest response in tokens (generation).", min=1)] = 256,
    json: Annotated[bool, typer.Option("--json", help="Print JSON lines, one object per text.")] = False,
) -> None:
    """Predict labels, values, tags or responses.

    A tag is predicted for each word, a response for each prompt.

    Example: anytune predict reviews-lora-bert-tiny "A quiet, moving film."
    """
    rows = given_texts(texts or [], file, text)
    from anytune.jobs.load import predict as job

    answers = job(
        delta, rows, store=store, base=base, batch_size=batch_size, max_length=max_length,
        max_new_tokens=max_new_tokens,
    )  # fmt: skip
    if json:
        for row, answer in zip(rows, answers, strict=True):
            pair = {"text": row[0], "text_pair": row[1]} if isinstance(row, tuple) else {"text": row}
            show.print_json_line({**({} if "words" in answer else pair), **answer})
        return
    if "tags" in answers[0]:
        show.say("\n\n".join(_tagged(answer) for answer in answers))
        return
    if "response" in answers[0]:
        show.say(
            "\n\n".join(
                _answered(row, answer, alone=len(rows) == 1) for row, answer in zip(rows, answers, strict=True)
            )
        )
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
    """The texts of a file: of one column (of texts or of lists of words), or pairs of two.

    Raises:
        DataError: it cannot be read, or has no such column.
    """
    from anytune.data.columns import list_columns, require_column
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
    columns = [require_column(found, name, "text") for name in names]
    if len(columns) == 1 and columns[0] in list_columns(found):
        return list(found.columns[columns[0]])
    texts = [checked_texts(found, name) for name in columns]
    return list(zip(*texts, strict=True)) if len(texts) == 2 else list(texts[0])


def _text_column(columns: dict[str, Any]) -> str:
    """The only column, or the first that is there of the names such columns have."""
    if len(columns) == 1:
        return next(iter(columns))
    return next((name for name in ("text", "tokens", "words", "prompt", "instruction") if name in columns), "text")


def _tagged(answer: dict[str, Any]) -> str:
    """One word a line with its tag; words outside every entity stand alone."""
    rows = [
        [word, tag if tag != "O" else None, sure if tag != "O" else None]
        for word, tag, sure in zip(answer["words"], answer["tags"], answer["probabilities"], strict=True)
    ]
    return show.table(["word", "tag", "probability"], rows)


def _answered(row: Text, answer: dict[str, Any], *, alone: bool) -> str:
    """The response as it is; under its prompt where there are several."""
    return answer["response"] if alone else f"> {_short(row)}\n{answer['response']}"


def _short(row: Text) -> str:
    return show.shorten(row if isinstance(row, str) else " | ".join(row), 80)
