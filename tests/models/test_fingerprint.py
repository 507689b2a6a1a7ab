from __future__ import annotations

import json
import os
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from anytune.errors import BaseError
from anytune.manifests import caches_unwritten
from anytune.models import fingerprint
from anytune.models.anatomy import anatomy_of
from anytune.models.fingerprint import (
    cache_file,
    fingerprint_config,
    fingerprint_folder,
    fingerprint_state,
    fingerprint_vocabulary,
    known_folders,
)  # fmt: skip
from tests.models.conftest import KINDS, save, tiny_config, tiny_model
from tests.models.kinds import make_config


def rewrite(folder, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def age(folder) -> None:
    """Files made a minute ago: their times are settled."""
    for file in folder.iterdir():
        os.utime(file, (time.time() - 60, time.time() - 60))


@pytest.mark.parametrize("kind", KINDS)
def test_a_sharded_folder_has_the_fingerprint_of_the_single_file(kind, tmp_path):
    single = save(tiny_model(kind), tmp_path / "single")
    sharded = save(tiny_model(kind), tmp_path / "sharded", max_shard_size="8KB")
    assert (sharded / "model.safetensors.index.json").exists()
    assert len(list(sharded.glob("*.safetensors"))) > 1
    assert fingerprint_folder(single) == fingerprint_folder(sharded)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_body_has_one_hash_with_and_without_prefix_and_head(kind, tmp_path):
    model = tiny_model(kind)
    whole, bare = save(model, tmp_path / "whole"), save(anatomy_of(model).backbone(model), tmp_path / "bare")
    prefix = f"{anatomy_of(model).prefix}."
    assert any(name.startswith(prefix) for name in load_file(whole / "model.safetensors"))
    assert not any(name.startswith(prefix) for name in load_file(bare / "model.safetensors"))
    assert fingerprint_folder(whole) == fingerprint_folder(bare)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_in_memory_has_the_hash_of_its_folder(kind, tmp_path):
    model = tiny_model(kind)
    folder = fingerprint_folder(save(model, tmp_path / "a")).backbone
    assert fingerprint_state(model.state_dict(), anatomy_of(model)) == folder
    assert fingerprint_state(model.to(torch.bfloat16).state_dict(), anatomy_of(model)) != folder


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_how_a_model_is_loaded_does_not_matter_and_how_it_is_stored_does(dtype, tmp_path):
    full = save(tiny_model(), tmp_path / "full")
    other = save(tiny_model().to(dtype), tmp_path / "other")
    assert fingerprint_folder(full).backbone != fingerprint_folder(other).backbone
    stored = load_file(other / "model.safetensors")
    assert fingerprint_folder(other).backbone == fingerprint_state(stored, anatomy_of("bert"))


def test_one_flipped_bit_in_any_backbone_tensor_changes_the_hash(tmp_path):
    model, anatomy = tiny_model(), anatomy_of("bert")
    state = model.state_dict()
    want = fingerprint_state(state, anatomy)
    for name in anatomy.split(state).backbone:
        changed = {key: tensor.clone() for key, tensor in state.items()}
        changed[name].view(torch.int32).view(-1)[-1] ^= 1
        assert fingerprint_state(changed, anatomy) != want, name


def test_heads_integer_buffers_and_the_order_of_names_do_not_enter_the_hash():
    state, anatomy = dict(tiny_model().state_dict()), anatomy_of("bert")
    want = fingerprint_state(state, anatomy)
    more = dict(reversed(state.items())) | {
        "cls.predictions.bias": torch.ones(96),
        "classifier.weight": torch.ones(2, 16),
        "bert.embeddings.position_ids": torch.arange(40)[None],
        "bert.embeddings.a_mask": torch.ones(4, dtype=torch.bool),
    }
    assert fingerprint_state(more, anatomy) == want
    legacy = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): tensor for name, tensor in state.items()}
    assert fingerprint_state(legacy, anatomy) == want


def test_names_shapes_and_swapped_tensors_enter_the_hash():
    state, anatomy = dict(tiny_model().state_dict()), anatomy_of("bert")
    key, value = (f"bert.encoder.layer.0.attention.self.{part}.weight" for part in ("key", "value"))
    want = fingerprint_state(state, anatomy)
    assert fingerprint_state(state | {key: state[value], value: state[key]}, anatomy) != want
    assert fingerprint_state(state | {key: state[key].reshape(8, 32)}, anatomy) != want


def test_a_fresh_pooler_can_be_left_out_and_a_stored_one_counts(make_base):
    base, pooled = make_base("plain"), make_base("pooled", purpose="backbone")
    for each in (base, pooled):
        model, head = each.task_model("classification", ("a", "b"), seed=0)
        assert fingerprint_state(model.state_dict(), each.anatomy, leave_out=head) == each.identity.backbone
    model, head = base.task_model("classification", ("a", "b"), seed=0)
    assert fingerprint_state(model.state_dict(), base.anatomy) != base.identity.backbone


