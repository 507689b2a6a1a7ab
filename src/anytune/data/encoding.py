"""Token ids and labels of the kinds of task that label tokens: words that carry tags, and responses to prompts.

Words. A sentence is tokenised as the text it is, its words joined by one space, exactly as a model read text in
pre-training; this holds for every fast tokenizer as it was loaded, byte-level ones (RoBERTa, GPT-2) included, which
otherwise need ``add_prefix_space``. Character offsets then say which pieces stand on which word, and a word's tag is
the label of its first piece. Spaces in front of a word that a tokenizer keeps as pieces of their own belong to none.

Prompts and responses. Both are tokenised apart and joined as ids, so that the tokens of a prompt never depend on its
response and are the same when the model answers. ``b`` is what the tokenizer itself puts in front of a text, ``e`` its
end-of-text token; either may be missing:

    decoder            input_ids  b prompt newline response e     labels  -100 ... -100 response e
    encoder-decoder    input_ids  b prompt e                      labels  response e

A decoder's prompt ends in white space (a newline is added where it has none): a model that only ever read text must
see where the prompt ends. Where a row is too long, the beginning of its prompt goes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from anytune.data.masking import IGNORED
from anytune.data.packing import TokenizerFacts
from anytune.data.tasks import Example
from anytune.errors import DataError, SettingsError

TEXTS_AT_ONCE = 1024


@dataclass
class Pieces:
    """What tokenising gives, one entry a row in every list.

    Attributes:
        input_ids: token ids.
        token_type_ids: segment ids; empty where none are wanted.
        labels: label of each position (or of each target token); empty where none are wanted.
        first_pieces: for each word the position of its first piece, -1 where it has none; empty but for words.
        truncated: rows that were cut.
    """

    input_ids: list[list[int]] = field(default_factory=list)
    token_type_ids: list[list[int]] = field(default_factory=list)
    labels: list[list[int]] = field(default_factory=list)
    first_pieces: list[list[int]] = field(default_factory=list)
    truncated: int = 0


def encode_words(
    examples: Sequence[Example], tokenizer: Any, max_length: int, *, with_types: bool, with_labels: bool
) -> Pieces:
    """Sentences of words, each word's tag at its first piece.

    Sentences longer than ``max_length`` lose their end (the beginning, if the tokenizer truncates on the left).

    Raises:
        DataError: the tokenizer gives no offsets, or makes no piece of any word of a sentence; the row is named.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            f"{type(tokenizer).__name__} does not say which characters a token covers",
            why="Words are found in the tokens by their place in the text, which fast tokenizers give.",
            fix="a base with a tokenizer.json",
        )
    found = Pieces()
    for start in range(0, len(examples), TEXTS_AT_ONCE):
        chunk = examples[start : start + TEXTS_AT_ONCE]
        rows, cut = _tokens(chunk, tokenizer, max_length, with_types)
        found.truncated += cut
        for place, (example, (ids, types, offsets)) in enumerate(zip(chunk, rows, strict=True)):
            words = example.words or ()
            first = first_pieces(words, offsets)
            pieces = [position for position in first if position >= 0]
            if not pieces:
                raise DataError(
                    f"the tokenizer makes no token of sentence {start + place + 1}: {example.text[:60]!r}",
                    why="A model needs at least one token to read.",
                    fix="remove the row",
                )
            found.input_ids.append(ids)
            found.first_pieces.append(first)
            if with_types:
                found.token_type_ids.append(types)
            if with_labels:
                labels = [IGNORED] * len(ids)
                for position, tag in zip(first, _tags_of(example), strict=True):
                    if position >= 0:
                        labels[position] = tag
                found.labels.append(labels)
    return found


