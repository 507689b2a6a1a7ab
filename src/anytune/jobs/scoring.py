"""Score a model on a split of a task, whatever the kind of task: answers, metrics, the value that selects weights.

What is done with a split:

    classification, regression   logits of every example
    token-classification         a tag for every word; words that were cut off count as "O"
    generation                   the mean loss of the responses, one forward pass; greedy responses only where the
                                 task's metric is exact_match, which needs them

Decoding costs a forward pass per token, so while a run trains only the first ``DECODED_WHILE_TRAINING`` responses are
decoded; final scores are over the whole split. Exact match and F1 over entities are the same at many steps (0 at
first), so among steps of equal score the one with the lower loss is the better one.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anytune.data.batches import Encoded, encode_task, evaluation_batches
from anytune.data.tasks import Example, Task
from anytune.engine.generation import GreedyDecoding, longest_response, prompts_of
from anytune.engine.loop import Evaluation
from anytune.engine.prediction import Tags, predict_logits, predict_tags, response_losses, task_evaluation
from anytune.engine.runtime import Runtime
from anytune.evaluate.scores import number
from anytune.methods.objective import Generation
from anytune.metrics import METRICS, score
from anytune.models.base import Base

#: Responses decoded at each look at validation while a run trains.
DECODED_WHILE_TRAINING = 64
#: Tasks that stay tokenised inside :func:`encodings_kept`: those of a target with as many seeds.
TASKS_KEPT = 16


@dataclass
class EncodedTask:
    """The three splits of a task as token ids; made once and shared by the runs of a job."""

    train: Encoded
    validation: Encoded
    test: Encoded

    @classmethod
    def of(cls, task: Task, base: Base, max_length: int) -> EncodedTask:
        """Tokenise all splits (truncated at ``max_length`` tokens) as the base reads them."""
        kept = _KEPT.get() if base.identity.vocabulary else None
        key = (task.content, base.identity.vocabulary, max_length, base.anatomy.encoder_decoder)
        if kept is not None and key in kept:
            kept.move_to_end(key)
            return kept[key]
        tokenizer = base.tokenizer()
        parts = (
            encode_task(rows, tokenizer, max_length, task.kind, base.anatomy.encoder_decoder)
            for rows in (task.train, task.validation, task.test)
        )
        made = cls(*parts)
        if kept is not None:
            kept[key] = made
            while len(kept) > TASKS_KEPT:
                kept.popitem(last=False)
        return made


_KEPT: ContextVar[OrderedDict[Any, EncodedTask] | None] = ContextVar("encodings_kept", default=None)


@contextmanager
def encodings_kept() -> Iterator[None]:
    """Inside, tasks stay tokenised: commands of a grid that follow each other and read the same rows share them."""
    before = _KEPT.set(OrderedDict())
    try:
        yield
    finally:
        _KEPT.reset(before)


@dataclass(frozen=True)
class Responses:
    """Answers to prompts: ``losses`` [n, 2] (summed nats, tokens), ``texts`` where they were decoded."""

    losses: Tensor
    texts: list[str] | None


#: What a model answered to a split: logits [n, outputs], tags, or responses.
Answers = Tensor | Tags | Responses


@dataclass(kw_only=True)
class Scorer:
    """Scores models on one split of a task."""

    task: Task
    encoded: Encoded
    split: str
    base: Base
    batch_size: int
    runtime: Runtime

    @cached_property
    def tokenizer(self) -> Any:
        """The base's, read once."""
        return self.base.tokenizer()

    @property
    def rows(self) -> Sequence[Example]:
        """The examples of the split."""
        return getattr(self.task, self.split)

    def __call__(self, model: nn.Module, *, decoded: int | None = None) -> tuple[Evaluation, Answers]:
        """Scores and answers of a model.

        Args:
            model: a task model, or a PEFT wrapping of one; left in the mode it was in.
            decoded: of a generation task decode so many responses at most; None decodes all.
        """
        if self.task.kind == "token-classification":
            found, answers = self._tags(model)
        elif self.task.kind == "generation":
            return self._responses(model, decoded)
        else:
            gold = gold_labels(self.task, self.split)
            batches = evaluation_batches(self.encoded, self.batch_size)
            answers = predict_logits(model, batches, len(gold), self.runtime)
            found = task_evaluation(gold, self.task.kind, self._score, answers)
        if not METRICS[self.task.metric].higher_is_better:
            found = replace(found, better=-found.better)
        return found, answers

    def is_whole(self, decoded: int) -> bool:
        """Whether a look that decodes so many responses says all about the split."""
        return self.task.metric != "exact_match" or decoded >= len(self.rows)

    def among(self, answers: Answers, kept: np.ndarray) -> float | None:
        """The main metric of some of the answers: ``kept`` [m] are numbers of rows of the split.

        None where it is undefined among them, or the responses that it needs were not decoded.
        """
        if isinstance(answers, Responses):
            return self._of_responses(answers, kept)
        if isinstance(answers, Tags):
            gold: list[Any] = [self.rows[place].label for place in kept]
            found = score(
                self.task.metric, [answers.indices[place] for place in kept], gold, label_names=self.task.label_names
            )
            return number(found.get(self.task.metric))
        labels = gold_labels(self.task, self.split)[kept]
        said = task_evaluation(labels, self.task.kind, self._score, answers[torch.from_numpy(kept)])
        return number(said.scores.get(self.task.metric))

    def _of_responses(self, answers: Responses, kept: np.ndarray) -> float | None:
        losses = answers.losses[torch.from_numpy(kept)]
        mean, texts = float(losses[:, 0].sum() / losses[:, 1].sum()), answers.texts
        if self.task.metric != "exact_match":
            return number(score(self.task.metric, None, None, mean_loss=mean).get(self.task.metric))
        if texts is None or len(texts) < len(self.rows):
            return None
        gold = [str(self.rows[place].label) for place in kept]
        return number(score(self.task.metric, [texts[place] for place in kept], gold, mean_loss=mean)["exact_match"])

    def _score(self, predicted: np.ndarray, gold: np.ndarray) -> dict[str, float]:
        return score(self.task.metric, predicted, gold, len(self.task.label_names))

    def _tags(self, model: nn.Module) -> tuple[Evaluation, Answers]:
        names = self.task.label_names
        gold = [list(row.label) for row in self.rows]  # type: ignore[arg-type]
        found = predict_tags(
            model, self.encoded, [len(tags) for tags in gold], self.batch_size, self.runtime,
            outside=names.index("O") if "O" in names else 0,
        )  # fmt: skip
        scores = score(self.task.metric, found.indices, gold, label_names=names)
        return Evaluation(scores, found.loss, better=_better(scores, found.loss)), found

    def _responses(self, model: nn.Module, decoded: int | None) -> tuple[Evaluation, Answers]:
        anatomy = self.base.anatomy
        losses = response_losses(model, Generation(anatomy), self.encoded, self.batch_size, self.runtime)
        mean = float(losses[:, 0].sum() / losses[:, 1].sum())
        if not np.isfinite(mean):
            return Evaluation({}, mean, better=float("nan")), Responses(losses, None)
        if self.task.metric != "exact_match":
            scores = score(self.task.metric, None, None, mean_loss=mean)
            return Evaluation(scores, mean, better=-mean), Responses(losses, None)
        decoding = GreedyDecoding(
            tokenizer=self.tokenizer, max_new_tokens=longest_response(self.encoded),
            position_limit=self.base.position_limit, encoder_decoder=anatomy.encoder_decoder,
        )  # fmt: skip
        texts = decoding.respond(model, prompts_of(self.encoded, decoded), self.batch_size, self.runtime)
        gold = [str(row.label) for row in self.rows[: len(texts)]]
        scores = score(self.task.metric, texts, gold, mean_loss=mean)
        return Evaluation(scores, mean, better=_better(scores, mean)), Responses(losses, texts)


