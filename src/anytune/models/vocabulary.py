"""Tables whose rows are words or positions, from one base to another: each word's row goes where the word went.

An upgrade may number its words anew, add some and drop some, and may read longer texts. What tuning added to a row
belongs to the word (by its spelling) or to the position, so it goes along; rows of new words and new positions get
nothing, and what was added to a word that is gone is gone with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anytune.errors import WrongBaseError

if TYPE_CHECKING:
    from anytune.models.base import Base

#: Words that mean the same under whatever name: a tokenizer says which is which.
ROLES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token", "bos_token", "eos_token")
#: Of the old words at least this share must be known to the new base: below it, it speaks another language.
SHARED_AT_LEAST = 0.5


@dataclass(frozen=True)
class Rows:
    """Row ``target[i]`` of a table of ``size`` rows is row ``source[i]`` of another table; the rest is new."""

    source: Tensor
    target: Tensor
    size: int

    @classmethod
    def first(cls, before: int, after: int) -> Rows:
        """Of a table that was cut or made longer at its end."""
        same = torch.arange(min(before, after))
        return cls(same, same, after)

    def carry(self, values: Tensor, dim: int = 0) -> Tensor:
        """``values`` along ``dim``, each row at its new place; zero in the rows that are new."""
        shape = list(values.shape)
        shape[dim] = self.size
        return values.new_zeros(shape).index_copy_(dim, self.target, values.index_select(dim, self.source))

    def moves_nothing(self, length: int) -> bool:
        """Whether the old table, of ``length`` rows, is carried over as it is."""
        places = torch.arange(length)
        return length == self.size == len(self.source) and bool(
            (self.source.sort().values == places).all() and (self.source == self.target).all()
        )


@dataclass(frozen=True)
class Words:
    """What became of a vocabulary.

    Attributes:
        rows: of the tables of words.
        known: words that the old base knew.
        shared: of these, how many the new base knows.
        added: words that only the new base knows.
        renumbered: shared words with another number.
    """

    rows: Rows
    known: int
    shared: int
    added: int
    renumbered: int

    @property
    def text(self) -> str:
        """For a note beside what was moved."""
        return (
            f"the vocabulary changed: of {self.known:,} words {self.shared:,} are still there ({self.renumbered:,} "
            f"under another number), {self.known - self.shared:,} are gone, {self.added:,} are new"
        )


def align(
    before: Mapping[str, int],
    after: Mapping[str, int],
    rows_before: int,
    rows_after: int,
    renamed: Mapping[str, str] | None = None,
) -> Words:
    """Which row goes where when a vocabulary changes: words are the same if they are spelled the same.

    Args:
        before: word -> number, of the old base.
        after: the same of the new base.
        rows_before: rows of the old table; more than words where the table was padded.
        rows_after: rows of the new table.
        renamed: old spelling -> new one, of words that are spelled otherwise and mean the same (special tokens).

    Rows that no word has in either base keep their place: they are padding, and nothing reads them. Words without
    a row (a tokenizer may have more than its model) go nowhere.
    """
    names = {**{word: word for word in before}, **(renamed or {})}
    pairs = {number: after[names[word]] for word, number in before.items() if names[word] in after}
    shared = sum(names[word] in after for word in before)
    renumbered = sum(old != new for old, new in pairs.items())
    pairs = {old: new for old, new in pairs.items() if old < rows_before and new < rows_after}
    free = set(range(min(rows_before, rows_after))) - set(before.values()) - set(after.values())
    pairs |= {row: row for row in free}
    source = torch.tensor(sorted(pairs), dtype=torch.int64)
    target = torch.tensor([pairs[row] for row in sorted(pairs)], dtype=torch.int64)
    added = len(set(after) - {names[word] for word in before})
    return Words(Rows(source, target, rows_after), len(before), shared, added, renumbered)


def changed_words(old: Base, new: Base) -> Words | None:
    """What became of the words of a base in its upgrade; None where nothing did, and no tokenizer is read.

    Raises:
        WrongBaseError: more than half of the words are gone: no row would find its place.
        BaseError: one of the two has no tokenizer.
    """
    table = old.anatomy.word_embeddings
    rows_before, rows_after = old.tensors().shape(table)[0], new.tensors().shape(new.anatomy.word_embeddings)[0]
    if old.identity.vocabulary == new.identity.vocabulary:
        if rows_before == rows_after:
            return None
        return Words(Rows.first(rows_before, rows_after), 0, 0, 0, 0)
    first, second = old.tokenizer(), new.tokenizer()
    before, after = first.get_vocab(), second.get_vocab()
    renamed: dict[str, str] = {}
    for role in ROLES:
        was, now = getattr(first, role, None), getattr(second, role, None)
        # two roles may be one word on either side: the first takes it, so that no row is given to two or goes to two
        free = str(was) not in renamed and str(now) not in renamed.values()
        if free and was is not None and now is not None and was not in after and now not in before:
            renamed[str(was)] = str(now)
    words = align(before, after, rows_before, rows_after, renamed)
    if words.shared < SHARED_AT_LEAST * words.known:
        raise WrongBaseError(
            f"of the {words.known:,} words of {old.name}, {new.name} knows {words.shared:,}",
            why="What was tuned for a word goes where that word went, and most would be lost.",
        )
    return words


def changed_tables(old: Base, new: Base, words: Words | None) -> dict[str, Rows]:
    """Canonical name -> what became of the rows, for each table whose rows moved: words, positions, vocabulary heads.

    A head that is the word embeddings under another name is listed too; whoever adds to tensors must add once.

    Args:
        old: the base before.
        new: and after, of the same kind.
        words: from ``changed_words``.
    """
    found: dict[str, Rows] = {}
    before, after = old.tensors(pretraining_head=True), new.tensors(pretraining_head=True)
    if words is not None:
        size = before.shape(old.anatomy.word_embeddings)[0]
        if not words.rows.moves_nothing(size):
            heads = [
                name
                for name in before
                if name in after
                and old.anatomy.is_pretraining_head(name)
                and (before.shape(name)[:1], after.shape(name)[:1]) == ((size,), (words.rows.size,))
            ]
            found = dict.fromkeys((old.anatomy.word_embeddings, *heads), words.rows)
    positions = f"{old.anatomy.position_table}.weight"
    if positions in before and positions in after:
        one, other = before.shape(positions)[0], after.shape(positions)[0]
        if one != other:
            found[positions] = Rows.first(one, other)
    return found
