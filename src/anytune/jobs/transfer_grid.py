"""Sources times targets: ``job: transfer``; tables again: ``anytune transfer tables FOLDER``.

A prompt is tuned on every source task; each target is tuned by every arm, from no source, the one a measure chooses,
one drawn at random, or all of them, with or without a teacher. Every run is one that :func:`anytune.tune` makes, and
stands in the store under its run key: an interrupted grid goes on run by run. The folder ``out`` then holds

    runs.jsonl      a line for each run on a target: arm, source, scores, steps, seconds, its answers to the test split
    sources.jsonl   a line for each source prompt
    ranking.jsonl   a line for each target, source and measure of transferability
    tasks.jsonl     a line for each target: label names and gold labels
    tables.md       gains over the control, pairs, and how good each measure was, computed from the lines alone
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from anytune.data.tasks import Task
from anytune.engine.progress import Reporter, Silent
from anytune.engine.settings import TrainingSettings
from anytune.errors import AnytuneError, SettingsError
from anytune.evaluate.scores import number
from anytune.evaluate.transfer_arms import AND, grid_of, pairs, readings
from anytune.jobs.arms import RUNS_NAME, TABLES_NAME, TASKS_NAME, predictions, read_lines, task_line, write_lines
from anytune.jobs.command import Command
from anytune.jobs.forecast import Forecast, standing_in, unwritten
from anytune.jobs.opening import open_base, open_store
from anytune.jobs.prompt_library import is_prompt
from anytune.jobs.run_all import forecast_all
from anytune.jobs.runs import floor_of, words_floor
from anytune.jobs.task_features import ROWS
from anytune.jobs.transfer import rank
from anytune.jobs.transfer_design import CONTROL, transfer_design
from anytune.jobs.transfer_runs import Made, Planned, make, plan_arm, plan_sources, planned_run
from anytune.jobs.tune import Source
from anytune.manifests import write_atomic
from anytune.models.base import Base
from anytune.report.transfer_tables import choices_of, summary, teachers_of, transfer_tables
from anytune.store import Entry, Store

SOURCES_NAME, RANKING_NAME = "sources.jsonl", "ranking.jsonl"
#: What a line must hold to be read again.
LINE_KEYS = (
    "arm", "control", "sources", "source", "target", "family", "metric", "seed", "restart", "learning_rate",
    "validation", "early", "test", "floor", "steps", "seconds", "spent_steps", "spent_seconds", "failed",
    "predictions",
)  # fmt: skip
RANKING_KEYS = ("target", "source", "measure", "value", "size", "family", "choose_by")


@dataclass(frozen=True)
class Transfers:
    """A finished grid: its folder and its lines. As text, its summary."""

    folder: Path
    lines: Sequence[Mapping[str, Any]]
    rankings: Sequence[Mapping[str, Any]]

    def __str__(self) -> str:
        return "\n".join([summary(self.lines, self.rankings), f"tables: {self.folder / TABLES_NAME}"])


@unwritten
def transfer_grid(
    base: Base | Entry | Source,
    sources: Sequence[Task | Source | Mapping[str, Any]],
    targets: Sequence[Task | Source | Mapping[str, Any]],
    arms: Mapping[str, Mapping[str, Any]],
    *,
    out: str | Path,
    control: str = CONTROL,
    store: Store | Source | None = None,
    prompt: Mapping[str, Any] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    train_size: int | None = None,
    source_size: int | None = None,
    source_seed: int = 0,
    training: TrainingSettings | Mapping[str, Any] | None = None,
    source_training: TrainingSettings | Mapping[str, Any] | None = None,
    rates: Sequence[float] | None = None,
    measures: Sequence[str] | None = None,
    choose_by: str = "logme",
    rows: int = ROWS,
    workers: int | None = None,
    fan_out: str = "processes",
    dry_run: bool = False,
    reporter: Reporter | None = None,
) -> Transfers:
    """Tune every target by every arm, and hold each arm against plain prompt tuning.

    Args:
        base: ``sample:NAME``, a folder, the name of a base in the store, or a hub id.
        sources: tasks whose prompts may help; a target among them is no source for itself.
        targets: tasks that are to be helped.
        arms: name -> ``{"method": ...}`` with ``sources`` ("none", "all", "chosen", "random", or names), ``together``
            (so many of the chosen ones at once), ``teacher`` (another arm), ``training``, ``rates``, ``seeds``,
            ``restarts`` or ``targets`` of its own if need be.
        out: folder of the results; what stands there is written anew.
        control: the arm that gains are over; "prompt tuning" need not be among ``arms``.
        prompt: settings that all prompt methods share: ``{"length": 20, "kind": "deep"}``.
        seeds: of all arms that name none; fewer than six decide little.
        train_size: training rows of a target, drawn by the run's seed, the same for all arms.
        source_size: training rows of a source.
        source_seed: of the source prompts.
        training: settings of every run; ``source_training`` those of the source prompts over it.
        rates: learning rates, each of which every run on a target is made with; validation chooses.
        measures: of transferability, see :func:`anytune.jobs.transfer.rank`; by default all.
        choose_by: the measure that chooses a source.
        rows: training rows of a target that the measures read.
        workers: processes; by default the rule of :mod:`anytune.jobs.workers`.
        fan_out: what the workers are: "processes" of this machine, or "ray".
        dry_run: make nothing; the forecasts of the runs instead.

    Raises:
        SettingsError: an arm, a task or a setting that cannot be.
        AnytuneError: bad input; nothing is trained then.
    """
    tell, place = reporter or Silent(), open_store(store)
    opened = open_base(base, place)
    plan = transfer_design(
        opened, sources, targets, arms, control=control, prompt=prompt, seeds=seeds, train_size=train_size,
        source_size=source_size, source_seed=source_seed, training=training, source_training=source_training,
        rates=rates, measures=measures, choose_by=choose_by, rows=rows,
    )  # fmt: skip
    made = Made(plan, base, place)
    if dry_run:
        forecasts: Any = forecast_grid(made)
        return forecasts
    folder = Path(out)
    first = plan_sources(made)
    make(made, first, "sources", workers, fan_out, tell)
    made.planned.clear()
    for one in first:
        entry = made.entries[one.key]
        if entry.manifest.failed or not is_prompt(entry):
            made.diverged[one.target] = str(entry.manifest.failed)
            tell.say(f"the source {one.target} diverged and is left out")
        else:
            made.sources[one.target] = entry
    plain = [arm for arm in plan.arms if not arm.sourced and arm.teacher is None]
    make(made, [one for arm in plain for one in plan_arm(made, arm)], "no source", workers, fan_out, tell)
    if any(arm.sourced for arm in plan.arms):
        made.rankings = rankings_of(made, folder, tell)
    for number_, phase in enumerate(plan.phases(), 1):
        later = [one for arm in phase if arm not in plain for one in plan_arm(made, arm)]
        if later:
            make(made, later, f"step {number_}", workers, fan_out, tell)
    lines, ranks = list(run_lines(made)), list(ranking_lines(made))
    write_lines(folder / RUNS_NAME, lines)
    write_lines(folder / SOURCES_NAME, list(source_lines(made, first)))
    write_lines(folder / RANKING_NAME, ranks)
    write_lines(folder / TASKS_NAME, [task_line(task) for task in plan.targets])
    write_atomic(folder / TABLES_NAME, transfer_tables(lines, ranks).encode())
    return Transfers(folder, lines, ranks)


def read_transfers(folder: str | Path) -> Transfers:
    """The lines of a grid that was made before.

    Raises:
        DataError: a file is missing or damaged.
    """
    place = Path(folder)
    lines = read_lines(place / RUNS_NAME, LINE_KEYS)
    there = (place / RANKING_NAME).is_file() and (place / RANKING_NAME).stat().st_size > 0
    return Transfers(place, lines, read_lines(place / RANKING_NAME, RANKING_KEYS) if there else [])


def transfers_again(folder: str | Path) -> Transfers:
    """A grid that was made before: its tables are computed anew from its lines alone.

    Raises:
        DataError: a file is missing or damaged.
    """
    found = read_transfers(folder)
    write_atomic(found.folder / TABLES_NAME, transfer_tables(found.lines, found.rankings).encode())
    return found


def record(found: Transfers) -> dict[str, Any]:
    """The numbers of the tables as plain values."""
    grid = grid_of(found.lines)
    shown = readings(grid, choices_of(found.rankings), teachers_of(found.lines))
    return {
        "folder": str(found.folder), "control": grid.control, "targets": list(grid.targets), "sources": grid.sources,
        "readings": {one.name: {"steps": one.steps, "scores": {t: dict(arm) for t, arm in one.scores.items()},
                                "against": asdict(one.against) if one.against else None} for one in shown},
        "pairs": [asdict(one) for one in pairs(grid)],
    }  # fmt: skip


# Rankings


def rankings_of(made: Made, folder: Path, tell: Reporter) -> dict[str, Any]:
    """The ranking of the sources for every target, by the rows and the plain prompt of the control's first seed."""
    design, found = made.design, {}
    control = design.arm(design.control)
    for task in design.targets:
        allowed = [entry for name, entry in made.sources.items() if design.may_start(name, task.name)]
        if not allowed:
            continue
        own = made.best(control.name, None, task.name, control.seeds[0])
        part = own.plan.task if own is not None else task
        tell.say(f"ranking {len(allowed)} sources for {task.name}")
        try:
            found[task.name] = replace(rank(
                part, design.base, store=made.store, metric=design.choose_by, metrics=design.measures,
                prompt=None if own is None else made.entries[own.key], sources=allowed, rows=design.rows,
                max_length=int(settings_length(own)) if own is not None else 128,
            ), task=task.name)  # fmt: skip
        except AnytuneError as problem:
            raise SettingsError(
                f"the sources for '{task.name}' cannot be ranked by {design.choose_by}: {problem.what}",
                why=problem.why, fix=problem.fix or "choose_by: another measure",
            ) from None  # fmt: skip
    return found


