"""What a job would do and cost, without doing it: ``--dry-run``, or ``dry_run=True`` in Python.

A forecast comes from three real steps of the run itself (:mod:`anytune.engine.trial`) and leaves nothing behind: no
artefact, no work folder, no cache. Data that the run needs anyway (a sample, a hub model) is fetched.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

from anytune.engine.checkpoints import newest
from anytune.engine.progress import Reporter
from anytune.engine.runtime import Runtime
from anytune.engine.trial import Trial, trial
from anytune.jobs.resuming import RunIdentity
from anytune.manifests import caches_unwritten
from anytune.methods.protocol import Run
from anytune.store import Store
from anytune.store.names import slug

PENDING = "measured on a stand-in for what an earlier run of this command makes"
P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class Prepared:
    """A run that is ready to begin.

    Attributes:
        arguments: what :func:`~anytune.engine.loop.train` and :func:`~anytune.engine.trial.trial` take by name.
    """

    model: nn.Module
    run: Run
    arguments: dict[str, Any]
    head_names: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Forecast:
    """One run that would be made, or one that need not be.

    Attributes:
        job: "tune", "pretrain", "recycle" ...
        name: of what would be stored.
        place: folder it would be stored in, or stands in already.
        state: "new"; "begun", if it would go on from the checkpoint after step ``done``; "stored", if the same run is
            in the store and would be given back.
        steps: optimizer steps of the whole run.
        seconds: that the run would still take, evaluation included; data and models are loaded already.
        disk: bytes of the artefact, about.
        trial: what was measured; None where nothing would be run.
        notes: what else there is to know.
    """

    job: str
    name: str
    place: Path
    seed: int = 0
    state: str = "new"
    done: int = 0
    steps: int = 0
    seconds: float = 0.0
    disk: int = 0
    precision: str = ""
    precision_reason: str = ""
    device: str = ""
    threads: int = 0
    processes: int = 1
    trial: Trial | None = None
    notes: tuple[str, ...] = ()


_STANDING_IN: ContextVar[bool] = ContextVar("standing_in", default=False)


@contextmanager
def standing_in() -> Iterator[None]:
    """Inside, runs are forecast on stand-ins for what earlier jobs would make; none of them is in the store yet."""
    before = _STANDING_IN.set(True)
    try:
        yield
    finally:
        _STANDING_IN.reset(before)


def unwritten(job: Callable[P, T]) -> Callable[P, T]:
    """A job that writes no cache when it is called with ``dry_run=True``."""

    @functools.wraps(job)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        if not kwargs.get("dry_run"):
            return job(*args, **kwargs)
        with caches_unwritten():
            return job(*args, **kwargs)

    return called


def forecast_run(
    store: Store,
    kind: str,
    identity: RunIdentity,
    runtime: Runtime,
    prepared: Callable[[], AbstractContextManager[Prepared]],
    *,
    name: str,
    keeps_weights: bool = True,
    like: Forecast | None = None,
    afterwards: float = 0.0,
    pending: bool = False,
) -> Forecast:
    """The forecast of one run.

    Args:
        prepared: makes the run ready to begin, in a context that is left without a trace.
        keeps_weights: whether what was trained is stored, or scores alone.
        like: a forecast of the same run with another seed, which costs the same.
        afterwards: evaluations made after the run, as a multiple of one made during it.
        pending: the run needs what an earlier one of the same command makes; another base or delta of the same shape
            stands for it here, so nothing in the store can be this run.
    """
    pending = pending or _STANDING_IN.get()
    place = store.folder / {"base": "bases", "delta": "deltas"}[kind]
    made = Forecast(
        job=str(identity.decides["job"]), name=slug(name), place=place, seed=identity.decides["seed"],
        precision=runtime.precision,
        precision_reason=runtime.reason, device=runtime.device.type, threads=torch.get_num_threads(),
        processes=runtime.world, notes=(PENDING,) if pending else (),
    )  # fmt: skip
    finished = [] if pending else store.find(kind, run=identity.key)
    if finished:
        manifest = finished[-1].manifest
        return replace(
            made, state="stored", name=finished[-1].name, place=finished[-1].folder, steps=manifest.steps,
            done=manifest.steps,
        )  # fmt: skip
    last = None if pending else newest(store.work_folder(identity.key))
    if last is not None:
        made = replace(made, state="begun", done=last.step)
    if like is not None and like.trial is not None:
        tried, steps = like.trial, like.steps
    else:
        with prepared() as ready:
            tried, steps = trial(ready.model, **ready.arguments), ready.arguments["steps"]
    evaluations = sum(step > made.done or not made.done for step in tried.evaluated)
    return replace(
        made, steps=steps, trial=tried,
        seconds=(steps - made.done) * tried.step_seconds + (evaluations + afterwards) * tried.evaluation_seconds,
        disk=0 if not keeps_weights else tried.memory.weights if kind == "base" else 4 * tried.trainable,
    )  # fmt: skip


def summed(forecasts: Iterable[Forecast], workers: int = 1) -> dict[str, float]:
    """Of several forecasts: ``runs`` to make, ``stored`` already, ``steps`` and ``seconds`` that remain, ``disk``.

    Args:
        workers: processes that share the runs out; memory is needed in each of them.
    """
    every = list(forecasts)
    needed = [one for one in every if one.state != "stored"]
    memory = max((one.trial.memory.total for one in needed if one.trial is not None), default=0)
    return {
        "runs": len(needed),
        "stored": len(every) - len(needed),
        "steps": sum(one.steps - one.done for one in needed),
        "seconds": sum(one.seconds for one in needed) / workers,
        "disk": sum(one.disk for one in needed),
        "memory": memory * min(workers, max(1, len(needed))),
    }


def announce_precision(runtime: Runtime, asked: str, reporter: Reporter) -> None:
    """Say it where bf16 was chosen and not asked for."""
    if asked == "auto" and runtime.precision == "bf16":
        reporter.say(f"bf16 autocast: {runtime.reason}; precision=fp32 switches it off")
