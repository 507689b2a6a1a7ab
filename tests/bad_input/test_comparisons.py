"""Sizes, other tasks, controls and comparisons that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bad_input.checks import STORE, check, nothing_written, refused
from tests.conftest import tiny_rows, write_rows


@pytest.mark.parametrize(
    ("options", "values", "fix"),
    [
        (("--train-sizes", "10,ten"), ("10,ten",), "--train-sizes 100,300"),
        (("--train-sizes", ""), ("--train-sizes",), "--train-sizes 100,300"),
        (("--train-sizes", "10,10"), ("[10, 10]",), "train_sizes"),
        (("--train-sizes", "0"), ("[0]",), ""),
        (("--train-sizes", "10,99999"), ("99999", "42 training rows"), "[10, 42]"),
        (("--train-sizes", "10", "--train-size", "20"), ("train_size=20",), "one of them"),
        (("--train-sizes", "10", "--per-class", "2"), ("per_class=2",), "one of them"),
        (("--subset-seed", "9"), ("9", "without a size"), "train_size"),
        (("--train-size", "10", "--subset-seed", "-3"), ("-3",), "--subset-seed run"),
        (("--train-size", "10", "--subset-seed", "4294967296"), ("4294967296",), "run"),
        (("--against", "ful"), ("'ful'",), "full"),
        (("--against", "full"), ("full", "the method itself"), "another --against"),
        (("--score-on", "nowhere.csv"), ("nowhere.csv",), ""),
        (("--probe-on", "nowhere.csv"), ("nowhere.csv",), ""),
    ],
)
def test_sizes_and_controls(cli, tiny_base, tiny_task, options, values, fix):
    refused(cli, tiny_base, tiny_task, *values, fix=fix, options=options)


def test_another_task_whose_labels_mean_nothing_here(cli, tiny_base, tiny_task, tmp_path):
    strange = write_rows(tmp_path / "strange.csv", [(text, f"is {label}") for text, label in tiny_rows()])
    refused(
        cli, tiny_base, tiny_task, "'strange'", "is animal", "'things'", fix="label_map",
        options=("--score-on", strange),
    )  # fmt: skip


def test_another_task_of_another_kind(cli, tiny_base, tiny_task, tmp_path):
    prompts = write_rows(tmp_path / "prompts.csv", tiny_rows(), header=("prompt", "response"))
    refused(cli, tiny_base, tiny_task, "generation", "classification", options=("--score-on", prompts))
    refused(cli, tiny_base, tiny_task, "'prompts' is generation", options=("--probe-on", prompts))


@pytest.mark.parametrize(
    ("change", "values"),
    [
        ({"arms": "{}"}, ["no arms"]),
        ({"arms": "[lora]"}, ["arms"]),
        ({"arms": "{a: {method: lora, sede: 1}}"}, ["'a'", "'sede'"]),
        ({"arms": "{a: {method: lroa}}"}, ["lroa"]),
        ({"arms": "{a: {method: {name: lora, r: 0}}}"}, ["r = 0"]),
        ({"control": "b"}, ["'b'"]),
        ({"tasks": "[]"}, ["no tasks"]),
        ({"tasks": "[missing.csv]"}, ["missing.csv"]),
        ({"train_sizes": "[10, 99999]"}, ["99999"]),
        ({"train_sizes": "10"}, ["train_sizes"]),
        ({"seeds": "[1, 1]"}, ["distinct"]),
        ({"label_map": "{nobody: {a: b}}"}, ["nobody"]),
        ({"training": "{steps: 0}"}, ["steps"]),
    ],
)
def test_comparisons(cli, tiny_base, tiny_task, change, values):
    given = {
        "job": "compare", "base": tiny_base, "tasks": f"[{tiny_task}]", "arms": "{a: {method: lora}}", "out": "out",
        "store": STORE, "training": "{steps: 2, batch_size: 8}", **change,
    }  # fmt: skip
    Path("r.yaml").write_text("".join(f"{key}: {value}\n" for key, value in given.items()))
    check(cli("run", "r.yaml"), *values)
    nothing_written()
    assert not Path("out").exists()


def test_a_folder_that_is_no_comparison(cli):
    check(cli("compare", "."), "runs.jsonl", fix="anytune run RECIPE")
    Path("runs.jsonl").write_text('{"task": "t"}\n')
    check(cli("compare", "."), "runs.jsonl, line 1", "metric")
