"""What we take for granted about the transformers Trainer."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from tests.canaries.sentence import assumption


class Rows(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, number):
        return {"values": torch.full((3,), float(number)), "labels": torch.tensor(number % 2), "extra": number}


class Model(nn.Module):
    """Takes what it is given and remembers it."""

    accepts_loss_kwargs = True

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)
        self.given: list[dict] = []

    def forward(self, **inputs):
        loss = 100.0 * self.inner(inputs["values"]).square().mean()
        self.given.append({**inputs, "loss": loss.item()})
        return {"loss": loss}


def trained(tmp_path, *callbacks, cls=Trainer, **arguments):
    given = {
        "output_dir": str(tmp_path), "max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True,
        "gradient_accumulation_steps": 2, "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True,
        "remove_unused_columns": False, "label_names": ["labels"], **arguments,
    }  # fmt: skip
    resume = given.pop("resume", None)
    trainer = cls(Model(), TrainingArguments(**given), train_dataset=Rows(), callbacks=list(callbacks))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


class Order(TrainerCallback):
    """Which callbacks were called, and what the gradient was then."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self.norms: dict[str, float | None] = {}

    def note(self, name, model):
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        self.called.append(name)
        self.norms[name] = float(torch.cat([one.flatten() for one in gradients]).norm()) if gradients else None

    def on_train_begin(self, args, state, control, model, **rest):
        self.note("train begin", model)

    def on_step_begin(self, args, state, control, model, **rest):
        self.note("begin", model)

    def on_pre_optimizer_step(self, args, state, control, model, **rest):
        self.note("before the optimizer", model)

    def on_optimizer_step(self, args, state, control, model, **rest):
        self.note("after the optimizer", model)


def test_callbacks_come_once_a_step_around_the_optimizer(tmp_path):
    with assumption(
        "the Trainer no longer calls on_step_begin, on_pre_optimizer_step and on_optimizer_step once a step, in this "
        "order, with gradients still there after the optimizer: the hooks in engine/hf_trainer.py hang on them"
    ):
        order = Order()
        trained(tmp_path, order)
        assert order.called == ["train begin", *["begin", "before the optimizer", "after the optimizer"] * 2]
        assert order.norms["begin"] is None
        assert order.norms["after the optimizer"]


def test_it_clips_before_on_pre_optimizer_step(tmp_path):
    with assumption(
        "the Trainer no longer clips before on_pre_optimizer_step: engine/hf_trainer.py clips by itself because of it"
    ):
        order = Order()
        trained(tmp_path, order, max_grad_norm=0.5)
        assert order.norms["before the optimizer"] == pytest.approx(0.5, rel=1e-4)


def test_a_norm_of_zero_clips_nothing(tmp_path):
    with assumption("the Trainer now clips though max_grad_norm is 0: engine/hf_trainer.py would clip twice"):
        order = Order()
        trained(tmp_path, order, max_grad_norm=0.0)
        assert order.norms["before the optimizer"] > 1.0


def test_a_model_that_accepts_loss_arguments_is_told_the_items_and_its_loss_is_left_alone(tmp_path):
    losses = []

    class Looking(Trainer):
        def training_step(self, *arguments, **settings):
            losses.append(super().training_step(*arguments, **settings).item())
            return torch.tensor(losses[-1])

    with assumption(
        "the Trainer no longer gives num_items_in_batch to a model with accepts_loss_kwargs, or now divides its loss "
        "by the accumulation: engine/hf_trainer.py weights micro-batches itself"
    ):
        trainer = trained(tmp_path, cls=Looking, max_steps=1)
        assert [int(given["num_items_in_batch"]) for given in trainer.model.given] == [4, 4]
        assert all("extra" in given for given in trainer.model.given)
        assert losses == [given["loss"] for given in trainer.model.given]
        assert len(losses) == 2


def test_the_samples_of_a_step_come_from_a_method_that_gives_a_pair(tmp_path):
    class Counting(Trainer):
        def get_batch_samples(self, *arguments, **settings):
            samples, _ = super().get_batch_samples(*arguments, **settings)
            return [{**sample, "number": 7} for sample in samples], 11

    with assumption(
        "the Trainer no longer asks get_batch_samples for a step's micro-batches and items: engine/hf_trainer.py "
        "counts items there"
    ):
        given = trained(tmp_path, cls=Counting, max_steps=1).model.given
        assert [(one["number"], one["num_items_in_batch"]) for one in given] == [(7, 11), (7, 11)]


def test_no_random_number_is_drawn_between_train_begin_and_the_first_forward(tmp_path):
    class Seeding(TrainerCallback):
        def on_train_begin(self, args, state, control, **rest):
            torch.manual_seed(3)
            self.before = torch.get_rng_state()

        def on_step_begin(self, args, state, control, **rest):
            self.after = torch.get_rng_state()

    class Own(Trainer):
        def get_train_dataloader(self):
            return self.accelerator.prepare(DataLoader(Rows(), batch_size=2, generator=torch.Generator()))

    with assumption(
        "the Trainer now draws from torch's generator before the first step, or accelerate no longer keeps a "
        "loader's own generator: dropout in engine/hf_trainer.py would differ from the loop's"
    ):
        seeding = Seeding()
        trained(tmp_path, seeding, cls=Own, max_steps=1)
        assert torch.equal(seeding.before, seeding.after)


