"""What one stored delta would do on an upgraded base, measured on texts: answers, path, heads, forecast."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from anytune.data.batches import Encoded, encode_task, evaluation_batches
from anytune.data.tasks import Example, Task
from anytune.engine.loop import Evaluation
from anytune.engine.prediction import Tags, predict_logits, predict_tags
from anytune.engine.runtime import Runtime
from anytune.errors import AnytuneError, DataError, DeltaError
from anytune.evaluate.base_distance import BaseDistance, norm_of
from anytune.evaluate.connectivity import Path, path_between
from anytune.evaluate.direct_forecast import FLOOR, SHARES, Forecast, Forecaster, Reuse, delta_size
from anytune.evaluate.flips import Flips, disagreement, flips
from anytune.evaluate.functional_similarity import Similarity, functional_similarity
from anytune.evaluate.jackknife import jackknife_error
from anytune.evaluate.scores import higher_is_better, number
from anytune.jobs.deltas import AnyDelta, install_delta
from anytune.jobs.load import load
from anytune.jobs.outdated import Moving, adapter_difference
from anytune.jobs.scoring import Responses, Scorer
from anytune.models.base import Base
from anytune.models.delta import FullDelta
from anytune.models.peft_models import merge
from anytune.models.soft_prompt_config import is_soft_prompt
from anytune.store import Entry, Store

#: Texts whose attention is compared; it takes two plain forward passes over each.
ATTENTION_TEXTS = 64
#: Texts a batch there: the attention of all layers of both models is held.
ATTENTION_BATCH = 16
#: Of the interval of what was measured, and how many standard errors that is to either side.
LEVEL, WIDTH = 0.9, 1.645
#: Metrics that are the share of right answers, whose spread the flips say.
RIGHT_ANSWERS = ("accuracy", "micro_f1", "exact_match")
#: Responses decoded at each look.
DECODED = 16


@dataclass(frozen=True)
class Rows:
    """Texts that deltas are looked at with: a task's validation rows, or texts without labels."""

    rows: tuple[Example, ...]
    #: None: there are no labels
    task: Task | None
    source: str


@dataclass(frozen=True)
class Read:
    """What a model makes of the rows: answers in their order, and with labels scores and loss."""

    answers: list[Any] | None
    scores: dict[str, float]
    loss: float | None
    #: numbers of rows -> the main metric of those alone; None without labels
    among: Callable[[np.ndarray], float | None] | None = None


