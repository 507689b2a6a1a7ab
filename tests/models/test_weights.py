from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file

from anytune.errors import BaseError, StoreError
from anytune.models.weights import StoredWeights, read_json, weight_files, write_tensors
from tests.models.conftest import save, tiny_model


@pytest.fixture
def folder(tmp_path):
    return save(tiny_model(), tmp_path / "model", tokenizer=False)


@pytest.mark.parametrize("size", [0, 4, 300, -1, -5000])
def test_a_truncated_file_is_refused_with_its_size(folder, size):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(BaseError, match=r"cannot read .*model.safetensors \([\d,]+ bytes\)"):
        StoredWeights(folder)


def test_a_missing_shard_is_named(tmp_path):
    folder = save(tiny_model(), tmp_path / "sharded", max_shard_size="8KB")
    lost = sorted(folder.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(BaseError, match=rf"lacks {lost.name} \(1 of"):
        weight_files(folder)


def test_an_index_cannot_name_files_outside_its_folder(folder, tmp_path):
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../outside.safetensors"}}))
    with pytest.raises(BaseError, match=r"lacks outside\.safetensors"):
        weight_files(folder)


def test_pickled_weights_are_refused_with_the_command_that_converts_them(folder):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(BaseError, match=r"only as pytorch_model\.bin[\s\S]*any code[\s\S]*save_pretrained"):
        weight_files(folder)


def test_a_folder_without_weights_says_what_a_base_is(tmp_path):
    with pytest.raises(BaseError, match=r"has no model\.safetensors[\s\S]*sample:bert-tiny"):
        weight_files(tmp_path)


def test_stored_weights_travel_to_another_process_as_their_folder(folder):
    stored = pickle.loads(pickle.dumps(StoredWeights(folder)))
    name = "bert.embeddings.word_embeddings.weight"
    assert stored[name].shape == stored.shape(name) == (96, 16)


def test_changing_a_tensor_that_was_read_changes_no_file(folder):
    name = "bert.embeddings.word_embeddings.weight"
    stored = StoredWeights(folder)
    want = stored[name].clone()
    stored[name].zero_()
    assert torch.equal(stored[name], want)
    assert torch.equal(StoredWeights(folder)[name], want)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"])
def test_a_damaged_json_file_is_a_clear_error(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(BaseError, match=r"config\.json"):
        read_json(tmp_path / "config.json")


def test_a_file_that_cannot_be_written_is_a_clear_error_and_leaves_nothing(tmp_path):
    (tmp_path / "blocked").write_text("a file")
    with pytest.raises(StoreError, match="cannot write"):
        write_tensors(tmp_path / "blocked" / "x.safetensors", {"a": torch.zeros(1)}, {})
    (tmp_path / "x.safetensors").mkdir()
    with pytest.raises(StoreError, match="cannot write"):
        write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blocked", "x.safetensors"]


def test_views_and_shared_memory_are_stored_each_for_itself(tmp_path):
    whole = torch.arange(6.0).reshape(2, 3)
    write_tensors(tmp_path / "new" / "x.safetensors", {"a": whole, "b": whole.T, "c": whole[:, 1]}, {"format": "pt"})
    stored = load_file(tmp_path / "new" / "x.safetensors")
    assert torch.equal(stored["b"], whole.T)
    assert stored["c"].tolist() == [1.0, 4.0]
