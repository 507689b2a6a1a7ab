"""One run in three places: the loop, the transformers Trainer by the adapter, and a loop written out by hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from anytune.data.batches import BlockBatches, ExampleBatches, encode_task
from anytune.data.domains import load_domain
from anytune.data.packing import pack
from anytune.data.tasks import load_task
from anytune.engine import derive_seed, learning_rate_share, make_runtime, method_groups, seeded, train
from anytune.engine.hf_trainer import MethodTrainer, hf_trainer
from anytune.engine.settings import training_settings
from anytune.methods import Classification, LanguageModelling, Method, Run, StepModule, create, total
from anytune.models.base import load_base
from anytune.models.carried import load_carried
from tests.contract.bench import TRAINING, Bench, room_of, state
from tests.contract.settings import exercise

SEED = 5


@dataclass
class Places:
    """What a run is made of, made anew for each place."""

    bench: Bench
    name: str
    accumulation: int = 1
    steps: int = 5
    #: False is plain training, without any hook
    with_method: bool = True
    training: dict[str, Any] = field(default_factory=dict)
    #: instead of those of its exercise
    settings: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self.room, given = room_of(self.name), exercise(self.name)
        # a short clip norm, so that clipping is seen; warm-up and decay, so that the schedule is
        self.options = training_settings(
            {**TRAINING[self.room], "precision": "fp32", "keep": "last", "warmup": 0.4, "weight_decay": 0.1,
             "max_grad_norm": 0.5, **given.training, "accumulation": self.accumulation, **self.training}
        )  # fmt: skip
        self.base = load_base(self.bench.other if self.room == "recycle" else self.bench.base_of(self.name))
        tokenizer = self.base.tokenizer()
        self.batches: Any
        self.told: dict[str, Any] = {}
        if self.room == "pretrain":
            blocks = pack(
                load_domain(self.bench.domain).texts, tokenizer, self.options.block_size, objective="mlm", cache=None
            )
            self.batches = BlockBatches(blocks, self.options.batch_size, 3, "mlm", tokenizer)
            self.objective: Any = LanguageModelling(self.base.anatomy)
        else:
            self.task = load_task(self.bench.task)
            self.encoded = encode_task(self.task.train, tokenizer, self.options.max_length, self.task.kind)
            self.batches = ExampleBatches(self.encoded, self.options.batch_size, 3)
            self.objective = Classification()
            self.told = {"label_names": self.task.label_names, **self.bench.read(self.name)}
        outdated = self.room == "recycle"
        self.outdated = self.bench.outdated(self.name, self.task, self.encoded, self.options) if outdated else None

    def methods(self) -> list[Method]:
        if not self.with_method:
            return []
        made = [create(self.name, exercise(self.name).settings if self.settings is None else self.settings)]
        return made + ([create("tune/full")] if self.room == "recycle" else [])

    def model(self) -> tuple[nn.Module, list[str]]:
        if self.room == "pretrain":
            return self.base.pretraining_model(7)
        return self.base.task_model(self.task.kind, self.task.label_names, 7)

    @property
    def rate(self) -> float:
        return float(self.options.learning_rate or 0)

    def run(self, head_names: list[str]) -> Run:
        return Run(seed=derive_seed(SEED, "method"), steps=self.steps, anatomy=self.base.anatomy,
                   head_names=head_names, outdated=self.outdated, objective=self.objective,
                   batches=self.batches, base=self.base, device=torch.device("cpu"),
                   carried=load_carried(self.base.folder), **self.told)  # fmt: skip

    # ------------------------------------------------------------------ the places

    def loop(self) -> dict[str, Tensor]:
        methods = self.methods()
        model, head_names = self.model()
        run = self.run(head_names)
        with seeded(derive_seed(SEED, "train")):
            for method in methods:
                model = method.prepare(model, run)
            train(
                model, methods=methods, objective=self.objective, batches=run.batches, steps=self.steps,
                settings=self.options, learning_rate=self.rate, runtime=make_runtime("fp32"),
            )  # fmt: skip
            for method in reversed(methods):
                model = method.finish(model, run)
        return state(model)

    def arguments(self, folder: Path, **changed: Any) -> TrainingArguments:
        options = self.options
        return TrainingArguments(
            **{
                "output_dir": str(folder), "seed": SEED, "max_steps": self.steps, "learning_rate": self.rate,
                "gradient_accumulation_steps": self.accumulation, "warmup_steps": options.warmup,
                "weight_decay": options.weight_decay, "max_grad_norm": options.max_grad_norm,
                "lr_scheduler_type": options.schedule, "save_strategy": "no", "report_to": "none",
                "disable_tqdm": True, "use_cpu": True, "logging_strategy": "no", **changed,
            }
        )  # fmt: skip

    def trainer(self, folder: Path, methods: list[Method] | None = None, **given: Any) -> MethodTrainer:
        model, head_names = self.model()
        changed = given.pop("arguments", {})
        return hf_trainer(
            model, self.methods() if methods is None else methods, args=self.arguments(folder, **changed),
            head_names=head_names, anatomy=self.base.anatomy, outdated=self.outdated, base=self.base,
            **{key: value for key, value in self.told.items() if key != "label_names"},
            **{"train_dataset": self.batches, **given},
        )  # fmt: skip

    def in_trainer(self, folder: Path, **given: Any) -> dict[str, Tensor]:
        trainer = self.trainer(folder, **given)
        torch.rand(3)  # nobody else's draws enter the run
        trainer.train()
        return state(trainer.inner)

    def by_hand(self) -> dict[str, Tensor]:
        methods, options = self.methods(), self.options
        model, head_names = self.model()
        run = self.run(head_names)
        torch.manual_seed(derive_seed(SEED, "train"))
        for method in methods:
            model = method.prepare(model, run)
        step_module = StepModule(model, methods, self.objective)
        optimizer = torch.optim.AdamW(method_groups(model, methods, self.rate, options.weight_decay), fused=True)
        for method in methods:
            method.attach(model, optimizer)
        for step in range(self.steps):
            model.train()
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * learning_rate_share(step, self.steps, options.warmup, options.schedule)
            micro = [run.batches.batch(step * self.accumulation + k) for k in range(self.accumulation)]
            items = sum(batch["num_items"] for batch in micro)
            for method in methods:
                method.before_step(model)
            for batch in micro:
                share = batch["num_items"] / items
                for method in methods:
                    batch = method.prepare_batch(batch)
                (total(step_module(batch)) * share).backward()
            for method in methods:
                method.after_backward(model)
            torch.nn.utils.clip_grad_norm_(
                [parameter for group in optimizer.param_groups for parameter in group["params"]], options.max_grad_norm
            )
            optimizer.step()
            for method in methods:
                method.after_step(model)
            optimizer.zero_grad()
        for method in reversed(methods):
            model = method.finish(model, run)
        return state(model)