@dataclass(frozen=True, kw_only=True)
class DeltaDiagnosis:
    """One delta across the upgrade.

    Attributes:
        size: length of the difference relative to the old base; None for soft prompts and what cannot be merged.
        refusal: why it cannot be put onto the new base; None where it can.
        problem: what is wrong with its own weights; None where they can be read.
        rows: how many texts it was looked at with, and ``source``: where they are from.
        disagreement: share of answers (words, for tags) that change; needs no labels.
        before, after: main metric of the old tuned model, and of the delta as it is on the new base.
        error: standard error of what is lost between them, over the texts; None where ``flips`` say it.
        path, path_to: the line from the old tuned model, and what stands at its other end.
    """

    reference: str
    form: str
    task: str
    metric: str | None
    size: float | None
    refusal: str | None
    problem: str | None = None
    rows: int = 0
    source: str = ""
    disagreement: float | None = None
    flips: Flips | None = None
    before: float | None = None
    after: float | None = None
    error: float | None = None
    forecast: Forecast | None = None
    tolerance: float = FLOOR
    path: Path | None = None
    path_to: str = ""
    similarity: Similarity | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def drop(self) -> float | None:
        """What direct reuse loses of the main metric, in its unit; below 0 where it gains."""
        if self.before is None or self.after is None or self.metric is None:
            return None
        lost = self.before - self.after
        return lost if higher_is_better(self.metric) else -lost

    @property
    def measured(self) -> tuple[float, float] | None:
        """What direct reuse loses on texts like these: an interval around ``drop``, at :data:`LEVEL`.

        1.645 standard errors to either side, paired text by text. Of a share of right answers, with N texts of which
        ``a`` turn wrong and ``b`` turn right, that error is ``(a + b - (a - b)^2 / N)^(1/2) / N``; of other metrics
        it is ``error``, by leaving out texts (``jackknife_error``). It is never that of less than one text: that no
        answer of a few turned says little. None without labels, and of one text alone.
        """
        drop, flips = self.drop, self.flips
        if drop is None or flips is None or self.metric not in SHARES:
            return None
        one = 1 / flips.examples
        turned, net = flips.negative + flips.positive, flips.negative - flips.positive
        error = math.sqrt(turned - net**2 * one) * one if self.error is None else self.error
        wide = WIDTH * max(one, error)
        return (drop - wide, drop + wide) if math.isfinite(wide) else None

    @property
    def verdict(self) -> str:
        """Whether direct reuse will do: "will do", "will not do", "undecided", "impossible" or "damaged".

        What was measured decides where it can, and the forecast where it cannot.
        """
        if self.problem is not None:
            return "damaged"
        if self.refusal is not None:
            return "impossible"
        if self.measured is not None and self.measured[1] <= self.tolerance:
            return "will do"
        if self.measured is not None and self.measured[0] > self.tolerance:
            return "will not do"
        return self.forecast.verdict(self.tolerance) if self.forecast is not None else "undecided"

    def reuse(self, upgrade: str, moved: float) -> Reuse:
        """This delta as a row that forecasts are learned from."""
        drop = self.drop if self.metric in SHARES else None
        return Reuse(upgrade, moved, self.size, self.disagreement, drop, self.task, self.form)

    def record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        parts = ("flips", "forecast", "path", "similarity")
        plain = {name: value for name, value in vars(self).items() if name not in parts}
        nested = {name: getattr(self, name) for name in parts}
        return {
            **plain, "notes": list(self.notes), "seconds": round(self.seconds, 3), "drop": self.drop,
            "measured": None if self.measured is None else list(self.measured),
            "verdict": self.verdict, **{name: one.record() if one else None for name, one in nested.items()},
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Looking:
    """How deltas are looked at."""

    store: Store | None
    runtime: Runtime
    points: int
    attention_texts: int
    batch_size: int
    tolerance: float
    forecaster: Forecaster


def unreadable(entry: Entry, problem: DeltaError) -> DeltaDiagnosis:
    """The diagnosis of a delta whose weights cannot be read."""
    manifest = entry.manifest
    return DeltaDiagnosis(
        reference=entry.reference, form=manifest.form or "", task=manifest.task.name if manifest.task else "",
        metric=entry.main_metric(), size=None, refusal=None, problem=str(problem),
    )  # fmt: skip


def diagnose_delta(
    moving: Moving, rows: Rows | None, distance: BaseDistance, fresh: Entry | None, how: Looking
) -> DeltaDiagnosis:
    """Look at one delta with whatever texts there are.

    Args:
        moving: the delta, its base and the new one.
        rows: None: nothing but weights is looked at.
        distance: of the two bases.
        fresh: a delta of the same task tuned on the new base, for the other end of the path.

    Raises:
        DeltaError: its weights are damaged or were not kept.
    """
    began = time.perf_counter()
    entry, manifest = moving.entry, moving.entry.manifest
    found: dict[str, Any] = {
        "reference": entry.reference, "form": form_of(moving.own),
        "task": manifest.task.name if manifest.task else "", "metric": entry.main_metric(),
        "size": size_of(moving.own, moving.old, entry, distance.whole.length), "refusal": moving.refusal,
        "tolerance": how.tolerance,
    }  # fmt: skip
    notes: list[str] = []
    if rows is not None:
        found |= _looked_at(moving, rows, distance, fresh, how, notes)
    said = DeltaDiagnosis(**found, notes=tuple(notes))
    forecast = None
    if said.refusal is None and (said.metric is None or said.metric in SHARES):
        forecast = how.forecaster.forecast(said.reuse("", distance.whole.relative))
    elif said.refusal is None:
        notes.append(f"no forecast: {said.metric} is no share of answers")
    return DeltaDiagnosis(**{
        **found, "notes": tuple(notes), "forecast": forecast, "seconds": time.perf_counter() - began,
    })  # fmt: skip


def form_of(delta: AnyDelta) -> str:
    """Say what a delta is: "full", "lora", "prompt", or the name of another PEFT kind in small letters."""
    if isinstance(delta, FullDelta):
        return "full"
    return "prompt" if is_soft_prompt(delta.config) else str(delta.config["peft_type"]).lower()


def size_of(delta: AnyDelta, base: Base, entry: Entry, base_length: float) -> float | None:
    """``||delta|| / ||old||``, of the body alone; None for soft prompts and adapters that cannot be merged."""
    if isinstance(delta, FullDelta):
        return delta_size(norm_of(_body(delta.difference, base)), base_length)
    if is_soft_prompt(delta.config):
        return None
    kind = entry.manifest.task.kind if entry.manifest.task else "classification"
    try:
        added = adapter_difference(delta, base.task_model(kind, entry.manifest.label_names, seed=0)[0], base)
    except AnytuneError:
        return None
    return delta_size(norm_of(_body(added, base)), base_length)


def _body(difference: Any, base: Base) -> dict[str, Any]:
    return {name: tensor for name, tensor in difference.items() if base.anatomy.is_backbone(name)}


def _looked_at(
    moving: Moving, rows: Rows, distance: BaseDistance, fresh: Entry | None, how: Looking, notes: list[str]
) -> dict[str, Any]:
    """Answers of the old tuned model and of what stands at the other end; both models are held at a time."""
    old, new = moving.old, moving.new
    length = int(moving.entry.manifest.training.get("max_length", 128))
    same_words = old.identity.vocabulary == new.identity.vocabulary
    reader = partial(_reader, rows, moving.entry, length, how)
    before, read_before = _tuned(moving.own, moving.entry, old, how.runtime), reader(old)
    first = read_before(before)
    found: dict[str, Any] = {"rows": len(rows.rows), "source": rows.source, "metric": moving.entry.main_metric()}
    if rows.task is not None:
        found["metric"] = rows.task.metric
        found["before"] = number(first.scores.get(rows.task.metric))
    after: nn.Module | None = None
    if moving.refusal is None:
        after = _tuned(moving.delta, moving.entry, new, how.runtime)
        found |= _compared(rows, first, reader(new)(after))
    other, found["path_to"] = after, "direct reuse"
    if fresh is not None:
        other, found["path_to"] = load(fresh, store=how.store, base=new, check=False)[0], fresh.reference
        other = other.to(how.runtime.device)
    if other is None:
        notes.append("no path and no similarity: it cannot be put onto the new base, and no --fresh delta is given")
        return found | {"path_to": ""}
    if not same_words:
        notes.append("no path and no similarity: the two bases read texts as other tokens")
        return found | {"path_to": ""}
    if how.attention_texts:
        few = _encoded(replace(rows, rows=rows.rows[: how.attention_texts]), new, length)
        batches = evaluation_batches(few, min(ATTENTION_BATCH, how.batch_size))
        found["similarity"] = _or_note(
            notes, "no similarity", lambda: functional_similarity(before, other, batches, new.anatomy, how.runtime)
        )
    if rows.task is None:
        notes.append("no path: losses need labels")
    elif how.points:
        read = reader(new)
        found["path"] = _or_note(notes, "no path", lambda: _path(before, other, read, how.points))
    if found.get("path") is None:
        found["path_to"] = ""
    return found


def _compared(rows: Rows, first: Read, second: Read) -> dict[str, Any]:
    """What changes from one model's answers to the other's."""
    found: dict[str, Any] = {}
    kind = rows.task.kind if rows.task else None
    if first.answers is not None and second.answers is not None and kind != "regression":
        found["disagreement"] = disagreement(first.answers, second.answers)
        if rows.task is not None:
            found["flips"] = flips(first.answers, second.answers, _gold(rows, len(first.answers)))
    if rows.task is not None:
        found["after"] = number(second.scores.get(rows.task.metric))
        if rows.task.metric in SHARES and rows.task.metric not in RIGHT_ANSWERS and first.among and second.among:
            found["error"] = jackknife_error(partial(_lost, first.among, second.among), len(rows.rows))
    return found


def _lost(
    first: Callable[[np.ndarray], float | None], second: Callable[[np.ndarray], float | None], kept: np.ndarray
) -> float | None:
    before, after = first(kept), second(kept)
    return None if before is None or after is None else before - after


def _gold(rows: Rows, count: int) -> list[Any]:
    labels = [row.label for row in rows.rows]
    flat = [tag for label in labels for tag in (label if isinstance(label, tuple) else (label,))]
    return flat[:count]


def _tuned(delta: AnyDelta, entry: Entry, base: Base, runtime: Runtime) -> nn.Module:
    kind = entry.manifest.task.kind if entry.manifest.task else "classification"
    model, _ = base.task_model(kind, entry.manifest.label_names, seed=0)
    return install_delta(delta, model, base, trainable=False).to(runtime.device).eval().requires_grad_(False)


def _encoded(rows: Rows, base: Base, length: int) -> Encoded:
    limit = base.position_limit
    length = length if limit is None else min(length, limit)
    return encode_task(
        rows.rows, base.tokenizer(), length, rows.task.kind if rows.task else None, base.anatomy.encoder_decoder
    )


def _reader(rows: Rows, entry: Entry, length: int, how: Looking, base: Base) -> Callable[[nn.Module], Read]:
    """model -> what it makes of the rows, in this base's tokens."""
    encoded = _encoded(rows, base, length)
    if rows.task is not None:
        scorer = Scorer(
            task=rows.task, encoded=encoded, split="validation", base=base, batch_size=how.batch_size,
            runtime=how.runtime,
        )  # fmt: skip

        def scored(model: nn.Module) -> Read:
            said, answers = scorer(model, decoded=DECODED)
            among = partial(scorer.among, answers)
            return Read(_listed(answers, scorer.task.kind), dict(said.scores), said.loss, among)

        return scored
    kind = entry.manifest.task.kind if entry.manifest.task else "classification"
    if kind == "generation":
        raise DataError(
            "texts without labels say nothing about a delta that writes texts",
            why="What it writes is compared with gold responses.",
            fix="--task FILE   (prompts and responses)",
        )

    def answered(model: nn.Module) -> Read:
        if kind == "token-classification":
            words = [len(row.words or ()) for row in rows.rows]
            return Read(_listed(predict_tags(model, encoded, words, how.batch_size, how.runtime), kind), {}, None)
        batches = evaluation_batches(encoded, how.batch_size)
        answers = predict_logits(model, batches, len(rows.rows), how.runtime)
        return Read(_listed(answers, kind), {}, None)

    return answered


def _listed(answers: Any, kind: str) -> list[Any] | None:
    """Answers as a list: classes, values, tags word by word, texts; None where none were decoded."""
    if isinstance(answers, Tags):
        return [tag for tags in answers.indices for tag in tags]
    if isinstance(answers, Responses):
        return answers.texts
    return list(answers.argmax(dim=-1).tolist()) if kind == "classification" else None


def _path(before: nn.Module, other: nn.Module, read: Callable[[nn.Module], Read], points: int) -> Path:
    first, second = before.state_dict(), other.state_dict()
    if first.keys() != second.keys():  # a full difference at one end and an adapter at the other
        before, other = (merge(model) if hasattr(model, "peft_config") else model for model in (before, other))
        first, second = before.state_dict(), other.state_dict()

    def evaluate(model: nn.Module) -> Evaluation:
        said = read(model)
        return Evaluation(said.scores, said.loss, float("nan"))

    return path_between(other, first, second, evaluate, points=points)


def _or_note(notes: list[str], what: str, compute: Callable[[], Any]) -> Any:
    """What it gives; or None and a note that says why not."""
    try:
        return compute()
    except AnytuneError as problem:
        notes.append(f"{what}: {problem.what}")
        return None


def labelled(task: Task, rows: Sequence[Example], source: str) -> Rows:
    """Rows of a task with their labels."""
    chosen = tuple(rows)
    return Rows(chosen, task.with_rows(validation=chosen), source)
