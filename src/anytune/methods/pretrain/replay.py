"""Replay: some rows of every batch are text of earlier domains.

In plain words: a small, fair sample of the text seen so far is kept with the base. While the next domain is trained, a
share of each batch's rows is taken from it in place of new text, with words hidden anew. It is the simplest thing that
works against forgetting, where old text may be kept.

Formula: L = mean over scored tokens of -log p, as ever, where row i of a run is new text or, for every (1 / share)-th
row, a block drawn evenly from a buffer of ``size`` blocks. The buffer is a reservoir: each of the n blocks shown so
far is in it with the same probability size / n.

Paper: experience replay (Rolnick et al. 2019; Chaudhry et al. 2019); the reservoir of Vitter 1985. For continual
pre-training on a share of old text see Ibrahim et al. 2024 (Simple and scalable strategies to continually pre-train).
Costs: those of ``sequential`` for the same number of tokens, of which ``share`` are old; ``size`` * block_size * 4
bytes in main memory and beside the base.
When not to use it: where old text must not be kept (the base's folder then holds some of it, as token ids).
Choices of ours: tokens are equal to plain training's: old rows stand in place of new ones, which are not trained on; a
row is hidden in as many places as the row it stands for, so that a loss stays a mean over the same number of words.
The text that the base itself was pre-trained on is not in the buffer, so the first stage is plain training. Domains
stand in the buffer by their size. The default share and size are ours and not tuned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn

from anytune.data.batches import BlockBatches
from anytune.data.masking import IGNORED
from anytune.data.splits import stable_seed
from anytune.methods.protocol import Batch, Method, Run
from anytune.methods.registry import register
from anytune.methods.replay_buffer import Draw, ReplayBuffer, Rows, block_batches


def with_old_rows(batch: Batch, draws: list[Draw], blocks: Tensor, batches: BlockBatches) -> Batch:
    """The batch with old blocks in place of the drawn rows, hidden in as many places; a new batch.

    Args:
        batch: ``input_ids``, ``attention_mask``, ``labels``, each [b, ...]; everything else stays.
        draws: the rows, each of which draws a block.
        blocks: token ids [held, block_size].
        batches: hide words and cut spans as they do.
    """
    if not draws:
        return batch
    made = {key: batch[key].clone() for key in ("input_ids", "attention_mask", "labels")}
    for draw in draws:
        block = blocks[[draw.index(len(blocks))]].long()
        counts = (batch["labels"][draw.place] != IGNORED).sum().unsqueeze(0)
        row = batches.labelled(block, draw.generator, counts)
        for key, values in made.items():
            values[draw.place] = row[key][0].to(values.device, non_blocking=True)
    return {**batch, **made}


@register
@dataclass(kw_only=True)
class Replay(Method):
    """Rows of earlier domains in every batch."""

    share: Annotated[float, Field(ge=0, lt=1, description="share of the rows that are old text; 0 = none")] = 0.25
    size: Annotated[int, Field(ge=1, le=10_000_000, description="blocks of token ids that the buffer holds")] = 2000

    neutral = {"share": 0.0}  # noqa: RUF012 - nothing is drawn or kept then

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Take the buffer that the stage before left.

        Raises:
            MethodError: the run's batches are not made of blocks, or the buffer's blocks have another length.
        """
        self._buffer: ReplayBuffer | None = None
        if self.share:
            self._batches = block_batches(run, self)
            self._buffer = ReplayBuffer.carried(run, self)
            self._rows = Rows(self.name, run.seed, self._buffer.seen)
        return model

    def prepare_batch(self, batch: Batch) -> Batch:
        """Old text in place of some rows."""
        if self._buffer is None:
            return batch
        draws = self._rows.drawn(len(batch["input_ids"]), self.share)
        return with_old_rows(batch, draws, self._buffer.blocks, self._batches) if len(self._buffer) else batch

    def finish(self, model: nn.Module, run: Run) -> nn.Module:
        """Put a fair sample of this stage's text into the buffer."""
        if self._buffer is not None:
            shown = self._rows.shown(self._batches)
            seed = stable_seed("reservoir", run.seed, self._buffer.seen)
            self._buffer, _ = self._buffer.extended(self._batches.blocks, shown, self.size, seed)
        return model

    def carry_state(self) -> dict[str, Any]:
        """The buffer."""
        return {} if self._buffer is None else self._buffer.state()

    def state_dict(self) -> dict[str, Any]:
        """How many rows have been seen; what is drawn follows from it."""
        return {} if self._buffer is None else self._rows.state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from that row."""
        if self._buffer is not None:
            self._rows.load(state)
