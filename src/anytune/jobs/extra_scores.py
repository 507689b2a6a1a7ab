"""Scores of a finished run beyond its own test split, taken while its weights are in memory.

    score_on     the test split of other tasks of the same label meaning: how far what was learnt reaches
    probe_on     a linear probe on other tasks over the frozen tuned body, beside the same probe over the untouched
                 base: how much of the base's own knowledge is left (:mod:`anytune.evaluate.probing`)

They stand in the manifest as ``scores["test:NAME"]``, ``scores["probe:NAME"]`` and ``scores["probe_base:NAME"]``.
What is asked for is a part of the run key: a run without these scores is not taken for one with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from anytune.data.batches import Encoded, encode_task
from anytune.data.splits import choose, strata_of
from anytune.data.tasks import Example, Task
from anytune.engine.prediction import pooled_features
from anytune.engine.runtime import Runtime
from anytune.errors import DataError, SettingsError, nearest
from anytune.evaluate.probing import Features, probe
from anytune.jobs.opening import open_task
from anytune.jobs.scoring import Scorer, gold_labels
from anytune.manifests import digest
from anytune.metrics import METRICS, score
from anytune.models.base import Base

#: Rows a probe is fitted on and tested on, stratified, so that probing costs little beside the run.
PROBE_TRAIN, PROBE_TEST = 500, 1000
Sources = Sequence[Task | str | Path | Mapping[str, Any]]
#: of a task to score on: its label -> ours, or None to leave its rows out
LabelMap = Mapping[str, Mapping[str, str | None]]


@dataclass(eq=False)
class ExtraScores:
    """What is scored at the end of each run of a command; the runs share the encoded texts and the base's probes.

    Attributes:
        others: tasks whose ``test`` has labels of the task that is tuned (see :func:`of_our_labels`).
        probed: tasks to probe on, cut to :data:`PROBE_TRAIN` and :data:`PROBE_TEST` rows.
    """

    base: Base
    others: Sequence[Task]
    probed: Sequence[Task]
    max_length: int
    batch_size: int
    _of_base: dict[str, dict[str, float]] = field(default_factory=dict)

    def decides(self) -> dict[str, dict[str, str]]:
        """What a run key must hold of it: names and contents."""
        return {
            key: {task.name: task.content for task in sorted(tasks, key=lambda task: task.name)}
            for key, tasks in (("score_on", self.others), ("probe_on", self.probed))
            if tasks
        }

    def __call__(self, model: nn.Module, runtime: Runtime) -> dict[str, dict[str, float]]:
        """The scores of a tuned model (or a PEFT wrapping of one); its weights and mode are left as they were."""
        found: dict[str, dict[str, float]] = {}
        for task, encoded in zip(self.others, self._tests, strict=True):
            scorer = Scorer(
                task=task, encoded=encoded, split="test", base=self.base, batch_size=self.batch_size, runtime=runtime
            )
            found[f"test:{task.name}"] = scorer(model)[0].scores
        for task in self.probed:
            found[f"probe:{task.name}"] = self._probe(task, model, runtime)
        if self.probed and not self._of_base:
            bare = untouched(self.base).to(runtime.device)
            self._of_base = {f"probe_base:{task.name}": self._probe(task, bare, runtime) for task in self.probed}
        return found | {name: dict(scores) for name, scores in self._of_base.items()}

    @cached_property
    def _tests(self) -> list[Encoded]:
        tokenizer = self.base.tokenizer()
        wide = self.base.anatomy.encoder_decoder
        return [encode_task(task.test, tokenizer, self.max_length, task.kind, wide) for task in self.others]

    @cached_property
    def _texts(self) -> dict[str, dict[str, Encoded]]:
        return {task.name: texts_of(self.base, task, self.max_length) for task in self.probed}

    def _probe(self, task: Task, model: nn.Module, runtime: Runtime) -> dict[str, float]:
        return probe_of(model, self.base, task, self._texts[task.name], self.batch_size, runtime)


def untouched(base: Base) -> nn.Module:
    """The base's own body as a model; what head stands on it is not read."""
    model: nn.Module = base.task_model("regression", (), 0)[0]
    return model


