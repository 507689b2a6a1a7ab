"""Which stored prompts help a new task, and how prompts lie to each other: ``anytune transfer rank`` and ``matrix``.

:func:`rank` reads a sample of the task's training texts once with every prompt of the library, which gives what the
measures of :mod:`anytune.evaluate.transferability` need; those that compare two prompts need one of the task itself,
which is looked for in the store, or tuned for a few steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anytune.data.batches import encode_task, evaluation_batches
from anytune.data.tasks import Task
from anytune.engine.progress import Reporter, Silent
from anytune.engine.runtime import make_runtime
from anytune.engine.settings import TrainingSettings
from anytune.errors import AnytuneError, DataError, SettingsError, StoreError, unknown
from anytune.evaluate import transferability as measures
from anytune.evaluate.transferability.prompt_similarity import KINDS as PROMPT_KINDS
from anytune.jobs.opening import fitting, open_base, open_store, open_task
from anytune.jobs.prompt_library import Candidate, candidates, model_of, one_per_task, prompts_of
from anytune.jobs.prompt_reading import Seen, look
from anytune.jobs.prompt_sources import References, given_prompts
from anytune.jobs.ranking import PREFERRED, Measured, Ranked, Ranking, check_measures, ranked
from anytune.jobs.task_features import MAX_LENGTH, ROWS, SEED, encoded_rows, sampled, text_of
from anytune.jobs.tune import Source, tune
from anytune.models.base import Base
from anytune.store import Entry, Store

#: Words of token-classification that the measures look at, at most: drawn evenly from all rows.
MOST_WORDS = 2000


def rank(
    task: Task | Source | Mapping[str, Any],
    base: Base | Entry | Source,
    *,
    store: Store | Source | None = None,
    metric: str | None = None,
    metrics: Sequence[str] | None = None,
    prompt: Entry | Source | None = None,
    train: int | None = None,
    sources: References | None = None,
    every: bool = False,
    rows: int = ROWS,
    seed: int = SEED,
    pooling: str = "mean",
    centring: str = "none",
    max_length: int = MAX_LENGTH,
    batch_size: int = 32,
    reporter: Reporter | None = None,
    **columns: Any,
) -> Ranking:
    """Rank the prompts of a base for a task.

    Args:
        task: what :func:`anytune.tune` takes.
        base: the base of the prompts.
        metric: the measure that ranks; by default the first of :data:`PREFERRED` that can be computed.
        metrics: the measures to compute; by default all.
        prompt: a stored prompt of this task, for the measures that compare two; by default the best one in the store.
        train: without one, tune a prompt of the task for so many steps (a run in the store like any other).
        sources: rank these prompts alone; by default of each task of the library the prompt that validates best.
        every: rank all prompts of the library, several of one task too.
        rows: training rows that are read, drawn by ``seed``.
        pooling: of task embeddings: "mean", "cls", "pooler" or "paper".
        centring: of task embeddings: "none", "library" or "base".
        max_length: tokens at which texts are cut.
        columns: how the task is read; see :func:`anytune.tune`.

    Raises:
        StoreError: the library is empty, or holds nothing but prompts of this task.
        SettingsError: an unknown measure, or a setting that cannot be.
        AnytuneError: bad input, or the measure that is to rank cannot be computed.
    """
    began, tell, place = time.perf_counter(), reporter or Silent(), open_store(store)
    opened = open_base(base, place)
    names = check_measures(metrics, metric)
    check_choices(rows, pooling, centring)
    data = open_task(dict(task) if isinstance(task, Mapping) else task, **columns)
    length = fitting(TrainingSettings(max_length=max_length), opened, asked=()).max_length
    given = [one.entry for one in given_prompts(sources, opened, place)]
    there = given or prompts_of(place, opened)
    if not there:
        raise empty_library(place, opened)
    runtime = make_runtime("fp32")
    found, unusable = candidates(there, opened, data, runtime=runtime)
    own = [one for one in found if one.is_self]
    others = [one for one in found if not one.is_self]
    if not given and not every:
        kept = {entry.id for entry in one_per_task([one.entry for one in others])}
        others = [one for one in others if one.entry.id in kept]
    left_out = {one.entry.reference: "of the task itself" for one in own}
    left_out |= {f"unusable {number}": what for number, what in enumerate(unusable, 1)}
    if not others:
        raise nothing_to_rank(place, data, len(own), unusable)
    target = _target_prompt(prompt, train, own, data, opened, place, runtime, tell, pooling)
    study = _Study(
        task=data, base=opened, others=others, target=target, runtime=runtime, rows=rows, seed=seed, pooling=pooling,
        centring=centring, max_length=length, batch_size=batch_size, wanted=names,
    )  # fmt: skip
    tell.say(f"{len(others)} prompts to rank on {len(study.read)} rows of {data.name}")
    scored: dict[str, list[float | None]] = {}
    measured = []
    for name in names:
        values, one = study.measured(name)
        scored[name] = values
        measured.append(one)
    chosen = _ranking_measure(metric, scored, measured)
    rows_found = [
        Ranked(one.entry, one.name, {name: scored[name][place_] for name in names}, None, one.family, size_of(one))
        for place_, one in enumerate(others)
    ]  # fmt: skip
    return Ranking(
        data.name, opened.name, chosen, ranked(rows_found, chosen), measured, left_out, len(study.read), seed,
        time.perf_counter() - began,
    )  # fmt: skip


def check_choices(rows: int, pooling: str, centring: str) -> None:
    """Refuse settings that cannot be.

    Raises:
        SettingsError: they cannot.
    """
    if rows < 1:
        raise SettingsError(f"rows = {rows}", why="A task is embedded by its texts.", fix=f"rows={ROWS}")
    for name, value, known in (
        ("pooling", pooling, ("mean", "cls", "pooler", "paper")), ("centring", centring, ("none", "library", "base")),
    ):  # fmt: skip
        if value not in known:
            raise unknown(name, value, known, SettingsError)


def empty_library(store: Store, base: Base) -> StoreError:
    """The error for a store without a prompt of this base."""
    return StoreError(
        f"no soft prompt of base {base.identity.short} in the store {store.folder}",
        why="There is nothing to rank, or to transfer from.",
        fix=f"anytune tune {base.ref or base.name} TASK --method prompt_tuning   (or anytune transfer add FOLDER)",
    )


def nothing_to_rank(store: Store, task: Task, own: int, problems: Sequence[str]) -> StoreError:
    """The error for a library of which nothing is left."""
    why = f"{own} are of '{task.name}' itself, and a task is no source for itself" if own else "None can be used"
    return StoreError(
        f"no prompt in the store {store.folder} can be a source for '{task.name}'",
        why=f"{why}{'; ' + '; '.join(problems[:3]) if problems else ''}.",
        fix="anytune tune BASE ANOTHER_TASK --method prompt_tuning",
    )


def size_of(one: Candidate) -> int:
    """Training rows of a candidate's task."""
    if one.features is not None:
        return one.features.size
    record = one.entry.manifest.task
    return record.counts.get("train", 0) if record else 0


