"""Which columns of a table hold the texts and the labels: named by the user, else guessed where that is safe."""

from __future__ import annotations

from collections.abc import Sequence

from anytune.data.tables import Table, listed
from anytune.errors import DataError, SettingsError, nearest

TEXT_NAMES = (
    "text", "sentence", "content", "review", "document", "body", "comment", "message", "tweet", "utterance",
    "headline", "abstract", "description", "definition", "question", "query",
)  # fmt: skip
PAIR_NAMES = (
    ("text", "text_pair"), ("text1", "text2"), ("text_a", "text_b"), ("sentence1", "sentence2"),
    ("sentence_a", "sentence_b"), ("sentence_1", "sentence_2"), ("premise", "hypothesis"),
    ("question1", "question2"), ("query", "document"), ("query", "passage"), ("question", "sentence"),
    ("question", "passage"), ("question", "answer"),
)  # fmt: skip
LABEL_NAMES = ("label", "labels", "category", "class", "target", "score", "sentiment", "rating", "topic")


def choose_columns(table: Table, text: str | Sequence[str] | None, label: str | None) -> tuple[tuple[str, ...], str]:
    """The one or two text columns and the label column.

    Args:
        table: the training rows.
        text: a column, two columns for pairs ("premise,hypothesis" or a list), or None to guess.
        label: a column, or None to guess.

    Raises:
        DataError: a named column is not there, or a guess would not be safe: the error lists the columns.
        SettingsError: more than two text columns are named, or one column is to be text and label at once.
    """
    label_column = _named(table, label, "label") if label is not None else None
    texts = text_columns(table, text, leave_out=label_column)
    if label_column is None:
        label_column = _guessed_label(table, texts)
    if texts is None:
        texts = _guessed_texts(table, label_column)
    if label_column in texts:
        raise SettingsError(f"column '{label_column}' is named as text and as label", fix="two different columns")
    return texts, label_column


def text_columns(
    table: Table, text: str | Sequence[str] | None, leave_out: str | None = None
) -> tuple[str, ...] | None:
    """The text columns as named, or as their names say; None where neither tells (and nothing more can be guessed).

    Raises:
        DataError: a named column is not there, or several columns could be the text.
        SettingsError: none or more than two columns are named.
    """
    if text is not None:
        names = _split_names(table, text)
        if not 1 <= len(names) <= 2 or len(set(names)) != len(names):
            raise SettingsError(
                f"{len(names)} text columns are named: {listed(names)}",
                why="A model reads one text or a pair of two different ones.",
                fix="--text COLUMN, or --text FIRST,SECOND",
            )
        return tuple(_named(table, name, "text") for name in names)
    by_lower = {name.lower(): name for name in table.columns if name != leave_out}
    pairs = [pair for pair in PAIR_NAMES if all(name in by_lower for name in pair)]
    found = pairs[0] if len(pairs) == 1 else tuple(name for name in TEXT_NAMES if name in by_lower)
    if len(pairs) > 1 or (not pairs and len(found) > 1):
        raise _unclear(table, f"columns {listed([by_lower[name] for name in found])} could each be the text", "--text")
    return tuple(by_lower[name] for name in found) or None


def require_column(table: Table, name: str, role: str) -> str:
    """``name`` if the table has it; the error suggests the near one."""
    return _named(table, name, role)


def _split_names(table: Table, text: str | Sequence[str]) -> list[str]:
    if not isinstance(text, str):
        return list(text)
    return [text] if text in table.columns or "," not in text else [part.strip() for part in text.split(",")]


def _named(table: Table, name: str, role: str) -> str:
    if name in table.columns:
        return name
    near = nearest(name, table.columns)
    raise DataError(
        f"{table.source} has no column '{name}'",
        why=f"Its columns are: {listed(list(table.columns))}.",
        fix=f"--{role} {near}" if near else f"--{role} COLUMN   (one of those)",
    )


def _guessed_label(table: Table, texts: tuple[str, ...] | None) -> str:
    free = [name for name in table.columns if name not in (texts or ())]
    known = [name for name in free if name.lower() in LABEL_NAMES]
    if len(known) == 1:
        return known[0]
    if known:
        raise _unclear(table, f"columns {listed(known)} could each be the label", "--label")
    if texts is not None and len(free) == 1:
        return free[0]
    raise _unclear(table, "no column is called label, category, class, target or score", "--label")


def _guessed_texts(table: Table, label: str) -> tuple[str, ...]:
    free = [name for name in table.columns if name != label]
    if len(free) == 1:
        return (free[0],)
    raise _unclear(table, "no column is called text, sentence, content or review", "--text")


def _unclear(table: Table, what: str, option: str) -> DataError:
    return DataError(
        f"{table.source}: {what}",
        why=f"Its columns are: {listed(list(table.columns))}. Is the first line a header?",
        fix=f"{option} COLUMN",
    )
