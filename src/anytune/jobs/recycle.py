"""Carry a tuned delta over to an upgraded base: ``anytune recycle``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anytune.data.tasks import Task
from anytune.engine.progress import Reporter
from anytune.engine.settings import TrainingSettings, training_settings
from anytune.engine.tracking import tracking
from anytune.errors import DataError, DeltaError, StoreError, WrongBaseError
from anytune.jobs.command import check_seeds, recipe_of
from anytune.jobs.forecast import unwritten
from anytune.jobs.opening import base_of_delta, fitting, open_base, open_delta, open_store, open_task
from anytune.jobs.resuming import Resume, check_resume
from anytune.jobs.run_all import forecast_all, tune_all
from anytune.jobs.scoring import EncodedTask
from anytune.jobs.tune import Source
from anytune.jobs.tuning import Outdated, TuningPlan, load_delta
from anytune.manifests import Manifest, MethodRecord
from anytune.methods import registry
from anytune.methods.protocol import Method
from anytune.models.adapters import INSIDE, AdapterDelta, head_modules
from anytune.models.base import Base
from anytune.models.delta import FullDelta
from anytune.models.prompt_files import BEFORE
from anytune.models.soft_prompt_config import is_soft_prompt
from anytune.store import Entry, Store


@unwritten
def recycle(
    delta: Entry | Source,
    base: Base | Entry | Source,
    *,
    store: Store | Source | None = None,
    method: str | Mapping[str, Any] = "initialize",
    tune: str | Sequence[Any] | Mapping[str, Any] | None = None,
    task: Task | Source | None = None,
    old_base: Base | Entry | Source | None = None,
    training: TrainingSettings | Mapping[str, Any] | None = None,
    seeds: Sequence[int] | None = None,
    train_size: int | None = None,
    per_class: int | None = None,
    keep: str = "weights",
    name: str | None = None,
    tags: Mapping[str, str] | None = None,
    resume: Resume = "auto",
    log_with: str | Sequence[str] | None = None,
    log_dir: str | Path | None = None,
    dry_run: bool = False,
    reporter: Reporter | None = None,
    **columns: Any,
) -> list[Entry]:
    """Carry ``delta`` over to ``base`` by a recycle method and store the result.

    Args:
        delta: an outdated delta: name, id or folder.
        base: the upgraded base.
        method: "direct" (no training) or "initialize" (start there, then tune), or another recycle method.
        tune: tune method(s) of the training after it; default: what the delta was tuned with.
        task: the task's data; default: the task the delta's manifest refers to, if it is a sample or datasets id.
        old_base: the base the delta belongs to, if it is not found by itself.
        seeds: default: the delta's own seed.
        training: default: the settings the delta was tuned with.
        resume: "auto" goes on with a run that was interrupted; "must" is an error where none of the seeds was begun
            before, and names what differs; "never" throws checkpoints away and begins at step 0.
        log_with: experiment trackers that follow the runs: "tensorboard", "trackio", "wandb" ..., or a list.
        log_dir: folder of the files that trackers write (default: ``anytune-logs``).
        dry_run: make nothing; the list holds a :class:`~anytune.jobs.forecast.Forecast` for each run instead.

    Returns:
        One store entry per seed.

    Raises:
        AnytuneError: bad input, bases of different shape (with a reason for each tensor), labels that differ, or
            missing task data.
    """
    resume = check_resume(resume)
    followed = tracking(log_with, log_dir)
    place = open_store(store)
    entry = open_delta(delta, place)
    old = base_of_delta(entry, place, old_base)
    new = open_base(base, place)
    data = _task_of(entry.manifest, task, columns)
    if train_size is not None or per_class is not None:
        data = data.subset(train_size=train_size, per_class=per_class, seed=0)
    check_labels(entry.manifest, data)
    check_vocabulary(old, new)
    moved_delta = moved(entry, old, new)
    given = dict(training.model_dump(exclude_unset=True) if isinstance(training, TrainingSettings) else training or {})
    settings = fitting(training_settings({**_inherited(entry.manifest), **given}), new, asked=given)
    tuned_by = _tune_methods(entry.manifest, tune, moved_delta)
    plans = []
    for seed in check_seeds(seeds if seeds is not None else [entry.manifest.seed]):
        kind = new.anatomy.model_type
        recycle_method = registry.parse(method, "recycle", kind)
        methods = [*recycle_method, *(registry.parse(tuned_by, "tune", kind) if recycle_method[0].trains else [])]
        plans.append(TuningPlan(
            job="recycle", base=new, task=data, methods=methods, settings=settings, seed=seed,
            outdated=Outdated(entry, moved_delta, new), keep=keep, tracking=followed,
            inherited=inherited_methods(entry.manifest, methods),
            name=name or f"{data.name}-{methods[0].name}-{new.name}",
            tags=dict(tags or {"arm": methods[0].name}),
            recipe=recipe_of("recycle", base=new, task=data, delta=entry.reference, method=method, tune=tuned_by,
                             training=settings, seeds=[seed], train_size=train_size, per_class=per_class, keep=keep,
                             **columns),
        ))  # fmt: skip

    def encoded(part: Task) -> EncodedTask:
        return EncodedTask.of(part, new, settings.max_length)

    if dry_run:
        forecasts: list[Any] = forecast_all(plans, place, encoded=encoded)
        return forecasts
    return tune_all(plans, place, encoded=encoded, reporter=reporter, resume=resume)


def moved(entry: Entry, old: Base, new: Base) -> FullDelta | AdapterDelta:
    """The delta as it lands on the new base, without training.

    A full difference is carried bit for bit (its exact corrections only onto the same base); an adapter is carried as
    it is, except that absolute copies of modules the base holds become differences and back.

    Raises:
        DeltaError: only its scores were kept, or the bases' tensors do not fit (a reason for each).
    """
    delta = load_delta(entry)
    if isinstance(delta, FullDelta):
        return delta if delta.base.backbone == new.identity.backbone else delta.rebased(new.identity)
    # a generating model's head is the base's own vocabulary head: a copy of it moves as a difference too
    head = entry.manifest.task is not None and entry.manifest.task.kind == "generation"
    before, after = (base.tensors(pretraining_head=head) for base in (old, new))
    return complete_head(delta, entry, old).rebase(before, after, new.anatomy)


def check_vocabulary(old: Base, new: Base) -> None:
    """Every word of the old base must have the same number in the new one; words may have been added.

    Shapes would not tell: with the same number of words, each tuned embedding would land on another word.

    Raises:
        WrongBaseError: some words have another number, or none.
    """
    if old.identity.vocabulary == new.identity.vocabulary:
        return
    before, after = old.tokenizer().get_vocab(), new.tokenizer().get_vocab()
    changed = sorted(word for word, number in before.items() if after.get(word) != number)
    if changed:
        word = changed[0]
        raise WrongBaseError(
            f"the vocabularies of {old.name} and {new.name} differ in {len(changed)} of {len(before)} words: "
            f"{word!r} is number {before[word]} in one and {after.get(word, 'none')} in the other",
            why="The tuned weights were learned for other words.",
            fix=f"an upgrade of {old.name} that keeps its vocabulary, or tune the task afresh on {new.name}",
        )


def complete_head(adapter: AdapterDelta, entry: Entry, base: Base) -> AdapterDelta:
    """The adapter with its whole head.

    PEFT alone saves no freshly made pooler, so an adapter made elsewhere may lack one. It is given the values that
    ``load`` answers with (head seed 0); from here on they are trained, saved and moved with it.
    """
    kind = entry.manifest.task.kind if entry.manifest.task else "classification"
    model, head_names = base.task_model(kind, entry.manifest.label_names, seed=0)
    missing = adapter.saved_head_missing(head_names)
    if not missing:
        return adapter
    state = model.state_dict()
    before = BEFORE if is_soft_prompt(adapter.config) else INSIDE
    tensors = {f"{before}{name}": state[name].clone() for name in missing}
    saved = [*(adapter.config.get("modules_to_save") or []), *head_modules(model, missing)]
    return AdapterDelta({**adapter.config, "modules_to_save": saved}, {**adapter.tensors, **tensors})


def check_labels(manifest: Manifest, task: Task) -> None:
    """The task's labels must be those of the delta, in its order.

    Raises:
        DataError: they differ; the head's outputs would mean other things.
    """
    if manifest.task is not None and manifest.task.kind != task.kind:
        raise DataError(
            f"'{manifest.name}' is a {manifest.task.kind} delta and task '{task.name}' is {task.kind}",
            why="A head of one kind gives nothing for the other.",
            fix="--task the task the delta was tuned on",
        )
    if task.label_names and list(task.label_names) != manifest.label_names:
        raise DataError(
            f"labels differ: the delta has {_few(manifest.label_names)}; "
            f"task '{task.name}' has {_few(task.label_names)}",
            why="Output i of the delta's head would be read as another label.",
            fix="--task with the same labels; a fixed order can be given with --label-names",
        )


def inherited_methods(manifest: Manifest, methods: Sequence[Method]) -> list[MethodRecord]:
    """The tune methods of the outdated delta that this run does not name itself: LoRA's matrices, a frozen body."""
    named = {f"{method.room}/{method.name}" for method in methods}
    return [record for record in manifest.methods if record.name.startswith("tune/") and record.name not in named]


