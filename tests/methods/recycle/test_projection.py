"""The map of outdated weights: its gradient, its start, and what it does to another task's vector."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

import anytune
from anytune.errors import AnytuneError, MethodError
from anytune.methods import registry
from anytune.methods.recycle.projection import FILE, gradients_of, layout_of, shift_of
from tests.conftest import tiny_rows, write_rows
from tests.contract.bench import equal, state
from tests.methods.recycle.outdated import SETTINGS, Case, store_of, tuned

MAP = {"name": "projection", "rank": 2}
LORA = {"name": "lora", "r": 2, "targets": ["query"]}
SHORT = {**SETTINGS, "steps": 6, "evaluate_every": 3, "learning_rate": 5e-3}


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize("residual", [True, False])
def test_its_gradients_are_those_autograd_finds(residual):
    vector, target = drawn(7), drawn(7)
    parts = [one.requires_grad_() for one in (drawn(7, 3), drawn(3, 7), drawn(7))]
    projected = vector + shift_of(vector, *parts, residual)
    loss = (projected * target).sum() + projected.square().sum()
    found = torch.autograd.grad(loss, parts)
    gradient = target + 2 * projected.detach()
    for mine, theirs in zip(gradients_of(gradient, vector, parts[0], parts[1]), found, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_formula_written_out():
    vector, first, second, bias = drawn(4), drawn(4, 2), drawn(2, 4), drawn(4)
    wanted = [sum(vector[i] * first[i, r] * second[r, k] for i in range(4) for r in range(2)) + bias[k]
              for k in range(4)]  # fmt: skip
    torch.testing.assert_close(vector + shift_of(vector, first, second, bias, False), torch.stack(wanted))


def test_the_layout_changes_with_names_shapes_and_order():
    a, b = torch.zeros(2), torch.zeros(3)
    layouts = [layout_of(one) for one in ({"x": a, "y": b}, {"y": b, "x": a}, {"x": a, "z": b}, {"x": b, "y": b})]
    assert len({bytes(one.tolist()) for one in layouts}) == 4


@pytest.mark.parametrize("kind", ["full_case", "lora_case"])
def test_before_its_first_step_it_is_direct_reuse_bit_for_bit(kind, request):
    case = request.getfixturevalue(kind)
    assert equal(state(case.prepared("projection", rank=2)[0]), state(case.prepared("direct")[0]))
    noise = state(case.prepared("projection", rank=2, residual=False)[0])
    assert not equal(noise, state(case.prepared("direct")[0]))


def test_a_map_that_is_too_large_is_refused_with_its_size(full_case, monkeypatch):
    monkeypatch.setattr("anytune.methods.recycle.projection.MOST", 1000)
    with pytest.raises(MethodError, match=r"rank 16 for [\d,]+ full weights has [\d,]+ numbers"):
        full_case.prepared("projection")


@pytest.fixture(scope="module")
def shelf(moving_bases, tiny_task, tmp_path_factory):
    """(trained entry, another task's delta and file): two LoRAs of one layout, the first one's map trained."""
    folder = tmp_path_factory.mktemp("projections")
    first = tuned(folder / "store", moving_bases[0], tiny_task, LORA, learning_rate=1e-2)
    other_task = write_rows(folder / "other.csv", tiny_rows(60, 5))
    [second] = anytune.tune(
        moving_bases[0], other_task, store=folder / "store", method=LORA, name="second",
        training={**SETTINGS, "learning_rate": 1e-2},
    )  # fmt: skip
    [trained] = anytune.recycle(
        first, moving_bases[1], store=folder / "store", method=MAP, task=tiny_task, training=SHORT
    )
    return trained, second, other_task


@pytest.mark.parametrize("keep", ["last", "best"])
def test_the_trained_map_lies_beside_the_delta_and_gives_its_very_weights(shelf, moving_bases, tiny_task, keep):
    trained, _, _ = shelf
    store = store_of(trained)
    first = store.get("old")
    if keep == "best":  # of a rate that overshoots, an early step is kept, and the map of that step
        training = {**SHORT, "learning_rate": 0.5, "evaluate_every": 1, "keep": "best"}
        [trained] = anytune.recycle(
            first, moving_bases[1], store=store, method=MAP, task=tiny_task, training=training, name="best"
        )
        assert trained.manifest.best_step < 6
    parts = load_file(trained.folder / FILE)
    assert FILE in trained.manifest.files
    if keep == "last":
        assert parts["projection_out"].any()
        assert parts["projection_bias"].any()
    case = Case(first, *moving_bases, tiny_task)
    again = registry.create("recycle/projection").prepare(case.model()[0], case.run(projection=parts))
    model, _ = anytune.load(trained, store=store)
    wanted = {name: tensor for name, tensor in state(model).items() if "lora_" in name or "modules_to_save" in name}
    found = state(again)
    assert wanted
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)


def test_it_is_applied_to_another_tasks_weights_without_training(shelf, moving_bases):
    trained, second, task = shelf
    store = store_of(trained)
    [entry] = anytune.recycle(
        second, moving_bases[1], store=store, method="projection", projection=trained, task=task, training=SHORT
    )
    assert entry.manifest.steps == 0
    assert not (entry.folder / FILE).exists()
    parents = {parent.id for parent in entry.manifest.parents if parent.role == "delta"}
    assert parents == {second.manifest.id, trained.manifest.id}
    case = Case(second, *moving_bases, task)
    parts = load_file(trained.folder / FILE)
    old = case.outdated.install(case.model()[0])
    vector = torch.cat([one.detach().flatten() for one in old.parameters() if one.requires_grad])
    moved = vector + shift_of(vector, *(parts[f"projection_{part}"] for part in ("in", "out", "bias")), True)
    model, _ = anytune.load(entry, store=store)
    names = [name for name, one in old.named_parameters() if one.requires_grad]
    there = dict(model.named_parameters())
    found = torch.cat([there[name].detach().flatten() for name in names])
    torch.testing.assert_close(found, moved, rtol=0, atol=1e-6)
    assert not torch.equal(found, vector)


def test_another_layout_is_refused(shelf, moving_bases, old_full, tiny_task):
    trained, _, _ = shelf
    with pytest.raises(MethodError, match="trained for"):
        anytune.recycle(old_full, moving_bases[1], store=store_of(old_full), method="projection",
                        projection=trained.folder, task=tiny_task, training=SHORT)  # fmt: skip


def test_a_projection_that_nobody_reads_or_that_is_none_is_refused(shelf, moving_bases):
    trained, second, task = shelf
    for method, given, match in (
        ("direct", trained, "no method takes"),
        ("projection", second, "holds no projection"),
    ):
        with pytest.raises(AnytuneError, match=match):
            anytune.recycle(
                second, moving_bases[1], store=store_of(trained), method=method, projection=given, task=task
            )


def test_full_keeps_the_weights_beside_the_vector_as_they_are(full_case):
    model, _ = full_case.prepared("projection", rank=1)
    direct = dict(full_case.prepared("direct")[0].named_parameters())
    trained = {name for name, one in model.named_parameters() if one.requires_grad}
    bare = {full_case.new.anatomy.canonical(name) for name in trained}
    assert bare >= set(full_case.outdated.difference())
    assert trained <= set(direct)


def test_from_the_command_line(shelf, moving_bases, cli):
    trained, second, task = shelf
    words = ("recycle", second.reference, "--base", moving_bases[1], "--old-base", moving_bases[0], "--task", task,
             "--store", trained.folder.parent.parent, "--projection", trained.reference, "--quiet")  # fmt: skip
    done = cli(*words, "--method", "projection", "--name", "by-hand")
    assert done.code == 0, done.err
    assert "by-hand" in done.out
    refused = cli(*words, "--method", "direct")
    assert refused.code == 2
    assert "no method takes it" in refused.err
    assert "Traceback" not in refused.err


def test_a_soft_prompt_goes_through_a_map_and_the_methods_of_differences_refuse_it(
    moving_bases, tiny_task, tmp_path_factory
):
    method = {"name": "prompt_tuning", "length": 3}
    entry = tuned(tmp_path_factory.mktemp("prompt"), moving_bases[0], tiny_task, method, steps=4, evaluate_every=4)
    case = Case(entry, *moving_bases, tiny_task)
    model, _ = case.prepared("projection", rank=2)
    assert equal(state(model), state(case.prepared("direct")[0]))
    assert {name for name, one in model.named_parameters() if one.requires_grad} >= {"soft_prompt.table"}
    for name, match in (("scaled", "cannot be scaled"), ("masked", "nothing to mask"), ("rebasin", "no heads"),
                        ("mapped", "of the kind 'prompt'")):  # fmt: skip
        with pytest.raises(MethodError, match=match):
            case.prepared(name)


def test_bottleneck_adapters_go_through_a_map_and_nothing_of_the_body_is_in_it(
    moving_bases, tiny_task, tmp_path_factory
):
    method = {"name": "bottleneck", "width": 3}
    entry = tuned(tmp_path_factory.mktemp("narrow"), moving_bases[0], tiny_task, method, steps=4, evaluate_every=4)
    case = Case(entry, *moving_bases, tiny_task)
    model, _ = case.prepared("projection", rank=2)
    direct = state(case.prepared("direct")[0])
    assert equal(state(model), direct)
    assert {name for name, one in model.named_parameters() if one.requires_grad} == set(case.outdated.head)
    assert equal(state(case.prepared("rebasin")[0]), direct)
    with pytest.raises(MethodError, match="nothing to mask"):
        case.prepared("masked")
