"""Deltas and bases that do not fit each other: chains, missing bases, heads, special adapters, numbers, shelves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from anytune.store import Store
from tests.bad_input.checks import QUICK, STORE, check, content
from tests.conftest import tiny_rows, write_rows

ONE = {"steps": 1, "batch_size": 8, "precision": "fp32"}


@pytest.fixture(scope="session")
def shelf(tmp_path_factory, tiny_base, tiny_task, tiny_domain) -> Path:
    """A folder with tasks and a store: bases v1 and v2 made from the tiny one, deltas of the tiny base and of v1."""
    from anytune.jobs.pretrain import pretrain
    from anytune.jobs.tune import tune

    folder = tmp_path_factory.mktemp("shelf")
    shutil.copy(tiny_task, folder / "things.csv")
    write_rows(folder / "pairs.csv", [row for row in tiny_rows(60, 6) if row[1] != "stone"])
    write_rows(folder / "colours.csv", [(text, {"animal": "red"}.get(name, name)) for text, name in tiny_rows(60, 7)])
    write_rows(folder / "numbers.csv", [(text, number / 7) for number, (text, _) in enumerate(tiny_rows(40))])
    store, before = folder / STORE, tiny_base
    for name in ("v1", "v2"):
        [made] = pretrain(before, [tiny_domain], store=store, names=[name],
                          training={**ONE, "block_size": 16, "learning_rate": 1e-3})  # fmt: skip
        before = made.folder
    for name, base, method in (("full", tiny_base, "full"), ("lora", tiny_base, {"name": "lora", "r": 2}),
                               ("other", tiny_base, "full"), ("of-v1", "v1", "full")):  # fmt: skip
        tune(str(base), str(folder / "things.csv"), store=store, name=name, method=method, training=ONE,
             seeds=[int(name == "other")])  # fmt: skip
    return folder


@pytest.fixture(autouse=True)
def _cache_apart(_own_cache, monkeypatch, tmp_path_factory):
    """Damaged copies of a base are not to be found by other tests, and no base by the machine's memory."""
    monkeypatch.setenv("ANYTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def here(shelf, cli, tmp_path) -> Path:
    """The current folder, with copies of the tasks and of the store; ``cli`` has gone there."""
    return Path(shutil.copytree(shelf, tmp_path, dirs_exist_ok=True))


def refused(cli, delta, base, *options, values=(), fix="", task="things.csv", method="direct") -> None:
    before = content(Path(STORE))
    method = ("--method", method) if method else ()
    check(cli("recycle", delta, "--base", base, "--task", task, *method, *options, *QUICK), *values, fix=fix)
    assert content(Path(STORE)) == before


def delta_of(name: str) -> Path:
    [entry] = [entry for entry in Store(STORE).find("delta") if entry.name == name]
    return entry.folder


def copied(base: Path, place: Path) -> Path:
    return Path(shutil.copytree(base, place))


# ---------------------------------------------------------------- chains and bases


@pytest.mark.parametrize("way", [("v2",), ("v2", "v2"), ("v1", "v1")])
def test_a_chain_in_the_wrong_order(way, cli, here, tiny_base):
    given = [word for name in way for word in ("--via", name)]
    base = "v1" if way == ("v2",) else "v2"
    refused(cli, "full", base, "--old-base", tiny_base, *given, values=(way[0],), fix=" ")


def test_a_chain_whose_bases_between_nobody_knows(cli, here, tiny_base, other_base):
    refused(cli, "full", other_base, "--old-base", tiny_base, "--via", "parents", values=("other",), fix="--via")


def test_an_old_base_that_is_another_one(cli, here, other_base):
    refused(cli, "full", "v1", "--old-base", "v2", values=("full", "v2"), fix=" ")
    refused(cli, "of-v1", "v2", "--old-base", other_base, values=("of-v1", "v1", "other"), fix=" ")


def test_an_old_base_that_is_gone(cli, here):
    refused(cli, "full", "v1", values=("full", "is not here"), fix="--old-base")
    for entry in Store(STORE).find("base"):
        if entry.name == "v1":
            shutil.rmtree(entry.folder)
    refused(cli, "of-v1", "v2", values=("of-v1", "v1", "is not here"), fix="--old-base")


@pytest.mark.parametrize("base", ["v9", "full"])
def test_a_new_base_that_is_none(base, cli, here, tiny_base):
    refused(cli, "full", base, "--old-base", tiny_base, values=(base,), fix="")


def test_a_delta_that_is_a_base(cli, here, tiny_base):
    refused(cli, "v1", "v2", "--old-base", tiny_base, values=("v1", "not a delta"), fix=" ")


# ---------------------------------------------------------------- heads


@pytest.mark.parametrize("method", ["direct", "initialize", "distill", "combined", "scaled", "masked"])
@pytest.mark.parametrize(("task", "values"), [("colours.csv", ("red",)), ("numbers.csv", ("regression",))])
def test_the_head_of_another_task(method, task, values, cli, here, tiny_base):
    refused(cli, "full", "v1", "--old-base", tiny_base, task=task, method=method, values=values, fix=" ")


# ---------------------------------------------------------------- special adapters


def config_of(delta: str, **changes) -> Path:
    folder = delta_of(delta)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


@pytest.mark.parametrize("start", ["loftq", "corda", "pissa_niter_4"])
def test_an_adapter_that_was_cut_out_of_its_base_by_chance_or_data(start, cli, here, tiny_base):
    config_of("lora", init_lora_weights=start)
    refused(cli, "lora", "v1", "--old-base", tiny_base, values=(start,), fix=" ")


def test_a_pissa_adapter_with_tensors_of_another_rank(cli, here, tiny_base):
    folder = config_of("lora", init_lora_weights="pissa", r=5)
    refused(cli, "lora", "v1", "--old-base", tiny_base, values=("lora_A",), fix="")
    assert folder.exists()


def test_a_dora_without_its_magnitudes(cli, here, tiny_base):
    config_of("lora", use_dora=True)
    refused(cli, "lora", "v1", "--old-base", tiny_base, values=("magnitude",), fix="")


def test_a_kind_of_adapter_nobody_knows(cli, here, tiny_base):
    config_of("lora", peft_type="NEWEST")
    refused(cli, "lora", "v1", "--old-base", tiny_base, values=("NEWEST",), fix="")


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("method", ["direct", "initialize", "combined"])
def test_a_quantised_base(method, cli, here, tiny_base):
    base = copied(tiny_base, here / "small")
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps(config))
    refused(cli, "full", base, "--old-base", tiny_base, method=method, values=("quanti",), fix=" ")


