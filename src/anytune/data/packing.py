"""Text to full blocks for pre-training, tokenised once and cached as Arrow.

Documents are joined into one long row of tokens, with a separator between two documents, and cut into blocks of equal
length, so that no computation is spent on padding:

- MLM: ``[CLS] content [SEP]`` with block_size - 2 content tokens; inside, documents are joined by ``[SEP]``;
- CLM: block_size content tokens; documents are joined by the end-of-text token, and begin with the begin-of-text token
  where the tokenizer itself puts one in front of a text (Llama's does, GPT-2's and Qwen's do not);
- span (encoder-decoders): block_size content tokens, of which each batch cuts out other spans. Documents follow each
  other without a token between them: T5 knows none for the middle of an input.

The tail that fills no block is dropped. Blocks are stored under a hash of the texts, the tokenizer and the settings,
in a folder that appears whole or not at all, and are read by memory map: a corpus larger than memory is fine.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor

from anytune.data.spans import span_counts
from anytune.errors import DataError, SettingsError
from anytune.manifests import PARTIAL_PREFIX, caches_written, canonical_json

Objective = Literal["mlm", "clm", "span"]
OBJECTIVES = ("mlm", "clm", "span")
#: Texts handed to the tokenizer at once: enough for its threads, little enough for memory.
TEXTS_AT_ONCE = 512
#: A hidden folder older than this was left by a run that was killed.
SECONDS_TO_KEEP_PARTIALS = 24 * 3600
#: Goes into the cache key: raise it when the layout of blocks changes.
LAYOUT = 1


@dataclass(frozen=True)
class TokenizerFacts:
    """What packing, masking and padding need to know of a tokenizer.

    Attributes:
        begin_id: [CLS], else the begin-of-text token; None if the tokenizer has neither.
        separator_id: [SEP], else the end-of-text token.
        end_id: the end-of-text token, else [SEP].
        pad_id: the padding token, else the end-of-text token.
        mask_id: the mask token, None for causal models.
        special_ids: every special token, ascending: never masked, never a random word.
        vocabulary_size: number of ids, added tokens included.
        opening_id: what the tokenizer itself puts in front of a text as begin-of-text token, if it does.
        sentinel_ids: ids of <extra_id_0>, <extra_id_1>, ... in this order (T5 kinds).
    """

    begin_id: int | None
    separator_id: int | None
    end_id: int | None
    pad_id: int | None
    mask_id: int | None
    special_ids: tuple[int, ...]
    vocabulary_size: int
    opening_id: int | None = None
    sentinel_ids: tuple[int, ...] = ()

    @classmethod
    def of(cls, tokenizer: Any) -> TokenizerFacts:
        """Read them off a transformers tokenizer; absent special tokens are None."""

        def first(*names: str) -> int | None:
            found = (getattr(tokenizer, f"{name}_token_id", None) for name in names)
            return next((int(token) for token in found if token is not None), None)

        return cls(
            begin_id=first("cls", "bos"),
            separator_id=first("sep", "eos"),
            end_id=first("eos", "sep"),
            pad_id=first("pad", "eos"),
            mask_id=first("mask"),
            special_ids=tuple(sorted({int(token) for token in tokenizer.all_special_ids})),
            vocabulary_size=len(tokenizer),
            opening_id=_opening(tokenizer),
            sentinel_ids=_sentinels(tokenizer),
        )

    def padding(self) -> int:
        """The padding token id.

        Raises:
            DataError: there is neither a padding token nor an end-of-text token to serve as one.
        """
        if self.pad_id is None:
            raise DataError(
                "the tokenizer has neither a padding token nor an end-of-text token",
                why="Texts of different length are padded to stand in one batch.",
                fix='tokenizer.add_special_tokens({"pad_token": "[PAD]"})',
            )
        return self.pad_id


def _opening(tokenizer: Any) -> int | None:
    begin = getattr(tokenizer, "bos_token_id", None)
    ids = tokenizer("a", truncation=False, padding=False)["input_ids"] if begin is not None else []
    return int(begin) if begin is not None and list(ids[:1]) == [begin] else None


def _sentinels(tokenizer: Any) -> tuple[int, ...]:
    found: list[int] = []
    unknown = getattr(tokenizer, "unk_token_id", None)
    while (token := tokenizer.convert_tokens_to_ids(f"<extra_id_{len(found)}>")) not in (None, unknown):
        found.append(int(token))
    return tuple(found)


class Blocks:
    """Packed blocks, read lazily.

    Attributes:
        block_size: tokens in a block, borders included.
        objective: "mlm", "clm" or "span".
        dropped_tokens: content tokens of the tail that filled no block.
        key: hash of the texts, the tokenizer and the settings.
    """

    def __init__(self, dataset: Dataset, *, block_size: int, objective: str, dropped_tokens: int, key: str) -> None:
        self._dataset = dataset.with_format("numpy")
        self.block_size = block_size
        self.objective = objective
        self.dropped_tokens = dropped_tokens
        self.key = key

    def __len__(self) -> int:
        return len(self._dataset)

    @property
    def token_count(self) -> int:
        """Tokens in all blocks, special tokens included."""
        return len(self) * self.block_size

    def __getitem__(self, indices: Sequence[int] | slice) -> Tensor:
        """Blocks ``indices`` as token ids [n, block_size], int64."""
        if not isinstance(indices, slice):
            indices = [int(index) for index in indices]
        rows = self._dataset[indices]["input_ids"]
        return torch.from_numpy(np.array(rows, dtype=np.int64).reshape(-1, self.block_size))


def pack(
    texts: Sequence[str],
    tokenizer: Any,
    block_size: int,
    *,
    objective: Objective = "mlm",
    cache: Path | None = None,
) -> Blocks:
    """Tokenise and pack documents into full blocks.

    Args:
        texts: the documents, in order; empty ones are passed over.
        tokenizer: a transformers tokenizer; its own truncation and padding are switched off.
        block_size: tokens in a block, borders included.
        objective: "mlm", "clm" or "span".
        cache: folder for packed blocks; None keeps them in memory.

    Raises:
        SettingsError: ``objective`` is unknown, or ``block_size`` too small.
        DataError: the tokenizer lacks a token the objective needs, or the texts do not fill one block.
    """
    layout = _layout(TokenizerFacts.of(tokenizer), block_size, objective)
    key = _key(texts, tokenizer, layout)
    folder = Path(cache) / key if cache is not None else None
    kept = _open(folder, layout, key) if folder is not None else None
    if kept is not None:
        return kept
    if folder is None or not caches_written():
        counter = _Tail()
        rows = list(_blocks(texts, tokenizer, layout, counter))
        _refuse_nothing(len(rows), len(texts), counter, layout)
        table = pa.Table.from_batches([_batch(rows, layout)])
        return Blocks(
            Dataset(table), block_size=block_size, objective=objective, dropped_tokens=counter.tokens, key=key
        )
    return _write(folder, texts, tokenizer, layout, key)


@dataclass(frozen=True)
class _Layout:
    objective: str
    block_size: int
    begin: tuple[int, ...]
    separator: int | None
    end: tuple[int, ...]
    #: put in front of every document
    opening: tuple[int, ...] = ()

    @property
    def content(self) -> int:
        return self.block_size - len(self.begin) - len(self.end)


@dataclass
class _Tail:
    """Content tokens left over when the texts end."""

    tokens: int = 0


def _layout(facts: TokenizerFacts, block_size: int, objective: str) -> _Layout:
    if objective not in OBJECTIVES:
        raise SettingsError(f"unknown objective '{objective}'", why=f"Known: {', '.join(OBJECTIVES)}.", fix="mlm")
    if block_size < 8:
        raise SettingsError(
            f"block_size is {block_size}", why="A block shorter than 8 tokens teaches nothing.", fix="block_size=128"
        )
    if objective == "clm":
        if facts.end_id is None:
            raise _lacks("an end-of-text token", "Packed documents are parted by it.")
        opening = () if facts.opening_id is None else (facts.opening_id,)
        return _Layout(objective, block_size, (), facts.end_id, (), opening)
    if objective == "span":
        if facts.end_id is None:
            raise _lacks("an end-of-text token", "What the encoder reads and the decoder writes ends with it.")
        if len(facts.sentinel_ids) < (needed := span_counts(block_size)[1] + 1):
            raise DataError(
                f"the tokenizer has {len(facts.sentinel_ids)} sentinels, blocks of {block_size} tokens need {needed}",
                why="Each span that is cut out leaves a sentinel of its own (<extra_id_0>, <extra_id_1>, ...).",
                fix="a smaller block_size" if facts.sentinel_ids else "the tokenizer of a T5 base, which has 100",
            )
        return _Layout(objective, block_size, (), None, ())
    if facts.mask_id is None:
        raise _lacks("a mask token", "Masked language modelling hides words behind it.", "objective=clm")
    if facts.begin_id is None or facts.separator_id is None:
        raise _lacks("[CLS] and [SEP], or begin- and end-of-text tokens", "Blocks begin and end with them.")
    return _Layout(objective, block_size, (facts.begin_id,), facts.separator_id, (facts.separator_id,))


def _lacks(what: str, why: str, fix: str = "a tokenizer that has it") -> DataError:
    return DataError(f"the tokenizer lacks {what}", why=why, fix=fix)


def _tokens(texts: Sequence[str], tokenizer: Any, layout: _Layout) -> Iterator[np.ndarray]:
    """The token row of all documents, separators between them, a piece [tokens, int32] per chunk of texts."""
    remaining, begun = iter(texts), False
    separator = () if layout.separator is None else (layout.separator,)
    between = (*separator, *layout.opening)
    while chunk := list(islice(remaining, TEXTS_AT_ONCE)):
        encoded = tokenizer(
            chunk,
            add_special_tokens=False,
            truncation=False,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        documents = [ids for ids in encoded if ids]
        if not documents:
            continue
        joined = chain.from_iterable(chain(between, ids) for ids in documents)
        row = np.fromiter(joined, dtype=np.int32)
        yield row if begun else row[len(separator) :]
        begun = True


def _blocks(texts: Sequence[str], tokenizer: Any, layout: _Layout, tail: _Tail) -> Iterator[np.ndarray]:
    """Full blocks [block_size, int32], one by one; counts what is left over in ``tail``."""
    begin, end = np.array(layout.begin, dtype=np.int32), np.array(layout.end, dtype=np.int32)
    left = np.zeros(0, dtype=np.int32)
    for row in _tokens(texts, tokenizer, layout):
        left = np.concatenate([left, row])
        full = len(left) // layout.content * layout.content
        for start in range(0, full, layout.content):
            yield np.concatenate([begin, left[start : start + layout.content], end])
        left = left[full:]
    tail.tokens = len(left)


def _batch(rows: Sequence[np.ndarray], layout: _Layout) -> pa.RecordBatch:
    flat = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int32)
    values = pa.FixedSizeListArray.from_arrays(pa.array(flat, type=pa.int32()), layout.block_size)
    return pa.RecordBatch.from_arrays([values], names=["input_ids"])


def _refuse_nothing(blocks: int, texts: int, tail: _Tail, layout: _Layout) -> None:
    if not blocks:
        raise DataError(
            f"{texts} texts give {tail.tokens} tokens: less than one block of {layout.block_size}",
            why="Pre-training works on full blocks; a last partial one is dropped.",
            fix=f"more text, or block_size={max(8, 1 << max(tail.tokens, 1).bit_length() - 1)}",
        )


def _key(texts: Sequence[str], tokenizer: Any, layout: _Layout) -> str:
    """SHA-256 over everything that decides the blocks."""
    state = hashlib.sha256()
    decides = {name: value for name, value in asdict(layout).items() if name != "opening" or value}
    state.update(canonical_json([LAYOUT, decides, tokenizer_identity(tokenizer)]).encode())
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        state.update(len(data).to_bytes(8, "big") + data)
    return state.hexdigest()


def tokenizer_identity(tokenizer: Any) -> str:
    """SHA-256 over how a tokenizer cuts text; truncation and padding, which move from call to call, are left out."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        facts: Any = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    else:
        facts = {
            name: value
            for name, value in json.loads(backend.to_str()).items()
            if name not in ("truncation", "padding")
        }
    return hashlib.sha256(canonical_json(facts).encode("utf-8", "surrogatepass")).hexdigest()


