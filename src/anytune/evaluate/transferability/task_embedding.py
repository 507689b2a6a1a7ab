"""Task embeddings: where a task lies, as the frozen model with the task's own prompt sees it.

r_i = pool(H(f(P, x_i))) for each row x_i of a sample of N texts, E = 1/N sum_i r_i, summed in float64 and kept in
float32; the similarity of two tasks is the cosine of their E, in [-1, 1]. H is the last layer, in eval mode.

Pooling: ``mean`` over the real text positions, the same for all kinds of task; ``cls`` the first real position;
``pooler`` the model's own pooled output; ``paper`` the pooled output where the model has one, else ``mean``, which is
how the published heat-maps read: there tasks with and without a pooler have cosines around 0 for no other reason.

Centring: mean vectors of a language model share a large part that has nothing to do with a task, so their cosines
crowd near 1. ``library`` takes off the mean over the tasks that are compared, ``base`` what the model without any
prompt gives on the same texts.

Source: Zhong et al. 2022 (PANDA) describe cosine similarity of task embeddings made with soft prompts; which tensor
and which sample they took is not known to us, so the recipe is ours.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from anytune.errors import DataError, SettingsError
from anytune.evaluate.transferability.inputs import cosine, matrix

if TYPE_CHECKING:
    from torch import Tensor

Pooling = Literal["mean", "cls", "pooler", "paper"]
Centring = Literal["none", "library", "base"]


def pooled(hidden: Tensor, mask: Tensor, pooling: Pooling = "mean", pooler: Tensor | None = None) -> Tensor:
    """One vector a row, [b, d] in float32.

    Args:
        hidden: last hidden states [b, T, d] of the text positions, those of a prompt not among them.
        mask: [b, T], not 0 at real text; padding may be at either side and may hold anything, NaN too.
        pooler: the model's pooled output [b, d], if it has one.

    Raises:
        DataError: ``pooling`` is "pooler" and there is none, or a row has no text.
    """
    real = mask.bool()
    if not bool(real.any(dim=1).all()):
        raise DataError("a text without a single token", why="It has no embedding.")
    if pooling in ("pooler", "paper") and pooler is not None:
        return pooler.float()
    if pooling == "pooler":
        raise DataError(
            "pooling=pooler on a model without a pooled output", why="There is nothing to read.", fix="pooling=mean"
        )
    if pooling == "cls":
        first = real.int().argmax(dim=1)
        return hidden[range(len(hidden)), first].float()
    kept = hidden.float().masked_fill(~real[..., None], 0.0)
    return kept.sum(dim=1) / real.sum(dim=1, keepdim=True)


class EmbeddingMean:
    """The mean of rows that come batch by batch: the same for every batch size and, up to 1e-15, every order."""

    def __init__(self) -> None:
        self.rows = 0
        self._sum: np.ndarray | None = None

    def add(self, rows: Any) -> None:
        """Take in ``rows`` [b, d], an array or a tensor."""
        values = matrix(rows, "hidden states")
        self.rows += len(values)
        total = values.sum(axis=0)
        self._sum = total if self._sum is None else self._sum + total

    def mean(self) -> np.ndarray:
        """E [d], float32.

        Raises:
            DataError: there was no row.
        """
        if self._sum is None:
            raise DataError("a task embedding of no rows", why="It is a mean over texts.")
        return np.asarray(self._sum / self.rows, dtype=np.float32)


def task_cosine(source: Any, target: Any) -> float:
    """Cosine of two task embeddings [d], in [-1, 1]; 0 with a warning where one of them is zero.

    Raises:
        DataError: lengths differ, or numbers are not finite.
    """
    return float(
        task_cosines(*(matrix(one, "a task embedding", dimensions=1)[None] for one in (source, target)))[0, 0]
    )


def task_cosines(sources: Any, targets: Any | None = None) -> np.ndarray:
    """Cosines [S, T] of all ``sources`` [S, d] with all ``targets`` [T, d]; without ``targets`` among themselves."""
    left = matrix(sources, "task embeddings")
    right = left if targets is None else matrix(targets, "task embeddings")
    if left.shape[1] != right.shape[1]:
        raise DataError(
            f"task embeddings of width {left.shape[1]} and {right.shape[1]}",
            why="Prompts of different bases live in different spaces.",
        )
    zero = int((~left.any(axis=1)).sum() + (0 if targets is None else (~right.any(axis=1)).sum()))
    if zero:
        warnings.warn(f"{zero} task embeddings are zero: their cosines are 0", stacklevel=2)
    found = cosine(left, right)
    if targets is None:
        found = (found + found.T) / 2  # a product by blocks may leave its two halves a bit apart
        found[np.diag_indices_from(found)] = left.any(axis=1)
    return found


def centred(embeddings: Any, centring: Centring = "none", base: Any | None = None) -> np.ndarray:
    """Embeddings [K, d] with what they have in common taken off.

    Args:
        embeddings: those of the library and, where one is ranked for, the new task's, one a row.
        base: for ``base`` the embeddings [K, d] of the same texts without a prompt; one [d] for all where they were
            all made on the same texts.

    Raises:
        SettingsError: an unknown centring.
        DataError: ``library`` over fewer than three tasks (two centred vectors are opposite whatever they were), or
            ``base`` without its embeddings.
    """
    rows = matrix(embeddings, "task embeddings")
    if centring == "none":
        return rows
    if centring == "library":
        if len(rows) < 3:
            raise DataError(
                f"centring=library over {len(rows)} tasks",
                why="Two vectors less their mean are opposite, whatever they were.",
                fix="centring=none",
            )
        return np.asarray(rows - rows.mean(axis=0))
    if centring != "base":
        raise SettingsError(f"unknown centring '{centring}'", why="Known: none, library, base.", fix="none")
    if base is None:
        raise DataError(
            "centring=base without embeddings of the base alone",
            why="They are what is taken off.",
            fix="centring=none",
        )
    origin = np.atleast_2d(matrix(base, "embeddings of the base", dimensions=np.ndim(base)))
    if origin.shape[1] != rows.shape[1] or len(origin) not in (1, len(rows)):
        raise DataError(f"embeddings {rows.shape} and those of the base {origin.shape}", why="They must go together.")
    return np.asarray(rows - origin)
