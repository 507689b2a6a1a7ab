from __future__ import annotations

import pytest
import torch

from anytune import compat
from anytune.errors import MethodError
from anytune.methods.protocol import Run
from anytune.methods.tune.lora import LoRA
from anytune.methods.tune.reinit import Reinit, redraw, standard_deviation
from anytune.models.base import load_base
from tests.models.kinds import KINDS, VARIANTS, make_kind


def task_model(folder, task="classification"):
    base = load_base(folder)
    model, head = base.task_model(task, ("a", "b"), 0)
    return base, model, Run(seed=11, steps=1, anatomy=base.anatomy, head_names=head)


def changed(before, model) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_a_module_is_drawn_as_the_formula_says_whatever_way_its_matrices_are_stored():
    config = type("Config", (), {"initializer_range": 0.5, "hidden_size": 60})
    conv = next(kind for kind in compat.linear_types() if kind is not torch.nn.Linear)
    module = torch.nn.Sequential(
        torch.nn.Linear(60, 50), conv(50, 60), torch.nn.Embedding(40, 60, padding_idx=3), torch.nn.LayerNorm(60)
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(7.0)
    redraw(module, config, torch.Generator().manual_seed(3))
    again = torch.Generator().manual_seed(3)
    linear, transposed, table, norm = module
    for matrix in (linear, transposed, table):
        expected = torch.randn(matrix.weight.shape, generator=again) * 0.5
        if matrix is table:
            expected[3] = 0
        assert torch.equal(matrix.weight, expected)
        assert 0.4 < matrix.weight.std() < 0.6
    assert not linear.bias.any()
    assert not transposed.bias.any()
    assert norm.weight.eq(1).all()
    assert not norm.bias.any()


def test_kinds_without_a_range_are_drawn_by_the_number_of_inputs():
    config = type("Config", (), {"initializer_factor": 2.0, "d_kv": 16})
    assert standard_deviation("layer.0.SelfAttention.k", 64, config) == 2 / 8
    assert standard_deviation("layer.0.SelfAttention.q", 64, config) == 2 / 8 / 4


@pytest.mark.parametrize("kind", [*KINDS, *VARIANTS])
def test_every_weight_of_the_last_block_is_drawn_and_of_no_other(kind, tmp_path):
    base, model, run = task_model(
        make_kind(kind, tmp_path), "generation" if kind.startswith("t5") else "classification"
    )
    before = snapshot(model)
    model = Reinit(layers=1).prepare(model, run)
    *_, (stack, _) = base.anatomy.block_stacks(model)
    found = changed(before, model)
    expected = {name for name in before if f".{stack.blocks}.1." in f".{name}" or base.anatomy.is_pooler(name)}
    # biases that are zeros already stay zeros
    assert found == {name for name in expected if before[name].any() or model.state_dict()[name].any()}
    assert ("decoder" in next(iter(found))) == kind.startswith("t5")
    for name in found:
        weight = model.state_dict()[name]
        if weight.ndim == 2:
            assert weight.std() > 0
        elif not weight.eq(1).all():
            assert not weight.any(), name
    assert torch.isfinite(model.eval()(**base_batch(kind)).logits).all()


def base_batch(kind):
    ids = torch.tensor([[5, 6, 7, 8]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {**batch, "decoder_input_ids": ids} if kind.startswith("t5") else batch


def test_as_many_blocks_as_asked_for_from_the_top_and_none_for_zero(tiny_base):
    for layers, expected in ((0, set()), (1, {"1"}), (2, {"0", "1"})):
        _, model, run = task_model(tiny_base)
        before = snapshot(model)
        found = changed(before, Reinit(layers=layers).prepare(model, run))
        assert {name.split(".layer.")[1][0] for name in found if ".layer." in name} == expected
        assert any("pooler" in name for name in found) == bool(layers)
        assert not any("embeddings" in name or "classifier" in name for name in found)


def test_it_draws_from_the_runs_seed_and_from_nothing_else(tiny_base):
    def drawn(seed):
        _, model, run = task_model(tiny_base)
        run.seed = seed
        state = torch.get_rng_state()
        weight = Reinit().prepare(model, run).bert.encoder.layer[1].output.dense.weight
        assert torch.equal(state, torch.get_rng_state())
        return weight

    torch.manual_seed(1)
    one = drawn(5)
    torch.manual_seed(2)
    assert torch.equal(one, drawn(5))
    assert not torch.equal(one, drawn(6))


def test_more_blocks_than_there_are_is_an_error_with_the_number(tiny_base):
    _, model, run = task_model(tiny_base)
    with pytest.raises(MethodError, match="layers = 3, and this base has 2 blocks") as caught:
        Reinit(layers=3).prepare(model, run)
    assert "layers=2" in caught.value.fix


def test_an_adapter_is_refused_before_and_after(tiny_base):
    _, model, run = task_model(tiny_base)
    wrapped = LoRA().prepare(model, run)
    with pytest.raises(MethodError, match="cannot be combined with an adapter"):
        Reinit().prepare(wrapped, run)
    with pytest.raises(MethodError, match="cannot be combined with an adapter"):
        Reinit().param_groups(wrapped, [])


def test_quantised_weights_are_refused(tiny_base):
    _, model, run = task_model(tiny_base)
    dense = model.bert.encoder.layer[1].output.dense
    dense.weight = torch.nn.Parameter(torch.ones(32, 64, dtype=torch.int8), requires_grad=False)
    with pytest.raises(MethodError, match=r"output.dense.weight \(int8\)"):
        Reinit().prepare(model, run)
