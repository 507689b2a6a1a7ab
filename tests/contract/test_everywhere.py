"""Each method gives the same weights, bit for bit, in the loop, in the transformers Trainer and in a loop by hand."""

from __future__ import annotations

import pytest
import torch

from anytune.methods import Method, registry
from tests.contract.bench import TRAINING_METHODS, Bench, equal
from tests.contract.places import Places
from tests.contract.settings import OTHER_WAYS


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    ("name", "settings"), [(name, way) for name in TRAINING_METHODS for way in (None, *OTHER_WAYS.get(name, []))]
)
def test_three_places_give_the_same_bits(name, settings, accumulation, bench: Bench, tmp_path):
    places = Places(bench, name, accumulation, settings=settings)
    looped = places.loop()
    assert equal(looped, places.by_hand())
    assert equal(looped, places.in_trainer(tmp_path))


@pytest.mark.parametrize("name", TRAINING_METHODS)
def test_a_method_that_does_something_does_it_in_each_place(name, bench: Bench, tmp_path):
    places, plain = Places(bench, name), Places(bench, name, with_method=False)
    untouched = plain.loop()
    assert equal(untouched, plain.in_trainer(tmp_path))
    if not registry.describe(name) and registry.get(name).neutral is not None:  # it is plain training
        assert equal(untouched, places.in_trainer(tmp_path))
        return
    for after in (places.loop(), places.in_trainer(tmp_path), places.by_hand()):
        assert not equal(after, untouched)


class Traced(Method):
    """Writes down what it is told, draws at random and changes weights, gradients and batches."""

    name, room = "traced", "tune"

    def __init__(self) -> None:
        self.told: list[str] = []

    def before_step(self, model) -> None:
        assert model.training
        assert all(parameter.grad is None for parameter in model.parameters())
        self.told.append("before")
        self.drawn = torch.rand(())

    def prepare_batch(self, batch):
        self.told.append("batch")
        return {**batch, "unknown": self.drawn}

    def objective(self, model, batch, output, terms):
        assert "num_items_in_batch" not in batch
        return {**terms, "extra": batch["unknown"] * output.logits.square().mean()}

    def after_backward(self, model) -> None:
        self.told.append("backward")
        for parameter in model.parameters():
            parameter.grad.mul_(1 + self.drawn)  # the norm clipped afterwards is another

    def after_step(self, model) -> None:
        assert all(parameter.grad is not None for parameter in model.parameters())
        self.told.append("step")
        with torch.no_grad():
            model.classifier.bias.add_(0.01 * self.drawn)

    def finish(self, model, run):
        self.told.append(f"finish {run.steps}")
        with torch.no_grad():
            model.classifier.bias.mul_(0.5)
        return model


def test_every_hook_is_called_at_the_same_moments_everywhere(bench: Bench, tmp_path, monkeypatch):
    places = Places(bench, "tune/full", accumulation=2, steps=3)
    made: list[Traced] = []
    monkeypatch.setattr(Places, "methods", lambda self: [made.append(Traced()) or made[-1]])
    looped, traced, by_hand = places.loop(), places.in_trainer(tmp_path), places.by_hand()
    assert equal(looped, traced)
    assert equal(looped, by_hand)
    told = ["before", "batch", "batch", "backward", "step"] * 3 + ["finish 3"]
    assert [one.told for one in made] == [told] * 3
