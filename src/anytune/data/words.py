"""Words and their tags: list columns to tuples of words and tag indices, with an error for every row that is neither.

Tags are words ("B-PER", "NOUN") or class numbers. Their names have a stable order: "O" first, then numbers by value or
words alphabetically. Where the tags look like BIO, every type that occurs has both its B- and its I- tag, so that a
test sentence may hold the one that no training sentence has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from anytune.data.labels import label_names, label_word
from anytune.data.sources import is_writable
from anytune.data.tables import Table, listed, shown
from anytune.errors import DataError, nearest
from anytune.metrics import are_entity_tags

_JSON_LINES = '{"tokens": ["New", "York"], "tags": ["B-LOC", "I-LOC"]}'


@dataclass(frozen=True)
class TaggedRows:
    """Sentences as read.

    Attributes:
        table: where they came from, for errors.
        words: the words of each sentence.
        tags: the tag of each word, as a word.
    """

    table: Table
    words: list[tuple[str, ...]]
    tags: list[tuple[str, ...]]


def read_tagged(table: Table, word_column: str, tag_column: str) -> TaggedRows:
    """Words and tags of a table, checked.

    Raises:
        DataError: a row is no list, is empty, holds something that is no word or no tag, or has more of one than of
            the other; the row, the place in it and the value are named.
    """
    words = [_words(table, row, value, word_column) for row, value in enumerate(table.columns[word_column])]
    tags = [_tags(table, row, value, tag_column) for row, value in enumerate(table.columns[tag_column])]
    for row, (sentence, labels) in enumerate(zip(words, tags, strict=True)):
        if len(sentence) != len(labels):
            raise DataError(
                f"{table.place(row)} has {len(sentence)} words in column '{word_column}' and {len(labels)} tags in "
                f"column '{tag_column}': {shown(list(sentence))}",
                why="Each word carries one tag.",
                fix="correct the row",
            )
    return TaggedRows(table, words, tags)


def _list(table: Table, row: int, value: Any, column: str, what: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise DataError(
            f"{table.place(row)} has {shown(value)} in column '{column}', which is no list of {what}",
            why="For token-classification each row is a list of words and a list of their tags.",
            fix=f"JSON lines ({_JSON_LINES}), Parquet with list columns, or a .conll file",
        )
    if not value:
        raise DataError(
            f"{table.place(row)} has no {what} in column '{column}': its list is empty",
            why="A model needs at least one word to read.",
            fix="remove the row",
        )
    for place, part in enumerate(value, 1):
        if isinstance(part, list | tuple | dict):
            raise DataError(
                f"{table.place(row)} has a list within the list in column '{column}', place {place}: {shown(part)}",
                why=f"A row is one flat list of {what}.",
                fix="one row for each sentence",
            )
    return list(value)


def _words(table: Table, row: int, value: Any, column: str) -> tuple[str, ...]:
    words = _list(table, row, value, column, "words")
    for place, word in enumerate(words, 1):
        if not isinstance(word, str):
            raise _unusable(table, row, place, column, "word", word, "no text")
        if not word.strip():
            raise _unusable(table, row, place, column, "word", word, "no visible sign", "remove it and its tag")
        if not is_writable(word):
            raise _unusable(table, row, place, column, "word", word, "half a character (a lone surrogate)")
    return tuple(words)


def _tags(table: Table, row: int, value: Any, column: str) -> tuple[str, ...]:
    tags = _list(table, row, value, column, "tags")
    for place, tag in enumerate(tags, 1):
        whole = isinstance(tag, int) or (isinstance(tag, float) and tag.is_integer())
        if isinstance(tag, bool) or not (whole or isinstance(tag, str)):
            raise _unusable(table, row, place, column, "tag", tag, "neither a text nor a whole number")
        if not label_word(tag):
            raise _unusable(table, row, place, column, "tag", tag, "empty", 'the tag "O", where a word has none')
    return tuple(map(label_word, tags))


def _unusable(
    table: Table, row: int, place: int, column: str, role: str, value: Any, what: str, fix: str = "correct the row"
) -> DataError:
    return DataError(
        f"{table.place(row)} has {shown(value)} as {role} {place} in column '{column}', which is {what}",
        why="A row is a list of words and a list of their tags, as texts or class numbers.",
        fix=fix,
    )


def tag_names(train: Sequence[Sequence[str]], chosen: Sequence[str] | None) -> tuple[str, ...]:
    """The tag names in their order: the chosen ones, else those of the training tags (see the module).

    Raises:
        SettingsError: fewer than two names are chosen, or one twice.
    """
    if chosen is not None:
        return label_names([], chosen)
    found = {tag for tags in train for tag in tags}
    if are_entity_tags(tuple(found)):
        types = {tag[1:] for tag in found if tag != "O"}
        found |= {f"{part}{kind}" for kind in types for part in "BI"}
    names = label_names(sorted(found), None)
    return tuple(sorted(names, key=lambda name: name != "O"))


def tag_indices(rows: TaggedRows, names: Sequence[str]) -> list[tuple[int, ...]]:
    """The tag indices of each sentence.

    Tags that are class numbers while no name is one are indices into ``names`` already.

    Raises:
        DataError: a tag is none of ``names``; the row, the word and the near name are given.
    """
    index = {name: place for place, name in enumerate(names)}
    if not any(name.isdecimal() for name in names):
        index |= {str(place): place for place in range(len(names))}
    for row, tags in enumerate(rows.tags):
        for place, tag in enumerate(tags):
            if tag not in index:
                raise DataError(
                    f"{rows.table.place(row)} has the unknown tag {shown(tag)} at word {place + 1}, "
                    f"{shown(rows.words[row][place])}",
                    why=f"The tags are those of the training rows, or the label names given: {listed(names)}.",
                    fix=nearest(tag, names) or "correct the row, or add training rows with that tag",
                )
    return [tuple(index[tag] for tag in tags) for tags in rows.tags]


def refuse_one_tag(train: TaggedRows) -> None:
    """Refuse training sentences whose words all carry one tag.

    Raises:
        DataError: they do; the tag is named.
    """
    found = {tag for tags in train.tags for tag in tags}
    if len(found) < 2:
        raise DataError(
            f"all words of the {len(train.tags)} training rows of {train.table.source} have one tag: "
            f"{shown(found.pop())}",
            why="There is nothing to tell apart.",
            fix="--label COLUMN, if another column holds the tags",
        )


def entity_notes(train: Sequence[Sequence[int]], names: Sequence[str]) -> list[str]:
    """A note where training entities begin with an I- tag (as in IOB1), which counts as a beginning."""
    if not are_entity_tags(names):
        return []
    kinds = [name[1:] for name in names]
    loose = 0
    for tags in train:
        for place, tag in enumerate(tags):
            before = tags[place - 1] if place else None
            follows = before is not None and names[before] != "O" and kinds[before] == kinds[tag]
            loose += names[tag].startswith("I") and not follows
    if not loose:
        return []
    return [f"{loose} entities of train begin with an I- tag, not B-; they count as entities, as CoNLL counts them"]
