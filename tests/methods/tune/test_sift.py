from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from anytune.engine import derive_seed, learning_rate_share, method_groups
from anytune.errors import MethodError, SettingsError
from anytune.methods import registry
from anytune.methods.objective import Classification
from anytune.methods.step import total
from anytune.methods.tune.llrd import LayerwiseDecay
from anytune.methods.tune.sift import Entries, Sift, find_places, largest_entries
from anytune.methods.tune.top_k_layers import TopKLayers
from tests.contract.bench import Bench, equal
from tests.contract.conftest import bench  # noqa: F401
from tests.contract.places import SEED, Places


def in_blocks(model) -> list[str]:
    return [name for name, one in model.named_parameters() if ".layer." in name and one.ndim == 2]


def prepared(places: Places, *methods, **changed):
    model, head_names = places.model()
    run = replace(places.run(head_names), **changed)
    for method in methods:
        model = method.prepare(model, run)
    return model, run


def places_of(bench: Bench, *methods, **settings) -> Places:  # noqa: F811
    places = Places(bench, "tune/sift", **settings)
    if methods:
        places.methods = lambda: [registry.create(f"tune/{one.name}", registry.settings_of(one)) for one in methods]
    return places


# ---------------------------------------------------------------- the entries


@pytest.mark.parametrize(("share", "k"), [(0.01, 1), (0.1, 3), (0.35, 9), (1.0, 24)])
def test_exactly_k_of_the_largest_gradients_are_chosen_also_among_equal_ones(share, k):
    generator = torch.Generator().manual_seed(0)
    for gradient in (torch.randn(4, 6, generator=generator), torch.ones(4, 6), torch.zeros(4, 6),
                     torch.randn(4, 6, generator=generator).round()):  # fmt: skip
        order = gradient.abs().reshape(-1).sort(descending=True, stable=True).indices[:k]
        assert largest_entries(gradient, share).tolist() == sorted(order.tolist())


def test_gradients_of_several_micro_batches_are_summed():
    layer = torch.nn.Linear(3, 2)
    inputs = [torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 5.0, 0.0]]), torch.tensor([[3.0, -2.0, 0.0]])]
    losses = [lambda one=one: layer(one)[:, 0].sum() for one in inputs]
    chosen = {"weight": layer.weight}
    # summed gradients of the first output: 4, 3, 0
    assert find_places(layer, chosen, losses, 1 / 6)["weight"].tolist() == [0]
    assert find_places(layer, chosen, losses[:2], 1 / 6)["weight"].tolist() == [1]
    assert layer.weight.grad is None
    assert layer.bias.grad is None
    assert layer.bias.requires_grad
    assert find_places(layer, chosen, [lambda: layer.bias.sum() + 0 * layer.weight.sum()], 0.5) == {}


