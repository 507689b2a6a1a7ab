"""A finished tuning run on its way into the store: scored on test, taken from the model, written with its manifest."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from anytune.engine.loop import Evaluation
from anytune.engine.run_state import TrainingResult
from anytune.engine.runtime import Runtime
from anytune.jobs.deltas import AnyDelta, delta_of
from anytune.jobs.scoring import DECODED_WHILE_TRAINING, Answers, EncodedTask, Scorer, write_predictions
from anytune.jobs.stored_sample import write_sample
from anytune.jobs.task_features import keep_features
from anytune.jobs.tuning_plan import TuningPlan, manifest_of
from anytune.manifests import METRICS_NAME, Manifest
from anytune.methods.protocol import overrides
from anytune.models.adapters import AdapterDelta
from anytune.models.probe import make_probe
from anytune.models.soft_prompts import prompt_of
from anytune.models.weights import write_tensors
from anytune.store import Entry, Store

PREDICTIONS_NAME = "predictions.jsonl"


def scorer_of(plan: TuningPlan, encoded: EncodedTask, split: str, runtime: Runtime) -> Scorer:
    """What scores a model of the run on one of its splits."""
    return Scorer(
        task=plan.task, encoded=getattr(encoded, split), split=split, base=plan.base,
        batch_size=plan.settings.evaluate_batch_size, runtime=runtime,
    )  # fmt: skip


@dataclass
class Outcome:
    """A finished run on its way into the store."""

    plan: TuningPlan
    key: str
    model: nn.Module
    head_names: list[str]
    result: TrainingResult
    encoded: EncodedTask
    runtime: Runtime
    work: Path

    def keep(self, store: Store) -> Entry:
        """Score it on test and write it, whole or not at all; the model is on the CPU afterwards."""
        plan = self.plan
        on_test, answers = self.evaluate("test")
        scores = {"validation": self.validation_scores(), "test": dict(on_test.scores)}
        if plan.extra is not None:
            scores |= plan.extra(self.model, self.runtime)
        self.model.cpu()
        delta = self.delta() if plan.keep == "weights" else None
        manifest = self.manifest(delta, scores)
        keep_sample = plan.keep_sample and delta is not None
        beside = {name: one for method in plan.methods for name, one in method.files().items()} if delta else {}

        def write(folder: Path) -> None:
            if isinstance(delta, AdapterDelta):
                delta.save(folder, plan.base.identity)
            elif delta is not None:
                delta.save(folder)
            write_predictions(folder / PREDICTIONS_NAME, plan.task, "test", answers)
            for name, tensors in beside.items():
                write_tensors(folder / name, dict(tensors), {"format": "pt"})
            if keep_sample:
                manifest.sample = write_sample(folder, plan.task)
            if (self.work / METRICS_NAME).exists():
                shutil.copy(self.work / METRICS_NAME, folder / METRICS_NAME)

        entry = Entry(store.add(manifest, write), manifest)
        if delta is not None and prompt_of(self.model) is not None:
            keep_features(entry, self.model, plan.base, plan.task, self.runtime)
        return entry

    def evaluate(self, split: str) -> tuple[Evaluation, Answers]:
        """The tuned model's scores and answers on one split."""
        return scorer_of(self.plan, self.encoded, split, self.runtime)(self.model)

    def validation_scores(self) -> dict[str, float | None]:
        """Of the weights that are kept: they stand in the curve, unless a method changed the model at the end."""
        kept = self.result.best_step if self.plan.settings.keep == "best" else self.result.steps
        points = [point for point in self.result.curve if point.step == kept]
        whole = scorer_of(self.plan, self.encoded, "validation", self.runtime).is_whole(DECODED_WHILE_TRAINING)
        if points and whole and not any(overrides(method, "finish") for method in self.plan.methods):
            return dict(points[-1].scores)
        return dict(self.evaluate("validation")[0].scores)

    def delta(self) -> AnyDelta:
        """What is stored: the outdated weights as they were moved, if nothing was trained; else what training made."""
        if self.plan.outdated is not None and all(method.moves_only for method in self.plan.methods):
            return self.plan.outdated.delta  # bit for bit, so that a chain of upgrades adds no rounding
        return delta_of(self.model, self.plan.base, self.head_names, self.plan.base.identity)

    def manifest(self, delta: AnyDelta | None, scores: dict[str, Any]) -> Manifest:
        """What is written beside the weights: how they were made, what they score, what it cost."""
        plan, result = self.plan, self.result
        form: Literal["peft", "full", "scores"] = "scores"
        if delta is not None:
            form = "peft" if isinstance(delta, AdapterDelta) else "full"
        made = manifest_of(plan, self.key, self.runtime, form=form)
        made.training = {**made.training, "steps": result.steps or plan.settings.steps}
        made.scores, made.curve = scores, result.curve
        made.steps, made.best_step = result.steps, result.best_step
        made.seconds, made.examples = round(result.seconds, 3), result.examples
        made.probe = make_probe(self.model, plan.base.config.vocab_size, plan.seed) if delta else None
        found = [note for method in plan.methods for note in method.notes()]
        made.notes = [*made.notes, *found, *truncation_notes(self.encoded, plan.settings.max_length)]
        return made


def truncation_notes(encoded: EncodedTask, max_length: int) -> list[str]:
    """A note if texts were longer than ``max_length`` tokens: how many of how many."""
    cut, whole = encoded.train.truncated, len(encoded.train)
    return [f"{cut} of {whole} training texts are longer than {max_length} tokens and were cut"] if cut else []
