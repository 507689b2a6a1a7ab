"""How far two models' hidden states of the same text agree: losses on tensors that hold together or push apart.

Rows are vectors: one per text (pooled), or one per token. ``current`` comes with a gradient, ``previous`` is a target
that none flows into. Each loss is a mean over rows with weights that add up to one, so that micro-batches add up as
the loop weights them; where a loss looks at pairs of rows (``gram``, ``coda``) or takes a mean off first
(``centred``), a batch cut into parts is another batch, and no longer the sum of its parts. All is computed in fp32 or
wider.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from anytune.errors import MethodError
from anytune.methods.consistency import example_weights, token_weights
from anytune.methods.protocol import Batch
from anytune.methods.step import upcast

Rows = Literal["token", "text"]
Agreement = Literal["cosine", "mse"]
Disagreement = Literal["cos2", "abs", "dot", "gram", "coda"]
#: below this a vector has no direction
_NO_LENGTH = 1e-12


def unit(vectors: Tensor) -> Tensor:
    """``x / ||x||`` for each row of ``[..., width]``; a vector of zeros stays one, and its gradient is zero."""
    vectors = upcast(vectors)
    # the gradient of a norm at 0 is set to 0 by torch; the division must not make a huge one of it
    norms = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    there = norms > _NO_LENGTH
    return torch.where(there, vectors / torch.where(there, norms, 1.0), 0.0)


def pooled_rows(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean over each text's real tokens, ``[b, width]`` in fp32 or wider; zeros for a text without any.

    Args:
        hidden: ``[b, n, width]``.
        mask: 1 for real tokens, ``[b, n]``.
    """
    hidden = upcast(hidden)
    real = mask.to(hidden.dtype)[..., None]
    # a padded position may hold anything, NaN included
    return torch.where(real > 0, hidden, 0.0).sum(dim=1) / real.sum(dim=1).clamp(min=1)


def vectors_of(hidden: Tensor, mask: Tensor, batch: Batch, per: Rows, causal: bool) -> tuple[Tensor, Tensor]:
    """Rows to compare [m, width] and their weights [m], which add up to one: of real tokens, or of texts.

    Args:
        hidden: [b, n, width].
        mask: 1 for real tokens, [b, n].
        batch: whose labels say what each text weighs in a mean over items.
        per: "token" or "text" (its mean over real tokens).
        causal: see ``consistency.example_weights``.
    """
    dtype = upcast(hidden).dtype
    if per == "text":
        return pooled_rows(hidden, mask), example_weights(batch, causal, dtype)
    real = mask.bool()
    return hidden[real], token_weights(batch, mask, causal, dtype)[real]


def centred(vectors: Tensor, weights: Tensor | None = None) -> Tensor:
    """Rows ``[n, width]`` less their weighted mean.

    Hidden states of any text share a large common part, and with it any two of them look alike; without it their
    cosine says something about the text. The one row of a batch of one becomes zeros.
    """
    vectors = upcast(vectors)
    return vectors - (_share(vectors, weights)[:, None] * vectors).sum(dim=0)


def agreement(current: Tensor, previous: Tensor, form: Agreement = "cosine", weights: Tensor | None = None) -> Tensor:
    """What a model loses by giving other vectors than ``previous``: a scalar, 0 where they are equal bit for bit.

    - ``cosine``: ``1 - cos``, computed as half the squared distance of the unit vectors, which is exactly 0, with a
      gradient of exactly 0, for equal ones. Between 0 and 2; a vector of zeros is at 1/2 from any other.
    - ``mse``: ``||u - u'||^2 / width``.

    Args:
        current: ``[n, width]``.
        previous: ``[n, width]``; no gradient flows into it.
        form: which.
        weights: of the rows, ``[n]``, adding up to one (or all 0, which gives 0); None: each 1 / n.

    Raises:
        MethodError: shapes differ.
    """
    current, previous = _checked(current, previous)
    if form == "mse":
        per_row = (current - previous).square().mean(dim=-1)
    else:
        per_row = (unit(current) - unit(previous)).square().sum(dim=-1) / 2
    return (per_row * _share(current, weights)).sum()


