"""What an anytime matrix is made of: domains with their tasks, orders, arms, and the streams to pre-train."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anytune.data.domains import Domain, load_periods, load_stream
from anytune.data.tasks import Task, load_task_periods
from anytune.engine.settings import TrainingSettings, training_settings
from anytune.errors import SettingsError, nearest
from anytune.evaluate.anytime import Cell, check_metrics, every, needed
from anytune.evaluate.scores import higher_is_better
from anytune.jobs.arms import check_arms, merged
from anytune.jobs.command import check_methods, check_seeds
from anytune.jobs.opening import fitting, open_task
from anytune.jobs.pretrain import PackedDomain, stream_of
from anytune.manifests import digest
from anytune.methods import registry
from anytune.models.base import Base

#: The arm that is plain pre-training; the control where none is named.
SEQUENTIAL = "sequential"
SUBJECT_KEYS = ("name", "domain", "task")
ARM_KEYS = ("method", "training", "tuning", "seeds", "orders")
TUNING_KEYS = ("method", "training", "train_size", "subset_seed")
#: More orders than anybody runs, and few enough to be drawn at once.
MOST_ORDERS = 1000


@dataclass(frozen=True)
class Subject:
    """A domain and the task that a base is tuned on to see what it is worth there; both bear one name."""

    name: str
    domain: Domain
    task: Task


@dataclass(frozen=True)
class Tuning:
    """How each cell is tuned; see :func:`anytune.tune`."""

    method: Any = "full"
    training: Mapping[str, Any] | None = None
    train_size: int | None = None
    subset_seed: Any = None


@dataclass(frozen=True)
class Arm:
    """A way to pre-train (and, if it says so, to tune).

    Attributes:
        flow: how its stages follow each other: "chain", "restart" or "joint".
        runs: (number of the order, seed) of each of its streams.
    """

    name: str
    method: Any
    training: Mapping[str, Any]
    tuning: Tuning
    flow: str
    runs: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Stream:
    """One run of the comparison: an arm, an order and a seed. ``order`` counts subjects from 0."""

    arm: Arm
    number: int
    seed: int
    order: tuple[int, ...]

    @property
    def title(self) -> str:
        """What progress and errors call it."""
        return f"{self.arm.name}, order {self.number}, seed {self.seed}"

    @property
    def stages(self) -> list[int]:
        """The numbers of its stages: of a stream that mixes all domains there is one, and it is the last."""
        n = len(self.order)
        return [n] if self.arm.flow == "joint" else list(range(1, n + 1))

    def after(self, stage: int, subjects: Sequence[Subject]) -> str:
        """The domain that a stage was pre-trained on."""
        if self.arm.flow == "joint":
            return "+".join(subjects[index].name for index in self.order)
        return subjects[self.order[stage - 1]].name


@dataclass(frozen=True)
class Design:
    """Everything a matrix needs, checked; nothing is trained yet."""

    base: Base
    subjects: Sequence[Subject]
    orders: Sequence[tuple[int, ...]]
    arms: Sequence[Arm]
    control: str
    tuning: Tuning
    #: cells to measure, of those a stream has
    cells: frozenset[Cell]
    metrics: Sequence[str]

    @property
    def streams(self) -> list[Stream]:
        """All runs of all arms."""
        return [
            Stream(arm, number, seed, self.orders[number]) for arm in self.arms for number, seed in arm.runs
        ]  # fmt: skip

    @property
    def seeds(self) -> list[int]:
        """The seeds of all runs: row 0 is tuned with each of them."""
        return list(dict.fromkeys(stream.seed for stream in self.streams))

    def call(self, stream: Stream, base: Any, store: str) -> dict[str, Any]:
        """The arguments of :func:`anytune.pretrain` that make a stream's stages."""
        return {
            "base": base, "domains": [self.subjects[index].domain for index in stream.order], "store": store,
            "method": stream.arm.method, "training": dict(stream.arm.training), "seed": stream.seed,
            "watch": [subject.domain for subject in self.subjects],
        }  # fmt: skip

    def mark(self, stream: Stream) -> str:
        """A hash over what decides a stream."""
        return digest([
            self.base.identity.backbone, [self.subjects[index].domain.content for index in stream.order],
            [registry.record(one).model_dump() for one in registry.parse(stream.arm.method, "pretrain")],
            dict(stream.arm.training), stream.seed,
        ])  # fmt: skip


