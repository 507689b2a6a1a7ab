"""The whole life cycle on a real model and real text: ``anytune demo``.

Three tasks are tuned on a base (v0). The base is then pre-trained further on two of their domains, one after the
other (v1, v2). For each task and each upgrade four things are compared, over the same seeds and with the same training
data: the outdated weights as they are (direct), tuning that starts from them (initialize), fresh tuning with equally
many steps, and fresh tuning with as many steps as old and new together. Everything lands in a store and on one page.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anytune.data.samples import fetch, is_fetched, sample_rows
from anytune.engine.fanout import Unit, check_fan_out, run_units, worker_count
from anytune.engine.progress import Reporter, Silent
from anytune.errors import SampleError, SettingsError, unknown
from anytune.evaluate import compare, runs_of, verdicts
from anytune.jobs.bases import add_base
from anytune.jobs.forecast import Forecast, standing_in, unwritten
from anytune.jobs.opening import open_base
from anytune.jobs.planning import Planner
from anytune.jobs.pretrain import pretrain
from anytune.jobs.recycle import recycle
from anytune.jobs.report import report
from anytune.jobs.tune import tune
from anytune.jobs.warm import WARMINGS, warmed, warmed_folder
from anytune.report import read_store
from anytune.store import Store

#: Of one process on one core of a server of 2023, for the estimate that is printed first.
STEPS_PER_SECOND = {"bert-tiny": 20.0, "minilm-l6": 1.5}
WARMING_STEPS_PER_SECOND = 1.2


@dataclass(frozen=True)
class Part:
    """A sample that gives a task and a domain of raw text; the two share no text in the task's held-out splits."""

    sample: str
    domain: str


#: Tasks with headroom from different domains; the base is pre-trained on the first two.
PARTS = (Part("foldoc", "computing"), Part("hpo", "biomedical"), Part("rotten_tomatoes", "reviews"))
#: Taken in place of a part whose package manager is not on this machine.
STAND_IN = Part("licence_notice", "law")


