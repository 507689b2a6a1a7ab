"""What a grid of transfers is made of: source and target tasks, arms with or without sources and teachers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anytune.data.tasks import Task
from anytune.engine.settings import TrainingSettings, training_settings
from anytune.errors import SettingsError, nearest, unknown
from anytune.jobs.arms import check_tasks, merged
from anytune.jobs.command import check_methods, check_seeds
from anytune.jobs.opening import fitting, open_task
from anytune.jobs.prompt_library import SAME_EXAMPLES, SAME_TEXTS, share_of, share_texts
from anytune.jobs.prompt_sources import same_task
from anytune.jobs.ranking import check_measures
from anytune.jobs.task_features import example_hashes, text_hashes
from anytune.methods import registry
from anytune.models.base import Base

#: The arm that plain prompt tuning is, and what all others are held against where nobody says otherwise.
CONTROL = "prompt tuning"
ARM_KEYS = ("method", "sources", "together", "teacher", "targets", "training", "rates", "seeds", "restarts")
#: Which sources an arm is run from.
SOURCES = ("none", "all", "chosen", "random")
#: Seeds of restarts lie this far from those of the runs.
RESTART_STRIDE = 1000


@dataclass(frozen=True)
class TransferArm:
    """A way to tune a target.

    Attributes:
        sources: one of :data:`SOURCES`, or names of source tasks.
        teacher: the arm whose run of the same target, seed and source teaches; of an arm without sources it is the
            run of the next seed. None for no teacher.
        rates: learning rates, each of which is run; validation chooses. Empty: the one of ``training``.
        restarts: runs for each seed on the same rows; validation chooses.
        together: of "chosen" sources, how many a run is given at once: fused, attended to, or as several teachers.
    """

    name: str
    method: Any
    sources: str | tuple[str, ...]
    teacher: str | None
    training: Mapping[str, Any]
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    restarts: int
    #: names of the targets it is run on; None for all
    targets: tuple[str, ...] | None = None
    together: int = 1

    @property
    def sourced(self) -> bool:
        """Whether it starts from, or learns from what started from, a source."""
        return self.sources != "none"

    @property
    def several(self) -> bool:
        """Whether it is run from several sources for each seed."""
        return self.sources not in ("none", "chosen", "random")


@dataclass(frozen=True)
class Design:
    """Everything a grid needs, checked; nothing is trained yet."""

    base: Base
    sources: Sequence[Task]
    targets: Sequence[Task]
    arms: Sequence[TransferArm]
    control: str
    #: settings of the source prompts
    source_method: Any
    source_training: Mapping[str, Any]
    source_seed: int
    source_size: int | None
    train_size: int | None
    measures: Sequence[str]
    choose_by: str
    rows: int
    #: (source, target) names: of one task
    self_pairs: frozenset[tuple[str, str]]
    #: (source, target) names: over the same texts
    families: frozenset[tuple[str, str]]

    def arm(self, name: str) -> TransferArm:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    def targets_of(self, arm: TransferArm) -> list[Task]:
        """The targets an arm is run on."""
        return [task for task in self.targets if arm.targets is None or task.name in arm.targets]

    def phases(self) -> list[list[TransferArm]]:
        """The arms in the order in which they can be made: an arm with a teacher after the teacher's arm."""
        made: list[list[TransferArm]] = []
        placed: set[str] = set()
        left = list(self.arms)
        while left:
            ready = [arm for arm in left if arm.teacher is None or arm.teacher in placed]
            made.append(ready)
            placed |= {arm.name for arm in ready}
            left = [arm for arm in left if arm.name not in placed]
        return made

    def keep(self, arm: TransferArm) -> str:
        """What is kept of an arm's runs: weights where they teach others or embed the targets, else scores.

        An arm by the method of such a one keeps weights too, so that both find the same runs.
        """
        teaching = {self.control} | {one.teacher for one in self.arms if one.teacher is not None}
        return "weights" if any(one.method == arm.method for one in self.arms if one.name in teaching) else "scores"

    def may_start(self, source: str, target: str) -> bool:
        """Whether a source may be used for a target: it is not the target itself."""
        return (source, target) not in self.self_pairs


