"""What the methods of this room are given by mistake, through the jobs and the Trainer a user calls."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import anytune
from anytune.engine.runtime import make_runtime
from anytune.errors import BaseError, MethodError, SettingsError, TrainingError
from anytune.methods import registry
from anytune.methods.protocol import Method
from anytune.store import Store
from tests.contract.bench import Bench
from tests.contract.conftest import bench  # noqa: F401
from tests.contract.places import Places

QUICK = {"steps": 2, "batch_size": 8, "max_length": 32, "precision": "fp32"}
TUNE = [name.split("/")[1] for name in registry.names("tune")]


@pytest.fixture(autouse=True)
def _cache_apart(_own_cache, monkeypatch, tmp_path_factory):
    """Damaged copies of a base are not to be found by other tests, which look for it by its hash."""
    monkeypatch.setenv("ANYTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))


def tune(bench: Bench, tmp_path, *methods, base=None):  # noqa: F811
    return anytune.tune(base or bench.base, bench.task, store=tmp_path / "store", method=list(methods), training=QUICK)


def nothing_stored(tmp_path) -> bool:
    return not (tmp_path / "store").exists() or not Store(tmp_path / "store").find()


# ---------------------------------------------------------------- settings outside their limits

OUTSIDE = [
    ({"name": "reinit", "layers": -1}, SettingsError, "layers = -1"),
    ({"name": "reinit", "layers": 3}, MethodError, "layers = 3, and this base has 2 blocks"),
    ({"name": "top_k_layers", "k": -1}, SettingsError, "k = -1"),
    ({"name": "top_k_layers", "k": 3}, MethodError, "k = 3, and this base has 2 blocks"),
    ({"name": "top_k_layers", "k": 1, "embeddings": True}, MethodError, "below 1 frozen blocks"),
    ({"name": "llrd", "decay": 0.0}, SettingsError, "decay = 0.0"),
    ({"name": "llrd", "decay": 1.1}, SettingsError, "decay = 1.1"),
    ({"name": "sift", "share": 0.0}, SettingsError, "share = 0.0"),
    ({"name": "sift", "share": 1.5}, SettingsError, "share = 1.5"),
    ({"name": "sift", "share": "half"}, SettingsError, "share = 'half'"),
    ({"name": "sift", "batches": 0}, SettingsError, "batches = 0"),
    ({"name": "sift", "batches": 1000}, MethodError, "batches = 1000, and the training data are"),
    ({"name": "sift", "include": "everything"}, SettingsError, "include = 'everything'"),
    ({"name": "sift", "keep": 0.1}, SettingsError, "has no setting 'keep'"),
]


@pytest.mark.parametrize(("method", "error", "text"), OUTSIDE, ids=[f"{m['name']}-{list(m)[1]}-{list(m.values())[1]}"
                                                                    for m, _, _ in OUTSIDE])  # fmt: skip
def test_settings_outside_their_limits_are_refused_with_the_value(method, error, text, bench, tmp_path):  # noqa: F811
    with pytest.raises(error) as caught:
        tune(bench, tmp_path, method)
    assert text in caught.value.what
    assert caught.value.fix
    assert nothing_stored(tmp_path)


# ---------------------------------------------------------------- everything frozen


class Freezing(Method):
    """Freezes the head, and the pooler under it."""

    name, room = "freezing", "tune"

    def prepare(self, model, run):
        for name, parameter in model.named_parameters():
            if name in run.head_names or "pooler" in name:
                parameter.requires_grad_(False)
        return model


@pytest.mark.parametrize("order", [1, -1])
def test_everything_frozen_is_an_error_before_the_first_step(order, bench: Bench, tmp_path):  # noqa: F811
    methods = [Freezing(), registry.create("tune/top_k_layers", {"k": 0})][::order]
    with pytest.raises(TrainingError, match="nothing is trainable"):
        bench.loop("tune/full", methods=methods)
    places = Places(bench, "tune/full")
    with pytest.raises(TrainingError, match="nothing is trainable"):
        places.trainer(tmp_path, methods=methods)


def test_compositions_that_would_do_nothing_are_refused(bench: Bench, tmp_path):  # noqa: F811
    only_head = {"name": "top_k_layers", "k": 0}
    for methods, text in (
        ([only_head, "llrd"], "llrd found no trained weight"),
        ([only_head, "sift"], "sift found no matrix"),
        (["sift", only_head], "sift has no entry left to train"),
        (["lora", "sift"], "sift cannot be combined with an adapter"),
        (["lora", "reinit"], "reinit cannot be combined with an adapter"),
        (["reinit", "lora"], "reinit cannot be combined with an adapter"),
        ([{"name": "top_k_layers", "k": 1}, "lora"], "top_k_layers froze"),
    ):
        with pytest.raises(MethodError, match=text):
            tune(bench, tmp_path, *methods)
        assert nothing_stored(tmp_path)


# ---------------------------------------------------------------- quantised weights


@pytest.mark.parametrize("method", TUNE)
def test_a_base_that_is_described_as_quantised_is_refused(method, bench: Bench, tmp_path):  # noqa: F811
    base = Path(shutil.copytree(bench.base, tmp_path / "quantised"))
    config = json.loads((base / "config.json").read_text())
    described = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    (base / "config.json").write_text(json.dumps({**config, **described}))
    with pytest.raises(BaseError, match="holds quantised weights"):
        tune(bench, tmp_path, method, base=base)
    assert nothing_stored(tmp_path)


class Rounded(nn.Module):
    """A linear map whose matrix is held in whole numbers, as quantised models hold theirs."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter((linear.weight * 100).to(torch.int8), requires_grad=False)
        self.bias = linear.bias

    def forward(self, hidden):
        return nn.functional.linear(hidden, self.weight.to(hidden.dtype) / 100, self.bias)