def test_whole_numbers_where_weights_should_be(cli, here, tiny_base):
    base = copied(tiny_base, here / "whole")
    tensors = load_file(base / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layer.0.output.dense.weight"))
    tensors[name] = tensors[name].mul(100).to(torch.int8)
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    refused(cli, "full", base, "--old-base", tiny_base, values=("int8",), fix="")


def test_a_base_with_numbers_that_are_none(cli, here, tiny_base):
    base = copied(tiny_base, here / "broken")
    tensors = load_file(base / "model.safetensors")
    tensors[next(iter(tensors))].fill_(float("nan"))
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    refused(cli, "full", base, "--old-base", tiny_base, values=("broken", "nan at step 0"), fix="")


# ---------------------------------------------------------------- settings and options


@pytest.mark.parametrize(
    ("method", "setting"),
    [("distill", "alpha=2"), ("distill", "temperature=0"), ("distill", "beta=-1"), ("combined", "alpha=-0.1"),
     ("masked", "rows=0"), ("masked", "vote=any"), ("scaled", "grid=[9]"), ("initialize", "scale=100"),
     ("direct", "scale=1")],
)  # fmt: skip
def test_settings_outside_their_limits(method, setting, cli, here, tiny_base):
    key = setting.partition("=")[0]
    refused(cli, "full", "v1", "--old-base", tiny_base, "--set", setting, method=method, values=(method, key), fix=" ")


def test_texts_without_labels_that_nobody_reads(cli, here, tiny_base, tiny_domain):
    refused(cli, "full", "v1", "--old-base", tiny_base, "--unlabelled", tiny_domain, values=("no method reads",),
            fix="distill")  # fmt: skip


# ---------------------------------------------------------------- a bad one in a shelf of good ones


def truncated(folder: Path) -> None:
    path = next(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(folder: Path) -> None:
    next(folder.glob("*.safetensors")).unlink()


@pytest.mark.parametrize("damage", [truncated, emptied])
@pytest.mark.parametrize("which", ["full", "lora"])
def test_a_damaged_delta_in_a_shelf_is_reported_and_the_rest_go_on(damage, which, cli, here, tiny_base):
    damage(delta_of(which))
    answer = cli("upgrade", STORE, "--from", tiny_base, "--to", "v1", "--task", "things=things.csv", "--step", "keep",
                 "--quiet")  # fmt: skip
    assert answer.code == 2, answer
    assert "Traceback" not in answer.err + answer.out
    said = answer.out + answer.err
    assert f"left out: {which}" in said
    v1 = next(entry for entry in Store(STORE).find("base") if entry.name == "v1")
    done = [entry for entry in Store(STORE).find("delta")
            if entry.manifest.base.backbone == v1.manifest.base.backbone and entry.name != "of-v1"]  # fmt: skip
    assert len(done) == 2, "the two others are on the new base"
    once_more = cli("upgrade", STORE, "--from", tiny_base, "--to", "v1", "--task", "things=things.csv", "--step",
                    "keep", "--quiet")  # fmt: skip
    assert once_more.code == 2


def test_a_shelf_without_deltas_of_that_base(cli, here, other_base):
    before = content(Path(STORE))
    check(cli("upgrade", STORE, "--from", other_base, "--to", "v1"), "other", fix=" ")
    assert content(Path(STORE)) == before


@pytest.mark.parametrize(("options", "value"), [
    (("--budget", "soon"), "soon"), (("--tolerance", "much"), "much"), (("--step", "guess"), "guess"),
    (("--task", "things.csv"), "things.csv"), (("--delta", "nowhere"), "nowhere"),
])  # fmt: skip
def test_an_upgrade_that_cannot_be(options, value, cli, here, tiny_base):
    before = content(Path(STORE))
    check(cli("upgrade", STORE, "--from", tiny_base, "--to", "v1", *options), value, fix=" ")
    assert content(Path(STORE)) == before


def test_an_upgrade_to_a_base_of_another_kind_of_thing(cli, here, tiny_base):
    check(cli("upgrade", STORE, "--from", tiny_base, "--to", "things.csv"), "things.csv")
    check(cli("upgrade", STORE, "--from", tiny_base), "upgraded base", fix="--to")


# ---------------------------------------------------------------- a grid


def test_tables_of_a_folder_that_is_no_grid(cli, here):
    check(cli("recycle-tables", STORE), "runs.jsonl", fix="anytune run")
    (here / "runs.jsonl").write_text('{"arm": "direct"}\n')
    check(cli("recycle-tables", "."), "line 1")
    (here / "runs.jsonl").write_text("")
    check(cli("recycle-tables", "."), "no run", fix="anytune run")
