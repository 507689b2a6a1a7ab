"""Which columns of a table hold the texts and the labels: named by the user, else guessed where that is safe.

Three shapes: texts and a label; a list of words and a list of their tags; a prompt and a response.
"""

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
WORD_NAMES = ("tokens", "words", "text", "sentence")
TAG_NAMES = ("tags", "ner_tags", "ner", "pos_tags", "pos", "labels", "label")
RESPONSE_NAMES = (
    ("prompt", "response"), ("prompt", "completion"), ("instruction", "output"), ("instruction", "response"),
    ("question", "answer"), ("input", "target"), ("input", "output"), ("source", "target"),
    ("text", "label"),
)  # fmt: skip
#: Pairs of names that mean generation by themselves; the others may as well be a text and its class.
CLEAR_RESPONSE_NAMES = RESPONSE_NAMES[:5]
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
    for name in texts:
        _differing(name, label_column)
    return texts, label_column


def guess_kind(table: Table, text: str | Sequence[str] | None, label: str | None) -> str | None:
    """The kind of task that the columns show by themselves; None where that depends on the labels.

    Token-classification where a named column holds lists, or nothing is named, a column of lists is called tokens or
    words and another stands beside it; generation where nothing is named and two columns are called prompt and
    response (or alike). With names left to guess, a label column of the ordinary kind speaks against both.
    """
    lists = set(list_columns(table))
    if text is not None or label is not None:
        named = {*(_split_names(table, text) if text is not None else ()), *([label] if label is not None else ())}
        return "token-classification" if named & lists else None
    lower = {name.lower(): name for name in table.columns}
    if any(name in lower and lower[name] not in lists for name in LABEL_NAMES):
        return None
    if any(lower.get(name) in lists for name in WORD_NAMES):
        return "token-classification" if len(lists) > 1 else None
    return "generation" if sum(set(pair) <= set(lower) for pair in CLEAR_RESPONSE_NAMES) == 1 else None


def list_columns(table: Table) -> list[str]:
    """The columns that hold lists, judged by their first row that holds anything."""
    first = {
        name: next((value for value in values if value is not None), None) for name, values in table.columns.items()
    }
    return [name for name, value in first.items() if isinstance(value, list | tuple)]


def choose_word_columns(table: Table, text: str | Sequence[str] | None, label: str | None) -> tuple[str, str]:
    """The column of words and the column of tags.

    Raises:
        DataError: a named column is not there, or a guess would not be safe: the error lists the columns.
        SettingsError: more than one text column is named, or one column is to be words and tags at once.
    """
    tags = _named(table, label, "label") if label is not None else None
    if text is not None:
        words = _one_named(table, text, "token-classification")
    else:
        words = _guessed_list(table, WORD_NAMES, "the words", "--text", leave_out=tags)
    if tags is None:
        tags = _guessed_list(table, TAG_NAMES, "the tags", "--label", leave_out=words)
    return _differing(words, tags)


def choose_response_columns(table: Table, text: str | Sequence[str] | None, label: str | None) -> tuple[str, str]:
    """The column of prompts and the column of responses.

    Raises:
        DataError: a named column is not there, or a guess would not be safe: the error lists the columns.
        SettingsError: more than one text column is named, or one column is to be prompt and response at once.
    """
    prompt = _one_named(table, text, "generation") if text is not None else None
    response = _named(table, label, "label") if label is not None else None
    lower = {name.lower(): name for name in table.columns}
    pairs = [(lower[first], lower[second]) for first, second in RESPONSE_NAMES if {first, second} <= set(lower)]
    fitting = [pair for pair in pairs if prompt in (None, pair[0]) and response in (None, pair[1])]
    if prompt is None or response is None:
        free = [name for name in table.columns if name not in (prompt, response)]
        if len(fitting) == 1:
            prompt, response = fitting[0]
        elif len(free) == 1 and (prompt or response):
            prompt, response = prompt or free[0], response or free[0]
        else:
            what = f"columns {listed([' and '.join(pair) for pair in fitting])} could each be" if fitting else (
                "no two columns are called"
            )  # fmt: skip
            raise _unclear(table, f"{what} prompt and response", "--text PROMPT --label")
    return _differing(prompt, response)


def _one_named(table: Table, text: str | Sequence[str], kind: str) -> str:
    names = _split_names(table, text)
    if len(names) != 1:
        raise SettingsError(
            f"{len(names)} text columns are named: {listed(names)}",
            why=f"A row of {kind} has one.",
            fix="--text COLUMN",
        )
    return _named(table, names[0], "text")


def _guessed_list(table: Table, usual: Sequence[str], what: str, option: str, leave_out: str | None) -> str:
    lists = [name for name in list_columns(table) if name != leave_out]
    known = [name for name in lists if name.lower() in usual]
    found = known or lists
    if len(found) == 1:
        return found[0]
    if not found:
        raise DataError(
            f"{table.source} has no column of lists that could be {what}",
            why=f"Token-classification reads lists of words and of tags. Columns: {listed(list(table.columns))}.",
            fix='{"tokens": ["New", "York"], "tags": ["B-LOC", "I-LOC"]}',
        )
    raise _unclear(table, f"columns {listed(found)} could each be {what}", option)


def _differing(text: str, label: str) -> tuple[str, str]:
    if text == label:
        raise SettingsError(f"column '{label}' is named as text and as label", fix="two different columns")
    return text, label


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
