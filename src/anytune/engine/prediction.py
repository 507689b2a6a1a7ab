"""Predictions and scores of a task model on encoded examples."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from anytune.engine.loop import Evaluation
from anytune.engine.runtime import Runtime
from anytune.methods.objective import LanguageModelling, model_inputs
from anytune.methods.step import upcast


@torch.no_grad()
def predict_logits(
    model: nn.Module, batches: Iterable[tuple[Tensor, dict[str, Any]]], count: int, runtime: Runtime
) -> Tensor:
    """Logits ``[count, outputs]`` in fp32 on the CPU, in the order of the examples.

    Args:
        batches: pairs of (row numbers ``[b]``, batch), in any order; together they name each row once.
    """
    was_training = model.training
    model.eval()
    autocast = runtime.autocast() or contextlib.nullcontext
    rows: Tensor | None = None
    for numbers, batch in batches:
        with autocast():
            logits = model(**model_inputs(runtime.to_device(batch))).logits
        logits = upcast(logits).cpu()
        if rows is None:
            rows = torch.full((count, logits.shape[-1]), float("nan"), dtype=logits.dtype)
        rows[numbers] = logits
    model.train(was_training)
    assert rows is not None
    return rows


def probabilities(logits: Tensor) -> Tensor:
    """Softmax over classes, ``[n, classes]``."""
    return functional.softmax(logits, dim=-1)


def task_evaluation(
    gold: np.ndarray,
    kind: str,
    score: Callable[[np.ndarray, np.ndarray], dict[str, float]],
    logits: Tensor,
) -> Evaluation:
    """Scores and loss of logits against gold labels.

    Args:
        gold: class numbers ``[n]`` or real labels ``[n]``.
        score: (predicted, gold) -> metrics, main metric first.
    """
    if kind == "classification":
        loss = functional.cross_entropy(logits, torch.from_numpy(gold)).item()
        scores = score(logits.argmax(dim=-1).numpy(), gold)
    else:
        predicted = logits.squeeze(-1)
        loss = functional.mse_loss(predicted, torch.from_numpy(gold).to(predicted.dtype)).item()
        scores = score(predicted.numpy(), gold)
    return Evaluation(scores, loss, better=next(iter(scores.values())))


@torch.no_grad()
def language_loss(
    model: nn.Module, objective: LanguageModelling, batches: Iterable[dict[str, Any]], runtime: Runtime
) -> float:
    """Mean loss in nats over all scored tokens of the batches."""
    was_training = model.training
    model.eval()
    autocast = runtime.autocast() or contextlib.nullcontext
    summed, items = 0.0, 0
    for batch in batches:
        moved = runtime.to_device(batch)
        with autocast():
            loss = objective.terms(objective.forward(model, moved), moved)["loss"]
        summed += loss.item() * batch["num_items"]
        items += batch["num_items"]
    model.train(was_training)
    return summed / max(1, items)
