"""What a grid of recycling is made of: upgrades of a base, tasks, forms of tuning, amounts of data, and arms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from anytune.data.domains import Domain, load_stream
from anytune.data.tasks import Task
from anytune.engine.settings import TrainingSettings, training_settings
from anytune.errors import SettingsError, nearest, unknown
from anytune.evaluate.control_deltas import CONTROLS
from anytune.evaluate.scores import higher_is_better
from anytune.jobs.anytime_design import pretraining
from anytune.jobs.arms import check_tasks, merged
from anytune.jobs.command import check_methods, check_seeds
from anytune.jobs.opening import fitting, open_task
from anytune.methods import registry
from anytune.models.base import Base

#: The arm that all others are held against where nobody says otherwise: tuned on the new base from nothing.
FRESH = "fresh"
ARM_KEYS = ("recycle", "fresh", "weights", "hop", "budget", "training", "seeds", "old", "new", "upgrades", "forms",
            "tasks")  # fmt: skip
UPGRADE_KEYS = ("name", "domains", "tokens", "after", "method", "training")
FORM_KEYS = ("method", "training", "old_training")
CONNECT_KEYS = ("arms", "old", "new", "seeds", "points", "texts")
#: What stands for all training rows.
WHOLE = "full"


@dataclass(frozen=True)
class Upgrade:
    """A new base: what is pre-trained on, and from which base on.

    Attributes:
        domains: empty for no pre-training at all: the "new" base is the old one.
        after: the upgrade whose base it goes on from; None for the first base.
        training: settings of the pre-training; ``steps`` counts per domain.
    """

    name: str
    domains: tuple[Domain, ...]
    after: str | None
    method: Any
    training: Mapping[str, Any]


@dataclass(frozen=True)
class Form:
    """A form of tuning: the old deltas and all runs on new bases are tuned by its method."""

    name: str
    method: Any
    training: Mapping[str, Any]
    #: of the old deltas
    old_training: Mapping[str, Any]


@dataclass(frozen=True)
class RecycleArm:
    """A way to a task's weights on a new base.

    Attributes:
        kind: "fresh": tuned from nothing; "recycle": from outdated weights, by ``method``.
        weights: whose: "own", or a stand-in (:data:`anytune.evaluate.control_deltas.CONTROLS`).
        hop: the outdated weights are those that this very arm gave on the upgrade before.
        budget: steps as a multiple of the form's.
        old, new: amounts of data it is run with; ``old`` is empty for a fresh arm.
    """

    name: str
    kind: Literal["fresh", "recycle"]
    method: Any
    weights: str
    hop: bool
    budget: float
    training: Mapping[str, Any]
    seeds: tuple[int, ...]
    old: tuple[str, ...]
    new: tuple[str, ...]
    upgrades: tuple[str, ...]
    forms: tuple[str, ...]
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Connect:
    """Between which runs and the outdated weights the straight line is walked, and heads are compared."""

    arms: tuple[str, ...] = ()
    old: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    points: int = 26
    #: texts of the test split that a path and a comparison of heads read
    texts: int = 128

    def wants(self, arm: str, old: str, new: str, seed: int) -> bool:
        """Whether such a run is one end of a path."""
        return arm in self.arms and old in self.old and new in self.new and seed in self.seeds


@dataclass(frozen=True)
class Design:
    """Everything a grid needs, checked; nothing is trained yet."""

    base: Base
    upgrades: Sequence[Upgrade]
    tasks: Sequence[Task]
    forms: Sequence[Form]
    arms: Sequence[RecycleArm]
    control: str
    seeds: Sequence[int]
    connect: Connect
    #: of the pre-training
    upgrade_seed: int

    def upgrade(self, name: str) -> Upgrade:
        """The upgrade of that name."""
        return next(one for one in self.upgrades if one.name == name)

    def form(self, name: str) -> Form:
        """The form of that name."""
        return next(one for one in self.forms if one.name == name)

    def task(self, name: str) -> Task:
        """The task of that name."""
        return next(one for one in self.tasks if one.name == name)

    def arm(self, name: str) -> RecycleArm:
        """The arm of that name."""
        return next(one for one in self.arms if one.name == name)

    def depth(self, name: str) -> int:
        """How many upgrades lie before this one in its chain."""
        before = self.upgrade(name).after
        return 0 if before is None else 1 + self.depth(before)

    def settings(self, form: Form, arm: RecycleArm | None) -> dict[str, Any]:
        """The training settings of an arm's runs; of the old deltas for None."""
        if arm is None:
            return dict(form.old_training)
        found = merged(form.training, arm.training)
        return {**found, "steps": max(1, round(found["steps"] * arm.budget))}


