"""Compare methods over tasks, training sizes and seeds: ``job: compare``; tables again: ``anytune compare FOLDER``.

Every run is one that :func:`anytune.tune` makes with ``keep="scores"``: it stands in the store under its run key,
which holds neither names nor tags, so runs that were made before by hand are found, and an interrupted comparison
goes on where it was. The folder ``out`` then holds

    runs.jsonl    a line for each run: scores, floor, steps, seconds, and its answers to the test split
    tasks.jsonl   a line for each task: label names and the gold labels of its test split
    tables.md     means, spread, differences to the control, failures and cost, computed from runs.jsonl alone
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from anytune.data.tasks import Task
from anytune.engine.fanout import Unit, run_units, worker_count
from anytune.engine.progress import Reporter, Silent
from anytune.engine.settings import TrainingSettings, total_steps
from anytune.errors import DataError, SettingsError, nearest, unknown
from anytune.evaluate.arms import cost, failures, sections
from anytune.jobs.command import Command
from anytune.jobs.extra_scores import LabelMap, Sources
from anytune.jobs.failures import failures_kept
from anytune.jobs.forecast import unwritten
from anytune.jobs.keeping import PREDICTIONS_NAME
from anytune.jobs.opening import open_base, open_store, open_task
from anytune.jobs.run_all import forecast_all
from anytune.jobs.runs import floor_of, words_floor
from anytune.jobs.subsets import SubsetSeed
from anytune.jobs.tune import PLAIN, Source, tune
from anytune.jobs.tuning_plan import TuningPlan
from anytune.jobs.workers import chosen_workers
from anytune.manifests import write_atomic
from anytune.methods import registry
from anytune.models.base import Base
from anytune.report.arm_tables import TITLES, arm_tables, summary
from anytune.store import Entry, Store

RUNS_NAME, TASKS_NAME, TABLES_NAME = "runs.jsonl", "tasks.jsonl", "tables.md"
#: What an arm may hold; ``seeds`` and ``train_sizes`` take the place of the comparison's own.
ARM_KEYS = ("method", "training", "seeds", "train_sizes")
#: What a line must hold to be read again.
LINE_KEYS = (
    "task", "metric", "size", "arm", "control", "seed", "validation", "test", "floor", "ood", "probe", "probe_base",
    "probe_metrics", "steps", "seconds", "failed", "predictions",
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """A finished comparison: its folder and its runs, as ``runs.jsonl`` holds them. As text, its summary."""

    folder: Path
    lines: Sequence[Mapping[str, Any]]

    def __str__(self) -> str:
        failed = [f"failed: {what}" for what in failures(self.lines)]
        return "\n".join([summary(self.lines), *failed, f"tables: {self.folder / TABLES_NAME}"])


@dataclass(frozen=True)
class Cell:
    """The runs of one arm on one task at one size."""

    arm: str
    task: int
    size: int | None
    call: Mapping[str, Any]
    plans: Sequence[TuningPlan]


@unwritten
def compare_arms(
    base: Base | Entry | Source,
    tasks: Sequence[Task | Source | Mapping[str, Any]],
    arms: Mapping[str, Mapping[str, Any]],
    *,
    out: str | Path,
    control: str = "plain",
    store: Store | Source | None = None,
    seeds: Sequence[int] = (0, 1, 2, 3, 4, 5),
    train_sizes: Sequence[int] | None = None,
    subset_seed: SubsetSeed | None = None,
    training: TrainingSettings | Mapping[str, Any] | None = None,
    score_on: Sources | None = None,
    label_map: LabelMap | None = None,
    probe_on: Sources | None = None,
    workers: int | None = None,
    fan_out: str = "processes",
    dry_run: bool = False,
    reporter: Reporter | None = None,
) -> Comparison:
    """Run every arm on every task, at every size and with every seed, and compare each with the control.

    Args:
        base: ``sample:NAME``, a folder, the name of a base in the store, or a hub id.
        tasks: what :func:`anytune.tune` takes as a task; columns are named as ``{"source": ..., "text": ...}``.
        arms: name -> ``{"method": ...}``, with ``training`` (over the comparison's own), ``seeds`` or ``train_sizes``
            of its own if need be.
        out: folder of the results; what stands in its ``runs.jsonl`` is written anew.
        control: the arm that all others are compared with; "plain" is plain training and need not be among ``arms``.
        seeds: of all arms that name none; fewer than six decide little.
        train_sizes: training sizes; by default the whole task.
        subset_seed: see :func:`anytune.tune`.
        training: settings of all arms.
        score_on: other tasks to score every run on; a task is not scored on itself.
        label_map: see :func:`anytune.tune`.
        probe_on: tasks to probe every tuned body on; a task is not probed on itself.
        workers: processes; by default the rule of :mod:`anytune.jobs.workers`.
        fan_out: what the workers are: "processes" of this machine, or "ray".
        dry_run: make nothing; the forecasts of the runs instead.

    Raises:
        SettingsError: an arm, the control, a task or a size that cannot be.
        AnytuneError: bad input; nothing is trained then.
    """
    tell = reporter or Silent()
    place = open_store(store)
    opened = open_base(base, place)
    data = [open_task(dict(task) if isinstance(task, Mapping) else task) for task in tasks]
    check_tasks(data)
    chosen = check_arms(arms, control)
    others = {
        key: [open_task(dict(one) if isinstance(one, Mapping) else one) for one in given or ()]
        for key, given in (("score_on", score_on), ("probe_on", probe_on))
    }
    cells: list[Cell] = []
    for index, task in enumerate(data):
        apart = {key: [n for n, one in enumerate(found) if one.name != task.name] for key, found in others.items()}
        names = {others["score_on"][n].name for n in apart["score_on"]}
        mapped = {name: labels for name, labels in (label_map or {}).items() if name in names} or None
        _check_map(label_map, others["score_on"])
        for arm, given in chosen.items():
            call: dict[str, Any] = {
                "training": merged(training, given.get("training")), "seeds": given.get("seeds") or list(seeds),
                "subset_seed": subset_seed, "label_map": mapped,
            }  # fmt: skip
            for size in given.get("train_sizes") or train_sizes or [None]:
                opened_others: dict[str, Any] = {key: [others[key][n] for n in rows] for key, rows in apart.items()}
                command = Command.of(
                    place, opened, task, train_sizes=None if size is None else [size], keeps_failure=True,
                    **opened_others, **call,
                )  # fmt: skip
                sent = {
                    **call, "method": given["method"], "train_size": size, "base": base, "task": tasks[index],
                    "score_on": [(score_on or ())[n] for n in apart["score_on"]] or None,
                    "probe_on": [(probe_on or ())[n] for n in apart["probe_on"]] or None,
                    "store": str(place.folder), "keep": "scores", "tags": {"arm": arm},
                }  # fmt: skip
                plans = command.plans(given["method"], "scores", None, {"arm": arm})
                cells.append(Cell(arm, index, size, sent, plans))
    if dry_run:
        found: list[Any] = []
        for cell in cells:
            command = Command.of(place, opened, data[cell.task], training=cell.call["training"], seeds=[0])
            found += forecast_all(cell.plans, place, encoded=command.encoded)
        forecasts: Any = found
        return forecasts
    _make(cells, place, workers, fan_out, tell)
    lines = list(_lines(cells, data, control, place))
    folder = Path(out)
    write_lines(folder / RUNS_NAME, lines)
    write_lines(folder / TASKS_NAME, [task_line(task) for task in data])
    write_atomic(folder / TABLES_NAME, arm_tables(lines).encode())
    return Comparison(folder, lines)


def compared(folder: str | Path) -> Comparison:
    """A comparison that was made before: its tables are computed anew from ``runs.jsonl`` alone.

    Raises:
        DataError: there is no such file, or it is damaged.
    """
    path = Path(folder) / RUNS_NAME
    lines = read_lines(path, LINE_KEYS)
    write_atomic(path.with_name(TABLES_NAME), arm_tables(lines).encode())
    return Comparison(Path(folder), lines)


def read_lines(path: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """The lines of a comparison's file; each must hold ``keys``.

    Raises:
        DataError: there is no such file, it is damaged, or it is empty.
    """
    lines = []
    try:
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            line = json.loads(text)
            missing = [key for key in keys if not isinstance(line, dict) or key not in line]
            if missing:
                raise DataError(f"{path}, line {number}: no {missing[0]}", why="Each line is one run of a comparison.")
            lines.append(line)
    except (OSError, ValueError) as problem:
        raise DataError(
            f"cannot read {path}: {problem}", why="The tables are computed from it.", fix="anytune run RECIPE"
        ) from None
    if not lines:
        raise DataError(f"{path} holds no run", why="The tables are computed from it.", fix="anytune run RECIPE")
    return lines


def record(comparison: Comparison) -> dict[str, Any]:
    """All numbers of the tables as plain values: by kind of score a list of sections, one a training size."""
    made: dict[str, Any] = {"folder": str(comparison.folder)}
    for kind in TITLES:
        made[kind] = [
            {
                "size": section.size, "control": section.control,
                "runs": {column.name: {arm: asdict(cell) for arm in section.rows
                                       if (cell := section.cell(arm, column)) is not None}
                         for column in section.columns},
                "floors": {column.name: column.floor for column in section.columns},
                "against": {name: {arm: asdict(one) for arm, one in found.items()}
                            for name, found in section.differences.items()},
                "all": {arm: asdict(one) for arm, one in section.overall.items()},
                "cost": cost(comparison.lines, section.size) if kind == "test" else {},
            }
            for section in sections(comparison.lines, kind)
        ]  # fmt: skip
    return made


# Checks


def check_arms(
    arms: Mapping[str, Any], control: str, *, room: registry.Rooms = registry.TUNING, keys: Sequence[str] = ARM_KEYS,
    plain: tuple[str, str] = ("plain", PLAIN), alone: bool = False,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """The arms with the control first; plain training is added where it is the control and not among them.

    Args:
        room: or rooms of the methods.
        keys: what an arm may hold.
        plain: the arm that need not be among them, and its method.
        alone: whether the control may be the only arm.

    Raises:
        SettingsError: no arm, one without a method or with an unknown key, or a control that is none of them.
    """
    if not isinstance(arms, Mapping) or not arms:
        example = (
            "lora: {method: {name: lora, r: 8}}" if room == registry.TUNING else f"{plain[0]}: {{method: {plain[1]}}}"
        )
        raise SettingsError("no arms are given", fix=f"arms: {{{example}}}")
    for name, arm in arms.items():
        if not isinstance(arm, Mapping):
            raise SettingsError(f"arm '{name}' is {arm!r}", fix=f"{name}: {{method: {arm}}}")
        for key in arm:
            if key not in keys:
                near = nearest(str(key), keys)
                raise SettingsError(
                    f"arm '{name}': unknown key '{key}'", why=f"An arm holds {', '.join(keys)}.",
                    fix=f"{near}:" if near else "",
                )  # fmt: skip
        if "method" not in arm:
            raise SettingsError(f"arm '{name}' names no method", fix=f"{name}: {{method: {plain[1]}}}")
        registry.parse(arm["method"], room)
    made = {str(name): dict(arm) for name, arm in arms.items()}
    if control not in made and control == plain[0]:
        made = {control: {"method": plain[1]}, **made}
    if control not in made:
        raise unknown("arm as control:", control, made, SettingsError)
    if len(made) < 2 and not alone:
        raise SettingsError(f"'{control}' is the only arm", why="There is nothing to compare it with.")
    return {control: made[control], **made}


def check_tasks(tasks: Sequence[Task]) -> None:
    """Refuse no task, and two of one name.

    Raises:
        SettingsError: so it is.
    """
    if not tasks:
        raise SettingsError("no tasks are given", fix="tasks: [reviews.csv]")
    names = [task.name for task in tasks]
    doubled = [name for name in names if names.count(name) > 1]
    if doubled:
        raise SettingsError(
            f"two tasks are called '{doubled[0]}'", why="Tables name a task by its name.",
            fix="{source: ..., name: another}",
        )  # fmt: skip


def _check_map(label_map: LabelMap | None, others: Sequence[Task]) -> None:
    for name in label_map or {}:
        if name not in {other.name for other in others}:
            raise unknown("task of label_map", name, [other.name for other in others], SettingsError)


def merged(training: TrainingSettings | Mapping[str, Any] | None, own: Mapping[str, Any] | None) -> dict[str, Any]:
    """Training settings with an arm's own over them, only what was given.

    An arm's own length takes the place of the shared one: of both, steps would win without a word.
    """
    given = training.model_dump(exclude_unset=True) if isinstance(training, TrainingSettings) else dict(training or {})
    if own and "epochs" in own and "steps" not in own:
        given.pop("steps", None)
    return {**given, **dict(own or {})}


# Runs


def _make(cells: Sequence[Cell], store: Store, workers: int | None, fan_out: str, tell: Reporter) -> None:
    """Make the runs that the store lacks: a unit for each cell, or several of a cell where there are few cells."""
    there = {entry.manifest.run for entry in store.find("delta")}
    missing = [(cell, [plan for plan in cell.plans if _key(plan) not in there]) for cell in cells]
    missing = [(cell, plans) for cell, plans in missing if plans]
    every = [plan for _, plans in missing for plan in plans]
    if not every:
        return
    asked = workers if workers is not None else chosen_workers(every, missing[0][0].call)
    count = worker_count(len(every), asked)
    if workers is not None and workers > 1 and isinstance(missing[0][0].call["base"], Base):
        raise SettingsError("workers cannot be sent an open base", fix="base=its folder or name")
    units = []
    for cell, plans in missing:
        parts = math.ceil(count / len(missing)) if count > 1 else 1
        for part in range(min(parts, len(plans))):
            seeds = [plan.seed for plan in plans[part::parts]]
            name = f"{cell.arm}, {plans[0].task.name}, {cell.size or 'all'} examples, seeds {seeds[0]} to {seeds[-1]}"
            units.append(Unit(name, tune_cell, {**cell.call, "seeds": seeds}, sum(map(_steps, plans[part::parts]))))
    tell.say(f"{len(every)} runs to make, {sum(len(cell.plans) for cell in cells) - len(every)} are in the store")
    if count > 1:
        run_units(units, title="compare", reporter=tell, workers=count, fan_out=fan_out)
        return
    for unit in units:
        tune_cell(**unit.arguments, reporter=tell)


def tune_cell(**call: Any) -> None:
    """Runs of one arm, task and size; one that diverges is stored as failed."""
    with failures_kept():
        tune(**call, workers=1)


def _key(plan: TuningPlan) -> str:
    return plan.identity(plan.runtime()).key


def _steps(plan: TuningPlan) -> int:
    return total_steps(plan.settings, math.ceil(len(plan.task.train) / plan.settings.batch_size))


# Lines


def _lines(cells: Sequence[Cell], tasks: Sequence[Task], control: str, store: Store) -> Iterator[dict[str, Any]]:
    there = {entry.manifest.run: entry for entry in store.find("delta")}
    floors: dict[str, float | None] = {}
    words: dict[str, float | None] = {}
    for cell in cells:
        for plan in cell.plans:
            entry, task, manifest = there[_key(plan)], plan.task, there[_key(plan)].manifest
            if task.content not in floors:
                floors[task.content], words[task.content] = floor_of(task), words_floor(task)
            probed = list(plan.extra.probed) if plan.extra else []
            yield {
                "task": tasks[cell.task].name, "metric": task.metric, "size": cell.size, "train": len(task.train),
                "arm": cell.arm, "control": control, "seed": plan.seed, "validation": entry.score("validation"),
                "test": entry.score("test"), "floor": floors[task.content],
                "words": words[task.content],
                "ood": {one.name: entry.score(f"test:{one.name}", task.metric)
                        for one in (plan.extra.others if plan.extra else ())},
                "probe": {one.name: entry.score(f"probe:{one.name}", one.metric) for one in probed},
                "probe_base": {one.name: score for one in probed
                               if (score := entry.score(f"probe_base:{one.name}", one.metric)) is not None},
                "probe_metrics": {one.name: one.metric for one in probed},
                "steps": manifest.steps, "best_step": manifest.best_step, "seconds": manifest.seconds,
                "failed": manifest.failed, "method": [record.model_dump() for record in manifest.methods],
                "learning_rate": manifest.training.get("learning_rate"), "run": manifest.run,
                "predictions": predictions(entry, task),
            }  # fmt: skip


def predictions(entry: Entry, task: Task) -> list[Any]:
    """What the run answered to the test split: class numbers, tag numbers, numbers, or losses of responses."""
    path = entry.folder / PREDICTIONS_NAME
    if not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    numbers = {name: place for place, name in enumerate(task.label_names)}
    if task.kind == "generation":
        return [row["loss"] for row in rows]
    if task.kind == "token-classification":
        return [[numbers[tag] for tag in row["predicted"]] for row in rows]
    return [numbers[row["predicted"]] if numbers else row["predicted"] for row in rows]


def task_line(task: Task) -> dict[str, Any]:
    """A line of ``tasks.jsonl``: the names of the labels, and the gold labels of the test split."""
    gold = [list(row.label) if isinstance(row.label, tuple) else row.label for row in task.test]
    return {"task": task.name, "kind": task.kind, "metric": task.metric, "ref": task.ref, "content": task.content,
            "labels": list(task.label_names), "gold": gold}  # fmt: skip


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """A JSON object a line."""
    text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
    write_atomic(path, text.encode("utf-8", "surrogatepass"))