def settings_length(one: Planned) -> int:
    """Tokens at which the texts of a run are cut."""
    return one.plan.settings.max_length


# Lines


def run_lines(made: Made) -> Iterator[dict[str, Any]]:
    """A line for each run on a target."""
    design = made.design
    floors: dict[str, tuple[float | None, float | None]] = {}
    for one in made.planned:
        entry, task, arm = made.entries[one.key], one.plan.task, design.arm(one.arm)
        if task.content not in floors:
            floors[task.content] = floor_of(task), words_floor(task)
        manifest = entry.manifest
        steps = sum(before.manifest.steps for before in one.before)
        seconds = sum(before.manifest.seconds for before in one.before)
        yield {
            "arm": one.arm, "control": design.control,
            "sources": arm.sources if isinstance(arm.sources, str) else "some", "teacher": arm.teacher,
            "source": one.source, "target": one.target,
            "family": any((name, one.target) in design.families for name in (one.source or "").split(AND)),
            "metric": task.metric, "train": len(task.train), "seed": one.seed, "restart": one.restart,
            "learning_rate": manifest.training.get("learning_rate"), "validation": entry.score("validation"),
            "early": early(entry), "test": entry.score("test"), "floor": floors[task.content][0],
            "words": floors[task.content][1], "steps": manifest.steps, "seconds": manifest.seconds,
            "spent_steps": manifest.steps + steps, "spent_seconds": round(manifest.seconds + seconds, 3),
            "shared_steps": steps, "shared_seconds": round(seconds, 3), "failed": manifest.failed,
            "run": manifest.run, "method": [record_.model_dump() for record_ in manifest.methods],
            "before": [before.manifest.run for before in one.before], "predictions": predictions(entry, task),
        }  # fmt: skip


