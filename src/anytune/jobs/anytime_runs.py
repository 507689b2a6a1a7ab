"""The stages and cells of anytime matrices: which are to be made, by whom, and what they would cost."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from anytune.data.tasks import Task
from anytune.engine.fanout import Unit, run_units, worker_count
from anytune.engine.progress import Reporter, Silent
from anytune.engine.runtime import make_runtime
from anytune.engine.settings import total_steps, training_settings
from anytune.errors import DivergedError, TrainingError
from anytune.jobs.anytime_design import Design, Stream, Tuning
from anytune.jobs.command import Command
from anytune.jobs.failures import failures_kept
from anytune.jobs.forecast import Forecast, standing_in
from anytune.jobs.opening import open_base, open_store
from anytune.jobs.pretrain import pretrain
from anytune.jobs.run_all import forecast_all, tune_all
from anytune.jobs.stages import stored_stages
from anytune.jobs.tuning_plan import TuningPlan
from anytune.jobs.workers import WORTH_SECONDS, chosen_workers, may_spread, pretraining_seconds, that_fit
from anytune.manifests import write_atomic
from anytune.models.base import Base
from anytune.store import Entry, Store
from anytune.store.names import slug

#: A stream, the bases of its stages and, where they are fewer than its stages, what happened.
Made = tuple[Stream, list[Entry], str | None]
#: Folder beside the results that says of each stream that diverged what happened; without it, it is tried again.
DIVERGED_NAME = "diverged"


@dataclass(frozen=True)
class Planned:
    """A cell that is measured: ``stream`` is None for row 0, ``plan`` None where pre-training diverged before it."""

    stream: Stream | None
    seed: int
    stage: int
    subject: int
    #: the task as the run sees it
    task: Task
    call: Mapping[str, Any] | None
    plan: TuningPlan | None
    failed: str | None = None


# Stages


def make_streams(
    plan: Design, base: Any, store: Store, folder: Path, workers: int | None, fan_out: str, tell: Reporter
) -> list[Made]:
    """Every stream with the bases of its stages; fewer, and what happened, where it diverged."""
    tasks = [subject.task for subject in plan.subjects]
    at = str(store.folder.resolve())
    streams = plan.streams
    marked = [folder.resolve() / DIVERGED_NAME / f"{plan.mark(stream)[:32]}.json" for stream in streams]

    def look() -> list[list[Entry]]:
        there = {entry.manifest.run: entry for entry in store.find("base")}
        return [stored_stages(**plan.call(stream, plan.base, at), there=there) for stream in streams]

    found = look()
    units = []
    for stream, entries, mark in zip(streams, found, marked, strict=True):
        if len(entries) == len(stream.stages):
            mark.unlink(missing_ok=True)
        elif not mark.exists():
            call = {**plan.call(stream, base, at), "apart_from": tasks, "mark": str(mark)}
            left = len(stream.stages) - len(entries)
            steps = (training_settings(stream.arm.training).steps or 0) * left
            units.append(Unit(f"pre-training: {stream.title}", make_stream, call, steps))
    if units:
        tell.say(f"{len(units)} streams to pre-train, {len(streams) - len(units)} are in the store")
        count = worker_count(len(units), workers) if workers is not None else _stream_workers(plan, units)
        if count > 1:
            run_units(units, title="pre-training", reporter=tell, workers=count, fan_out=fan_out)
        else:
            for unit in units:
                make_stream(**unit.arguments, reporter=tell)
        found = look()
    made = []
    for stream, entries, mark in zip(streams, found, marked, strict=True):
        what = None
        if len(entries) < len(stream.stages):
            what = f"pre-training diverged at stage {stream.stages[len(entries)]}{_marked(mark)}"
        made.append((stream, entries, what))
    return made


def make_stream(*, mark: str, reporter: Reporter | None = None, **call: Any) -> None:
    """The stages of one stream; that it diverged is written down beside the results and ends nothing."""
    try:
        pretrain(**call, reporter=reporter)
    except DivergedError as problem:
        write_atomic(Path(mark), json.dumps({"what": problem.what}).encode())
        (reporter or Silent()).say(f"{problem.what}; the other streams go on")


def _marked(mark: Path) -> str:
    with suppress(OSError, ValueError, KeyError, TypeError):
        return f": {json.loads(mark.read_text(encoding='utf-8'))['what']}"
    raise TrainingError(
        f"a stream is incomplete, and {mark.parent.name}/{mark.name} does not say why",
        why="A stage was removed from the store while the matrix was made, or the file was damaged.",
        fix="delete that file, and give the same command again",
    )


def _stream_workers(plan: Design, units: Sequence[Unit]) -> int:
    """How many processes to spread streams over, by the rule of :mod:`anytune.jobs.workers`."""
    runtimes = {settings.precision: make_runtime(settings.precision, sharding=settings.sharding)
                for settings in (training_settings(arm.training) for arm in plan.arms)}  # fmt: skip
    on_cpu = all(runtime.device.type == "cpu" for runtime in runtimes.values())
    if len(units) < 2 or not on_cpu or not all(may_spread(unit.arguments) for unit in units[:1]):
        return 1
    seconds = 0.0
    for unit in units:
        settings = training_settings(unit.arguments["training"])
        tokens = unit.steps * settings.batch_size * settings.accumulation * settings.block_size
        seconds += pretraining_seconds(plan.base.config, tokens, unit.steps)
    return that_fit(len(units), plan.base.config) if seconds >= WORTH_SECONDS else 1


# Cells


def check_tunings(plan: Design, store: Store) -> None:
    """Refuse, before anything is pre-trained, what a cell could not be tuned with."""
    for tuning in {id(one): one for one in (plan.tuning, *(arm.tuning for arm in plan.arms))}.values():
        for subject in plan.subjects:
            _command(plan.base, subject.task, tuning, plan.seeds[0], store)


def _command(base: Base, task: Task, tuning: Tuning, seed: int, store: Store) -> Command:
    return Command.of(
        store, base, task, training=tuning.training, seeds=[seed],
        train_sizes=None if tuning.train_size is None else [tuning.train_size], subset_seed=tuning.subset_seed,
        keeps_failure=True,
    )  # fmt: skip


def plan_cells(plan: Design, base: Any, store: Store, made: Sequence[Made]) -> Iterator[Planned]:
    """Row 0 of every seed, then the cells of every stream."""
    tags = {"arm": "row 0"}
    for seed in plan.seeds:
        for index, subject in enumerate(plan.subjects):
            if any((0, j) in plan.cells for j in _places(plan, index, seed)):
                planned = _command(plan.base, subject.task, plan.tuning, seed, store)
                [one] = planned.plans(plan.tuning.method, "scores", None, tags)
                yield Planned(
                    None, seed, 0, index, one.task, _call(base, subject.task, plan.tuning, seed, store, tags), one
                )
    opened: dict[str, Base] = {}
    for stream, entries, failed in made:
        tags = {"arm": stream.arm.name}
        for stage, j in sorted(cell for cell in plan.cells if cell[0] in stream.stages):
            index, tuning = stream.order[j - 1], stream.arm.tuning
            subject, number = plan.subjects[index], stream.stages.index(stage)
            if number >= len(entries):
                seen = _command(plan.base, subject.task, tuning, stream.seed, store).parts.of(
                    tuning.train_size, stream.seed
                )
                yield Planned(stream, stream.seed, stage, index, seen, None, None, failed)
                continue
            entry = entries[number]
            if entry.id not in opened:
                opened[entry.id] = open_base(entry)
            command = _command(opened[entry.id], subject.task, tuning, stream.seed, store)
            [one] = command.plans(tuning.method, "scores", None, tags)
            yield Planned(
                stream, stream.seed, stage, index, one.task,
                _call(entry, subject.task, tuning, stream.seed, store, tags), one,
            )  # fmt: skip


def _places(plan: Design, subject: int, seed: int) -> set[int]:
    """The columns a domain stands in, in the streams of a seed."""
    return {stream.order.index(subject) + 1 for stream in plan.streams if stream.seed == seed}


def _call(base: Any, task: Task, tuning: Tuning, seed: int, store: Store, tags: Mapping[str, str]) -> dict[str, Any]:
    return {"base": base, "task": task, "tuning": asdict(tuning), "seed": seed, "tags": dict(tags),
            "store": str(store.folder.resolve())}  # fmt: skip


def make_cells(planned: Sequence[Planned], store: Store, workers: int | None, fan_out: str, tell: Reporter) -> None:
    """Make the cells that the store lacks, each a run of its own."""
    there = {entry.manifest.run for entry in store.find("delta")}
    missing: dict[str, Planned] = {}
    for cell in planned:
        if cell.plan is not None and (key := run_key_of(cell.plan)) not in there:
            missing.setdefault(key, cell)
    if not missing:
        return
    cells = list(missing.values())
    plans = [cell.plan for cell in cells if cell.plan is not None]
    tell.say(f"{len(cells)} cells to tune, {len(planned) - len(cells)} are in the store")
    calls = [dict(cell.call or {}) for cell in cells]
    count = worker_count(len(cells), workers) if workers is not None else chosen_workers(plans, calls[0])
    if count > 1:
        units = [
            Unit(f"{_title(cell)} ({key[:8]})", tune_cell, call, _steps(plan))
            for (key, cell), plan, call in zip(missing.items(), plans, calls, strict=True)
        ]
        run_units(units, title="anytime", reporter=tell, workers=count, fan_out=fan_out)
        return
    for call in calls:
        tune_cell(**call, reporter=tell)


def tune_cell(
    *, base: Any, task: Task, tuning: Mapping[str, Any], seed: int, tags: Mapping[str, str], store: str,
    reporter: Reporter | None = None,
) -> None:  # fmt: skip
    """One cell: a base tuned on a task for its scores alone. The base is read and not changed."""
    place, wanted = open_store(store), Tuning(**tuning)
    command = _command(open_base(base, place), task, wanted, seed, place)
    with failures_kept():
        tune_all(command.plans(wanted.method, "scores", None, tags), place, encoded=command.encoded,
                 reporter=reporter, resume="auto")  # fmt: skip


def run_key_of(plan: TuningPlan) -> str:
    """The key a cell's run stands under in the store."""
    return plan.identity(plan.runtime()).key


