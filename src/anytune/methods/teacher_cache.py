"""What a teacher answers to every training row: asked once before training, then looked up by the row's content.

A teacher that does not change need not be asked in every step. Its answers are kept under a 64-bit key of what a row
holds (token ids, segments, labelled places), so they are found again in any order of batches, at any padding, in any
process. Rows are asked in the order of their keys, without dropout: a run that goes on gets the same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Generator, Tensor, nn

from anytune.errors import MethodError
from anytune.methods.protocol import Batch
from anytune.methods.step import upcast
from anytune.models.language_modelling import NO_LABEL
from anytune.models.weights import write_tensors

Kept = Literal["fp32", "fp16"]
#: Most bytes of answers that are kept: a vocabulary's logits for every token of a response soon are more.
MOST_BYTES = 4 * 2**30
#: Rows asked at once.
ROWS_AT_ONCE = 32
#: Odd 64-bit numbers whose bits look random (from the fractional parts of square roots), as signed integers.
_FACTORS = (0x6A09E667F3BCC909, -0x44985EF8B3C1E3B5, 0x3C6EF372FE94F82B, -0x5AB00AC5A0E2C90F, 0x510E527FADE682D1)

# ---------------------------------------------------------------------- rows


def row_keys(batch: Batch) -> Tensor:
    """A key for each row of a batch, int64 ``[b]`` on its device: equal for equal content, whatever the padding.

    It covers the tokens, their segments, and of rows with several labels where those stand and what they are.

    Raises:
        MethodError: the batch holds no token ids, because a method reads word embeddings in their place.
    """
    if "input_ids" not in batch:
        raise MethodError(
            "a batch without token ids cannot be found among a teacher's answers",
            why="Another method reads mixed or changed word embeddings in place of the rows the teacher has read.",
            fix="without that method",
        )
    ids = batch["input_ids"]
    mask = batch["attention_mask"].long() if "attention_mask" in batch else torch.ones_like(ids)
    places = mask.cumsum(dim=1)
    keys = (_mixed(ids, places, 1) * mask).sum(dim=1)
    if "token_type_ids" in batch:
        keys = keys + (_mixed(batch["token_type_ids"], places, 2) * mask).sum(dim=1)
    labels = batch.get("labels")
    if labels is not None and labels.ndim == 2 and not labels.is_floating_point():
        chosen = labels.ne(NO_LABEL)
        places = torch.arange(labels.shape[1], device=labels.device).expand_as(labels)
        keys = keys + (_mixed(labels, places, 3) * chosen).sum(dim=1)
    return keys


def _mixed(values: Tensor, places: Tensor, kind: int) -> Tensor:
    """Numbers whose sum over places tells contents apart; multiplication wraps around at 64 bits."""
    first, second, third, fourth, fifth = _FACTORS
    mixed = values.long() * first + places * second + kind * third
    mixed = (mixed ^ (mixed >> 31)) * fourth
    mixed = (mixed ^ (mixed >> 29)) * fifth
    return mixed ^ (mixed >> 32)


def items_of_rows(batch: Batch, causal: bool = False) -> Tensor:
    """How many items (rows of logits) each row of a batch has, int64 ``[b]``.

    Args:
        causal: whether position t is predicted from t - 1, so that a label at the first place is no item.
    """
    labels = batch["labels"]
    if labels.ndim == 1 or labels.is_floating_point():
        return torch.ones(len(labels), dtype=torch.long, device=labels.device)
    return (labels[:, 1:] if causal else labels).ne(NO_LABEL).sum(dim=1)


def at_items(hidden: Tensor, batch: Batch, causal: bool = False) -> Tensor:
    """Hidden states ``[b, n, width]`` as one vector for each item, ``[items, width]`` in fp32 or wider.

    Of a row with one label the mean over its real tokens; else the states at the labelled places.
    """
    labels, hidden = batch["labels"], upcast(hidden)
    if labels.ndim == 1 or labels.is_floating_point():
        mask = batch["attention_mask"].to(hidden).unsqueeze(-1)
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    if causal:
        return hidden[:, :-1][labels[:, 1:].ne(NO_LABEL)]
    return hidden[labels.ne(NO_LABEL)]


def distinct_batches(batches: Any, rows_at_once: int = ROWS_AT_ONCE) -> Iterator[Batch]:
    """Every training row once, longest first, equal ones once: an order that depends on the rows alone.

    Args:
        batches: with ``encoded`` (the rows themselves); or an epoch's ``batches_per_epoch`` as ``batch(number)``,
            which are given as they come.
    """
    encoded = getattr(batches, "encoded", None)
    if encoded is None:
        yield from (batches.batch(number) for number in range(batches.batches_per_epoch))
        return
    order = distinct_rows(encoded)
    for start in range(0, len(order), rows_at_once):
        yield encoded.batch(order[start : start + rows_at_once])


def distinct_rows(encoded: Any) -> np.ndarray:
    """The numbers of the rows, int64, longest first and equal ones once."""
    by_length = np.argsort(-encoded.lengths, kind="stable")
    keys = np.empty(len(encoded), dtype=np.int64)
    for start in range(0, len(encoded), 512):
        rows = by_length[start : start + 512]
        keys[rows] = row_keys(encoded.batch(rows)).numpy()
    _, first = np.unique(keys, return_index=True)
    order: np.ndarray = first[np.argsort(-encoded.lengths[first], kind="stable")]
    return order


# ---------------------------------------------------------------------- answers


@dataclass(frozen=True)
class TeacherCache:
    """Answers by row.

    Attributes:
        keys: int64 [rows], ascending.
        starts: int64 [rows]: where a row's items begin.
        counts: int64 [rows]: how many it has.
        outputs: [items, width], fp32 or fp16: a row's items stand together.
    """

    keys: Tensor
    starts: Tensor
    counts: Tensor
    outputs: Tensor

    @classmethod
    @torch.no_grad()
    def build(
        cls, batches: Any, answers: Callable[[Batch], Tensor], *, device: Any = None, causal: bool = False,
        kept: Kept = "fp32", rows_at_once: int = ROWS_AT_ONCE,
    ) -> TeacherCache:  # fmt: skip
        """Ask about every training row.

        Args:
            batches: the run's; see ``distinct_batches``.
            answers: gives a batch's [items, width], row after row; without dropout.
            device: where batches are put before they are asked about.
            causal: see ``items_of_rows``.
            kept: fp16 halves the memory, and rounds.

        Raises:
            MethodError: an answer is not finite (also: too large for fp16), or all of them are too many to keep.
        """
        gathered = Gathering(kept)
        for batch in distinct_batches(batches, rows_at_once):
            placed = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
            gathered.add(row_keys(batch), items_of_rows(batch, causal), answers(placed))
        return gathered.done()

    @cached_property
    def one_each(self) -> bool:
        """Whether every row has one item: it is then found without counting, and no device is waited for."""
        return bool(self.counts.eq(1).all())

    def to(self, device: Any) -> TeacherCache:
        """The same on a device."""
        if self.keys.device == torch.device(device):
            return self
        return TeacherCache(*(one.to(device) for one in (self.keys, self.starts, self.counts, self.outputs)))

    def of(self, batch: Batch, keys: Tensor | None = None) -> Tensor:
        """The answers to a batch, fp32 ``[items, width]``, row after row.

        Args:
            keys: ``row_keys(batch)``, if they are at hand.

        Raises:
            MethodError: a row is none of those that were asked about.
        """
        keys = row_keys(batch) if keys is None else keys
        found = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
        missing = self.keys[found] != keys
        if bool(missing.any()):
            raise MethodError(
                f"{int(missing.sum())} of {len(keys)} rows are not among those the teacher was asked about",
                why="The training data have changed since, and its answers belong to other texts.",
                fix="the run from its start: the teacher is asked anew",
            )
        if self.one_each:
            return self.outputs[self.starts[found]].float()
        counts = self.counts[found]
        before = counts.cumsum(dim=0) - counts
        items = torch.repeat_interleave(self.starts[found] - before, counts)
        return self.outputs[items + torch.arange(len(items), device=items.device)].float()

    def shuffled(self, seed: int) -> TeacherCache:
        """Every item with the answer to another one: one random cycle through all items, from a generator of its own.

        A control: what a teacher that knows nothing of the row in question is worth.
        """
        count = len(self.outputs)
        cycle = torch.randperm(count, generator=Generator().manual_seed(seed)).to(self.outputs.device)
        outputs = torch.empty_like(self.outputs)
        outputs[cycle] = self.outputs[cycle.roll(1)]
        return replace(self, outputs=outputs)

    @property
    def content(self) -> str:
        """SHA-256 over the rows that were asked about: changes with the training data, not with their order."""
        return hashlib.sha256(self.keys.cpu().numpy().tobytes() + self.counts.cpu().numpy().tobytes()).hexdigest()

    def save(self, path: Path, digest: str) -> None:
        """Write a safetensors file; ``digest`` names what the answers belong to (data and teacher)."""
        tensors = {"keys": self.keys, "starts": self.starts, "counts": self.counts, "outputs": self.outputs}
        write_tensors(path, {name: one.cpu().contiguous() for name, one in tensors.items()}, {"digest": digest})

    @classmethod
    def load(cls, path: Path, digest: str) -> TeacherCache:
        """Read what ``save`` wrote.

        Raises:
            MethodError: the file is missing or damaged, or belongs to other data or another teacher.
        """
        try:
            with safe_open(path, framework="pt") as file:
                said = (file.metadata() or {}).get("digest")
                parts = {name: file.get_tensor(name) for name in ("keys", "starts", "counts", "outputs")}
        except (SafetensorError, OSError) as problem:
            raise MethodError(
                f"cannot read a teacher's answers from {path}: {problem}", fix="delete it: they are made again"
            ) from None
        if said != digest:
            raise MethodError(
                f"{path} holds the answers of another teacher or to other data",
                why=f"It says {str(said)[:10]}, and this run is {digest[:10]}.",
                fix="delete it: they are made again",
            )
        return cls(**parts)


def _stored(found: Tensor, kept: Kept) -> Tensor:
    stored = found.half() if kept == "fp16" else found
    if bool(stored.isfinite().all()):
        return stored
    if bool(found.isfinite().all()):
        raise MethodError(
            f"a teacher's answer of {found.abs().max():.3g} does not fit into fp16",
            why="It would be infinite.", fix="store=fp32",
        )  # fmt: skip
    raise MethodError(
        "the teacher answers NaN or infinity", why="Nothing can be learnt from that.", fix="another teacher"
    )


class Gathering:
    """Answers on their way into a cache, batch by batch."""

    def __init__(self, kept: Kept = "fp32") -> None:
        self._kept: Kept = kept
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self._held = 0

    def add(self, keys: Tensor, counts: Tensor, found: Tensor) -> None:
        """Take the answers to some rows.

        Args:
            keys: int64 [rows].
            counts: int64 [rows]: items of each.
            found: [items, width], row after row.

        Raises:
            MethodError: an answer is not finite (also: too large for fp16), or all of them are too many to keep.
        """
        stored = _stored(found.detach().float(), self._kept).cpu()
        self._parts.append((keys.cpu(), counts.cpu(), stored))
        self._held += stored.numel() * stored.element_size()
        if self._held > MOST_BYTES:
            raise MethodError(
                f"the teacher's answers take more than {MOST_BYTES / 2**30:g} GiB "
                f"({found.shape[1]} numbers for each item)",
                why="They are kept in memory, one vector for each label of the training data.",
                fix="loss=hidden, store=fp16, or fewer training rows",
            )

    def done(self) -> TeacherCache:
        """All of them, by row.

        Raises:
            MethodError: there are none.
        """
        if not self._parts:
            raise MethodError("there are no training rows to ask a teacher about", why="It has nothing to teach.")
        keys, counts, outputs = (torch.cat(parts) for parts in zip(*self._parts, strict=True))
        starts = counts.cumsum(dim=0) - counts
        order = keys.argsort(stable=True)
        return TeacherCache(keys[order], starts[order], counts[order], outputs)


def digest_of(tensors: Mapping[str, Tensor], *parts: Sequence[Any] | str) -> str:
    """SHA-256 over tensors by name and whatever else an answer depends on."""
    state = hashlib.sha256(repr(parts).encode())
    for name in sorted(tensors):
        values = tensors[name].detach().cpu().contiguous()
        state.update(f"\n{name} {values.dtype} {list(values.shape)}\n".encode())
        state.update(values.view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


class LastHidden:
    """Keeps the last hidden states ``[b, n, width]`` of a model's body (``Anatomy.writer``) in the running pass."""

    def __init__(self, body: nn.Module) -> None:
        self._found: Tensor | None = None
        self._hook = body.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: Any, output: Any) -> None:
        self._found = output[0]

    def take(self) -> Tensor:
        """Those of the last pass, once."""
        found, self._found = self._found, None
        assert found is not None, "no pass was made"
        return found

    def remove(self) -> None:
        """Take the hook off."""
        self._found = None
        self._hook.remove()
