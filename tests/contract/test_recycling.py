"""Invariants of recycling that published scripts broke: a frozen body stays frozen, and no two runs share a place."""

from __future__ import annotations

import pytest
import torch

import anytune
from anytune.data.tasks import load_task
from anytune.engine.runtime import make_runtime
from anytune.engine.settings import RESULTLESS, TrainingSettings, training_settings
from anytune.jobs.deltas import load_delta
from anytune.jobs.opening import open_base
from anytune.jobs.tuning_plan import TuningPlan
from anytune.manifests import file_hashes
from anytune.methods import registry
from anytune.methods.tune.bitfit import is_bias
from anytune.models.base import load_base
from anytune.models.fingerprint import fingerprint_state
from tests.contract.bench import COMMON, TRAINING, Bench

SETTINGS = {**TRAINING["tune"], **COMMON}
RESULTLESS_OTHERS = {"checkpoint_every": 5, "checkpoints_kept": 3, "sharding": "fsdp"}
#: another value for every training setting
OTHERS = {
    "steps": 9, "epochs": 2.0, "batch_size": 9, "accumulation": 2, "learning_rate": 1e-4, "schedule": "cosine",
    "warmup": 0.1, "weight_decay": 0.01, "max_grad_norm": 2.0, "max_length": 48, "block_size": 64,
    "evaluate_every": 5, "evaluate_batch_size": 32, "keep": "last", "mask_probability": 0.2, "precision": "bf16",
    "dropout": 0.3,
    "stop_at": 0.9,
    "patience": 2,
    **RESULTLESS_OTHERS,
}  # fmt: skip


def recycled(bench: Bench, name: str, method: str):
    """A delta tuned by ``method`` on the first base, recycled and tuned on by ``initialize`` on the second."""
    store = bench.store(f"recycled-{name}")
    [old] = anytune.tune(bench.base, bench.task, store=store, method=method, training=SETTINGS, name="old")
    [new] = anytune.recycle(old, bench.other, store=store, method="initialize", task=bench.task)
    return store, old, new


def test_the_frozen_body_of_a_recycled_adapter_is_that_of_the_new_base(bench: Bench):
    files = file_hashes(bench.base), file_hashes(bench.other)
    store, old, new = recycled(bench, "lora", "lora")
    assert (file_hashes(bench.base), file_hashes(bench.other)) == files
    model, _ = anytune.load(new, store=store)
    body = {
        name.replace("base_layer.", ""): tensor
        for name, tensor in model.get_base_model().state_dict().items()
        if not any(part in name for part in ("lora_", "modules_to_save", "original_module"))
    }
    other = open_base(bench.other)
    assert fingerprint_state(body, other.anatomy) == other.identity.backbone == new.manifest.base.backbone
    saved = set(load_delta(new).tensors)
    assert saved == set(load_delta(old).tensors)
    assert all("lora_" in name or "classifier" in name or "pooler" in name for name in saved)


def test_the_frozen_matrices_of_a_recycled_bitfit_delta_are_those_of_the_old_difference(bench: Bench):
    """The outdated difference lies in biases alone, and training on the new base moves nothing else."""
    store, _, new = recycled(bench, "bitfit", "bitfit")
    model, _ = anytune.load(new, store=store)
    plain = load_base(bench.other).tensors()
    state = {name.removeprefix("bert."): tensor for name, tensor in model.state_dict().items()}
    moved = {name for name in plain if name in state and not torch.equal(plain[name], state[name])}
    assert moved
    assert all(is_bias(name) for name in moved)


def plan(bench: Bench, **changes) -> TuningPlan:
    task = load_task(bench.task)
    given = {"job": "tune", "base": load_base(bench.base), "task": task, "methods": registry.parse("lora", "tune"),
             "settings": training_settings(SETTINGS), "seed": 0}  # fmt: skip
    return TuningPlan(**{**given, **changes})


def test_runs_that_differ_in_anything_that_decides_the_result_never_share_a_place(bench: Bench):
    task = load_task(bench.task)
    methods = (
        "full",
        "bitfit",
        {"name": "lora", "r": 4},
        {"name": "lora", "targets": "all-linear"},
        ["lora", "bitfit"],
    )
    assert set(OTHERS) == set(TrainingSettings.model_fields)
    changes = [
        {},
        {"seed": 1},
        {"job": "recycle"},
        {"keep": "scores"},
        {"base": load_base(bench.other)},
        {"task": task.subset(train_size=20)},
        {"task": load_task(bench.task, split_seed=1)},
        *({"methods": registry.parse(method, "tune")} for method in methods),
        *(
            {"settings": training_settings({**SETTINGS, key: value})}
            for key, value in OTHERS.items()
            if key not in (*RESULTLESS, "precision") and training_settings(SETTINGS).model_dump()[key] != value
        ),
    ]
    keys = [plan(bench, **change).identity(make_runtime("fp32")).key for change in changes]
    keys.append(plan(bench).identity(make_runtime("bf16")).key)
    assert len(set(keys)) == len(keys)


def test_what_does_not_decide_the_result_does_not_part_runs(bench: Bench):
    key = plan(bench).identity(make_runtime("fp32")).key
    same = [
        {"name": "other"}, {"tags": {"arm": "x"}}, {"notes": ("n",)}, {"recipe": {"job": "tune"}},
        *({"settings": training_settings({**SETTINGS, key: RESULTLESS_OTHERS[key]})} for key in RESULTLESS),
    ]  # fmt: skip
    assert [plan(bench, **change).identity(make_runtime("fp32")).key for change in same] == [key] * len(same)


@pytest.mark.parametrize("method", ["direct", "initialize"])
def test_the_same_recycling_gives_the_same_bytes_in_another_store(bench: Bench, method, tmp_path):
    made = [bench.job(f"recycle/{method}", bench.store(f"bytes-{method}-{part}")) for part in "ab"]
    assert made[0].manifest.files == made[1].manifest.files
    assert made[0].manifest.id == made[1].manifest.id