def early(entry: Entry) -> float | None:
    """Validation at the first look after the start, in the task's metric."""
    metric = entry.main_metric() or ""
    points = [point for point in entry.manifest.curve if point.step > 0 and point.split == "validation"]
    return number(points[0].scores.get(metric)) if points else None


def source_lines(made: Made, planned: Sequence[Planned]) -> Iterator[dict[str, Any]]:
    """A line for each source prompt."""
    for one in planned:
        entry = made.entries[one.key]
        manifest = entry.manifest
        yield {
            "source": one.target, "metric": one.plan.task.metric, "train": len(one.plan.task.train),
            "validation": entry.score("validation"), "test": entry.score("test"), "floor": floor_of(one.plan.task),
            "steps": manifest.steps, "seconds": manifest.seconds, "failed": manifest.failed, "run": manifest.run,
            "targets": {
                task.name: "self" if not made.design.may_start(one.target, task.name)
                else "family" if (one.target, task.name) in made.design.families else "other"
                for task in made.design.targets
            },
        }  # fmt: skip


def ranking_lines(made: Made) -> Iterator[dict[str, Any]]:
    """A line for each target, source and measure."""
    for target, ranking in made.rankings.items():
        took = {one.name: one for one in ranking.measures}
        for row in ranking.ranked:
            for name, value in row.scores.items():
                yield {
                    "target": target, "source": row.task, "measure": name, "value": number(value), "size": row.size,
                    "family": (row.task, target) in made.design.families, "choose_by": ranking.metric,
                    "seconds": round(took[name].seconds, 4), "problem": took[name].problem or None,
                }  # fmt: skip


# Forecasts


def forecast_grid(made: Made) -> list[Forecast]:
    """What the runs would cost; those that stand on others are tried as plain prompt tuning of the same length."""
    design = made.design
    found: list[Forecast] = []
    for one in plan_sources(made):
        found += _forecast(made, [one])
    for arm in design.arms:
        if not arm.sourced and arm.teacher is None:
            for task in design.targets_of(arm):
                found += _forecast(made, [one for one in plan_arm(made, arm) if one.target == task.name])
            continue
        with standing_in():
            for task in design.targets_of(arm):
                named = None if isinstance(arm.sources, str) else arm.sources
                count = sum(design.may_start(source.name, task.name) for source in design.sources
                            if named is None or source.name in named)  # fmt: skip
                runs = [
                    planned_run(made, arm.name, task, None, seed, method=design.source_method, keep="scores",
                             training=arm.training, size=design.train_size, rate=rate, restart=restart)
                    for seed in arm.seeds for rate in arm.rates or (None,) for restart in range(arm.restarts)
                    for _ in range(count if arm.several else 1)
                ]  # fmt: skip
                found += _forecast(made, runs)
    return found


def _forecast(made: Made, runs: Sequence[Planned]) -> list[Forecast]:
    if not runs:
        return []
    plans = [one.plan for one in runs]
    one = runs[0]
    command = Command.of(
        made.store, made.design.base, one.plan.task, training=one.call["training"], seeds=[one.plan.seed]
    )
    return forecast_all(plans, made.store, encoded=command.encoded)
