"""The adapter around the transformers Trainer: what is saved, resumed, evaluated and refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, TrainerCallback, TrainingArguments

import anytune
from anytune.data.batches import encode_task
from anytune.engine.hf_trainer import items_of
from anytune.engine.trainer_arguments import planned_steps
from anytune.errors import MethodError, SettingsError, TrainingError
from anytune.methods import Classification, LanguageModelling, Method
from anytune.methods.protocol import Stage
from anytune.models.adapters import AdapterDelta
from anytune.models.anatomy import ANATOMIES
from tests.contract.bench import Bench, equal, state
from tests.contract.places import Places


@pytest.fixture(scope="module")
def bench(tiny_base, other_base, tiny_task, tiny_domain, tmp_path_factory) -> Bench:
    return Bench(tiny_base, other_base, tiny_task, tiny_domain, tmp_path_factory.mktemp("bench"))


class Killed(BaseException):
    """Nothing catches it."""


class Counting(Method):
    """Its state changes the weights, so that a run resumed without it ends elsewhere."""

    name, room = "counting", "tune"

    def __init__(self) -> None:
        self.steps, self.seen = 0, torch.zeros(2)

    def after_step(self, model) -> None:
        self.steps += 1
        self.seen += torch.rand(2)
        with torch.no_grad():
            model.classifier.bias.add_(0.01 * self.steps * self.seen.sum())

    def state_dict(self):
        return {"steps": self.steps, "seen": self.seen}

    def load_state_dict(self, state) -> None:
        self.steps, self.seen = state["steps"], state["seen"].clone()


class KillAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.at = step

    def on_step_begin(self, args, state, control, **rest):
        if state.global_step == self.at:
            raise Killed


SAVING = {"save_strategy": "steps", "save_steps": 2, "logging_strategy": "no"}


@pytest.mark.parametrize("name", ["tune/lora", "counting"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_run_ends_in_the_same_bits(name, accumulation, bench: Bench, tmp_path):
    places = Places(bench, "tune/full" if name == "counting" else name, accumulation)

    def methods():
        return [Counting()] if name == "counting" else places.methods()

    whole = places.in_trainer(tmp_path / "whole", methods=methods())
    cut = places.trainer(tmp_path / "cut", methods=methods(), arguments=SAVING, callbacks=[KillAt(3)])
    with pytest.raises(Killed):
        cut.train()
    again = places.trainer(tmp_path / "cut", methods=methods(), arguments=SAVING)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == places.steps
    assert equal(whole, state(again.inner))


def test_a_checkpoint_holds_no_pickle_of_ours_and_a_plain_model(bench: Bench, tmp_path):
    places = Places(bench, "tune/lora", steps=2)
    trainer = places.trainer(tmp_path, arguments=SAVING, processing_class=places.base.tokenizer())
    trainer.train()
    folder = tmp_path / "checkpoint-2"
    names = {path.name for path in folder.iterdir()}
    assert {"method_state.safetensors", "method_state.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    assert "training_args.bin" not in names
    assert json.loads((folder / "method_state.json").read_text())["method.lora"] == {}
    assert any("lora_A" in tensor for tensor in load_file(folder / "method_state.safetensors"))
    trainer.save_model(tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    model, _ = places.model()
    loaded = AdapterDelta.load(tmp_path / "saved").attach(model)
    assert equal({k: v for k, v in state(loaded).items() if "lora" in k or "modules_to_save" in k},
                 {k: v for k, v in state(trainer.inner).items() if "lora" in k or "modules_to_save" in k})  # fmt: skip


def test_what_it_saves_is_a_plain_transformers_folder(bench: Bench, tmp_path):
    trainer = Places(bench, "tune/full", steps=2).trainer(tmp_path)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert equal(state(loaded), state(trainer.inner))
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {"config.json", "model.safetensors"}


def test_the_best_checkpoint_can_be_loaded_at_the_end(bench: Bench, tmp_path):
    places = Places(bench, "tune/lora", steps=4)
    seen = {}

    class Keep(TrainerCallback):
        def on_save(self, args, state_, control, model, **rest):
            seen[state_.global_step] = state(model.model)

    trainer = places.trainer(
        tmp_path, eval_dataset=places.encoded, callbacks=[Keep()],
        compute_metrics=lambda answer: {"score": -abs(trainer.state.global_step - 2)},
        arguments={**SAVING, "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1,
                   "load_best_model_at_end": True, "metric_for_best_model": "score"},
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_global_step == 2
    assert equal(state(trainer.inner), seen[2])
    assert not equal(state(trainer.inner), seen[4])


def test_evaluation_gives_the_plain_loss_and_leaves_the_run_as_it_was(bench: Bench, tmp_path):
    places = Places(bench, "tune/full", steps=4)
    quiet = places.in_trainer(tmp_path)
    encoded = encode_task(places.task.validation, places.base.tokenizer(), 32)
    trainer = places.trainer(
        tmp_path, eval_dataset=encoded, arguments={"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True},
        compute_metrics=lambda answer: {"right": (answer.predictions.argmax(-1) == answer.label_ids).mean()},
    )  # fmt: skip
    trainer.train()
    assert equal(quiet, state(trainer.inner))
    # 8 is the batch size, which does not divide the rows: each row must count once
    assert len(encoded) % 8
    found = trainer.evaluate()
    batch = encoded.batch(range(len(encoded)))
    with torch.no_grad():
        logits = Classification().forward(trainer.inner.eval(), batch).logits
    assert found["eval_loss"] == pytest.approx(functional.cross_entropy(logits, batch["labels"]).item(), abs=1e-6)
    assert found["eval_right"] == pytest.approx((logits.argmax(-1) == batch["labels"]).double().mean().item())


def rows_of(places: Places, count: int) -> list[dict]:
    """Rows of one width, as the Trainer's own collator wants them."""
    rows = []
    for number in range(count):
        row = {key: value[0] for key, value in places.encoded.batch([number]).items() if key != "num_items"}
        for key in ("input_ids", "attention_mask", "token_type_ids"):
            row[key] = functional.pad(row[key], (0, 32 - len(row[key])))
        rows.append(row)
    return rows


