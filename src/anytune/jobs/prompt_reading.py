"""What a model with a soft prompt makes of texts: pooled states, answers of its head, and which neurons fire.

One forward pass gives all of it. Nothing here trains; the model's weights and mode are left as they were.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anytune.data.batches import Batch
from anytune.engine.runtime import Runtime
from anytune.errors import BaseError
from anytune.evaluate.transferability import FiredNeurons, pooled
from anytune.methods.step import upcast
from anytune.models.anatomy import Anatomy
from anytune.models.answering import task_output
from anytune.models.language_modelling import model_inputs

#: Batches as ``data.batches.evaluation_batches`` gives them: (row numbers [b], batch).
Batches = Sequence[tuple[Tensor, Batch]]


@dataclass
class Seen:
    """What was seen of N texts, in fp32 on the CPU, in their order.

    Attributes:
        pooled: pooling -> [N, d]: "mean" over the text's own tokens, "cls" its first token (a decoder's last, the only
            one that has read the text), "pooler" what the model's own pooler makes of it, where it has one. Of an
            encoder-decoder that writes, both are what its decoder makes of its start token: it has read text and
            prompt, wherever the prompt stands.
        words: for texts of words, of every row the last hidden states at each word's first piece, [words, d].
        logits: [N, outputs] of the head; None where not asked for, or where it answers for every token.
        neurons: packed bits, see :mod:`anytune.evaluate.transferability.neurons`; read at the place of "cls".
    """

    pooled: dict[str, Tensor]
    words: list[Tensor] = field(default_factory=list)
    logits: Tensor | None = None
    neurons: np.ndarray | None = None


@torch.no_grad()
def look(
    model: nn.Module, anatomy: Anatomy, batches: Batches, runtime: Runtime, *,
    logits: bool = False, neurons: bool = False, pieces: Sequence[Sequence[int]] | None = None,
) -> Seen:  # fmt: skip
    """Read texts with a model.

    Args:
        model: a task model, with or without a soft prompt.
        batches: all texts once, in any order.
        logits: also the answers of its head.
        neurons: also which neurons fire.
        pieces: of every text the place of each word's first piece, -1 for words that were cut off.

    Raises:
        BaseError: neurons are asked for, and where the activations of this kind of model are is not known.
    """
    body: Any = anatomy.backbone(model)
    writer: Any = getattr(body, "decoder", None) if anatomy.encoder_decoder else None
    rows: dict[str, list[Tensor]] = {}
    order: list[int] = []
    answers: list[Tensor] = []
    words: dict[int, Tensor] = {}
    was_training = model.training
    model.eval()
    autocast = runtime.autocast() or contextlib.nullcontext
    output: dict[str, Any] = {}

    def keep(module: Any, args: Any, found: Any) -> None:
        output["body"] = found

    with _watched(body, anatomy, neurons) as watched:
        handle = (body if writer is None else writer).register_forward_hook(keep)
        try:
            for numbers, batch in batches:
                moved = runtime.to_device(batch)
                mask = moved["attention_mask"] if writer is None else moved["attention_mask"].new_ones(len(numbers), 1)
                with autocast():
                    if logits and writer is not None:
                        answers.append(upcast(task_output(model, moved).logits).cpu())
                    watched.begin(mask)
                    if writer is not None:
                        body(**{**model_inputs(body, moved), "decoder_input_ids": mask * _start(body)})
                    elif logits:
                        answers.append(upcast(task_output(model, moved).logits).cpu())
                    else:
                        body(**model_inputs(body, moved))
                watched.end()
                # an input prompt may still stand in front of what an encoder gives
                hidden = upcast(output["body"][0])[:, -mask.shape[1] :]
                pooler = None if isinstance(output["body"], tuple) else output["body"].get("pooler_output")
                found = {
                    "mean": pooled(hidden, mask),
                    "cls": hidden[torch.arange(len(hidden), device=hidden.device), read_at(mask, anatomy.causal)],
                }
                if pooler is not None:
                    found["pooler"] = upcast(pooler)
                for kind, values in found.items():
                    rows.setdefault(kind, []).append(values.cpu())
                if pieces is not None:
                    for row, states in zip(numbers.tolist(), hidden.cpu(), strict=True):
                        words[row] = states[[place for place in pieces[row] if place >= 0]]
                order += numbers.tolist()
        finally:
            handle.remove()
            model.train(was_training)
    back = torch.tensor(order).argsort()
    return Seen(
        {kind: torch.cat(values)[back] for kind, values in rows.items()},
        [words[row] for row in sorted(words)],
        torch.cat(answers)[back] if answers and answers[0].dim() == 2 else None,
        watched.fired.bits() if watched.fired.rows else None,
    )


def _start(body: Any) -> int:
    """The token a decoder begins with."""
    config = body.config
    start = config.decoder_start_token_id
    return int(config.pad_token_id if start is None else start)


def read_at(mask: Tensor, last: bool) -> Tensor:
    """The place [b] of each row's first token, or of its last; padding may be on either side."""
    if not last:
        return mask.int().argmax(dim=1)
    return (mask.bool() * torch.arange(mask.shape[1], device=mask.device)).amax(dim=1)


class _Watched:
    """Collects the activations of every block's feed-forward part at one place of each text."""

    def __init__(self, last: bool) -> None:
        self.last, self.fired = last, FiredNeurons()
        self._mask: Tensor | None = None
        self._blocks: list[Tensor] = []

    def begin(self, mask: Tensor) -> None:
        self._mask, self._blocks = mask, []  # what was seen before is forgotten

    def end(self) -> None:
        if self._blocks:
            self.fired.add(torch.stack(self._blocks, dim=1))
        self._mask = None

    def see(self, module: Any, args: Any, found: Tensor) -> None:
        if self._mask is None:
            return
        if found.dim() != 3 or len(found) != len(self._mask):
            raise _no_neurons(f"activations of shape {list(found.shape)}")
        before = found.shape[1] - self._mask.shape[1]  # an input prompt stands in front of the text
        places = read_at(self._mask, self.last) + before
        self._blocks.append(upcast(found[torch.arange(len(found), device=found.device), places]))


@contextlib.contextmanager
def _watched(body: Any, anatomy: Anatomy, wanted: bool) -> Iterator[_Watched]:
    found = _Watched(anatomy.causal)
    handles = []
    try:
        if wanted:
            handles = [module.register_forward_hook(found.see) for module in activations(body, anatomy)]
        yield found
    finally:
        for handle in handles:
            handle.remove()


def activations(body: Any, anatomy: Anatomy) -> list[nn.Module]:
    """The activation module inside each block's feed-forward part, first block to last; of a writer the decoder's.

    Raises:
        BaseError: a block has none that can be told from the rest.
    """
    stack = anatomy.stacks[-1] if getattr(body, "decoder", None) is not None else anatomy.stacks[0]
    found = []
    for block in body.get_submodule(stack.blocks):
        inside = [
            module for part in stack.feed_forward for name, module in block.get_submodule(part).named_modules()
            if "act" in name.rpartition(".")[2] and not list(module.parameters())
        ]  # fmt: skip
        if len(inside) != 1:
            raise _no_neurons(f"{len(inside)} activation modules in a block of kind '{anatomy.model_type}'")
        found.append(inside[0])
    return found


def _no_neurons(what: str) -> BaseError:
    return BaseError(what, why="Which neurons fire is read off one place of one activation.", fix="another metric")