def _target_prompt(
    prompt: Entry | Source | None, train: int | None, own: Sequence[Candidate], task: Task, base: Base, store: Store,
    runtime: Any, tell: Reporter, pooling: str,
) -> Candidate | None:  # fmt: skip
    """The task's own prompt: the one named, the best one that is stored, or one tuned for a few steps."""
    if prompt is not None:
        [named] = given_prompts(prompt, base, store, "target")
        found, problems = candidates([named.entry], base, task, runtime=runtime)
        if not found or found[0].features is None:
            raise DataError(
                f"'{named.entry.reference}' cannot stand for '{task.name}': "
                f"{problems[0] if problems else found[0].missing}",
                why="The task's embedding is made with its own prompt.",
            )  # fmt: skip
        return found[0]
    usable = [one for one in own if one.features is not None]
    if usable:
        [best] = one_per_task([one.entry for one in usable])[:1]
        return next(one for one in usable if one.entry.id == best.id)
    if train is None:
        return None
    tell.say(f"tuning a prompt of {task.name} for {train} steps")
    [made] = tune(base, task, store=store, method="prompt_tuning", training={"steps": train}, reporter=tell)
    found, _ = candidates([made], base, task, runtime=runtime)
    return found[0]


def _ranking_measure(
    metric: str | None, scored: Mapping[str, Sequence[float | None]], measured: Sequence[Measured]
) -> str:
    if metric is not None:
        problem = next(one.problem for one in measured if one.name == metric)
        if all(value is None for value in scored[metric]):
            raise DataError(
                f"nothing can be ranked by {metric}: {problem or 'no prompt has a value'}",
                fix="another --metric   (anytune transfer rank without one lists what can be computed)",
            )
        return metric
    counts = {name: sum(value is not None for value in values) for name, values in scored.items()}
    most = max(counts.values())
    order = [*(name for name in PREFERRED if name in scored), *scored]
    return next((name for name in order if counts[name] == most), order[0])


