"""Prompts that do not fit: the base, the task, each other, or what is asked of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from anytune.store import Store
from tests.bad_input.checks import QUICK, STORE, check, content
from tests.conftest import tiny_rows, write_rows


@pytest.fixture(scope="session")
def made(tmp_path_factory, tiny_base, tiny_task) -> Path:
    """A folder with the tasks things (3 classes), walks (3), pairs (2), and a store of short prompts of them."""
    from anytune.jobs.tune import tune

    folder = tmp_path_factory.mktemp("prompts")
    shutil.copy(tiny_task, folder / "things.csv")
    write_rows(folder / "walks.csv", tiny_rows(40, 5))
    write_rows(folder / "pairs.csv", [row for row in tiny_rows(60, 6) if row[1] != "stone"])
    for name, task, settings in (
        ("walks", "walks", {"length": 3}), ("long", "walks", {"length": 4}), ("own", "things", {"length": 3}),
        ("input", "walks", {"length": 3, "kind": "input"}), ("pairs", "pairs", {"length": 3}),
    ):  # fmt: skip
        tune(str(tiny_base), str(folder / f"{task}.csv"), store=folder / STORE, name=name,
             method={"name": "prompt_tuning", **settings}, training={"steps": 1, "batch_size": 8})  # fmt: skip
    for method in ("lora", "full"):
        tune(str(tiny_base), str(folder / "walks.csv"), store=folder / STORE, name=method, method=method,
             training={"steps": 1, "batch_size": 8})  # fmt: skip
    [walks] = [entry for entry in Store(folder / STORE).find("delta") if entry.name == "walks"]

    def broken(place: Path) -> None:
        for path in walks.folder.iterdir():
            if path.name != "anytune.json":
                shutil.copy(path, place)
        tensors = load_file(place / "adapter_model.safetensors")
        tensors["prompt_embeddings"][0, 0] = torch.nan
        save_file(tensors, place / "adapter_model.safetensors")

    Store(folder / STORE).add(walks.manifest.model_copy(update={"name": "broken"}), broken)
    return folder


@pytest.fixture
def here(made, cli, tmp_path) -> Path:
    """The current folder, with copies of the tasks and of the store; ``cli`` has gone there."""
    return Path(shutil.copytree(made, tmp_path, dirs_exist_ok=True))


def refused(cli, base, *options, values=(), fix="", task="things.csv") -> None:
    before = content(Path(STORE))
    check(cli("tune", base, task, *options, *QUICK), *values, fix=fix)
    assert content(Path(STORE)) == before


# ---------------------------------------------------------------- which prompts are given


@pytest.mark.parametrize(("method", "fix"), [("prompt_transfer", "--source"), ("attempt", "--source"),
                                             ("mpt", "--source"), ("panda", "--teacher")])  # fmt: skip
def test_a_method_without_the_prompts_it_needs(method, fix, cli, here, tiny_base):
    refused(cli, tiny_base, "--method", method, values=(f"'{method}'",), fix=fix)


SOURCES = [
    ("a name that is none", ["nowhere"], ["nowhere"]),
    ("an adapter", ["lora"], ["lora", "LORA"]),
    ("a full difference", ["full"], ["full", "not a soft prompt"]),
    ("values that are no numbers", ["broken"], ["broken", "not finite"]),
    ("the task itself", ["own"], ["own", "this very task"]),
    ("one prompt twice", ["walks", "walks"], ["walks", "twice"]),
]


@pytest.mark.parametrize(("what", "names", "values"), SOURCES, ids=[case[0] for case in SOURCES])
def test_sources_that_are_none(what, names, values, cli, here, tiny_base):
    given = [word for name in names for word in ("--source", name)]
    # what the store is asked for is the same for every method
    for method in ("prompt_transfer", "attempt", "mpt") if what == "the task itself" else ("prompt_transfer",):
        refused(cli, tiny_base, "--method", method, *given, values=values, fix=" ")


@pytest.mark.parametrize("method", ["prompt_transfer", "attempt", "mpt"])
@pytest.mark.parametrize("other", ["long", "input"])
def test_sources_of_different_length_or_kind(method, other, cli, here, tiny_base):
    words = ("3", "4") if other == "long" else ("deep", "input")
    given = ("--source", "walks", "--source", other)
    refused(cli, tiny_base, "--method", method, *given, values=words, fix="source")


def test_a_length_that_is_not_the_sources(cli, here, tiny_base):
    refused(cli, tiny_base, "--method", "prompt_transfer", "--set", "length=9", "--source", "walks",
            values=("9", "3"), fix="resize")  # fmt: skip


@pytest.mark.parametrize("role", ["source", "teacher"])
def test_a_prompt_of_another_base(role, cli, here, other_base):
    method = "prompt_transfer" if role == "source" else "panda"
    refused(cli, other_base, "--method", method, f"--{role}", "pairs", values=("pairs", "other"), fix=" ")


@pytest.mark.parametrize("role", ["source", "teacher"])
def test_prompts_that_no_method_takes(role, cli, here, tiny_base):
    for method in ("full", "prompt_tuning"):
        refused(cli, tiny_base, "--method", method, f"--{role}", "walks", values=(role, method), fix="--method")


@pytest.mark.parametrize("settings", [(), ("--set", "loss=kl")])
def test_a_teacher_with_other_labels(settings, cli, here, tiny_base):
    refused(cli, tiny_base, "--method", "panda", "--set", "length=3", *settings, "--teacher", "pairs",
            values=("pairs", "2 labels", "3 labels"), fix="hidden")  # fmt: skip


def test_a_source_head_with_other_labels(cli, here, tiny_base):
    refused(cli, tiny_base, "--method", "prompt_transfer", "--set", "head=source", "--source", "pairs",
            values=("pairs", "2 labels", "3 labels"), fix="head=fresh")  # fmt: skip


# ---------------------------------------------------------------- settings, and what stands beside a prompt


@pytest.mark.parametrize(("method", "setting"), [
    ("prompt_tuning", "length=0"), ("prompt_tuning", "kind=soft"), ("prompt_tuning", "init_std=0"),
    ("prompt_tuning", "dropout=1"), ("prompt_tuning", "projection=0"), ("attempt", "per=word"),
    ("attempt", "temperature=0"), ("attempt", "texts=0"), ("attempt", "width=0"), ("mpt", "rank=0"),
    ("mpt", "shared=sum"), ("mpt", "shared_rate=-1"), ("mpt", "rounds=0"), ("label_smoothing", "share=1"),
    ("panda", "weight=-1"), ("panda", "temperature=0"), ("panda", "loss=huber"), ("panda", "similarity=2"),
])  # fmt: skip
def test_settings_outside_their_limits(method, setting, cli, here, tiny_base):
    key, _, value = setting.partition("=")
    refused(cli, tiny_base, "--method", method, "--set", setting, values=(method, key, value), fix="anytune methods")


@pytest.mark.parametrize(("method", "setting"), [("mpt", "length"), ("label_smoothing", "smoothing")])
def test_settings_that_are_none(method, setting, cli, here, tiny_base):
    refused(cli, tiny_base, "--method", method, "--set", f"{setting}=1", values=(method, setting), fix=" ")


@pytest.mark.parametrize("other", ["lora", "prompt_transfer", "attempt"])
def test_two_that_each_put_something_on_the_base(other, cli, here, tiny_base):
    given = () if other == "lora" else ("--source", "walks")
    for methods in (("prompt_tuning", other), (other, "prompt_tuning")):
        words = [word for method in methods for word in ("--method", method)]
        refused(cli, tiny_base, *words, *given, values=("cannot be combined",), fix="--method")


@pytest.mark.parametrize("kind", ["deep", "input"])
def test_a_position_table_too_short_for_prompt_and_text(kind, cli, here, tiny_base):
    refused(cli, tiny_base, "--method", "prompt_tuning", "--set", "length=60", "--set", f"kind={kind}",
            values=("60", "64"), fix=" ")  # fmt: skip


def test_smoothed_labels_of_a_regression(cli, here, tiny_base):
    write_rows(here / "numbers.csv", [(text, number / 7) for number, (text, _) in enumerate(tiny_rows(40))])
    refused(cli, tiny_base, "--method", "prompt_tuning", "--method", "label_smoothing", task="numbers.csv",
            values=("label_smoothing", "regression"), fix=" ")  # fmt: skip


def test_a_target_of_one_class(cli, here, tiny_base):
    write_rows(here / "one.csv", [(text, "stone") for text, _ in tiny_rows(40)])
    refused(cli, tiny_base, "--method", "prompt_transfer", "--source", "walks", task="one.csv",
            values=("one.csv", "stone"), fix=" ")  # fmt: skip
    check(cli("transfer", "rank", "--task", "one.csv", "--base", tiny_base, "--store", STORE), "one.csv", "stone")


def test_a_prompt_is_not_merged(cli, here):
    before = content(Path(STORE))
    check(cli("merge", "walks", "--store", STORE), "a soft prompt cannot be merged", fix="load")
    assert content(Path(STORE)) == before


# ---------------------------------------------------------------- the library


def test_a_library_without_prompts(cli, here, tiny_base, tiny_task):
    shutil.rmtree(here / STORE)
    check(cli("transfer", "rank", "--task", "things.csv", "--base", tiny_base, "--store", STORE), fix="prompt_tuning")
    assert cli("tune", tiny_base, "walks.csv", "--method", "lora", *QUICK).code == 0
    for command in (("rank", "--task", "things.csv"), ("run", "--task", "things.csv"), ("matrix",)):
        check(cli("transfer", *command, "--base", tiny_base, "--store", STORE), fix="prompt_tuning")


def test_a_library_of_another_base_or_of_the_task_alone(cli, here, tiny_base, other_base):
    check(cli("transfer", "rank", "--task", "things.csv", "--base", other_base, "--store", STORE), fix="prompt_tuning")
    for entry in Store(STORE).find("delta"):
        if entry.name != "own":
            shutil.rmtree(entry.folder)
    check(cli("transfer", "rank", "--task", "things.csv", "--base", tiny_base, "--store", STORE), "things", fix=" ")


def test_the_task_itself_and_a_broken_prompt_are_left_out_by_name(cli, here, tiny_base):
    answer = cli("transfer", "rank", "--task", "things.csv", "--base", tiny_base, "--store", STORE, "--every",
                 "--measure", "logme", "--measure", "random")  # fmt: skip
    assert answer.code == 0, answer.err
    assert "walks" in answer.out
    assert "own-" not in answer.out
    assert "own" in answer.err
    assert "broken" in answer.err


@pytest.mark.parametrize(("options", "values"), [
    (("--measure", "cosine"), ("cosine", "task_cosine")), (("--by", "best"), ("best",)),
    (("--rows", 0), ("0",)), (("--pooling", "max"), ("max", "mean")), (("--centring", "zero"), ("zero", "library")),
    (("--source", "nowhere"), ("nowhere",)), (("--source", "lora"), ("lora",)), (("--prompt", "lora"), ("lora",)),
    (("--prompt", "pairs"), ("pairs", "stone")),
])  # fmt: skip
def test_a_ranking_that_cannot_be(options, values, cli, here, tiny_base):
    check(cli("transfer", "rank", "--task", "things.csv", "--base", tiny_base, "--store", STORE, *options), *values)


@pytest.mark.parametrize("what", ["lora", "nowhere", "full"])
def test_what_cannot_be_added_to_the_library(what, cli, here, tiny_base):
    before = content(Path(STORE))
    check(cli("transfer", "add", what, "--base", tiny_base, "--task", "walks.csv", "--store", STORE), what)
    assert content(Path(STORE)) == before


@pytest.mark.parametrize(
    "options", [("--top", 0), ("--set", "length"), ("--set", "name=lora"), ("--beside", "nothing")]
)
def test_a_transfer_that_cannot_be(options, cli, here, tiny_base):
    before = content(Path(STORE))
    check(cli("transfer", "run", "--task", "things.csv", "--base", tiny_base, *options, *QUICK),
          str(options[1]).split("=")[0])  # fmt: skip
    assert content(Path(STORE)) == before


def test_a_prompt_tuned_for_no_steps(cli, here, tiny_base):
    for entry in Store(STORE).find("delta"):
        if entry.name == "own":
            shutil.rmtree(entry.folder)
    words = ("--task", "things.csv", "--base", tiny_base, "--store", STORE, "--train", 0, "--quiet")
    check(cli("transfer", "rank", *words), "steps = 0")
