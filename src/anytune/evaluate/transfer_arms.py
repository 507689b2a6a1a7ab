"""What transfers of soft prompts gained, from the lines of their runs alone: pure functions on plain values.

A line is one run on a target task: ``target``, ``metric``, ``source`` (None for an arm without one), ``sources`` (how
the arm's were taken: "none", "all", "some", or one for each run, "chosen" or "random"; several at once are named
``A + B``), ``family`` (source and target have texts in common), ``arm``, ``control``, ``seed``, ``restart``,
``learning_rate``, ``validation``, ``early`` and ``test`` (raw, in the metric; None if the run diverged; ``early`` is
validation at the first look after the start), ``floor``, ``steps`` and ``seconds`` of the run, ``spent_steps`` and
``spent_seconds`` with those of the source and of the teacher it stands on, ``failed``. No line is of a source that is
the target itself.

Of runs that differ in the rate or the restart alone, validation chooses one, and all are paid for. An arm with a
source is read in several ways (:data:`READINGS`); the gain of each is over the control on the same target and seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from anytune.evaluate.compare import unit
from anytune.evaluate.scores import higher_is_better, number
from anytune.evaluate.stability import Against, Arm, across_tasks

Line = Mapping[str, Any]
#: Between the names of sources that a run was given at once.
AND = " + "
#: How an arm that was run from several sources is read; a comma and one of these follow the arm's name.
READINGS = {
    "mean source": "the mean over sources: what a source drawn at random gives",
    "chosen source": "the source that the metric of the recipe puts first",
    "best source on validation": "the source whose runs validate best; all of them are paid for",
    "oracle source": "the source whose runs test best: no choice can do better, and nobody can make it",
    "worst source": "the source whose runs test worst",
}
#: ... and an arm with a teacher: of teacher and student the one that validates better.
BETTER_OF_TWO = "better of teacher and student"


@dataclass(frozen=True)
class Scored:
    """What stands for one (arm, source, target, seed) once validation has chosen: raw scores times their sign.

    ``test`` and ``validation`` are in the unit of the reader with more being better, None for a run that diverged;
    ``steps`` and ``seconds`` are of all that was spent to choose.
    """

    test: float | None
    validation: float | None
    early: float | None
    steps: float
    seconds: float


@dataclass(frozen=True)
class Grid:
    """All runs of a comparison: arm -> source -> target -> seed -> what was scored; sources of one arm may be None."""

    runs: Mapping[str, Mapping[str | None, Mapping[str, Mapping[int, Scored]]]]
    control: str
    targets: Sequence[str]
    #: target -> signed floor in the unit of the reader, None where there is none
    floors: Mapping[str, float | None]
    metrics: Mapping[str, str]
    #: (source, target) with texts in common
    families: frozenset[tuple[str, str]]
    #: arms that were run from one source for each target and seed
    single: frozenset[str] = frozenset()

    @property
    def sources(self) -> list[str]:
        """Every source that any arm used."""
        labels = [source for arm in self.runs.values() for source in arm if source is not None]
        return list(dict.fromkeys(name for label in labels for name in label.split(AND)))

    def of_control(self, target: str) -> Mapping[int, Scored]:
        """The control's runs on a target, by seed."""
        return self.runs[self.control][None].get(target, {})

    def pairs(self, arm: str, target: str) -> dict[str, Mapping[int, Scored]]:
        """Source -> seed -> what was scored, of an arm on a target."""
        return {source: on[target] for source, on in self.runs[arm].items() if source is not None and target in on}


def grid_of(lines: Iterable[Line], *, families: bool = True) -> Grid:
    """The runs of the lines.

    Args:
        families: whether pairs with texts in common count.
    """
    groups: dict[tuple[str, str | None, str, int], list[Line]] = {}
    related: set[tuple[str, str]] = set()
    targets: dict[str, Line] = {}
    control, single = "", set()
    for line in lines:
        if line["sources"] in ("chosen", "random"):
            single.add(line["arm"])
        control = line["control"]
        targets.setdefault(line["target"], line)
        if line["family"]:
            if AND not in line["source"]:
                related.add((line["source"], line["target"]))
            if not families:
                continue
        groups.setdefault((line["arm"], line["source"], line["target"], line["seed"]), []).append(line)
    runs: dict[str, dict[str | None, dict[str, dict[int, Scored]]]] = {}
    for (arm, source, target, seed), found in groups.items():
        runs.setdefault(arm, {}).setdefault(source, {}).setdefault(target, {})[seed] = chosen(found)
    floors = {name: _signed(line["floor"], line["metric"]) for name, line in targets.items()}
    metrics = {name: line["metric"] for name, line in targets.items()}
    return Grid(runs, control, list(targets), floors, metrics, frozenset(related), frozenset(single))