def _write(folder: Path, texts: Sequence[str], tokenizer: Any, layout: _Layout, key: str) -> Blocks:
    """Stream blocks into a hidden folder beside ``folder``, then rename it."""
    partial: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        partial = Path(tempfile.mkdtemp(prefix=f"{PARTIAL_PREFIX}{folder.name[:12]}-", dir=folder.parent))
        tail, count = _Tail(), 0
        with pa.OSFile(str(partial / "blocks.arrow"), "wb") as sink:
            writer: pa.RecordBatchStreamWriter | None = None
            blocks = _blocks(texts, tokenizer, layout, tail)
            while rows := list(islice(blocks, 1024)):
                batch = _batch(rows, layout)
                writer = writer or pa.ipc.new_stream(sink, batch.schema)
                writer.write_batch(batch)
                count += len(rows)
            if writer is not None:
                writer.close()
        _refuse_nothing(count, len(texts), tail, layout)
        (partial / "blocks.json").write_text(
            json.dumps({"key": key, "blocks": count, "dropped_tokens": tail.tokens}), encoding="utf-8"
        )
        _replace(partial, folder, layout, key)
    except OSError as problem:
        raise DataError(
            f"cannot write packed text to {folder}: {problem.strerror or problem}",
            why="Blocks are tokenised once and kept there.",
            fix="free some space, or name another cache folder (ANYTUNE_CACHE)",
        ) from problem
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
    opened = _open(folder, layout, key)
    if opened is None:
        raise DataError(f"{folder} cannot be read back", why="The packed text was written, yet is not as written.")
    return opened


def _sweep(cache: Path) -> None:
    """Remove what killed runs left behind, once it is too old to be a run at work."""
    for left in cache.glob(f"{PARTIAL_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > SECONDS_TO_KEEP_PARTIALS:
                shutil.rmtree(left, ignore_errors=True)


def _replace(partial: Path, folder: Path, layout: _Layout, key: str) -> None:
    """Rename into place; another process that came first with the same content wins, a damaged folder is replaced."""
    with contextlib.suppress(OSError):
        partial.rename(folder)
        return
    if _open(folder, layout, key) is None:
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(partial, folder)


def _open(folder: Path, layout: _Layout, key: str) -> Blocks | None:
    """Blocks of an earlier call, or None where there are none or they are damaged."""
    try:
        facts = json.loads((folder / "blocks.json").read_text(encoding="utf-8"))
        dataset = Dataset.from_file(str(folder / "blocks.arrow"))
        if facts["key"] != key or len(dataset) != facts["blocks"]:
            return None
        dropped = int(facts["dropped_tokens"])
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None
    return Blocks(dataset, block_size=layout.block_size, objective=layout.objective, dropped_tokens=dropped, key=key)
