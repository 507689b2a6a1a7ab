"""Upgrades times tasks, forms and amounts of data: ``job: recycle-grid``; tables again: ``anytune recycle-tables``.

A base is upgraded in several ways (by more or fewer tokens, or along a chain); on the first base every task is tuned
in every form, and on each upgrade every arm brings these deltas over or tunes afresh. All runs are what
:func:`anytune.tune` and :func:`anytune.recycle` make, and stand in the store under their run keys: an interrupted grid
goes on run by run. The folder ``out`` then holds

    runs.jsonl    a line for each run: arm, upgrade, form, task, data, scores, learning curve, its answers to the test
                  split; old deltas on their own base among them
    bases.jsonl   a line for each upgrade: tokens, losses on held-out text, distance from the first base
    paths.jsonl   a line for each run that ``connect`` names: the line to the old tuned model, likeness of heads
    tasks.jsonl   a line for each task: label names and gold labels
    tables.md     scores, gains, flips, curves, distances and what becomes of the claims, from the lines alone
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from anytune.data.tasks import Task
from anytune.engine.progress import Reporter, Silent
from anytune.engine.settings import TrainingSettings
from anytune.errors import SettingsError
from anytune.evaluate.base_distance import base_distance, weights_distance
from anytune.evaluate.recycle_arms import against, sections
from anytune.evaluate.recycle_claims import claims
from anytune.evaluate.scores import number
from anytune.jobs.arms import RUNS_NAME, TABLES_NAME, TASKS_NAME, predictions, read_lines, task_line, write_lines
from anytune.jobs.command import Command
from anytune.jobs.diagnose_delta import size_of
from anytune.jobs.forecast import Forecast, standing_in, unwritten
from anytune.jobs.moving import own_delta
from anytune.jobs.opening import open_base, open_store
from anytune.jobs.pretrain import pretrain
from anytune.jobs.recycle_design import FRESH, recycle_design
from anytune.jobs.recycle_paths import path_lines
from anytune.jobs.recycle_runs import (
    Made,
    Planned,
    keep_hops,
    keep_old,
    make,
    make_bases,
    make_stand_ins,
    plan_arm,
    plan_old,
)
from anytune.jobs.run_all import forecast_all
from anytune.jobs.runs import floor_of, words_floor
from anytune.jobs.tune import Source
from anytune.manifests import write_atomic
from anytune.methods import registry
from anytune.models.base import Base
from anytune.report.recycle_tables import recycle_tables, summary
from anytune.store import Entry, Store

BASES_NAME, PATHS_NAME = "bases.jsonl", "paths.jsonl"
#: What a line must hold to be read again.
LINE_KEYS = (
    "arm", "control", "kind", "method", "weights", "hop", "upgrade", "same_base", "form", "task", "metric", "old",
    "new", "seed", "validation", "test", "floor", "curve", "steps", "seconds", "failed", "predictions",
)  # fmt: skip
BASE_KEYS = ("upgrade", "after", "same_base", "tokens", "steps", "seconds", "distance", "losses")
PATH_KEYS = ("arm", "upgrade", "same_base", "form", "task", "metric", "old", "new", "seed", "path", "similarity")
TASK_KEYS = ("task", "kind", "gold")


@dataclass(frozen=True)
class Recycled:
    """A finished grid: its folder and its lines. As text, its summary."""

    folder: Path
    lines: Sequence[Mapping[str, Any]]
    upgrades: Sequence[Mapping[str, Any]]
    paths: Sequence[Mapping[str, Any]] = field(default=())
    tasks: Sequence[Mapping[str, Any]] = field(default=())

    def __str__(self) -> str:
        return "\n".join([summary(self.lines, self.paths), f"tables: {self.folder / TABLES_NAME}"])

    @property
    def tables(self) -> str:
        """All tables as Markdown."""
        return recycle_tables(self.lines, self.upgrades, self.paths, self.tasks)


@unwritten
def recycle_grid(
    base: Base | Entry | Source,
    upgrades: Sequence[Mapping[str, Any]],
    tasks: Sequence[Task | Source | Mapping[str, Any]],
    forms: Mapping[str, Mapping[str, Any]],
    arms: Mapping[str, Mapping[str, Any]],
    *,
    out: str | Path,
    control: str = FRESH,
    store: Store | Source | None = None,
    old: Sequence[int | str] = ("full",),
    new: Sequence[int | str] = ("full",),
    seeds: Sequence[int] = (0, 1, 2, 3, 4, 5),
    training: TrainingSettings | Mapping[str, Any] | None = None,
    pretraining: TrainingSettings | Mapping[str, Any] | None = None,
    upgrade_seed: int = 0,
    connect: Mapping[str, Any] | None = None,
    workers: int | None = None,
    fan_out: str = "processes",
    dry_run: bool = False,
    reporter: Reporter | None = None,
) -> Recycled:
    """Tune tasks on a base, upgrade the base, bring the deltas over by every arm, and hold each against fresh tuning.

    Args:
        base: ``sample:NAME``, a folder, the name of a base in the store, or a hub id.
        upgrades: ``{"name": ..., "domains": [...], "tokens": ...}`` each: a base that is pre-trained on; ``after``
            names the upgrade it goes on from. Without domains nothing changes: distance 0. ``method`` and
            ``training`` as of :func:`anytune.pretrain`; ``tokens`` are shared out over the domains.
        tasks: what :func:`anytune.tune` takes as a task.
        forms: name -> ``{"method": ..., "training": ..., "old_training": ...}``: how tasks are tuned; the old deltas
            may have settings of their own.
        arms: name -> ``{"fresh": true}`` or ``{"recycle": METHOD}``, with ``budget`` (a multiple of the steps),
            ``weights`` ("own", or "random", "wrong-task", "mean": see :mod:`anytune.evaluate.control_deltas`),
            ``hop`` (the outdated weights are this arm's own of the upgrade before) or ``training``, ``seeds``,
            ``old``, ``new``, ``upgrades``, ``forms`` or ``tasks`` of its own if need be.
        out: folder of the results; what stands there is written anew.
        control: the arm that gains are over; "fresh" need not be among ``arms``.
        old: amounts of data of the old deltas: "full", or rows a class, drawn by the run's seed.
        new: amounts of data of the runs on new bases, in the same way.
        seeds: of all arms that name none; fewer than six decide little.
        training: settings of every tuning run, steps among them.
        pretraining: settings of every upgrade.
        upgrade_seed: of the pre-training.
        connect: ``{"arms": [...]}``, with ``old``, ``new``, ``seeds`` (by default the first), ``points`` and
            ``texts``: runs whose line to the old tuned model is walked. Their weights are kept.
        workers: processes; by default the rule of :mod:`anytune.jobs.workers`.
        fan_out: what the workers are: "processes" of this machine, or "ray".
        dry_run: make nothing; the forecasts of the runs instead.

    Raises:
        SettingsError: an arm, an upgrade, a form or a setting that cannot be.
        AnytuneError: bad input; nothing is trained then.
    """
    tell, place = reporter or Silent(), open_store(store)
    opened = open_base(base, place)
    plan = recycle_design(
        opened, upgrades, tasks, forms, arms, control=control, old=old, new=new, seeds=seeds, training=training,
        pretraining_=pretraining, upgrade_seed=upgrade_seed, connect=connect,
    )  # fmt: skip
    if workers is not None and workers > 1 and isinstance(base, Base):
        raise SettingsError("workers cannot be sent an open base", fix="base=its folder or name")
    made = Made(plan, base, place)
    if dry_run:
        forecasts: Any = forecast_grid(made)
        return forecasts
    folder = Path(out)
    make_bases(made, workers, fan_out, tell)
    first = list(plan_old(made))
    make(made, first, "old deltas", workers, fan_out, tell)
    keep_old(made, first, tell)
    make_stand_ins(made, tell)
    for depth in range(1 + max(plan.depth(one.name) for one in plan.upgrades)):
        here = [one.name for one in plan.upgrades if plan.depth(one.name) == depth]
        planned = [one for arm in plan.arms for name in here for one in plan_arm(made, arm, name)]
        make(made, planned, ", ".join(here), workers, fan_out, tell)
        keep_hops(made, planned)
    found = Recycled(
        folder, list(run_lines(made)), list(base_lines(made)), list(path_lines(made, tell)),
        [task_line(task) for task in plan.tasks],
    )  # fmt: skip
    for name, lines in ((RUNS_NAME, found.lines), (BASES_NAME, found.upgrades), (PATHS_NAME, found.paths),
                        (TASKS_NAME, found.tasks)):  # fmt: skip
        write_lines(folder / name, lines)
    write_atomic(folder / TABLES_NAME, found.tables.encode())
    return found


def read_recycled(folder: str | Path) -> Recycled:
    """The lines of a grid that was made before.

    Raises:
        DataError: a file is missing or damaged.
    """
    place = Path(folder)
    walked = (place / PATHS_NAME).is_file() and (place / PATHS_NAME).stat().st_size > 0
    return Recycled(
        place, read_lines(place / RUNS_NAME, LINE_KEYS), read_lines(place / BASES_NAME, BASE_KEYS),
        read_lines(place / PATHS_NAME, PATH_KEYS) if walked else [], read_lines(place / TASKS_NAME, TASK_KEYS),
    )  # fmt: skip


def recycled_again(folder: str | Path) -> Recycled:
    """A grid that was made before: its tables are computed anew from its lines alone.

    Raises:
        DataError: a file is missing or damaged.
    """
    found = read_recycled(folder)
    write_atomic(found.folder / TABLES_NAME, found.tables.encode())
    return found


def record(found: Recycled) -> dict[str, Any]:
    """The numbers of the tables as plain values."""
    made = sections(found.lines)
    return {
        "folder": str(found.folder),
        "cases": [
            {
                **section.case._asdict(), "control": section.control,
                "means": {arm: {upgrade: section.mean(arm, upgrade) for upgrade in section.upgrades}
                          for arm in section.arms},
                "against": {arm: asdict(one) for arm, one in against([section], section.control).items()},
            }
            for section in made
        ],
        "claims": [asdict(one) for one in claims(made, found.paths)],
    }  # fmt: skip


# Lines


def run_lines(made: Made) -> Iterator[dict[str, Any]]:
    """A line for each run, old deltas first."""
    floors: dict[str, tuple[float | None, float | None]] = {}
    for one in made.planned:
        task = one.part
        if task.content not in floors:
            floors[task.content] = floor_of(task), words_floor(task)
        arm = None if one.arm is None else made.design.arm(one.arm)
        entry, refused = made.entries.get(one.key), one.refused or made.refused.get(one.key)
        manifest = None if entry is None else entry.manifest
        yield {
            "arm": "old" if arm is None else arm.name, "control": made.design.control,
            "kind": "outdated" if arm is None else arm.kind,
            "method": None if arm is None or arm.kind == "fresh" else registry.parse(arm.method, "recycle")[0].name,
            "weights": "own" if arm is None else arm.weights, "hop": arm is not None and arm.hop,
            "budget": 1.0 if arm is None else arm.budget, "upgrade": one.upgrade,
            "same_base": one.upgrade is not None and made.same_base(one.upgrade), "form": one.form, "task": one.task,
            "metric": task.metric, "old": one.old, "new": one.new, "train": len(task.train), "seed": one.seed,
            "validation": None if entry is None else entry.score("validation"),
            "test": None if entry is None else entry.score("test"), "floor": floors[task.content][0],
            "words": floors[task.content][1], "curve": [] if entry is None else curve(entry),
            "steps": 0 if manifest is None else manifest.steps,
            "seconds": 0.0 if manifest is None else manifest.seconds,
            "failed": manifest.failed if manifest else None if refused else "the old delta diverged",
            "refused": refused,
            "run": None if manifest is None else manifest.run,
            "base": None if manifest is None else manifest.base.backbone,
            "methods": [] if manifest is None else [record_.model_dump() for record_ in manifest.methods],
            "learning_rate": None if manifest is None else manifest.training.get("learning_rate"),
            "predictions": [] if entry is None else predictions(entry, task),
            **({"size": size_on(entry, made)} if arm is None else {}),
        }  # fmt: skip


def size_on(entry: Entry | None, made: Made) -> float | None:
    """How large an old delta is beside its base: what forecasts of direct reuse are learned from; None for prompts."""
    if entry is None or entry.manifest.failed or entry.manifest.form == "scores":
        return None
    base = made.opened(None)
    length = weights_distance(base.tensors(), base.tensors(), base.anatomy).whole.length
    return size_of(own_delta(entry, base), base, entry, length)


def curve(entry: Entry) -> list[list[float | None]]:
    """The validation curve in the task's metric: step, training seconds, score."""
    metric = entry.main_metric() or ""
    return [[point.step, round(point.seconds, 3), number(point.scores.get(metric))]
            for point in entry.manifest.curve if point.split == "validation"]  # fmt: skip


def base_lines(made: Made) -> Iterator[dict[str, Any]]:
    """A line for each upgrade."""
    for upgrade in made.design.upgrades:
        stages = made.stages.get(upgrade.name, [])
        manifests = [entry.manifest for entry in stages]
        distance = base_distance(made.design.base, made.opened(upgrade.name)).record()
        scores = manifests[-1].scores if manifests else {}
        yield {
            "upgrade": upgrade.name, "after": upgrade.after, "same_base": made.same_base(upgrade.name),
            "domains": [domain.name for domain in upgrade.domains],
            "tokens": sum(one.tokens for one in manifests), "steps": sum(one.steps for one in manifests),
            "seconds": round(sum(one.seconds for one in manifests), 3), "distance": distance,
            "losses": {name: {key: number(value) for key, value in found.items()} for name, found in scores.items()},
            "method": [one.model_dump() for one in manifests[-1].methods] if manifests else [],
            "backbone": made.opened(upgrade.name).identity.backbone,
        }  # fmt: skip


# Forecasts


def forecast_grid(made: Made) -> list[Forecast]:
    """What bases and runs would cost; a recycled run is tried as fresh tuning of the same steps on the first base."""
    design = made.design
    found: list[Forecast] = []
    for upgrade in design.upgrades:
        if upgrade.domains:
            tried: Any = pretrain(
                made.base, list(upgrade.domains), store=made.store, method=upgrade.method,
                training=dict(upgrade.training), seed=design.upgrade_seed, dry_run=True,
            )  # fmt: skip
            found += tried
    found += _forecast(made, list(plan_old(made)))
    with standing_in():
        for arm in design.arms:
            for name in arm.forms:
                for task in arm.tasks:
                    for new in arm.new:
                        runs = list(_stand_for(made, arm, name, task, new))
                        found += _forecast(made, runs)
    return found


def _stand_for(made: Made, arm: Any, form: str, task: str, new: str) -> Iterator[Planned]:
    from anytune.jobs.recycle_runs import _tuned

    trains = arm.kind == "fresh" or registry.parse(arm.method, "recycle")[0].trains
    for _ in arm.upgrades if trains else ():
        for seed in arm.seeds:
            for _ in arm.old or ("",):
                yield _tuned(made, arm, None, made.design.form(form), task, None, new, seed, keep="scores")


def _forecast(made: Made, runs: Sequence[Planned]) -> list[Forecast]:
    by_task: dict[tuple[str, str], list[Planned]] = {}
    for one in runs:
        by_task.setdefault((one.task, one.form), []).append(one)
    found: list[Forecast] = []
    for group in by_task.values():
        plans = [one.plan for one in group if one.plan is not None]
        command = Command.of(
            made.store, made.design.base, plans[0].task, training=group[0].call["training"], seeds=[plans[0].seed]
        )
        found += forecast_all(plans, made.store, encoded=command.encoded)
    return found