def _few(names: Sequence[str]) -> str:
    return f"{len(names)} labels ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"


def _task_of(manifest: Manifest, task: Task | Source | None, columns: Mapping[str, Any]) -> Task:
    if task is not None:
        return open_task(task, **{**known_columns(manifest), **columns})
    if manifest.task is None or manifest.task.ref is None:
        raise StoreError(
            f"'{manifest.name}' does not say where its task's data are",
            why="Local files are not recorded (no path ever is); recycling scores on them and may train on them.",
            fix="--task FILE",
        )
    return open_task(manifest.task.ref, **columns)


def known_columns(manifest: Manifest) -> dict[str, Any]:
    """What a delta knows about the data it is scored on: the labels in their order, and kinds that need telling."""
    known: dict[str, Any] = {"label_names": manifest.label_names or None}
    if manifest.task is not None and manifest.task.kind in ("token-classification", "generation"):
        known["kind"] = manifest.task.kind
    return known


def _inherited(manifest: Manifest) -> dict[str, Any]:
    """The delta's own training settings, where they are settings of this version."""
    known = TrainingSettings.model_fields
    return {key: value for key, value in manifest.training.items() if key in known and value is not None}


def _tune_methods(manifest: Manifest, tune: Any, delta: FullDelta | AdapterDelta) -> Any:
    """Tune methods for the steps after the move; an adapter brings its own parametrisation with it."""
    if tune is None:
        tune = [
            {"name": record.name, "settings": record.settings}
            for record in manifest.methods
            if record.name.startswith("tune/")
        ]
        # a soft prompt goes on being tuned as what it is
        tune = tune or ([] if isinstance(delta, AdapterDelta) and is_soft_prompt(delta.config) else ["full"])
    if not isinstance(delta, AdapterDelta):
        return tune
    chosen = [tune] if isinstance(tune, str | Mapping) else list(tune)
    names = [one if isinstance(one, str) else one["name"] for one in chosen]
    if any(name.removeprefix("tune/") == "full" for name in names) and manifest.methods:
        raise DeltaError(
            f"'{manifest.name}' is an adapter and cannot go on with full tuning",
            why="Its result would be a full difference; the adapter's own matrices are what is recycled.",
            fix=f"anytune merge {manifest.name}   (gives a plain model), then tune that",
        )
    return [one for one, name in zip(chosen, names, strict=True) if name.removeprefix("tune/") not in ("lora", "full")]
