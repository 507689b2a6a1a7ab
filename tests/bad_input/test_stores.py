"""Stores that were damaged, linked in circles or written by a stranger."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.bad_input.checks import QUICK, STORE, check, content


@pytest.fixture
def delta(own_store) -> Path:
    return next(own_store.glob("deltas/things-full*"))


def rewrite(folder: Path, **values) -> None:
    manifest = json.loads((folder / "anytune.json").read_text())
    (folder / "anytune.json").write_text(json.dumps({**manifest, **values}))


def predict(cli, folder: Path, base: Path):
    return cli("predict", folder, "a cat", "--base", base, "--store", STORE)


def test_a_manifest_of_no_bytes(cli, delta, tiny_base):
    (delta / "anytune.json").write_bytes(b"")
    check(predict(cli, delta, tiny_base), "anytune.json")


def test_a_manifest_that_is_cut_off(cli, delta, tiny_base):
    text = (delta / "anytune.json").read_text()
    (delta / "anytune.json").write_text(text[: len(text) // 2])
    check(predict(cli, delta, tiny_base), "anytune.json")


def test_a_manifest_of_a_later_version(cli, delta, tiny_base):
    rewrite(delta, format_version=99)
    check(predict(cli, delta, tiny_base), "99")


def test_a_manifest_with_a_list_for_a_name(cli, delta, tiny_base):
    rewrite(delta, name=["a"])
    check(predict(cli, delta, tiny_base), "name")


def test_weights_of_no_bytes(cli, delta, tiny_base):
    (delta / "delta.safetensors").write_bytes(b"")
    check(predict(cli, delta, tiny_base), "delta.safetensors")


def test_weights_that_are_gone(cli, delta, tiny_base):
    (delta / "delta.safetensors").unlink()
    check(predict(cli, delta, tiny_base), "delta.safetensors")


def test_an_adapter_of_no_bytes(cli, own_store, tiny_base):
    adapter = next(own_store.glob("deltas/things-lora*"))
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    check(predict(cli, adapter, tiny_base), "adapter_model.safetensors")


def test_an_adapter_whose_settings_are_no_json(cli, own_store, tiny_base):
    adapter = next(own_store.glob("deltas/things-lora*"))
    (adapter / "adapter_config.json").write_text("rank = 8")
    check(predict(cli, adapter, tiny_base), "adapter_config.json")


def test_the_same_id_twice(cli, own_store, delta, tiny_base):
    """A folder copied by hand: both are listed, either can be named by its folder, the id alone is refused."""
    copy = Path(shutil.copytree(delta, delta.with_name("copied-by-hand")))
    name = json.loads((delta / "anytune.json").read_text())["id"]
    answer = cli("predict", name, "a cat", "--base", tiny_base, "--store", STORE)
    if answer.code:
        check(answer, copy.name)
    assert predict(cli, delta, tiny_base).code == 0


def test_a_store_that_links_to_itself(cli, own_store, tiny_base, tiny_task):
    os.symlink(own_store, own_store / "deltas" / "again")
    os.symlink("loop", own_store / "deltas" / "loop")
    assert cli("store", "list", "--store", STORE).code == 0
    assert cli("tune", tiny_base, tiny_task, *QUICK, "--seeds", "7,8").code == 0


def test_a_store_that_is_a_file(cli, tiny_base, tiny_task):
    Path("file").write_text("mine")
    check(cli("tune", tiny_base, tiny_task, "--store", "file", "--steps", 2, "--quiet"), "file")
    assert Path("file").read_text() == "mine"


def test_a_store_that_is_a_loop_of_links(cli, tiny_base, tiny_task):
    os.symlink("loop", "loop")
    check(cli("tune", tiny_base, tiny_task, "--store", "loop", "--steps", 2, "--quiet"), "loop")


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "..\\outside"])
def test_a_reference_that_leaves_the_store(cli, own_store, tiny_base, name):
    before = content(own_store)
    check(cli("predict", name, "a cat", "--base", tiny_base, "--store", STORE))
    check(cli("store", "remove", name, "--store", STORE, "--force"))
    assert content(own_store) == before


def test_a_folder_that_is_there_already_as_an_export(cli, delta, tiny_base):
    Path("out").mkdir()
    Path("out/precious.txt").write_text("mine")
    check(cli("merge", delta, "--out", "out", "--base", tiny_base, "--store", STORE), "out")
    assert [path.name for path in Path("out").iterdir()] == ["precious.txt"]


def test_texts_to_predict_from_a_missing_file(cli, delta, tiny_base):
    check(cli("predict", delta, "--file", "nowhere.csv", "--base", tiny_base, "--store", STORE), "nowhere.csv")


def test_a_text_to_predict_that_is_empty(cli, delta, tiny_base):
    check(cli("predict", delta, "", "--base", tiny_base, "--store", STORE))


def test_a_score_asked_for_that_is_no_number(cli, own_store):
    answer = cli("store", "list", "--score", "nan", "--store", STORE)
    if answer.code:
        check(answer, "nan")