def _better(scores: dict[str, float], loss: float) -> float:
    """The main metric; the loss only decides between equal ones."""
    return next(iter(scores.values())) + 1e-9 * float(np.exp(-loss))


def gold_labels(task: Task, split: str) -> np.ndarray:
    """The labels of a split: class numbers (int64) or real values (float32), ``[n]``."""
    rows = getattr(task, split)
    return np.array([row.label for row in rows], dtype=np.int64 if task.kind == "classification" else np.float32)


def write_predictions(path: Path, task: Task, split: str, answers: Answers) -> None:
    """One JSON line per example of a split: row, gold, predicted, and how sure the model was.

    That is the probability of the predicted class, one probability a word for tags, and for generation the mean loss
    of the gold response in nats a token; the response itself stands there where it was decoded.
    """
    with path.open("w", encoding="utf-8") as handle:
        for row, line in enumerate(_lines(task, getattr(task, split), answers)):
            handle.write(json.dumps({"row": row, **line}, ensure_ascii=False) + "\n")


def _lines(task: Task, rows: Sequence[Example], answers: Answers) -> Iterator[dict[str, Any]]:
    names = task.label_names
    if isinstance(answers, Tags):
        for row, tags, sure in zip(rows, answers.indices, answers.probabilities, strict=True):
            yield {
                "words": list(row.words or ()),
                "gold": [names[tag] for tag in row.label],  # type: ignore[union-attr, index]
                "predicted": [names[tag] for tag in tags],
                "probabilities": [round(value, 4) for value in sure],
            }
    elif isinstance(answers, Responses):
        means = (answers.losses[:, 0] / answers.losses[:, 1].clamp(min=1)).tolist()
        for place, (row, loss) in enumerate(zip(rows, means, strict=True)):
            said = {"predicted": answers.texts[place]} if answers.texts is not None else {}
            yield {"gold": row.label, **said, "loss": round(loss, 4)}
    elif task.kind == "classification":
        best = torch.softmax(answers, dim=-1).max(dim=-1)
        for row, guess, probability in zip(rows, best.indices.tolist(), best.values.tolist(), strict=True):
            yield {"gold": names[row.label], "predicted": names[guess], "probability": round(probability, 4)}  # type: ignore[index]
    else:
        gold = np.array([row.label for row in rows], dtype=np.float32).tolist()
        for right, guess in zip(gold, answers.squeeze(-1).tolist(), strict=True):
            yield {"gold": round(right, 6), "predicted": round(guess, 6)}
