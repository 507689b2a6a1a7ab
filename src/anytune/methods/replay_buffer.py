"""Old text to train on again: a reservoir of token blocks, and which rows of a run meet which block.

The reservoir is a fair sample of all blocks that a stream has trained on so far, whatever their number: each has the
same chance to be in it (Vitter 1985, algorithm R). What is drawn in a run depends on the number of the row alone, not
on how rows are put into micro-batches or processes: the same rows meet the same blocks however a batch is cut, and a
run that goes on needs to know no more than how many rows it has seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from anytune.data.batches import BlockBatches
from anytune.data.splits import stable_seed
from anytune.errors import MethodError
from anytune.methods.protocol import Method, Run

# ---------------------------------------------------------------------- the reservoir


def slots(capacity: int, held: int, seen: int, count: int, generator: torch.Generator) -> Tensor:
    """Where ``count`` new blocks go in a reservoir: int64 [count], -1 for those that are passed over.

    Several may go to the same slot; the last one stays.

    Args:
        capacity: slots in all.
        held: slots that are filled; the first ones.
        seen: blocks that came before.
        generator: a CPU generator; it is moved on by ``count`` draws.
    """
    drawn = torch.rand(count, generator=generator, dtype=torch.float64)
    numbers = torch.arange(count)
    place = (drawn * (seen + numbers + 1)).long()
    place = place.masked_fill(place >= capacity, -1)
    filling = held + numbers
    return torch.where(filling < capacity, filling, place)


@dataclass(frozen=True)
class ReplayBuffer:
    """A reservoir of token blocks.

    Attributes:
        blocks: int32 [held, block_size], CPU.
        seen: blocks the stream has shown so far.
        beside: what was stored with each block, each tensor [held, ...].
    """

    blocks: Tensor
    seen: int = 0
    beside: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.blocks)

    @classmethod
    def carried(cls, run: Run, method: Method) -> ReplayBuffer:
        """What the stage before left; an empty one at a first stage.

        Raises:
            MethodError: its blocks have another length than those of this run.
        """
        size = block_batches(run, method).blocks.block_size
        state = run.carried.get(method.name, {})
        if "blocks" not in state:
            return cls(torch.zeros(0, size, dtype=torch.int32))
        blocks = state["blocks"]
        if blocks.shape[1] != size:
            raise MethodError(
                f"{method.name} has stored blocks of {blocks.shape[1]} tokens, and this stage has blocks of {size}",
                why="Old and new rows stand in one batch.",
                fix=f"--training block_size={blocks.shape[1]}",
            )
        return cls(blocks, int(state["seen"]), dict(state.get("beside", {})))

    def state(self) -> dict[str, Any]:
        """To be carried to the next stage; {} where nothing is held."""
        if not len(self):
            return {}
        return {"blocks": self.blocks, "seen": self.seen, "beside": dict(self.beside)}

    def extended(self, shown: Any, rows: Sequence[int], capacity: int, seed: int) -> tuple[ReplayBuffer, Tensor]:
        """The reservoir after more blocks have been shown.

        Where it holds more than ``capacity``, some are dropped at random; where the capacity has grown, the room is
        filled with new blocks first, which are then over-represented.

        Args:
            shown: indexable blocks, ``shown[[3, 1]]`` -> int64 [2, block_size].
            rows: which of them were shown, in order.
            capacity: slots.
            seed: decides which blocks stay.

        Returns:
            The new reservoir, what stands beside new blocks being zeros, and bool [held]: which blocks are new.
        """
        generator = torch.Generator().manual_seed(seed)
        old = torch.arange(len(self))
        if len(self) > capacity:
            old = torch.rand(len(self), generator=generator).argsort()[:capacity].sort().values
        places = slots(capacity, len(old), self.seen, len(rows), generator)
        newest = {int(place): number for number, place in enumerate(places.tolist()) if place >= 0}
        held = max([len(old), *(place + 1 for place in newest)])
        blocks = self.blocks.new_zeros(held, self.blocks.shape[1])
        blocks[: len(old)] = self.blocks[old]
        new = torch.zeros(held, dtype=torch.bool)
        beside = {key: values.new_zeros(held, *values.shape[1:]) for key, values in self.beside.items()}
        for key, values in self.beside.items():
            beside[key][: len(old)] = values[old]
        if newest:
            chosen = list(newest)
            blocks[chosen] = shown[[rows[newest[place]] for place in chosen]].to(torch.int32)
            new[chosen] = True
            for values in beside.values():
                values[chosen] = 0
        return ReplayBuffer(blocks, self.seen + len(rows), beside), new


# ---------------------------------------------------------------------- rows of a run


def block_batches(run: Run, method: Method) -> BlockBatches:
    """The run's batches, which must be made of blocks.

    Raises:
        MethodError: they are not, or the run does not know them.
    """
    batches = run.needed("batches", method)
    if not isinstance(batches, BlockBatches):
        raise MethodError(
            f"'{method.name}' replays blocks of tokens, and the run's batches hold none",
            why=f"They are {type(batches).__name__}.",
            fix="anytune pretrain   (or, in a Trainer, BlockBatches as train_dataset)",
        )
    return batches


def is_chosen(number: int, share: float) -> bool:
    """Whether row ``number`` of a run is one of the evenly spaced rows that make up ``share`` of them."""
    return int((number + 1) * share) > int(number * share)


@dataclass(frozen=True)
class Draw:
    """A row of a micro-batch and what it meets; ``generator`` is this row's alone, for whatever else is drawn."""

    place: int
    number: int
    generator: torch.Generator

    def index(self, size: int) -> int:
        """One of ``size`` things, all equally likely."""
        return int(torch.randint(size, (), generator=self.generator))


class Rows:
    """Counts the rows that a run has seen, over all processes, and draws for those that are chosen.

    Args:
        seed: the run's, with what it is for.
    """

    def __init__(self, *seed: str | int) -> None:
        self._seed = seed
        self._rows = 0
        self._batches = 0

    def drawn(self, count: int, share: float) -> list[Draw]:
        """The chosen rows of the next micro-batch of ``count`` rows."""
        world, rank = _processes()
        # as if the processes' micro-batches stood one after the other
        first = world * self._rows + rank * count
        self._rows += count
        self._batches += 1
        return [
            Draw(place, first + place, torch.Generator().manual_seed(stable_seed(*self._seed, first + place)))
            for place in range(count)
            if is_chosen(first + place, share)
        ]

    def shown(self, batches: BlockBatches) -> list[int]:
        """The distinct blocks that the run has been shown, over all processes, in their order."""
        count = min(self._batches * _processes()[0], batches.batches_per_epoch)
        return [int(row) for number in range(count) for row in batches.rows(number)]

    def state(self) -> dict[str, int]:
        """The counts."""
        return {"rows": self._rows, "batches": self._batches}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on counting from there."""
        self._rows, self._batches = int(state["rows"]), int(state["batches"])


def _processes() -> tuple[int, int]:
    """How many there are, and which one this is."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size(), torch.distributed.get_rank()
    return 1, 0