def transfer_design(
    base: Base, sources: Sequence[Any], targets: Sequence[Any], arms: Mapping[str, Any], *, control: str,
    prompt: Mapping[str, Any] | None, seeds: Sequence[int], train_size: int | None, source_size: int | None,
    source_seed: int, training: Any, source_training: Any, rates: Sequence[float] | None,
    measures: Sequence[str] | None, choose_by: str, rows: int,
) -> Design:  # fmt: skip
    """Open and check what a user gave; arguments as of :func:`anytune.jobs.transfer_grid.transfer_grid`.

    Raises:
        AnytuneError: something cannot be opened or does not fit.
    """
    opened = [[open_task(dict(one) if isinstance(one, Mapping) else one) for one in side]
              for side in (_listed(sources, "sources"), _listed(targets, "targets"))]  # fmt: skip
    for tasks in opened:
        check_tasks(tasks)
    names = [task.name for task in opened[0]]
    check_prompt(prompt)
    chosen_measures = check_measures(measures, choose_by)
    common, chosen_seeds = merged(training, None), check_seeds(seeds)
    made = []
    targets_known = [task.name for task in opened[1]]
    for name, given in check_transfer_arms(arms, control, names).items():
        for one in given.get("targets") or ():
            if one not in targets_known:
                raise unknown(f"target of arm '{name}'", str(one), targets_known, SettingsError)
        method = with_prompt(given["method"], prompt)
        chosen = given.get("targets")
        check_methods(method, base, [task for task in opened[1] if chosen is None or task.name in chosen])
        own = merged(common, given.get("training"))
        fitting(training_settings(own), base)
        which = given.get("sources", "none")
        made.append(TransferArm(
            name=name, method=method, sources=which if isinstance(which, str) else tuple(which),
            teacher=given.get("teacher"), training=own,
            rates=check_rates(given.get("rates", rates), name), restarts=int(given.get("restarts", 1)),
            seeds=tuple(check_seeds(given["seeds"]) if "seeds" in given else chosen_seeds),
            targets=None if given.get("targets") is None else tuple(given["targets"]),
            together=given.get("together", 1),
        ))  # fmt: skip
    check_teachers(made)
    shared = merged(common, None if source_training is None else merged(source_training, None))
    fitting(training_settings(shared), base)
    own_pairs, families = related(opened[0], opened[1])
    source_method = with_prompt("prompt_tuning", prompt)
    check_methods(source_method, base, opened[0])
    return Design(
        base=base, sources=opened[0], targets=opened[1], arms=made, control=control, source_method=source_method,
        source_training=shared, source_seed=check_seeds([source_seed])[0], source_size=source_size,
        train_size=train_size, measures=chosen_measures, choose_by=choose_by, rows=rows, self_pairs=own_pairs,
        families=families,
    )  # fmt: skip