def chosen(lines: Sequence[Line]) -> Scored:
    """One of several runs that validation chooses; a run that diverged is never chosen beside one that did not."""

    def better(line: Line) -> float:
        found = _signed(line["validation"], line["metric"])
        return -np.inf if found is None or line["failed"] else found

    best = max(lines, key=better)  # max keeps the first of equals
    shared = {(line.get("shared_steps", 0), line.get("shared_seconds", 0.0)) for line in lines}
    common = (max(one[0] for one in shared), max(one[1] for one in shared))
    test, validation, early = (_signed(best[key], best["metric"]) for key in ("test", "validation", "early"))
    steps = sum(line["spent_steps"] - line.get("shared_steps", 0) for line in lines) + common[0]
    seconds = sum(line["spent_seconds"] - line.get("shared_seconds", 0.0) for line in lines) + common[1]
    return Scored(test, validation, early, steps, seconds)


def _signed(value: Any, metric: str) -> float | None:
    found = number(value)
    if found is None:
        return None
    return found * unit(metric) * (1.0 if higher_is_better(metric) else -1.0)


# Readings


@dataclass(frozen=True)
class Reading:
    """An arm, or one reading of it, over the targets.

    Attributes:
        name: what a table calls it.
        scores: target -> seed -> signed test score; None for a run that diverged.
        steps: mean over targets and seeds of the steps that were spent on one result.
        against: its gain over the control; None for the control itself.
    """

    name: str
    scores: Mapping[str, Arm]
    steps: float
    against: Against | None = None


def readings(
    grid: Grid, choices: Mapping[str, str | None], teachers: Mapping[str, str] | None = None
) -> list[Reading]:
    """Every arm, those with sources in all readings; the control first.

    Args:
        choices: target -> the source that the metric of the recipe chooses.
        teachers: arm with a teacher -> the arm that its teachers are runs of.
    """
    made = []
    for arm in sorted(grid.runs, key=lambda arm: arm != grid.control):
        if None in grid.runs[arm]:
            made.append(_reading(arm, grid.runs[arm][None]))
        many = {target: found for target in grid.targets if (found := grid.pairs(arm, target))}
        if not many:
            continue
        if arm in grid.single or max(map(len, many.values())) == 1:  # there is nothing to read differently
            made.append(_reading(arm, {
                target: {seed: one for runs in found.values() for seed, one in runs.items()}
                for target, found in many.items()
            }))  # fmt: skip
            continue
        made += [one for kind in READINGS if (one := _of_sources(arm, kind, many, choices)) is not None]
    for arm, teacher in (teachers or {}).items():
        if arm in grid.runs and teacher in grid.runs:
            made += _better_of_two(grid, arm, teacher)
    return _compared(made, grid)


def _reading(name: str, on: Mapping[str, Mapping[int, Scored]]) -> Reading:
    spent = [one.steps for runs in on.values() for one in runs.values()]
    return Reading(
        name, {target: {seed: one.test for seed, one in runs.items()} for target, runs in on.items()},
        float(np.mean(spent)) if spent else 0.0,
    )  # fmt: skip


def _of_sources(
    arm: str, kind: str, many: Mapping[str, Mapping[str, Mapping[int, Scored]]], choices: Mapping[str, str | None]
) -> Reading | None:
    if kind == "mean source":
        return _mean_source(f"{arm}, {kind}", many)
    on: dict[str, Mapping[int, Scored]] = {}
    paid: list[float] = []
    for target, found in many.items():
        if kind == "chosen source":
            name = choices.get(target) or ""
        else:
            values = {source: _mean(runs, "validation" if "validation" in kind else "test")
                      for source, runs in found.items()}  # fmt: skip
            order = min if kind == "worst source" else max
            name = order(values, key=lambda source: values[source])
        if name in found:
            on[target] = found[name]
            tried = found.values() if "validation" in kind else [found[name]]
            seeds = set().union(*tried)
            paid += [sum(runs[seed].steps for runs in tried if seed in runs) for seed in sorted(seeds)]
    if not on:
        return None
    made = _reading(f"{arm}, {kind}", on)
    return Reading(made.name, made.scores, float(np.mean(paid)))


def _mean_source(name: str, many: Mapping[str, Mapping[str, Mapping[int, Scored]]]) -> Reading:
    """Seeds that every source of a target has; a source whose run diverged counts as one of which nothing is known."""
    scores: dict[str, dict[int, float | None]] = {}
    spent = []
    for target, found in many.items():
        seeds = set.intersection(*(set(runs) for runs in found.values()))
        for seed in sorted(seeds):
            values = [one.test for runs in found.values() if (one := runs[seed]).test is not None]
            scores.setdefault(target, {})[seed] = float(np.mean(values)) if values else None
            spent += [runs[seed].steps for runs in found.values()]
    return Reading(name, scores, float(np.mean(spent)) if spent else 0.0)


