"""The anytime matrix of several ways to pre-train: ``job: anytime``; tables again: ``anytune anytime FOLDER``.

Each arm pre-trains the base over a stream of domains, once for each order and seed, and every base on the way is
tuned on the tasks (:mod:`anytune.evaluate.anytime`). Stages are what :func:`anytune.pretrain` makes, cells what
:func:`anytune.tune` makes with ``keep="scores"``: both stand in the store under their run keys, so that an
interrupted matrix goes on cell by cell, streams with a common beginning share it, and all arms share row 0. The
folder ``out`` then holds

    runs.jsonl     a line for each cell: arm, order, stage, task, scores, steps, seconds, its answers to the test split
    stages.jsonl   a line for each stage: held-out loss of every domain before and after it, steps, tokens, seconds
    tasks.jsonl    a line for each task: label names and the gold labels of its test split
    tables.md      metrics, differences to the control, matrices, losses and cost, computed from the lines alone
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from anytune.engine.progress import Reporter, Silent
from anytune.engine.settings import TrainingSettings
from anytune.errors import DataError, SettingsError
from anytune.evaluate.anytime import columns, matrices
from anytune.jobs.anytime_design import SEQUENTIAL, design
from anytune.jobs.anytime_lines import cell_lines, stage_lines
from anytune.jobs.anytime_runs import check_tunings, forecast_matrix, make_cells, make_streams, plan_cells
from anytune.jobs.arms import RUNS_NAME, TABLES_NAME, TASKS_NAME, read_lines, task_line, write_lines
from anytune.jobs.forecast import unwritten
from anytune.jobs.opening import open_base, open_store
from anytune.jobs.tune import Source
from anytune.manifests import write_atomic
from anytune.models.base import Base
from anytune.report.anytime_tables import anytime_tables, summary
from anytune.store import Entry, Store

STAGES_NAME = "stages.jsonl"
#: What a line must hold to be read again.
LINE_KEYS = (
    "arm", "control", "order", "stream", "seed", "stage", "after", "task", "metric", "validation", "test", "floor",
    "steps", "seconds", "failed", "metrics",
)  # fmt: skip
STAGE_KEYS = ("arm", "control", "order", "stream", "seed", "stage", "first", "after", "losses", "steps", "seconds")


@dataclass(frozen=True)
class Anytime:
    """A finished comparison: its folder and its lines. As text, its summary."""

    folder: Path
    lines: Sequence[Mapping[str, Any]]
    stages: Sequence[Mapping[str, Any]]

    def __str__(self) -> str:
        return "\n".join([summary(self.lines, self.stages), f"tables: {self.folder / TABLES_NAME}"])


@unwritten
def anytime_matrix(
    base: Base | Entry | Source,
    domains: Sequence[Mapping[str, Any]],
    arms: Mapping[str, Mapping[str, Any]],
    *,
    out: str | Path,
    control: str = SEQUENTIAL,
    store: Store | Source | None = None,
    orders: int | Sequence[Sequence[str]] | None = None,
    seeds: Sequence[int] = (0,),
    runs: str = "crossed",
    training: TrainingSettings | Mapping[str, Any] | None = None,
    tokens: int | str | None = None,
    tuning: Mapping[str, Any] | None = None,
    cells: str = "needed",
    metrics: Sequence[str] | None = None,
    workers: int | None = None,
    fan_out: str = "processes",
    dry_run: bool = False,
    reporter: Reporter | None = None,
) -> Anytime:
    """Pre-train over a stream of domains by each arm, tune every base on the way, and compare the matrices.

    Texts of a domain that (nearly) occur in the held-out part of any of the tasks are an error.

    Args:
        base: ``sample:NAME``, a folder, the name of a base in the store, or a hub id.
        domains: a list of ``{"name": ..., "domain": ..., "task": ...}``, in the order of the stream; domain and task
            are what :func:`anytune.pretrain` and :func:`anytune.tune` take.
        arms: name -> ``{"method": ...}`` of the room ``pretrain``, with ``training`` or ``tuning`` (over the common
            ones), ``seeds``, or ``orders`` (a count: the first of them) of its own if need be.
        out: folder of the results; the files there are written anew.
        control: the arm that all others are compared with; "sequential" is plain pre-training and need not be among
            ``arms``.
        orders: None for the order of ``domains``; a count: this order and further ones; or lists of names.
        seeds: of all arms that name none. A run is an order with a seed; fewer than six decide little.
        runs: "crossed": every order with every seed; "paired": the first order with the first seed, and so on.
        training: settings of every stage; ``steps`` counts per domain. Losses are measured before and after a stage
            unless ``evaluate_every`` says otherwise.
        tokens: budget of each stage in place of steps; "smallest": as many as the smallest domain has.
        tuning: ``method``, ``training``, ``train_size`` and ``subset_seed`` of every cell.
        cells: "needed" for ``metrics``, or "all".
        metrics: names of :data:`anytune.evaluate.anytime.METRICS`; by default all of them.
        workers: processes; by default the rule of :mod:`anytune.jobs.workers`.
        fan_out: what the workers are: "processes" of this machine, or "ray".
        dry_run: make nothing; the forecasts of the stages and cells instead.

    Raises:
        SettingsError: a domain, an order, an arm or a setting that cannot be.
        AnytuneError: bad input; nothing is trained then.
    """
    tell, place = reporter or Silent(), open_store(store)
    opened = open_base(base, place)
    plan = design(
        opened, domains, arms, control=control, orders=orders, seeds=seeds, runs=runs, training=training,
        tokens=tokens, tuning=tuning, cells=cells, metrics=metrics,
    )  # fmt: skip
    check_tunings(plan, place)
    if dry_run:
        forecasts: Any = forecast_matrix(plan, base, place)
        return forecasts
    folder = Path(out)
    if workers is not None and workers > 1 and isinstance(base, Base):
        raise SettingsError("workers cannot be sent an open base", fix="base=its folder or name")
    made = make_streams(plan, base, place, folder, workers, fan_out, tell)
    planned = list(plan_cells(plan, base, place, made))
    make_cells(planned, place, workers, fan_out, tell)
    lines, stages = list(cell_lines(plan, planned, place)), list(stage_lines(plan, made))
    write_lines(folder / RUNS_NAME, lines)
    write_lines(folder / STAGES_NAME, stages)
    write_lines(folder / TASKS_NAME, [task_line(subject.task) for subject in plan.subjects])
    write_atomic(folder / TABLES_NAME, anytime_tables(lines, stages).encode())
    return Anytime(folder, lines, stages)


def read_anytime(folder: str | Path) -> Anytime:
    """The lines of a comparison that was made before.

    Raises:
        DataError: a file is missing or damaged.
    """
    place = Path(folder)
    lines, stages = read_lines(place / RUNS_NAME, LINE_KEYS), read_lines(place / STAGES_NAME, STAGE_KEYS)
    if all(line["arm"] is None for line in lines):
        raise DataError(f"{place / RUNS_NAME} holds row 0 alone", why="No arm can be told from it.")
    return Anytime(place, lines, stages)


def anytime_again(folder: str | Path) -> Anytime:
    """A comparison that was made before: its tables are computed anew from its lines alone.

    Raises:
        DataError: a file is missing or damaged.
    """
    found = read_anytime(folder)
    write_atomic(found.folder / TABLES_NAME, anytime_tables(found.lines, found.stages).encode())
    return found


def record(found: Anytime) -> dict[str, Any]:
    """The numbers of the tables as plain values: by metric every arm's runs and its difference to the control."""
    control = found.lines[0]["control"]
    tables = columns(matrices(found.lines), control, found.lines[0]["metrics"])
    return {
        "folder": str(found.folder), "control": control,
        "metrics": {
            column.metric: {
                "runs": {arm: [{"order": run[0], "seed": run[1], "value": value} for run, value in values.items()]
                         for arm, values in column.values.items()},
                "summary": {arm: asdict(one) for arm in column.values if (one := column.summary(arm)) is not None},
                "against": {arm: asdict(one) for arm, one in column.against.items()},
            }
            for column in tables
        },
    }  # fmt: skip