def test_tables_that_are_computed_and_not_learned_do_not_enter_the_hash():
    state, anatomy = dict(tiny_model("llama").state_dict()), anatomy_of("llama")
    older = state | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.rand(4)}
    assert fingerprint_state(older, anatomy) == fingerprint_state(state, anatomy)


def test_the_same_bytes_in_another_dtype_are_other_weights():
    state, anatomy = dict(tiny_model().to(torch.bfloat16).state_dict()), anatomy_of("bert")
    read_otherwise = {name: tensor.view(torch.float16) for name, tensor in state.items()}
    assert fingerprint_state(read_otherwise, anatomy) != fingerprint_state(state, anatomy)


def test_two_names_for_one_tensor_and_a_state_without_backbone_are_refused():
    state, anatomy = dict(tiny_model().state_dict()), anatomy_of("bert")
    with pytest.raises(BaseError, match=r"both stand for 'embeddings.LayerNorm.bias'"):
        fingerprint_state(state | {"embeddings.LayerNorm.bias": torch.zeros(16)}, anatomy)
    with pytest.raises(BaseError, match="no bert backbone among 1 tensors"):
        fingerprint_state({"x": torch.zeros(1)}, anatomy)


def test_library_versions_labels_and_dropout_do_not_enter_the_config_hash():
    plain, other = tiny_config("bert"), tiny_config("bert")
    other.update({"transformers_version": "9.9", "num_labels": 7, "hidden_dropout_prob": 0.3, "architectures": ["X"],
                  "torch_dtype": "bfloat16", "a_key_of_the_future": 1})  # fmt: skip
    assert fingerprint_config(plain) == fingerprint_config(other)


@pytest.mark.parametrize("change", [{"hidden_act": "relu"}, {"layer_norm_eps": 1e-5}, {"num_attention_heads": 4},
                                    {"max_position_embeddings": 80}, {"type_vocab_size": 3},
                                    {"tie_word_embeddings": False}])  # fmt: skip
def test_settings_that_change_the_function_enter_the_config_hash(change):
    other = tiny_config("bert")
    other.update(change)
    assert fingerprint_config(other) != fingerprint_config(tiny_config("bert"))


def test_a_key_in_the_file_that_equals_the_default_changes_no_hash(tmp_path):
    folder = save(tiny_model(), tmp_path / "a")
    before = fingerprint_folder(folder)
    raw = json.loads((folder / "config.json").read_text())
    raw.pop("type_vocab_size")
    raw["transformers_version"] = "5.0.0"
    (folder / "config.json").write_text(json.dumps(raw))
    assert fingerprint_folder(folder) == before


def test_truncation_and_padding_state_do_not_enter_the_vocabulary_hash_and_tokens_do(tmp_path):
    folder = save(tiny_model(), tmp_path / "a")
    raw = json.loads((folder / "tokenizer.json").read_text())
    want = fingerprint_vocabulary(raw)
    state = {"truncation": {"max_length": 12, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
             "padding": {"strategy": "BatchLongest"}}  # fmt: skip
    assert fingerprint_vocabulary(raw | state) == want
    assert fingerprint_vocabulary(raw | {"normalizer": None}) != want
    assert fingerprint_vocabulary(raw | {"added_tokens": raw["added_tokens"][:-1]}) != want
    vocabulary = dict(raw["model"]["vocab"])
    vocabulary["w0"], vocabulary["w1"] = vocabulary["w1"], vocabulary["w0"]
    assert fingerprint_vocabulary(raw | {"model": raw["model"] | {"vocab": vocabulary}}) != want


def test_merges_in_the_old_and_the_new_spelling_are_the_same_vocabulary():
    old = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}}
    new = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}}
    assert fingerprint_vocabulary(old) == fingerprint_vocabulary(new)


def test_a_folder_of_older_vocabulary_files_has_a_vocabulary_hash_and_one_without_has_none(tmp_path):
    from transformers import BertTokenizer

    old, bare = (save(tiny_model(), tmp_path / name, tokenizer=False) for name in ("old", "bare"))
    (old / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]))
    made = fingerprint_folder(old).vocabulary
    assert len(made) == 64
    BertTokenizer.from_pretrained(old).save_pretrained(old)
    assert fingerprint_folder(old).vocabulary == made
    assert fingerprint_folder(bare).vocabulary == ""