def design(
    base: Base, domains: Sequence[Any], arms: Mapping[str, Any], *, control: str, orders: Any, seeds: Sequence[int],
    runs: str, training: Any, tokens: int | str | None, tuning: Mapping[str, Any] | None, cells: str,
    metrics: Sequence[str] | None,
) -> Design:  # fmt: skip
    """Open and check what a user gave; arguments as of :func:`anytune.jobs.anytime.anytime_matrix`.

    Raises:
        AnytuneError: something cannot be opened or does not fit.
    """
    subjects = open_subjects(domains)
    chosen_orders = check_orders(orders, [subject.name for subject in subjects])
    every_run = check_runs(runs, len(chosen_orders), check_seeds(seeds))
    plain = check_tuning(tuning)
    tasks = [subject.task for subject in subjects]
    check_methods(plain.method, base, tasks)
    wanted = check_metrics(metrics)
    if cells not in ("needed", "all"):
        raise SettingsError(f"cells = {cells!r}", why="needed: those the metrics are made of.", fix="cells: all")
    shared, made = pretraining(training, tokens, base, subjects), []
    for name, given in check_anytime_arms(arms, control).items():
        together = merged(shared, given.get("training"))
        settings = training_settings(together)
        if "evaluate_every" not in together and settings.steps is not None:
            together["evaluate_every"] = settings.steps  # held-out losses before and after a stage are what is asked
        arm_tuning = check_tuning(_over(tuning or {}, given["tuning"]), name) if given.get("tuning") else plain
        check_methods(arm_tuning.method, base, tasks)
        made.append(Arm(
            name, given["method"], together, arm_tuning,
            stream_of(registry.parse(given["method"], "pretrain", base.anatomy.model_type)),
            runs_of(name, given, every_run, runs, len(chosen_orders)),
        ))  # fmt: skip
    n = len(subjects)
    return Design(
        base, subjects, chosen_orders, made, control, plain,
        frozenset(every(n) if cells == "all" else needed(wanted, n)), wanted,
    )  # fmt: skip


def open_subjects(items: Sequence[Any]) -> list[Subject]:
    """Domains with their tasks, named alike.

    Raises:
        SettingsError: an item lacks its domain or task, two have one name, or a metric of which less is better.
    """
    if isinstance(items, str | Path | Mapping | Subject) or not items:
        raise SettingsError(
            "domains is no list of domains with their tasks",
            fix="domains: [{name: law, domain: law.txt, task: notices.csv}, ...]",
        )
    subjects = [subject for number, item in enumerate(items, 1) for subject in _subjects(item, number)]
    load_stream([subject.domain for subject in subjects])
    for subject in subjects:
        if not higher_is_better(subject.task.metric):
            raise SettingsError(
                f"the task of '{subject.name}' is scored by {subject.task.metric}, of which less is better",
                why="The matrix takes means over tasks, and no mean is of errors and accuracies together.",
                fix="metric: pearson_spearman" if subject.task.kind == "regression" else "another metric",
            )
    return subjects


def _subjects(item: Any, number: int) -> Iterator[Subject]:
    if isinstance(item, Subject):
        yield item
        return
    if not isinstance(item, Mapping):
        raise SettingsError(
            f"domain {number} of the stream is {item!r}", why="Each domain stands with its task.",
            fix=f"{{domain: {item}, task: FILE}}",
        )  # fmt: skip
    for key in item:
        if key not in SUBJECT_KEYS:
            near = nearest(str(key), SUBJECT_KEYS)
            raise SettingsError(
                f"domain {number} of the stream: unknown key '{key}'", why=f"It holds {', '.join(SUBJECT_KEYS)}.",
                fix=f"{near}:" if near else "",
            )  # fmt: skip
    for key in ("domain", "task"):
        if item.get(key) is None:
            raise SettingsError(
                f"domain {number} of the stream ({item.get('name', 'without a name')}) has no '{key}'",
                why="A base is pre-trained on the domain, and tuned on the task to see what that was worth.",
                fix=f"{key}: FILE or sample:NAME",
            )
    if isinstance(item["domain"], Mapping) and "split_by" in item["domain"]:
        yield from _in_time(item)
        return
    [domain] = load_stream([item["domain"]])
    given = item["task"]
    task = open_task(dict(given) if isinstance(given, Mapping) else given)
    name = str(item.get("name") or domain.name)
    yield Subject(name, replace(domain, name=name), replace(task, name=name))