def _steps(plan: TuningPlan) -> int:
    return total_steps(plan.settings, math.ceil(len(plan.task.train) / plan.settings.batch_size))


def _title(cell: Planned) -> str:
    where = f"{cell.stream.title}, stage {cell.stage}" if cell.stream else f"row 0, seed {cell.seed}"
    return f"{where}, {cell.task.name}"


# Forecasts


def _names(plan: Design, stream: Stream) -> list[str]:
    """What the bases of a stream would be called."""
    names = [plan.subjects[index].name for index in stream.order]
    of_flow = {"joint": ["+".join(names)], "restart": names,
               "chain": ["+".join(names[: stage]) for stage in stream.stages]}  # fmt: skip
    return [slug(f"{plan.base.name}+{name}") for name in of_flow[stream.arm.flow]]


def forecast_matrix(plan: Design, base: Any, store: Store) -> list[Forecast]:
    """What the stages and cells would cost; cells of a base that is still to be made are tried on the first base."""
    made: list[Forecast] = []
    stored: list[Made] = []
    tried: dict[str, list[Forecast]] = {}
    for stream in plan.streams:
        found = stored_stages(**plan.call(stream, plan.base, str(store.folder)))
        stored.append((stream, found, None))
        alike = tried.get(stream.arm.name)
        if alike is not None and not found and not store.work_folders():  # another seed or order costs the same
            made += [
                replace(one, seed=stream.seed, name=name)
                for one, name in zip(alike, _names(plan, stream), strict=True)
            ]
            continue
        forecasts: Any = pretrain(**plan.call(stream, base, str(store.folder)), dry_run=True)
        made += forecasts
        if not found:
            tried[stream.arm.name] = list(forecasts)
    waiting: dict[tuple[int, str], list[TuningPlan]] = {}
    ready: dict[tuple[int, str], list[TuningPlan]] = {}
    for cell in plan_cells(plan, base, store, stored):
        tuning = plan.tuning if cell.stream is None else cell.stream.arm.tuning
        one, group = cell.plan, ready
        if one is None:
            task = plan.subjects[cell.subject].task
            [one] = _command(plan.base, task, tuning, cell.seed, store).plans(tuning.method, "scores", None, {})
            group = waiting
        group.setdefault((cell.subject, repr(tuning)), []).append(one)
    for group, pending in ((ready, False), (waiting, True)):
        for plans in group.values():
            command = Command.of(store, plan.base, plans[0].task, training=plans[0].settings, seeds=[plans[0].seed])
            if pending:
                with standing_in():
                    made += forecast_all(plans, store, encoded=command.encoded)
            else:
                made += forecast_all(plans, store, encoded=command.encoded)
    return made
