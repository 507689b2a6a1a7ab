"""What decides one tuning run, what it is called, and what is known of it before it is made."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from anytune.data.tasks import Task
from anytune.engine.runtime import Runtime, make_runtime
from anytune.engine.settings import TrainingSettings, decisive
from anytune.engine.tracking import Tracking
from anytune.errors import MethodError
from anytune.jobs.deltas import Outdated
from anytune.jobs.extra_scores import ExtraScores
from anytune.jobs.resuming import RunIdentity
from anytune.manifests import Manifest, MethodRecord, Parent
from anytune.methods import registry
from anytune.methods.protocol import Method
from anytune.models.base import Base
from anytune.store import Entry

if TYPE_CHECKING:
    from anytune.data.tasks import Example
    from anytune.jobs.outdated import Moving
    from anytune.models.soft_prompts import PromptSource


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


def content_of(examples: Sequence[Example]) -> str:
    """SHA-256 over texts in their order, whatever their labels."""
    state = hashlib.sha256()
    for one in examples:
        state.update(repr((one.text, one.text_pair, one.words)).encode())
    return state.hexdigest()


def name_of(plan: TuningPlan) -> str:
    """What the artefact is called."""
    return plan.name or f"{plan.task.name}-{plan.methods[0].name}-{plan.base.name}"


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


def refuse_untrained(methods: Sequence[Method], job: str) -> None:
    """A fresh run whose methods never train would store an untrained head: refuse it."""
    for method in methods:
        if not method.trains:
            raise MethodError(f"method '{method.name}' does not train", why=f"'{job}' starts from a fresh head.")