def _in_time(item: Mapping[str, Any]) -> Iterator[Subject]:
    """A domain and a task for each period of dated text; the task is cut as the domain is, unless it says how."""
    given = item["task"]
    if isinstance(given, Task):
        raise SettingsError(
            f"the domain is split by time, and its task '{given.name}' is opened already",
            why="Each period needs a task of its own.", fix="task: {source: FILE, date: COLUMN}",
        )  # fmt: skip
    domains = load_periods(item["domain"])
    asked = dict(given) if isinstance(given, Mapping) else {"source": given}
    tasks = load_task_periods({"split_by": item["domain"]["split_by"], **asked})
    if domains.keys() != tasks.keys():
        raise SettingsError(
            f"the domain has the periods {', '.join(domains)}, its task {', '.join(tasks)}",
            why="A base is tuned on the task of every period.", fix="split_by: [DATE, ...]   (borders that fit both)",
        )  # fmt: skip
    for period, domain in domains.items():
        name = f"{item['name']}-{period}" if item.get("name") else domain.name
        yield Subject(name, replace(domain, name=name), replace(tasks[period], name=name))


def check_orders(orders: Any, names: Sequence[str]) -> list[tuple[int, ...]]:
    """Orders of the domains, each a tuple of places counted from 0.

    Args:
        orders: None for the order as listed; a count: that order and further ones, drawn once and for all; or lists
            of names.

    Raises:
        SettingsError: no such count of orders, a list that is not a permutation of the names, or one twice.
    """
    listed = tuple(range(len(names)))
    if orders is None:
        return [listed]
    if isinstance(orders, int) and not isinstance(orders, bool):
        most = min(math.factorial(min(len(names), 10)), MOST_ORDERS)
        if not 1 <= orders <= most:
            raise SettingsError(
                f"orders = {orders}", why=f"{len(names)} domains have 1 to {most} orders.", fix=f"orders: {most}"
            )
        draw, found = random.Random(0), {listed: None}
        while len(found) < orders:
            found.setdefault(tuple(draw.sample(listed, len(listed))))
        return list(found)
    made: list[tuple[int, ...]] = []
    for order in orders if isinstance(orders, Sequence) and not isinstance(orders, str) else [orders]:
        if not isinstance(order, Sequence) or isinstance(order, str) or sorted(map(str, order)) != sorted(names):
            raise SettingsError(
                f"order {order!r} is not one of the domains {', '.join(names)}",
                why="An order names each domain once.", fix=f"orders: [[{', '.join(names)}]]   or   orders: 3",
            )  # fmt: skip
        made.append(tuple(list(names).index(str(name)) for name in order))
    if not made or len(set(made)) != len(made):
        raise SettingsError(f"orders = {orders!r}", why="Orders are distinct, and at least one.", fix="orders: 3")
    return made


def check_runs(runs: str, orders: int, seeds: Sequence[int]) -> list[tuple[int, int]]:
    """(order, seed) of each stream: every order with every seed, or the first with the first and so on.

    Raises:
        SettingsError: neither "crossed" nor "paired", or paired with unequal numbers.
    """
    if runs == "crossed":
        return [(order, seed) for order in range(orders) for seed in seeds]
    if runs != "paired":
        raise SettingsError(
            f"runs = {runs!r}",
            why="crossed: every order with every seed; paired: the first order with the first seed.",
            fix="runs: paired",
        )  # fmt: skip
    if orders != len(seeds):
        raise SettingsError(
            f"{orders} orders and {len(seeds)} seeds cannot be paired", why="Each order takes one seed.",
            fix=f"seeds: {orders}   or   runs: crossed",
        )  # fmt: skip
    return list(zip(range(orders), seeds, strict=True))