def disagreement(
    current: Tensor, previous: Tensor, form: Disagreement = "cos2", weights: Tensor | None = None
) -> Tensor:
    """What a model loses by giving vectors that point where ``previous`` does: a scalar.

    - ``cos2``: ``cos^2`` of each row with its own; between 0 and 1. Equal rows are a maximum: it gives 1 there and a
      gradient of 0, so it acts only once something else has moved the model.
    - ``abs``: ``|cos|``, whose gradient is 0 there as well.
    - ``dot``: ``(v . v' / width)^2``, without normalisation: it has a gradient at once, and shrinking v also helps.
    - ``gram``: the mean of ``cos(v_b, v'_c)^2`` over all pairs of rows: with more than one row it has a gradient at
      once, as a row is pushed away from the others' old vectors too.
    - ``coda``: the mean over all entries of ``(V V'^T - I)^2`` with the vectors as they are: 0 for orthonormal rows
      that stayed where they were, 1 / n for n orthonormal rows orthogonal to all old ones. It so holds each row to its
      own old vector and pushes it from the others' (named after CODA-Prompt's penalty).

    Args and errors as ``agreement``; ``coda`` counts every row once, whatever ``weights`` say.
    """
    current, previous = _checked(current, previous)
    share = _share(current, weights)
    if form == "coda":
        return _coda(current, previous)
    if form == "gram":
        return (_products(unit(current), unit(previous)).square() * share[:, None] * share).sum()
    if form == "dot":
        return (((current * previous).sum(dim=-1) / current.shape[-1]).square() * share).sum()
    cosines = (unit(current) * unit(previous)).sum(dim=-1)
    return ((cosines.abs() if form == "abs" else cosines.square()) * share).sum()


def _products(left: Tensor, right: Tensor) -> Tensor:
    with torch.autocast(left.device.type, enabled=False):  # which would compute them in half precision
        return left @ right.T


def _coda(current: Tensor, previous: Tensor) -> Tensor:
    products = _products(current, previous)
    ones = torch.eye(len(current), dtype=products.dtype, device=products.device)
    return (products - ones).square().sum() / max(1, products.numel())


def effective_number(weights: Tensor) -> Tensor:
    """How many components are in use: ``exp(entropy)`` of the mean share of each, a scalar between 1 and components.

    Args:
        weights: of components, of any sign, ``[b, components]``; a component's share of a text is its weight's size.
    """
    share = _sizes(weights).mean(dim=0)
    return _entropy(share / share.sum().clamp(min=_NO_LENGTH)).exp()


def weight_entropy(weights: Tensor) -> Tensor:
    """The entropy in nats of each text's shares ``|w| / sum |w|``, the mean over texts; a scalar.

    Near log(components) for each text but with few effective components, or the other way round, say different things:
    see ``effective_number``.
    """
    return _entropy(_sizes(weights)).mean()


def _sizes(weights: Tensor) -> Tensor:
    sizes = upcast(weights).abs()
    return sizes / sizes.sum(dim=-1, keepdim=True).clamp(min=_NO_LENGTH)


def _entropy(shares: Tensor) -> Tensor:
    return -torch.special.xlogy(shares, shares).sum(dim=-1)


def _share(vectors: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return vectors.new_full((len(vectors),), 1 / max(1, len(vectors)))
    return weights.to(vectors.dtype)


def _checked(current: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
    if current.shape != previous.shape or current.ndim != 2:
        raise MethodError(
            f"hidden states of the shapes {list(current.shape)} and {list(previous.shape)}",
            why="They are compared row by row: [n, width] both.",
        )
    return upcast(current), upcast(previous.detach())


AGREEMENTS: tuple[str, ...] = get_args(Agreement)
DISAGREEMENTS: tuple[str, ...] = get_args(Disagreement)
