"""Gradients, moments and whole matrices of gradients: what a step with a sparse difference really holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from anytune.engine import method_groups
from anytune.engine.runtime import make_runtime
from anytune.engine.trial import trial
from anytune.methods.step import total
from anytune.methods.tune.sift import Sift
from tests.contract.bench import Bench
from tests.contract.conftest import bench  # noqa: F401
from tests.contract.places import Places
from tests.methods.tune.test_sift import in_blocks, places_of, prepared
from tests.methods.tune.test_sift_on_disk import size


class WholeGradients(TorchDispatchMode):
    """Counts the tensors of certain shapes that are made inside and alive at once."""

    def __init__(self, shapes) -> None:
        super().__init__()
        self.shapes = {shape for one in shapes for shape in (tuple(one), tuple(reversed(one)))}
        self.made: dict[int, StorageWeakRef] = {}
        self.most = 0

    def __torch_dispatch__(self, function, types, arguments=(), settings=None):
        found = function(*arguments, **(settings or {}))
        if isinstance(found, torch.Tensor) and tuple(found.shape) in self.shapes:
            storage = found.untyped_storage()
            given = {one.untyped_storage()._cdata for one in arguments if isinstance(one, torch.Tensor)}
            if storage._cdata not in given:  # not a view of what there was
                self.made[storage._cdata] = StorageWeakRef(storage)
        self.most = max(self.most, sum(not one.expired() for one in self.made.values()))
        return found


@contextmanager
def step_by_hand(places: Places, methods) -> Iterator[tuple]:
    """A model and optimizer after one step, gradients still there, and the most whole gradients alive at once."""
    model, _ = prepared(places, *methods)
    model.bert.pooler.requires_grad_(False)  # a matrix of the same shape, of which a whole gradient is kept
    groups = method_groups(model, methods, 1e-3, 0.1)
    optimizer = torch.optim.AdamW(groups)
    for method in methods:
        method.attach(model, optimizer)
        method.before_step(model)
    loss = total(
        places.objective.terms(places.objective.forward(model, places.batches.batch(0)), places.batches.batch(0))
    )
    blocks = {tuple(model.get_parameter(name).shape) for name in in_blocks(model)}
    with WholeGradients(blocks) as counted:
        loss.backward()
    for method in methods:
        method.after_backward(model)
    optimizer.step()
    yield model, optimizer, counted.most
    for method in methods:
        method.finish(model, places.run([]))


@pytest.mark.parametrize("share", [0.01, 0.1])
def test_gradients_and_moments_are_as_large_as_the_entries(share, bench: Bench):  # noqa: F811
    places = places_of(bench)
    with step_by_hand(places, [Sift(share=share)]) as (model, optimizer, most):
        held = {id(one): one for one in model.parameters()}
        held |= {id(one): one for group in optimizer.param_groups for one in group["params"]}
        gradients = size(one.grad for one in held.values() if one.grad is not None)
        moments = size(one for state in optimizer.state.values() for key, one in state.items() if key != "step")
        head = size(model.classifier.parameters())
        entries = sum(-(-model.get_parameter(name).numel() * round(share * 100) // 100) for name in in_blocks(model))
        assert gradients == 4 * entries + head
        assert moments == 2 * gradients
        assert most == 1, "two whole gradients were alive together"
    with step_by_hand(places, []) as (model, optimizer, most):
        assert most > 10, "the count sees the gradients of plain training"


def test_finding_the_entries_holds_one_whole_gradient_at_a_time(bench: Bench):  # noqa: F811
    places = places_of(bench)
    method = Sift()
    model, _ = prepared(places, method)
    with WholeGradients({tuple(model.get_parameter(name).shape) for name in in_blocks(model)}) as counted:
        method.param_groups(model, [])
    # the gradient, its absolute values and what the search makes of them
    assert 1 <= counted.most < 6
    assert len(in_blocks(model)) == 12


def test_a_dry_run_counts_the_entries_and_not_their_matrices(bench: Bench):  # noqa: F811
    places = places_of(bench)
    method = Sift(share=0.1)
    model, run = prepared(places, method)
    found = trial(
        model, methods=[method], objective=places.objective, batches=places.batches, steps=3, settings=places.options,
        learning_rate=1e-3, runtime=make_runtime("fp32"),
    )  # fmt: skip
    entries = sum(-(-model.get_parameter(name).numel() // 10) for name in in_blocks(model))
    head = sum(model.get_parameter(name).numel() for name in run.head_names)
    assert found.trainable == entries + head
    assert found.memory.moments == 2 * found.memory.gradients == 8 * (entries + head)
    assert found.memory.methods == entries * (8 + 4 + 4)