def check_transfer_arms(
    arms: Mapping[str, Any], control: str, sources: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """The arms with the control first; plain prompt tuning is added where it is the control and not among them.

    Args:
        sources: names of the source tasks, where they are known.

    Raises:
        SettingsError: an arm that cannot be.
        MethodError: an unknown method.
    """
    if not isinstance(arms, Mapping) or not arms:
        raise SettingsError("no arms are given", fix="arms: {transfer: {method: prompt_transfer, sources: all}}")
    for name, arm in arms.items():
        if not isinstance(arm, Mapping) or "method" not in arm:
            raise SettingsError(f"arm '{name}' names no method", fix=f"{name}: {{method: prompt_tuning}}")
        for key in arm:
            if key not in ARM_KEYS:
                near = nearest(str(key), ARM_KEYS)
                raise SettingsError(
                    f"arm '{name}': unknown key '{key}'", why=f"An arm holds {', '.join(ARM_KEYS)}.",
                    fix=f"{near}:" if near else "",
                )  # fmt: skip
        _check_sources(name, arm, sources)
        restarts = arm.get("restarts", 1)
        if isinstance(restarts, bool) or not isinstance(restarts, int) or restarts < 1:
            raise SettingsError(f"arm '{name}': restarts = {restarts!r}", why="Runs for each seed.", fix="restarts: 3")
        together = arm.get("together", 1)
        if isinstance(together, bool) or not isinstance(together, int) or together < 1:
            raise SettingsError(f"arm '{name}': together = {together!r}", why="A count of sources.", fix="together: 3")
        if together > 1 and arm.get("sources") != "chosen":
            raise SettingsError(
                f"arm '{name}' is given {together} sources at once, of sources: {arm.get('sources', 'none')}",
                why="They are the first ones by the measure that chooses.", fix="sources: chosen",
            )  # fmt: skip
        if arm.get("teacher") is not None and arm["teacher"] not in (*arms, control):
            raise unknown(f"arm as teacher of '{name}':", str(arm["teacher"]), arms, SettingsError)
    made = {str(name): dict(arm) for name, arm in arms.items()}
    if control not in made and control == CONTROL:
        made = {control: {"method": "prompt_tuning"}, **made}
    if control not in made:
        raise unknown("arm as control:", control, made, SettingsError)
    own = made[control]
    if own.get("sources", "none") != "none" or own.get("teacher") is not None or own.get("targets") is not None:
        raise SettingsError(
            f"the control '{control}' has sources, a teacher or targets of its own",
            why="Gains are over no transfer, on every target.", fix="control: ...",
        )  # fmt: skip
    return {control: made[control], **made}


def _check_sources(name: str, arm: Mapping[str, Any], sources: Sequence[str]) -> None:
    which = arm.get("sources", "none")
    methods = registry.parse(arm["method"], registry.TUNING)
    takes = {role for method in methods for role in method.takes}
    if isinstance(which, str):
        if which not in SOURCES:
            raise unknown(f"sources of arm '{name}':", which, SOURCES, SettingsError)
    elif not isinstance(which, Sequence) or not which:
        raise SettingsError(
            f"arm '{name}': sources = {which!r}", fix=f"sources: one of {', '.join(SOURCES)}, or names"
        )
    else:
        for one in which:
            if sources and one not in sources:
                raise unknown(f"source of arm '{name}'", str(one), sources, SettingsError)
    wanted = {role for method in methods for role in method.needs()}
    if "sources" in wanted and which == "none":
        raise SettingsError(f"arm '{name}' has no sources", why="Its method starts from one.", fix="sources: all")
    if "teachers" in wanted and arm.get("teacher") is None:
        raise SettingsError(f"arm '{name}' has no teacher", why="Its method learns from one.", fix="teacher: transfer")
    if arm.get("teacher") is not None and "teachers" not in takes:
        raise SettingsError(f"arm '{name}' has a teacher, and its method takes none", fix="method: panda")
    if which != "none" and not takes:
        raise SettingsError(f"arm '{name}' has sources, and its method takes none", fix="method: prompt_transfer")


def check_teachers(arms: Sequence[TransferArm]) -> None:
    """Refuse a teacher that has no run for what it is to teach.

    Raises:
        SettingsError: it has not, or arms teach each other in a circle.
    """
    by_name = {arm.name: arm for arm in arms}
    for arm in arms:
        if arm.teacher is None:
            continue
        teacher = by_name[arm.teacher]
        seen = {arm.name}
        above: TransferArm | None = teacher
        while above is not None:
            if above.name in seen:
                raise SettingsError(f"arm '{arm.name}' teaches itself, by way of {', '.join(sorted(seen))}")
            seen.add(above.name)
            above = by_name[above.teacher] if above.teacher is not None else None
        same = teacher.sources == "all" or (arm.together == 1 and (teacher.sources == arm.sources or (
            not teacher.several and not isinstance(teacher.sources, str)
        )))  # fmt: skip
        if teacher.sourced and (not arm.sourced or not same):
            raise SettingsError(
                f"arm '{arm.name}' is run from {_said(arm.sources)} and its teacher '{teacher.name}' from "
                f"{_said(teacher.sources)}",
                why="Each of its runs learns from the teacher's run of the same source.",
                fix=f"sources: {_said(teacher.sources)}"
                if arm.together == 1
                else f"sources: all   for '{teacher.name}'",
            )
        if teacher.targets is not None and (arm.targets is None or not set(arm.targets) <= set(teacher.targets)):
            raise SettingsError(
                f"arm '{arm.name}' is run on targets that its teacher '{teacher.name}' is not run on",
                why="Each of its runs learns from the teacher's run on the same target.",
                fix=f"targets: [{', '.join(teacher.targets)}]",
            )
        lacking = [seed for seed in arm.seeds if seed not in teacher.seeds]
        if lacking:
            raise SettingsError(
                f"arm '{arm.name}' has the seeds {lacking}, and its teacher '{teacher.name}' has not",
                why="A student is taught by the run of its own seed.", fix=f"seeds: {list(teacher.seeds)}",
            )  # fmt: skip


def _said(sources: str | Sequence[str]) -> str:
    return sources if isinstance(sources, str) else f"[{', '.join(sources)}]"


def check_rates(rates: Any, arm: str = "") -> tuple[float, ...]:
    """Learning rates, each once; none where nothing is given.

    Raises:
        SettingsError: no list of positive numbers.
    """
    if rates is None:
        return ()
    given = rates if isinstance(rates, Sequence) and not isinstance(rates, str) else [rates]
    for rate in given:
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not rate > 0:
            raise SettingsError(f"{f'arm {arm}: ' if arm else ''}rates = {rates!r}", fix="rates: [5e-3, 1e-2]")
    if len(set(given)) != len(given) or not given:
        raise SettingsError(f"rates = {list(given)}", why="Each once, and at least one.", fix="rates: [5e-3, 1e-2]")
    return tuple(float(rate) for rate in given)


def with_prompt(method: Any, prompt: Mapping[str, Any] | None) -> Any:
    """A method with the settings that all prompts share, as far as it has them; its own win.

    Methods that tune no prompt stay as they are.
    """
    if not prompt:
        return method
    if isinstance(method, list | tuple):
        return [with_prompt(one, prompt) for one in method]
    named: dict[str, Any] = {"name": method} if isinstance(method, str) else dict(method)
    full = registry.full_name(named["name"], registry.TUNING)
    if not full.startswith("transfer/"):
        return method
    known = {setting.name for setting in registry.describe(full)}
    own = named.get("settings") or {}
    shared = {key: value for key, value in prompt.items() if key in known and key not in named and key not in own}
    return {**named, **({"settings": {**shared, **own}} if "settings" in named else shared)}


def check_prompt(prompt: Mapping[str, Any] | None) -> None:
    """Refuse settings that no prompt has.

    Raises:
        SettingsError: an unknown one.
    """
    known = [setting.name for setting in registry.describe("transfer/prompt_tuning")]
    for key in prompt or {}:
        if key not in known:
            raise unknown("setting of a prompt", str(key), known, SettingsError)


def related(
    sources: Sequence[Task], targets: Sequence[Task]
) -> tuple[frozenset[tuple[str, str]], frozenset[tuple[str, str]]]:
    """(source, target) names that are one task, and those over the same texts (the former among them)."""

    def hashed(task: Task) -> tuple[Any, Any]:
        rows = [*task.train, *task.validation, *task.test]
        return text_hashes(rows), example_hashes(task, rows)

    left, right = ({task.name: hashed(task) for task in side} for side in (sources, targets))
    same, family = set(), set()
    for source in sources:
        for target in targets:
            pair = (source.name, target.name)
            if same_task(source.record(), target) or (
                share_of(left[source.name][1], right[target.name][1]) >= SAME_EXAMPLES
            ):
                same.add(pair)
            if (
                pair in same
                or share_texts(source.ref, target.ref)
                or (share_of(left[source.name][0], right[target.name][0]) >= SAME_TEXTS)
            ):
                family.add(pair)
    return frozenset(same), frozenset(family)


def _listed(tasks: Any, key: str) -> Sequence[Any]:
    if isinstance(tasks, str | Mapping | Task) or not isinstance(tasks, Sequence) or not tasks:
        raise SettingsError(f"{key} is no list of tasks", fix=f"{key}: [sample:hpo, reviews.csv]")
    return tasks


def settings_of(training: Mapping[str, Any], rate: float | None) -> TrainingSettings:
    """The training settings of a run."""
    return training_settings({**training, **({} if rate is None else {"learning_rate": rate})})
