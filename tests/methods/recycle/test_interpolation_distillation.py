"""Points between the old model and the new one, against models built from the mixed weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from anytune.errors import MethodError
from anytune.methods import registry
from anytune.methods.recycle.interpolation_distillation import between, drawn_points
from anytune.methods.step import StepModule, total
from tests.contract.bench import without_dropout
from tests.methods.recycle.outdated import Case
from tests.methods.recycle.test_distill import write_base


def step_of(case: Case, name: str = "interpolation_distillation", **settings):
    method = registry.create(f"recycle/{name}", settings)
    model = without_dropout(method.prepare(case.model()[0], case.run())).train()
    method.attach(model, torch.optim.SGD(model.parameters(), lr=0.0))
    method.before_step(model)
    return StepModule(model, [method], case.objective), model, method


def divergence(old: torch.Tensor, new: torch.Tensor, temperature: float) -> torch.Tensor:
    """By torch's own loss."""
    return temperature**2 * nn.functional.kl_div(
        torch.log_softmax(new / temperature, 1), torch.softmax(old / temperature, 1), reduction="batchmean"
    )


def mixed(case: Case, model: nn.Module, x: float) -> nn.Module:
    """A model of its own with the weights of a point."""
    made, old = copy.deepcopy(model), case.outdated.make_teacher().state_dict()
    with torch.no_grad():
        for name, tensor in made.named_parameters():
            tensor.copy_(tensor * x + old[name] * (1 - x))
    return made.eval()


def test_a_model_that_computes_its_passes_twice_is_refused(full_case):
    method, model = registry.create("recycle/interpolation_distillation", {}), full_case.model()[0]
    model.gradient_checkpointing_enable()
    with pytest.raises(MethodError, match="gradient checkpointing") as caught:
        method.prepare(model, full_case.run())
    assert caught.value.fix


def test_its_term_is_the_mean_over_the_points_and_the_model_itself(full_case):
    step, model, _ = step_of(full_case, weight=0.25, points=[0.3, 0.8], temperature=2.0)
    batch = full_case.encoded.batch([5, 6, 20, 33])
    terms = step(batch)
    taught = full_case.objective.forward(full_case.outdated.make_teacher(), batch).logits
    gaps, cross = [], None
    for x in (0.3, 0.8, 1.0):
        with torch.no_grad():
            logits = full_case.objective.forward(mixed(full_case, model, x), batch).logits
        gaps.append(divergence(taught, logits, 2.0).item())
        cross = nn.functional.cross_entropy(logits, batch["labels"]).item()
    found = {name: term.item() for name, term in terms.items()}
    assert found == pytest.approx({"loss": 0.75 * cross, "between": 0.25 * sum(gaps) / 3}, rel=1e-4)
    assert min(gaps) > 1e-4
    assert len({round(gap, 6) for gap in gaps}) == 3


def test_gradients_reach_the_new_weights_alone_and_by_the_share_of_the_point(full_case):
    """Of the point x alone they are x times those of the mixed model; that of x = 1 is taken off."""
    batch, x = full_case.encoded.batch([5, 6, 20, 33]), 0.4
    step, model, method = step_of(full_case, weight=1.0, points=[x], temperature=2.0)
    total(step(batch)).backward()
    found = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    taught = full_case.objective.forward(full_case.outdated.make_teacher(), batch).logits.detach()
    expected = {}
    for share in (x, 1.0):
        there = mixed(full_case, model, share)
        divergence(taught, full_case.objective.forward(there, batch).logits, 2.0).backward()
        for name, one in there.named_parameters():
            if one.grad is not None:
                expected[name] = expected.get(name, 0) + share * one.grad / 2
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in found)
    assert not any(tensor.requires_grad for tensor in method._old.values())


def test_without_points_between_it_is_distillation_from_answers(full_case):
    batch = full_case.encoded.batch([1, 2, 3])
    mine, _, _ = step_of(full_case, weight=0.5, points=[], temperature=3.0)
    other, _, _ = step_of(full_case, "distill", alpha=0.5, temperature=3.0)
    one, two = mine(batch), other(batch)
    assert (one["loss"], one["between"]) == (two["loss"], two["teacher"])


def test_hidden_states_of_each_point_count_too(full_case):
    batch = full_case.encoded.batch([1, 2, 3])
    plain, more = (step_of(full_case, weight=1.0, points=[0.5], beta=beta)[0](batch) for beta in (0.0, 2.0))
    alone, _, _ = step_of(full_case, "distill", alpha=0.0, beta=1.0)
    assert more["between"] > plain["between"]
    # half of the way to the old weights lies nearer to its states than the new weights do
    assert (more["between"] - plain["between"]).item() < 2 * alone(batch)["patience"].item()


def test_adapters_are_mixed_with_their_backbones(lora_case):
    lora = registry.create("tune/lora", {"r": 4, "targets": "all-linear"})
    run = lora_case.run()
    model = lora.prepare(lora_case.model()[0], run)
    method = registry.create("recycle/interpolation_distillation", {"weight": 0.5})
    model = method.prepare(model, run).train()
    method.before_step(model)
    total(StepModule(model, [lora, method], lora_case.objective)(lora_case.batches.batch(0))).backward()
    assert all((one.grad is not None) == one.requires_grad for _, one in model.named_parameters())
    assert any("embeddings" in name for name in method._old)


def test_nothing_lies_between_models_of_other_shapes(old_full, moving_bases, tiny_task, tmp_path):
    larger = write_base(tmp_path / "larger", layers=3, width=48)
    case = Case(old_full, moving_bases[0], larger, tiny_task)
    with pytest.raises(MethodError, match="the old model and the trained one differ in") as caught:
        case.prepared("interpolation_distillation")
    assert "distill" in caught.value.fix


def test_drawn_points_depend_on_seed_and_step_alone():
    assert drawn_points(3, 1, 2) == drawn_points(3, 1, 2)
    assert len({tuple(drawn_points(2, seed, step)) for seed in range(3) for step in range(3)}) == 9
    assert all(0 <= x < 1 for x in drawn_points(50, 0, 0))


def test_integers_are_never_mixed():
    old = {"a": torch.zeros(2), "b": torch.tensor([1, 2])}
    new = {"a": torch.ones(2), "b": torch.tensor([5, 6])}
    found = between(old, new, 0.25)
    assert found["a"].tolist() == [0.25, 0.25]
    assert found["b"].tolist() == [5, 6]
