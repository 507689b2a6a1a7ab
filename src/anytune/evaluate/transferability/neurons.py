"""Overlap of activated neurons (ON): do two prompts wake the same neurons of the feed-forward layers?

A neuron is one of the L * d_ff numbers behind the activation function of the feed-forward layers, read at one position
(the first text token). It counts as activated by a prompt if it is above 0 in more than half of the sampled texts. Two
prompts are compared by their bits a, b in {0, 1}^{L * d_ff}:

    cosine   |a & b| / sqrt(|a| |b|)    >=    dice   2 |a & b| / (|a| + |b|)    >=    jaccard   |a & b| / |a | b|

all in [0, 1] and 1 for equal bits. Bits are kept packed, eight to a byte: 12 KB for a BERT of 24 layers.

Source: Su et al. 2022 (On Transferability of Prompt Tuning), who take the cosine. Over several texts they and PANDA
reduce in ways not known to us; the majority is our choice, since it depends on no scale.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from anytune.errors import DataError, SettingsError

Overlap = Literal["cosine", "dice", "jaccard"]
_ONES = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.int64)


class FiredNeurons:
    """Counts, batch by batch, in how many texts each neuron is above 0."""

    def __init__(self) -> None:
        self.rows = 0
        self._counts: np.ndarray | None = None

    def add(self, activations: Any) -> None:
        """Take in ``activations`` [b, ...] of one position, array or tensor: [b, L, d_ff] or [b, L * d_ff]."""
        fired = activations > 0
        if hasattr(fired, "detach"):
            fired = fired.detach().cpu().numpy()
        counts = fired.reshape(len(fired), -1).sum(axis=0, dtype=np.int64)
        self.rows += len(fired)
        self._counts = counts if self._counts is None else self._counts + counts

    def bits(self, share: float = 0.5) -> np.ndarray:
        """Packed bits, uint8 [ceil(L * d_ff / 8)]: above 0 in more than ``share`` of the texts.

        Raises:
            DataError: there was no row.
        """
        if self._counts is None:
            raise DataError("activated neurons of no rows", why="They are counted over texts.")
        return np.packbits(self._counts > share * self.rows)


def overlap(a: Any, b: Any, kind: Overlap = "cosine") -> float:
    """Overlap of two sets of neurons, in [0, 1]; 1 where neither has any, 0 where one has none.

    Args:
        a: packed bits, uint8 [m], as :meth:`FiredNeurons.bits` gives them.
        b: the same of the other prompt.

    Raises:
        DataError: the numbers of neurons differ.
        SettingsError: an unknown kind.
    """
    left, right = (np.asarray(side, dtype=np.uint8) for side in (a, b))
    if left.shape != right.shape:
        raise DataError(
            f"neurons packed into {left.size} and {right.size} bytes",
            why="Prompts of bases of different size have no neurons in common.",
        )
    both, one, other = (int(_ONES[side].sum()) for side in (left & right, left, right))
    if kind not in ("cosine", "dice", "jaccard"):
        raise SettingsError(f"unknown overlap '{kind}'", why="Known: cosine, dice, jaccard.", fix="cosine")
    if not one and not other:
        return 1.0
    if kind == "cosine":
        return min(1.0, float(both / np.sqrt(one * other))) if one and other else 0.0
    return 2 * both / (one + other) if kind == "dice" else both / (one + other - both)
