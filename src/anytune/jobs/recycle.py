"""Carry a tuned delta over to an upgraded base: ``anytune recycle``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from anytune.data.tasks import Example, Task
from anytune.engine.progress import Reporter
from anytune.engine.settings import TrainingSettings, training_settings
from anytune.engine.tracking import Tracking, tracking
from anytune.errors import DataError, DeltaError, StoreError
from anytune.jobs.command import check_seeds, recipe_of
from anytune.jobs.deltas import AnyDelta
from anytune.jobs.failures import are_kept
from anytune.jobs.forecast import unwritten
from anytune.jobs.opening import base_of_delta, fitting, open_base, open_delta, open_domain, open_store, open_task
from anytune.jobs.outdated import Moving
from anytune.jobs.projections import given_projection
from anytune.jobs.resuming import Resume, check_resume
from anytune.jobs.run_all import forecast_all, tune_all
from anytune.jobs.scoring import EncodedTask
from anytune.jobs.tune import Source
from anytune.jobs.tuning_plan import TuningPlan
from anytune.manifests import Manifest, MethodRecord
from anytune.methods import registry
from anytune.methods.protocol import Method
from anytune.models.adapters import AdapterDelta
from anytune.models.base import Base
from anytune.models.relabel import few, label_order
from anytune.models.soft_prompt_config import config_from_peft, is_soft_prompt
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
    unlabelled: Source | Sequence[str | tuple[str, str]] | None = None,
    projection: Entry | Source | None = None,
    old_base: Base | Entry | Source | None = None,
    training: TrainingSettings | Mapping[str, Any] | None = None,
    seeds: Sequence[int] | None = None,
    train_size: int | None = None,
    per_class: int | None = None,
    keep: str = "weights",
    keep_sample: bool = True,
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
        method: "direct" (no training), "initialize" (start there, then tune), "distill" (learn from the old model), or
            another recycle method.
        tune: tune method(s) of the training after it; default: what the delta was tuned with.
        task: the task's data; default: the task the delta's manifest refers to, if it is a sample or datasets id.
        unlabelled: texts without labels, for methods that read them: a domain (a file, "sample:NAME"), or the texts
            themselves (pairs of texts where the task's rows are pairs).
        projection: for the method "projection": a delta of the new base that it was trained for on another task; the
            outdated weights go through its map, and nothing is trained.
        old_base: the base the delta belongs to, if it is not found by itself.
        seeds: default: the delta's own seed.
        keep_sample: keep some validation rows beside the weights; see :func:`anytune.jobs.tune.tune`.
        training: default: the settings the delta was tuned with.
        resume: "auto" goes on with a run that was interrupted; "must" is an error where none of the seeds was begun
            before, and names what differs; "never" throws checkpoints away and begins at step 0.
        log_with: experiment trackers that follow the runs: "tensorboard", "trackio", "wandb" ..., or a list.
        log_dir: folder of the files that trackers write (default: ``anytune-logs``).
        dry_run: make nothing; the list holds a :class:`~anytune.jobs.forecast.Forecast` for each run instead.

    Returns:
        One store entry per seed.

    Raises:
        AnytuneError: bad input, bases of different shape where the method puts the old weights onto the new one (with
            a reason for each tensor), labels that differ, missing task data, or texts that no method reads.
    """
    resume = check_resume(resume)
    followed = tracking(log_with, log_dir)
    place = open_store(store)
    plans, encoded = recycling_plans(
        delta, base, store=place, method=method, tune=tune, task=task, unlabelled=unlabelled, projection=projection,
        old_base=old_base, training=training, seeds=seeds, train_size=train_size, per_class=per_class, keep=keep,
        keep_sample=keep_sample, name=name, tags=tags, followed=followed, **columns,
    )  # fmt: skip
    if dry_run:
        forecasts: list[Any] = forecast_all(plans, place, encoded=encoded)
        return forecasts
    return tune_all(plans, place, encoded=encoded, reporter=reporter, resume=resume)