def test_the_run_is_that_of_a_naive_loop_bit_for_bit(bench: Bench):  # noqa: F811
    """W = W0 + v at k entries, AdamW on v and the head, from a naive sort of the first batch's gradients."""
    places = places_of(bench)
    model, head_names = places.model()
    torch.manual_seed(derive_seed(SEED, "train"))

    def loss(batch):
        return total(places.objective.terms(places.objective.forward(model, batch), batch))

    loss(places.batches.batch(0)).backward()  # the model comes in eval mode: no dropout
    weights, index, start, value = dict(model.named_parameters()), {}, {}, {}
    for name in in_blocks(model):
        flat = weights[name].grad.reshape(-1).abs()
        index[name] = flat.sort(descending=True).indices[: -(-len(flat) // 10)].sort().values
        start[name] = weights[name].detach().reshape(-1)[index[name]].clone()
        value[name] = torch.zeros(len(index[name]), requires_grad=True)
    ours = {name: value.get(name, one) for name, one in weights.items() if name in value or name in head_names}
    matrices = [one for name, one in ours.items() if weights[name].ndim > 1]
    vectors = [one for name, one in ours.items() if weights[name].ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], fused=True
    )
    for step in range(places.steps):
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = places.rate * learning_rate_share(step, places.steps, 0.4, places.options.schedule)
        model.zero_grad()
        loss(places.batches.batch(step)).backward()
        for name, one in value.items():
            one.grad = weights[name].grad.reshape(-1)[index[name]]
        torch.nn.utils.clip_grad_norm_(matrices + vectors, places.options.max_grad_norm)
        optimizer.step()
        with torch.no_grad():
            for name, one in value.items():
                weights[name].view(-1)[index[name]] = start[name] + one
    after = places.loop()
    assert equal(after, dict(model.state_dict()))
    untouched = places.model()[0].state_dict()
    for name, tensor in after.items():
        moved = int((tensor != untouched[name]).sum())
        if name in value:
            assert 0.9 * len(index[name]) < moved <= len(index[name])
        else:
            assert bool(moved) == (name in head_names)


def test_the_last_step_is_in_the_weights(bench: Bench):  # noqa: F811
    """Also of a run of one step (the published code would lose it)."""
    after, before = (
        places_of(bench, steps=1, training={"warmup": 0.0}).loop(),
        places_of(bench).model()[0].state_dict(),
    )
    for name in before:
        if ".layer." in name and before[name].ndim == 2:
            assert not torch.equal(after[name], before[name]), name


def test_everything_else_is_trained_too_if_asked_for_and_other_matrices_stay_whole(bench: Bench):  # noqa: F811
    places = places_of(bench, Sift(share=0.1, others="all", include="attention"))
    after, before = places.loop(), places.model()[0].state_dict()
    for name in before:
        moved = float((after[name] != before[name]).float().mean())
        if ".attention." in name and before[name].ndim == 2:
            assert 0 < moved < 0.11, name
        elif before[name].is_floating_point() and "embeddings" not in name:
            assert moved > 0.5, name


# ---------------------------------------------------------------- how it fits in


def test_differences_stand_in_the_groups_of_their_matrices_and_dropout_draws_as_without_it(bench: Bench):  # noqa: F811
    places = places_of(bench)
    method = Sift()
    model, run = prepared(places, method)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    groups = method_groups(model, [method], 1e-3, 0.1)
    assert torch.equal(before, torch.get_rng_state())
    found = {name: (one, group["weight_decay"]) for group in groups
             for name, one in zip(group["names"], group["params"], strict=True)}  # fmt: skip
    assert {name for name in found if name.endswith(".difference")} == {
        f"{name}.difference" for name in in_blocks(model)
    }
    assert {name for name in found if not name.endswith(".difference")} == set(run.head_names)
    assert all(decay == 0.1 for name, (_, decay) in found.items() if name.endswith(".difference"))
    assert dict(model.named_parameters()).keys() == dict(places.model()[0].named_parameters()).keys()
    again = method.param_groups(model, [])  # of a second stage: the same entries
    assert again == []
    assert method._entries[in_blocks(model)[0]].value is found[f"{in_blocks(model)[0]}.difference"][0]


def test_an_objective_that_draws_does_so_from_the_runs_seed(bench: Bench):  # noqa: F811
    class Noisy(Classification):
        def terms(self, output, batch):
            return {"loss": (output.logits * torch.randn(output.logits.shape)).sum()}

    def found(seed, run_seed):
        method = Sift()
        model, _ = prepared(places_of(bench), method, objective=Noisy(), seed=run_seed)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        method.param_groups(model, [])
        assert torch.equal(before, torch.get_rng_state())
        return torch.cat([entries.index for entries in method._entries.values()])

    assert torch.equal(found(1, 5), found(2, 5))
    assert not torch.equal(found(1, 5), found(1, 6))


def test_with_layerwise_decay_differences_learn_at_the_rate_of_their_block(bench: Bench):  # noqa: F811
    for methods in ([Sift(), LayerwiseDecay(decay=0.5)], [LayerwiseDecay(decay=0.5), Sift()]):
        model, _ = prepared(places_of(bench), *methods)
        rates = {name: group["lr"] for group in method_groups(model, methods, 1.0, 0.1) for name in group["names"]}
        for name, rate in rates.items():
            assert rate == (0.5 if ".layer.1." in name else 0.25 if ".layer.0." in name else 1.0), name


def test_with_top_k_layers_only_the_top_blocks_have_entries(bench: Bench):  # noqa: F811
    for methods in ([TopKLayers(k=1), Sift(share=0.1)], [Sift(share=0.1), TopKLayers(k=1)]):
        places = places_of(bench, *methods)
        after, before = places.loop(), places.model()[0].state_dict()
        for name in before:
            if before[name].ndim == 2 and ".layer." in name:
                assert torch.equal(after[name], before[name]) == (".layer.0." in name), name


def test_a_resumed_run_takes_the_stored_entries_and_looks_at_no_batch(bench: Bench):  # noqa: F811
    places = places_of(bench)
    method, other = Sift(share=0.1), Sift(share=0.1)
    model, _ = prepared(places, method)
    method_groups(model, [method], 1e-3, 0.0)
    for entries in method._entries.values():
        entries.value.data.fill_(0.25)
    state = method.state_dict()

    class Unread:
        batches_per_epoch = 1

        def batch(self, step):
            raise AssertionError("it was read")

    again, _ = prepared(places, other, batches=Unread())
    other.load_state_dict(state)
    groups = method_groups(again, [other], 1e-3, 0.0)
    value = next(one for group in groups for one in group["params"] if one.ndim == 1)
    assert value.eq(0.25).all()
    for name, entries in other._entries.items():
        assert torch.equal(entries.index, method._entries[name].index)
        entries.write(again.get_parameter(name))
        moved = again.get_parameter(name) - model.get_parameter(name)
        assert moved.count_nonzero() == len(entries.index)
    # made before the state came (in a Trainer): the optimizer's parameters stay the same objects
    late = Sift(share=0.1)
    third, _ = prepared(places, late)
    method_groups(third, [late], 1e-3, 0.0)
    kept = {name: entries.value for name, entries in late._entries.items()}
    late.load_state_dict(state)
    assert all(late._entries[name].value is value and value.eq(0.25).all() for name, value in kept.items())
    late = Sift(share=0.2)
    third, _ = prepared(places, late)
    method_groups(third, [late], 1e-3, 0.0)
    with pytest.raises(MethodError, match="entries of other matrices"):
        late.load_state_dict(state)


def test_a_run_in_a_trainer_that_was_cut_ends_in_the_same_bits(bench: Bench, tmp_path):  # noqa: F811
    from transformers import TrainerCallback

    class Killed(BaseException):
        pass

    class Kill(TrainerCallback):
        def on_step_begin(self, args, state, control, **rest):
            if state.global_step == 3:
                raise Killed

    saving = {"save_strategy": "steps", "save_steps": 2, "logging_strategy": "no"}
    places = places_of(bench)
    with pytest.raises(Killed):
        places.trainer(tmp_path, arguments=saving, callbacks=[Kill()]).train()
    again = places.trainer(tmp_path, arguments=saving)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == places.steps
    assert equal(dict(again.inner.state_dict()), places.loop())


def test_an_entry_whose_difference_is_written_is_start_plus_value_in_any_layout():
    weight = torch.nn.Parameter(torch.arange(12.0).reshape(3, 4).t())
    entries = Entries.of(weight, torch.tensor([1, 5]))
    with torch.no_grad():
        entries.value.copy_(torch.tensor([10.0, 20.0]))
    entries.write(weight)
    assert weight.reshape(-1).tolist() == [0, 14, 8, 1, 5, 29, 2, 6, 10, 3, 7, 11]


# ---------------------------------------------------------------- what cannot be had


def test_a_run_in_which_nothing_is_selected_is_an_error(bench: Bench):  # noqa: F811
    places = places_of(bench)
    with pytest.raises(MethodError, match="found no matrix of the blocks that can be trained"):
        prepared(places, TopKLayers(k=0), Sift())
    methods = [Sift(), TopKLayers(k=0)]
    model, _ = prepared(places, *methods)
    with pytest.raises(MethodError, match="sift has no entry left to train") as caught:
        method_groups(model, methods, 1e-3, 0.0)
    assert "give sift last" in caught.value.fix

    class Nothing(Classification):
        def terms(self, output, batch):
            return {"loss": (output.logits * 0).sum()}

    method = Sift()
    model, _ = prepared(places, method, objective=Nothing())
    with pytest.raises(MethodError, match="every gradient is 0"):
        method_groups(model, [method], 1e-3, 0.0)


def test_a_step_whose_loss_reaches_no_entry_is_an_error(bench: Bench):  # noqa: F811
    method = Sift()
    model, _ = prepared(places_of(bench), method)
    optimizer = torch.optim.AdamW(method_groups(model, [method], 1e-3, 0.0))
    method.attach(model, optimizer)
    method.before_step(model)
    model.classifier.bias.sum().backward()
    with pytest.raises(MethodError, match="no chosen entry has a gradient"):
        method.after_backward(model)


def test_gradients_that_are_not_finite_choose_nothing(bench: Bench):  # noqa: F811
    class Broken(Classification):
        def terms(self, output, batch):
            return {"loss": (output.logits * float("nan")).sum()}

    method = Sift()
    model, _ = prepared(places_of(bench), method, objective=Broken())
    with pytest.raises(MethodError, match="is not finite before the first step"):
        method_groups(model, [method], 1e-3, 0.0)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_adapters_missing_data_and_more_micro_batches_than_there_are_are_refused(bench: Bench):  # noqa: F811
    places = places_of(bench)
    with pytest.raises(MethodError, match="sift cannot be combined with an adapter"):
        prepared(places, registry.create("tune/lora"), Sift())
    methods = [Sift(), registry.create("tune/lora")]
    model, _ = prepared(places, *methods)
    with pytest.raises(MethodError, match="sift has no entry left to train"):
        method_groups(model, methods, 1e-3, 0.0)
    for missing in ("objective", "batches"):
        with pytest.raises(MethodError, match=f"needs to know the run's {missing}"):
            prepared(places, Sift(), **{missing: None})
    count = places.batches.batches_per_epoch
    with pytest.raises(MethodError, match=f"batches = {count + 1}, and the training data are {count} micro-batches"):
        prepared(places, Sift(batches=count + 1))


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan")])
def test_a_share_outside_its_limits_is_refused(share):
    with pytest.raises(SettingsError, match="share = "):
        registry.create("tune/sift", {"share": share})
