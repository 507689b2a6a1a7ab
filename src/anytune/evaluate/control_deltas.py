"""Deltas that stand in for an outdated one, to tell what of its gain is its own: pure functions on deltas.

* ``random``: noise of its size. What stays of a gain is that of any start as far from the base.
* ``wrong task``: the body of a delta that was tuned on another task. What stays is that of having been tuned at all.
* ``mean``: the mean of the bodies of several other tasks. What stays is what tasks have in common.

All three keep the head of the delta they stand in for, so that they differ from it in the body alone: a head with
other labels could not be read, and a fresh one would hide the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from anytune.errors import DeltaError
from anytune.models.adapters import MADE_BY_PEFT, AdapterDelta
from anytune.models.delta import FullDelta

#: Kinds of stand-ins.
CONTROLS = ("random", "wrong-task", "mean")
AnyDelta = FullDelta | AdapterDelta
Delta = TypeVar("Delta", FullDelta, AdapterDelta)
#: The two factors of a LoRA, by the part of a tensor's name that says which it is.
FACTORS = {"lora_A": "lora_B", "lora_embedding_A": "lora_embedding_B"}
#: Settings that a LoRA's product is scaled by, its rank beside them.
SCALINGS = ("lora_alpha", "use_rslora", "alpha_pattern")


def random_delta(own: Delta, seed: int) -> Delta:
    """Noise of the size of ``own``: each tensor's norm is its own, and what it left alone is left alone.

    A full difference gets Gaussian noise where it is not zero, a soft prompt Gaussian values, both scaled to the norm
    of each tensor. The factors of a LoRA are drawn anew and scaled so that each product has its norm.

    Args:
        seed: of a generator of its own.

    Raises:
        DeltaError: an adapter that is neither LoRA nor a soft prompt.
    """
    draw = torch.Generator().manual_seed(seed)
    if isinstance(own, FullDelta):
        noise = {name: _noise(own.difference[name], draw) for name in sorted(own.difference)}
        return replace(own, difference=noise, corrections={})
    made = dict(own.tensors)
    if _kind(own) == "LORA":
        for first, second in _pairs(own):
            a, b = own.tensors[first], own.tensors[second]
            made[first], other = (torch.randn(one.shape, generator=draw).to(one.dtype) for one in (a, b))
            drawn, wanted = product_norm(made[first], other), product_norm(a, b)
            made[second] = (other.double() * (wanted / drawn if drawn else 0.0)).to(b.dtype)
    else:
        for name in _body(own):
            made[name] = _noise(own.tensors[name], draw)
    return replace(own, tensors=made)


def with_body_of(own: Delta, other: Delta) -> Delta:
    """The body of ``other`` with the head of ``own``.

    Raises:
        DeltaError: they are of different form, or their bodies have other names or shapes.
    """
    _check_alike(own, other)
    if isinstance(own, FullDelta):
        assert isinstance(other, FullDelta)
        return replace(own, difference=dict(other.difference), corrections={})
    assert isinstance(other, AdapterDelta)
    return replace(own, tensors={**own.tensors, **{name: other.tensors[name] for name in _body(other)}})


def mean_delta(own: Delta, others: Sequence[Delta]) -> Delta:
    """The mean of the bodies of ``others`` with the head of ``own``.

    Products, not factors, are averaged of LoRAs: the factors of n of rank r, set side by side, are one of rank n * r
    with the same scaling, and its product is the mean of theirs exactly.

    Raises:
        DeltaError: none is given, or they cannot be averaged (other form, names, shapes, or LoRA settings).
    """
    if not others:
        raise DeltaError("no deltas to average", fix="at least one other task")
    for other in others:
        _check_alike(own, other)
    if isinstance(own, FullDelta):
        names = sorted({name for other in others for name in other.difference})
        return replace(
            own, difference={name: _mean([other.difference.get(name) for other in others]) for name in names},
            corrections={},
        )  # fmt: skip
    made = {**own.tensors}
    if _kind(own) != "LORA":
        made |= {name: _mean([other.tensors[name] for other in others]) for name in _body(own)}
        return replace(own, tensors=made)
    for first, second in _pairs(own):
        made[first] = torch.cat([other.tensors[first] for other in others], dim=0)
        made[second] = torch.cat([other.tensors[second] for other in others], dim=1) / len(others)
    return AdapterDelta(_of_rank(own.config, len(others)), made)


def body_norm(delta: AnyDelta) -> float:
    """The Frobenius norm of what a delta adds: its difference, a LoRA's scaled products, a prompt's values."""
    if isinstance(delta, FullDelta):
        return math.sqrt(sum(float(one.double().square().sum()) for one in delta.difference.values()))
    if _kind(delta) != "LORA":
        return math.sqrt(sum(float(delta.tensors[name].double().square().sum()) for name in _body(delta)))
    rank, alpha = delta.config.get("r", 8), delta.config.get("lora_alpha", 8)
    scaling = alpha / (math.sqrt(rank) if delta.config.get("use_rslora") else rank)
    products = [product_norm(delta.tensors[first], delta.tensors[second]) for first, second in _pairs(delta)]
    return scaling * math.sqrt(sum(norm**2 for norm in products))


def product_norm(a: Tensor, b: Tensor) -> float:
    """The Frobenius norm of ``b @ a``, by Gram matrices: nothing of the product's size is made.

    Args:
        a: [rank, in].
        b: [out, rank].
    """
    left, right = b.double(), a.double()
    return math.sqrt(max(0.0, float(((left.T @ left) * (right @ right.T)).sum())))


def _noise(own: Tensor, draw: torch.Generator) -> Tensor:
    noise = torch.randn(own.shape, generator=draw, dtype=torch.float64) * (own != 0)
    size = float(noise.norm())
    return (noise * (float(own.double().norm()) / size if size else 0.0)).to(own.dtype)


def _mean(tensors: Sequence[Tensor | None]) -> Tensor:
    """Mean in fp64, rounded once; None is a difference of zero."""
    there = [one for one in tensors if one is not None]
    total = sum((one.double() for one in there), torch.zeros(there[0].shape, dtype=torch.float64))
    return (total / len(tensors)).to(there[0].dtype)


def _kind(adapter: AdapterDelta) -> str:
    kind = str(adapter.config.get("peft_type"))
    if kind != "LORA" and not any("prompt_embeddings" in name for name in adapter.tensors):
        raise DeltaError(
            f"no stand-in is known for a {kind} adapter",
            why="Noise of its size, or a mean, would mean something else.", fix="LoRA, a soft prompt, or a full delta",
        )  # fmt: skip
    return kind


def _body(adapter: AdapterDelta) -> list[str]:
    """Names of what PEFT made; all else is a head or a copy of the base's."""
    return sorted(name for name in adapter.tensors if any(part.startswith(MADE_BY_PEFT) for part in name.split(".")))


