"""The work of an upgrade, delta by delta: scored on both bases, scaled, trained. What workers run."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from anytune.data.batches import Encoded, encode_task
from anytune.data.tasks import Task
from anytune.engine.interrupts import InterruptedRunError
from anytune.engine.loop import Evaluation
from anytune.engine.progress import Reporter, Silent
from anytune.engine.runtime import Runtime, make_runtime
from anytune.errors import AnytuneError, DeltaError
from anytune.jobs.deltas import AnyDelta, load_delta
from anytune.jobs.moving import complete_head, moved
from anytune.jobs.recycle import recycle
from anytune.jobs.resident import Resident
from anytune.jobs.scoring import Answers, Scorer
from anytune.jobs.tune import tune
from anytune.jobs.upgrade_shelf import Found, Shelf, rows_hash
from anytune.jobs.upgrade_steps import BY_NAME, Attempt, best_coefficient, goal_of, reaches, worth
from anytune.methods import registry
from anytune.models.adapters import AdapterDelta
from anytune.models.base import Base
from anytune.models.delta import FullDelta
from anytune.store import Entry

#: Training steps of a delta that does not say how many it was tuned with.
USUAL_STEPS = 200
#: Evaluations of a training step, which ends at the first that is back within the tolerance. A look costs as much as
#: some ten steps: with more of them it would end earlier and take longer, and the luckiest of more scores would count.
LOOKS = 5
#: What bad weights or files raise where nothing foresaw them; a full disk (OSError) is no fault of a delta.
BROKEN = (AnytuneError, RuntimeError, ValueError, LookupError, TypeError, AttributeError)
_FOLDERS = re.compile(
    r"(?<![\w.:/])(?:(?:file:/*|~)?/(?:[^/\s'\"]+/)*|[A-Za-z]:[\\/](?:[^\\/\s'\"]+[\\/])*)(?=[^/\\\s'\"])"
)


class NoAnswerError(DeltaError):
    """Weights answer with NaN on a base: no score can be made of that."""


def score_shelf(*, shelf: Shelf, references: Sequence[str], reporter: Reporter | None = None) -> None:
    """Score deltas on their own base, then on the new one as they are and scaled; one base in memory at a time.

    What is wrong with a delta is written down and keeps no other one.
    """
    reporter = reporter or Silent()
    for score, is_done in ((_on_old, _old_is_done), (_on_new, _new_is_done)):
        bench: Bench | None = None
        for reference in references:
            entry = shelf.entry(reference)
            found = shelf.found(entry)
            if found.problem or is_done(found, entry, shelf):
                continue
            if shelf.time_is_up():
                return
            bench = bench or Bench(shelf)
            try:
                score(bench, entry, found)
            except InterruptedRunError:
                raise
            except BROKEN as problem:
                found.problem = told(problem)
                reporter.say(f"{reference}: {found.problem}; the others go on")
            shelf.note(entry, found)


class Bench:
    """A resident base and what scoring on it needs."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self.runtime: Runtime = make_runtime("fp32")
        self._residents: dict[str, Resident] = {}
        self._encoded: tuple[str, Encoded] | None = None

    def resident(self, base: Base) -> Resident:
        """The base in memory; another one is let go."""
        key = base.identity.backbone + base.identity.vocabulary
        if key not in self._residents:
            self._residents = {key: Resident(base, self.runtime)}
        return self._residents[key]

    def own(self, entry: Entry) -> AnyDelta:
        """The weights of a delta on its own base, checked.

        Raises:
            StoreError, DeltaError: they are damaged, not finite, or not there.
        """
        self.shelf.store.verify(entry)
        delta = load_delta(entry)
        if isinstance(delta, AdapterDelta):
            kind, names = _kind(entry)
            if self._lacks_head(delta, kind, names):
                delta = complete_head(delta, entry, self.shelf.old_base)
        refuse_broken(delta, entry.reference)
        return delta

    def _lacks_head(self, delta: AdapterDelta, kind: Any, names: Sequence[str]) -> bool:
        """Looked up on the resident that is there: the two bases' heads have the same names, or nothing fits."""
        resident = next(iter(self._residents.values()), None) or self.resident(self.shelf.old_base)
        return bool(delta.saved_head_missing(resident.head_names(kind, names)))

    def score(self, base: Base, delta: AnyDelta, entry: Entry, sample: Task) -> tuple[dict[str, float], float]:
        """All metrics of a delta on held-out rows, the main one first, and the seconds it took."""
        began = time.perf_counter()
        found, _ = self.answers(base, delta, entry, self.scorer(base, entry, sample))
        if not found.scores or found.loss is None or found.loss != found.loss:
            raise NoAnswerError(
                f"'{entry.reference}' answers with NaN on {base.name}", why="No score can be made of that."
            )
        return dict(found.scores), time.perf_counter() - began

    def scorer(self, base: Base, entry: Entry, sample: Task) -> Scorer:
        """What scores a delta of these settings on held-out rows, as a base reads them."""
        encoded = self._rows(base, entry, sample)
        return Scorer(task=sample, encoded=encoded, split="validation", base=base, batch_size=64, runtime=self.runtime)

    def answers(self, base: Base, delta: AnyDelta, entry: Entry, scorer: Scorer) -> tuple[Evaluation, Answers]:
        """What a delta answers on a base, and what that scores."""
        with self.resident(base).holding(delta, *_kind(entry)) as model:
            return scorer(model)

    def _rows(self, base: Base, entry: Entry, sample: Task) -> Encoded:
        length = int(entry.manifest.training.get("max_length") or 128)
        limit = base.position_limit
        length = length if limit is None else min(length, limit)
        key = f"{sample.content} {base.identity.vocabulary} {length}"
        if self._encoded is None or self._encoded[0] != key:
            rows = encode_task(sample.validation, base.tokenizer(), length, sample.kind, base.anatomy.encoder_decoder)
            self._encoded = (key, rows)
        return self._encoded[1]


