"""Batches in a fixed order that can be asked for at any step.

``batch(step)`` is a pure function of the seed and the step: a run that was killed goes on at step s with exactly the
batch it would have seen, without walking through the earlier ones. Tasks use dynamic padding and batches of similar
length; pre-training uses full blocks, and the masks of step s are drawn from a generator seeded by (seed, step).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from anytune.data.encoding import TEXTS_AT_ONCE, Pieces, encode_prompts_alone, encode_responses, encode_words
from anytune.data.masking import IGNORED, mask_tokens
from anytune.data.packing import OBJECTIVES, Blocks, TokenizerFacts
from anytune.data.spans import corrupt_spans, span_mask
from anytune.data.splits import permutation, stable_seed
from anytune.data.tasks import Example
from anytune.errors import DataError, SettingsError

#: Padded lengths are multiples of this: matrix units like it, and few distinct shapes occur.
PAD_MULTIPLE = 8
#: Batches that are sorted by length together; the value transformers has used.
BATCHES_SORTED_TOGETHER = 50

Batch = dict[str, Any]
Layout = Literal["row", "position", "next", "target"]


@dataclass(frozen=True)
class Encoded:
    """Tokenised examples without padding.

    Attributes:
        input_ids: token ids of each example.
        token_type_ids: segment ids of each example, None where the tokenizer has none.
        labels: int64 or float32 [examples]; or a list of labels for each example (see ``layout``); None for
            unlabelled texts.
        lengths: int64 [examples]: tokens of each example, those of its targets included; examples of similar length
            are put together.
        truncated: number of texts cut to the longest length allowed.
        pad_id: id that fills shorter rows.
        max_length: no row is longer, and no batch is padded beyond it.
        layout: what a label belongs to: "row" one example; "position" the token it stands at (tags); "next" the token
            it stands at, predicted from the position before (responses of decoders); "target" a sequence of its own
            (responses of encoder-decoders).
        first_pieces: for examples of words, the position of each word's first piece, -1 for words cut off or without
            a piece; else None.
        padding_side: rows are padded on the right; on the left only where a decoder is to go on from their ends.
    """

    input_ids: list[list[int]]
    token_type_ids: list[list[int]] | None
    labels: Tensor | list[list[int]] | None
    lengths: np.ndarray
    truncated: int
    pad_id: int
    max_length: int
    layout: Layout = "row"
    first_pieces: list[list[int]] | None = None
    padding_side: Literal["right", "left"] = "right"

    def __len__(self) -> int:
        return len(self.input_ids)

    def batch(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """The examples ``rows`` as CPU tensors.

        Returns:
            input_ids, attention_mask, perhaps token_type_ids: int64 [b, n], n the longest length rounded up to a
            multiple of 8 (yet at most max_length); labels where there are any: [b], or int64 [b, n] (targets: [b, m],
            m rounded likewise), -100 where there is none; num_items: what the loss is a mean over, a plain int: the
            examples, or the labels that a position predicts.
        """
        rows = [int(row) for row in rows]
        ids = [self.input_ids[row] for row in rows]
        width = self._width(ids)
        batch: Batch = {
            "input_ids": _padded(ids, width, self.pad_id, self.padding_side),
            "attention_mask": _padded([[1] * len(row) for row in ids], width, 0, self.padding_side),
        }
        if self.token_type_ids is not None:
            types = [self.token_type_ids[row] for row in rows]
            batch["token_type_ids"] = _padded(types, width, 0, self.padding_side)
        batch["num_items"] = len(rows)
        if isinstance(self.labels, Tensor):
            batch["labels"] = self.labels[rows]
        elif self.labels is not None:
            labels = [self.labels[row] for row in rows]
            batch["labels"] = _padded(labels, self._width(labels) if self.layout == "target" else width, IGNORED)
            scored = batch["labels"][:, 1:] if self.layout == "next" else batch["labels"]
            batch["num_items"] = int((scored != IGNORED).sum())
        return batch

    def _width(self, rows: list[list[int]]) -> int:
        return min(math.ceil(max(map(len, rows)) / PAD_MULTIPLE) * PAD_MULTIPLE, self.max_length)


def _padded(rows: list[list[int]], width: int, filling: int, side: str = "right") -> Tensor:
    filled = np.full((len(rows), width), filling, dtype=np.int64)
    for place, row in enumerate(rows):
        if side == "left":
            filled[place, width - len(row) :] = row
        else:
            filled[place, : len(row)] = row
    return torch.from_numpy(filled)


def encode_task(
    examples: Sequence[Example],
    tokenizer: Any,
    max_length: int,
    kind: str | None = "classification",
    encoder_decoder: bool = False,
) -> Encoded:
    """Tokenise examples, cutting those longer than ``max_length`` (for pairs, the longer of the two texts first).

    Args:
        examples: what to encode.
        tokenizer: a transformers tokenizer.
        max_length: longest length in tokens, special tokens included.
        kind: "classification" (int64 labels), "regression" (float32 labels), "token-classification" and "generation"
            (lists of labels, see ``encoding``), or None (no labels, for prediction).
        encoder_decoder: for generation, whether the response is a sequence of its own (T5) or follows its prompt.

    Raises:
        SettingsError: ``max_length`` leaves no room for text.
        DataError: no examples, a text without any token, or no token that can pad.
    """
    if not examples:
        raise DataError("there are no examples to encode", why="A batch needs at least one text.")
    pair = examples[0].text_pair is not None
    room = max_length - tokenizer.num_special_tokens_to_add(pair=pair)
    if room < (2 if pair else 1):
        raise SettingsError(
            f"max_length is {max_length}", why="Special tokens leave no room for text.", fix="max_length=128"
        )
    pad_id = TokenizerFacts.of(tokenizer).padding()
    with_types = "token_type_ids" in tokenizer.model_input_names
    if kind == "generation":
        pieces = encode_responses(examples, tokenizer, max_length, encoder_decoder=encoder_decoder)
        return _of_pieces(pieces, pad_id, max_length, "target" if encoder_decoder else "next")
    if examples[0].words is not None:
        wanted = kind is not None
        pieces = encode_words(examples, tokenizer, max_length, with_types=with_types, with_labels=wanted)
        return _of_pieces(pieces, pad_id, max_length, "position")
    labels = _labels(examples, kind)
    input_ids: list[list[int]] = []
    token_type_ids: list[list[int]] = []
    truncated = 0
    for start in range(0, len(examples), TEXTS_AT_ONCE):
        ids, types, cut = _encode_chunk(examples[start : start + TEXTS_AT_ONCE], tokenizer, max_length, with_types)
        input_ids.extend(ids)
        token_type_ids.extend(types)
        truncated += cut
    lengths = np.array([len(ids) for ids in input_ids], dtype=np.int64)
    if not lengths.all():
        row = int(np.flatnonzero(lengths == 0)[0])
        raise DataError(
            f"the tokenizer makes no token of text {row + 1}: {examples[row].text[:60]!r}",
            why="A model needs at least one token to read.",
            fix="remove the row",
        )
    types_or_none = token_type_ids if with_types else None
    return Encoded(input_ids, types_or_none, labels, lengths, truncated, pad_id, max_length)


def encode_prompts(prompts: Sequence[str], tokenizer: Any, max_length: int, encoder_decoder: bool = False) -> Encoded:
    """Prompts to answer, as ``encode_task`` puts them before a response; too long ones lose their beginning.

    A decoder goes on from the end of a row, so its prompts are padded on the left.

    Args:
        prompts: texts.
        tokenizer: a transformers tokenizer.
        max_length: longest length in tokens; for decoders leave room below the model's longest for the response.
        encoder_decoder: whether the model reads the prompt with an encoder.

    Raises:
        SettingsError: ``max_length`` leaves no room for text.
        DataError: no prompts, a prompt without any token, or no token that can pad.
    """
    if not prompts:
        raise DataError("there are no prompts to encode", why="A batch needs at least one text.")
    pad_id = TokenizerFacts.of(tokenizer).padding()
    pieces = encode_prompts_alone(prompts, tokenizer, max_length, encoder_decoder=encoder_decoder)
    encoded = _of_pieces(pieces, pad_id, max_length, "target" if encoder_decoder else "next")
    return encoded if encoder_decoder else replace(encoded, padding_side="left")


def _of_pieces(pieces: Pieces, pad_id: int, max_length: int, layout: Layout) -> Encoded:
    targets = pieces.labels if layout == "target" else []
    lengths = np.array([len(ids) for ids in pieces.input_ids], dtype=np.int64)
    if targets:
        lengths += np.array([len(target) for target in targets], dtype=np.int64)
    return Encoded(
        input_ids=pieces.input_ids,
        token_type_ids=pieces.token_type_ids or None,
        labels=pieces.labels or None,
        lengths=lengths,
        truncated=pieces.truncated,
        pad_id=pad_id,
        max_length=max_length,
        layout=layout,
        first_pieces=pieces.first_pieces or None,
    )


def _labels(examples: Sequence[Example], kind: str | None) -> Tensor | None:
    if kind is None:
        return None
    dtype = torch.float32 if kind == "regression" else torch.int64
    return torch.tensor([example.label for example in examples], dtype=dtype)


def _encode_chunk(
    examples: Sequence[Example], tokenizer: Any, max_length: int, with_types: bool
) -> tuple[list[list[int]], list[list[int]], int]:
    """Token ids and segment ids of a chunk, and how many texts were cut.

    Everything is tokenised uncut first, so that the cut ones can be counted; only they are tokenised again. Padding
    and truncation are always given: a tokenizer file may have switched them on.
    """

    def call(chosen: Sequence[Example], **settings: Any) -> Any:
        pairs = [example.text_pair for example in chosen] if chosen[0].text_pair is not None else None
        return tokenizer(
            [example.text for example in chosen],
            pairs,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=with_types,
            verbose=False,
            **settings,
        )

    whole = call(examples, truncation=False)
    ids = list(whole["input_ids"])
    types = list(whole["token_type_ids"]) if with_types else []
    long = [row for row, tokens in enumerate(ids) if len(tokens) > max_length]
    if long:
        cut = call([examples[row] for row in long], truncation=True, max_length=max_length)
        for place, row in enumerate(long):
            ids[row] = cut["input_ids"][place]
            if with_types:
                types[row] = cut["token_type_ids"][place]
    return ids, types, len(long)


class ExampleBatches:
    """Training batches of a task: every example exactly once an epoch, a new order each epoch.

    Args:
        encoded: the tokenised examples.
        batch_size: examples in a batch; the last batch of a shuffle may be smaller, and is kept.
        seed: decides the order.
        group_by_length: put examples of similar length together, so that little padding is computed.
    """

    def __init__(self, encoded: Encoded, batch_size: int, seed: int, group_by_length: bool = True) -> None:
        _check_batch_size(batch_size)
        self.encoded, self.batch_size, self.seed = encoded, batch_size, seed
        self.group_by_length = group_by_length
        self.batches_per_epoch = math.ceil(len(encoded) / batch_size)
        self._order: tuple[int, list[np.ndarray]] | None = None

    def rows(self, step: int) -> np.ndarray:
        """Which examples make up batch ``step`` [b, int64]; steps count from 0 through all epochs."""
        epoch, place = divmod(step, self.batches_per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, self._epoch(epoch))
        return self._order[1][place]

    def batch(self, step: int) -> Batch:
        """Batch ``step`` as CPU tensors; see ``Encoded.batch``."""
        return self.encoded.batch(self.rows(step))

    def _epoch(self, epoch: int) -> list[np.ndarray]:
        order = permutation(len(self.encoded), "examples", self.seed, epoch)
        if not self.group_by_length:
            return _cut(order, self.batch_size)
        batches = []
        for part in _cut(order, self.batch_size * BATCHES_SORTED_TOGETHER):
            by_length = part[np.argsort(self.encoded.lengths[part], kind="stable")]
            batches.extend(_cut(by_length, self.batch_size))
        return [batches[place] for place in permutation(len(batches), "batches", self.seed, epoch)]


def _cut(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise SettingsError(f"batch_size is {batch_size}", why="A batch holds at least one row.", fix="batch_size=16")


def evaluation_batches(encoded: Encoded, batch_size: int) -> Iterator[tuple[Tensor, Batch]]:
    """All examples once, longest first (so that too little memory shows at once).

    Yields:
        (row numbers [b, int64], batch): put predictions back in order with the row numbers.
    """
    _check_batch_size(batch_size)
    for rows in _cut(np.argsort(-encoded.lengths, kind="stable"), batch_size):
        yield torch.from_numpy(rows), encoded.batch(rows)


class BlockBatches:
    """Training batches of packed blocks: every block exactly once an epoch, a new order each epoch.

    Args:
        blocks: from ``pack``.
        batch_size: blocks in a batch; the last batch of an epoch may be smaller.
        seed: decides the order and the masks.
        objective: "mlm" (labels at masked positions), "clm" (labels are the input; the loss shifts them) or "span"
            (labels are what the decoder is to write).
        facts: ``TokenizerFacts``, or the tokenizer to read them from.
        probability: share of the ordinary positions masked (MLM) or cut out (span).
    """

    def __init__(
        self, blocks: Blocks, batch_size: int, seed: int, objective: str, facts: Any, probability: float = 0.15
    ) -> None:
        _check_batch_size(batch_size)
        self.blocks, self.batch_size, self.seed = blocks, batch_size, seed
        self.objective, self.facts = _checked(blocks, objective, facts)
        self.probability = probability
        self.batches_per_epoch = math.ceil(len(blocks) / batch_size)
        self._order: tuple[int, np.ndarray] | None = None

    def rows(self, step: int) -> np.ndarray:
        """Which blocks make up batch ``step`` [b, int64]; steps count from 0 through all epochs."""
        epoch, place = divmod(step, self.batches_per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, permutation(len(self.blocks), "blocks", self.seed, epoch))
        return self._order[1][place * self.batch_size : (place + 1) * self.batch_size]

    def batch(self, step: int) -> Batch:
        """Batch ``step`` as CPU tensors.

        Returns:
            input_ids, attention_mask, labels: int64 [b, block_size], or for "span" input_ids, attention_mask [b, n]
            and labels [b, m]; num_items: positions that carry loss (masked positions, b * (block_size - 1) predicted
            tokens, or b * m written ones), a plain int.
        """
        generator = torch.Generator().manual_seed(stable_seed("mask", self.seed, step))
        return self.labelled(self.blocks[self.rows(step).tolist()], generator)

    def labelled(self, input_ids: Tensor, generator: torch.Generator, counts: Tensor | None = None) -> Batch:
        """Any blocks [b, block_size] as a batch: masked or cut by ``generator``, with labels; see ``batch``.

        Args:
            counts: masked language modelling only: int64 [b], so many positions of each row are masked, and the batch
                is on its device; it then holds no ``num_items``, which would have to be waited for.
        """
        if self.objective == "clm":
            return _clm_batch(input_ids)
        if self.objective == "mlm" and counts is not None:
            read, labels = _mask(input_ids, self.facts, generator, self.probability, counts)
            return {"input_ids": read, "attention_mask": torch.ones_like(read), "labels": labels}
        return _labelled_batch(*_CHANGES[self.objective](input_ids, self.facts, generator, self.probability))


def heldout_batches(
    blocks: Blocks, batch_size: int, seed: int, objective: str, facts: Any, probability: float = 0.15
) -> Iterator[Batch]:
    """All blocks once, in order, for held-out loss.

    Each block is masked (or cut) by a generator of its own, seeded by (seed, block number): the mask is the same at
    every call and for every batch size.
    """
    _check_batch_size(batch_size)
    objective, facts = _checked(blocks, objective, facts)
    for start in range(0, len(blocks), batch_size):
        rows = range(start, min(start + batch_size, len(blocks)))
        input_ids = blocks[rows]
        if objective == "clm":
            yield _clm_batch(input_ids)
            continue
        change = _CHANGES[objective]
        parts = [
            change(block[None], facts, torch.Generator().manual_seed(stable_seed("heldout", seed, row)), probability)
            for row, block in zip(rows, input_ids, strict=True)
        ]
        yield _labelled_batch(torch.cat([masked for masked, _ in parts]), torch.cat([labels for _, labels in parts]))


def _checked(blocks: Blocks, objective: str, facts: Any) -> tuple[str, TokenizerFacts]:
    if objective not in OBJECTIVES or objective != blocks.objective:
        raise SettingsError(
            f"objective '{objective}' on blocks packed for '{blocks.objective}'",
            why="Blocks of each objective have other borders and separators.",
            fix=f"objective={blocks.objective}",
        )
    return objective, facts if isinstance(facts, TokenizerFacts) else TokenizerFacts.of(facts)


def _mask(
    input_ids: Tensor, facts: TokenizerFacts, generator: torch.Generator, probability: float,
    counts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if facts.mask_id is None:
        raise DataError("the tokenizer lacks a mask token", why="MLM hides words behind it.", fix="objective=clm")
    return mask_tokens(
        input_ids,
        special=facts.special_ids,
        mask_id=facts.mask_id,
        vocabulary_size=facts.vocabulary_size,
        generator=generator,
        probability=probability,
        counts=counts,
    )


def _cut_spans(
    input_ids: Tensor, facts: TokenizerFacts, generator: torch.Generator, probability: float
) -> tuple[Tensor, Tensor]:
    if facts.end_id is None:
        raise DataError("the tokenizer lacks an end-of-text token", why="Inputs and targets end with it.")
    mask = span_mask(*input_ids.shape, generator=generator, probability=probability)
    return corrupt_spans(input_ids, mask, sentinels=facts.sentinel_ids, end_id=facts.end_id)


#: objective -> (blocks, facts, generator, probability) to (what the model reads, labels)
_CHANGES = {"mlm": _mask, "span": _cut_spans}


def _labelled_batch(read: Tensor, labels: Tensor) -> Batch:
    return {
        "input_ids": read,
        "attention_mask": torch.ones_like(read),
        "labels": labels,
        "num_items": int((labels != IGNORED).sum()),
    }


def _clm_batch(input_ids: Tensor) -> Batch:
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "labels": input_ids.clone(),
        "num_items": input_ids.shape[0] * (input_ids.shape[1] - 1),
    }