def runs_of(
    name: str, arm: Mapping[str, Any], every_run: Sequence[tuple[int, int]], runs: str, orders: int
) -> tuple[tuple[int, int], ...]:
    """The streams of an arm: all, or those of its own ``seeds`` and of the first ``orders``.

    Raises:
        SettingsError: they do not fit.
    """
    few = arm.get("orders", orders)
    if isinstance(few, bool) or not isinstance(few, int) or not 1 <= few <= orders:
        raise SettingsError(
            f"arm '{name}': orders = {few!r}", why=f"An arm takes the first of the {orders} orders, at least one.",
            fix=f"orders: {orders}",
        )  # fmt: skip
    if "seeds" not in arm:
        return tuple(run for run in every_run if run[0] < few)
    if runs == "paired":
        raise SettingsError(
            f"arm '{name}': seeds, where orders and seeds are paired", why="A seed belongs to an order.",
            fix="orders: 1   (the first pair alone)",
        )  # fmt: skip
    return tuple((order, seed) for order in range(few) for seed in check_seeds(arm["seeds"]))


def check_anytime_arms(arms: Mapping[str, Any], control: str) -> dict[str, dict[str, Any]]:
    """The arms with the control first; see :func:`anytune.jobs.arms.check_arms`.

    Raises:
        SettingsError: as there, or an arm's ``tuning`` that cannot be.
        MethodError: an unknown method.
    """
    made = check_arms(arms, control, room="pretrain", keys=ARM_KEYS, plain=(SEQUENTIAL, SEQUENTIAL), alone=True)
    for name, arm in made.items():
        if arm.get("tuning") is not None:
            check_tuning(arm["tuning"], name)
    return made


def _over(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """An arm's tuning over that of all arms, setting by setting; both were looked at."""
    return {**shared, **own, "training": merged(shared.get("training"), own.get("training"))}


def check_tuning(given: Any, arm: str = "") -> Tuning:
    """How cells are tuned.

    Raises:
        SettingsError: an unknown key, or training settings that cannot be.
        MethodError: an unknown method.
    """
    where = f"arm '{arm}': tuning" if arm else "tuning"
    if given is not None and not isinstance(given, Mapping):
        raise SettingsError(f"{where} is {given!r}", fix="tuning: {method: full, training: {steps: 100}}")
    for key in given or {}:
        if key not in TUNING_KEYS:
            near = nearest(str(key), TUNING_KEYS)
            raise SettingsError(
                f"{where}: unknown key '{key}'", why=f"It holds {', '.join(TUNING_KEYS)}.",
                fix=f"{near}:" if near else "",
            )  # fmt: skip
    made = Tuning(**{str(key): value for key, value in (given or {}).items()})
    registry.parse(made.method, "tune")
    training_settings(made.training)
    return made


def pretraining(
    training: TrainingSettings | Mapping[str, Any] | None, tokens: int | str | None, base: Base,
    subjects: Sequence[Subject],
) -> dict[str, Any]:  # fmt: skip
    """The settings of every stage; a budget of tokens becomes the number of steps that reads so many.

    Raises:
        SettingsError: ``tokens`` beside steps or epochs, or a budget below one step.
    """
    given = merged(training, None)
    settings = fitting(training_settings(training), base)
    if tokens is None:
        return given
    if "steps" in given or "epochs" in given:
        raise SettingsError(
            "both tokens and training.steps (or epochs) are given", why="Each says how long a stage is.", fix="one"
        )
    if tokens == "smallest":
        tokenizer, objective = base.tokenizer(), base.anatomy.objective
        tokens = min(
            PackedDomain.of(subject.domain, tokenizer, settings, objective).train.token_count for subject in subjects
        )
    if isinstance(tokens, bool) or not isinstance(tokens, int):
        raise SettingsError(
            f"tokens = {tokens!r}", why="A count, or 'smallest': as many as the smallest domain has.",
            fix="tokens: 400000",
        )  # fmt: skip
    a_step = settings.batch_size * settings.accumulation * settings.block_size
    if tokens < a_step:
        raise SettingsError(
            f"tokens = {tokens}, and one step reads {a_step}",
            why=f"batch_size {settings.batch_size} x accumulation {settings.accumulation} x block_size "
            f"{settings.block_size}.",
            fix=f"tokens: {a_step}   or a smaller batch_size",
        )
    return {**given, "steps": tokens // a_step}