def _on_old(bench: Bench, entry: Entry, found: Found) -> None:
    shelf, sample = bench.shelf, bench.shelf.sample(entry)
    scores, seconds = bench.score(shelf.old_base, bench.own(entry), entry, sample)
    found.rows = rows_hash(sample)
    found.attempts.append(_scored("old", sample.metric, scores, seconds))


def _on_new(bench: Bench, entry: Entry, found: Found) -> None:
    shelf, sample, metric = bench.shelf, bench.shelf.sample(entry), bench.shelf.sample(entry).metric
    bench.resident(shelf.new_base)
    old = found.attempt("old")
    assert old is not None
    assert old.score is not None
    goal = goal_of(old.score, metric, shelf.tolerance)
    own = bench.own(entry)
    try:
        delta = moved(entry, shelf.old_base, shelf.new_base, own)
    except AnytuneError as problem:
        found.fits = False
        found.attempts.append(Attempt("keep", None, 0.0, problem=told(problem)))
        return
    kept = found.attempt("keep")
    if kept is None:
        try:
            scores, seconds = bench.score(shelf.new_base, delta, entry, sample)
            kept = _scored("keep", metric, scores, seconds)
        except NoAnswerError as problem:  # less of it, or training, may do
            kept = Attempt("keep", None, 0.0, problem=told(problem))
        found.attempts.append(kept)
        found.scales = scales(delta)
        shelf.note(entry, found)
    if reaches(kept.score, goal, metric) or not _may_scale(found, shelf) or shelf.time_is_up():
        return
    tried: dict[float, Mapping[str, float | None]] = {1.0: kept.scores}
    spent = 0.0

    def value(coefficient: float) -> float:
        nonlocal spent
        part = scaled(delta, coefficient, shelf.new_base)
        try:
            tried[coefficient], seconds = bench.score(shelf.new_base, part, entry, sample)
        except NoAnswerError:
            tried[coefficient], seconds = {metric: None}, 0.0
        spent += seconds
        return worth(tried[coefficient][metric], metric)

    best = best_coefficient(value, worth(kept.score, metric), worth(goal, metric))
    settings = {
        "coefficient": best,
        "tried": {f"{one:g}": scores.get(metric) for one, scores in sorted(tried.items())},
    }
    found.attempts.append(_scored("scale", metric, tried[best], spent, settings))


def _old_is_done(found: Found, entry: Entry, shelf: Shelf) -> bool:
    return found.attempt("old") is not None


