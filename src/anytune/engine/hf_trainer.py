"""Methods inside the transformers Trainer: one adapter, the same weights as the loop of ``engine/loop.py``.

The Trainer's model is a :class:`TrainerStep`: a step module that takes a batch as keywords, weights it by its share
of the step's items and saves itself under the plain model's names. The hooks are called by a callback, at the same
moments as in the loop::

    create_optimizer         method.attach(model, optimizer)
    on_train_begin           random state as prepare left it (or, resumed, the checkpoint's weights and method states)
    on_step_begin            method.before_step(model)
    forward                  method.prepare_batch(batch), forward, loss terms, times this micro-batch's share of items
    on_pre_optimizer_step    method.after_backward(model), then clipping
    on_optimizer_step        method.after_step(model)
    on_save                  checkpoint-N/method_state.safetensors and .json
    on_train_end             model = method.finish(model, run)

The Trainer itself clips before ``on_pre_optimizer_step``, so it is told not to (``max_grad_norm=0``) and its value
is used here. Optimizer and schedule are the loop's. Data may be anything the Trainer takes; to get the loop's very
batches in the loop's order, hand it an ``ExampleBatches`` or ``BlockBatches``.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from anytune import compat
from anytune.data.batches import Encoded
from anytune.engine.checkpoints import random_state, restore_random_state
from anytune.engine.runtime import derive_seed, seeded
from anytune.engine.settings import learning_rate_share
from anytune.engine.stages import method_groups
from anytune.engine.trainer_arguments import (
    SCHEDULES,
    check_arguments,
    check_methods,
    check_weights,
    default_objective,
    is_batches,
    named_labels,
    planned_steps,
    value_of,
)
from anytune.engine.trainer_state import load_method_state, save_method_state
from anytune.errors import SettingsError, TrainingError
from anytune.methods import registry
from anytune.methods.outdated import OutdatedWeights
from anytune.methods.protocol import Batch, Method, Run
from anytune.methods.step import StepModule, total, trainable
from anytune.models.adapters import AdapterDelta
from anytune.models.anatomy import Anatomy, anatomy_of
from anytune.models.base import Base, save_hyperprompt
from anytune.models.carried import load_carried
from anytune.models.layout import is_hyperprompt
from anytune.models.soft_prompts import PromptSource, prompt_of
from anytune.models.weights import SINGLE_FILE, write_tensors

#: Where the Trainer puts the number of items of the whole step.
STEP_ITEMS = "num_items_in_batch"


def hf_trainer(
    model: nn.Module,
    methods: str | Mapping[str, Any] | Sequence[Any],
    *,
    args: TrainingArguments,
    head_names: Sequence[str],
    objective: Any = None,
    anatomy: Anatomy | None = None,
    install_outdated: Callable[[nn.Module], nn.Module] | None = None,
    outdated: OutdatedWeights | None = None,
    base: Base | None = None,
    sources: Sequence[PromptSource] = (),
    teachers: Sequence[PromptSource] = (),
    callbacks: Sequence[TrainerCallback] = (),
    **trainer: Any,
) -> MethodTrainer:
    """A transformers Trainer that trains ``model`` with methods; the same weights as ``anytune tune`` with that seed.

    ``args.seed`` is the run's seed: what methods draw as they prepare, and dropout, come from it. The model's own head
    is drawn by whoever made the model. ``args.learning_rate`` counts; the rate a method suggests does not.

    Args:
        model: a transformers model with its head, such as ``Base.task_model`` gives; changed in place.
        methods: names, mappings or Method objects: ``["lora"]``, ``{"name": "lora", "r": 4}``.
        args: the Trainer's arguments; a copy of them is used.
        head_names: state-dict names that the base file does not hold (the second thing ``Base.task_model`` gives);
            ``()`` for a pre-training model.
        objective: the plain objective; by default what the model's class says.
        anatomy: of the model's kind; by default read from its config.
        install_outdated: recycle methods only: puts the outdated weights into the model.
        outdated: recycle methods only: all of the outdated weights, their old base included; in place of
            ``install_outdated``.
        base: the base the model was made from, for methods that need its tokenizer or pre-training head.
        sources: stored prompts of other tasks, for methods that take them; read by ``jobs.prompt_sources``.
        teachers: stored prompts of this task, likewise.
        callbacks: further callbacks; the methods' hooks come before them.
        trainer: further arguments of the Trainer: ``train_dataset`` (anything it takes, or ``ExampleBatches`` /
            ``BlockBatches``), ``eval_dataset`` (anything it takes, or an ``Encoded``), ``compute_metrics``, ...

    Raises:
        MethodError: the methods collide, have several stages, or do not train.
        SettingsError: an argument is at odds with training by methods; says what to do instead.
    """
    return MethodTrainer(
        model, methods, args=args, head_names=head_names, objective=objective, anatomy=anatomy,
        install_outdated=install_outdated, outdated=outdated, base=base, sources=sources, teachers=teachers,
        callbacks=callbacks, **trainer,
    )  # fmt: skip


class TrainerStep(StepModule):
    """A step module as the Trainer calls a model: ``forward(**batch) -> {"loss": ..., "logits": ...}``."""

    #: the Trainer then hands over the number of items of the step, and leaves normalising to us
    accepts_loss_kwargs = True
    #: read by the Trainer after loading a checkpoint
    _keys_to_ignore_on_save = None

    def __init__(self, model: nn.Module, methods: Sequence[Method], objective: Any, processes: int) -> None:
        super().__init__(model, methods, objective)
        self.processes = processes

    def forward(self, **inputs: Any) -> dict[str, Any]:  # type: ignore[override]
        """In training the loss with all terms, as this micro-batch's share of the step; else the plain objective's."""
        step_items = inputs.pop(STEP_ITEMS, None)
        batch: Batch = inputs
        if not self.training:
            output = self.plain.forward(self.model, batch)
            loss = total(self.plain.terms(output, batch))
            # the Trainer multiplies by the number of processes where it has counted items
            found = {"loss": loss if step_items is None else loss / self.processes}
            # one row of logits per example, or a metric could not be told which label is whose
            return {**found, "logits": output.logits} if batch["labels"].ndim == 1 else found
        if step_items is None:
            raise TrainingError(
                "the Trainer did not say how many items the step has",
                why="Micro-batches could not be weighted.",
                fix="training by the loop: anytune tune",
            )
        share = items_of(batch, self.plain) / step_items
        for method in self.methods:
            batch = method.prepare_batch(batch)
        return {"loss": total(super().forward(batch)) * share}

    def state_dict(self, *arguments: Any, **settings: Any) -> dict[str, Any]:  # type: ignore[override]
        """The model's own state under the model's own names."""
        return self.model.state_dict(*arguments, **settings)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Into the model, by its own names."""
        return self.model.load_state_dict(state_dict, strict=strict, assign=assign)


