"""Reads a task once with every prompt of a library, and asks the measures what they make of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from anytune.data.batches import Encoded, evaluation_batches
from anytune.data.tasks import Example, Task
from anytune.engine.runtime import Runtime
from anytune.errors import AnytuneError, DataError
from anytune.evaluate import transferability as measures
from anytune.evaluate.transferability.prompt_similarity import KINDS as PROMPT_KINDS
from anytune.jobs.prompt_library import Candidate, PromptModels, size_of
from anytune.jobs.prompt_reading import Seen, look
from anytune.jobs.ranking import Measured
from anytune.jobs.task_features import encoded_rows, sampled, text_of
from anytune.models.base import Base
from anytune.models.soft_prompts import PromptSource

#: Words of token-classification that the measures look at, at most: drawn evenly from all rows.
MOST_WORDS = 2000


@dataclass
class Study:
    """Reads the task once with every prompt, and asks the measures; what several of them need is made once."""

    task: Task
    base: Base
    others: Sequence[Candidate]
    target: Candidate | None
    runtime: Runtime
    rows: int
    seed: int
    pooling: str
    centring: str
    max_length: int
    batch_size: int
    wanted: Sequence[str]

    @cached_property
    def read(self) -> tuple[Example, ...]:
        """The rows that are read."""
        return sampled(self.task, self.rows, self.seed)

    @cached_property
    def seen(self) -> list[Seen]:
        """What each prompt makes of them."""
        encoded, tokens = self._encoded, self.task.kind == "token-classification"
        batches = list(evaluation_batches(encoded, self.batch_size))
        answers = any("source head" in measures.MEASURES[name].needs for name in self.wanted)
        found, models = [], PromptModels(self.base, self.runtime.device)
        for one in self.others:
            with models.with_prompt(one.prompt) as model:
                found.append(look(
                    model, self.base.anatomy, batches, self.runtime, pieces=encoded.first_pieces if tokens else None,
                    logits=answers and self._answers_in_classes(one),
                ))  # fmt: skip
        return found

    def reading_seconds(self) -> float:
        """Read the texts with every prompt, if any measure asks for it, and say how long that took."""
        began = time.perf_counter()
        if any("target labels" in measures.MEASURES[name].needs for name in self.wanted):
            _ = self.seen
        return time.perf_counter() - began

    def _answers_in_classes(self, one: Candidate) -> bool:
        task = one.prompt.task
        return task is not None and task.kind == "classification" and len(one.prompt.label_names) > 1

    @cached_property
    def labels(self) -> tuple[np.ndarray, int | None]:
        """Labels [N] of the rows that features stand for, and the number of classes (None: numbers)."""
        kind = self.task.kind
        if kind == "generation":
            raise DataError(f"'{self.task.name}' is generation", why="Its labels are texts, no classes or numbers.")
        if kind == "token-classification":
            flat = np.concatenate([
                np.array(row.label)[self._kept(place)] for place, row in enumerate(self.read)
            ])  # fmt: skip
            return flat[self._words(len(flat))], len(self.task.label_names)
        given = np.array([row.label for row in self.read], dtype=np.float64)
        return given, len(self.task.label_names) if kind == "classification" else None

    def _kept(self, place: int) -> np.ndarray:
        """Which words of a row have a piece."""
        assert self._encoded.first_pieces is not None
        return np.array([piece >= 0 for piece in self._encoded.first_pieces[place]])

    @cached_property
    def _encoded(self) -> Encoded:
        return encoded_rows(self.task, self.read, self.base, self.max_length)

    def _words(self, count: int) -> np.ndarray:
        return np.unique(np.linspace(0, count - 1, min(count, MOST_WORDS)).astype(int))

    def features(self, place: int) -> np.ndarray:
        """[N, d] of the target's rows (or words) under a source prompt."""
        seen = self.seen[place]
        if self.task.kind == "token-classification":
            flat = torch.cat(seen.words).numpy()
            return flat[self._words(len(flat))]
        return seen.pooled["mean"].numpy()

    def measured(self, name: str) -> tuple[list[float | None], Measured]:
        """A measure of every prompt: values, and what it took beside reading the texts."""
        needs = measures.MEASURES[name].needs
        began = time.perf_counter()
        try:
            score = self._scorer(name)
        except AnytuneError as problem:
            return [None] * len(self.others), Measured(name, needs, time.perf_counter() - began, problem.what)
        values: list[float | None] = []
        problems: list[str] = []
        for place in range(len(self.others)):
            try:
                values.append(score(place))
            except AnytuneError as problem:
                values.append(None)
                problems.append(problem.what)
        note = "" if not problems else f"{len(problems)} of {len(values)}: {problems[0]}"
        return values, Measured(name, needs, time.perf_counter() - began, note)

    def _scorer(self, name: str) -> Callable[[int], float]:
        """The function of a measure by the place of the source.

        Raises:
            AnytuneError: it cannot be computed for any source.
        """
        if name in ("size", "random"):
            return self._controls(name)
        if "target prompt" in measures.MEASURES[name].needs and self.target is None:
            raise DataError(f"needs a prompt of '{self.task.name}'", fix="--prompt DELTA   or   --train STEPS")
        if name == "tfidf":
            words = measures.task_words(map(text_of, self.read))
            known = [place for place, one in enumerate(self.others) if one.features is not None]
            table = measures.tfidf_cosines([self._features_of(self.others[place]).words for place in known], [words])
            cosines = {place: float(table[row, 0]) for row, place in enumerate(known)}
            return lambda place: cosines[place] if place in cosines else self._lacking(place)
        if name == "task_cosine":
            return self._task_cosine()
        if name == "neuron_overlap":
            own = self._neurons(self.target)
            return lambda place: measures.overlap(self._neurons(self.others[place]), own)
        if name.startswith("prompt_"):
            assert self.target is not None
            kind, target = PROMPT_KINDS[name.removeprefix("prompt_")], self.target.prompt
            return lambda place: kind(comparable(self.others[place], target), target.values)
        return self._of_labels(name)

    def _controls(self, name: str) -> Callable[[int], float]:
        if name == "size":
            return lambda place: measures.size_score(size_of(self.others[place]))
        return lambda place: measures.random_score(self.others[place].name, self.task.name, self.seed)

    def _of_labels(self, name: str) -> Callable[[int], float]:
        labels, classes = self.labels
        if classes is None and measures.MEASURES[name].classes:
            labels = measures.binned(labels)
            classes = int(labels.max()) + 1
        if name in ("leep", "nce"):
            asked = measures.leep if name == "leep" else measures.nce

            def answered(place: int) -> float:
                logits = self.seen[place].logits
                if logits is None or self.task.kind == "token-classification":
                    raise DataError(f"'{self.others[place].name}' has no head of classes for a text")
                return asked(logits.double().softmax(dim=-1), labels, classes=classes or 0)

            return answered
        functions: dict[str, Callable[[Any], float]] = {
            "logme": lambda rows: measures.logme(rows, labels, classes=classes),
            "h_score": lambda rows: measures.h_score(rows, labels, classes=classes or 0),
            "trans_rate": lambda rows: measures.trans_rate(rows, labels, classes=classes or 0),
            "linear_probe": lambda rows: measures.linear_probe(rows, labels, classes=classes, seed=self.seed),
        }
        function = functions[name]
        return lambda place: function(self.features(place))

    def _task_cosine(self) -> Callable[[int], float]:
        assert self.target is not None
        known = [place for place, one in enumerate(self.others) if one.features is not None]
        every = [*(self.others[place] for place in known), self.target]
        base = np.stack([pooled_of(self._features_of(one).plain, self.pooling) for one in every])
        rows = measures.centred(
            np.stack([pooled_of(self._features_of(one).embedding, self.pooling) for one in every]),
            self.centring, base if self.centring == "base" else None,  # type: ignore[arg-type]
        )  # fmt: skip
        cosines = dict(zip(known, measures.task_cosines(rows[:-1], rows[-1:])[:, 0].tolist(), strict=True))
        return lambda place: cosines[place] if place in cosines else self._lacking(place)

    def _features_of(self, one: Candidate) -> Any:
        if one.features is None:
            raise DataError(f"{one.entry.reference}: {one.missing}")
        return one.features

    def _lacking(self, place: int) -> float:
        self._features_of(self.others[place])
        raise DataError(f"{self.others[place].entry.reference} was left out")

    def _neurons(self, one: Candidate | None) -> np.ndarray:
        assert one is not None
        found: np.ndarray | None = self._features_of(one).neurons
        if found is None:
            raise DataError("where the neurons of this kind of model are is not known")
        return found


def pooled_of(embeddings: Mapping[str, np.ndarray], pooling: str) -> np.ndarray:
    """One of the stored poolings; "paper" is the pooler where there is one.

    Raises:
        DataError: there is none of that name.
    """
    name = ("pooler" if "pooler" in embeddings else "mean") if pooling == "paper" else pooling
    if name not in embeddings:
        raise DataError(
            f"no '{name}' embedding is stored", why="This kind of model has no pooler.", fix="--pooling mean"
        )
    return embeddings[name]


def comparable(source: Candidate, target: PromptSource) -> torch.Tensor:
    """The source's values, if they are of the target's kind.

    Raises:
        DataError: one is a deep prompt and the other stands in the input.
    """
    if source.prompt.config.kind != target.config.kind:
        raise DataError(
            f"'{source.entry.reference}' is {source.prompt.config.kind}, the target's prompt {target.config.kind}",
            why="Numbers of one kind mean nothing in the other.",
        )
    return source.prompt.values