def texts_of(base: Base, task: Task, max_length: int) -> dict[str, Encoded]:
    """The splits of a task in the base's tokens, without labels."""
    tokenizer = base.tokenizer()
    return {
        split: encode_task(getattr(task, split), tokenizer, max_length, None)
        for split in ("train", "validation", "test")
    }


def probe_of(
    model: nn.Module, base: Base, task: Task, texts: Mapping[str, Encoded], batch_size: int, runtime: Runtime
) -> dict[str, float]:
    """Test scores of a linear probe over a frozen body; its penalty is chosen on validation.

    Args:
        model: a model of ``base``; its weights and mode are left as they were.
        texts: of :func:`texts_of`.
    """
    splits = {
        split: Features(
            pooled_features(model, base.anatomy, encoded, batch_size, runtime).numpy(), gold_labels(task, split)
        )
        for split, encoded in texts.items()
    }
    classes = len(task.label_names) if task.kind == "classification" else None
    sign = 1.0 if METRICS[task.metric].higher_is_better else -1.0

    def better(predicted: np.ndarray, gold: np.ndarray) -> float:
        return sign * score(task.metric, predicted, gold, classes)[task.metric]

    found = probe(splits["train"], splits["validation"], splits["test"], classes=classes, better=better)
    return score(task.metric, found.predicted, splits["test"].labels, classes)


@dataclass(eq=False)
class FrozenBase:
    """What a task scores by a linear probe over a base that nothing was tuned on: a floor beside tuned scores."""

    base: Base
    max_length: int
    batch_size: int
    runtime: Runtime

    def floor(self, task: Task) -> float | None:
        """The test score, in the task's metric; None for kinds without one label a text."""
        if task.kind not in ("classification", "regression"):
            return None
        texts = texts_of(self.base, task, self.max_length)
        return probe_of(self._model, self.base, task, texts, self.batch_size, self.runtime)[task.metric]

    @cached_property
    def _model(self) -> nn.Module:
        return untouched(self.base).to(self.runtime.device)


def extra_scores(
    task: Task, base: Base, *, score_on: Sources | None, probe_on: Sources | None, label_map: LabelMap | None,
    max_length: int, batch_size: int,
) -> ExtraScores | None:  # fmt: skip
    """What to score at the end of each run, checked; None if nothing is asked for.

    Raises:
        DataError: labels of a task to score on that the tuned task does not have.
        SettingsError: a task of another kind, two of one name, or a ``label_map`` for a task that is not scored on.
    """
    others = [_opened(source) for source in score_on or ()]
    probed = [_opened(source) for source in probe_on or ()]
    for key, tasks in (("score_on", others), ("probe_on", probed)):
        _check_names(key, tasks)
    maps = dict(label_map or {})
    for name in maps:
        if name not in {other.name for other in others}:
            known = [other.name for other in others]
            raise SettingsError(
                f"label_map names '{name}', which is not scored on",
                why=f"score_on: {', '.join(known) or 'none'}.",
                fix=f"label_map: {{{nearest(name, known)}: ...}}" if nearest(name, known) else "",
            )
    if not others and not probed:
        return None
    ours = [of_our_labels(other, task, maps.get(other.name)) for other in others]
    return ExtraScores(base, ours, [_cut(one) for one in probed], max_length, batch_size)