def items_of(batch: Batch, objective: Any) -> int:
    """What the loss of a micro-batch is a mean over: its ``num_items``, or counted from its labels.

    Examples for ``labels [b]``; for ``labels [b, n]`` the positions that are not -100, from the second one on where a
    causal model predicts the next token.
    """
    if "num_items" in batch:
        return int(batch["num_items"])
    labels = batch["labels"]
    if labels.ndim == 1 or labels.is_floating_point():
        return len(labels)
    shifted = getattr(getattr(objective, "anatomy", None), "objective", "") == "clm"
    return int((labels[:, 1:] if shifted else labels).ne(-100).sum())


class MethodTrainer(Trainer):
    """The transformers Trainer around methods; made by :func:`hf_trainer`."""

    def __init__(
        self,
        model: nn.Module,
        methods: str | Mapping[str, Any] | Sequence[Any],
        *,
        args: TrainingArguments,
        head_names: Sequence[str],
        objective: Any = None,
        anatomy: Anatomy | None = None,
        install_outdated: Callable[[nn.Module], nn.Module] | None = None,
        outdated: OutdatedWeights | None = None,
        base: Base | None = None,
        sources: Sequence[PromptSource] = (),
        teachers: Sequence[PromptSource] = (),
        callbacks: Sequence[TrainerCallback] = (),
        **trainer: Any,
    ) -> None:
        self.methods: list[Method] = registry.parse(methods) if methods else []
        check_methods(self.methods)
        check_arguments(args, trainer)
        self.clip_norm, args = float(args.max_grad_norm or 0.0), copy.copy(args)
        args.max_grad_norm = 0.0
        args.remove_unused_columns = False  # methods may ask for columns that no model knows
        args.label_names = args.label_names or ["labels"]
        args.average_tokens_across_devices = True
        data = trainer.get("train_dataset")
        steps = planned_steps(data, args)
        if data is not None and is_batches(data):
            args.max_steps = steps
            if "epoch" in (value_of(args.save_strategy), value_of(args.eval_strategy)):
                raise SettingsError(
                    "save_strategy or eval_strategy is 'epoch'",
                    why="Batches run through the whole training without a stop between epochs.",
                    fix=f"eval_strategy='steps', eval_steps={data.batches_per_epoch}",
                )
        anatomy = anatomy or anatomy_of(model)
        objective = objective or default_objective(model, anatomy)
        self.run = Run(
            seed=derive_seed(args.seed, "method"), steps=steps, anatomy=anatomy, head_names=head_names,
            install_outdated=install_outdated, outdated=outdated, objective=objective, base=base, device=args.device,
            batches=data if data is not None and is_batches(data) else None,
            carried=load_carried(base.folder) if base is not None else {},
            sources=sources, teachers=teachers, label_names=named_labels(model),
        )  # fmt: skip
        with seeded(derive_seed(args.seed, "train")):
            for method in self.methods:
                model = method.prepare(model, self.run)
            if self.run.batches is not None and self.run.batches is not data:
                trainer["train_dataset"] = self.run.batches  # a method trains on texts of its own
            self.random_at_start = random_state(args.device)
        check_weights(model)
        if not trainable(model):
            raise TrainingError("nothing is trainable", why="Every weight is frozen.", fix="another method")
        self.resumed: Path | None = None
        self.trained = False
        super().__init__(
            model=TrainerStep(model, self.methods, objective, args.world_size), args=args,
            callbacks=[_Hooks(self), *callbacks], **trainer,
        )  # fmt: skip

    # ------------------------------------------------------------------ the run

    @property
    def step_module(self) -> TrainerStep:
        """The step module, out of whatever a launcher wraps around it."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def inner(self) -> nn.Module:
        """The model that is trained; after training, what the methods' ``finish`` gave."""
        return self.step_module.model

    def train(self, resume_from_checkpoint: str | bool | None = None, *arguments: Any, **settings: Any) -> Any:
        """Train; see the Trainer. A resumed run ends in the same bits as one that was never cut.

        Raises:
            TrainingError: it was trained already, or the checkpoint lacks the methods' part.
        """
        if self.trained:
            raise TrainingError(
                "this trainer has trained already", why="Its methods are finished.", fix="anytune.hf_trainer(...) anew"
            )
        if resume_from_checkpoint is True:
            resume_from_checkpoint = compat.last_checkpoint(str(self.args.output_dir))
            if resume_from_checkpoint is None:
                raise TrainingError(f"{self.args.output_dir} holds no checkpoint", fix="train() from the start")
        self.resumed = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        if self.resumed is not None:
            load_method_state(self.resumed, None, self.methods)  # refuse before anything is loaded
        return super().train(resume_from_checkpoint or None, *arguments, **settings)

    def get_batch_samples(self, *arguments: Any, **settings: Any) -> tuple[list[Batch], int]:
        """The micro-batches of a step and how many items they have over all processes, as the loop counts them."""
        samples, _ = super().get_batch_samples(*arguments, **settings)
        objective = self.step_module.plain
        counted = [{**sample, "num_items": items_of(sample, objective)} for sample in samples]
        items = sum(sample["num_items"] for sample in counted)
        if self.args.world_size > 1:
            items = int(self.accelerator.gather(torch.tensor([items], device=self.args.device)).sum())
        return counted, items

    def create_optimizer(self, *arguments: Any, **settings: Any) -> torch.optim.Optimizer:
        """AdamW on the methods' parameter groups, as in the loop."""
        if self.optimizer is None:
            args = self.args
            groups = method_groups(self.inner, self.methods, args.learning_rate, args.weight_decay)
            fused = value_of(args.optim) == "adamw_torch_fused" and args.device.type in ("cpu", "cuda")
            self.optimizer = torch.optim.AdamW(
                groups, betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon, fused=fused
            )
            for method in self.methods:
                method.attach(self.inner, self.optimizer)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None, **settings: Any
    ) -> Any:
        """The loop's schedule."""
        if num_training_steps != self.run.steps:
            raise TrainingError(
                f"the Trainer trains {num_training_steps} steps, the methods were prepared for {self.run.steps}",
                fix=f"TrainingArguments(max_steps={num_training_steps})",
            )
        if self.lr_scheduler is None:
            warm = float(self.args.warmup_steps or 0.0)
            share = functools.partial(
                learning_rate_share, steps=num_training_steps,
                schedule=SCHEDULES[value_of(self.args.lr_scheduler_type)],
                warmup=warm if warm < 1 else min(warm, num_training_steps) / num_training_steps,
            )  # fmt: skip
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.create_optimizer(), share)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    # ------------------------------------------------------------------ data

    def get_train_dataloader(self) -> DataLoader:
        """For batches of the loop: those, one after the other; else the Trainer's own loader."""
        data = self.train_dataset
        if not is_batches(data):
            return super().get_train_dataloader()
        count = self.run.steps * self.args.gradient_accumulation_steps * self.args.world_size
        return self.accelerator.prepare(_loader(_Numbered(data, count), 1, _only))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """For encoded examples: padded batches of them in order; else the Trainer's own loader."""
        data: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(data, str):  # one of several, by its name
            data = dict(self.eval_dataset or {})[data]  # type: ignore[arg-type]
        if not isinstance(data, Encoded):
            return super().get_eval_dataloader(eval_dataset)
        return self.accelerator.prepare(_loader(range(len(data)), self.args.eval_batch_size, data.batch))

    def evaluation_loop(self, *arguments: Any, **settings: Any) -> Any:
        """The Trainer's, leaving torch's random state as it was: its data loader draws from it."""
        before = random_state(self.args.device)
        try:
            return super().evaluation_loop(*arguments, **settings)
        finally:
            restore_random_state(before, self.args.device)

    # ------------------------------------------------------------------ files

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False, **settings: Any) -> None:
        """Write the trained model as transformers or PEFT itself would: a plain folder, nothing pickled."""
        folder = Path(output_dir or str(self.args.output_dir))
        if self.args.should_save:
            model: Any = self.inner
            folder.mkdir(parents=True, exist_ok=True)
            if hasattr(model, "peft_config") or prompt_of(model) is not None:
                AdapterDelta.from_model(model).save(folder)
            elif hasattr(model, "save_pretrained"):
                state = model.state_dict()
                model.save_pretrained(folder, state_dict={k: v for k, v in state.items() if not is_hyperprompt(k)})
                save_hyperprompt(model, folder, state)
            else:
                write_tensors(folder / SINGLE_FILE, model.state_dict(), {"format": "pt"})
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save")

    def _load_from_checkpoint(self, *arguments: Any, **settings: Any) -> None:
        """Nothing: ``on_train_begin`` puts back what is trained, also where it is a PEFT model inside."""

    def _load_best_model(self) -> None:
        load_method_state(Path(str(self.state.best_model_checkpoint)), self.inner, [])