def recycle_design(
    base: Base, upgrades: Sequence[Any], tasks: Sequence[Any], forms: Mapping[str, Any], arms: Mapping[str, Any], *,
    control: str, old: Sequence[Any], new: Sequence[Any], seeds: Sequence[int], training: Any, pretraining_: Any,
    upgrade_seed: int, connect: Any,
) -> Design:  # fmt: skip
    """Open and check what a user gave; arguments as of :func:`anytune.jobs.recycle_grid.recycle_grid`.

    Raises:
        AnytuneError: something cannot be opened or does not fit.
    """
    opened = [open_task(dict(one) if isinstance(one, Mapping) else one) for one in _listed(tasks, "tasks")]
    check_tasks(opened)
    for task in opened:
        if not higher_is_better(task.metric):
            raise SettingsError(
                f"task '{task.name}' is scored by {task.metric}, of which less is better",
                why="Tables take means over tasks, and no mean is of errors and accuracies together.",
                fix="metric: pearson_spearman" if task.kind == "regression" else "another metric",
            )
    made_forms = check_forms(forms, training, base, opened)
    steps = check_upgrades(upgrades, pretraining_, base)
    sizes = check_sizes(old, "old"), check_sizes(new, "new")
    chosen = check_seeds(seeds)
    names = {"upgrades": [one.name for one in steps], "forms": [one.name for one in made_forms],
             "tasks": [task.name for task in opened]}  # fmt: skip
    made = [
        _arm(name, given, names, sizes, chosen, base) for name, given in check_recycle_arms(arms, control).items()
    ]  # fmt: skip
    if any(arm.weights in ("wrong-task", "mean") for arm in made) and len(opened) < 2:
        raise SettingsError("weights of other tasks, and there is one task", fix="a second task, or weights: random")
    for task in opened:
        if task.kind != "classification" and set(sizes[0] + sizes[1]) != {WHOLE}:
            raise SettingsError(
                f"task '{task.name}' has no classes to take rows of", why="Few-shot sizes count rows a class.",
                fix="old: [full] and new: [full]",
            )  # fmt: skip
    return Design(
        base, steps, opened, made_forms, made, control, chosen, check_connect(connect, made, sizes, chosen),
        check_seeds([upgrade_seed])[0],
    )  # fmt: skip


# Parts


