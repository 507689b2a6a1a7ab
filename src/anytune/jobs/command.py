"""What a command of tuning runs stands on: everything opened and checked, and the plan of each of its runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anytune.data.tasks import Task
from anytune.engine.settings import TrainingSettings, training_settings
from anytune.engine.tracking import Tracking
from anytune.errors import SettingsError
from anytune.jobs.deltas import Outdated
from anytune.jobs.extra_scores import ExtraScores, LabelMap, Sources, extra_scores
from anytune.jobs.opening import fitting, open_task
from anytune.jobs.prompt_sources import References, given_prompts, refuse_self_pairs
from anytune.jobs.scoring import EncodedTask
from anytune.jobs.subsets import Subsets, SubsetSeed, subsets
from anytune.jobs.tuning_plan import GivenPrompt, TuningPlan, refuse_untrained, suggested_rate
from anytune.manifests import MethodRecord
from anytune.methods import registry
from anytune.methods.protocol import Method, check_given
from anytune.models.base import Base
from anytune.store import Entry, Store


@dataclass(kw_only=True)
class Command:
    """Base, task, sizes, settings and seeds of a command; :meth:`plans` gives the runs of one method."""

    store: Store
    base: Base
    parts: Subsets
    settings: TrainingSettings
    seeds: Sequence[int]
    extra: ExtraScores | None
    #: what else a recipe of one of the runs holds
    asked: Mapping[str, Any]
    start_from: Entry | str | Path | None = None
    #: stored prompts that the runs are given, by what they are to them; see :mod:`anytune.jobs.prompt_sources`
    sources: References | None = None
    teachers: References | None = None
    tracking: Tracking | None = None
    #: whether a run that diverges is one of several, and stored
    keeps_failure: bool = False
    #: whether held-out rows are kept beside the weights
    keep_sample: bool = True

    @classmethod
    def of(
        cls, store: Store, base: Base, task: Task | str | Path | Mapping[str, Any], *,
        training: TrainingSettings | Mapping[str, Any] | None, seeds: Sequence[int], train_size: int | None = None,
        train_sizes: Sequence[int] | None = None, per_class: int | None = None,
        subset_seed: SubsetSeed | None = None, score_on: Sources | None = None, label_map: LabelMap | None = None,
        probe_on: Sources | None = None, columns: Mapping[str, Any] | None = None, **others: Any,
    ) -> Command:  # fmt: skip
        """A command of what a user gave; ``others`` are fields.

        Raises:
            AnytuneError: something cannot be opened, or does not fit.
        """
        columns = columns or {}
        data = open_task(dict(task) if isinstance(task, Mapping) else task, **columns)
        settings = fitting(training_settings(training), base)
        asked = {"per_class": per_class, "score_on": score_on, "label_map": label_map, "probe_on": probe_on}
        return cls(
            store=store, base=base, settings=settings, seeds=check_seeds(seeds), asked={**asked, **columns},
            parts=subsets(data, train_size, train_sizes, per_class, subset_seed),
            extra=extra_scores(
                data, base, score_on=score_on, probe_on=probe_on, label_map=label_map,
                max_length=settings.max_length, batch_size=settings.evaluate_batch_size,
            ),
            **others,
        )  # fmt: skip

    @property
    def task(self) -> Task:
        """The task, before any size is cut from it."""
        return self.parts.task

    def encoded(self, part: Task) -> EncodedTask:
        """A part of the task as token ids."""
        return EncodedTask.of(part, self.base, self.settings.max_length)

    def plans(
        self, method: Any, keep: str, name: str | None, tags: Mapping[str, str], *, control: bool = False
    ) -> list[TuningPlan]:
        """The runs of one method, by size and seed.

        Args:
            control: the method stands beside another one, for whose sake stored prompts may be given.

        Raises:
            AnytuneError: the method, or what it would start from, does not fit.
        """
        methods, settings = check_methods(method, self.base, [self.task]), self.settings
        sources, teachers = self.prompts(methods, control)
        start: Outdated | None = None
        inherited: list[MethodRecord] = []
        if self.start_from is not None:
            from anytune.jobs.starting import methods_after, starting_point  # stands on recycle, which stands on this

            start = starting_point(self.start_from, self.base, self.task, self.store)
            _, inherited = methods_after(start, methods)
            if inherited:  # the method that suggests a rate is not run again
                settings = settings.model_copy(update={"learning_rate": suggested_rate(settings, methods)})
        plans = []
        for size in self.parts.sizes:
            for seed in self.seeds:
                part, fresh = self.parts.of(size, seed), registry.parse(method, registry.TUNING)
                refuse_self_pairs(sources, self.task, part)
                plans.append(TuningPlan(
                    job="tune", base=self.base, task=part, settings=settings, seed=seed, keep=keep, start=start,
                    sources=sources, teachers=teachers, tracking=self.tracking, extra=self.extra, 
                    keeps_failure=self.keeps_failure, keep_sample=self.keep_sample,
                    methods=fresh if start is None else methods_after(start, fresh)[0], inherited=inherited,
                    name=name or f"{self.task.name}-{fresh[0].name}-{self.base.name}", tags=dict(tags),
                    recipe=recipe_of(
                        "tune", base=self.base, task=self.task, method=method, training=settings, seeds=[seed],
                        train_size=size, keep=keep, keep_sample=None if self.keep_sample else False,
                        start_from=start.entry.reference if start else None,
                        sources=[one.recipe for one in sources] or None,
                        teachers=[one.recipe for one in teachers] or None,
                        subset_seed=None if part is self.task else self.parts.seed_of(seed) or None, **self.asked,
                    ),
                ))  # fmt: skip
        return plans

    def prompts(self, methods: Sequence[Method], control: bool) -> tuple[list[GivenPrompt], list[GivenPrompt]]:
        """The sources and teachers that the runs of these methods are given; a control only gets what it takes.

        Raises:
            AnytuneError: one cannot be used, a method lacks what it needs, or none takes what is given.
        """
        taken = {role for method in methods for role in method.takes}
        found = {
            role: given_prompts(given if role in taken or not control else None, self.base, self.store, role)
            for role, given in (("sources", self.sources), ("teachers", self.teachers))
        }
        check_given(methods, {role: len(given) for role, given in found.items()})
        return found["sources"], found["teachers"]


def check_methods(method: Any, base: Base, tasks: Iterable[Task] = ()) -> list[Method]:
    """The tune methods a command names, if they can train on ``base`` for ``tasks``.

    Raises:
        AnytuneError: unknown, none, not for this kind of model or of task, or one that does not train.
    """
    methods = registry.parse(method, registry.TUNING, base.anatomy.model_type)
    if not methods:
        raise SettingsError("no method is given", why="An empty list trains nothing.", fix="method=full")
    refuse_untrained(methods, "tune")
    for kind in sorted({task.kind for task in tasks}):
        for one in methods:
            one.check_task(kind)
    return methods


def check_seeds(seeds: Sequence[int]) -> list[int]:
    """Seeds as given, if they are distinct whole numbers from 0 to 2**32 - 1.

    Raises:
        SettingsError: they are not.
    """
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise SettingsError(
                f"seed = {seed!r}", why="A seed is a whole number from 0 to 4294967295.", fix="seeds=[0]"
            )
    if len(set(seeds)) != len(seeds) or not seeds:
        raise SettingsError(
            f"seeds = {list(seeds)}", why="Seeds must be distinct, and at least one.", fix="seeds=[0,1,2]"
        )
    return list(seeds)


def recipe_of(job: str, *, base: Base, task: Task | None = None, **settings: Any) -> dict[str, Any]:
    """What ``anytune run`` needs to make an artefact again; local files appear by name, never by absolute path."""
    recipe: dict[str, Any] = {"job": job, "base": base.ref or base.name}
    if task is not None:
        recipe["task"] = task.ref or task.name
    for key, value in settings.items():
        if value is None:
            continue
        if isinstance(value, TrainingSettings):
            value = value.model_dump(exclude_unset=True)
        recipe[key] = _portable(value)
    return recipe


def _portable(value: Any) -> Any:
    if hasattr(value, "ref") and hasattr(value, "name"):  # a domain or a task
        plain = value.ref in (None, value.name, f"sample:{value.name}")
        cut = getattr(value, "cut", None) or {}  # a period of dated text
        if plain and not cut:
            return value.ref or value.name
        return {"source": value.ref or value.name, "name": value.name, **cut}
    if isinstance(value, Path):
        return value.name
    if isinstance(value, str) and value.startswith("/"):
        return Path(value).name
    if isinstance(value, Mapping):
        return {str(key): _portable(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_portable(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
