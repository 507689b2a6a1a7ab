"""Predictions and scores of a task model on encoded examples."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from anytune.data.batches import Encoded, evaluation_batches
from anytune.engine.loop import Evaluation
from anytune.engine.runtime import Runtime
from anytune.methods.objective import Generation, LanguageModelling
from anytune.methods.step import upcast
from anytune.models.anatomy import Anatomy
from anytune.models.answering import task_output
from anytune.models.language_modelling import NO_LABEL, label_loss, model_inputs


@torch.no_grad()
def predict_logits(
    model: nn.Module, batches: Iterable[tuple[Tensor, dict[str, Any]]], count: int, runtime: Runtime
) -> Tensor:
    """Logits ``[count, outputs]`` in fp32 on the CPU, in the order of the examples.

    Args:
        batches: pairs of (row numbers ``[b]``, batch), in any order; together they name each row once.
    """
    rows: Tensor | None = None
    for numbers, _, logits in _outputs(model, batches, runtime):
        if rows is None:
            rows = torch.full((count, logits.shape[-1]), float("nan"), dtype=logits.dtype)
        rows[numbers] = logits
    assert rows is not None
    return rows


def _outputs(
    model: nn.Module, batches: Iterable[tuple[Tensor, dict[str, Any]]], runtime: Runtime
) -> Iterator[tuple[Tensor, dict[str, Any], Tensor]]:
    """(row numbers, batch on the CPU, logits in fp32 on the CPU) of every batch, in evaluation mode."""
    was_training = model.training
    model.eval()
    autocast = runtime.autocast() or contextlib.nullcontext
    for numbers, batch in batches:
        with autocast():
            logits = task_output(model, runtime.to_device(batch)).logits
        yield numbers, batch, upcast(logits).cpu()
    model.train(was_training)


@dataclass(frozen=True)
class Tags:
    """Tags of words, example by example.

    Attributes:
        indices: per example the index of each word's tag.
        probabilities: per example how sure the model is of each; 0 for words that were cut off.
        loss: mean cross-entropy over the words that were read.
    """

    indices: list[list[int]]
    probabilities: list[list[float]]
    loss: float


@torch.no_grad()
def predict_tags(
    model: nn.Module, encoded: Encoded, words: Sequence[int], batch_size: int, runtime: Runtime, outside: int = 0
) -> Tags:
    """The likeliest tag of every word, in the order of the examples.

    Args:
        encoded: sentences of words, with or without labels.
        words: number of words of each example.
        outside: the tag of words that were cut off or have no token ("O").
    """
    assert encoded.first_pieces is not None
    indices = [[outside] * count for count in words]
    sure = [[0.0] * count for count in words]
    summed, items = 0.0, 0
    for numbers, batch, logits in _outputs(model, evaluation_batches(encoded, batch_size), runtime):
        if "labels" in batch:
            chosen = batch["labels"] != NO_LABEL
            summed += label_loss(logits[chosen], batch["labels"][chosen], "sum").item()
            items += int(chosen.sum())
        best = logits.softmax(dim=-1).max(dim=-1)
        for row, tags, values in zip(numbers.tolist(), best.indices.tolist(), best.values.tolist(), strict=True):
            for word, place in enumerate(encoded.first_pieces[row]):
                if place >= 0:
                    indices[row][word], sure[row][word] = tags[place], values[place]
    return Tags(indices, sure, summed / max(1, items))


@torch.no_grad()
def response_losses(
    model: nn.Module, objective: Generation, encoded: Encoded, batch_size: int, runtime: Runtime
) -> Tensor:
    """Per example the summed loss of its response in nats, and its tokens: ``[examples, 2]`` fp64 on the CPU.

    The mean loss of a split, whose exp is its perplexity, is the ratio of the two columns' sums.
    """
    found = torch.zeros(len(encoded), 2, dtype=torch.float64)
    was_training = model.training
    model.eval()
    autocast = runtime.autocast() or contextlib.nullcontext
    for numbers, batch in evaluation_batches(encoded, batch_size):
        with autocast():
            output = objective.forward(model, runtime.to_device(batch))
        losses = label_loss(output.logits, output.labels, "none").double().cpu()
        labelled = batch["labels"] != NO_LABEL
        tokens = (labelled[:, 1:] if encoded.layout == "next" else labelled).sum(dim=1).tolist()
        for row, values in zip(numbers.tolist(), losses.split(tokens), strict=True):
            found[row, 0], found[row, 1] = values.sum(), len(values)
    model.train(was_training)
    return found


@torch.no_grad()
def pooled_features(model: nn.Module, anatomy: Anatomy, encoded: Encoded, batch_size: int, runtime: Runtime) -> Tensor:
    """The mean of the last hidden states over each text's own tokens: ``[texts, width]`` fp32 on the CPU.

    Args:
        model: a task or pre-training model, or a PEFT wrapping of one; of an encoder-decoder the encoder is read.
        encoded: texts, with or without labels.
    """
    backbone: Any = anatomy.backbone(model)
    if anatomy.encoder_decoder:
        backbone = backbone.get_encoder()
    rows: list[Tensor | None] = [None] * len(encoded)
    was_training = model.training
    model.eval()
    autocast = runtime.autocast() or contextlib.nullcontext
    for numbers, batch in evaluation_batches(encoded, batch_size):
        moved = runtime.to_device(batch)
        with autocast():
            hidden = backbone(**model_inputs(backbone, moved))[0]
        mask = moved["attention_mask"].unsqueeze(-1)
        means = (upcast(hidden) * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        for row, values in zip(numbers.tolist(), means.cpu(), strict=True):
            rows[row] = values
    model.train(was_training)
    return torch.stack([row for row in rows if row is not None])


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
        if not np.isfinite(loss):  # no score over such predictions; the loss says what happened
            return Evaluation({}, loss, better=float("nan"))
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