def _pairs(adapter: AdapterDelta) -> list[tuple[str, str]]:
    pairs = []
    for name in _body(adapter):
        for first, second in FACTORS.items():
            parts = name.split(".")
            if first in parts:
                pairs.append((name, ".".join(second if part == first else part for part in parts)))
    return pairs


def _of_rank(config: Mapping[str, object], times: int) -> dict[str, object]:
    """The config of ``times`` as many ranks with the same scaling."""
    patterns = [key for key in ("rank_pattern", "alpha_pattern") if config.get(key)]
    if patterns or config.get("use_dora"):
        raise DeltaError(
            f"LoRAs with {', '.join(patterns) or 'DoRA'} cannot be averaged", why="Their modules scale differently.",
            fix="LoRAs of one rank",
        )  # fmt: skip
    rank, alpha = config.get("r", 8), config.get("lora_alpha", 8)
    assert isinstance(rank, int)
    assert isinstance(alpha, int | float)
    return {
        **config,
        "r": rank * times,
        "lora_alpha": alpha * (math.sqrt(times) if config.get("use_rslora") else times),
    }


def _check_alike(own: AnyDelta, other: AnyDelta) -> None:
    what = ""
    if isinstance(own, FullDelta) != isinstance(other, FullDelta):
        what = "one is a full difference, one an adapter"
    elif isinstance(own, FullDelta) and isinstance(other, FullDelta):
        what = "their bodies differ in names or shapes" if own.body != other.body else ""
    elif isinstance(own, AdapterDelta) and isinstance(other, AdapterDelta):
        if _kind(own) != _kind(other) or any((own.config.get(key) or None) != (other.config.get(key) or None)
                                             for key in SCALINGS):  # fmt: skip
            what = "their kinds or scalings differ"
        elif {name: own.tensors[name].shape for name in _body(own)} != {
            name: other.tensors[name].shape for name in _body(other)
        }:
            what = "their bodies differ in names or shapes"
    if what:
        raise DeltaError(
            f"these deltas cannot stand in for each other: {what}", why="A stand-in has the form of the delta."
        )
