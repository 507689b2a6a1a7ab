"""One tuning run, fresh or recycled: from a prepared model to an artefact in the store.

``jobs.tune`` and ``jobs.recycle`` are thin layers over :func:`tune_once`; they differ only in where the weights start.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import nn

from anytune.data.batches import ExampleBatches
from anytune.data.tasks import Task
from anytune.engine.loop import train
from anytune.engine.progress import Reporter, Silent
from anytune.engine.runtime import Runtime, derive_seed, seeded
from anytune.engine.settings import total_steps
from anytune.errors import DivergedError
from anytune.jobs.deltas import refuse_adapter_on_full
from anytune.jobs.failures import keep_failure
from anytune.jobs.forecast import Prepared
from anytune.jobs.keeping import Outcome, scorer_of
from anytune.jobs.resuming import Resume, RunIdentity, once
from anytune.jobs.scoring import DECODED_WHILE_TRAINING, EncodedTask, Scorer
from anytune.jobs.tuning_plan import TuningPlan, learning_rate, manifest_of, name_of, title
from anytune.methods.objective import objective_for
from anytune.methods.protocol import Run
from anytune.models.dropout import set_dropout
from anytune.store import Entry, Store


def tune_once(
    plan: TuningPlan,
    store: Store,
    *,
    encoded: Callable[[Task], EncodedTask] | None = None,
    reporter: Reporter | None = None,
    resume: Resume = "auto",
) -> Entry:
    """Make one run, or give back its artefact if the same run is already in the store.

    An interrupted run leaves its checkpoints in the store and goes on from them when called again.

    Args:
        encoded: gives a task as token ids; called only if there is something to train or score.
        resume: see :data:`anytune.jobs.resuming.Resume`.
    """
    runtime, reporter = plan.runtime(), reporter or Silent()
    identity = plan.identity(runtime)

    def make(work: Path) -> Entry:
        try:
            return _tune(plan, store, identity, work, runtime, encoded, reporter)
        except DivergedError as problem:
            if not plan.keeps_failure:
                raise
            reporter.say(f"{problem.what}; the other runs go on")
            failed, what = manifest_of(plan, identity.key, runtime, form="scores"), problem.what
            return runtime.first(lambda: keep_failure(store, failed, what))

    return once(store, "delta", identity, make, resume=resume, reporter=reporter, runtime=runtime)


@contextlib.contextmanager
def prepared(plan: TuningPlan, encoded: EncodedTask, runtime: Runtime) -> Iterator[Prepared]:
    """The run ready to begin; inside, torch draws from the run's own seed."""
    task, base, settings = plan.task, plan.base, plan.settings
    batches = ExampleBatches(encoded.train, settings.batch_size, derive_seed(plan.seed, "order"))
    moving, outdated, unlabelled = plan.outdated, None, None
    if moving is not None:
        outdated = moving.in_run(task, encoded.train, settings, plan.seed, runtime)
        unlabelled = outdated.batches_of(plan.unlabelled) if plan.unlabelled else None
        if unlabelled is not None and any(method.reads_unlabelled() for method in plan.methods):
            batches = unlabelled
    steps = total_steps(settings, batches.batches_per_epoch, world=runtime.world) if plan.trains else 0
    validate = scorer_of(plan, encoded, "validation", runtime)
    objective = objective_for(task.kind, base.anatomy)
    with seeded(derive_seed(plan.seed, "train")):
        model, head_names = base.task_model(task.kind, task.label_names, derive_seed(plan.seed, "head"))
        if plan.start is not None:
            model = plan.start.install(model)
        if settings.dropout is not None:
            set_dropout(model, settings.dropout)
        run = Run(
            seed=derive_seed(plan.seed, "method"),
            steps=steps,
            anatomy=base.anatomy,
            head_names=head_names,
            outdated=outdated,
            objective=objective,
            batches=batches,
            unlabelled=unlabelled,
            validate=lambda current: scored(validate, current, runtime),
            projection=plan.projection.tensors if plan.projection else None,
            base=base,
            device=runtime.device,
            label_names=task.label_names,
            sources=[one.prompt for one in plan.sources],
            teachers=[one.prompt for one in plan.teachers],
        )
        for method in plan.methods:
            model = method.prepare(model, run)
        if plan.start is not None:
            refuse_adapter_on_full(plan.start, model)
        arguments = {
            "methods": plan.methods,
            "objective": objective,
            "batches": run.batches,  # a method may have put texts of its own in their place
            "steps": steps,
            "settings": settings,
            "learning_rate": learning_rate(plan),
            "runtime": runtime,
            "evaluate": lambda current: validate(current, decoded=DECODED_WHILE_TRAINING)[0],
        }
        yield Prepared(model, run, arguments, list(head_names))


def scored(validate: Scorer, model: nn.Module, runtime: Runtime) -> float:
    """What a model is worth on validation data, higher is better; the model stays where and as it was."""
    parameter = next(model.parameters())
    before, training = parameter.device, model.training
    try:
        return float(validate(model.to(runtime.device), decoded=DECODED_WHILE_TRAINING)[0].better)
    finally:
        model.to(before).train(training)


def _tune(
    plan: TuningPlan, store: Store, identity: RunIdentity, work: Path, runtime: Runtime,
    make_encoded: Callable[[Task], EncodedTask] | None, reporter: Reporter,
) -> Entry:  # fmt: skip
    encoded = (
        make_encoded(plan.task) if make_encoded else EncodedTask.of(plan.task, plan.base, plan.settings.max_length)
    )
    key, tracking = identity.key, plan.tracking
    with prepared(plan, encoded, runtime) as ready:
        result = train(
            ready.model,
            **ready.arguments,
            work=work,
            title=title(plan),
            reporter=reporter,
            tracked=tracking.of(name_of(plan), plan.seed, key, identity.settings) if tracking else None,
        )
        model = ready.model
        for method in reversed(plan.methods):
            model = method.finish(model, ready.run)
    outcome = Outcome(plan, key, model, ready.head_names, result, encoded, runtime, work)
    return runtime.first(lambda: outcome.keep(store))