def recycling_plans(
    delta: Entry | Source, base: Base | Entry | Source, *, store: Store,
    method: str | Mapping[str, Any] = "initialize", tune: str | Sequence[Any] | Mapping[str, Any] | None = None,
    task: Task | Source | None = None, unlabelled: Source | Sequence[str | tuple[str, str]] | None = None,
    projection: Entry | Source | None = None, old_base: Base | Entry | Source | None = None,
    training: TrainingSettings | Mapping[str, Any] | None = None,
    seeds: Sequence[int] | None = None, train_size: int | None = None, per_class: int | None = None,
    keep: str = "weights", keep_sample: bool = True, name: str | None = None, tags: Mapping[str, str] | None = None,
    followed: Tracking | None = None, **columns: Any,
) -> tuple[list[TuningPlan], Callable[[Task], EncodedTask]]:  # fmt: skip
    """The runs that :func:`recycle` would make, everything opened and checked; and what gives their task as token ids.

    Raises:
        AnytuneError: as ``recycle``.
    """
    place = store
    entry = open_delta(delta, place)
    old = base_of_delta(entry, place, old_base)
    new = open_base(base, place)
    data = _task_of(entry.manifest, task, columns)
    if train_size is not None or per_class is not None:
        data = data.subset(train_size=train_size, per_class=per_class, seed=0)
    check_kind(entry.manifest, data)
    moving = Moving(entry, old, new, label_order(entry.manifest.label_names, data.label_names, data.name))
    recycle_methods = registry.parse(method, "recycle", new.anatomy.model_type)
    if any(one.begins == "moved" for one in recycle_methods):
        moving.delta  # noqa: B018 - refused before anything is computed
    texts = texts_without_labels(unlabelled, data, recycle_methods)
    projected = given_projection(projection, recycle_methods, new, place)
    given = dict(training.model_dump(exclude_unset=True) if isinstance(training, TrainingSettings) else training or {})
    settings = fitting(training_settings({**_inherited(entry.manifest), **given}), new, asked=given)
    fresh = all(one.begins == "fresh" for one in recycle_methods)
    tuned_by = _tune_methods(entry.manifest, tune, moving.own, fresh)
    kind = new.anatomy.model_type
    plans = []
    for seed in check_seeds(seeds if seeds is not None else [entry.manifest.seed]):
        methods = registry.parse(method, "recycle", kind)
        if projected is None and all(one.trains for one in methods):
            beside = registry.parse(tuned_by, registry.TUNING, kind)
            # what learns from the old model sees the model as it will be trained; moved weights come first
            methods = [*beside, *methods] if fresh else [*methods, *beside]
        plans.append(TuningPlan(
            job="recycle", base=new, task=data, methods=methods, settings=settings, seed=seed,
            outdated=moving, unlabelled=texts, projection=projected, keep=keep, keep_sample=keep_sample,
            tracking=followed, keeps_failure=are_kept(), notes=moving.notes,
            inherited=inherited_methods(entry.manifest, methods) if not fresh else (),
            name=name or f"{data.name}-{recycle_methods[0].name}-{new.name}",
            tags=dict(tags or {"arm": recycle_methods[0].name}),
            recipe=recipe_of("recycle", base=new, task=data, delta=entry.reference, method=method, tune=tuned_by,
                             training=settings, seeds=[seed], train_size=train_size, per_class=per_class, keep=keep,
                             keep_sample=None if keep_sample else False,
                             unlabelled=recorded_texts(unlabelled),
                             projection=projected.entry.reference if projected else None, **columns),
        ))  # fmt: skip

    def encoded(part: Task) -> EncodedTask:
        return EncodedTask.of(part, new, settings.max_length)

    return plans, encoded


def check_labels(manifest: Manifest, task: Task) -> None:
    """The task's labels must be those of the delta, in its order.

    Raises:
        DataError: they differ; the head's outputs would mean other things.
    """
    check_kind(manifest, task)
    if task.label_names and list(task.label_names) != manifest.label_names:
        raise DataError(
            f"labels differ: the delta has {few(manifest.label_names)}; "
            f"task '{task.name}' has {few(task.label_names)}",
            why="Output i of the delta's head would be read as another label.",
            fix="--task with the same labels; a fixed order can be given with --label-names",
        )


def check_kind(manifest: Manifest, task: Task) -> None:
    """The task must be of the delta's kind.

    Raises:
        DataError: it is not.
    """
    if manifest.task is not None and manifest.task.kind != task.kind:
        raise DataError(
            f"'{manifest.name}' is a {manifest.task.kind} delta and task '{task.name}' is {task.kind}",
            why="A head of one kind gives nothing for the other.",
            fix="--task the task the delta was tuned on",
        )