def _new_is_done(found: Found, entry: Entry, shelf: Shelf) -> bool:
    old, kept = found.attempt("old"), found.attempt("keep")
    if old is None or old.score is None:
        return True
    if kept is None:
        return False
    assert entry.manifest.task is not None
    metric = entry.manifest.task.metric
    back = reaches(kept.score, goal_of(old.score, metric, shelf.tolerance), metric)
    return back or not _may_scale(found, shelf) or found.attempt("scale") is not None


def _may_scale(found: Found, shelf: Shelf) -> bool:
    return found.scales and (shelf.steps is None or "scale" in shelf.steps)


def scales(delta: AnyDelta) -> bool:
    """Whether a part of a delta's difference can be taken: a LoRA, or a full difference that has any."""
    if isinstance(delta, FullDelta):
        return bool(delta.difference)
    return delta.config.get("peft_type") == "LORA" and not delta.config.get("use_dora")


def scaled(delta: AnyDelta, coefficient: float, base: Base) -> AnyDelta:
    """A part of a delta, as a delta of ``base``: what is scored is what would be stored."""
    if isinstance(delta, AdapterDelta):
        return delta.scaled(coefficient, base.tensors(pretraining_head=True), base.anatomy)
    difference = {name: tensor * coefficient for name, tensor in delta.difference.items()} if coefficient else {}
    return replace(delta, difference=difference, corrections={})


def refuse_broken(delta: AnyDelta, reference: str) -> None:
    """Raise DeltaError for weights that are not finite numbers: some scores would not show it."""
    tensors = delta.tensors if isinstance(delta, AdapterDelta) else {**delta.difference, **delta.head}
    broken = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise DeltaError(
            f"'{reference}' holds NaN or infinity in {len(broken)} tensors: {', '.join(broken[:3])}",
            why="Such weights answer nothing.", fix="tune it again",
        )  # fmt: skip


def told(problem: Exception) -> str:
    """What is wrong, without the folders of this machine."""
    return without_folders(
        problem.what if isinstance(problem, AnytuneError) else f"{type(problem).__name__}: {problem}"
    )


def without_folders(text: str) -> str:
    """The first line of a text, of paths the last name alone."""
    return _FOLDERS.sub("", text.partition("\n")[0])


def _kind(entry: Entry) -> tuple[Any, list[str]]:
    """Kind and label names of a delta's task."""
    task = entry.manifest.task
    return (task.kind if task else "classification"), entry.manifest.label_names


def _scored(
    step: str,
    metric: str,
    scores: Mapping[str, float | None],
    seconds: float,
    settings: Mapping[str, Any] | None = None,
) -> Attempt:
    return Attempt(step, scores.get(metric), round(seconds, 3), scores, settings or {})


# ---------------------------------------------------------------------- training


def train_step(*, shelf: Shelf, reference: str, step: str, reporter: Reporter | None = None) -> None:
    """Try a training step on one delta, unless the time for it is up; that it failed is written down as well."""
    entry = shelf.entry(reference)
    found = shelf.found(entry)
    if found.attempt(step) is not None or shelf.time_is_up(seconds_for(entry, step)):
        return
    began = time.perf_counter()
    try:
        sample = shelf.sample(entry)
    except AnytuneError as problem:
        found.problem = told(problem)
        shelf.note(entry, found)
        return
    try:
        task = None if found.lacking else shelf.training_task(entry, sample)
    except AnytuneError as problem:  # not tried: with its rows the step may do
        found.lacking, task = told(problem), None
        shelf.note(entry, found)
        reporter = reporter or Silent()
        reporter.say(f"{reference}: no training rows: {found.lacking}")
        if BY_NAME[step].rows or shelf.unlabelled is None:
            return
    try:
        attempt = _trained(shelf, entry, found, step, sample, task, reporter or Silent())
    except InterruptedRunError:
        raise
    except BROKEN as problem:
        if isinstance(problem.__cause__, OSError):
            raise
        attempt = Attempt(step, None, round(time.perf_counter() - began, 3), problem=told(problem))
    found.attempts.append(attempt)
    shelf.note(entry, found)


