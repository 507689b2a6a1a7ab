"""Model folders that do not fit their own description, their tokenizer or the data."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.bad_input.checks import QUICK, check, content, refused
from tests.conftest import write_tiny_base


@pytest.fixture(autouse=True)
def _cache_apart(_own_cache, monkeypatch, tmp_path_factory):
    """Damaged copies of a base are not to be found by other tests, which look for it by its hash."""
    monkeypatch.setenv("ANYTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def base(tiny_base, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "mine"))


def rewrite(base: Path, change) -> None:
    tensors = load_file(base / "model.safetensors")
    save_file({name: change(name, tensor) for name, tensor in tensors.items()}, base / "model.safetensors")


def reconfigure(base: Path, **values) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, **values}))


def test_weights_in_whole_numbers(cli, base, tiny_task):
    rewrite(base, lambda name, tensor: tensor.to(torch.int8) if name.endswith("query.weight") else tensor)
    refused(cli, base, tiny_task, "query.weight", "int8")


def test_weights_in_complex_numbers(cli, base, tiny_task):
    rewrite(base, lambda name, tensor: tensor.to(torch.complex64) if name.endswith("query.weight") else tensor)
    refused(cli, base, tiny_task, "query.weight")


def test_weights_in_double_precision_are_read(cli, base, tiny_task):
    rewrite(base, lambda name, tensor: tensor.double() if tensor.is_floating_point() else tensor)
    answer = cli("tune", base, tiny_task, *QUICK)
    assert answer.code == 0, answer.err


def test_weights_that_are_not_finite(cli, base, tiny_task):
    rewrite(base, lambda name, tensor: tensor * float("nan") if name.endswith("query.weight") else tensor)
    refused(cli, base, tiny_task, "nan")


def test_a_description_that_is_no_json(cli, base, tiny_task):
    (base / "config.json").write_text("{'model_type': 'bert'}")
    refused(cli, base, tiny_task, "config.json")


def test_an_empty_description(cli, base, tiny_task):
    (base / "config.json").write_bytes(b"")
    refused(cli, base, tiny_task, "config.json")


def test_a_description_that_is_a_list(cli, base, tiny_task):
    (base / "config.json").write_text("[1, 2]")
    refused(cli, base, tiny_task, "config.json")


def test_a_description_of_no_kind(cli, base, tiny_task):
    config = json.loads((base / "config.json").read_text())
    del config["model_type"]
    (base / "config.json").write_text(json.dumps(config))
    refused(cli, base, tiny_task, "model_type")


def test_a_kind_of_model_nobody_knows(cli, base, tiny_task):
    reconfigure(base, model_type="wav2vec2")
    refused(cli, base, tiny_task, "wav2vec2")


def test_a_description_of_another_size(cli, base, tiny_task):
    reconfigure(base, hidden_size=64)
    refused(cli, base, tiny_task, str(base))


def test_a_description_with_more_layers_than_weights(cli, base, tiny_task):
    reconfigure(base, num_hidden_layers=5)
    refused(cli, base, tiny_task, "missing")


def test_a_base_without_a_tokenizer(cli, base, tiny_task):
    for path in base.glob("token*"):
        path.unlink()
    refused(cli, base, tiny_task, "tokenizer")


def test_a_tokenizer_that_is_no_json(cli, base, tiny_task):
    (base / "tokenizer.json").write_text("{")
    refused(cli, base, tiny_task, "tokenizer")


def foreign_tokenizer(base: Path, size: int) -> None:
    """Words that the model has no embeddings for."""
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    for word in ("cat", "dog", "owl", "oak", "fern", "the", "a"):
        vocabulary[word] = size + len(vocabulary) + vocabulary[word]
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))


def test_a_foreign_tokenizer_in_tuning(cli, base, tiny_task):
    foreign_tokenizer(base, 200)
    refused(cli, base, tiny_task, "tokenizer", "200")


def test_a_foreign_tokenizer_in_pre_training(cli, base, tiny_domain):
    foreign_tokenizer(base, 200)
    answer = cli("pretrain", base, tiny_domain, *QUICK, "--block-size", 32)
    check(answer, "tokenizer", "200")


def test_an_upgrade_with_another_vocabulary(cli, own_store, tiny_base, tiny_task):
    """Same shapes, so nothing else would notice: every word would mean another one."""
    other = write_tiny_base(Path("upgrade"), seed=5)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {word if word[0] == "[" else f"{word}x": number for word, number in words.items()}
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    before = content(own_store)
    name = next(own_store.glob("deltas/things-full*")).name
    answer = cli("recycle", name, other, "--task", tiny_task, "--old-base", tiny_base, "--store", "kept", "--quiet")
    check(answer, "of the 200 words", "--method distill")
    assert content(own_store) == before


def test_more_tokens_asked_for_than_the_model_has_positions(cli, base, tiny_task):
    refused(cli, base, tiny_task, "512", "64", options=("--max-length", 512))


def test_blocks_longer_than_the_model(cli, base, tiny_domain):
    answer = cli("pretrain", base, tiny_domain, *QUICK, "--block-size", 512)
    check(answer, "512", "64")


def test_a_loop_of_links_as_a_base(cli, tiny_task):
    os.symlink("b", "a")
    os.symlink("a", "b")
    refused(cli, "./a", tiny_task, "a")


def test_weights_that_are_a_folder(cli, base, tiny_task):
    (base / "model.safetensors").unlink()
    (base / "model.safetensors").mkdir()
    refused(cli, base, tiny_task, "model.safetensors")


def test_a_part_of_the_weights_missing(cli, base, tiny_task):
    tensors = load_file(base / "model.safetensors")
    names = list(tensors)
    (base / "model.safetensors").unlink()
    save_file({name: tensors[name] for name in names[:10]}, base / "model-00001-of-00002.safetensors")
    weight_map = {name: f"model-0000{1 if place < 10 else 2}-of-00002.safetensors" for place, name in enumerate(names)}
    index = {"metadata": {}, "weight_map": weight_map}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(cli, base, tiny_task, "model-00002-of-00002.safetensors")


def test_an_adapter_given_as_a_base(cli, own_store, tiny_task):
    adapter = next(own_store.glob("deltas/things-lora*"))
    check(cli("tune", adapter, tiny_task, "--store", "new", "--quiet"), "adapter")
