from __future__ import annotations

import math

import pytest
import torch

from anytune.evaluate.base_distance import (
    Distance,
    Sums,
    base_distance,
    config_difference,
    module_of,
    norm_of,
    vocabularies,
    weights_distance,
)
from anytune.models.anatomy import ANATOMIES, anatomy_of
from anytune.models.base import load_base
from tests.models.kinds import KINDS, make_kind

BERT = anatomy_of("bert")


def some_weights(seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "embeddings.word_embeddings.weight": torch.randn(6, 3, generator=draw),
        "encoder.layer.0.attention.self.query.weight": torch.randn(3, 3, generator=draw),
        "encoder.layer.0.output.LayerNorm.bias": torch.randn(3, generator=draw),
        "pooler.dense.bias": torch.randn(3, generator=draw),
        "embeddings.position_ids": torch.arange(4) + seed,
    }


def test_distances_are_those_of_the_flattened_weights():
    old, new = some_weights(0), some_weights(1)
    found = weights_distance(old, new, BERT)
    left, right = (torch.cat([t.reshape(-1) for n, t in one.items() if "ids" not in n]).double() for one in (old, new))
    assert found.whole.numbers == len(left)
    assert found.whole.l2 == pytest.approx(float((right - left).norm()))
    assert found.whole.relative == pytest.approx(float((right - left).norm() / left.norm()))
    assert found.whole.rms == pytest.approx(float((right - left).square().mean().sqrt()))
    assert found.whole.cosine == pytest.approx(float(left @ right / left.norm() / right.norm()))
    assert list(found.modules) == ["embeddings", "layer 0 attention", "layer 0 norms", "pooler"]
    query = new["encoder.layer.0.attention.self.query.weight"] - old["encoder.layer.0.attention.self.query.weight"]
    assert found.modules["layer 0 attention"].l2 == pytest.approx(float(query.double().norm()))
    assert norm_of({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}) == 5.0


def test_equal_bases_are_at_no_distance_exactly():
    found = weights_distance(some_weights(0), some_weights(0), BERT)
    assert (found.whole.l2, found.whole.relative, found.whole.cosine) == (0.0, 0.0, 1.0)
    assert found.same_shape
    zeros = Sums()
    zeros.add(torch.zeros(3), torch.ones(3))
    assert Distance.of(zeros).relative == math.inf


def test_what_cannot_be_compared_is_named_with_the_reason():
    old, new = some_weights(0), some_weights(1)
    new["pooler.dense.bias"] = torch.zeros(5)
    new["encoder.layer.1.output.dense.bias"] = torch.zeros(3)
    del new["encoder.layer.0.output.LayerNorm.bias"]
    found = weights_distance(old, new, BERT)
    assert not found.same_shape
    assert found.apart == (
        "encoder.layer.0.output.LayerNorm.bias: the new base has none",
        "pooler.dense.bias: [3] and [5]",
        "encoder.layer.1.output.dense.bias: the old base has none",
    )


def test_words_are_compared_with_themselves_whatever_their_numbers():
    words = {"a": 0, "b": 1, "c": 2}
    moved = {"c": 0, "a": 2, "b": 1, "new": 3}
    found, rows = vocabularies(words, moved)
    assert (found.old, found.new, found.shared, found.renumbered) == (3, 4, 3, 2)
    assert not found.same
    old = {"embeddings.word_embeddings.weight": torch.arange(3.0)[:, None]}
    new = {"embeddings.word_embeddings.weight": torch.tensor([[2.0], [1.0], [0.0], [9.0]])}
    measured = weights_distance(old, new, BERT, rows=rows)
    assert measured.whole.l2 == 0
    assert measured.apart[0].endswith("compared word by word")
    assert vocabularies(words, words)[0].same
    # words that a tokenizer has and its table has no row for are no rows to compare
    rows = vocabularies({**words, "more": 7}, {**moved, "more": 5})[1]
    assert weights_distance(old, new, BERT, rows=rows).whole == measured.whole


def test_two_real_folders(tiny_base, other_base):
    old, new = load_base(tiny_base), load_base(other_base)
    found = base_distance(old, new)
    assert found.whole.relative > 0.3
    assert found.same_shape
    assert not found.config
    assert found.vocabulary is not None
    assert found.vocabulary.same
    same = base_distance(old, old)
    assert same.whole.l2 == 0
    assert all(one.cosine == 1 for one in same.modules.values())
    assert same.record()["modules"]["embeddings"]["relative"] == 0


def test_settings_of_the_shape_are_compared_and_others_are_not():
    class Config:
        def __init__(self, **values):
            self.values = values

        def to_dict(self):
            return self.values

    left, right = (Config(hidden_size=n, _name_or_path=str(n), num_labels=2) for n in (3, 4))
    assert config_difference(left, right) == {"hidden_size": (3, 4)}


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_of_every_kind_belongs_to_a_part(kind, tmp_path):
    base = load_base(make_kind(kind, tmp_path / kind))
    anatomy = ANATOMIES[kind]
    parts = {module_of(name, anatomy) for name in base.tensors()}
    assert "embeddings" in parts
    assert {f"layer 1 {part}" for part in ("attention", "feed-forward", "norms")} <= parts
    assert not {"layer 0", "layer 1"} & parts  # every weight of a block has its part
