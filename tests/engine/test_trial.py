"""A trial of a run: its numbers against counts by hand, and nothing left behind."""

from __future__ import annotations

import pytest
import torch

from anytune.data.batches import ExampleBatches, encode_task
from anytune.data.tasks import load_task
from anytune.engine.loop import Evaluation, train
from anytune.engine.runtime import make_runtime, seeded
from anytune.engine.settings import training_settings
from anytune.engine.trial import _Held, trial
from anytune.methods.objective import Classification
from anytune.models.base import load_base


@pytest.fixture
def parts(tiny_base, tiny_task):
    base, task = load_base(tiny_base), load_task(tiny_task)
    batches = ExampleBatches(encode_task(task.train, base.tokenizer(), 32), 8, 3)
    with seeded(1):
        model, _ = base.task_model(task.kind, task.label_names, 7)
    return model, batches


def arguments(batches, steps, **settings):
    return {
        "methods": [], "objective": Classification(), "batches": batches, "steps": steps, "learning_rate": 1e-3,
        "settings": training_settings(settings), "runtime": make_runtime("fp32"),
    }  # fmt: skip


def test_counts_are_those_of_the_model_and_the_batches(parts):
    model, batches = parts
    model.requires_grad_(False)
    model.classifier.requires_grad_(True)
    found = trial(model, **arguments(batches, 6, accumulation=2))
    head = sum(parameter.numel() for parameter in model.classifier.parameters())
    assert found.trainable == head
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    made = [batches.batch(number) for number in range(12)]
    assert found.examples == pytest.approx(sum(len(batch["input_ids"]) for batch in made) / 6)
    assert found.tokens == pytest.approx(sum(int(batch["attention_mask"].sum()) for batch in made) / 6)
    assert found.memory.moments == 2 * 4 * head
    assert found.memory.gradients == 4 * head
    assert found.memory.best == 0, "nothing is evaluated, so nothing is best"


def test_it_evaluates_as_often_as_the_run(parts):
    model, batches = parts
    seen: list[int] = []

    def evaluate(_model):
        seen.append(1)
        return Evaluation({"accuracy": 0.5}, 1.0, 0.5)

    found = trial(model, **arguments(batches, 7, evaluate_every=3), evaluate=evaluate)
    assert found.evaluated == (0, 3, 6, 7)
    seen.clear()
    train(model, **arguments(batches, 7, evaluate_every=3), evaluate=evaluate)
    assert len(seen) == len(found.evaluated)


def test_a_run_without_steps_is_only_evaluated(parts):
    model, batches = parts
    model.requires_grad_(False)
    found = trial(model, **arguments(batches, 0), evaluate=lambda _model: Evaluation({}, None, 0.0))
    assert (found.step_seconds, found.evaluated, found.memory.moments) == (0.0, (0,), 0)


def test_activations_are_what_autograd_keeps():
    first, second = torch.nn.Linear(4, 8, bias=False), torch.nn.Linear(8, 2, bias=False)
    model = torch.nn.Sequential(first, torch.nn.Tanh(), second)
    held = _Held(model)
    with held.counted():
        model(torch.zeros(5, 4)).sum().backward()
    assert held.bytes == 4 * (5 * 4 + 5 * 8), "the input, and tanh's output once although two keep it"
