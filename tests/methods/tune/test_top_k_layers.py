from __future__ import annotations

import pytest

from anytune.engine import method_groups
from anytune.errors import MethodError, SettingsError
from anytune.methods import registry
from anytune.methods.tune.top_k_layers import TopKLayers
from tests.methods.prepared import prepared_model as prepared
from tests.models.kinds import KINDS, VARIANTS, make_kind


def trained(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_only_the_last_blocks_and_what_follows_them_are_trained(tiny_base):
    expected = {0: (), 1: (".layer.1.",), 2: (".layer.0.", ".layer.1.")}
    for k, parts in expected.items():
        model, run = prepared(tiny_base, TopKLayers(k=k))
        found = trained(model)
        assert set(run.head_names) <= found
        assert "bert.pooler.dense.weight" in found
        for name, _ in model.named_parameters():
            if name not in run.head_names:
                assert (name in found) == any(part in name for part in parts), name


def test_all_blocks_without_and_with_the_embeddings(tiny_base):
    everything = {name for name, _ in prepared(tiny_base)[0].named_parameters()}
    without = trained(prepared(tiny_base, TopKLayers(k=None))[0])
    assert everything - without == {name for name in everything if ".embeddings." in name}
    assert trained(prepared(tiny_base, TopKLayers(k=2))[0]) == without
    for k in (None, 2):
        assert trained(prepared(tiny_base, TopKLayers(k=k, embeddings=True))[0]) == everything


@pytest.mark.parametrize("kind", [*KINDS, *VARIANTS])
def test_in_every_kind_one_block_is_trained_and_what_lies_below_is_not(kind, tmp_path):
    generating = kind.startswith("t5")
    model, run = prepared(
        make_kind(kind, tmp_path), TopKLayers(k=1), task="generation" if generating else "classification"
    )
    found, last = trained(model), run.anatomy.block_stacks(model)[-1][0].blocks
    for name, _ in model.named_parameters():
        depth = run.anatomy.depth(name)
        if generating:
            # an encoder-decoder's pile ends with the decoder; the encoder's last norm lies below it
            assert (name in found) == (f"{last}.1." in name or name in ("decoder.final_layer_norm.weight",
                                                                       "lm_head.weight")), name  # fmt: skip
        else:
            assert (name in found) == (depth in (None, 2)), name


def test_of_an_encoder_decoder_k_reaches_into_the_encoder_once_the_decoder_is_used_up(tmp_path):
    folder = make_kind("t5", tmp_path)
    for k, blocks, norm in ((2, {"decoder"}, False), (3, {"encoder", "decoder"}, True)):
        found = trained(prepared(folder, TopKLayers(k=k), task="generation")[0])
        assert {name.split(".")[0] for name in found if ".block." in name} == blocks
        assert ("encoder.final_layer_norm.weight" in found) == norm
        assert not any("encoder.block.0" in name for name in found)


def test_more_blocks_than_there_are_and_embeddings_below_frozen_blocks_are_errors(tiny_base):
    with pytest.raises(MethodError, match="k = 3, and this base has 2 blocks") as caught:
        prepared(tiny_base, TopKLayers(k=3))
    assert "k=2" in caught.value.fix
    with pytest.raises(MethodError, match="embeddings are to be trained below 1 frozen blocks"):
        prepared(tiny_base, TopKLayers(k=1, embeddings=True))
    with pytest.raises(SettingsError, match="k = -1"):
        registry.create("tune/top_k_layers", {"k": -1})


def test_it_leaves_frozen_what_a_method_before_it_froze(tiny_base):
    model, _ = prepared(tiny_base, registry.create("tune/lora"), TopKLayers(k=1))
    found = trained(model)
    assert any("layer.1" in name for name in found)
    assert all("lora_" in name or "modules_to_save" in name for name in found)
    assert not any("layer.0" in name for name in found)


def test_a_method_after_it_that_trains_a_frozen_block_is_refused(tiny_base):
    for other in ("tune/lora", "tune/bitfit"):
        methods = [TopKLayers(k=1), registry.create(other)]
        model, _ = prepared(tiny_base, *methods)
        with pytest.raises(MethodError, match=r"top_k_layers froze .*(layer.0|embeddings).*, and another method"):
            method_groups(model, methods, 1e-3, 0.0)
        model, _ = prepared(tiny_base, *reversed(methods))
        assert method_groups(model, methods, 1e-3, 0.0)
