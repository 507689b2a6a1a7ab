"""Bottleneck adapters on a model of every kind: where they stand, what they compute, and that they come back."""

from __future__ import annotations

import copy

import pytest
import torch

from anytune import compat
from anytune.errors import DeltaError, MethodError
from anytune.models.anatomy import anatomy_of
from anytune.models.bottleneck import (
    BottleneckConfig,
    attach_bottlenecks,
    bottleneck_names,
    bottlenecks_of,
    projections,
    put_bottlenecks,
)
from anytune.models.delta import FullDelta
from anytune.models.peft_models import make_lora
from tests.models.conftest import LABELS
from tests.models.test_anatomy import ALL, batch_of, model_of

SMALL = BottleneckConfig(width=3)


def classifier(kind):
    return copy.deepcopy(model_of(kind, "sequence-classification"))


def logits(model, batch):
    with torch.no_grad():
        return model.eval()(**batch).logits


def hidden_size(model):
    return next(getattr(model.config, name) for name in ("hidden_size", "dim", "n_embd", "d_model")
                if hasattr(model.config, name))  # fmt: skip


def inputs(kind):
    batch = batch_of(kind)
    if kind.startswith("t5"):
        batch["input_ids"][:, -1] = 1  # its classifier reads the end of the text
    return batch


@pytest.mark.parametrize("kind", ALL)
def test_every_kind_has_one_behind_each_attention_and_each_feed_forward_network(kind):
    model = classifier(kind)
    anatomy = anatomy_of(model)
    found = projections(model, anatomy)
    per_block = sum(len(blocks) * (len(stack.attention) + 1) for stack, blocks in anatomy.block_stacks(model))
    assert len(found) == per_block == (10 if anatomy.encoder_decoder else 4)
    names = {path.rpartition(".")[2] for path in found}
    assert names <= {"dense", "out_lin", "lin2", "Wo", "c_proj", "o_proj", "down_proj", "o", "wo"}
    before = logits(model, inputs(kind))
    made = attach_bottlenecks(model, SMALL, anatomy, seed=3, std=0.5)
    assert {adapter.down.in_features for adapter in made.values()} == {hidden_size(model)}
    assert not torch.allclose(logits(model, inputs(kind)), before)
    parts = anatomy.split(model.state_dict())
    assert set(bottleneck_names(model)) <= set(parts.task_head)
    with torch.no_grad():
        for adapter in made.values():
            adapter.up.weight.zero_()
    assert torch.equal(logits(model, inputs(kind)), before)


def test_it_is_the_residual_network_of_its_formula(batch):
    model = classifier("bert")
    anatomy = anatomy_of(model)
    path = "encoder.layer.1.output.dense"
    layer = anatomy.backbone(model).get_submodule(path)
    given = torch.randn(2, 5, layer.in_features, generator=torch.Generator().manual_seed(0))
    plain = layer(given)
    adapter = attach_bottlenecks(model, SMALL, anatomy, std=0.5)[path.replace(".", "_")]
    with torch.no_grad():
        adapter.down.bias.add_(0.3)
        adapter.up.bias.add_(-0.2)
    squeezed = plain @ adapter.down.weight.T + adapter.down.bias
    bent = 0.5 * squeezed * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (squeezed + 0.044715 * squeezed**3)))
    torch.testing.assert_close(layer(given), plain + bent @ adapter.up.weight.T + adapter.up.bias)


def test_the_start_is_drawn_from_its_seed_alone_and_is_nearly_the_identity():
    drawn = []
    for seed in (1, 1, 2):
        torch.rand(3)
        state = torch.get_rng_state()
        made = attach_bottlenecks(classifier("bert"), BottleneckConfig(width=8), anatomy_of("bert"), seed)
        assert torch.equal(torch.get_rng_state(), state)
        drawn.append(torch.cat([weight.flatten() for weight in made.parameters() if weight.ndim == 2]))
        assert all(not weight.any() for weight in made.parameters() if weight.ndim == 1)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert 0.008 < drawn[0].std() < 0.012


def test_a_copy_of_a_model_has_adapters_of_its_own():
    model, batch = classifier("bert"), batch_of("bert")
    attach_bottlenecks(model, SMALL, anatomy_of(model), std=0.5)
    twin, before = copy.deepcopy(model), logits(model, batch)
    with torch.no_grad():
        for weight in bottlenecks_of(twin).parameters():
            weight.add_(0.5)
    assert torch.equal(logits(model, batch), before)
    assert not torch.allclose(logits(twin, batch), before)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "llama"])
def test_a_delta_keeps_them_with_its_head_and_an_empty_body(kind, make_base, tmp_path):
    base = make_base(kind=kind)
    model, head = base.task_model("classification", LABELS, seed=1)
    attach_bottlenecks(model, SMALL, base.anatomy, seed=5, std=0.5)
    names = [*head, *bottleneck_names(model)]
    delta = FullDelta.extract(base.tensors(), model.state_dict(), names, base.anatomy, base.identity,
                              bottlenecks_of(model).config.to_record())  # fmt: skip
    assert delta.difference == {}
    delta.save(tmp_path / "kept")
    back = FullDelta.load(tmp_path / "kept")
    assert back.bottleneck == {"width": 3, "activation": "gelu_tanh"}
    other, _ = base.task_model("classification", LABELS, seed=8)
    back.install(other, base.tensors(), base.identity)
    batch = {"input_ids": torch.randint(5, 90, (3, 10), generator=torch.Generator().manual_seed(7))}
    assert torch.equal(logits(other, batch), logits(model, batch))
    again, _ = base.task_model("classification", LABELS, seed=8)
    put_bottlenecks(again, delta.bottleneck)  # already there: filled, not doubled
    back.install(again, base.tensors(), base.identity)
    assert torch.equal(logits(again, batch), logits(model, batch))


def test_a_delta_without_them_has_the_format_that_an_earlier_version_reads(make_base, tuned, tmp_path):
    base = make_base()
    model, head = tuned(base)
    delta = FullDelta.extract(base.tensors(), model.state_dict(), head, base.anatomy, base.identity)
    raw = delta.save(tmp_path / "plain").read_bytes()
    assert b'\\"format_version\\":1' in raw
    assert b"bottleneck" not in raw


@pytest.mark.parametrize(
    "record",
    [{"width": 0, "activation": "relu"}, {"width": 10**9, "activation": "relu"}, {"width": 4, "activation": "exec"},
     {"width": True, "activation": "relu"}, {"width": 4}, {"width": 4, "activation": "relu", "more": 1}, "text"],
)  # fmt: skip
def test_damaged_settings_are_refused(record):
    with pytest.raises(DeltaError, match="settings of its bottleneck adapters"):
        BottleneckConfig.from_record(record)


def test_other_adapters_beside_them_are_refused():
    model = classifier("bert")
    attach_bottlenecks(model, SMALL, anatomy_of(model))
    with pytest.raises(MethodError, match="another adapter already"):
        attach_bottlenecks(model, SMALL, anatomy_of(model))
    with pytest.raises(DeltaError, match="another adapter already"):
        put_bottlenecks(model, {"width": 4, "activation": "relu"})
    with compat.quiet_transformers():
        lora = make_lora(classifier("bert"), head_names=[], r=2)
    with pytest.raises(MethodError, match="another adapter already"):
        attach_bottlenecks(lora, SMALL, anatomy_of("bert"))
