"""``anytune transfer``: what it prints, and what it says where something is wrong."""

from __future__ import annotations

import json

import pytest

import anytune
from tests.conftest import tiny_rows, write_rows

STEPS = ("--steps", 2, "--batch-size", 8, "--max-length", 24, "--precision", "fp32")


@pytest.fixture(scope="module")
def library(tmp_path_factory, session_cache, tiny_base):
    """A store with prompts of two tasks."""
    folder = tmp_path_factory.mktemp("prompts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYTUNE_CACHE", str(session_cache))
        for name, seed in (("alive", 5), ("letters", 6)):
            rows = [(text, str(len(label)) if name == "letters" else str(label == "stone"))
                    for text, label in tiny_rows(60, seed)]  # fmt: skip
            anytune.tune(
                tiny_base, write_rows(folder / f"{name}.csv", rows), store=folder / "s",
                method={"name": "prompt_tuning", "length": 3},
                training={"steps": 2, "batch_size": 8, "max_length": 24, "precision": "fp32"},
            )  # fmt: skip
    return folder / "s"


def test_rank_prints_a_table_with_scores_needs_and_seconds(cli, library, tiny_base, tiny_task, tmp_path):
    answer = cli("transfer", "rank", "--task", tiny_task, "--base", tiny_base, "--store", library, "-q",
                 "--csv", tmp_path / "ranking.csv")  # fmt: skip
    assert answer.code == 0, answer.err
    for words in ("rank", "logme", "alive-prompt_tuning-tiny-", "letters", "needs", "target labels", "seconds",
                  "ranked by logme", "--train 100", "next: anytune transfer run"):  # fmt: skip
        assert words in answer.out, words
    assert (tmp_path / "ranking.csv").read_text().startswith("rank,source,task,size,family,")
    plain = json.loads(cli("transfer", "rank", "--task", tiny_task, "--base", tiny_base, "--store", library,
                           "--measure", "size", "--measure", "tfidf", "--by", "size", "-q", "--json").out)  # fmt: skip
    assert plain["metric"] == "size"
    assert [set(one["scores"]) for one in plain["ranking"]] == [{"size", "tfidf"}] * 2


def test_matrix_prints_and_writes(cli, library, tiny_base, tmp_path):
    answer = cli("transfer", "matrix", "--base", tiny_base, "--store", library, "--out", tmp_path / "maps")
    assert answer.code == 0, answer.err
    assert "1.000" in answer.out
    assert {path.name for path in (tmp_path / "maps").iterdir()} == {"task_cosine.csv", "task_cosine.svg"}
    found = json.loads(cli("transfer", "matrix", "--base", tiny_base, "--store", library, "--by", "tfidf",
                           "--json").out)  # fmt: skip
    assert sorted(found["order"]) == [0, 1]


def test_run_goes_from_ranking_to_a_kept_delta(cli, library, tiny_base, tiny_task):
    words = ("transfer", "run", "--task", tiny_task, "--base", tiny_base, "--store", library, "--top", 1, "-q",
             "--beside", "bitfit", *STEPS)  # fmt: skip
    answer = cli(*words)
    assert answer.code == 0, answer.err
    for name in ("prompt tuning", "transfer", "panda", "bitfit", "kept: ", "best"):
        assert name in answer.out, name
    again = json.loads(cli(*words, "--json").out)
    assert again["best"] in answer.out
    assert [one["arm"] for one in again["arms"]] == ["prompt tuning", "transfer", "panda", "bitfit"]


def test_add_adopts_a_folder(cli, library, tiny_base, tmp_path):
    entry = anytune.Store(library, create=False).find("delta", task="alive")[0]
    anytune.export(entry, tmp_path / "mine", store=library)
    (tmp_path / "mine" / "anytune.json").unlink()
    answer = cli("transfer", "add", tmp_path / "mine", "--base", tiny_base, "--task", library.parent / "alive.csv",
                 "--store", tmp_path / "s")  # fmt: skip
    assert answer.code == 0, answer.err
    assert "mine-" in answer.out
    assert "42" in answer.out
    alone = cli("transfer", "add", tmp_path / "mine", "--base", tiny_base, "--store", tmp_path / "s2")
    assert alone.code == 0, alone.err
    assert "does not say where its task's data are" in alone.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("rank",), "no task is given"),
        (("rank", "--task", "TASK"), "no base is given"),
        (("rank", "--task", "TASK", "--base", "BASE"), "no soft prompt of base"),
        (("rank", "--task", "TASK", "--base", "BASE", "--by", "logmee"), "logme"),
        (("rank", "--task", "TASK", "--base", "BASE", "--pooling", "max"), "pooling"),
        (("rank", "--task", "TASK", "--base", "BASE", "--rows", "0"), "rows = 0"),
        (("matrix", "--base", "BASE", "--by", "logme"), "task_cosine"),
        (("run", "--task", "TASK", "--base", "BASE"), "no soft prompt of base"),
        (("add", "nowhere", "--base", "BASE"), "nowhere"),
        (("tables", "nowhere"), "cannot read"),
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(cli, tiny_base, tiny_task, words, said):
    real = [str(tiny_task) if word == "TASK" else str(tiny_base) if word == "BASE" else word for word in words]
    answer = cli("transfer", *real)
    assert answer.code == 2
    assert said in answer.err
    assert "Traceback" not in answer.err