def of_our_labels(other: Task, task: Task, names: Mapping[str, str | None] | None = None) -> Task:
    """``other`` with its test split labelled as ``task`` labels, to score a model of ``task`` on.

    Args:
        names: label of ``other`` -> label of ``task``, None to leave its rows out; labels that are not named keep
            their name.

    Returns:
        The task with ``label_names`` and ``metric`` of ``task``; train and validation are empty.

    Raises:
        DataError: a label that has no counterpart, or no row is left.
        SettingsError: the kinds differ, or labels are mapped where there are none.
    """
    names = {str(theirs): ours for theirs, ours in (names or {}).items()}
    if other.kind != task.kind:
        raise SettingsError(
            f"score_on '{other.name}' is {other.kind}, and '{task.name}' is {task.kind}",
            why="A model can be scored on other tasks of its own kind alone.",
            fix=f"{{source: ..., kind: {task.kind}}}   (if its labels are such), or probe_on",
        )
    if other.label_names:
        table = _table(other, task, names)
        rows = tuple(row for row in (_renamed(row, table) for row in other.test) if row is not None)
    elif names:
        raise SettingsError(f"label_map of '{other.name}', which has no label names", why=f"It is {other.kind}.")
    else:
        rows = other.test
    if not rows:
        raise DataError(f"no test row of '{other.name}' is left to score on", why="label_map leaves all of them out.")
    content = digest([other.content, dict(sorted(names.items())), task.metric, list(task.label_names)])
    return replace(
        other, metric=task.metric, train=(), validation=(), test=rows, label_names=task.label_names, content=content
    )


def _table(other: Task, task: Task, names: Mapping[str, str | None]) -> list[int | None]:
    """Their label number -> ours; None for rows that are left out."""
    for theirs, ours in names.items():
        for label, owner in ((theirs, other), (ours, task)):
            if label is not None and label not in owner.label_names:
                raise DataError(
                    f"label_map of '{other.name}': '{label}' is no label of '{owner.name}'",
                    why=f"Its labels: {', '.join(owner.label_names)}.",
                    fix=nearest(label, owner.label_names) or "",
                )
    meant = {theirs: names.get(theirs, theirs) for theirs in other.label_names}
    strange = [theirs for theirs, ours in meant.items() if ours is not None and ours not in task.label_names]
    if strange:
        raise DataError(
            f"score_on '{other.name}' has labels that '{task.name}' lacks: {', '.join(strange)}",
            why=f"Labels of '{task.name}': {', '.join(task.label_names)}.",
            fix=f"label_map: {{{other.name}: {{{strange[0]}: {task.label_names[0]}}}}}   (null leaves its rows out)",
        )
    return [None if ours is None else task.label_names.index(ours) for ours in meant.values()]


def _renamed(row: Example, table: Sequence[int | None]) -> Example | None:
    """The example with our label; None if it is left out (a sentence: if one of its tags is)."""
    if isinstance(row.label, tuple):
        tags = [table[tag] for tag in row.label]
        return None if None in tags else replace(row, label=tuple(tag for tag in tags if tag is not None))
    label = table[int(row.label)]
    return None if label is None else replace(row, label=label)


def _opened(source: Task | str | Path | Mapping[str, Any]) -> Task:
    return open_task(dict(source) if isinstance(source, Mapping) else source)


def _check_names(key: str, tasks: Sequence[Task]) -> None:
    names = [task.name for task in tasks]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise SettingsError(
            f"{key} names '{doubled[0]}' twice",
            why="Scores are stored under the task's name.",
            fix="{source: ..., name: another}",
        )
    for task in tasks if key == "probe_on" else ():
        if task.kind not in ("classification", "regression"):
            raise SettingsError(
                f"probe_on '{task.name}' is {task.kind}",
                why="A probe gives one class or number for a text.",
                fix="a task with one label a text",
            )


def _cut(task: Task) -> Task:
    """The rows a probe reads."""
    few = task.subset(train_size=min(PROBE_TRAIN, len(task.train)), seed=0)
    if len(few.test) <= PROBE_TEST:
        return few
    rows = choose(strata_of([example.label for example in few.test], few.kind), PROBE_TEST, "probe test", 0)
    return replace(few, test=tuple(few.test[row] for row in rows), content=digest([few.content, PROBE_TEST]))
