"""The anytime matrix: how well a base can be tuned on every domain after every stage of its pre-training.

a^i_j is the test score of a model that was tuned on the task of domain j, from the base as it was after stage i of a
stream of N domains; row 0 is the base before the stream. Rows and columns are counted from 1 (row 0 apart), and the
columns stand in the order of the stream, so that j <= i means "seen" and j > i "not seen yet".

    A_Acc = (1 / N) sum_i a^i_i                             adaptation: each domain right after its own stage
    O_Acc = 2 / (N (N - 1)) sum_{j > i >= 1} a^i_j          generalisation: domains that have not come yet
    F_Acc = (1 / N) sum_j a^N_j                             what is there in the end

(Jiang et al. 2023, "Towards Anytime Fine-tuning"). Beside them stand, as means over the same cells, their gains over
row 0; forgetting = (1 / (N - 1)) sum_{i < N} (a^i_i - a^N_i) (Ke et al. 2023); and the worst unseen drop,
min_{j > i >= 1} (a^i_j - a^0_j). With one domain nothing is unseen or forgotten: these are None.

Pure functions on plain values. The unit of a comparison is the run: one stream (an order of domains and a seed).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from anytune.errors import DataError, SettingsError, unknown
from anytune.evaluate.compare import unit
from anytune.evaluate.scores import (
    DECIDING_SEEDS,
    Difference,
    Outcome,
    Summary,
    number,
    paired_difference,
    sign_flip,
    summarise,
)
from anytune.evaluate.stability import LEVEL, Against, decide, no_worse, smallest_shown

#: (stage, task), both counted from 1; stage 0 is the base before the stream
Cell = tuple[int, int]
Line = Mapping[str, Any]
#: (number of the order, seed)
RunName = tuple[int, int]


@dataclass(frozen=True)
class Term:
    """A part of a metric: the score in ``cell``, less that in ``minus`` if there is one."""

    cell: Cell
    minus: Cell | None = None

    @property
    def task(self) -> int:
        """The task it speaks of."""
        return self.cell[1]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """What it needs."""
        return (self.cell,) if self.minus is None else (self.cell, self.minus)


@dataclass(frozen=True)
class Metric:
    """A number made of a matrix: the mean (or the smallest) of its terms."""

    title: str
    meaning: str
    #: number of domains -> terms; none where the metric is not defined
    terms: Callable[[int], list[Term]]
    take: Literal["mean", "min"] = "mean"
    higher: bool = True


def _own(n: int) -> list[Cell]:
    return [(i, i) for i in range(1, n + 1)]


def _unseen(n: int) -> list[Cell]:
    return [(i, j) for i in range(1, n + 1) for j in range(i + 1, n + 1)]


def _last(n: int) -> list[Cell]:
    return [(n, j) for j in range(1, n + 1)]


def _scores(cells: Callable[[int], list[Cell]]) -> Callable[[int], list[Term]]:
    return lambda n: [Term(cell) for cell in cells(n)]


def _gains(cells: Callable[[int], list[Cell]]) -> Callable[[int], list[Term]]:
    return lambda n: [Term((i, j), (0, j)) for i, j in cells(n)]


def _forgotten(n: int) -> list[Term]:
    return [Term((i, i), (n, i)) for i in range(1, n)]


METRICS: dict[str, Metric] = {
    "a_acc": Metric("A_Acc", "each domain right after its own stage", _scores(_own)),
    "o_acc": Metric("O_Acc", "domains that have not come yet", _scores(_unseen)),
    "f_acc": Metric("F_Acc", "every domain after the last stage", _scores(_last)),
    "forgetting": Metric("forgetting", "lost from a domain's own stage to the last", _forgotten, higher=False),
    "a_gain": Metric("A gain", "A_Acc over the base before the stream", _gains(_own)),
    "o_gain": Metric("O gain", "O_Acc over the base before the stream", _gains(_unseen)),
    "f_gain": Metric("F gain", "F_Acc over the base before the stream", _gains(_last)),
    "worst_unseen_drop": Metric(
        "worst unseen", "the largest loss (or smallest gain) on a domain that has not come yet", _gains(_unseen), "min"
    ),
}


def check_metrics(names: Iterable[str] | None) -> list[str]:
    """The names, all of them for None.

    Raises:
        SettingsError: one is unknown (suggests the near one), or there is none.
    """
    chosen = list(METRICS) if names is None else list(names)
    for name in chosen:
        if name not in METRICS:
            raise unknown("metric of an anytime matrix", str(name), METRICS, SettingsError)
    if not chosen:
        raise SettingsError("no metric is named", fix="metrics: [a_acc, o_acc, f_acc]")
    return chosen


def needed(metrics: Iterable[str], domains: int) -> set[Cell]:
    """The cells that metrics are made of, for a stream of so many domains."""
    return {cell for name in metrics for term in METRICS[name].terms(domains) for cell in term.cells}


def every(domains: int) -> set[Cell]:
    """All cells, row 0 included."""
    return {(i, j) for i in range(domains + 1) for j in range(1, domains + 1)}


@dataclass(frozen=True)
class AccuracyMatrix:
    """The scores of one stream: ``rows[i][j - 1]`` is a^i_j, i from 0 to N; None where it was not measured.

    A matrix may be given without row 0 (N rows for N domains); NaN and infinity count as not measured.

    Raises:
        DataError: the shape does not fit the domains, or there is no domain.
    """

    domains: tuple[str, ...]
    rows: tuple[tuple[float | None, ...], ...]

    def __post_init__(self) -> None:
        n = len(self.domains)
        rows = tuple(tuple(number(value) for value in row) for row in self.rows)
        rows = ((None,) * n, *rows) if len(rows) == n else rows
        if n < 1 or len(rows) != n + 1 or any(len(row) != n for row in rows):
            shape = (
                f"{len(self.rows)} rows of {', '.join(sorted({str(len(row)) for row in self.rows})) or 'no'} scores"
            )
            raise DataError(
                f"a matrix of {shape} for {n} domains",
                why="It has a row for each stage (and row 0, before the first), and a column for each domain.",
            )
        object.__setattr__(self, "domains", tuple(self.domains))
        object.__setattr__(self, "rows", rows)

    @classmethod
    def of_cells(cls, domains: Sequence[str], cells: Mapping[Cell, float | None]) -> AccuracyMatrix:
        """The matrix of the cells that were measured."""
        n = len(domains)
        rows = tuple(tuple(cells.get((i, j)) for j in range(1, n + 1)) for i in range(n + 1))
        return cls(tuple(domains), rows)

    def at(self, stage: int, task: int) -> float | None:
        """a^i_j; ``stage`` from 0, ``task`` from 1."""
        return self.rows[stage][task - 1]

    def missing(self, metric: str) -> list[Cell]:
        """The cells that a metric needs and that were not measured."""
        cells = {cell for term in METRICS[metric].terms(len(self.domains)) for cell in term.cells}
        return sorted(cell for cell in cells if self.at(*cell) is None)

    def value(self, metric: str) -> float | None:
        """A metric by its name in :data:`METRICS`; None where it is not defined (one domain).

        Raises:
            DataError: a cell it needs was not measured; names it.
            SettingsError: an unknown metric.
        """
        check_metrics([metric])
        gone = self.missing(metric)
        if gone:
            stage, task = gone[0]
            after = f"after stage {stage} ('{self.domains[stage - 1]}')" if stage else "before the first stage (row 0)"
            more = f", and {len(gone) - 1} more" if len(gone) > 1 else ""
            raise DataError(
                f"{METRICS[metric].title} needs cell ({stage}, {task}): the score on '{self.domains[task - 1]}' "
                f"{after}{more}",
                why="A mean over fewer cells would be another number under the same name.",
                fix=f"cells: all   or   metrics: [..., {metric}]",
            )
        values = [value for _, value in self.parts(metric)]
        if not values:
            return None
        return float(min(values)) if METRICS[metric].take == "min" else float(np.mean(values))

    def parts(self, metric: str) -> list[tuple[str, float]]:
        """(domain, value) of each term of a metric whose cells were measured."""
        found = []
        for term in METRICS[metric].terms(len(self.domains)):
            value, less = self.at(*term.cell), 0.0 if term.minus is None else self.at(*term.minus)
            if value is not None and less is not None:
                found.append((self.domains[term.task - 1], value - less))
        return found

    def gains(self) -> tuple[tuple[float | None, ...], ...]:
        """Rows 1 to N less row 0; None where either was not measured."""
        first = self.rows[0]
        return tuple(
            tuple(None if a is None or b is None else a - b for a, b in zip(row, first, strict=True))
            for row in self.rows[1:]
        )


def mean_matrix(matrices: Sequence[AccuracyMatrix]) -> AccuracyMatrix:
    """Cell by cell the mean over runs of one order; None where a run lacks the cell.

    Raises:
        DataError: the runs are not of one order, or there is none.
    """
    if len({one.domains for one in matrices}) != 1:
        raise DataError("matrices of several orders have no mean", why="Their columns are other domains.")
    rows = []
    for stage in range(len(matrices[0].rows)):
        columns = [list(values) for values in zip(*(one.rows[stage] for one in matrices), strict=True)]
        rows.append(tuple(
            None if any(value is None for value in column) else float(np.mean(np.array(column, dtype=np.float64)))
            for column in columns
        ))  # fmt: skip
    return AccuracyMatrix(matrices[0].domains, tuple(rows))


# From lines


def matrices(lines: Iterable[Line]) -> dict[str, dict[RunName, AccuracyMatrix]]:
    """Arm -> run -> matrix, from the lines of a ``runs.jsonl``.

    A line is one cell: ``arm`` (None for row 0, which all arms share), ``order``, ``stream`` (the domains in that
    order), ``seed``, ``stage``, ``task``, ``metric``, ``test`` (raw; None if tuning or pre-training diverged),
    ``floor``. Scores are in points; a run that diverged counts as the floor.
    """
    lines = list(lines)
    first: dict[tuple[int, str], float | None] = {}
    found: dict[str, dict[RunName, tuple[tuple[str, ...], dict[Cell, float | None]]]] = {}
    for line in lines:
        if line["arm"] is None:
            first[line["seed"], line["task"]] = points(line)
            continue
        stream = tuple(line["stream"])
        _, cells = found.setdefault(line["arm"], {}).setdefault((line["order"], line["seed"]), (stream, {}))
        cells[line["stage"], stream.index(line["task"]) + 1] = points(line)
    made: dict[str, dict[RunName, AccuracyMatrix]] = {}
    for arm, runs in found.items():
        for run, (stream, cells) in runs.items():
            row0 = {(0, j): first.get((run[1], name)) for j, name in enumerate(stream, 1)}
            made.setdefault(arm, {})[run] = AccuracyMatrix.of_cells(stream, {**row0, **cells})
    return made


def points(line: Line) -> float | None:
    """The score of a line in points; that of always giving one answer for a run that diverged."""
    value = number(line["test"])
    value = number(line.get("floor")) if value is None and line.get("failed") else value
    return None if value is None else value * unit(line["metric"])


# Over runs


@dataclass(frozen=True)
class Column:
    """A metric over the runs of all arms.

    Attributes:
        values: arm -> run -> value; arms that lack a cell for it (a stream of all domains mixed has no stages) are
            left out.
        against: arm -> its difference to the control, signed so that above 0 is better.
    """

    metric: str
    values: Mapping[str, Mapping[RunName, float]]
    against: Mapping[str, Against]

    def summary(self, arm: str) -> Summary | None:
        """Mean and spread over runs; None for an arm without the metric."""
        return summarise(self.values.get(arm, {}).values())


def columns(
    arms: Mapping[str, Mapping[RunName, AccuracyMatrix]], control: str, metrics: Iterable[str]
) -> list[Column]:
    """Each metric over the runs of all arms, and every arm against the control."""
    return [_column(arms, control, metric) for metric in metrics]


def _column(arms: Mapping[str, Mapping[RunName, AccuracyMatrix]], control: str, metric: str) -> Column:
    values: dict[str, dict[RunName, float]] = {}
    for arm, runs in arms.items():
        for run, matrix in runs.items():
            value = None if matrix.missing(metric) else matrix.value(metric)
            if value is not None:
                values.setdefault(arm, {})[run] = value
    if control not in values:
        return Column(metric, values, {})
    found = {
        arm: difference
        for arm in values
        if arm != control
        and (difference := _difference(arms[arm], arms[control], values[arm], values[control], metric))
    }
    decided = decide(found)
    made = {}
    for arm, one in found.items():
        p, outcome = decided[arm]
        sd = _run_differences(values[arm], values[control], metric)
        smallest = smallest_shown(sd.size, float(sd.std(ddof=1))) if sd.size >= DECIDING_SEEDS else None
        made[arm] = Against(one, p, outcome, no_worse(one), smallest)
    return Column(metric, values, made)


def _run_differences(own: Mapping[RunName, float], control: Mapping[RunName, float], metric: str) -> np.ndarray:
    sign = 1.0 if METRICS[metric].higher else -1.0
    return np.array([sign * (own[run] - control[run]) for run in sorted(own.keys() & control.keys())])


def _difference(
    own: Mapping[RunName, AccuracyMatrix], control: Mapping[RunName, AccuracyMatrix],
    values: Mapping[RunName, float], beside: Mapping[RunName, float], metric: str,
) -> Difference | None:  # fmt: skip
    """Arm minus control: the interval resamples runs and tasks, the p-value flips whole runs."""
    sign = 1.0 if METRICS[metric].higher else -1.0
    if METRICS[metric].take == "min":  # a smallest value is no mean over tasks: runs alone are resampled
        return paired_difference(values, beside)
    runs = sorted(values.keys() & beside.keys())
    if not runs:
        return None
    differences = _run_differences(values, beside, metric)
    mean = float(differences.mean())
    if len(runs) == 1:
        return Difference(1, mean, None, None, 1.0, "undecided")
    names = sorted({name for run in runs for name in own[run].domains})
    sums, counts = np.zeros((len(names), len(runs))), np.zeros((len(names), len(runs)))
    for place, run in enumerate(runs):
        for side, factor in ((own, sign), (control, -sign)):
            for name, value in side[run].parts(metric):
                sums[names.index(name), place] += factor * value
        for name, _ in own[run].parts(metric):
            counts[names.index(name), place] += 1
    low, high = crossed_interval(sums, counts)
    outcome: Outcome = "undecided"
    if len(runs) >= DECIDING_SEEDS and (low > 0 or high < 0):
        outcome = "higher" if low > 0 else "lower"
    return Difference(len(runs), mean, low, high, sign_flip(differences), outcome)


def crossed_interval(
    sums: np.ndarray, counts: np.ndarray, *, level: float = LEVEL, resamples: int = 4000, seed: int = 0
) -> tuple[float, float]:
    """A percentile bootstrap interval of sum(sums) / sum(counts) that resamples tasks and, apart from them, runs.

    Both are drawn with replacement, and a draw holds the same runs for every task: the cells of a run share its
    checkpoints, so they are no independent observations.

    Args:
        sums: [tasks, runs] sums of the differences of a task's terms in a run.
        counts: [tasks, runs] how many terms those are (0 for a task that has none in this order).
    """
    kept = counts.sum(axis=1) > 0
    sums, counts = sums[kept], counts[kept]
    draw = np.random.default_rng(seed)
    tasks, runs = (draw.multinomial(size, np.full(size, 1 / size), size=resamples) for size in sums.shape)
    above, below = (np.einsum("kt,tr,kr->k", tasks, one, runs) for one in (sums, counts))
    means = above[below > 0] / below[below > 0]
    tail = (1 - level) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return float(low), float(high)


# Cost


def cost(stages: Iterable[Line], control: str) -> dict[str, float]:
    """Arm -> seconds of pre-training as a multiple of the control's, over the runs that both have."""
    spent: dict[str, dict[RunName, float]] = {}
    for line in stages:
        runs = spent.setdefault(line["arm"], {})
        run = (line["order"], line["seed"])
        runs[run] = runs.get(run, 0.0) + float(line["seconds"])
    beside = spent.get(control, {})
    made = {}
    for arm, runs in spent.items():
        ratios = [runs[run] / beside[run] for run in runs.keys() & beside.keys() if beside[run] > 0]
        if ratios:
            made[arm] = float(np.mean(ratios))
    return made
