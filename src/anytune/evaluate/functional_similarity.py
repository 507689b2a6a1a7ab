"""Functional similarity: do two models' attention heads look at the same words, and do their layers say the same?

For head h of layer l, the mean over texts and real query tokens i of

    js     = 1 - JS(p_i, q_i) / log 2       Jensen-Shannon of the two models' attention rows over real keys; 1 is equal
    cosine = p_i . q_i / (|p_i| |q_i|)

as an L x H matrix each. Attention rows of any two heads have something in common (separators, neighbours), so beside
them stands what heads of one layer give that do not belong together: head h of one model with head h + s of the other
(the shuffled null). Layers are compared by linear CKA of the hidden states of real tokens (Kornblith et al. 2019),

    CKA(X, Y) = ||Xc' Yc||_F^2 / (||Xc' Xc||_F ||Yc' Yc||_F)       Xc: [tokens, width], mean taken off

which no rotation or scaling of the features changes. The sums grow batch by batch, in fp64.

The fast attention functions do not give their weights: for the time of the comparison both models attend by the plain
one ("eager"), and by their own again afterwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from anytune import compat
from anytune.engine.runtime import Runtime
from anytune.errors import DataError, DeltaError
from anytune.methods.step import upcast
from anytune.models.anatomy import Anatomy
from anytune.models.language_modelling import model_inputs

#: Shifts of heads against each other that make the null; each costs what the comparison itself costs.
SHUFFLES = 3
_LOG2 = float(np.log(2))


@dataclass(frozen=True)
class Similarity:
    """How alike two models are on the same texts.

    Attributes:
        js, cosine: of each head, ``[layers, heads]``; 1 is equal.
        null_js, null_cosine: of heads of the same layer that do not belong together; NaN in layers of one head.
        cka: of the embeddings and of each layer, ``[layers + 1]``; NaN where a model's states do not vary.
        texts, tokens: how many were compared.
    """

    js: np.ndarray
    cosine: np.ndarray
    null_js: np.ndarray
    null_cosine: np.ndarray
    cka: np.ndarray
    texts: int
    tokens: int

    @property
    def above_null(self) -> float | None:
        """Share of heads that are more like their own counterpart (js) than like the layer's others; None: no null."""
        there = np.isfinite(self.null_js)
        return float((self.js > self.null_js)[there].mean()) if there.any() else None

    def record(self) -> dict[str, Any]:
        """Plain values for JSON: the matrices as lists, their means beside them."""
        matrices = {name: getattr(self, name) for name in ("js", "cosine", "null_js", "null_cosine", "cka")}
        return {
            "texts": self.texts, "tokens": self.tokens, "above_null": self.above_null,
            **{f"mean_{name}": _mean(values) for name, values in matrices.items()},
            **{name: _listed(values) for name, values in matrices.items()},
        }  # fmt: skip


@torch.no_grad()
def functional_similarity(
    first: nn.Module,
    second: nn.Module,
    batches: Iterable[tuple[Tensor, dict[str, Any]]],
    anatomy: Anatomy,
    runtime: Runtime,
    *,
    shuffles: int = SHUFFLES,
    seed: int = 0,
) -> Similarity:
    """Compare two models of one kind, depth and number of heads.

    Args:
        first, second: task or pre-training models, or PEFT wrappings; left in the mode they were in. Of an
            encoder-decoder the encoder is read.
        batches: pairs of (row numbers [b], batch), as ``data.batches.evaluation_batches`` gives them; both models read
            the same tokens.
        anatomy: of both.
        shuffles: how many shifts the null is the mean of, at most heads - 1.
        seed: which shifts are drawn.

    Raises:
        DataError: there is no text.
        DeltaError: numbers of layers or heads differ, or a model gives no attention weights.
    """
    sums: _Sums | None = None
    with _reading(first), _reading(second):
        for numbers, batch in batches:
            moved = runtime.to_device(batch)
            left, right = (_look(model, anatomy, moved) for model in (first, second))
            if sums is None:
                sums = _Sums.of(left, right, shuffles, seed)
            sums.add(left, right, moved["attention_mask"].bool(), len(numbers))
    if sums is None:
        raise DataError("there is no text to compare the models on", fix="--task FILE")
    return sums.found()


