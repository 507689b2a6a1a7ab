"""One tuning run, fresh or recycled: from a prepared model to an artefact in the store.

``jobs.tune`` and ``jobs.recycle`` are thin layers over :func:`tune_once`; they differ only in where the weights start.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from anytune.data.batches import ExampleBatches
from anytune.data.tasks import Task
from anytune.engine.loop import Evaluation, train
from anytune.engine.progress import Reporter, Silent
from anytune.engine.run_state import TrainingResult
from anytune.engine.runtime import Runtime, derive_seed, make_runtime, seeded
from anytune.engine.settings import TrainingSettings, decisive, total_steps
from anytune.engine.tracking import Tracking
from anytune.errors import DeltaError, DivergedError, MethodError
from anytune.jobs.extra_scores import ExtraScores
from anytune.jobs.failures import keep_failure
from anytune.jobs.forecast import Prepared
from anytune.jobs.resuming import Resume, RunIdentity, once
from anytune.jobs.scoring import DECODED_WHILE_TRAINING, Answers, EncodedTask, Scorer, write_predictions
from anytune.jobs.stored_sample import write_sample
from anytune.jobs.task_features import keep_features
from anytune.manifests import METRICS_NAME, BaseIdentity, Manifest, MethodRecord, Parent
from anytune.methods import registry
from anytune.methods.objective import objective_for
from anytune.methods.protocol import Method, Run, overrides
from anytune.models.adapters import AdapterDelta
from anytune.models.base import Base
from anytune.models.bottleneck import bottleneck_names, bottlenecks_of
from anytune.models.delta import FullDelta
from anytune.models.dropout import set_dropout
from anytune.models.probe import make_probe
from anytune.models.soft_prompts import prompt_of
from anytune.models.weights import write_tensors
from anytune.store import Entry, Store

if TYPE_CHECKING:
    from anytune.data.tasks import Example
    from anytune.jobs.outdated import Moving
    from anytune.models.soft_prompts import PromptSource

PREDICTIONS_NAME = "predictions.jsonl"
AnyDelta = FullDelta | AdapterDelta


@dataclass(frozen=True)
class GivenPrompt:
    """A stored soft prompt that a run is given, with where it stands."""

    entry: Entry
    prompt: PromptSource

    @property
    def decides(self) -> list[Any]:
        """What of it decides a run: its content, and how near its task is said to be."""
        return [self.entry.manifest.id, self.prompt.similarity]

    @property
    def argument(self) -> dict[str, Any]:
        """How another call of the job is given it."""
        return {"delta": self.entry, "similarity": self.prompt.similarity}

    @property
    def recipe(self) -> Any:
        """How a recipe names it."""
        if self.prompt.similarity is None:
            return self.entry.reference
        return {"delta": self.entry.reference, "similarity": self.prompt.similarity}


@dataclass(frozen=True)
class GivenProjection:
    """A projection of outdated weights that another run has trained, with where it stands."""

    entry: Entry
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class Outdated:
    """Weights that a run starts from: a delta of the same base."""

    entry: Entry
    delta: AnyDelta
    base: Base

    def install(self, model: nn.Module) -> nn.Module:
        """Put the weights into a task model of the base; an adapter wraps it."""
        return install_delta(self.delta, model, self.base, trainable=True)


@dataclass(kw_only=True)
class TuningPlan:
    """Everything that decides the result of one run, and what to keep of it."""

    job: str
    base: Base
    task: Task
    methods: Sequence[Method]
    settings: TrainingSettings
    seed: int
    #: outdated weights on their way to this base
    outdated: Moving | None = None
    #: texts without labels, for methods that read them
    unlabelled: Sequence[Example] = ()
    #: a delta of the same base that the run starts from
    start: Outdated | None = None
    #: stored soft prompts it is given: tuned on other tasks, and on this one
    sources: Sequence[GivenPrompt] = ()
    teachers: Sequence[GivenPrompt] = ()
    #: a trained projection: the outdated weights go through it, and nothing is trained
    projection: GivenProjection | None = None
    #: "weights", or "scores" for controls of which only the numbers are wanted
    keep: str = "weights"
    #: keep some held-out rows beside the weights, for upgrades of the base
    keep_sample: bool = True
    name: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    #: methods the outdated weights were made with and that are not run again (their parametrisation is carried along)
    inherited: Sequence[MethodRecord] = ()
    #: experiment trackers that follow the run
    tracking: Tracking | None = None
    #: what is scored beside validation and test
    extra: ExtraScores | None = None
    #: store that the run diverged, in place of ending the command; see :mod:`anytune.jobs.failures`
    keeps_failure: bool = False

    @property
    def trains(self) -> bool:
        """Whether any step is made."""
        return self.projection is None and all(method.trains for method in self.methods)

    def runtime(self) -> Runtime:
        """Where and in which precision the run computes."""
        return make_runtime(self.settings.precision, sharding=self.settings.sharding)

    def identity(self, runtime: Runtime) -> RunIdentity:
        """Everything that decides the weights and scores, and nothing else: the run key is a hash over it."""
        decides: dict[str, Any] = {
            "job": self.job, "base": [self.base.identity.backbone, self.base.identity.vocabulary],
            "task": self.task.content, "methods": [registry.record(method).model_dump() for method in self.methods],
            "training": {**decisive(self.settings), **runtime.decides()}, "seed": self.seed,
            "outdated": self.outdated.entry.manifest.id if self.outdated else None, "keep": self.keep,
        }  # fmt: skip
        names = {"base": self.base.name, "task": self.task.name}
        for key, weights in (("outdated", self.outdated), ("start_from", self.start)):
            if weights is not None:
                decides[key], names[key] = weights.entry.manifest.id, weights.entry.name
        for key, prompts in (("sources", self.sources), ("teachers", self.teachers)):
            if prompts:
                decides[key] = [one.decides for one in prompts]
                names[key] = ", ".join(one.entry.name for one in prompts)
        if self.outdated is not None:
            known, read_by = self.outdated.entry.manifest.base.vocabulary, self.outdated.old.identity.vocabulary
            if known and read_by != known:  # another base of the same weights: the old model reads other words
                decides["old_vocabulary"] = read_by
        if self.projection is not None:
            decides["projection"] = self.projection.entry.manifest.id
            names["projection"] = self.projection.entry.name
        if self.unlabelled:
            decides["unlabelled"] = content_of(self.unlabelled)
        if self.extra is not None:
            decides |= self.extra.decides()
        return RunIdentity(decides, names, f"{self.job} {self.task.name} seed {self.seed}")


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
    validate = _scorer(plan, encoded, "validation", runtime)
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


def content_of(examples: Sequence[Example]) -> str:
    """SHA-256 over texts in their order, whatever their labels."""
    state = hashlib.sha256()
    for one in examples:
        state.update(repr((one.text, one.text_pair, one.words)).encode())
    return state.hexdigest()


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
    outcome = _Outcome(plan, key, model, ready.head_names, result, encoded, runtime, work)
    return runtime.first(lambda: outcome.keep(store))


def name_of(plan: TuningPlan) -> str:
    """What the artefact is called."""
    return plan.name or f"{plan.task.name}-{plan.methods[0].name}-{plan.base.name}"


def _scorer(plan: TuningPlan, encoded: EncodedTask, split: str, runtime: Runtime) -> Scorer:
    return Scorer(
        task=plan.task, encoded=getattr(encoded, split), split=split, base=plan.base,
        batch_size=plan.settings.evaluate_batch_size, runtime=runtime,
    )  # fmt: skip


def learning_rate(plan: TuningPlan) -> float:
    """The rate given, or what the first method that suggests one suggests."""
    return suggested_rate(plan.settings, plan.methods)


def suggested_rate(settings: TrainingSettings, methods: Sequence[Method]) -> float:
    """The rate given, or what the first of the methods that suggests one suggests."""
    if settings.learning_rate is not None:
        return settings.learning_rate
    suggested = [method.suggests["learning_rate"] for method in methods if "learning_rate" in method.suggests]
    return float(suggested[0]) if suggested else 5e-5


def title(plan: TuningPlan) -> str:
    """What the progress line says: ``hpo on v1, recycle/initialize, seed 0``."""
    names = [method.name for method in plan.methods] or [one.name.rpartition("/")[2] for one in plan.inherited]
    return f"{plan.task.name} on {plan.base.name}, {'+'.join(names)}, seed {plan.seed}"


def refuse_adapter_on_full(start: Outdated, model: nn.Module) -> None:
    """An adapter on top of a full difference would be stored without that difference: refuse it.

    Raises:
        DeltaError: the run starts from a full difference and a method has wrapped the model with PEFT.
    """
    if isinstance(start.delta, FullDelta) and hasattr(model, "peft_config"):
        raise DeltaError(
            f"'{start.entry.reference}' is a full difference, and an adapter cannot start from it",
            why="The adapter would be stored alone, and mean something else on the base without that difference.",
            fix=f"anytune merge {start.entry.reference}   (gives a plain model), then tune an adapter on that",
        )


def load_delta(entry: Entry) -> AnyDelta:
    """The weights of a delta.

    Raises:
        DeltaError: they are damaged, or only the run's scores were kept.
    """
    if entry.manifest.form == "full":
        return FullDelta.load(entry.folder)
    if entry.manifest.form == "peft":
        return AdapterDelta.load(entry.folder)
    raise DeltaError(
        f"'{entry.reference}' holds scores and no weights",
        why="It was run with keep=scores, as a control.",
        fix="run it again with keep=weights",
    )


def install_delta(delta: AnyDelta, model: nn.Module, base: Base, *, trainable: bool) -> nn.Module:
    """Put a delta of ``base`` into a task model made by ``base``; returns the model to use (PEFT wraps it)."""
    if isinstance(delta, AdapterDelta):
        return delta.attach(model, trainable=trainable)
    delta.install(model, base.tensors(pretraining_head=True), base.identity)
    return model


def delta_of(model: nn.Module, base: Base, head_names: list[str], identity: BaseIdentity) -> AnyDelta:
    """The delta a tuned model is: a soft prompt, an adapter if PEFT wraps it, else the full difference to its base."""
    if prompt_of(model) is not None:
        return AdapterDelta.from_model(model, identity, head_names)
    if hasattr(model, "peft_config"):
        return AdapterDelta.from_model(model, identity)
    tensors, inserted = base.tensors(pretraining_head=True), bottlenecks_of(model)
    return FullDelta.extract(
        tensors, model.state_dict(), [*head_names, *bottleneck_names(model)], base.anatomy, identity,
        inserted.config.to_record() if inserted is not None else None,
    )  # fmt: skip


@dataclass
class _Outcome:
    """A finished run on its way into the store."""

    plan: TuningPlan
    key: str
    model: nn.Module
    head_names: list[str]
    result: TrainingResult
    encoded: EncodedTask
    runtime: Runtime
    work: Path

    def keep(self, store: Store) -> Entry:
        plan = self.plan
        on_test, answers = self.evaluate("test")
        scores = {"validation": self.validation_scores(), "test": dict(on_test.scores)}
        if plan.extra is not None:
            scores |= plan.extra(self.model, self.runtime)
        self.model.cpu()
        delta = self.delta() if plan.keep == "weights" else None
        manifest = self.manifest(delta, scores)
        keep_sample = plan.keep_sample and delta is not None
        beside = {name: one for method in plan.methods for name, one in method.files().items()} if delta else {}

        def write(folder: Path) -> None:
            if isinstance(delta, AdapterDelta):
                delta.save(folder, plan.base.identity)
            elif delta is not None:
                delta.save(folder)
            write_predictions(folder / PREDICTIONS_NAME, plan.task, "test", answers)
            for name, tensors in beside.items():
                write_tensors(folder / name, dict(tensors), {"format": "pt"})
            if keep_sample:
                manifest.sample = write_sample(folder, plan.task)
            if (self.work / METRICS_NAME).exists():
                shutil.copy(self.work / METRICS_NAME, folder / METRICS_NAME)

        entry = Entry(store.add(manifest, write), manifest)
        if delta is not None and prompt_of(self.model) is not None:
            keep_features(entry, self.model, plan.base, plan.task, self.runtime)
        return entry

    def evaluate(self, split: str) -> tuple[Evaluation, Answers]:
        return _scorer(self.plan, self.encoded, split, self.runtime)(self.model)

    def validation_scores(self) -> dict[str, float | None]:
        """Of the weights that are kept: they stand in the curve, unless a method changed the model at the end."""
        kept = self.result.best_step if self.plan.settings.keep == "best" else self.result.steps
        points = [point for point in self.result.curve if point.step == kept]
        whole = _scorer(self.plan, self.encoded, "validation", self.runtime).is_whole(DECODED_WHILE_TRAINING)
        if points and whole and not any(overrides(method, "finish") for method in self.plan.methods):
            return dict(points[-1].scores)
        return dict(self.evaluate("validation")[0].scores)

    def delta(self) -> AnyDelta:
        """What is stored: the outdated weights as they were moved, if nothing was trained; else what training made."""
        if self.plan.outdated is not None and all(method.moves_only for method in self.plan.methods):
            return self.plan.outdated.delta  # bit for bit, so that a chain of upgrades adds no rounding
        return delta_of(self.model, self.plan.base, self.head_names, self.plan.base.identity)

    def manifest(self, delta: AnyDelta | None, scores: dict[str, Any]) -> Manifest:
        plan, result = self.plan, self.result
        form: Literal["peft", "full", "scores"] = "scores"
        if delta is not None:
            form = "peft" if isinstance(delta, AdapterDelta) else "full"
        made = manifest_of(plan, self.key, self.runtime, form=form)
        made.training = {**made.training, "steps": result.steps or plan.settings.steps}
        made.scores, made.curve = scores, result.curve
        made.steps, made.best_step = result.steps, result.best_step
        made.seconds, made.examples = round(result.seconds, 3), result.examples
        made.probe = make_probe(self.model, plan.base.config.vocab_size, plan.seed) if delta else None
        found = [note for method in plan.methods for note in method.notes()]
        made.notes = [*made.notes, *found, *truncation_notes(self.encoded, plan.settings.max_length)]
        return made


def manifest_of(plan: TuningPlan, key: str, runtime: Runtime, *, form: Literal["peft", "full", "scores"]) -> Manifest:
    """What is known of a run before it is made."""
    base = plan.base
    parents = [Parent(id=base.manifest.id, role="base", name=base.name)] if base.manifest and base.manifest.id else []
    for weights in (plan.outdated, plan.start):
        if weights is not None and weights.entry.manifest.id:
            parents.append(Parent(id=weights.entry.manifest.id, role="delta", name=weights.entry.manifest.name))
    for given in (*plan.sources, *plan.teachers, *((plan.projection,) if plan.projection else ())):
        parents.append(Parent(id=given.entry.manifest.id, role="delta", name=given.entry.manifest.name))
    return Manifest(
        kind="delta",
        name=name_of(plan),
        run=key,
        base=base.identity,
        parents=parents,
        form=form,
        task=plan.task.record(),
        label_names=list(plan.task.label_names),
        methods=[*plan.inherited, *map(registry.record, plan.methods)],
        training={**plan.settings.model_dump(), "learning_rate": learning_rate(plan)},
        seed=plan.seed,
        environment=runtime.environment(),
        recipe=plan.recipe,
        tags=plan.tags,
        notes=[*plan.task.notes, *plan.notes],
    )


def truncation_notes(encoded: EncodedTask, max_length: int) -> list[str]:
    """A note if texts were longer than ``max_length`` tokens: how many of how many."""
    cut, whole = encoded.train.truncated, len(encoded.train)
    return [f"{cut} of {whole} training texts are longer than {max_length} tokens and were cut"] if cut else []


def refuse_untrained(methods: Sequence[Method], job: str) -> None:
    """A fresh run whose methods never train would store an untrained head: refuse it."""
    for method in methods:
        if not method.trains:
            raise MethodError(f"method '{method.name}' does not train", why=f"'{job}' starts from a fresh head.")