def rounded(model: nn.Module) -> nn.Module:
    for layer in model.bert.encoder.layer:
        for part in (layer.attention.self, layer.attention.output, layer.intermediate, layer.output):
            for name, inner in list(part.named_children()):
                if isinstance(inner, nn.Linear):
                    setattr(part, name, Rounded(inner))
    return model


@pytest.mark.parametrize("method", ["full", "reinit", "llrd", "top_k_layers", "sift"])
def test_a_model_loaded_with_quantised_weights_is_refused_by_the_trainer(method, bench, tmp_path, monkeypatch):  # noqa: F811
    places = Places(bench, "tune/full")
    plain = Places.model
    monkeypatch.setattr(Places, "model", lambda self: (rounded(plain(self)[0]), plain(self)[1]))
    with pytest.raises(MethodError, match=r"quantised|int8") as caught:
        places.trainer(tmp_path, methods=[registry.create(f"tune/{method}")])
    assert "int8" in caught.value.what or "quantised" in str(caught.value)


def test_a_model_that_says_it_is_quantised_is_refused_and_an_adapter_beside_it_is_not(bench, tmp_path, monkeypatch):  # noqa: F811
    from anytune.engine.trainer_arguments import check_weights

    places = Places(bench, "tune/full")
    model, _ = places.model()
    check_weights(model)
    model.is_quantized = True
    with pytest.raises(MethodError, match="the model's weights are quantised"):
        check_weights(model)
    run = places.run(places.model()[1])
    check_weights(registry.create("tune/lora").prepare(model, run))


# ---------------------------------------------------------------- DeepSpeed


@pytest.mark.parametrize(("variable", "engine"), [("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"),
                                                  ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM")])  # fmt: skip
def test_an_engine_that_takes_training_over_is_refused_everywhere(variable, engine, bench, tmp_path, monkeypatch, cli):  # noqa: F811
    places = Places(bench, "tune/full")
    arguments = places.arguments(tmp_path)
    monkeypatch.setenv(variable, "true")
    with pytest.raises(SettingsError, match=f"accelerate was launched with {engine}") as caught:
        make_runtime("fp32")
    assert "torchrun" in caught.value.fix
    with pytest.raises(SettingsError, match=f"accelerate was launched with {engine}"):
        tune(bench, tmp_path, "full")
    monkeypatch.setattr(Places, "arguments", lambda *_args, **_more: arguments)
    with pytest.raises(SettingsError, match=f"accelerate was launched with {engine}"):
        places.trainer(tmp_path)
    answer = cli("tune", bench.base, bench.task, "--store", tmp_path / "store", "--quiet")
    assert answer.code == 2
    assert f"error: accelerate was launched with {engine}" in answer.err
    assert "Traceback" not in answer.err
    assert nothing_stored(tmp_path)
    monkeypatch.setenv(variable, "false")
    assert make_runtime("fp32").world == 1