def test_evaluating_a_dataset_of_the_users_own_leaves_the_run_as_it_was(bench: Bench, tmp_path):
    places = Places(bench, "tune/full", steps=3)
    evaluating = {"eval_strategy": "steps", "eval_steps": 1}
    assert equal(
        places.in_trainer(tmp_path),
        places.in_trainer(tmp_path, eval_dataset=rows_of(places, 5), arguments=evaluating),
    )


def test_a_dataset_and_collator_of_the_users_own_work_and_unknown_columns_reach_no_model(bench: Bench, tmp_path):
    places = Places(bench, "tune/full", accumulation=2)
    by_methods, by_model = [], []

    class Looking(Counting):
        def prepare_batch(self, batch):
            by_methods.append(set(batch))
            return batch

    rows = [{**row, "head_mask": torch.zeros(1)} for row in rows_of(places, 6)]
    trainer = places.trainer(
        tmp_path, methods=[Looking()], train_dataset=rows,
        arguments={"max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 2},
    )  # fmt: skip
    trainer.inner.register_forward_pre_hook(lambda _, given, named: by_model.append(set(named)), with_kwargs=True)
    trainer.train()
    assert trainer.run.steps == trainer.state.global_step == 4  # 3 batches, 2 in a step: 2 steps an epoch
    assert all("head_mask" in keys for keys in by_methods)
    assert len(by_methods) == len(by_model) == 6
    assert all(keys == {"input_ids", "attention_mask", "token_type_ids"} for keys in by_model)


def test_items_are_what_the_loss_is_a_mean_over():
    words = torch.tensor([[5, -100, 7], [-100, 8, 9]])
    bert, llama = (LanguageModelling(ANATOMIES[kind]) for kind in ("bert", "llama"))
    assert items_of({"labels": words, "num_items": 2}, bert) == 2
    assert items_of({"labels": words}, bert) == 4
    assert items_of({"labels": words}, llama) == 3
    assert items_of({"labels": torch.tensor([-100.0, 2.0])}, Classification()) == 2
    assert items_of({"labels": torch.tensor([1, 0, 1])}, Classification()) == 3


def test_steps_are_planned_as_they_are_made(bench: Bench, tmp_path):
    places = Places(bench, "tune/full")
    made = places.batches.batches_per_epoch
    for epochs, accumulation, steps in ((2, 1, 2 * made), (1, 4, round(made / 4)), (0.01, 1, 1)):
        args = places.arguments(
            tmp_path, max_steps=-1, num_train_epochs=epochs, gradient_accumulation_steps=accumulation
        )
        assert planned_steps(places.batches, args) == steps
    with pytest.raises(SettingsError, match="have no length"):
        planned_steps(iter([]), places.arguments(tmp_path, max_steps=-1))


#: one thing under two names, each a release's own
RECOMPUTING = next(
    name for name in ("activation_checkpointing", "gradient_checkpointing") if hasattr(TrainingArguments, name)
)


class TwoStages(Method):
    name, room = "two-stages", "transfer"

    def stages(self):
        return (Stage("teacher", 0.5), Stage("student", 0.5))


@pytest.mark.parametrize(
    ("arguments", "given", "says"),
    [
        ({"label_smoothing_factor": 0.1}, {}, "label_smoothing_factor=0.1"),
        ({RECOMPUTING: True}, {}, f"{RECOMPUTING}=True"),
        ({"optim": "adafactor"}, {}, "optim = 'adafactor'"),
        ({"lr_scheduler_type": "polynomial"}, {}, "lr_scheduler_type = 'polynomial'"),
        ({"eval_strategy": "epoch"}, {"eval_dataset": []}, "eval_strategy is 'epoch'"),
        ({}, {"compute_loss_func": print}, "compute_loss_func is given"),
    ],
)
def test_what_would_change_training_behind_the_methods_is_refused(arguments, given, says, bench, tmp_path):
    with pytest.raises(SettingsError, match=says) as caught:
        Places(bench, "tune/full").trainer(tmp_path, arguments=arguments, **given)
    assert caught.value.fix


def test_methods_the_trainer_cannot_run_are_refused(bench: Bench, tmp_path):
    places = Places(bench, "recycle/initialize")
    with pytest.raises(MethodError, match=r"trains in 2 stages \(teacher, student\)") as caught:
        places.trainer(tmp_path, methods=[TwoStages()])
    assert "--method two-stages" in caught.value.fix
    with pytest.raises(MethodError, match="'direct' does not train"):
        places.trainer(tmp_path, methods=["direct"])


def test_a_checkpoint_without_the_methods_part_is_refused_before_anything_is_loaded(bench: Bench, tmp_path):
    places = Places(bench, "tune/full", steps=2)
    places.trainer(tmp_path, arguments=SAVING).train()
    folder = tmp_path / "checkpoint-2"
    other = places.trainer(tmp_path, methods=[Counting()], arguments=SAVING)
    with pytest.raises(TrainingError, match="was made with full, this run has counting"):
        other.train(resume_from_checkpoint=str(folder))
    shutil.copytree(folder, tmp_path / "whole")
    (folder / "method_state.json").unlink()
    with pytest.raises(TrainingError, match="no methods' state that can be read"):
        places.trainer(tmp_path, arguments=SAVING).train(resume_from_checkpoint=str(folder))
    trained = places.trainer(tmp_path / "new")
    trained.train()
    with pytest.raises(TrainingError, match="trained already"):
        trained.train()
    with pytest.raises(TrainingError, match="holds no checkpoint"):
        places.trainer(tmp_path / "empty").train(resume_from_checkpoint=True)


def test_it_stands_at_the_top(bench: Bench):
    from anytune.engine.hf_trainer import hf_trainer

    assert anytune.hf_trainer is hf_trainer