def head_similarity(first: Tensor, second: Tensor, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """(js, cosine) of two models' attention, summed over valid query rows: ``[heads]`` fp64 each.

    Args:
        first, second: attention weights ``[b, heads, queries, keys]``, rows that add up to one.
        queries: which queries count, ``[b, queries]`` bool.
        keys: which keys are real, ``[b, keys]`` bool.
    """
    real = keys[:, None, None, :]
    left, right = (torch.where(real, upcast(one), 0.0) for one in (first, second))
    left, right = (one / one.sum(dim=-1, keepdim=True).clamp(min=1e-12) for one in (left, right))
    middle = (left + right) / 2
    js = _entropy(middle) - (_entropy(left) + _entropy(right)) / 2
    similar = 1 - js.clamp(min=0) / _LOG2
    lengths = torch.linalg.vector_norm(left, dim=-1) * torch.linalg.vector_norm(right, dim=-1)
    cosine = (left * right).sum(dim=-1) / lengths.clamp(min=1e-12)
    similar, cosine, counted = _wide(similar), _wide(cosine), queries[:, None, :]
    summed = (torch.where(counted.to(one.device), one, 0.0).sum(dim=(0, 2)).cpu() for one in (similar, cosine))
    return next(summed), next(summed)


def linear_cka(first: Tensor, second: Tensor) -> float:
    """Linear CKA of the features of the same items, ``[n, width]`` and ``[n, width']``; NaN if either never varies."""
    moments = _Moments()
    moments.add(first, second)
    return moments.cka()


def _wide(tensor: Tensor) -> Tensor:
    """In fp64; on the CPU where the device has none."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def _entropy(shares: Tensor) -> Tensor:
    return -torch.special.xlogy(shares, shares).sum(dim=-1)


@dataclass
class _Moments:
    """Sums of two models' features over tokens: enough for linear CKA."""

    n: int = 0
    means: Any = None
    products: Any = None

    def add(self, left: Tensor, right: Tensor) -> None:
        x, y = _wide(left), _wide(right)
        means = (x.sum(dim=0), y.sum(dim=0))
        products = (x.T @ y, x.T @ x, y.T @ y)
        self.n += len(x)
        self.means = means if self.means is None else tuple(a + b for a, b in zip(self.means, means, strict=True))
        self.products = (
            products if self.products is None else tuple(a + b for a, b in zip(self.products, products, strict=True))
        )

    def cka(self) -> float:
        x, y = self.means
        both, own, other = (
            product - torch.outer(left, right) / self.n
            for product, left, right in zip(self.products, (x, x, y), (y, x, y), strict=True)
        )
        scale = float(torch.linalg.matrix_norm(own) * torch.linalg.matrix_norm(other))
        return float(both.square().sum()) / scale if scale > 0 else float("nan")


@dataclass(frozen=True)
class _Seen:
    """What one model made of a batch: attention [b, heads, queries, keys] and hidden states [b, n, width] by layer."""

    attention: list[Tensor]
    hidden: list[Tensor]


@dataclass
class _Sums:
    """Sums over the texts so far."""

    shifts: list[int]
    own: Tensor
    null: Tensor
    layers: list[_Moments]
    rows: float = 0.0
    texts: int = 0
    tokens: int = 0

    @classmethod
    def of(cls, left: _Seen, right: _Seen, shuffles: int, seed: int) -> _Sums:
        shapes = [[attention.shape[1] for attention in seen.attention] for seen in (left, right)]
        if shapes[0] != shapes[1] or len(left.hidden) != len(right.hidden):
            sizes = [f"{len(shape)} layers of {shape[0]} heads" for shape in shapes]
            raise DeltaError(
                f"one model has {sizes[0]}, the other {sizes[1]}",
                why="Which head belongs to which cannot be said.",
                fix="two bases of one shape",
            )
        layers, heads = len(shapes[0]), max(shapes[0])
        if min(shapes[0]) != heads:
            raise DeltaError("the layers have different numbers of heads", why="They make no matrix.")
        every = np.random.default_rng(seed).permutation(np.arange(1, heads))[: max(0, shuffles)]
        zeros = torch.zeros(layers, 2, heads, dtype=torch.float64)
        return cls([int(one) for one in every], zeros, zeros.clone(), [_Moments() for _ in left.hidden])

    def add(self, left: _Seen, right: _Seen, mask: Tensor, texts: int) -> None:
        for layer, (one, other) in enumerate(zip(left.attention, right.attention, strict=True)):
            if one.shape != other.shape:
                raise DeltaError(
                    f"attention of {list(one.shape)} and {list(other.shape)}",
                    why="One of the models reads more places than the other (a prompt of another length).",
                )
            queries, keys = (_widened(mask, width) for width in one.shape[2:])
            self.own[layer] += torch.stack(head_similarity(one, other, queries, keys))
            for shift in self.shifts:
                found = head_similarity(one, other.roll(-shift, dims=1), queries, keys)
                self.null[layer] += torch.stack(found) / len(self.shifts)
        self.rows += float(_widened(mask, left.attention[0].shape[2]).sum())
        self.texts += texts
        self.tokens += int(mask.sum())
        for moments, one, other in zip(self.layers, left.hidden, right.hidden, strict=True):
            real = _widened(mask, one.shape[1])
            moments.add(one[real], other[_widened(mask, other.shape[1])])

    def found(self) -> Similarity:
        own = (self.own / self.rows).numpy()
        null = (self.null / self.rows).numpy() if self.shifts else np.full(own.shape, np.nan)
        cka = np.array([moments.cka() for moments in self.layers])
        return Similarity(own[:, 0], own[:, 1], null[:, 0], null[:, 1], cka, self.texts, self.tokens)


def _widened(mask: Tensor, width: int) -> Tensor:
    """[b, n] -> [b, width]: the places of a prompt, which are in front, are real."""
    return functional.pad(mask, (width - mask.shape[1], 0), value=True)


def _look(model: nn.Module, anatomy: Anatomy, batch: dict[str, Any]) -> _Seen:
    backbone: Any = anatomy.backbone(model)
    if anatomy.encoder_decoder:
        backbone = backbone.get_encoder()
    output = backbone(**model_inputs(backbone, batch), output_attentions=True, output_hidden_states=True)
    attention = [one for one in output.attentions or () if one is not None]
    if not attention:
        raise DeltaError(
            f"{type(backbone).__name__} gives no attention weights",
            why="This kind of model attends in a way that does not show them.",
        )
    return _Seen(attention, list(output.hidden_states))


@contextlib.contextmanager
def _reading(model: Any) -> Iterator[None]:
    """Inside, the model is in evaluation mode and attends by the plain function, whose weights can be seen."""
    was_training = model.training
    model.eval()
    try:
        with compat.eager_attention(model):
            yield
    finally:
        model.train(was_training)


def _mean(values: np.ndarray) -> float | None:
    there = values[np.isfinite(values)]
    return float(there.mean()) if there.size else None


def _listed(values: np.ndarray) -> Any:
    if values.ndim > 1:
        return [_listed(row) for row in values]
    return [round(float(value), 6) if np.isfinite(value) else None for value in values]
