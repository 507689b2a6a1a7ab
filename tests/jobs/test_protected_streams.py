"""Two stages with what the first one leaves: in one command, and in one command a month."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

import anytune
from anytune.errors import MethodError
from anytune.models.carried import CARRIED_TENSORS, CARRIED_VALUES, load_carried
from tests.conftest import tiny_rows

TRAINING = {"steps": 3, "batch_size": 4, "block_size": 32, "precision": "fp32", "learning_rate": 3e-3}
METHODS = {
    "ewc": {"examples": 8, "rows": 4},
    "l2_anchor": {"to": "first", "strength": 20.0},
    "cotta": {"restore": 0.1},
    "das": {"examples": 8, "rows": 4, "protect": 1.0, "form": "update"},
}


@pytest.fixture(scope="module")
def second_domain(tmp_path_factory):
    path = tmp_path_factory.mktemp("domains") / "later.txt"
    path.write_text("\n".join(text for text, _ in tiny_rows(200, 3)), encoding="utf-8")
    return path


def weights(entry):
    return load_file(entry.folder / "model.safetensors")


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("name", METHODS)
def test_a_stage_leaves_what_the_next_one_goes_on_with(name, tiny_base, tiny_domain, second_domain, tmp_path):
    def pretrain(base, domains, store, method=None):
        chosen = method or {"name": name, **METHODS[name]}
        return anytune.pretrain(base, domains, store=tmp_path / store, method=chosen, training=TRAINING)

    first, second = pretrain(tiny_base, [tiny_domain, second_domain], "one")
    [alone] = pretrain(tiny_base, [tiny_domain], "two")
    [later] = pretrain(alone, [second_domain], "two")
    assert same(weights(later), weights(second))
    assert same(load_file(later.folder / CARRIED_TENSORS), load_file(second.folder / CARRIED_TENSORS))
    [plain] = pretrain(first, [second_domain], "plain", "sequential")
    assert not (plain.folder / CARRIED_VALUES).exists()
    assert not same(weights(plain), weights(second))
    left, then = (load_carried(entry.folder)[name] for entry in (first, second))
    key = {"ewc": "fisher", "das": "importance"}.get(name, "first")
    if key == "first":
        begun = load_file(tiny_base / "model.safetensors")
        for one in (left, then):
            assert {found for found in one[key] if found.startswith("bert.encoder")} == {
                found for found in begun if found.startswith("bert.encoder")
            }
            assert all(torch.equal(value, begun[found]) for found, value in one[key].items())
    else:
        assert not same(left[key], then[key])
    again, told = pretrain(tiny_base, [tiny_domain, second_domain], "one")
    assert (again.manifest.id, told.manifest.id) == (first.manifest.id, second.manifest.id)
    # without what it carries, the second stage is another run
    tensors = load_file(first.folder / CARRIED_TENSORS)
    save_file({found: value + 0.01 for found, value in tensors.items()}, first.folder / CARRIED_TENSORS)
    [other] = pretrain(first, [second_domain], "one")
    assert other.manifest.id != second.manifest.id
    assert not same(weights(other), weights(second))


def test_a_base_whose_words_were_changed_between_two_stages_is_refused(tiny_base, tiny_domain, tmp_path):
    method = {"name": "ewc", "examples": 4}
    [first] = anytune.pretrain(tiny_base, [tiny_domain], store=tmp_path / "s", method=method, training=TRAINING)
    tensors = load_file(first.folder / CARRIED_TENSORS)
    words = "ewc/fisher/bert.embeddings.word_embeddings.weight"
    save_file({**tensors, words: tensors[words][:-1].clone()}, first.folder / CARRIED_TENSORS)
    with pytest.raises(MethodError, match=r"shape \[199, 32\], the weight \[200, 32\]") as caught:
        anytune.pretrain(first, [tiny_domain], store=tmp_path / "s", method=method, training=TRAINING)
    assert caught.value.fix
