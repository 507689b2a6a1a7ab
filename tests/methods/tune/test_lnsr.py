from __future__ import annotations

import pytest
import torch

from anytune.errors import MethodError
from anytune.methods.consistency import token_weights
from anytune.methods.objective import Classification
from anytune.methods.protocol import Run
from anytune.methods.registry import create
from anytune.methods.step import StepModule
from anytune.methods.tune import lnsr
from anytune.methods.tune.lnsr import first_noisy, hidden_states, squared_change
from anytune.models.base import load_base
from tests.methods.prepared import batch_of, prepared
from tests.models.kinds import KINDS, VARIANTS, make_kind


def wave(values, scale, shape="normal"):
    places = torch.arange(values.shape[1] * values.shape[2], dtype=values.dtype).view(values.shape[1:])
    return scale * places.sin().expand(values.shape)


def test_noise_stands_above_at_least_one_block_and_below_at_least_one():
    assert [first_noisy(share, 12) for share in (0.0, 0.25, 0.5, 0.99)] == [1, 3, 6, 11]
    assert first_noisy(0.0, 2) == first_noisy(0.9, 2) == 1
    with pytest.raises(MethodError, match="the model has 1 block"):
        first_noisy(0.25, 1)


def test_a_token_weighs_what_its_text_weighs_shared_by_the_texts_tokens():
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    weights = token_weights({"labels": torch.tensor([0, 1])}, mask, False)
    assert weights.tolist() == [[0.125] * 4, [0.25, 0.25, 0.0, 0.0]]
    clean = torch.zeros(2, 4, 3)
    assert squared_change(clean, clean + 2.0, weights).item() == pytest.approx(12.0)


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("kind", [*KINDS, *VARIANTS])
def test_the_second_pass_is_a_whole_pass_with_noise_put_in_on_every_kind(kind, dropout, tmp_path, monkeypatch):
    """With equal dropout: the whole pass is made again from the same random state, noise added by a hook."""
    monkeypatch.setattr(lnsr, "noise_like", wave)
    sizes = {"t5": {"num_layers": 3}, "distilbert": {"n_layers": 3}, "gpt2": {"n_layer": 3}}
    model_type = VARIANTS.get(kind, kind)
    base = load_base(make_kind(kind, tmp_path, **sizes.get(model_type, {"num_hidden_layers": 3})))
    model, head = base.task_model("classification", ("a", "b", "c"), 0)
    model = model.double().train()
    if not dropout:
        model.eval()
    objective, batch = Classification(), batch_of()
    method = create("tune/lnsr", {"norm": 2.0, "weight": 3.0})
    run = Run(seed=0, steps=1, anatomy=base.anatomy, head_names=head, objective=objective)
    method.prepare(model, run)
    method.before_step(model)
    torch.manual_seed(7)
    found = StepModule(model, [method], objective)(method.prepare_batch(batch))
    ended = torch.rand(1)

    blocks = base.anatomy.block_stacks(model)[0][1]
    assert len(blocks) == 3
    seen: list[list[torch.Tensor]] = []
    for noisy in (False, True):
        seen.append([])

        def record(module, given, output):
            seen[-1].append(hidden_states(output))

        def noise(module, given, output, noisy=noisy):
            changed = hidden_states(output)
            changed = changed + wave(changed, 2.0 / changed.shape[-1] ** 0.5) if noisy else changed
            return changed if isinstance(output, torch.Tensor) else (changed, *output[1:])

        handles = [blocks[0].register_forward_hook(noise), *(one.register_forward_hook(record) for one in blocks[1:])]
        torch.manual_seed(7)
        objective.forward(model, batch)
        if not noisy:
            assert torch.equal(ended, torch.rand(1)), "nothing more is drawn than in plain training"
        for handle in handles:
            handle.remove()
    real = batch["attention_mask"].double()
    weights = real / real.sum(1, keepdim=True) / len(real)
    expected = sum(((one - two).square().sum(-1) * weights).sum() for one, two in zip(*seen, strict=True))
    assert expected.item() > 0.01
    torch.testing.assert_close(found["stability"], 3.0 * expected, rtol=1e-10, atol=0)
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in blocks)


@pytest.mark.parametrize("kind", ["regression", "token-classification"])
def test_other_kinds_of_task_have_a_term_and_gradients_reach_below_the_noise(tiny_base, kind):
    ready = prepared(tiny_base, "tune/lnsr", kind)
    ready.terms(batch_of(kind))["stability"].backward()
    names = {name for name, parameter in ready.model.named_parameters() if parameter.grad is not None}
    assert any("layer.0" in name for name in names)
    assert any("layer.1" in name for name in names)
    assert not any("classifier" in name for name in names)


def test_a_model_of_one_block_is_refused_as_it_is_prepared(tmp_path):
    base = load_base(make_kind("bert", tmp_path, num_hidden_layers=1))
    model, head = base.task_model("classification", ("a", "b"), 0)
    with pytest.raises(MethodError, match="the model has 1 block"):
        create("tune/lnsr").prepare(model, Run(seed=0, steps=1, anatomy=base.anatomy, head_names=head))


def test_what_stands_between_two_blocks_is_noticed(tmp_path):
    base = load_base(make_kind("bert", tmp_path, num_hidden_layers=3))
    model, head = base.task_model("classification", ("a", "b", "c"), 0)
    method, objective = create("tune/lnsr"), Classification()
    method.prepare(model, Run(seed=0, steps=1, anatomy=base.anatomy, head_names=head))
    method.before_step(model)
    layers = model.bert.encoder.layer
    batch = method.prepare_batch(batch_of())
    layers[2].register_forward_pre_hook(lambda module, given: (given[0] * 2, *given[1:]), prepend=True)
    with pytest.raises(MethodError, match="the model computes something else"):
        StepModule(model, [method], objective)(batch)


def test_only_the_first_pass_of_a_batch_is_recorded_and_no_hook_is_left_behind(tiny_base):
    ready = prepared(tiny_base, "tune/lnsr")
    batch = ready.method.prepare_batch(batch_of())
    output = ready.objective.forward(ready.model, batch)
    recording = ready.method._recording
    first, given = dict(recording.gave), {number: one[0][0] for number, one in recording.given.items()}
    ready.objective.forward(ready.model, {**batch, "input_ids": batch["input_ids"].flip(0)})
    assert all(recording.gave[number] is first[number] for number in first)
    assert all(recording.given[number][0][0] is given[number] for number in first)
    assert output is not None
    ready.method.finish(ready.model, ready.run)
    for module in ready.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
