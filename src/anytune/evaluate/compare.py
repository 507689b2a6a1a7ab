"""The comparison: one row per task, base and arm, each against fresh tuning and against doing nothing.

Targets and steps are read on validation, where weights were selected; final scores on test. All scores in a row are
in the unit the reader sees: points (100 times the metric), or the metric's own unit where less is better (mse).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from anytune.evaluate.curves import Reached, area, censored_median, reach
from anytune.evaluate.runs import DIRECT, FRESH, WHOLE_BUDGET, Run, arm_rank
from anytune.evaluate.scores import Difference, Summary, higher_is_better, paired_difference, summarise


@dataclass(frozen=True)
class Row:
    """One arm of one task on one base, over its seeds.

    Differences are signed so that above 0 is better, whatever the metric. Step counts "to target" are medians over
    seeds where a seed that never arrived counts as later than every number (None: the median never arrives).
    """

    task: str
    task_key: tuple[str, str]
    base: str
    base_key: str
    arm: str
    method: str
    variant: str
    metric: str
    runs: tuple[Run, ...]
    test: Summary | None
    validation: Summary | None
    #: against fresh tuning of the same base and budget, paired by seed
    over_fresh: Difference | None
    #: against fresh tuning with the old and the new steps together
    over_whole: Difference | None
    #: against direct reuse: the outdated weights on this base, untrained
    over_direct: Difference | None
    #: against not upgrading: the outdated weights on their own base, paired by what was recycled
    over_outdated: Difference | None
    #: fresh tuning's final validation score (mean over seeds), in the unit of the reader
    target: float | None
    reached: int
    steps_to_target: float | None
    seconds_to_target: float | None
    #: when fresh tuning itself first got there
    fresh_steps_to_target: float | None
    #: share of those steps that this arm did not need (negative: it needed more); where the median fresh seed never
    #: reached its own mean, its whole run is counted, so the share is a lower bound (``saved_at_least``)
    saved: float | None
    saved_at_least: bool
    #: mean height of the validation curve
    area: float | None
    steps: float
    old_steps: float
    seconds: float

    @property
    def total_steps(self) -> float:
        """Steps spent in all, the outdated weights' own included (mean over seeds)."""
        return self.steps + self.old_steps

    @property
    def label(self) -> str:
        """Arm, with what distinguishes it from another row of the same arm."""
        return f"{self.arm} ({self.variant})" if self.variant else self.arm

    @property
    def recycled(self) -> bool:
        """Whether the arm starts from outdated weights."""
        return any(run.outdated for run in self.runs) or self.arm not in (FRESH, WHOLE_BUDGET)


def unit(metric: str) -> float:
    """What a raw score is multiplied by for the reader: 100 (points), or 1 where less is better."""
    return 100.0 if higher_is_better(metric) else 1.0


def final_target(runs: Iterable[Run]) -> float | None:
    """Mean over seeds of the last validation score of each run (raw); the stored score where there is no curve."""
    last = [float(run.curve.scores[-1]) if run.curve else run.validation for run in runs]
    summary = summarise(last)
    return summary.mean if summary else None


def compare(runs: Iterable[Run]) -> list[Row]:
    """Rows ordered by task, then base in the order of appearance of the bases' runs, then arm."""
    runs = sorted(runs, key=lambda run: (run.task, run.manifest.created, run.seed))
    cells: dict[tuple[tuple[str, str], str], list[Run]] = {}
    for run in runs:
        cells.setdefault((run.task_key, run.base_key), []).append(run)
    by_id = {run.manifest.id: run for run in runs if run.manifest.id}
    rows = [row for cell in cells.values() for row in _cell(cell, by_id)]
    return sorted(rows, key=lambda row: (row.task, row.task_key[1]))


def _cell(cell: Sequence[Run], by_id: Mapping[str, Run]) -> list[Row]:
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in cell:
        groups.setdefault((run.arm, run.method, run.variant), []).append(run)
    ordered = sorted(groups.items(), key=lambda item: (arm_rank(item[0][0]), item[0][1:]))
    return [_row(group, groups, by_id) for _, group in ordered]


