"""The lines of anytime matrices: what ``runs.jsonl`` and ``stages.jsonl`` hold of each cell and stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from anytune.evaluate.scores import number
from anytune.jobs.anytime_design import Design
from anytune.jobs.anytime_runs import Made, Planned, run_key_of
from anytune.jobs.arms import predictions
from anytune.jobs.extra_scores import FrozenBase
from anytune.jobs.runs import floor_of, words_floor
from anytune.store import Store


def cell_lines(plan: Design, planned: Sequence[Planned], store: Store) -> Iterator[dict[str, Any]]:
    """A line for each cell."""
    there = {entry.manifest.run: entry for entry in store.find("delta")}
    floors: dict[str, float | None] = {}
    words: dict[str, float | None] = {}
    probes: dict[str, float | None] = {}
    frozen: FrozenBase | None = None
    names = [subject.name for subject in plan.subjects]
    for cell in planned:
        entry = None if cell.plan is None else there[run_key_of(cell.plan)]
        task, stream = cell.task, cell.stream
        if task.content not in floors:
            floors[task.content], words[task.content] = floor_of(task), words_floor(task)
        if stream is None and cell.plan is not None and task.content not in probes:
            settings = cell.plan.settings
            frozen = frozen or FrozenBase(
                plan.base, settings.max_length, settings.evaluate_batch_size, cell.plan.runtime()
            )
            probes[task.content] = frozen.floor(task)
        manifest = None if entry is None else entry.manifest
        failed = cell.failed if manifest is None else manifest.failed
        yield {
            "arm": None if stream is None else stream.arm.name, "control": plan.control,
            "order": None if stream is None else stream.number,
            "stream": None if stream is None else [names[index] for index in stream.order],
            "flow": None if stream is None else stream.arm.flow, "seed": cell.seed, "stage": cell.stage,
            "after": None if stream is None else stream.after(cell.stage, plan.subjects),
            "task": names[cell.subject], "metric": task.metric, "metrics": list(plan.metrics),
            "train": len(task.train), "validation": None if entry is None else entry.score("validation"),
            "test": None if entry is None else entry.score("test"), "floor": floors[task.content],
            "words": words[task.content], "frozen_base": probes.get(task.content) if stream is None else None,
            "steps": 0 if manifest is None else manifest.steps,
            "seconds": 0.0 if manifest is None else manifest.seconds, "failed": failed,
            "run": None if manifest is None else manifest.run,
            "base": None if cell.plan is None else cell.plan.base.identity.backbone,
            "predictions": [] if entry is None else predictions(entry, task),
        }  # fmt: skip


def stage_lines(plan: Design, made: Sequence[Made]) -> Iterator[dict[str, Any]]:
    """A line for each stage, and one for a stage at which a stream diverged."""
    names = [subject.name for subject in plan.subjects]
    for stream, entries, failed in made:
        for number_, stage in enumerate(stream.stages[: len(entries) + bool(failed)]):
            manifest = entries[number_].manifest if number_ < len(entries) else None
            scores: Mapping[str, Mapping[str, Any]] = {} if manifest is None else manifest.scores
            yield {
                "arm": stream.arm.name, "control": plan.control, "order": stream.number,
                "stream": [names[index] for index in stream.order], "flow": stream.arm.flow, "seed": stream.seed,
                "stage": stage, "first": number_ == 0, "after": stream.after(stage, plan.subjects),
                "losses": {
                    name: {
                        "before": number(scores.get(f"before:heldout:{name}", {}).get("loss")),
                        "after": number(scores.get(f"heldout:{name}", {}).get("loss")),
                        "perplexity": number(scores.get(f"heldout:{name}", {}).get("perplexity")),
                    }
                    for name in names if f"heldout:{name}" in scores
                },
                "method": [] if manifest is None else [one.model_dump() for one in manifest.methods],
                "learning_rate": None if manifest is None else manifest.training.get("learning_rate"),
                "steps": 0 if manifest is None else manifest.steps,
                "tokens": 0 if manifest is None else manifest.tokens,
                "seconds": 0.0 if manifest is None else manifest.seconds,
                "failed": failed if manifest is None else None, "run": None if manifest is None else manifest.run,
            }  # fmt: skip