@dataclass(frozen=True)
class Scale:
    """How much the demo does. The rates are the same for every arm.

    That of BERT-tiny (1e-3) was the best of 5e-4, 1e-3 and 2e-3 on the validation part of two of the three tasks;
    that of MiniLM is a usual one and was not searched.
    """

    steps: int
    pretraining_steps: int
    train_size: int
    seeds: tuple[int, ...]
    learning_rate: float
    pretraining_rate: float
    batch_size: int = 16

    def tuning(self, times: int = 1) -> dict[str, Any]:
        """Training settings of a tuning run; ``times`` its steps."""
        return {
            "steps": self.steps * times, "learning_rate": self.learning_rate, "batch_size": self.batch_size,
            "max_length": 64, "evaluate_every": max(1, self.steps // 5), "precision": "auto",
        }  # fmt: skip

    def pretraining(self) -> dict[str, Any]:
        """Training settings of a pre-training stage."""
        return {"steps": self.pretraining_steps, "learning_rate": self.pretraining_rate, "batch_size": 16,
                "block_size": 128, "evaluate_every": self.pretraining_steps}  # fmt: skip


SCALES = {
    ("bert-tiny", False): Scale(100, 200, 800, (0, 1, 2), 1e-3, 5e-4),
    ("bert-tiny", True): Scale(50, 30, 400, (0,), 1e-3, 5e-4),
    ("minilm-l6", False): Scale(120, 200, 1000, (0, 1, 2), 1e-4, 1e-4),
    ("minilm-l6", True): Scale(40, 40, 500, (0,), 1e-4, 1e-4),
}


@unwritten
def demo(
    *,
    model: str = "bert-tiny",
    fast: bool = False,
    folder: str | Path = "anytune-demo",
    seeds: Sequence[int] | None = None,
    workers: int | None = None,
    fan_out: str = "processes",
    dry_run: bool = False,
    reporter: Reporter | None = None,
) -> Path:
    """Run the whole life cycle and make its page.

    Runs that are already in the folder's store are not made again, and an interrupted demo goes on where it was.

    Args:
        model: "bert-tiny" (part of the package) or "minilm-l6" (downloaded, and warmed once).
        fast: one seed and fewer steps.
        folder: where the store and the page go.
        seeds: other seeds than the default 0, 1, 2 (0 when fast).
        workers: processes; default one per core, at most 8.
        fan_out: what the workers are: "processes" of this machine, or "ray".
        dry_run: make nothing; give a list of :class:`~anytune.jobs.forecast.Forecast` in place of the page.

    Returns:
        The page, ``folder/report.html``.

    Raises:
        AnytuneError: a sample cannot be fetched, or the folder cannot be written.
    """
    tell = reporter or Silent()
    check_fan_out(fan_out)
    if (model, fast) not in SCALES:
        raise unknown("demo model", model, {name for name, _ in SCALES}, SettingsError)
    scale = SCALES[model, fast]
    if seeds is not None:
        scale = Scale(**{**vars(scale), "seeds": tuple(seeds)})
    began = time.monotonic()
    store = Store(Path(folder) / "store")
    parts = gather(tell)
    plan = units(parts, scale, str(store.folder))
    if dry_run:
        forecasts: Any = forecast(model, plan, store)
        return forecasts
    count = worker_count(len(plan), workers)
    tell.say(estimate(model, plan, count))
    base = warmed(model, tell=tell) if model in WARMINGS else open_base(f"sample:{model}")
    add_base(base, store=store, name="v0")
    run_units(plan, title="demo", reporter=tell, workers=count, fan_out=fan_out)
    page = report(store, Path(folder) / "report.html")
    for sentence in verdicts(compare(runs_of(read_store(store.folder)[0]))):
        tell.say(sentence)
    tell.say(f"Done in {time.monotonic() - began:.0f} s. The page: {page}   The store: {store.folder}")
    return page


def gather(tell: Reporter) -> list[Part]:
    """Fetch what is needed, with a stand-in for a sample whose package manager this machine lacks."""
    parts = []
    for part in PARTS:
        try:
            if not is_fetched(part.sample):
                tell.say(f"fetching sample:{part.sample} (once; kept in the cache)")
            fetch(part.sample, progress=tell.say)
            sample_rows(part.sample, progress=tell.say)
        except SampleError as problem:
            if part.sample != "foldoc":
                raise
            tell.say(f"sample:{part.sample} is not to be had here ({problem.what}); taking sample:{STAND_IN.sample}")
            part = STAND_IN
            sample_rows(part.sample, progress=tell.say)
        parts.append(part)
    return parts


def estimate(model: str, plan: Sequence[Unit], workers: int) -> str:
    """What is about to happen and about how long it takes, in a sentence or two."""
    steps = sum(unit.steps for unit in plan)
    minutes = (steps / STEPS_PER_SECOND[model] / workers + 15) / 60
    said = f"{len(plan)} jobs with {steps:,} steps on {model} in {workers} processes: about {minutes:.0f} min"
    if model in WARMINGS and not warmed_folder(model).exists():
        first = WARMINGS[model].steps
        said += (
            f". First {model} is warmed for masked language modelling, {first} steps: about "
            f"{first / WARMING_STEPS_PER_SECOND / 60:.0f} min, once, then kept in the cache"
        )
    return said


def units(parts: Sequence[Part], scale: Scale, store: str) -> list[Unit]:
    """All jobs of the demo with what each waits for, in an order that keeps the processes busy."""
    domains = [{"source": f"sample:{part.sample}", "name": part.domain} for part in parts]
    tasks = [f"sample:{part.sample}" for part in parts]
    shared = {"store": store, "seeds": list(scale.seeds), "train_size": scale.train_size}
    runs = len(scale.seeds)
    plan = []
    for number, base in enumerate(("v1", "v2")):
        previous = "v0" if number == 0 else "v1"
        plan.append(Unit(
            base, pretrain,
            {"base": previous, "domains": [domains[number]], "names": [base], "watch": domains, "apart_from": tasks,
             "store": store, "training": scale.pretraining()},
            # a pre-training step costs as much as several tuning steps; this is for the time left only
            scale.pretraining_steps * 4, frozenset() if number == 0 else frozenset({"v1"}),
        ))  # fmt: skip
    for part, task in zip(parts, tasks, strict=True):
        plan.append(Unit(
            f"{part.sample} on v0", tune, {**shared, "base": "v0", "task": task, "training": scale.tuning()},
            scale.steps * runs,
        ))  # fmt: skip
    for base in ("v1", "v2"):
        for part, task in zip(parts, tasks, strict=True):
            old = frozenset({base, f"{part.sample} on v0"})
            arms = {**shared, "base": base, "task": task}
            plan.append(Unit(f"{part.sample} on {base}, direct", carry_over, {
                **arms, "method": "direct", "keep": "scores", "training": scale.tuning()}, 0, old))  # fmt: skip
            plan.append(Unit(f"{part.sample} on {base}, initialize", carry_over, {
                **arms, "method": "initialize", "keep": "weights", "training": scale.tuning()},
                scale.steps * runs, old))  # fmt: skip
            for arm, times in (("fresh", 1), ("fresh, whole budget", 2)):
                plan.append(Unit(f"{part.sample} on {base}, {arm}", tune, {
                    **arms, "training": scale.tuning(times), "keep": "scores", "tags": {"arm": arm}},
                    scale.steps * times * runs, frozenset({base})))  # fmt: skip
    return plan


def forecast(model: str, plan: Sequence[Unit], store: Store) -> list[Forecast]:
    """What the jobs would cost, in order; bases and deltas that are still to be made are stood in for."""
    planner = Planner()
    if not store.find("base") and model in WARMINGS and warmed_folder(model).exists():
        planner.stand_in("v0", warmed(model))
    elif not store.find("base"):
        planner.stand_in("v0", open_base(f"sample:{model}"))  # of the same shape, if it is still to be warmed
    made = []
    for unit in plan:
        given = dict(unit.arguments)
        pending = f"{given['task'].removeprefix('sample:')}-full-v0" if unit.function is carry_over else ""
        if pending in planner.deltas:
            made += planner.forecast("recycle", {**given, "delta": pending})
        elif unit.function is carry_over:
            with standing_in() if given["base"] in planner.bases else nullcontext():
                made += carry_over(**{**given, "base": planner.bases.get(given["base"], given["base"])}, dry_run=True)
        else:
            made += planner.forecast("pretrain" if unit.function is pretrain else "tune", given)
    return made


def carry_over(
    *, store: str, base: str, task: str, method: str, keep: str, seeds: Sequence[int], train_size: int,
    training: dict[str, Any], dry_run: bool = False, reporter: Reporter | None = None,
) -> list[Any]:  # fmt: skip
    """Recycle the v0 delta of each seed onto ``base``, with the same seed."""
    place = Store(store)
    made: list[Any] = []
    name = task.removeprefix("sample:")
    for seed in seeds:
        [outdated] = [
            entry
            for entry in place.find("delta", task=name, base="v0", seed=seed, tags={"arm": "fresh"})
            if entry.manifest.training["steps"] == training["steps"]
        ]
        made += recycle(
            outdated, base, store=place, method=method, task=task, train_size=train_size, seeds=[seed],
            training=training, keep=keep, dry_run=dry_run, reporter=reporter,
        )  # fmt: skip
    return made
