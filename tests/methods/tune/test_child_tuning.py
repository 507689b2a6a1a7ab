from __future__ import annotations

import pytest
import torch

from anytune.data.splits import stable_seed
from anytune.errors import MethodError
from anytune.methods import Run, create
from anytune.methods.mixing import private_generator
from anytune.methods.selection import share_count
from anytune.methods.tune.child_tuning import ChildTuning, clipped_square, drawing_from
from anytune.models.base import load_base
from tests.contract import test_resume
from tests.contract.conftest import bench, lively
from tests.methods.tune.by_hand import Small, same, sgd, weights
from tests.models.kinds import make_kind

__all__ = ["bench"]  # a fixture of the contract's


@pytest.fixture
def small(tiny_base, tiny_task, tmp_path):
    lively_base = lively(tiny_base, tmp_path / "lively")
    return lambda **given: Small(lively_base, tiny_task, **given)


def test_a_gradient_is_scaled_down_to_the_norm_and_squared_in_fp32():
    assert clipped_square(torch.tensor([3.0, 4.0]), None).tolist() == [9.0, 16.0]
    torch.testing.assert_close(clipped_square(torch.tensor([3.0, 4.0]), 1.0), torch.tensor([0.36, 0.64]))
    torch.testing.assert_close(clipped_square(torch.tensor([0.3, 0.4]), 1.0), torch.tensor([0.09, 0.16]))
    assert clipped_square(torch.tensor([1.0]).bfloat16(), None).dtype == torch.float32


# ---------------------------------------------------------------- F


def test_f_masks_every_entry_of_the_base_by_itself_and_divides_by_the_share_kept(small):
    made, plain, gradients = small(), small(), {}
    plain.train([], last=1, clip=None, seen=lambda step: gradients.update(plain=grads(plain)))
    made.train(
        [ChildTuning(variant="F", keep=0.4)], last=1, clip=None, seen=lambda step: gradients.update(made=grads(made))
    )
    kept = total = 0
    for index, name in enumerate(made.of_base()):
        drawn = torch.rand(gradients["plain"][name].shape, generator=private_generator(11, 0, index))
        expected = gradients["plain"][name] * (drawn < 0.4) / 0.4
        assert torch.equal(gradients["made"][name], expected), name
        kept, total = kept + int((drawn < 0.4).sum()), total + drawn.numel()
    assert abs(kept / total - 0.4) < 0.01
    for name in made.head_names:
        assert torch.equal(gradients["made"][name], gradients["plain"][name])


def grads(small):
    return {name: weight.grad.clone() for name, weight in small.named().items()}


def test_f_draws_anew_in_each_step_and_leaves_torchs_generator_alone(small):
    made, zeros, name = small(), [], "bert.encoder.layer.0.output.dense.weight"
    torch.manual_seed(1)
    state = torch.get_rng_state()
    made.train([ChildTuning(variant="F", keep=0.5)], seen=lambda step: zeros.append(made.named()[name].grad.eq(0)))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(zeros[0], zeros[1])


def test_f_goes_on_with_the_draws_of_the_step_it_is_at(small):
    whole = small().train([ChildTuning(variant="F")])
    made, method, again = small(), ChildTuning(variant="F"), ChildTuning(variant="F")
    made.train([method], last=2)
    again.prepare(made.model, made.run)
    again.load_state_dict(method.state_dict())
    assert same(made.train([again], first=2, prepared=True, optimizer=made.optimizer), whole)


# ---------------------------------------------------------------- D


def selected(made, **settings):
    method = ChildTuning(**settings)
    made.train([method], last=1)
    return {name: method._mask(name, weight) for name, weight in made.named().items() if name in method._masks}


@pytest.mark.parametrize(("keep", "norm"), [(0.3, 1.0), (0.3, 0.01), (0.001, 1.0), (0.9, 1.0)])
def test_d_keeps_exactly_the_largest_sums_of_squares_over_all_blocks(small, keep, norm):
    made, plain = small(dropout=None), small(dropout=None)
    masks = selected(made, keep=keep, max_grad_norm=norm)
    assert set(masks) == {name for name in plain.named() if ".layer." in name}
    sums = {name: torch.zeros_like(weight) for name, weight in plain.named().items() if name in masks}
    plain.model.train()
    for number in range(plain.batches.batches_per_epoch):
        plain.model.zero_grad()
        with drawing_from(stable_seed("pass", 11, number), torch.device("cpu")):
            plain.loss(number).backward()
        for name in sums:
            gradient = plain.named()[name].grad
            torch.nn.utils.clip_grad_norm_([plain.named()[name]], norm)
            sums[name] += gradient.square()
    flat = torch.cat([sums[name].flatten() for name in sums])
    count = share_count(flat.numel(), keep)
    chosen = torch.zeros(flat.numel(), dtype=torch.bool)
    chosen[flat.argsort(descending=True, stable=True)[:count]] = True
    found = torch.cat([masks[name].flatten() for name in sums])
    assert int(found.sum()) == count
    assert torch.equal(found, chosen)