@dataclass
class _Study:
    """Reads the task once with every prompt, and asks the measures; what several of them need is made once."""

    task: Task
    base: Base
    others: Sequence[Candidate]
    target: Candidate | None
    runtime: Any
    rows: int
    seed: int
    pooling: str
    centring: str
    max_length: int
    batch_size: int
    wanted: Sequence[str]

    @cached_property
    def read(self) -> tuple[Any, ...]:
        """The rows that are read."""
        return sampled(self.task, self.rows, self.seed)

    @cached_property
    def seen(self) -> list[Seen]:
        """What each prompt makes of them."""
        tokens = self.task.kind == "token-classification"
        if tokens:
            encoded = encode_task(self.read, self.base.tokenizer(), self.max_length, None)
        else:
            encoded = encoded_rows(self.task, self.read, self.base, self.max_length)
        batches = list(evaluation_batches(encoded, self.batch_size))
        answers = any("source head" in measures.MEASURES[name].needs for name in self.wanted)
        found = []
        for one in self.others:
            model = model_of(one.prompt, self.base).to(self.runtime.device)
            found.append(look(
                model, self.base.anatomy, batches, self.runtime, pieces=encoded.first_pieces if tokens else None,
                logits=answers and self._answers_in_classes(one),
            ))  # fmt: skip
        return found

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
        return np.array([piece >= 0 for piece in self._pieces[place]])

    @cached_property
    def _pieces(self) -> list[list[int]]:
        encoded = encode_task(self.read, self.base.tokenizer(), self.max_length, None)
        assert encoded.first_pieces is not None
        return encoded.first_pieces

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
        """A measure of every prompt: values, and what it took (reading the texts once not counted again)."""
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
            return lambda place: kind(_comparable(self.others[place], target), target.values)
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
        base = np.stack([_pooled(self._features_of(one).plain, self.pooling) for one in every])
        rows = measures.centred(
            np.stack([_pooled(self._features_of(one).embedding, self.pooling) for one in every]),
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


def _pooled(embeddings: Mapping[str, np.ndarray], pooling: str) -> np.ndarray:
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


def _comparable(source: Candidate, target: Any) -> Any:
    """The source's values, if they are of the target's kind.

    Raises:
        DataError: one is a deep prompt and the other stands in the input.
    """
    if source.prompt.config.kind != target.config.kind:
        raise DataError(
            f"'{source.entry.reference}' is a {source.prompt.config.kind} prompt, the target's is {target.config.kind}",
            why="Numbers of one kind mean nothing in the other.",
        )
    return source.prompt.values


# Matrices

#: Measures that compare two tasks by what is stored of them alone.
STORED = ("task_cosine", "neuron_overlap", "tfidf", *(f"prompt_{kind}" for kind in PROMPT_KINDS))


@dataclass(frozen=True)
class Matrix:
    """How the tasks of a library lie to each other; ``order`` puts clusters side by side.

    Attributes:
        tasks: names of the tasks; row and column i are ``tasks[i]``.
        values: [K, K], NaN where two cannot be compared.
        left_out: reference -> why.
    """

    base: str
    metric: str
    tasks: Sequence[str]
    references: Sequence[str]
    values: np.ndarray
    order: Sequence[int]
    left_out: Mapping[str, str]

    def write(self, folder: str | Path, *, figures: bool = False) -> list[Path]:
        """Write ``METRIC.csv`` and ``METRIC.svg`` (a picture that needs nothing), with ``figures`` PNG and SVG."""
        from anytune.report.transfer_charts import write_matrix

        return write_matrix(self, Path(folder), figures=figures)

    def record(self) -> dict[str, Any]:
        """All of it as plain values."""
        values = [[None if np.isnan(value) else value for value in row] for row in self.values.tolist()]
        return {"base": self.base, "metric": self.metric, "tasks": list(self.tasks),
                "sources": list(self.references), "values": values, "order": list(self.order),
                "left_out": dict(self.left_out)}  # fmt: skip

    def __str__(self) -> str:
        return f"{self.metric} of {len(self.tasks)} tasks on {self.base}"


def matrix(
    base: Base | Entry | Source,
    *,
    store: Store | Source | None = None,
    metric: str = "task_cosine",
    sources: References | None = None,
    every: bool = False,
    pooling: str = "mean",
    centring: str = "none",
) -> Matrix:
    """Compare all tasks of a library with each other, by what is stored of them.

    Args:
        metric: of :data:`STORED`; the others need the texts of a task, see :func:`rank`.
        sources: these prompts alone; by default of each task the one that validates best.
        every: all prompts, several of one task too.

    Raises:
        StoreError: fewer than two prompts can be compared.
        SettingsError: a measure that needs more than what is stored.
    """
    from anytune.evaluate.clustering import cluster_order

    place = open_store(store)
    opened = open_base(base, place)
    if metric not in STORED:
        raise unknown("measure of what is stored", metric, STORED, SettingsError)
    check_choices(ROWS, pooling, centring)
    given = [one.entry for one in given_prompts(sources, opened, place)]
    there = given or prompts_of(place, opened)
    if not there:
        raise empty_library(place, opened)
    found, unusable = candidates(there if given or every else one_per_task(there), opened, None)
    left_out = {f"unusable {number}": what for number, what in enumerate(unusable, 1)}
    needs_features = not metric.startswith("prompt_")
    kept = [one for one in found if one.features is not None or not needs_features]
    left_out |= {one.entry.reference: one.missing for one in found if one not in kept}
    if len(kept) < 2:
        raise StoreError(
            f"{len(kept)} prompt of base {opened.identity.short} can be compared", why="A matrix needs two.",
            fix="anytune tune BASE TASK --method prompt_tuning",
        )  # fmt: skip
    values = _compared(kept, metric, pooling, centring)
    names = [one.name if [other.name for other in kept].count(one.name) == 1 else one.entry.reference for one in kept]
    return Matrix(
        opened.name, metric, names, [one.entry.reference for one in kept], values, cluster_order(values), left_out
    )


def _compared(found: Sequence[Candidate], metric: str, pooling: str, centring: str) -> np.ndarray:
    features: list[Any] = [one.features for one in found]
    if metric == "task_cosine":
        base = np.stack([_pooled(one.plain, pooling) for one in features]) if centring == "base" else None
        rows = np.stack([_pooled(one.embedding, pooling) for one in features])
        return measures.task_cosines(measures.centred(rows, centring, base))  # type: ignore[arg-type]
    if metric == "tfidf":
        words = [one.words for one in features]
        return measures.tfidf_cosines(words, words)
    table = np.full((len(found), len(found)), np.nan)
    for row, one in enumerate(found):
        for column, other in enumerate(found):
            try:
                if metric == "neuron_overlap":
                    sides = (features[row].neurons, features[column].neurons)
                    if sides[0] is None or sides[1] is None:
                        continue
                    table[row, column] = measures.overlap(*sides)
                else:
                    kind = PROMPT_KINDS[metric.removeprefix("prompt_")]
                    table[row, column] = kind(_comparable(one, other.prompt), other.prompt.values)
            except DataError:  # other lengths or kinds: such a pair stays empty
                continue
    return table