def _trained(
    shelf: Shelf, entry: Entry, found: Found, step: str, sample: Task, task: Task | None, reporter: Reporter
) -> Attempt:  # fmt: skip
    old = found.attempt("old")
    assert old is not None
    assert old.score is not None
    began = time.perf_counter()
    texts_alone = task is None
    if task is None:  # only what needs no labels comes here; the rows stand in for splits that are not read
        task = sample.with_rows(train=sample.validation, test=sample.validation[:1])
    count = steps_for(entry, step)
    training = {
        "steps": count, "evaluate_every": max(1, count // LOOKS), "keep": "best",
        "stop_at": goal_of(old.score, sample.metric, shelf.tolerance),
    }  # fmt: skip
    shared: dict[str, Any] = {"store": shelf.attempts_store, "reporter": reporter, "keep_sample": False}
    if step == "retune":
        made = tune(
            shelf.new_base, task, method=own_methods(entry), seeds=[entry.manifest.seed], workers=1,
            training={**own_training(entry), **training}, **shared,
        )[0]  # fmt: skip
    else:
        if shelf.unlabelled is not None and texts_alone:
            shared["unlabelled"] = shelf.texts_beside(sample)
        method: Any = {"name": step, "alpha": 1.0, "label_free": True} if texts_alone else step
        made = recycle(
            entry, shelf.new_base, old_base=shelf.old_base, method=method, task=task, training=training, **shared
        )[0]
    manifest = made.manifest
    if manifest.failed:
        raise DeltaError(manifest.failed)
    settings = {"steps": manifest.steps, "of": count, "run": manifest.run}
    if texts_alone:
        settings["labels"] = False
    return Attempt(
        step, made.score(), round(time.perf_counter() - began, 3), dict(manifest.scores["validation"]), settings
    )


def steps_for(entry: Entry, step: str) -> int:
    """How many training steps a step may make: its share of those the delta was tuned with."""
    return max(1, round(BY_NAME[step].share * tuned_steps(entry)))


def tuned_steps(entry: Entry) -> int:
    """The training steps a delta was once tuned with, also where an upgrade since then made fewer."""
    manifest = entry.manifest
    stated = (manifest.decision or {}).get("tuned_steps") or manifest.training.get("steps") or manifest.steps
    return int(stated or USUAL_STEPS)


def tuned_for(entry: Entry) -> dict[str, Any]:
    """What a delta was once tuned for: ``steps``, ``epochs``, training ``rows``; also where an upgrade came since.

    As it was asked for: where training ended early, each seed made its own number of steps (``tuned_steps``).
    """
    manifest = entry.manifest
    known = (manifest.decision or {}).get("tuned_for")
    if known is not None:
        return dict(known)
    asked = manifest.recipe.get("training") or {}
    rows = manifest.task.counts.get("train") if manifest.task else None
    return {"steps": asked.get("steps"), "epochs": asked.get("epochs"), "rows": rows}


def seconds_for(entry: Entry, step: str) -> float:
    """About how long a training step may take, by the delta's own training; 0.0 where that is unknown."""
    return step_seconds(entry) * steps_for(entry, step)


def step_seconds(entry: Entry) -> float:
    """Seconds of an optimizer step when the delta was tuned; 0.0 where that is unknown."""
    manifest = entry.manifest
    speed = (manifest.decision or {}).get("step_seconds") or (
        manifest.seconds / manifest.steps if manifest.steps else 0.0
    )
    return float(speed)


def own_methods(entry: Entry) -> list[dict[str, Any]]:
    """The methods a delta was tuned with.

    Raises:
        DeltaError: it does not say, or they need other stored prompts.
    """
    records = [record for record in entry.manifest.methods if record.name.partition("/")[0] in registry.TUNING]
    if not records:
        raise DeltaError(f"'{entry.reference}' does not say how it was tuned", why="It was made elsewhere.")
    return [{"name": record.name.rpartition("/")[2], **record.settings} for record in records]


def own_training(entry: Entry) -> dict[str, Any]:
    """The training settings a delta was tuned with, as far as this version knows them."""
    from anytune.engine.settings import TrainingSettings

    known = TrainingSettings.model_fields
    return {key: value for key, value in entry.manifest.training.items() if key in known and value is not None}