def control(group: Sequence[Run], groups: Mapping[tuple[str, str, str], list[Run]], arm: str) -> list[Run] | None:
    """The runs of ``arm`` that ``group`` is fairly held against: same tuning method, then same variant, then steps.

    None if there is none, if it is the group itself, or if several remain and no rule chooses among them.
    """
    method, variant, steps = group[0].method, group[0].variant, group[0].steps
    found = [(key, runs) for key, runs in groups.items() if key[0] == arm]
    same_method = [pair for pair in found if pair[0][1] == method]
    # direct reuse of weights from elsewhere may not know its method: then the only control there is will do
    found = same_method or (found if method == "none" else [])
    if len(found) > 1:
        found = [pair for pair in found if pair[0][2] == variant] or [
            pair for pair in found if pair[1][0].steps == steps
        ]
    if len(found) != 1 or found[0][1] is group:
        return None
    return found[0][1]


def _row(group: list[Run], groups: Mapping[tuple[str, str, str], list[Run]], by_id: Mapping[str, Run]) -> Row:
    first = group[0]
    higher, scale = higher_is_better(first.metric), unit(first.metric)
    fresh = group if first.arm == FRESH else control(group, groups, FRESH)
    target = final_target(fresh) if fresh else None
    reached = _reached(group, target, higher)
    fresh_steps = censored_median([_step(found) for found in _reached(fresh, target, higher)]) if fresh else None
    steps_to_target = censored_median([_step(found) for found in reached])
    counted = fresh_steps or max((run.steps for run in fresh or ()), default=0)
    outdated = {run.seed: by_id[run.outdated].test for run in group if run.outdated and run.outdated in by_id}
    areas = summarise([area(run.curve) if run.curve else None for run in group])
    return Row(
        task=first.task,
        task_key=first.task_key,
        base=first.base,
        base_key=first.base_key,
        arm=first.arm,
        method=first.method,
        variant=first.variant,
        metric=first.metric,
        runs=tuple(sorted(group, key=lambda run: run.seed)),
        test=_scaled([run.test for run in group], scale),
        validation=_scaled([run.validation for run in group], scale),
        over_fresh=_over(group, control(group, groups, FRESH)),
        over_whole=_over(group, control(group, groups, WHOLE_BUDGET)),
        over_direct=_over(group, control(group, groups, DIRECT)),
        over_outdated=_difference({run.seed: run.test for run in group}, outdated, first.metric),
        target=None if target is None else target * scale,
        reached=sum(found is not None for found in reached),
        steps_to_target=steps_to_target,
        seconds_to_target=censored_median([found.seconds if found else None for found in reached]),
        fresh_steps_to_target=fresh_steps,
        saved=1 - steps_to_target / counted
        if steps_to_target is not None and counted and group is not fresh
        else None,
        saved_at_least=not fresh_steps,
        area=areas.mean * scale if areas else None,
        steps=float(np.mean([run.steps for run in group])),
        old_steps=float(np.mean([run.old_steps for run in group])),
        seconds=float(np.mean([run.seconds for run in group])),
    )


def _reached(group: Sequence[Run] | None, target: float | None, higher: bool) -> list[Reached | None]:
    """Per run, where it reached the target; a run without a curve (direct reuse) stands at step 0, or never."""
    if target is None or not group:
        return []
    found: list[Reached | None] = []
    for run in group:
        if run.curve:
            found.append(reach(run.curve, target, higher=higher))
        elif run.validation is not None and run.steps == 0:
            there = run.validation >= target if higher else run.validation <= target
            found.append(Reached(0.0, 0.0) if there else None)
    return found


def _step(found: Reached | None) -> float | None:
    return found.step if found else None


def _over(group: Sequence[Run], other: Sequence[Run] | None) -> Difference | None:
    if other is None:
        return None
    return _difference({run.seed: run.test for run in group}, {run.seed: run.test for run in other}, group[0].metric)


def _difference(own: Mapping[int, float | None], other: Mapping[int, float | None], metric: str) -> Difference | None:
    scale = unit(metric) if higher_is_better(metric) else -unit(metric)
    return paired_difference(*({seed: _times(value, scale) for seed, value in side.items()} for side in (own, other)))


def _times(value: float | None, scale: float) -> float | None:
    return None if value is None else value * scale


def _scaled(values: Iterable[float | None], scale: float) -> Summary | None:
    return summarise([_times(value, scale) for value in values])