def test_d_masks_without_dividing_and_for_the_whole_run(small):
    made, start = small(), weights(small().model)
    method = ChildTuning(keep=0.3)
    seen = []
    after = made.train([method], optimizer=sgd(made), seen=lambda step: seen.append(grads(made)))
    moved = {name: after[name].ne(start[name]) for name in after}
    for name, mask in method._masks.items():
        assert mask.dtype == torch.bool
        assert not moved[name][~mask].any()
        assert all(not one[name][~mask].any() for one in seen)
    assert sum(int(moved[name].sum()) for name in method._masks) > 0
    assert all(moved[name].any() for name in moved if "embeddings" in name or name in made.head_names)
    plain, first = small(), {}
    plain.train([], last=1, seen=lambda step: first.update(grads(plain)))
    assert all(torch.equal(seen[0][name], first[name] * mask) for name, mask in method._masks.items())


def test_d_leaves_no_gradient_and_no_draw_behind(small):
    made, method, plain = small(dropout=0.3), ChildTuning(keep=0.3), small(dropout=0.3)
    method.prepare(made.model, made.run)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    method.before_step(made.model)
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in made.named().values())
    assert same(weights(made.model), weights(plain.model))


def test_d_looks_at_an_epoch_or_at_the_number_of_batches_asked_for(small):
    for asked, expected in ((None, 6), (2, 2), (8, 8)):
        made, seen = small(), []
        batch = made.batches.batch
        made.batches.batch = lambda number, batch=batch, seen=seen: seen.append(number) or batch(number)
        method = ChildTuning(keep=0.3, batches=asked)
        method.prepare(made.model, made.run)
        assert seen == [], "not before the first step"
        method.before_step(made.model)
        method.before_step(made.model)
        assert seen == list(range(expected))


def test_d_goes_on_with_its_masks_and_makes_no_second_pass(small):
    whole = small().train([ChildTuning(keep=0.3)])
    made, method, again = small(), ChildTuning(keep=0.3), ChildTuning(keep=0.3)
    made.train([method], last=2)
    state = method.state_dict()
    entries = sum(mask.numel() for mask in method._masks.values())
    assert sum(bits.numel() for bits in state["masks"].values()) <= entries / 8 + len(state["masks"])
    again.prepare(made.model, made.run)
    again.load_state_dict(state)
    made.run.objective = None  # a pass would need it
    assert same(made.train([again], first=2, prepared=True, optimizer=made.optimizer), whole)
    assert all(torch.equal(again.state_dict()["masks"][name], bits) for name, bits in state["masks"].items())


def test_d_finds_the_blocks_of_gpt2_whose_names_hold_no_layer(tmp_path):
    base = load_base(make_kind("gpt2", tmp_path))
    model, head = base.task_model("classification", ("a", "b"), 0)
    method = ChildTuning(keep=0.3)
    method.prepare(model, Run(seed=1, steps=1, anatomy=base.anatomy, head_names=head, objective=1, batches=1))
    assert {name.split(".")[1] for name in method._names} == {"h"}
    assert any(name.endswith("ln_1.bias") for name in method._names)


def test_d_cut_and_resumed_ends_in_the_same_bits_without_a_second_pass(bench, monkeypatch):
    settings = {"variant": "D", "keep": 0.3}
    uncut = bench.job("tune/child_tuning", bench.store("d-uncut"), settings=settings, **test_resume.TRAINING)
    store = bench.store("d-cut")
    asked = test_resume.kill_at(monkeypatch, [9])
    with pytest.raises(test_resume.Killed):
        bench.job("tune/child_tuning", store, settings=settings, **test_resume.TRAINING)
    assert 0 in asked[2:], "the pass begins in the first step"
    asked.clear()
    resumed = bench.job("tune/child_tuning", store, settings=settings, **test_resume.TRAINING)
    assert asked[0] == 6
    assert 0 not in asked, "the pass was made again"
    test_resume.assert_same(resumed.manifest, uncut.manifest)


# ---------------------------------------------------------------- both


@pytest.mark.parametrize("variant", ["D", "F"])
def test_all_of_it_is_plain_training_without_a_pass(small, variant):
    made = small()
    made.run.objective = made.run.batches = None
    assert same(made.train([ChildTuning(variant=variant, keep=1.0)]), small().train([]))


@pytest.mark.parametrize("variant", ["D", "F"])
@pytest.mark.parametrize("order", [("lora", "child_tuning"), ("child_tuning", "lora")])
def test_a_run_in_which_nothing_would_be_masked_is_an_error(small, variant, order):
    made = [create(name, {"variant": variant} if name == "child_tuning" else {}) for name in order]
    with pytest.raises(MethodError, match=r"child_tuning (found no weight of the base|finds none of its weights)"):
        small().train(made)


@pytest.mark.parametrize("variant", ["D", "F"])
def test_a_base_that_is_frozen_before_or_after_is_an_error(small, variant):
    for late in (False, True):
        made, method = small(), ChildTuning(variant=variant)
        if late:
            method.prepare(made.model, made.run)
        for name in made.of_base():
            made.named()[name].requires_grad_(False)
        with pytest.raises(MethodError, match=r"child_tuning (found no weight of the base|masks nothing)"):
            made.train([method], prepared=late)


def test_d_says_what_it_needs_to_know_and_refuses_gradients_that_are_not_finite(small):
    made = small()
    made.run.batches = None
    with pytest.raises(MethodError, match="needs to know the run's batches"):
        made.train([ChildTuning()])
    broken = small()
    with torch.no_grad():
        broken.named()["classifier.bias"].fill_(float("nan"))
    with pytest.raises(MethodError, match="a gradient of the pass over the data is not finite"):
        broken.train([ChildTuning()])