def inherited_methods(manifest: Manifest, methods: Sequence[Method]) -> list[MethodRecord]:
    """The tune methods of the outdated delta that this run does not name itself: LoRA's matrices, a frozen body."""
    named = {f"{method.room}/{method.name}" for method in methods}
    return [record for record in manifest.methods if record.name.startswith("tune/") and record.name not in named]


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
    known = set(TrainingSettings.model_fields) - {"stop_at"}  # that was a goal of its own run
    return {key: value for key, value in manifest.training.items() if key in known and value is not None}


def _tune_methods(manifest: Manifest, tune: Any, own: AnyDelta, fresh: bool) -> Any:
    """Tune methods for the steps of the run.

    Where it begins with the moved weights, an adapter brings its own parametrisation with it; where it begins afresh,
    the delta's own methods make it anew.
    """
    adapter = own if isinstance(own, AdapterDelta) else None
    prompt = adapter is not None and is_soft_prompt(adapter.config)
    if tune is None:
        tune = [
            {"name": record.name, "settings": record.settings}
            for record in manifest.methods
            if record.name.startswith("tune/")
        ]
        if fresh:
            return _made_anew(manifest, adapter) + ([] if prompt else tune) or tune or ["full"]
        # a soft prompt goes on being tuned as what it is
        tune = tune or ([] if prompt else ["full"])
    if adapter is None or fresh:
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


def _made_anew(manifest: Manifest, adapter: AdapterDelta | None) -> list[dict[str, Any]]:
    """The method that makes an adapter like this one on another base, where the manifest names none that can.

    Raises:
        DeltaError: no method makes adapters of its kind.
    """
    if adapter is None or any(record.name == "tune/lora" for record in manifest.methods):
        return []
    config = adapter.config
    if is_soft_prompt(config):
        prompt = config_from_peft(config)
        return [{"name": "prompt_tuning", "settings": {"kind": prompt.kind, "length": prompt.length}}]
    if config.get("peft_type") == "LORA":
        settings = {"r": config.get("r", 8), "alpha": config.get("lora_alpha", 8), "targets": config["target_modules"]}
        return [{"name": "lora", "settings": settings}]
    raise DeltaError(
        f"'{manifest.name}' is a {config.get('peft_type')} adapter, and none like it can be made on another base",
        why="The new weights begin afresh, and no tune method makes this kind.",
        fix="--tune lora   (or another tune method)",
    )


def texts_without_labels(
    given: Source | Sequence[str | tuple[str, str]] | None, task: Task, methods: Sequence[Method]
) -> tuple[Example, ...]:
    """Texts without labels as rows like the task's.

    Raises:
        DataError: no method reads them, the task's rows are pairs and these are not, or there is none.
    """
    if given is None:
        return ()
    if not any(method.reads_unlabelled() for method in methods):
        raise DataError(
            "texts without labels are given, and no method reads them",
            why="They would be passed over without a word.",
            fix="--method distill --set label_free=true",
        )
    texts: Sequence[str | tuple[str, str]]
    if isinstance(given, str | Path | Mapping):
        texts = open_domain(given, heldout_fraction=0.0).texts
    else:
        texts = given
    pairs = task.train[0].text_pair is not None
    if not texts or any(isinstance(text, str) == pairs for text in texts):
        raise DataError(
            "the texts without labels are not like the task's rows" if texts else "there are no texts without labels",
            why=f"Each row of '{task.name}' is {'two texts' if pairs else 'one text'}.",
            fix='recycle(..., unlabelled=[("first", "second"), ...])' if pairs else "a .txt file, or a list of texts",
        )
    words = task.kind == "token-classification"
    made = []
    for text in texts:
        first, second = (text, None) if isinstance(text, str) else text
        split = tuple(first.split()) if words else None
        made.append(Example(" ".join(split) if split else first, second, 0, split))
    return tuple(made)


def recorded_texts(given: Any) -> Any:
    """What a recipe keeps of texts: their source, never the texts themselves."""
    return given if given is None or isinstance(given, str | Mapping) else None