def test_making_a_trainer_seeds_torch(tmp_path):
    with assumption(
        "the Trainer no longer seeds torch as it is made: engine/hf_trainer.py keeps the random state for that reason"
    ):
        torch.manual_seed(1)
        before = torch.get_rng_state()
        Trainer(Model(), TrainingArguments(output_dir=str(tmp_path), use_cpu=True, disable_tqdm=True))
        assert not torch.equal(before, torch.get_rng_state())


def test_the_state_of_a_plain_callback_is_lost(tmp_path):
    class Counter(TrainerCallback):
        def __init__(self) -> None:
            self.steps = 0

        def on_step_end(self, args, state, control, **rest):
            self.steps += 1

    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    with assumption(
        "the Trainer no longer forgets a callback's state: engine/trainer_state.py writes the methods' because it does"
    ):
        trained(tmp_path, Counter(), **saving)
        again = Counter()
        trained(tmp_path, again, resume=str(tmp_path / "checkpoint-1"), **saving)
        assert again.steps == 1


def test_a_checkpoint_is_saved_by_save_model_before_on_save(tmp_path):
    calls = []

    class Saving(Trainer):
        def save_model(self, output_dir=None, _internal_call=False, **settings):
            Path(output_dir).mkdir()
            calls.append((output_dir, _internal_call))

    class Looking(TrainerCallback):
        def on_save(self, args, state, control, **rest):
            calls.append((tmp_path / f"checkpoint-{state.global_step}" / "trainer_state.json").is_file())

    with assumption(
        "the Trainer no longer saves checkpoint-N by save_model and then calls on_save: engine/hf_trainer.py writes "
        "the model and the methods' state there"
    ):
        trained(tmp_path, Looking(), cls=Saving, max_steps=1, save_strategy="steps", save_steps=1)
        assert calls == [(str(tmp_path / "checkpoint-1"), True), True]


def test_weights_are_loaded_by_two_methods_that_can_be_replaced(tmp_path):
    called = []

    class Loading(Trainer):
        def _load_from_checkpoint(self, *arguments, **settings):
            called.append("checkpoint")

    with assumption(
        "the Trainer no longer loads weights in _load_from_checkpoint and _load_best_model: engine/hf_trainer.py "
        "replaces both"
    ):
        saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
        trained(tmp_path, cls=Loading, **saving)
        trained(tmp_path, cls=Loading, resume=str(tmp_path / "checkpoint-1"), **saving)
        assert called == ["checkpoint"]
        assert "load_best_model_at_end" in inspect.getsource(Trainer._finalize_training)
        assert "self._load_best_model()" in inspect.getsource(Trainer._finalize_training)


def test_the_arguments_are_called_as_we_call_them():
    from anytune.engine.trainer_arguments import REFUSED

    with assumption(
        "TrainingArguments no longer has the fields that are read, set or refused: engine/trainer_arguments.py and "
        "engine/hf_trainer.py would silently do nothing about them"
    ):
        fields = {field.name for field in dataclasses.fields(TrainingArguments)}
        needed = {
            "seed", "max_steps", "num_train_epochs", "learning_rate", "weight_decay", "max_grad_norm", "warmup_steps",
            "lr_scheduler_type", "optim", "adam_beta1", "adam_beta2", "adam_epsilon", "label_names",
            "remove_unused_columns", "average_tokens_across_devices", "gradient_accumulation_steps", "fsdp",
            "dataloader_drop_last", "eval_strategy", "save_strategy",
        }  # fmt: skip
        assert needed <= fields, sorted(needed - fields)
        # of the two names of recomputed activations, one is a release's own
        unknown = set(REFUSED) - fields - {"activation_checkpointing", "gradient_checkpointing"}
        assert not unknown, sorted(unknown)
        assert {"activation_checkpointing", "gradient_checkpointing"} & fields


def test_its_defaults_are_the_loops(tmp_path):
    from anytune.engine.settings import TrainingSettings

    with assumption(
        "TrainingArguments no longer has the defaults that engine/settings.py shares with it (AdamW fused, a norm of "
        "1, three epochs, no decay, nothing reported): engine/hf_trainer.py would train otherwise than the loop"
    ):
        args, ours = TrainingArguments(output_dir=str(tmp_path), use_cpu=True), TrainingSettings()
        assert args.optim == "adamw_torch_fused"
        assert (args.adam_beta1, args.adam_beta2, args.adam_epsilon) == (0.9, 0.999, 1e-8)
        assert args.max_grad_norm == ours.max_grad_norm
        assert args.weight_decay == ours.weight_decay
        assert args.num_train_epochs == 3.0
        assert args.learning_rate == 5e-5
        assert not args.report_to
        assert args.average_tokens_across_devices is True


def test_a_warmup_below_one_is_a_share_of_the_steps(tmp_path):
    with assumption("TrainingArguments no longer takes warmup_steps < 1 as a share: engine/hf_trainer.py reads it so"):
        args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, warmup_steps=0.25)
        assert args.get_warmup_steps(100) == 25


def test_the_folders_of_checkpoints_are_found(tmp_path):
    from anytune import compat

    with assumption("the Trainer no longer names checkpoints checkpoint-N: compat.py asks it for the newest"):
        for step in (9, 10):
            (tmp_path / compat.checkpoint_name(step)).mkdir()
        assert compat.last_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-10")
