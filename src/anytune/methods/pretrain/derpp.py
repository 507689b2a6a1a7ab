"""DER++: beside each batch some old text, with the answers that were given to it at its time.

In plain words: a small, fair sample of earlier text is kept with the base, each block once with words hidden, and with
it what the model put out there when its domain had just been learned. While the next domain is trained, the model is
asked to put out the same on these blocks (dark experience), and to guess words hidden anew on others (replay).

Formula: L = CE(batch) + alpha * mean |h(x) - h'|^2 / width + beta * CE(x'), x and x' old blocks, each drawn evenly and
by itself: one of each for every (1 / share)-th row of a batch. h' [scored positions, width] are the outputs stored
with x, for the words hidden in it then; h(x) are the model's now. A pair weighs in the mean as much as the row that it
stands beside.

Paper: Buzzega et al. 2020 (Dark Experience for General Continual Learning), there for classifiers and their logits; on
hidden states as a baseline of continual pre-training in Ke et al. 2023 (Continual Pre-training of Language Models).
Costs: one more forward and backward over 2 * share as many rows; beside the base and in main memory, for every block,
4 bytes a token and 2 bytes for each number put out: for blocks of 128 tokens, 19 of them scored, and width 768 some 30
KB, for a decoder that scores all of them 200 KB (``outputs: logits``: words in place of width, so 40 times as much).
When not to use it: where old text must not be kept; where memory counts and the model is a decoder.
Choices of ours: blocks and outputs are taken as a stage ends, from what it was shown, so that all outputs of a domain
come from the model that had learned it (the paper takes them along the way); they are put out without dropout and kept
in bf16; hidden states by default, in equal numbers of places for all blocks; the first stage is plain training.
Tokens of the old rows come on top of the batch's. The defaults are ours and not tuned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from anytune.data.batches import BlockBatches
from anytune.data.masking import IGNORED
from anytune.data.splits import stable_seed
from anytune.errors import MethodError
from anytune.methods.consistency import example_weights
from anytune.methods.protocol import Batch, Method, Run, Terms
from anytune.methods.registry import register
from anytune.methods.replay_buffer import Draw, ReplayBuffer, Rows, block_batches
from anytune.methods.step import upcast
from anytune.models.language_modelling import label_loss, labelled_hidden

Outputs = Literal["hidden", "logits"]


def by_rows(per_item: Tensor, counts: Sequence[int], weights: Tensor) -> Tensor:
    """``sum_r weights[r] * mean of row r's items``, a scalar; a row without items adds nothing.

    Args:
        per_item: one loss for each item [items], row by row.
        counts: items of each row.
        weights: of each row [rows].
    """
    rows = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(list(counts)))
    share = torch.tensor([1 / max(1, count) for count in counts], dtype=per_item.dtype)
    spread = (share.to(per_item.device) * weights.to(per_item.dtype))[rows.to(per_item.device)]
    return (per_item * spread).sum()


def squared_errors(now: Tensor, stored: Tensor) -> Tensor:
    """``|now - stored|^2 / width`` of each item, [items], in fp32 or wider.

    Args:
        now: [items, width], with gradient.
        stored: [items, width].

    Raises:
        MethodError: shapes differ.
    """
    if now.shape != stored.shape:
        raise MethodError(
            f"outputs of the shape {list(stored.shape)} were stored, the model's are {list(now.shape)}",
            why="The base was changed between two stages, for instance its vocabulary.",
            fix="the base as the stage before left it, or one that carries nothing",
        )
    wide = upcast(now)
    return (wide - stored.to(wide.dtype)).square().mean(dim=-1)


@dataclass(frozen=True)
class Met:
    """Old rows that stand beside a batch: first those with stored outputs, then those to guess words in.

    Attributes:
        inputs: ``input_ids``, ``attention_mask``, ``labels``, each [rows, ...].
        places: the rows of the batch that they stand beside.
        recalled: scored positions of each row that has stored outputs.
        guessed: of each row without.
        outputs: what was stored [sum of recalled, width]; None where nothing is recalled.
    """

    inputs: dict[str, Tensor]
    places: list[int]
    recalled: list[int]
    guessed: list[int]
    outputs: Tensor | None


@register
@dataclass(kw_only=True)
class DERpp(Method):
    """Dark experience replay: stored outputs and old text."""

    alpha: Annotated[float, Field(ge=0, le=1000, description="weight of the distance from the stored outputs")] = 0.5
    beta: Annotated[float, Field(ge=0, le=1000, description="weight of guessing words of old text")] = 0.5
    share: Annotated[
        float, Field(gt=0, le=1, description="old rows of each sort beside a batch, as a share of its rows")
    ] = 0.25
    size: Annotated[int, Field(ge=1, le=1_000_000, description="blocks that the buffer holds")] = 500
    outputs: Annotated[
        Outputs, Field(description="what is stored at scored positions: hidden (last states) or logits")
    ] = "hidden"
    most_megabytes: Annotated[
        float, Field(gt=0, description="stored outputs that would be larger than this are refused at the beginning")
    ] = 1000.0

    neutral = {"alpha": 0.0, "beta": 0.0}  # noqa: RUF012 - nothing is drawn or kept then

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Take the buffer that the stage before left.

        Raises:
            MethodError: the run's batches are not made of blocks, the buffer does not suit these settings, or the
                stored outputs would grow too large.
        """
        self._buffer: ReplayBuffer | None = None
        if not (self.alpha or self.beta):
            return model
        self._batches = block_batches(run, self)
        self._anatomy = run.anatomy
        self._causal = run.anatomy.causal
        self._buffer = ReplayBuffer.carried(run, self)
        self._rows = Rows(self.name, run.seed, self._buffer.seen)
        if self.alpha:
            self._check_stored(run)
            self._check_size(model)
        return model

    def _check_stored(self, run: Run) -> None:
        assert self._buffer is not None
        kind = run.carried.get(self.name, {}).get("outputs", "no outputs")
        if len(self._buffer) and kind != self.outputs:
            raise MethodError(
                f"{self.name} has stored {kind} with its blocks, and is to compare {self.outputs}",
                why="They were stored when their domain had been learned, and cannot be had again.",
                fix=f"--set outputs={kind}" if kind in ("hidden", "logits") else "--set alpha=0",
            )

    def _check_size(self, model: Any) -> None:
        config, batch = model.config, hidden_words(self._batches, self._batches.blocks[[0]], 0)
        width = config.hidden_size if self.outputs == "hidden" else config.vocab_size
        positions = scored(batch["labels"], self._causal)[0]
        megabytes = self.size * positions * width * 2 / 1e6
        if megabytes > self.most_megabytes:
            raise MethodError(
                f"{self.name} would store {megabytes:.0f} MB of outputs: {self.size} blocks with {positions} scored "
                f"positions of {width} numbers",
                why=f"most_megabytes is {self.most_megabytes:g}; they are kept in memory and beside every base.",
                fix=f"--set size={max(1, int(self.size * self.most_megabytes / megabytes))}"
                + (", or --set outputs=hidden" if self.outputs == "logits" else ""),
            )

    def prepare_batch(self, batch: Batch) -> Batch:
        """Old rows beside the batch, under a key of this method's own."""
        if self._buffer is None:
            return batch
        draws = self._rows.drawn(len(batch["input_ids"]), self.share)
        if not len(self._buffer) or not draws:
            return batch
        return {**batch, self.name: self._met(draws, batch["input_ids"].device)}

    def _met(self, draws: list[Draw], device: torch.device) -> Met:
        buffer = self._buffer
        assert buffer is not None
        rows: list[dict[str, Tensor]] = []
        recalled: list[int] = []
        outputs: list[Tensor] = []
        if self.alpha:
            for index in [draw.index(len(buffer)) for draw in draws]:
                read, labels = (buffer.beside[key][index].long().unsqueeze(0) for key in ("read", "labels"))
                rows.append({"input_ids": read, "attention_mask": torch.ones_like(read), "labels": labels})
                recalled += scored(labels, self._causal)
                outputs.append(buffer.beside["outputs"][index, : recalled[-1]])
        guessed: list[int] = []
        if self.beta:
            for draw in draws:
                block = buffer.blocks[[draw.index(len(buffer))]].long()
                rows.append(self._batches.labelled(block, draw.generator))
                guessed += scored(rows[-1]["labels"], self._causal)
        inputs = {key: torch.cat([row[key] for row in rows]) for key in ("input_ids", "attention_mask", "labels")}
        return Met(
            {key: values.to(device, non_blocking=True) for key, values in inputs.items()},
            [draw.place for draw in draws], recalled, guessed,
            torch.cat(outputs).to(device, non_blocking=True) if outputs else None,
        )  # fmt: skip

    def objective(self, model: nn.Module, batch: Batch, output: Any, terms: Terms) -> Terms:
        """The plain terms, the distance from the stored outputs and the loss on old text."""
        met: Met | None = batch.get(self.name)
        if met is None:
            return terms
        terms = dict(terms)
        weights = example_weights(batch, self._causal, upcast(output.logits).dtype)[met.places] / self.share
        hidden, labels = labelled_hidden(model, met.inputs, self._anatomy)
        border = sum(met.recalled)
        if met.outputs is not None:
            now = hidden[:border]
            now = now if self.outputs == "hidden" else self._anatomy.pretraining_logits(model, now)
            terms["dark"] = self.alpha * by_rows(squared_errors(now, met.outputs), met.recalled, weights)
        if met.guessed:
            logits = self._anatomy.pretraining_logits(model, hidden[border:])
            losses = label_loss(logits, labels[border:], reduction="none")
            terms["replay"] = self.beta * by_rows(losses, met.guessed, weights)
        return terms

    def finish(self, model: nn.Module, run: Run) -> nn.Module:
        """Put a fair sample of this stage's text into the buffer, with what the model puts out for it now."""
        if self._buffer is None:
            return model
        shown = self._rows.shown(self._batches)
        seed = stable_seed("reservoir", run.seed, self._buffer.seen)
        if not self.alpha:
            self._buffer = replace(self._buffer, beside={})
        self._buffer, new = self._buffer.extended(self._batches.blocks, shown, self.size, seed)
        if self.alpha and bool(new.any()):
            self._store(model, new.nonzero().squeeze(1), run.seed)
        return model

    @torch.no_grad()
    def _store(self, model: nn.Module, new: Tensor, seed: int) -> None:
        """Put beside the blocks ``new`` of the buffer what the model puts out for them, and the words hidden."""
        assert self._buffer is not None
        buffer, beside = self._buffer, dict(self._buffer.beside)
        device, was_training = next(model.parameters()).device, model.training
        model.eval()
        for rows in new.split(self._batches.batch_size):
            drawn = stable_seed("outputs", seed, buffer.seen, int(rows[0]))
            batch = hidden_words(self._batches, buffer.blocks[rows].long(), drawn)
            moved = {key: batch[key].to(device) for key in ("input_ids", "attention_mask", "labels")}
            found, _ = labelled_hidden(model, moved, self._anatomy)
            found = found if self.outputs == "hidden" else self._anatomy.pretraining_logits(model, found)
            counts = scored(batch["labels"], self._causal)
            padded = nn.utils.rnn.pad_sequence(list(found.to("cpu", torch.bfloat16).split(counts)), batch_first=True)
            for key, values in (
                ("read", batch["input_ids"].to(torch.int32)),
                ("labels", batch["labels"].to(torch.int32)),
                ("outputs", padded),
            ):
                beside[key] = _with_rows(beside.get(key), len(buffer), rows, values)
        model.train(was_training)
        self._buffer = replace(buffer, beside=beside)

    def carry_state(self) -> dict[str, Any]:
        """The buffer, and what stands in it."""
        state = {} if self._buffer is None else self._buffer.state()
        return {**state, "outputs": self.outputs if self.alpha else "no outputs"} if state else {}

    def state_dict(self) -> dict[str, Any]:
        """How many rows have been seen; what is drawn follows from it."""
        return {} if self._buffer is None else self._rows.state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from that row."""
        if self._buffer is not None:
            self._rows.load(state)


def hidden_words(batches: BlockBatches, blocks: Tensor, seed: int) -> Batch:
    """Blocks [b, n] as a batch in which each row has equally many places to fill."""
    places = max(1, round(batches.probability * blocks.shape[1]))
    counts = torch.full((len(blocks),), places)
    return batches.labelled(blocks, torch.Generator().manual_seed(seed), counts)


def scored(labels: Tensor, causal: bool) -> list[int]:
    """How many positions of each row carry loss."""
    return (labels[:, 1:] if causal else labels).ne(IGNORED).sum(dim=1).tolist()


def _with_rows(values: Tensor | None, held: int, rows: Tensor, new: Tensor) -> Tensor:
    """``values`` [held, ...] with ``new`` at ``rows``; rows of either may be shorter, and are filled with zeros."""
    if values is None:
        values = new.new_zeros(held, *new.shape[1:])
    if new.ndim == 3 and new.shape[1] != values.shape[1]:
        wider = values.new_zeros(held, max(new.shape[1], values.shape[1]), values.shape[2])
        wider[:, : values.shape[1]] = values
        values = wider
        new = nn.functional.pad(new, (0, 0, 0, values.shape[1] - new.shape[1]))
    values[rows] = new
    return values