def _better_of_two(grid: Grid, arm: str, teacher: str) -> list[Reading]:
    many: dict[str, dict[str, dict[int, Scored]]] = {}
    for target in grid.targets:
        taught, teaching = grid.pairs(arm, target), grid.pairs(teacher, target)
        for source in taught.keys() & teaching.keys():
            for seed in sorted(taught[source].keys() & teaching[source].keys()):
                two = (taught[source][seed], teaching[source][seed])
                best = max(two, key=lambda one: -np.inf if one.validation is None else one.validation)
                # what the student spent holds the teacher's steps already
                made = Scored(best.test, best.validation, best.early, two[0].steps, two[0].seconds)
                many.setdefault(target, {}).setdefault(source, {})[seed] = made
    return [_mean_source(f"{arm}, {BETTER_OF_TWO}, mean source", many)] if many else []


def _mean(runs: Mapping[int, Scored], key: str) -> float:
    values = [found for one in runs.values() if (found := getattr(one, key)) is not None]
    return float(np.mean(values)) if values else -np.inf


def _compared(made: Sequence[Reading], grid: Grid) -> list[Reading]:
    tasks = [
        {one.name: one.scores[target] for one in made if target in one.scores} for target in grid.targets
    ]  # fmt: skip
    there = [place for place, task in enumerate(tasks) if grid.control in task]
    if len({unit(metric) for metric in grid.metrics.values()}) != 1 or not there:
        return list(made)
    against = across_tasks(
        [tasks[place] for place in there], grid.control,
        floors=[grid.floors[grid.targets[place]] for place in there],
    )  # fmt: skip
    return [Reading(one.name, one.scores, one.steps, against.get(one.name)) for one in made]


# Pairs


@dataclass(frozen=True)
class Pairs:
    """An arm over all its (source, target) pairs, each a mean over seeds.

    Attributes:
        n: pairs with a score and a control.
        gain: mean gain over the control.
        negative: share of pairs below the control.
        worst: mean over targets of the lowest gain of any source.
        worst_source: the source with the lowest mean gain over targets, and that gain.
    """

    arm: str
    n: int
    gain: float
    negative: float
    worst: float
    worst_source: tuple[str, float]


def pair_gains(grid: Grid, arm: str) -> dict[tuple[str, str], float]:
    """(source, target) -> mean over common seeds of test minus the control's; a run that diverged counts as the floor.

    Pairs without a common seed are left out, and so are runs without a score where there is no floor.
    """
    gains: dict[tuple[str, str], float] = {}
    for target in grid.targets:
        beside = grid.of_control(target)
        floor = grid.floors[target]
        for source, runs in grid.pairs(arm, target).items():
            both = [
                (floor if runs[seed].test is None else runs[seed].test,
                 floor if beside[seed].test is None else beside[seed].test)
                for seed in runs.keys() & beside.keys()
            ]  # fmt: skip
            known = [a - b for a, b in both if a is not None and b is not None]
            if known:
                gains[source, target] = float(np.mean(known))
    return gains


def pairs(grid: Grid) -> list[Pairs]:
    """One for each arm with sources."""
    made = []
    for arm in grid.runs:
        gains = pair_gains(grid, arm)
        if not gains:
            continue
        by_target: dict[str, list[float]] = {}
        by_source: dict[str, list[float]] = {}
        for (source, target), gain in gains.items():
            by_target.setdefault(target, []).append(gain)
            by_source.setdefault(source, []).append(gain)
        worst = min(by_source, key=lambda source: float(np.mean(by_source[source])))
        values = list(gains.values())
        made.append(Pairs(
            arm, len(values), float(np.mean(values)), float(np.mean([value < 0 for value in values])),
            float(np.mean([min(found) for found in by_target.values()])), (worst, float(np.mean(by_source[worst]))),
        ))  # fmt: skip
    return made


def truth(grid: Grid, arm: str, kind: str = "test") -> tuple[list[str], list[str], np.ndarray]:
    """What a metric should have predicted: sources, targets, and scores [sources, targets], NaN where there is none.

    Args:
        kind: "test" or "early", means over seeds of the arm's score; "gain", of test over the control's.
    """
    names, targets = grid.sources, list(grid.targets)
    table = np.full((len(names), len(targets)), np.nan)
    gains = pair_gains(grid, arm) if kind == "gain" else {}
    for column, target in enumerate(targets):
        for source, runs in grid.pairs(arm, target).items():
            value = gains.get((source, target), -np.inf) if kind == "gain" else _mean(runs, kind)
            if np.isfinite(value) and source in names:  # several at once are no pair
                table[names.index(source), column] = value
    return names, targets, table