def test_an_unchanged_folder_is_not_hashed_twice_and_a_changed_one_is(tmp_path, monkeypatch):
    folder = save(tiny_model(), tmp_path / "a")
    age(folder)
    calls = []
    real = fingerprint.tensor_hash
    monkeypatch.setattr(fingerprint, "tensor_hash", lambda *given: calls.append(1) or real(*given))
    first = fingerprint_folder(folder)
    hashed = len(calls)
    assert hashed > 0
    assert fingerprint_folder(folder) == first
    assert len(calls) == hashed
    rewrite(folder, lambda tensors: tensors["bert.embeddings.LayerNorm.bias"].add_(1))
    assert fingerprint_folder(folder).backbone != first.backbone
    assert len(calls) == 2 * hashed


def test_a_folder_written_a_moment_ago_is_hashed_again_since_its_times_cannot_be_trusted(tmp_path, monkeypatch):
    folder = save(tiny_model(), tmp_path / "a")
    first = fingerprint_folder(folder)
    stat = (folder / "model.safetensors").stat()
    raw = bytearray((folder / "model.safetensors").read_bytes())
    weight = tiny_model().bert.embeddings.word_embeddings.weight.detach().numpy().tobytes()
    raw[raw.index(weight)] ^= 1
    (folder / "model.safetensors").write_bytes(raw)
    os.utime(folder / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size, time and inode
    assert fingerprint_folder(folder) != first


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": 1}', '{"format": 1, "entries": {"/x": 3}}',
                                    '{"format": 99, "entries": {}}', "\x00\xff"])  # fmt: skip
def test_a_damaged_or_missing_cache_costs_nothing_but_time(damage, tmp_path):
    folder = save(tiny_model(), tmp_path / "a")
    want = fingerprint_folder(folder)
    cache_file().write_text(damage, encoding="utf-8")
    assert fingerprint_folder(folder) == want
    assert known_folders(want.backbone) == [folder]
    cache_file().unlink()
    assert fingerprint_folder(folder) == want


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "blocked").write_text("a file")
    monkeypatch.setenv("ANYTUNE_CACHE", str(tmp_path / "blocked"))
    assert len(fingerprint_folder(save(tiny_model(), tmp_path / "a")).backbone) == 64


def test_a_base_is_found_again_by_its_hash_while_a_folder_still_holds_it(tmp_path):
    one, two = (save(tiny_model(), tmp_path / name) for name in ("one", "two"))
    wanted = fingerprint_folder(one).backbone
    fingerprint_folder(two)
    fingerprint_folder(save(tiny_model(seed=3), tmp_path / "other"))
    assert set(known_folders(wanted)) == {one, two}
    shutil.rmtree(one)
    assert known_folders(wanted) == [two]
    rewrite(two, lambda tensors: tensors["bert.embeddings.LayerNorm.bias"].add_(1))
    assert known_folders(wanted) == []


def test_folders_that_are_gone_or_about_to_be_renamed_are_not_remembered(tmp_path):
    one, two, staged = (save(tiny_model(), tmp_path / name) for name in ("one", "two", ".partial-three-1234"))
    for folder in (one, staged):
        fingerprint_folder(folder)
    shutil.rmtree(one)
    fingerprint_folder(two)
    assert list(json.loads(cache_file().read_text())["entries"]) == [str(two)]


def test_a_dry_run_keeps_no_hash(tmp_path):
    folder = save(tiny_model("bert"), tmp_path / "base")
    age(folder)
    with caches_unwritten():
        fingerprint_folder(folder)
    assert not cache_file().exists()
    fingerprint_folder(folder)
    assert cache_file().exists()


@pytest.mark.parametrize(
    ("kind", "setting", "value"),
    [
        ("gpt2", "n_positions", 32), ("gpt2", "activation_function", "relu"), ("electra", "embedding_size", 16),
        ("deberta-v2", "pos_att_type", ["c2p"]), ("deberta-v2", "position_buckets", 4),
        ("deberta-v2", "conv_kernel_size", 3), ("modernbert", "local_attention", 4), ("modernbert", "norm_bias", True),
        ("llama", "rope_parameters", {"rope_type": "default", "rope_theta": 1000.0}), ("qwen3", "head_dim", 16),
        ("qwen2", "rms_norm_eps", 1e-3), ("t5", "feed_forward_proj", "gated-gelu"), ("t5", "num_heads", 4),
        ("t5", "tie_word_embeddings", False), ("t5", "relative_attention_max_distance", 16),
    ],
)  # fmt: skip
def test_settings_that_change_what_a_kind_computes_change_its_config_hash(kind, setting, value):
    plain, changed = make_config(kind, 96), make_config(kind, 96, **{setting: value})
    assert fingerprint_config(plain) == fingerprint_config(make_config(kind, 96, id2label={0: "a", 1: "b"}))
    assert fingerprint_config(plain) != fingerprint_config(changed)
