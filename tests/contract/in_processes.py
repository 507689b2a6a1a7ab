"""What each of two processes does for ``test_processes.py``: all of it in one start, which costs seconds.

Each check writes what it found into a JSON file of its own and of its process; the test compares.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import nn

import anytune
from anytune.data.batches import BlockBatches, ExampleBatches
from anytune.engine.interrupts import InterruptedRunError
from anytune.engine.loop import Evaluation, train
from anytune.engine.runtime import make_runtime, seeded
from anytune.engine.settings import training_settings
from anytune.engine.sharding import ShardedModel
from anytune.errors import AnytuneError, DataError
from anytune.methods import registry
from anytune.methods.protocol import Method
from anytune.methods.step import StepModule
from anytune.models.base import load_base
from anytune.store import Store
from tests.contract.bench import TRAINING_METHODS, Bench
from tests.contract.settings import OTHER_WAYS, exercise
from tests.engine.conftest import Line, Objective, Points

ALIKE: list[tuple[str, dict[str, Any] | None]] = [
    (name, settings)
    for name in TRAINING_METHODS
    if not exercise(name).no_accumulation
    for settings in (None, *OTHER_WAYS.get(name, []))
]
#: (method, sharding) of the runs that are cut in the middle
CUT = [(name, sharding) for name in ("tune/lora", "pretrain/sequential") for sharding in ("none", "fsdp")] + [
    ("tune/full", "fsdp"), ("recycle/initialize", "none"),
]  # fmt: skip
CUT_TRAINING = {"steps": 6, "accumulation": 2, "checkpoint_every": 2, "evaluate_every": 3, "keep": "best"}


#: of the run that is made by real launchers, and killed
LAUNCHED = {"steps": 150, "batch_size": 8, "max_length": 32, "precision": "fp32", "checkpoint_every": 5,
            "learning_rate": 1e-3}  # fmt: skip


def folder_name(*parts: str) -> str:
    return "-".join(part.replace("/", "-") for part in parts)


def case_name(name: str, settings: dict[str, Any] | None, sharding: str) -> str:
    return folder_name(name, *map(str, (settings or {}).values()), sharding)


def shardings(name: str) -> tuple[str, ...]:
    return ("none", "fsdp") if registry.get(name).sharded else ("none",)


def error_of(function: Callable[..., Any], *arguments: Any, **more: Any) -> list[str]:
    try:
        function(*arguments, **more)
    except AnytuneError as problem:
        return [type(problem).__name__, problem.what, problem.fix]
    return ["no error", "", ""]


class Checks:
    def __init__(self, bench: Bench, out: Path) -> None:
        self.bench, self.out, self.rank = bench, out, int(os.environ["RANK"])

    def weights(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file({key: value.contiguous() for key, value in tensors.items()}, self.out / f"{name}-{self.rank}")

    def loops(self) -> dict[str, Any]:
        """Every method for a few steps in fp64 without dropout, copied and split up."""
        found = {}
        for name, settings in ALIKE:
            for sharding in shardings(name):
                trained = self.bench.loop(name, settings=settings, precise=True, steps=3, sharding=sharding)
                self.weights(case_name(name, settings, sharding), trained.after)
                plain = all(type(parameter) is nn.Parameter for parameter in trained.model.parameters())
                hooked = [
                    key for key, module in trained.model.named_modules()
                    if type(module).__name__.startswith("FSDP") or any("__composable" in mark for mark in vars(module))
                ]  # fmt: skip
                found[case_name(name, settings, sharding)] = {
                    "counts": [trained.result.examples, trained.result.items], "plain": plain, "hooked": hooked
                }  # fmt: skip
        tied = self.bench.loop("pretrain/sequential", steps=1, sharding="fsdp").model
        found["tied"] = tied.get_input_embeddings().weight is tied.get_output_embeddings().weight
        half = self.bench.loop("tune/full", steps=2, sharding="fsdp", precision="bf16")
        self.weights("bf16", half.after)
        return found

    def cuts(self) -> dict[str, Any]:
        """A signal to process 1 alone ends both at the same step; the same command ends in the same bits."""
        found = {}
        for name, sharding in CUT:
            key = folder_name(name, sharding)
            stores = [Store(self.bench.folder / f"{which}-{key}") for which in ("cut", "uncut")]
            with pytest_patch() as patch:
                cut_at(patch, 5 if self.rank == 1 else None)
                what = error_of(self.bench.job, name, stores[0], sharding=sharding, **CUT_TRAINING)
            assert what[0] == InterruptedRunError.__name__, what
            entries = [self.bench.job(name, store, sharding=sharding, **CUT_TRAINING) for store in stores]
            again = self.bench.job(name, stores[0], sharding=sharding, **CUT_TRAINING)
            found[key] = {
                "said": what[1],
                "ids": [entry.manifest.id for entry in (*entries, again)],
                "files": [entry.manifest.files for entry in entries],
                "scores": [entry.manifest.scores for entry in entries],
                "references": [entry.reference for entry in entries],
                "environment": entries[0].manifest.environment.processes,
            }
        return found

    def errors(self) -> dict[str, Any]:
        runtime = make_runtime("fp32")

        def bad() -> None:
            raise DataError("no rows", fix="another file")

        def bug() -> None:
            raise ZeroDivisionError("a bug")

        found: dict[str, Any] = {"first": error_of(lambda: runtime.first(bad))}
        if self.rank == 1:
            found["bug"] = error_of(lambda: runtime.first(bug))
        else:
            try:
                runtime.first(bug)
            except ZeroDivisionError as problem:
                found["bug"] = ["ZeroDivisionError", str(problem), ""]
        found["value"] = runtime.first(lambda: self.rank)
        found["gathered"] = runtime.gather(self.rank)
        found["mean"] = runtime.mean(torch.tensor(float(self.rank))).item()
        found["refused"] = error_of(lambda: self.bench.loop("tune/full", methods=[Whole()], steps=1, sharding="fsdp"))
        found["not finite"] = error_of(lambda: fit(Points(poison_at=2 * 2 + 1)))
        found["varying"] = error_of(lambda: fit(Points(), model=Wandering()))
        return found

    def reached(self) -> dict[str, Any]:
        """Weights that no loss reaches; best weights by a score that only process 0 computes right."""
        lonely, declared = Lonely(), Wandering()
        fit(Points(), model=lonely)
        fit(Points(), model=declared, methods=[Varies()])
        best = Line()
        values = iter([0.0, 2.0, 1.0] if self.rank == 0 else [9.0] * 3)
        result = fit(
            Points(), model=best, evaluate=lambda model: Evaluation({"x": (value := next(values))}, None, value),
            evaluate_every=2,
        )  # fmt: skip
        for name, model in (("lonely", lonely), ("declared", declared), ("best", best)):
            self.weights(name, model.state_dict())
        return {"best_step": result.best_step, "drawn": fit.drawn}

    def taken_apart(self) -> dict[str, Any]:
        """A weight that was put back whole is noticed; taken off, no trace is left."""
        base = load_base(self.bench.base)
        model, _ = base.task_model("classification", ["a", "b"], 0)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        split = ShardedModel(StepModule(model, [], Objective()), model, make_runtime("fp32", sharding="fsdp"))
        parts = sum(parameter.to_local().numel() for parameter in model.parameters())
        split.check()
        model.classifier.bias = nn.Parameter(torch.zeros(2))
        noticed = error_of(split.check)
        split.undo()
        model.classifier.bias = nn.Parameter(before["classifier.bias"])
        after = model.state_dict()
        return {
            "noticed": noticed,
            "share": parts / sum(value.numel() for value in before.values()),
            "same": all(torch.equal(before[name], after[name]) for name in before),
        }

    def launched(self) -> dict[str, Any]:
        """The run of ``test_launchers.py``, uncut."""
        [entry] = anytune.tune(
            self.bench.base, self.bench.task, store=self.bench.folder / "uncut-launched", training=LAUNCHED
        )
        return {"id": entry.manifest.id}


class Whole(Method):
    name, room, sharded = "whole", "tune", False


class Varies(Method):
    name, room, varying = "varies", "tune", True


class Lonely(Line):
    """Has a weight that no loss reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.pooler = nn.Linear(2, 2)