def check_upgrades(upgrades: Any, training: Any, base: Base) -> list[Upgrade]:
    """The upgrades, each after the one it goes on from.

    Raises:
        SettingsError: an unknown key, two of one name, after none that stands before it, or tokens without domains.
    """
    made: list[Upgrade] = []
    for number, given in enumerate(_listed(upgrades, "upgrades"), 1):
        if not isinstance(given, Mapping) or not given.get("name"):
            raise SettingsError(
                f"upgrade {number} has no name", fix="{name: v1, domains: [sample:hpo], tokens: 100000}"
            )
        name = str(given["name"])
        _check_keys(given, UPGRADE_KEYS, f"upgrade '{name}'")
        if name in {one.name for one in made}:
            raise SettingsError(f"two upgrades are called '{name}'", why="Tables name an upgrade by its name.")
        after = None if given.get("after") is None else str(given["after"])
        if after is not None and after not in {one.name for one in made}:
            raise SettingsError(
                f"upgrade '{name}' comes after '{after}', which is none before it",
                why="A chain is listed in its order.", fix=f"after: one of {', '.join(one.name for one in made)}"
                if made else f"'{name}' without after: it is the first",
            )  # fmt: skip
        domains = given.get("domains") or []
        domains = [domains] if isinstance(domains, str | Mapping) else domains
        if not domains and (given.get("tokens") or given.get("training") or given.get("method")):
            raise SettingsError(f"upgrade '{name}' has no domains", why="It is to be pre-trained.", fix="domains: ...")
        tokens = given.get("tokens")
        shared = merged(training, given.get("training"))
        if tokens is not None:
            if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
                raise SettingsError(f"upgrade '{name}': tokens = {tokens!r}", fix="tokens: 100000")
            for key in ("steps", "epochs"):
                shared.pop(key, None)
            shared = pretraining(shared, max(1, tokens // len(domains)), base, [])
        if domains and "evaluate_every" not in shared and "steps" in shared:
            shared["evaluate_every"] = shared["steps"]  # held-out losses before and after are what is asked
        method = given.get("method", "sequential")
        registry.parse(method, "pretrain", base.anatomy.model_type)
        made.append(Upgrade(name, tuple(load_stream(domains)) if domains else (), after, method, shared))
    return made


def check_forms(forms: Any, training: Any, base: Base, tasks: Sequence[Task] = ()) -> list[Form]:
    """The forms with their settings.

    Raises:
        SettingsError: none, an unknown key, no steps, or settings of the old deltas that the new runs lack.
        MethodError: an unknown method, or one that cannot be run on one of ``tasks``.
    """
    if not isinstance(forms, Mapping) or not forms:
        raise SettingsError("no forms are given", fix="forms: {full: {method: full}, lora: {method: lora}}")
    made = []
    for name, given in forms.items():
        if not isinstance(given, Mapping) or "method" not in given:
            raise SettingsError(f"form '{name}' names no method", fix=f"{name}: {{method: full}}")
        _check_keys(given, FORM_KEYS, f"form '{name}'")
        check_methods(given["method"], base, tasks)
        own = merged(training, given.get("training"))
        before = merged(own, given.get("old_training"))
        for settings in (own, before):
            fitting(training_settings(settings), base)
            if settings.get("steps") is None:
                raise SettingsError(
                    f"form '{name}' has no steps", why="Arms are given equal budgets, and multiples of them.",
                    fix="training: {steps: 100}",
                )  # fmt: skip
        lacking = sorted(set(before) - set(own))
        if lacking:
            raise SettingsError(
                f"form '{name}': old_training has {', '.join(lacking)}, and training has not",
                why="Recycled runs would inherit it from the old delta, and fresh ones would not.",
                fix=f"training: {{{lacking[0]}: ...}}",
            )
        made.append(Form(str(name), given["method"], own, before))
    return made


def check_recycle_arms(arms: Any, control: str) -> dict[str, dict[str, Any]]:
    """The arms with the control first; fresh tuning is added where it is the control and not among them.

    Raises:
        SettingsError: an arm that cannot be.
        MethodError: an unknown recycle method.
    """
    if not isinstance(arms, Mapping) or not arms:
        raise SettingsError("no arms are given", fix="arms: {direct: {recycle: direct}}")
    for name, arm in arms.items():
        if not isinstance(arm, Mapping) or ("recycle" in arm) == bool(arm.get("fresh")):
            raise SettingsError(
                f"arm '{name}' is neither fresh nor recycled",
                fix=f"{name}: {{recycle: initialize}}   or   {name}: {{fresh: true}}",
            )
        _check_keys(arm, ARM_KEYS, f"arm '{name}'")
        if "recycle" in arm:
            registry.parse(arm["recycle"], "recycle")
        for key in ("weights", "hop", "old") if arm.get("fresh") else ():
            if key in arm:
                raise SettingsError(f"arm '{name}' is fresh and has '{key}'", why="It starts from no weights.")
        if arm.get("weights", "own") not in ("own", *CONTROLS):
            raise unknown(f"weights of arm '{name}':", str(arm["weights"]), ("own", *CONTROLS), SettingsError)
        if arm.get("hop") and arm.get("weights", "own") != "own":
            raise SettingsError(f"arm '{name}' hops with weights that are not its own", fix="hop: false")
        budget = arm.get("budget", 1)
        if isinstance(budget, bool) or not isinstance(budget, int | float) or not budget > 0:
            raise SettingsError(f"arm '{name}': budget = {budget!r}", why="A multiple of the steps.", fix="budget: 3")
        if arm.get("training") is not None and "steps" in arm["training"]:
            raise SettingsError(f"arm '{name}' has steps of its own", why="Budgets are multiples.", fix="budget: 0.5")
    made = {str(name): dict(arm) for name, arm in arms.items()}
    if control not in made and control == FRESH:
        made = {control: {"fresh": True}, **made}
    if control not in made:
        raise unknown("arm as control:", control, made, SettingsError)
    restricted = [key for key in ("upgrades", "forms", "tasks", "new", "seeds", "budget") if key in made[control]]
    if not made[control].get("fresh") or restricted:
        raise SettingsError(
            f"the control '{control}' is {'not fresh' if not restricted else 'restricted in ' + restricted[0]}",
            why="All arms are held against tuning from nothing, with equal steps, everywhere.", fix="control: fresh",
        )  # fmt: skip
    return {control: made[control], **made}


def _arm(
    name: str, given: Mapping[str, Any], names: Mapping[str, Sequence[str]],
    sizes: tuple[Sequence[str], Sequence[str]], seeds: Sequence[int], base: Base,
) -> RecycleArm:  # fmt: skip
    def some(key: str, known: Sequence[str], read: Callable[[Any], str] = str) -> tuple[str, ...]:
        wanted = given.get(key)
        if wanted is None:
            return tuple(known)
        chosen = [read(one) for one in (wanted if isinstance(wanted, list | tuple) else [wanted])]
        for one in chosen:
            if one not in known:
                raise unknown(f"{key} of arm '{name}':", one, known, SettingsError)
        return tuple(one for one in known if one in chosen)

    fresh, method = bool(given.get("fresh")), given.get("recycle")
    if method is not None:
        registry.parse(method, "recycle", base.anatomy.model_type)
    training_settings(given.get("training"))
    return RecycleArm(
        name=name, kind="fresh" if fresh else "recycle", method=method, weights=str(given.get("weights", "own")),
        hop=bool(given.get("hop")), budget=float(given.get("budget", 1)), training=dict(given.get("training") or {}),
        seeds=tuple(check_seeds(given["seeds"]) if "seeds" in given else seeds),
        old=() if fresh else some("old", sizes[0]), new=some("new", sizes[1]),
        **{key: some(key, names[key]) for key in ("upgrades", "forms", "tasks")},
    )  # fmt: skip


def check_sizes(sizes: Any, key: str) -> tuple[str, ...]:
    """Amounts of data as text: "full", or a count of rows a class.

    Raises:
        SettingsError: neither, none, or one twice.
    """
    given = list(sizes) if isinstance(sizes, list | tuple) else [sizes]
    for one in given:
        if one != WHOLE and (isinstance(one, bool) or not isinstance(one, int) or one < 1):
            raise SettingsError(
                f"{key} = {given}", why="Rows a class, or 'full' for all of them.", fix=f"{key}: [16, full]"
            )
    if not given or len(set(given)) != len(given):
        raise SettingsError(f"{key} = {given}", why="Each once, and at least one.", fix=f"{key}: [16, full]")
    return tuple(map(str, given))


def check_connect(
    given: Any, arms: Sequence[RecycleArm], sizes: tuple[Sequence[str], Sequence[str]], seeds: Sequence[int]
) -> Connect:
    """Which runs are connected with their outdated weights; by default none.

    Raises:
        SettingsError: an unknown key, arm, size or seed.
    """
    if not given:
        return Connect()
    if not isinstance(given, Mapping) or not given.get("arms"):
        raise SettingsError(f"connect = {given!r}", fix="connect: {arms: [fresh, initialize], seeds: [0]}")
    _check_keys(given, CONNECT_KEYS, "connect")
    wanted: dict[str, Any] = {}
    known: dict[str, Sequence[Any]] = {
        "arms": [arm.name for arm in arms], "old": sizes[0], "new": sizes[1], "seeds": seeds
    }  # fmt: skip
    for key, all_of_them in known.items():
        listed = given.get(key, all_of_them if key != "seeds" else seeds[:1])
        listed = listed if isinstance(listed, list | tuple) else [listed]
        wanted[key] = tuple(one if key == "seeds" else str(one) for one in listed)
        for one in wanted[key]:
            if one not in all_of_them:
                raise SettingsError(
                    f"connect: {key} holds {one!r}", why=f"There are {', '.join(map(str, all_of_them))}.",
                    fix=f"{key}: [{all_of_them[0]}]",
                )  # fmt: skip
    numbers = {key: given.get(key, getattr(Connect, key)) for key in ("points", "texts")}
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 2:
            raise SettingsError(f"connect: {key} = {value!r}", why="At least 2.", fix=f"{key}: 26")
    return Connect(**wanted, **numbers)


def _check_keys(given: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in given:
        if key not in known:
            near = nearest(str(key), known)
            raise SettingsError(
                f"{where}: unknown key '{key}'", why=f"It holds {', '.join(known)}.", fix=f"{near}:" if near else ""
            )


def _listed(given: Any, key: str) -> Sequence[Any]:
    if isinstance(given, str | Mapping | Task | TrainingSettings) or not isinstance(given, Sequence) or not given:
        raise SettingsError(f"{key} is no list", fix=f"{key}: [...]")
    return given
