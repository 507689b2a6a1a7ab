"""The training loop: one readable function around the hooks of ``methods/protocol.py``.

Order of things in a step: ``before_step``, then for each micro-batch ``prepare_batch``, forward, backward (weighted
by its share of the step's items), then ``after_backward``, clipping, the optimizer, ``after_step``. Nothing in a step
waits for the device except where the launcher's processes must agree on the number of items.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from anytune.engine.checkpoints import Snapshot, load_checkpoint, save_checkpoint
from anytune.engine.interrupts import InterruptedRunError, postponed_interrupt
from anytune.engine.processes import noticing_loss
from anytune.engine.progress import JsonLines, Reporter, Silent
from anytune.engine.run_state import RunState, TrainingResult, library_versions
from anytune.engine.runtime import Runtime, derive_seed
from anytune.engine.settings import TrainingSettings, decisive, differences, learning_rate_share
from anytune.engine.sharding import Alone, Copies, Placed, ShardedModel, check_sharded
from anytune.engine.stages import method_groups, stage_borders
from anytune.engine.tracking import RunLog, TrackedRun
from anytune.errors import DivergedError, TrainingError
from anytune.manifests import METRICS_NAME, CurvePoint
from anytune.methods.protocol import Batch, Method, Stage, overrides
from anytune.methods.step import StepModule, total, trainable
from anytune.metrics import METRICS

#: Steps between looks at the loss: each look waits for the device once.
LOG_EVERY = 10
#: Seconds between checkpoints where ``checkpoint_every`` is not given: the most that a kill can cost.
CHECKPOINT_SECONDS = 60.0


class Batches(Protocol):
    """Training data as a pure function of the micro-batch number."""

    batches_per_epoch: int

    def batch(self, step: int, /) -> Batch:
        """Micro-batch ``step`` (0, 1, 2, ... over all epochs), with its item count as ``num_items``."""


@dataclass(frozen=True)
class Evaluation:
    """Scores on held-out data: ``scores`` main metric first; ``better`` is larger for the better weights.

    A ``better`` of NaN never wins; where none wins, the last weights are kept.
    """

    scores: dict[str, float]
    loss: float | None
    better: float


def train(
    model: nn.Module,
    *,
    methods: Sequence[Method],
    objective: Any,
    batches: Batches,
    steps: int,
    settings: TrainingSettings,
    learning_rate: float,
    runtime: Runtime,
    evaluate: Callable[[nn.Module], Evaluation] | None = None,
    work: Path | None = None,
    title: str = "training",
    reporter: Reporter | None = None,
    tracked: TrackedRun | None = None,
) -> TrainingResult:
    """Train ``model`` in place; afterwards it holds the weights ``settings.keep`` asks for.

    The caller has prepared the model (``method.prepare``) and seeded torch. If ``work`` holds a checkpoint of this
    run, training goes on from it and ends in the same bits as a run that was never cut.

    Args:
        model: on any device; moved to the runtime's.
        steps: optimizer steps in all; 0 only evaluates.
        evaluate: called on the model in evaluation mode before step 0, every ``evaluate_every`` steps and at the end.
        work: folder for checkpoints and ``metrics.jsonl``; None keeps nothing.
        tracked: experiment trackers that get the same lines.

    Raises:
        TrainingError: the loss is not finite, nothing is trainable, a checkpoint cannot be written, or the one in
            ``work`` was made with other settings (each is named).
        InterruptedRunError: Ctrl-C or SIGTERM came (a checkpoint is written first, so that the same command goes on).
    """
    loop = Loop(
        model=model, methods=methods, objective=objective, batches=batches, steps=steps, settings=settings,
        learning_rate=learning_rate, runtime=runtime, evaluate=evaluate, work=work, title=title,
        reporter=reporter if reporter is not None and runtime.rank == 0 else Silent(),
        tracked=tracked if runtime.rank == 0 else None,
    )  # fmt: skip
    with noticing_loss():
        return loop.run()


@dataclass(kw_only=True)
class Loop:
    """One run: its state between steps, and what happens in a step."""

    model: nn.Module
    methods: Sequence[Method]
    objective: Any
    batches: Batches
    steps: int
    settings: TrainingSettings
    learning_rate: float
    runtime: Runtime
    evaluate: Callable[[nn.Module], Evaluation] | None
    work: Path | None
    title: str
    reporter: Reporter
    tracked: TrackedRun | None = None

    def __post_init__(self) -> None:
        self.model = self.model.to(self.runtime.device)
        if self.steps and not trainable(self.model):
            raise TrainingError("nothing is trainable", why="Every weight is frozen.", fix="another --method")
        self.module = StepModule(self.model, self.methods, self.objective, self.runtime.autocast())
        stages = next((method.stages() for method in self.methods if overrides(method, "stages")), (Stage(),))
        self.borders = stage_borders(stages, self.steps)
        self.every = self.settings.evaluate_every or max(1, math.ceil(self.steps / 10))
        self.state = RunState(model=self.model, methods=self.methods, runtime=self.runtime)
        self.saved_at = time.monotonic()
        self.sharded: ShardedModel | None = None
        # what the processes agreed on in this step's count of items: to stop after it, to write a checkpoint
        self.asked: Callable[[], bool] = lambda: False
        self.agreed_stop, self.agreed_save = False, False

    # ------------------------------------------------------------------ the run

    def run(self) -> TrainingResult:
        """The whole run; afterwards the number of threads is the caller's again."""
        threads = torch.get_num_threads()
        try:
            return self._run()
        finally:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)

    def _run(self) -> TrainingResult:
        if self.runtime.sharded and self.steps:
            check_sharded(self.methods)
            self.sharded = ShardedModel(self.module, self.model, self.runtime)
        resumed = self._resumed()
        if resumed is None and self.runtime.rank > 0:  # dropout must not be the same on every process's batches
            torch.manual_seed(derive_seed(torch.initial_seed(), "process", self.runtime.rank))
        path = self.work / METRICS_NAME if self.work and self.runtime.rank == 0 else None
        self.log = RunLog(JsonLines(path, resume_at=self.state.step), self.tracked)
        if self.tracked is not None:
            self.tracked.start(self.state.step, self.reporter.say)
        self.reporter.start(self.title, self.steps, self.state.step)
        try:
            if resumed is None:
                self._evaluate()
            for stage, begin, end in self.borders:
                if self.state.step < end and not self._is_enough():
                    self._stage(stage, begin, end, resumed)
                    resumed = None
        finally:
            self.reporter.finish()
            self.log.close()
        if resumed is not None:  # it was cut after its last step
            self.state.restore_random(resumed)
        self._keep()
        return self.state.result

    def _stage(self, stage: Stage, begin: int, end: int, resumed: Snapshot | None) -> None:
        placed = self.prepare(begin, resumed)
        with postponed_interrupt() as self.asked:
            while self.state.step < end:
                began = time.perf_counter()
                share = learning_rate_share(
                    self.state.step - begin, end - begin, self.settings.warmup, self.settings.schedule
                )
                self.state.summed += self.step(placed, share)
                self.state.step += 1
                evaluates = self.state.step % self.every == 0 or self.state.step == self.steps
                looks = evaluates or self.state.step % LOG_EVERY == 0 or self.state.step == end
                loss = self._mean_loss() if looks else None
                self.state.result.seconds += time.perf_counter() - began
                if loss is not None:
                    self._look(loss, share)
                if evaluates:
                    self._evaluate()
                    if self._is_enough():
                        return
                stop = self.agreed_stop if self.runtime.world > 1 else self.asked()
                if stop or self._checkpoint_due():
                    self._save()
                if stop:
                    raise InterruptedRunError(
                        f"{self.title}: interrupted at step {self.state.step} of {self.steps}",
                        why="Everything up to here is kept." if self.work else "",
                        fix="the same command again: it goes on at this step" if self.work else "",
                    )

    def prepare(self, begin: int = 0, resumed: Snapshot | None = None) -> Placed:
        """A stage's optimizer, and what the launcher wraps around the step module."""
        groups = method_groups(self.model, self.methods, self.learning_rate, self.settings.weight_decay)
        self.state.optimizer = torch.optim.AdamW(groups, fused=self.runtime.device.type in ("cpu", "cuda"))
        for method in self.methods:
            method.attach(self.model, self.state.optimizer)
        placed: Placed
        if self.sharded is not None:
            placed = self.sharded
        elif self.runtime.world > 1:
            placed = Copies(self.module, self.runtime, any(method.varying for method in self.methods))
        else:
            placed = Alone(self.runtime.accelerator.prepare(self.module), self.runtime.accelerator)
            self.state.optimizer = self.runtime.accelerator.prepare(self.state.optimizer)
        if resumed is not None and begin < self.state.step:
            self.state.restore_optimizer(resumed)
        if resumed is not None:
            # last, so that nothing made above has drawn from it
            self.state.restore_random(resumed)
        return placed

    def _keep(self) -> None:
        """Put the weights asked for into the model."""
        self.state.result.steps = self.state.step
        if self.settings.keep == "best" and self.state.best is not None:
            self.state.load(self.state.best)
        else:
            self.state.result.best_step = self.state.step
        if self.sharded is not None:
            self.sharded.check()
            self.sharded.undo()
        for name, tensor in trainable(self.model).items():
            if not torch.isfinite(tensor).all():  # the last step's own update is in no loss above
                raise self._not_finite(f"the weights of {name} are not finite after step {self.state.step}")

    # ------------------------------------------------------------------ a step

    def step(self, placed: Placed, share: float) -> Tensor:
        """One optimizer step; returns its loss (a mean over the step's items), still on the device."""
        runtime, settings, optimizer = self.runtime, self.settings, self.state.optimizer
        assert optimizer is not None
        self.model.train()
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share
        first = self.state.step * settings.accumulation
        micro = [self.batches.batch((first + k) * runtime.world + runtime.rank) for k in range(settings.accumulation)]
        items = self._count(micro)
        optimizer.zero_grad(set_to_none=True)
        for method in self.methods:
            method.before_step(self.model)
        summed = torch.zeros((), device=runtime.device)
        for k, batch in enumerate(micro):
            # DDP averages gradients over processes; times world makes it the sum we weight ourselves
            weight = batch["num_items"] * runtime.world / items
            batch = runtime.to_device(batch)
            for method in self.methods:
                batch = method.prepare_batch(batch)
            last = k == len(micro) - 1
            with contextlib.nullcontext() if last else placed.between():
                loss = total(placed.step(batch))
                if len(micro) > 1 or runtime.world > 1:
                    loss = loss * weight
                runtime.accelerator.backward(loss)
            summed += loss.detach()
        placed.settle()
        for method in self.methods:
            method.after_backward(self.model)
        if settings.max_grad_norm is not None:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        optimizer.step()
        for method in self.methods:
            method.after_step(self.model)
        return summed

    def _count(self, micro: Sequence[Batch]) -> int:
        """Items of the step over all processes; they and the examples are added to the result."""
        counts = [sum(batch["num_items"] for batch in micro), sum(len(batch["input_ids"]) for batch in micro)]
        if self.runtime.world > 1:
            # the clock of process 0 decides when a checkpoint is due, and a signal to any process stops all
            wishes = [self.asked(), self.runtime.rank == 0 and self._time_to_save()]
            everywhere = torch.tensor([*counts, *map(int, wishes)], device=self.runtime.device)
            torch.distributed.all_reduce(everywhere)
            *counts, stop, save = everywhere.tolist()
            self.agreed_stop, self.agreed_save = bool(stop), bool(save)
        self.state.result.items += counts[0]
        self.state.result.examples += counts[1]
        return counts[0]

    def _mean_loss(self) -> float:
        """Mean loss of the steps since the last look, over all processes."""
        return self.runtime.mean(self.state.summed).item() / (self.state.step - self.state.looked)

    def _look(self, loss: float, share: float) -> None:
        self._check(loss)
        self.state.summed.zero_()
        self.state.looked = self.state.step
        said = {f"{method.name}.{key}": value for method in self.methods for key, value in method.figures().items()}
        finite = {key: value for key, value in said.items() if math.isfinite(value)}
        self.log.write(kind="train", step=self.state.step, loss=loss, learning_rate=self.learning_rate * share,
                       seconds=round(self.state.result.seconds, 3), **finite)  # fmt: skip
        self.reporter.step(self.state.step, {"loss": loss})

    def _check(self, loss: float, what: str = "loss") -> None:
        if not math.isfinite(loss):
            raise self._not_finite(f"the {what} is {loss} at step {self.state.step}")

    def _not_finite(self, what: str) -> DivergedError:
        return DivergedError(
            f"{self.title}: {what} (learning rate {self.learning_rate:g})",
            why="The weights are no longer usable; nothing of this run is stored.",
            fix="a lower learning rate, or precision=fp32",
        )

    def _evaluate(self) -> None:
        if self.evaluate is None:
            return
        found = self.scored(self.evaluate)
        seconds = round(self.state.result.seconds, 3)
        scores: dict[str, float | None] = dict(found.scores)
        if found.loss is not None:
            # broken weights may still score by luck: all logits NaN is a vote for the first class
            self._check(found.loss, "loss on held-out data")
        self.state.result.curve.append(
            CurvePoint(step=self.state.step, seconds=seconds, scores=scores, loss=found.loss)
        )
        # scores stand in a mapping of their own: their names are the user's (a domain may be called "step")
        self.log.write(kind="validation", step=self.state.step, loss=found.loss, seconds=seconds, scores=scores)
        if self.settings.keep == "best":
            self.state.note_best(found.better)

    def _is_enough(self) -> bool:
        """Whether ``stop_at`` is reached or ``patience`` at its end; read off the curve, so a resumed run agrees."""
        if self.settings.stop_at is None and self.settings.patience is None:
            return False
        main = [next(iter(point.scores.items()), ("", None)) for point in self.state.result.curve]
        name = main[0][0] if main else ""
        sign = 1.0 if name in METRICS and METRICS[name].higher_is_better else -1.0  # of pre-training: losses
        values = [-math.inf if value is None or math.isnan(value) else sign * value for _, value in main]
        if not values:
            return False
        if self.settings.stop_at is not None and values[-1] >= sign * self.settings.stop_at:
            return True
        since = len(values) - 1 - values.index(max(values))
        return self.settings.patience is not None and since >= self.settings.patience

    def scored(self, evaluate: Callable[[nn.Module], Evaluation]) -> Evaluation:
        """Process 0's scores, in every process, so that all keep the same weights as the best."""
        self.model.eval()
        with torch.no_grad():
            if self.sharded is None:
                return self.runtime.first(lambda: evaluate(self.model))
            found: Evaluation = self.sharded.call(evaluate)  # each process holds a part of the weights
            return self.runtime.first(lambda: found)

    # ------------------------------------------------------------------ state

    def _checkpoint_due(self) -> bool:
        if self.state.step == self.steps:
            return False
        every = self.settings.checkpoint_every
        if every:
            return self.state.step % every == 0
        return self.agreed_save if self.runtime.world > 1 else self._time_to_save()

    def _time_to_save(self) -> bool:
        return time.monotonic() - self.saved_at > CHECKPOINT_SECONDS

    def _save(self) -> None:
        if self.work is None:
            return
        # or the same command would for ever go on from broken weights
        self._check(self.runtime.mean(self.state.summed).item())
        self.log.sync()
        work, snapshot = self.work, self._snapshot()
        self.runtime.first(lambda: save_checkpoint(work, snapshot, self.settings.checkpoints_kept))
        self.saved_at = time.monotonic()

    def _snapshot(self) -> Snapshot:
        snapshot = self.state.snapshot()
        snapshot.values |= {
            "run": self._decides(), "threads": torch.get_num_threads(), "versions": library_versions(),
        }  # fmt: skip
        return snapshot

    def _decides(self) -> dict[str, Any]:
        """What a checkpoint must have been made with for the run to go on from it."""
        return {
            **decisive(self.settings), "steps": self.steps, "learning_rate": self.learning_rate,
            **self.runtime.decides(),
            "methods": [method.name for method in self.methods],
        }  # fmt: skip

    def _resumed(self) -> Snapshot | None:
        """The checkpoint to go on from, its state put in place; None where the run begins at step 0."""
        if self.work is None:
            return None
        saved = load_checkpoint(self.work, lambda which: self.reporter.say(f"{self.title}: {which}"))
        if saved is None:
            return None
        changed = differences(saved.values["run"], self._decides())
        if changed:
            raise TrainingError(
                f"{self.title}: its checkpoint at step {saved.step} has other settings: {', '.join(changed)}",
                why="Going on with these would give weights that belong to neither run.",
                fix="the settings it was begun with, or resume='never' (--restart) to begin at step 0",
            )
        others = differences(saved.values["versions"], library_versions())
        if others:
            self.reporter.say(f"{self.title}: going on with other versions, so bits may differ: {', '.join(others)}")
        threads = saved.values["threads"]
        if threads != torch.get_num_threads():  # sums are split by threads: another count, other bits
            self.reporter.say(f"{self.title}: going on with {threads} threads, as it was begun")
            torch.set_num_threads(threads)
        self.state.restore(saved)
        return saved
