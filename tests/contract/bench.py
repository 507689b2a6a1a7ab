"""Run any method of any room on the tiny base: through the job a user calls, or straight through the loop."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import anytune
from anytune.data.batches import BlockBatches, Encoded, ExampleBatches, encode_task
from anytune.data.domains import load_domain
from anytune.data.packing import pack
from anytune.data.tasks import Task, load_task
from anytune.engine.loop import train
from anytune.engine.run_state import TrainingResult
from anytune.engine.runtime import derive_seed, make_runtime, seeded
from anytune.engine.settings import TrainingSettings, training_settings
from anytune.jobs.outdated import Moving, OutdatedInRun
from anytune.jobs.prompt_sources import given_prompts
from anytune.methods import registry
from anytune.methods.objective import Classification, LanguageModelling
from anytune.methods.protocol import Batch, Method, Run
from anytune.models.base import load_base
from anytune.models.carried import load_carried
from anytune.models.soft_prompts import PromptSource, prompt_of
from anytune.store import Entry, Store
from tests.conftest import tiny_rows, write_rows
from tests.contract.settings import exercise

METHODS = registry.names()
TRAINING_METHODS = [name for name in METHODS if registry.get(name).trains]

TRAINING: dict[str, dict[str, Any]] = {
    "pretrain": {"steps": 8, "learning_rate": 3e-3, "batch_size": 4, "block_size": 32},
    "tune": {"steps": 8, "learning_rate": 5e-3, "batch_size": 8, "max_length": 32, "keep": "last"},
}
TRAINING["recycle"] = TRAINING["tune"]
# a prompt learns the tiny task at a higher rate than weights do
TRAINING["transfer"] = {**TRAINING["tune"], "learning_rate": 2e-2}
#: a room whose methods are run by the job of another
JOBS = {"transfer": "tune"}
COMMON = {"precision": "fp32", "evaluate_every": 4}


def room_of(name: str) -> str:
    room = name.split("/")[0]
    assert room in TRAINING, f"the contract cannot run the room '{room}' yet: teach tests/contract/bench.py to"
    return room


@dataclass
class Trained:
    """A model straight out of the loop, with what it was before."""

    model: nn.Module
    before: dict[str, Tensor]
    trained_names: set[str]
    head_names: set[str]
    result: TrainingResult
    #: loss on the training data, without dropout, before and after; where it was asked for
    losses: tuple[float, float] | None

    @property
    def after(self) -> dict[str, Tensor]:
        return state(self.model)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


class Cut:
    """Every batch of ``whole`` as ``pieces`` micro-batches of different sizes; padding stays as it is."""

    def __init__(self, whole: Any, pieces: int) -> None:
        self.whole, self.pieces = whole, pieces
        self.batches_per_epoch = whole.batches_per_epoch * pieces

    def batch(self, step: int) -> Batch:
        number, piece = divmod(step, self.pieces)
        batch = self.whole.batch(number)
        rows = len(batch["input_ids"])
        # pieces of 1, 2, 3, ... shares: they differ in rows (and so in masked tokens)
        borders = [rows * k * (k + 1) // (self.pieces * (self.pieces + 1)) for k in range(self.pieces + 1)]
        chosen = slice(borders[piece], borders[piece + 1])
        cut = {key: value[chosen] for key, value in batch.items() if isinstance(value, Tensor)}
        labels = cut["labels"]
        return {**cut, "num_items": int((labels != -100).sum()) if labels.ndim == 2 else len(labels)}


@dataclass
class Bench:
    """The tiny bases, task and domain, and a delta tuned on the first base."""

    base: Path
    other: Path
    task: Path
    domain: Path
    folder: Path
    _finished: dict[str, Entry] = field(default_factory=dict)

    def store(self, name: str) -> Store:
        """A store that holds the outdated delta and nothing else."""
        shelf = self.folder / "shelf"
        if not shelf.exists():
            anytune.tune(self.base, self.task, store=shelf, training={**TRAINING["tune"], **COMMON}, name="outdated")
        return Store(shutil.copytree(shelf, self.folder / name))

    def base_of(self, name: str) -> Path:
        """The base that a method's run begins at: for the second stage of a stream, what a first one has left.

        A prompt asks a frozen base for what it knows, so for prompts it is one that knows something.
        """
        if room_of(name) == "transfer":
            return self.learned()
        if not exercise(name).second_stage:
            return self.base
        store = Store(self.folder / f"begun-{name.replace('/', '-')}")
        [entry] = store.find("base") or anytune.pretrain(
            self.base, [self.domain], store=store, names=["begun"], seed=1,
            method={"name": name.split("/")[1], **exercise(name).settings},
            training={**TRAINING["pretrain"], **COMMON, "steps": 2},
        )  # fmt: skip
        return entry.folder

    def learned(self) -> Path:
        """The first base after it has learnt from texts like the task's."""
        folder = self.folder / "learned"
        if not folder.exists():
            task = write_rows(self.folder / "lore.csv", tiny_rows(150, 9))
            training = {**TRAINING["tune"], **COMMON, "steps": 60, "batch_size": 32, "evaluate_every": 60}
            [entry] = anytune.tune(self.base, task, store=self.folder / "lore", training=training)
            anytune.merge(entry, folder, store=self.folder / "lore")
        return folder

    def prompts(self) -> dict[str, list[Entry]]:
        """Stored prompts of that base: two of other tasks, and one that was tuned on the bench's own."""
        shelf = Store(self.folder / "prompts")
        found = {entry.name: entry for entry in shelf.find("delta")}
        others = {f"of-{word}": self.folder / f"{word}.csv" for word in ("walks", "finds")}
        tasks = {**others, "taught": self.task}
        for number, (name, task) in enumerate(tasks.items(), 1):
            if not task.exists():
                write_rows(task, tiny_rows(48, number))
            if name not in found:
                [found[name]] = anytune.tune(
                    self.learned(), task, store=shelf, name=name, seeds=[number],
                    method={"name": "prompt_tuning", "length": 4},
                    training={**TRAINING["transfer"], **COMMON, "steps": 20},
                )  # fmt: skip
        return {"sources": [found[name] for name in others], "teachers": [found["taught"]]}

    def given(self, name: str) -> dict[str, list[Entry]]:
        """The stored prompts that a method takes."""
        takes = registry.get(name).takes
        return {role: entries for role, entries in self.prompts().items() if role in takes} if takes else {}

    def read(self, name: str) -> dict[str, list[PromptSource]]:
        """The same as methods get them."""
        base, store = load_base(self.learned()), Store(self.folder / "prompts")
        return {
            role: [one.prompt for one in given_prompts(entries, base, store, role)]
            for role, entries in self.given(name).items()
        }

    def plain(self, name: str) -> Trained:
        """What the method is under its neutral settings: plain training, or the method it adds to."""
        added_to = exercise(name).plain
        return self.loop(name, methods=[registry.create(added_to, shared(name))] if added_to else [])

    def job(
        self,
        name: str,
        store: Store,
        *,
        settings: Mapping[str, Any] | None = None,
        reporter: Any = None,
        **training: Any,
    ) -> Entry:
        """Run the method as a user does and give back what is in the store."""
        room, given = room_of(name), exercise(name)
        method = {"name": name.split("/")[1], **(given.settings if settings is None else settings)}
        shared = {
            "store": store, "method": method, "reporter": reporter,
            "training": {**TRAINING[room], **COMMON, **given.training, **training},
        }  # fmt: skip
        if room == "pretrain":
            [entry] = anytune.pretrain(self.base_of(name), [self.domain], names=["upgraded"], **shared)
        elif room in ("tune", "transfer"):
            [entry] = anytune.tune(self.base_of(name), self.task, **self.given(name), **shared)
        else:
            outdated = self.lora() if given.outdated == "lora" else store.find("delta", tags={"arm": "fresh"})[0]
            [entry] = anytune.recycle(outdated, self.other, task=self.task, old_base=self.base, **shared)
        return entry

    def finished(self, name: str) -> Entry:
        """The method's job with the settings of its exercise, run once for all tests that only read it."""
        if name not in self._finished:
            self._finished[name] = self.job(name, self.store(f"finished-{name.replace('/', '-')}"))
        return self._finished[name]

    def loop(
        self, name: str, *, settings: Mapping[str, Any] | None = None, methods: Sequence[Method] | None = None,
        precise: bool = False, pieces: int = 1, together: int = 1, steps: int = 6, measured: bool = False,
        **training: Any,
    ) -> Trained:  # fmt: skip
        """The method straight through the loop.

        Args:
            methods: run these in place of the method; ``[]`` is plain training without any hook.
            precise: fp64 and no dropout.
            pieces: micro-batches that each batch is cut into.
            together: whole batches accumulated in a step.
            measured: also give the loss on the training data before and after, which costs a pass each.
        """
        room, given = room_of(name), exercise(name)
        if methods is None:
            methods = [registry.create(name, given.settings if settings is None else settings)]
            methods += [registry.create("tune/full")] if room == "recycle" else []
        options = training_settings(
            {
                **TRAINING[room],
                **COMMON,
                "keep": "last",
                **given.training,
                **training,
                "accumulation": pieces * together,
            }
        )
        base = load_base(self.other if room == "recycle" else self.base_of(name))
        tokenizer = base.tokenizer()
        head_names: list[str] = []
        batches: Any
        told: dict[str, Any] = {}
        with seeded(5):
            if room == "pretrain":
                blocks = pack(
                    load_domain(self.domain).texts, tokenizer, options.block_size, objective="mlm", cache=None
                )
                batches = BlockBatches(blocks, options.batch_size, 3, "mlm", tokenizer)
                model, _ = base.pretraining_model(7)
            else:
                task = load_task(self.task)
                told = {"label_names": task.label_names, **self.read(name)}
                encoded = encode_task(task.train, tokenizer, options.max_length, task.kind)
                batches = ExampleBatches(encoded, options.batch_size, 3)
                model, head_names = base.task_model(task.kind, task.label_names, 7)
            before_move = state(model)
            objective = LanguageModelling(base.anatomy) if room == "pretrain" else Classification()
            run = Run(seed=derive_seed(11), steps=steps, anatomy=base.anatomy, head_names=head_names,
                      outdated=self.outdated(name, task, encoded, options) if room == "recycle" else None,
                      validate=lambda model: -mean_loss(model, objective, [batches.batch(0)]),
                      objective=objective, batches=batches, base=base, device=torch.device("cpu"),
                      carried=load_carried(base.folder), **told)  # fmt: skip
            for method in methods:
                model = method.prepare(model, run)
            if precise:
                model = without_dropout(model.double())
            # what a method that does not train changes is the model it was given
            before = state(model) if all(method.trains for method in methods) else before_move
            names = {found for found, parameter in model.named_parameters() if parameter.requires_grad}
            seen = [batches.batch(number) for number in range(batches.batches_per_epoch)] if measured else []
            first_loss = mean_loss(model, objective, seen)
            result = train(
                model, methods=methods, objective=objective,
                batches=Cut(run.batches, pieces), steps=steps if all(method.trains for method in methods) else 0,
                settings=options, learning_rate=float(options.learning_rate or 0),
                runtime=make_runtime(options.precision, sharding=options.sharding),
            )  # fmt: skip
            for method in reversed(methods):
                model = method.finish(model, run)
        losses = (first_loss, mean_loss(model, objective, seen)) if measured else None
        return Trained(model, before, names, set(head_names), result, losses)

    def lora(self) -> Entry:
        """An outdated LoRA on the first base, for methods that carry factors; in a store of its own."""
        shelf = Store(self.folder / "lora")
        [entry] = shelf.find("delta") or anytune.tune(
            self.base, self.task, store=shelf, method={"name": "lora", "r": 4, "targets": "all-linear"},
            training={**TRAINING["tune"], **COMMON, "learning_rate": 1e-2, "steps": 30}, name="outdated",
        )  # fmt: skip
        return entry

    def outdated(self, name: str, task: Task, encoded: Encoded, settings: TrainingSettings) -> OutdatedInRun:
        """The outdated delta as a run's methods get it."""
        if exercise(name).outdated == "lora":
            outdated = self.lora()
        else:
            store = Store(self.folder / "shelf") if (self.folder / "shelf").exists() else self.store("for-the-loop")
            [outdated] = store.find("delta", tags={"arm": "fresh"})
        moving = Moving(outdated, load_base(self.base), load_base(self.other))
        return moving.in_run(task, encoded, settings, 3, make_runtime(settings.precision))


@torch.no_grad()
def mean_loss(model: nn.Module, objective: Any, batches: Sequence[Batch]) -> float:
    model.eval()
    losses = [objective.terms(objective.forward(model, batch), batch)["loss"].item() for batch in batches]
    return sum(losses) / len(losses) if losses else 0.0


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_prob"):  # attention asks for the number alone
            module.dropout_prob = 0.0
    prompt = prompt_of(model)
    if prompt is not None:
        prompt.config = replace(prompt.config, dropout=0.0)
    return model


def shared(name: str) -> dict[str, Any]:
    """The settings of a method's exercise that the method it adds to has, too; none where that is plain training."""
    added_to = exercise(name).plain
    known = {setting.name for setting in registry.describe(added_to)} if added_to else set()
    return {key: value for key, value in exercise(name).settings.items() if key in known}


def equal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
