"""What recycling gained over a grid of upgrades, from the lines of its runs alone: pure functions on plain values.

A line is one run: ``arm``, ``control`` (the arm of fresh tuning at equal budget), ``kind`` ("outdated": the old
weights on the old base; "fresh": tuned on the new base from nothing; "recycle"), ``method`` (of "recycle": its name),
``weights`` (whose: "own", or of :data:`anytune.evaluate.control_deltas.CONTROLS`), ``hop`` (the old weights are those
of the upgrade before, not of the first base), ``upgrade`` (None for "outdated"), ``same_base`` (it changed nothing),
``form``, ``task``, ``metric``, ``old`` and ``new`` (the data of the old delta and of this run; None where there is
none), ``seed``, ``validation``, ``test``, ``floor``, ``curve`` (of validation: ``[step, seconds, score]``), ``steps``,
``seconds``, ``failed``, ``predictions`` and ``refused`` (why the method can do nothing with the delta: such a line is
left out). Scores are raw, None where a run diverged.

A **case** is a form with its old and new data. Within a case the runs of one task and seed are paired over arms: with
one seed an arm draws the same rows, order and head. A pair of (upgrade, task) is a column; columns of one task share
their old deltas, so that they count as one observation for each seed. Upgrades that changed nothing are left out of
what is pooled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from anytune.evaluate.compare import unit
from anytune.evaluate.curves import Curve, area, censored_median, reach
from anytune.evaluate.flips import flips
from anytune.evaluate.scores import number
from anytune.evaluate.stability import Against, across_tasks, counted

Line = Mapping[str, Any]
#: What no run is needed for: the outdated weights where they are, and always giving the commonest training answer.
NOTHING, NO_DELTA = "old base, old weights", "new base, no delta"


class Case(NamedTuple):
    """A form of tuning, and how much data the old delta and the new run had."""

    form: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.form}, delta from {_rows(self.old)}, new data {_rows(self.new)}"


class Column(NamedTuple):
    """An upgrade and a task."""

    upgrade: str
    task: str


def _rows(size: str) -> str:
    return "all rows" if size == "full" else f"{size} rows a class"


@dataclass(frozen=True)
class Section:
    """The runs of one case: arm -> column -> seed -> line; the first two arms need no run on the new base."""

    case: Case
    control: str
    upgrades: Sequence[str]
    tasks: Sequence[str]
    runs: Mapping[str, Mapping[Column, Mapping[int, Line]]]
    #: column -> always one answer, in points; None where there is none
    floors: Mapping[Column, float | None]
    #: upgrades that changed nothing
    same: frozenset[str]

    @property
    def arms(self) -> list[str]:
        """Every arm, in the order of a table."""
        return list(self.runs)

    def columns(self, *, same: bool = False) -> list[Column]:
        """All columns that any arm has runs of, upgrades that changed nothing among them if ``same``."""
        there = {column for runs in self.runs.values() for column in runs}
        return [
            Column(upgrade, task) for upgrade in self.upgrades for task in self.tasks
            if (upgrade, task) in there and (same or upgrade not in self.same)
        ]  # fmt: skip

    def scores(self, arm: str, column: Column) -> dict[int, float | None]:
        """Seed -> test score in points; None for a run that diverged."""
        return {seed: points(line, "test") for seed, line in self.runs[arm].get(column, {}).items()}

    def mean(self, arm: str, upgrade: str | None = None) -> float | None:
        """Mean over tasks of the mean test score, on one upgrade or on all that changed something.

        None where the arm lacks a column that others have; a run that diverged counts with the floor.
        """
        wanted = [one for one in self.columns(same=upgrade is not None) if upgrade in (None, one.upgrade)]
        means = []
        for column in wanted:
            values = [self.floors[column] if one is None else one for one in self.scores(arm, column).values()]
            known = [value for value in values if value is not None]
            if not known:
                return None
            means.append(float(np.mean(known)))
        return float(np.mean(means)) if means else None


def sections(lines: Iterable[Line]) -> list[Section]:
    """The cases of a grid, in the order of their first lines."""
    lines = [line for line in lines if not line.get("refused")]
    control = lines[0]["control"]
    outdated = [line for line in lines if line["kind"] == "outdated"]
    fresh = [line for line in lines if line["kind"] == "fresh"]
    recycled = [line for line in lines if line["kind"] == "recycle"]
    cases = dict.fromkeys(Case(line["form"], line["old"], line["new"]) for line in recycled)
    upgrades = list(dict.fromkeys(line["upgrade"] for line in lines if line["upgrade"] is not None))
    tasks = list(dict.fromkeys(line["task"] for line in lines))
    same = frozenset(line["upgrade"] for line in lines if line["same_base"])
    made = []
    for case in cases:
        own = [line for line in recycled if (line["form"], line["old"], line["new"]) == case]
        beside = [line for line in fresh if (line["form"], line["new"]) == (case.form, case.new)]
        before = [line for line in outdated if (line["form"], line["old"]) == (case.form, case.old)]
        columns = {Column(line["upgrade"], line["task"]): line for line in [*own, *beside]}
        floors = {column: points(line, "floor") for column, line in columns.items()}
        runs: dict[str, dict[Column, dict[int, Line]]] = {NOTHING: {}, NO_DELTA: {}}
        for column, line in columns.items():
            runs[NOTHING][column] = {one["seed"]: one for one in before if one["task"] == column.task}
            if line["floor"] is not None:
                seeds = {one["seed"] for one in [*own, *beside]
                         if (one["upgrade"], one["task"]) == column}  # fmt: skip
                answer = {**line, "test": line["floor"], "validation": None, "failed": None, "curve": [], "steps": 0,
                          "seconds": 0.0, "predictions": []}  # fmt: skip
                runs[NO_DELTA][column] = dict.fromkeys(sorted(seeds), answer)
        for line in [*own, *beside]:
            column = Column(line["upgrade"], line["task"])
            runs.setdefault(line["arm"], {}).setdefault(column, {})[line["seed"]] = line
        made.append(Section(
            case, control, [one for one in upgrades if any(column.upgrade == one for column in columns)],
            [one for one in tasks if any(column.task == one for column in columns)], runs, floors, same,
        ))  # fmt: skip
    return made


def points(line: Line, key: str) -> float | None:
    """A score of a line in the unit of the reader."""
    value = number(line[key])
    return None if value is None or (key == "test" and line["failed"]) else value * unit(line["metric"])


# Comparisons


Reader = Callable[[Section, str, Column], Mapping[int, float | None]]


def against(
    found: Sequence[Section], control: str, read: Reader | None = None, *, upgrade: str | None = None
) -> dict[str, Against]:
    """Every arm of some sections against ``control``, over all their columns on upgrades that changed something.

    Args:
        read: what is compared, by seed; by default the test score. A run without a number counts with the floor.
        upgrade: this one alone, even if it changed nothing.
    """
    reader: Reader = read or (lambda section, arm, column: section.scores(arm, column))
    tasks, groups, lowest = [], [], []
    for section in found:
        for column in section.columns(same=upgrade is not None):
            if upgrade not in (None, column.upgrade):
                continue
            arms = {arm: one for arm in section.arms if (one := reader(section, arm, column))}
            if control in arms:
                tasks.append(arms)
                groups.append(column.task)
                lowest.append(section.floors[column])
    return across_tasks(tasks, control, floors=lowest, groups=groups) if tasks else {}


def by_task(section: Section, arm: str, other: str | None = None) -> dict[str, float]:
    """Task -> the mean test score of an arm in points, over the upgrades that changed something and then over seeds.

    Args:
        other: its score is taken off, of the same upgrades and seeds. Tasks that lack either arm are left out.
    """
    found: dict[str, list[float]] = {}
    for column in section.columns():
        own = counted(section.scores(arm, column), section.floors[column])
        if other is None:
            values = list(own.values())
        else:
            beside = counted(section.scores(other, column), section.floors[column])
            values = [own[seed] - beside[seed] for seed in own if seed in beside]
        if values:
            found.setdefault(column.task, []).append(float(np.mean(values)))
    return {task: float(np.mean(means)) for task, means in found.items()}


def areas(section: Section, arm: str, column: Column) -> dict[int, float | None]:
    """Seed -> mean height of the validation curve in points; only curves as long as the control's are read.

    None for a run that diverged, which counts with the floor as its score does: left out, it would flatter its arm.
    """
    found: dict[int, float | None] = {}
    beside = section.runs.get(section.control, {}).get(column, {})
    for seed, line in section.runs[arm].get(column, {}).items():
        if seed not in beside:
            continue
        if line["failed"]:
            found[seed] = None
            continue
        curve, other = curve_of(line), curve_of(beside[seed])
        if curve is None or (not beside[seed]["failed"] and (other is None or _ends(curve) != _ends(other))):
            continue
        found[seed] = area(curve)
    return found


def _ends(curve: Curve) -> tuple[float, float]:
    return float(curve.steps[0]), float(curve.steps[-1])


def curve_of(line: Line) -> Curve | None:
    """The validation curve of a run, in points; None for a run that was not trained."""
    rows = [row for row in line["curve"] if number(row[2]) is not None]
    if len(rows) < 2:
        return None
    steps, seconds, scores = np.array(rows, dtype=np.float64).T
    return Curve(steps, seconds, scores * unit(line["metric"]))


@dataclass(frozen=True)
class Reach:
    """When an arm reached what fresh tuning ended with on validation (its mean over seeds), column by column.

    Attributes:
        reached: runs that did.
        runs: of how many.
        steps: median over the runs of the steps it took, as a share of the control's whole run; None if the median
            run never got there. A run at step 0 took none.
        seconds: the same of training seconds.
    """

    reached: int
    runs: int
    steps: float | None
    seconds: float | None


def reaching(found: Sequence[Section], arm: str) -> Reach:
    """See :class:`Reach`; runs that were not trained stand at step 0, runs that diverged never reach it."""
    steps: list[float | None] = []
    seconds: list[float | None] = []
    for section in found:
        for column in section.columns():
            beside = section.runs.get(section.control, {}).get(column, {})
            ends = [curve.scores[-1] for line in beside.values() if (curve := curve_of(line)) is not None]
            if not ends:
                continue
            target = float(np.mean(ends))
            whole = float(np.mean([line["steps"] for line in beside.values()]))
            time = float(np.mean([line["seconds"] for line in beside.values()]))
            for line in section.runs[arm].get(column, {}).values():
                if line["kind"] == "outdated":  # its curve is of another base
                    continue
                curve = curve_of(line)
                if curve is None:
                    there = points(line, "validation")
                    if there is None:
                        if line["failed"]:  # it never got there, and says so
                            steps.append(None)
                            seconds.append(None)
                        continue
                    steps.append(0.0 if there >= target else None)
                    seconds.append(0.0 if there >= target else None)
                    continue
                at = reach(curve, target)
                steps.append(None if at is None else at.step / max(whole, 1.0))
                seconds.append(None if at is None else at.seconds / max(time, 1e-9))
    return Reach(sum(one is not None for one in steps), len(steps), censored_median(steps), censored_median(seconds))


# Flips


def broken(section: Section, arm: str, gold: Mapping[str, Sequence[Any]]) -> float | None:
    """Negative flips against the old weights on the old base, in points: mean over columns of the mean over seeds.

    Args:
        gold: task -> gold answers of its test split; tasks whose answers are neither right nor wrong are left out.
    """
    means = [float(np.mean(list(shares.values())))
             for column in section.columns() if (shares := flipped(section, arm, column, gold))]  # fmt: skip
    return float(np.mean(means)) if means else None


def flipped(section: Section, arm: str, column: Column, gold: Mapping[str, Sequence[Any]]) -> dict[int, float]:
    """Seed -> negative flips in points, of the seeds whose answers before and after are known; see :func:`broken`."""
    before, truth = section.runs[NOTHING].get(column, {}), _flat(gold.get(column.task, ()))
    found = {}
    for seed, line in section.runs[arm].get(column, {}).items():
        old, new = (_flat(one["predictions"]) for one in (before.get(seed, {"predictions": []}), line))
        if truth and old and new:
            found[seed] = 100 * flips(old, new, truth).negative_rate
    return found


def _flat(answers: Sequence[Any]) -> list[Any]:
    """Answers one by one; those of a tagged text are its words'."""
    return [one for answer in answers for one in (answer if isinstance(answer, list) else [answer])]


def cost(section: Section, arm: str) -> tuple[float, float] | None:
    """Training steps and seconds of an arm as multiples of the control's, over the columns that both have."""
    both = [column for column in section.columns()
            if section.runs[arm].get(column) and section.runs.get(section.control, {}).get(column)]  # fmt: skip
    if not both or arm in (NOTHING, NO_DELTA):
        return None
    own, beside = (
        [float(np.mean([line[key] for column in both for line in section.runs[name][column].values()]))
         for key in ("steps", "seconds")]
        for name in (arm, section.control)
    )  # fmt: skip
    return own[0] / max(beside[0], 1.0), own[1] / max(beside[1], 1e-9)