class _Hooks(TrainerCallback):
    """Calls the methods' hooks at the loop's moments."""

    def __init__(self, trainer: MethodTrainer) -> None:
        self.trainer, self.methods = trainer, trainer.methods

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        trainer = self.trainer
        if trainer.resumed is None:
            restore_random_state(trainer.random_at_start, args.device)
        else:
            load_method_state(trainer.resumed, trainer.inner, self.methods)

    def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.trainer.step_module.train()  # after an evaluation the Trainer does so only later
        for method in self.methods:
            method.before_step(self.trainer.inner)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        trainer = self.trainer
        for method in self.methods:
            method.after_backward(trainer.inner)
        if trainer.clip_norm > 0 and trainer.optimizer is not None:
            parameters = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(parameters, trainer.clip_norm)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        for method in self.methods:
            method.after_step(self.trainer.inner)

    def on_save(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if args.should_save:
            folder = Path(args.output_dir) / compat.checkpoint_name(state.global_step)
            save_method_state(folder, self.trainer.inner, self.methods)

    def on_train_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        step = self.trainer.step_module
        for method in reversed(self.methods):
            step.model = method.finish(step.model, self.trainer.run)
        self.trainer.trained = True


# ---------------------------------------------------------------------- loaders


class _Numbered(Dataset):
    """Micro-batch n of the loop as item n."""

    def __init__(self, batches: Any, count: int) -> None:
        self.batches, self.count = batches, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Batch:
        return self.batches.batch(number)


def _only(items: Sequence[Batch]) -> Batch:
    return items[0]


def _loader(data: Any, size: int, collate: Callable[[Any], Batch]) -> DataLoader:
    # a loader without a generator draws its seed from torch's own, and dropout would differ from the loop's
    return DataLoader(data, batch_size=size, shuffle=False, collate_fn=collate, generator=torch.Generator())
