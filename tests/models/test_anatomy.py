from __future__ import annotations

import pytest
import torch

from anytune.errors import BaseError
from anytune.models.anatomy import ANATOMIES, anatomy_of
from tests.models.conftest import KINDS, tiny_model


def test_every_row_of_the_table_is_tested_here():
    assert set(ANATOMIES) == set(KINDS)


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("bert.encoder.layer.0.output.dense.weight", "encoder.layer.0.output.dense.weight"),
        ("encoder.layer.0.output.dense.weight", "encoder.layer.0.output.dense.weight"),
        ("bert.embeddings.LayerNorm.gamma", "embeddings.LayerNorm.weight"),
        ("bert.embeddings.LayerNorm.beta", "embeddings.LayerNorm.bias"),
        ("cls.predictions.transform.LayerNorm.gamma", "cls.predictions.transform.LayerNorm.weight"),
        ("classifier.weight", "classifier.weight"),
    ],
)
def test_a_tensor_has_one_canonical_name_whatever_class_or_age_of_library_wrote_it(name, canonical):
    assert ANATOMIES["bert"].canonical(name) == canonical


def test_names_are_split_into_backbone_pretraining_head_task_head_and_what_holds_no_weights():
    parts = ANATOMIES["bert"].split(
        ["bert.embeddings.position_ids", "bert.pooler.dense.bias", "cls.predictions.bias", "classifier.bias"]
    )
    assert parts.ignored == ("bert.embeddings.position_ids",)
    assert parts.backbone == ("bert.pooler.dense.bias",)
    assert parts.pretraining_head == ("cls.predictions.bias",)
    assert parts.task_head == ("classifier.bias",)


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_of_a_real_model_are_where_the_table_says(kind, batch):
    model = tiny_model(kind)
    anatomy = anatomy_of(model)
    backbone, blocks = anatomy.backbone(model), anatomy.block_modules(model)
    assert len(blocks) == 2
    for part in (*anatomy.attention, *anatomy.feed_forward, *anatomy.norms):
        assert sum(weight.numel() for weight in blocks[0].get_submodule(part).parameters()) > 0
    assert backbone.get_parameter(anatomy.word_embeddings).shape[0] == 96
    bare = set(tiny_model(kind, "backbone").state_dict())
    assert {anatomy.canonical(name) for name in anatomy.split(model.state_dict()).backbone} <= bare
    assert all(anatomy.is_backbone(name) for name in bare)
    assert not anatomy.split(model.state_dict()).task_head
    linear = [name for name, module in blocks[0].named_modules() if isinstance(module, torch.nn.Linear)]
    assert all(any(f".{name}".endswith(f".{target}") for target in anatomy.lora_targets) for name in linear)


@pytest.mark.parametrize("kind", KINDS)
def test_the_pretraining_head_gives_the_logits_of_the_whole_model(kind, batch):
    model = tiny_model(kind)
    anatomy = anatomy_of(model)
    with torch.no_grad():
        ours = anatomy.pretraining_logits(model, anatomy.backbone(model)(**batch)[0])
        assert torch.equal(ours, model(**batch).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_depth_counts_embeddings_then_blocks_then_what_comes_after(kind):
    model = tiny_model(kind)
    anatomy = anatomy_of(model)
    assert anatomy.depth(anatomy.in_model(anatomy.word_embeddings)) == 0
    depths = {anatomy.depth(name) for name in anatomy.split(model.state_dict()).backbone}
    assert depths - {None} == {0, 1, 2}
    assert anatomy.depth("classifier.weight") is None


def test_bias_names_are_those_of_the_backbone_alone():
    names = ANATOMIES["bert"].bias_names(tiny_model())
    assert "bert.encoder.layer.1.output.LayerNorm.bias" in names
    assert not any(name.startswith("cls") or name.endswith(".weight") for name in names)


def test_an_unknown_kind_is_refused_and_the_known_ones_are_named():
    with pytest.raises(BaseError, match=r"unknown kind of model 'bertt'[\s\S]*bert, distilbert, llama, roberta"):
        anatomy_of("bertt")


def test_a_model_without_pretraining_head_says_so():
    with pytest.raises(BaseError, match="BertModel has no 'cls'"):
        ANATOMIES["bert"].pretraining_logits(tiny_model(purpose="backbone"), torch.zeros(1, 16))