class Wandering(Line):
    """Its loss reaches the second layer's bias in every other step only."""

    calls: ClassVar[int] = 0

    def forward(self, values):
        if self.training:
            self.calls += 1
        hidden = self.dropout(torch.tanh(self.inner(values)))
        return self.outer(hidden) if self.calls % 2 else nn.functional.linear(hidden, self.outer.weight)


def fit(batches, model=None, methods=(), evaluate=None, **training):
    with seeded(1):
        result = train(
            model or Line(), methods=list(methods), objective=Objective(), batches=batches, steps=4,
            settings=training_settings({"precision": "fp32", "evaluate_every": 1, **training}), learning_rate=0.05,
            runtime=make_runtime("fp32"), evaluate=evaluate, title="lines",
        )  # fmt: skip
        fit.drawn = torch.rand(1).item()
    return result


def pytest_patch():
    import pytest

    return pytest.MonkeyPatch.context()


def cut_at(patch, wanted: int | None) -> None:
    """SIGTERM to this process when it asks for the micro-batch ``wanted`` or a later one, once."""
    left = [wanted] if wanted is not None else []
    for cls in (ExampleBatches, BlockBatches):

        def batch(self, step, real=cls.batch):
            if left and step >= left[0]:
                left.clear()
                os.kill(os.getpid(), signal.SIGTERM)
            return real(self, step)

        patch.setattr(cls, "batch", batch)


def main() -> None:
    *places, out, names = sys.argv[1:]
    checks = Checks(Bench(*map(Path, places)), Path(out))
    for name in names.split(","):
        found = getattr(checks, name)()
        (checks.out / f"{name}-{checks.rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