def first_pieces(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> list[int]:
    """For each word the position of the first token that covers a character of it and of no earlier word, else -1.

    Args:
        words: the words, of which the text is made by joining them with one space.
        offsets: for each token the characters [begin, end) of that text it covers; (0, 0) for special tokens.
    """
    lengths = np.array([len(word) for word in words], dtype=np.int64)
    word_ends = np.cumsum(lengths + 1) - 1
    word_begins = word_ends - lengths
    begins, ends = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
    # the first word that ends after the token begins is the first that the token can stand on
    word = np.minimum(np.searchsorted(word_ends, begins, side="right"), len(words) - 1)
    on_it = (begins < word_ends[word]) & (ends > word_begins[word]) & (ends > begins)
    first = np.full(len(words), -1, dtype=np.int64)
    positions = np.flatnonzero(on_it)[::-1]
    first[word[positions]] = positions  # of several, the last assignment holds: the first piece
    return first.tolist()


def _tags_of(example: Example) -> tuple[int, ...]:
    assert isinstance(example.label, tuple)
    return example.label


_Row = tuple[list[int], list[int], list[tuple[int, int]]]


def _tokens(chunk: Sequence[Example], tokenizer: Any, max_length: int, with_types: bool) -> tuple[list[_Row], int]:
    """(ids, segment ids, offsets) of each row, and how many rows were cut.

    Everything is tokenised uncut first, so that the cut ones can be counted; only they are tokenised again.
    """

    def call(texts: list[str], **settings: Any) -> list[_Row]:
        answer = tokenizer(
            texts,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=with_types,
            return_offsets_mapping=True,
            verbose=False,
            **settings,
        )
        types = answer["token_type_ids"] if with_types else [[]] * len(texts)
        return list(zip(answer["input_ids"], types, answer["offset_mapping"], strict=True))

    rows = call([example.text for example in chunk], truncation=False)
    long = [place for place, (ids, _, _) in enumerate(rows) if len(ids) > max_length]
    if long:
        cut = call([chunk[place].text for place in long], truncation=True, max_length=max_length)
        for place, row in zip(long, cut, strict=True):
            rows[place] = row
    return rows, len(long)


def encode_responses(examples: Sequence[Example], tokenizer: Any, max_length: int, *, encoder_decoder: bool) -> Pieces:
    """Prompts and responses as ids and labels; see the module for their layout.

    Decoder rows longer than ``max_length`` lose the beginning of the prompt; the response loses its end only where it
    alone is longer. For encoder-decoders prompt and response each have ``max_length`` tokens.

    Raises:
        SettingsError: ``max_length`` leaves no room for a prompt and a response.
        DataError: the tokenizer makes no token of a prompt or a response; the row is named.
    """
    begin, end = frame(tokenizer, encoder_decoder=encoder_decoder)
    stop = _stop(tokenizer)
    if max_length < len(begin) + len(end) + len(stop) + 2:
        raise SettingsError(
            f"max_length is {max_length}", why="A prompt and a response need room.", fix="max_length=128"
        )
    found = Pieces()
    for start in range(0, len(examples), TEXTS_AT_ONCE):
        chunk = examples[start : start + TEXTS_AT_ONCE]
        prompts = _prompt_ids([example.text for example in chunk], tokenizer, encoder_decoder, start)
        responses = _ids([str(example.label) for example in chunk], tokenizer, "response", start)
        for prompt, response in zip(prompts, responses, strict=True):
            target = [*response, *stop]
            if encoder_decoder:
                room, kept = max_length - len(begin) - len(end), target[:max_length]
            else:
                kept = target[: max_length - len(begin)]
                room = max_length - len(begin) - len(kept)
            found.truncated += len(prompt) > room or len(kept) < len(target)
            source = [*begin, *_last(prompt, room), *end]
            found.input_ids.append(source if encoder_decoder else source + kept)
            found.labels.append(kept if encoder_decoder else [IGNORED] * len(source) + kept)
    return found


def encode_prompts_alone(prompts: Sequence[str], tokenizer: Any, max_length: int, *, encoder_decoder: bool) -> Pieces:
    """Prompts exactly as ``encode_responses`` puts them before a response; too long ones lose their beginning.

    Raises:
        SettingsError: ``max_length`` leaves no room for a prompt.
        DataError: the tokenizer makes no token of a prompt; the row is named.
    """
    begin, end = frame(tokenizer, encoder_decoder=encoder_decoder)
    room = max_length - len(begin) - len(end)
    if room < 1:
        raise SettingsError(f"max_length is {max_length}", why="A prompt needs room.", fix="max_length=128")
    found = Pieces()
    for start in range(0, len(prompts), TEXTS_AT_ONCE):
        for prompt in _prompt_ids(prompts[start : start + TEXTS_AT_ONCE], tokenizer, encoder_decoder, start):
            found.truncated += len(prompt) > room
            found.input_ids.append([*begin, *_last(prompt, room), *end])
    return found


def frame(tokenizer: Any, *, encoder_decoder: bool) -> tuple[list[int], list[int]]:
    """The special tokens before and after a prompt.

    They are those that the tokenizer itself puts around a text. After a decoder's prompt stands none: the response
    follows. After an encoder's stands the end-of-text token, whether the tokenizer adds it or not.

    Raises:
        DataError: the tokenizer changes the tokens of a text when it adds special ones.
    """
    for probe in ("a", "the", "0", "."):
        bare = tokenizer(probe, add_special_tokens=False, padding=False, truncation=False)["input_ids"]
        if not bare:
            continue
        full = tokenizer(probe, padding=False, truncation=False)["input_ids"]
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                after = full[start + len(bare) :] or _stop(tokenizer)
                return full[:start], after if encoder_decoder else []
    raise DataError(
        f"{type(tokenizer).__name__} changes the tokens of a text when it adds special tokens",
        why="The tokens of a prompt must not depend on what stands around it.",
    )


def _stop(tokenizer: Any) -> list[int]:
    """The end-of-text token, or nothing where the tokenizer has none."""
    end = TokenizerFacts.of(tokenizer).end_id
    return [] if end is None else [end]


def _last(ids: list[int], count: int) -> list[int]:
    return ids[len(ids) - count :] if len(ids) > count else ids


def _prompt_ids(prompts: Sequence[str], tokenizer: Any, encoder_decoder: bool, start: int) -> list[list[int]]:
    texts = [prompt if encoder_decoder or prompt[-1:].isspace() else f"{prompt}\n" for prompt in prompts]
    return _ids(texts, tokenizer, "prompt", start)


def _ids(texts: list[str], tokenizer: Any, role: str, start: int) -> list[list[int]]:
    """Token ids without special tokens; ``start`` is the number of the first text, for errors."""
    rows: list[list[int]] = tokenizer(
        texts,
        add_special_tokens=False,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
    for place, ids in enumerate(rows):
        if not ids:
            raise DataError(
                f"the tokenizer makes no token of {role} {start + place + 1}: {texts[place][:60]!r}",
                why="A model needs at least one token to read and one to write.",
                fix="remove the row",
            )
    return rows
