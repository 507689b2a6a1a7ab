"""What using a delta would cost: forecasts of ``evaluate``, ``merge`` and ``export``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from anytune.data.tasks import Task
from anytune.engine.runtime import make_runtime
from anytune.engine.settings import training_settings
from anytune.engine.trial import trial
from anytune.jobs.deltas import load_delta
from anytune.jobs.forecast import Forecast
from anytune.jobs.load import free_place, is_plugged_in, load, scored_task, store_for, unmergeable
from anytune.jobs.opening import base_of_delta, open_delta
from anytune.jobs.scoring import EncodedTask, Scorer
from anytune.jobs.tune import Source
from anytune.manifests import caches_unwritten
from anytune.methods.objective import objective_for
from anytune.models.adapters import ADAPTER_FILE
from anytune.models.base import Base
from anytune.models.delta_file import DELTA_FILE
from anytune.models.weights import weight_files
from anytune.store import Entry, Store

#: Batches of the split that are really scored.
TRIED_BATCHES = 2


class _NoBatches:
    """Of a run that makes no step."""

    batches_per_epoch = 0

    def batch(self, step: int, /) -> dict[str, Any]:
        raise IndexError(step)


def forecast_evaluation(
    delta: Entry | Source,
    task: Task | Source | None = None,
    *,
    split: str = "test",
    store: Store | Source | None = None,
    base: Base | Entry | Source | None = None,
    batch_size: int = 64,
    **columns: Any,
) -> Forecast:
    """What :func:`~anytune.jobs.load.evaluate` would cost, from two of its batches; takes what it takes."""
    with caches_unwritten():
        place = store_for(delta, store)
        entry = open_delta(delta, place)
        belongs, data, length = scored_task(entry, place, task, split, base, columns)
        rows = getattr(data, split)
        few = replace(data, **{split: rows[: TRIED_BATCHES * batch_size]})
        model, _ = load(entry, store=place, base=belongs)
        runtime = make_runtime("fp32")
        model.requires_grad_(False)
        scorer = Scorer(
            task=few, encoded=getattr(EncodedTask.of(few, belongs, length), split), split=split, base=belongs,
            batch_size=batch_size, runtime=runtime,
        )  # fmt: skip
        tried = trial(
            model, methods=[], objective=objective_for(data.kind, belongs.anatomy), batches=_NoBatches(),
            steps=0, settings=training_settings({}),
            learning_rate=0.0, runtime=runtime, evaluate=lambda current: scorer(current)[0],
        )  # fmt: skip
    seconds = tried.evaluation_seconds * len(rows) / max(1, len(getattr(few, split)))
    return Forecast(
        job="evaluate", name=entry.name, place=entry.folder, seed=entry.manifest.seed, seconds=seconds,
        precision=runtime.precision, precision_reason=runtime.reason, device=runtime.device.type,
        threads=torch.get_num_threads(), trial=replace(tried, evaluation_seconds=seconds),
        notes=(f"{len(rows):,} examples of {data.name} ({split}) are scored",),
    )  # fmt: skip


def forecast_writing(
    job: str,
    delta: Entry | Source,
    out: str | Path,
    *,
    store: Store | Source | None = None,
    base: Base | Entry | Source | None = None,
) -> Forecast:
    """What :func:`~anytune.jobs.load.merge` or :func:`~anytune.jobs.load.export` (``job``) would write, and where.

    Raises:
        StoreError: ``out`` exists, or the base is not to be found; as the job itself.
        DeltaError: only the delta's scores were kept.
    """
    final = free_place(out)
    with caches_unwritten():
        place = store_for(delta, store)
        entry = open_delta(delta, place)
        if entry.manifest.form == "scores":
            load_delta(entry)  # raises: there are no weights
        plugged_in = is_plugged_in(entry)
        if plugged_in and job == "merge":
            raise unmergeable(entry)
        adapter = job == "export" and (plugged_in or entry.manifest.form == "peft")
        files = [entry.folder / (DELTA_FILE if plugged_in else ADAPTER_FILE)]
        if not adapter:
            files = weight_files(base_of_delta(entry, place, base).folder)
    beside = "the delta as it is stored" if plugged_in else "the adapter as a plain PEFT folder"
    what = beside if adapter else "base and delta as one plain model folder"
    return Forecast(
        job=job, name=final.name, place=final.parent, seed=entry.manifest.seed,
        disk=sum(file.stat().st_size for file in files), notes=(what,),
    )  # fmt: skip
