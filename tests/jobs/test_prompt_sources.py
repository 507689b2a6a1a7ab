"""Stored prompts on their way into a run: from the command line, Python and recipes; what is refused; what is kept."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

import anytune
from anytune.errors import DataError, DeltaError, MethodError, SettingsError, StoreError, WrongBaseError
from anytune.jobs.prompt_sources import given_prompts, prompt_of_entry
from anytune.models.base import load_base
from anytune.store import Entry, Store
from tests.conftest import tiny_rows, write_rows
from tests.models.kinds import make_kind

TRAINING = {"steps": 3, "batch_size": 8, "max_length": 32, "precision": "fp32", "evaluate_every": 3,
            "keep": "last"}  # fmt: skip
PROMPT = {"name": "prompt_tuning", "length": 3}


@pytest.fixture(scope="module")
def other_task(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("others") / "walks.csv", tiny_rows(48, 4))


@pytest.fixture(scope="module")
def store(tmp_path_factory, tiny_base, tiny_task, other_task) -> Store:
    """A source, a teacher, and deltas that are neither."""
    made = Store(tmp_path_factory.mktemp("prompts") / "store")
    for name, task, method in (
        ("source", other_task, PROMPT), ("teacher", tiny_task, {**PROMPT, "length": 4}),
        ("adapter", other_task, {"name": "lora", "r": 2}), ("whole", other_task, "full"),
    ):  # fmt: skip
        anytune.tune(tiny_base, task, store=made, name=name, method=method, training=TRAINING)
    anytune.tune(tiny_base, other_task, store=made, name="numbers", method=PROMPT, training=TRAINING, seeds=[1],
                 keep="scores")  # fmt: skip
    return made


def tune(base, task, store, method, **given):
    [entry] = anytune.tune(base, task, store=store, method=method, training=TRAINING, **given)
    return entry


def test_a_source_is_where_the_run_starts_and_a_parent_of_what_it_makes(store, tiny_base, tiny_task):
    source = store.get("source")
    made = tune(tiny_base, tiny_task, store, "prompt_transfer", sources="source")
    manifest = made.manifest
    assert [(parent.role, parent.id) for parent in manifest.parents] == [("delta", source.id)]
    assert manifest.recipe["sources"] == [source.reference]
    assert manifest.form == "peft"
    assert len(prompt_of_entry(made).values) == 3
    still = tune(tiny_base, tiny_task, store, "prompt_transfer", sources=[source], name="another name")
    assert still.id == made.id, "the same run was made again"
    again = anytune.run(made.folder, [f"base={tiny_base}", f"task={tiny_task}"])  # local files are never recorded
    assert [one.id for one in again] == [made.id]


def test_what_a_run_is_given_is_part_of_its_key_by_content(store, tiny_base, tiny_task):
    runs = {
        tune(tiny_base, tiny_task, store, {"name": "panda", "length": 3}, teachers=given, keep="scores").manifest.run
        for given in (
            "teacher", {"delta": "teacher", "similarity": 0.5}, {"delta": "teacher", "similarity": 0.4},
            [store.get("teacher")],
        )
    }  # fmt: skip
    assert len(runs) == 3


def test_a_similarity_that_comes_with_a_teacher_counts(store, tiny_base, tiny_task):
    scores = {}
    for near in (None, 0.0, 1.0):
        given = {"delta": "teacher", "similarity": near}
        entry = tune(tiny_base, tiny_task, store, {"name": "panda", "length": 3}, teachers=given)
        scores[near] = load_file(entry.folder / "adapter_model.safetensors")
    plain = tune(tiny_base, tiny_task, store, PROMPT)
    alone = load_file(plain.folder / "adapter_model.safetensors")
    assert _equal(scores[0.0], alone)
    assert _equal(scores[None], scores[1.0])
    assert not _equal(scores[1.0], alone)


def _equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_from_the_command_line(cli, store, tiny_base, tiny_task):
    words = ["tune", tiny_base, tiny_task, "--store", store.folder, "--steps", "2", "--batch-size", "8",
             "--max-length", "32", "--precision", "fp32", "--json"]  # fmt: skip
    answer = cli(*words, "--method", "prompt_transfer", "--source", "source", "--name", "typed")
    assert answer.code == 0, answer.err
    assert [parent.name for parent in store.get("typed").manifest.parents] == ["source"]
    answer = cli(*words, "--method", "panda", "--set", "length=3", "--set", "similarity=0.5", "--teacher", "teacher",
                 "--against", "prompt_tuning")  # fmt: skip
    assert answer.code == 0, answer.err
    answer = cli(*words, "--method", "panda")
    assert answer.code == 2
    assert "method 'panda' needs a teacher prompt" in answer.err
    assert "--teacher DELTA" in answer.err
    answer = cli(*words, "--source", "source")
    assert answer.code == 2
    assert "1 source prompt is given, and method full takes none" in answer.err


def test_a_control_is_given_what_it_takes_and_workers_get_it_too(store, tiny_base, tiny_task, tmp_path):
    made = anytune.tune(
        tiny_base, tiny_task, store=tmp_path / "store", method={"name": "panda", "length": 3}, training=TRAINING,
        teachers=[store.get("teacher")], against=PROMPT, seeds=[0, 1], workers=2,
    )  # fmt: skip
    assert len(made) == 2
    controls = [one for one in Store(tmp_path / "store").find("delta") if one.manifest.form == "scores"]
    assert [one.manifest.parents for one in controls] == [[], []]
    for entry in made:
        assert [parent.id for parent in entry.manifest.parents] == [store.get("teacher").id]


@pytest.mark.parametrize(
    ("given", "error", "what", "fix"),
    [
        ("nothing", StoreError, "nothing", ""),
        ("adapter", DeltaError, "is a LORA adapter, not a soft prompt", "prompt_tuning"),
        ("whole", DeltaError, "is a full difference, not a soft prompt", "prompt_tuning"),
        ("numbers", DeltaError, "holds scores and no weights", "keep=weights"),
        (["source", "source"], SettingsError, "is given twice", "once"),
        ({"name": "source"}, SettingsError, "'name': 'source'", "delta: NAME"),
        ({"delta": "source", "similarity": 2}, SettingsError, "similarity = 2", "0.7"),
        ({"delta": "source", "similarity": math.nan}, SettingsError, "similarity = nan", "0.7"),
        ("teacher", DataError, "which is this very task", "--teacher"),
    ],
)
def test_what_cannot_be_a_source_is_said_before_anything_is_trained(
    store, tiny_base, tiny_task, given, error, what, fix
):
    before = len(store.find())
    with pytest.raises(error, match=what) as caught:
        tune(tiny_base, tiny_task, store, "prompt_transfer", sources=given)
    assert fix in caught.value.fix
    assert len(store.find()) == before


def test_a_part_of_the_very_task_is_the_task(store, tiny_base, tiny_task):
    entry = tune(tiny_base, tiny_task, store, PROMPT, train_size=20)
    with pytest.raises(DataError, match="this very task"):
        tune(tiny_base, tiny_task, store, "prompt_transfer", sources=entry, train_size=20)


def test_a_prompt_of_another_base_is_refused(store, other_base, tiny_task):
    with pytest.raises(WrongBaseError, match=r"'source.*belongs to base"):
        tune(other_base, tiny_task, store, "prompt_transfer", sources="source")


def test_a_prompt_of_nan_is_refused(store, tiny_base, tmp_path):
    import shutil

    source = store.get("source")
    folder = shutil.copytree(source.folder, tmp_path / "copy")
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors["prompt_embeddings"][1, 2] = math.nan
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DeltaError, match="the prompt holds values that are not finite"):
        given_prompts(Entry(folder, source.manifest), load_base(tiny_base), store)


def test_a_teacher_of_other_labels_is_refused(store, tiny_base, tiny_task, tmp_path):
    rows = [(text, "stony" if label == "stone" else label) for text, label in tiny_rows(48, 6)]
    renamed = write_rows(tmp_path / "renamed.csv", rows)
    with pytest.raises(MethodError, match=r"teacher 'teacher' answers 3 labels .animal, plant, stone"):
        tune(tiny_base, renamed, store, "panda", teachers="teacher")
    two = write_rows(tmp_path / "two.csv", [row for row in rows if row[1] != "plant"])
    with pytest.raises(MethodError, match="the task has 2 labels") as caught:
        tune(tiny_base, two, store, "panda", teachers="teacher")
    assert "loss=hidden" in caught.value.fix
    made = tune(tiny_base, two, store, {"name": "panda", "loss": "hidden", "length": 3}, teachers="teacher")
    assert made.manifest.scores["test"]


def test_an_ordinary_start_from_a_prompt_says_what_to_do_instead(store, tiny_base, tiny_task):
    for method in ("lora", "prompt_tuning", "full"):
        with pytest.raises(DeltaError, match="is a soft prompt, and such a run cannot start from one") as caught:
            tune(tiny_base, tiny_task, store, method, start_from="teacher")
        assert "--method panda --teacher teacher" in caught.value.fix


def test_a_recipe_of_several_jobs_hands_prompts_on_and_is_forecast(tiny_base, tiny_task, other_task, tmp_path):
    shared = {"base": str(tiny_base), "store": str(tmp_path / "store"), "training": TRAINING}
    recipe = {
        **shared,
        "jobs": [
            {"job": "tune", "task": str(other_task), "method": PROMPT, "name": "far"},
            {"job": "tune", "task": str(tiny_task), "method": "prompt_transfer", "sources": ["far"], "name": "near"},
            {"job": "tune", "task": str(tiny_task), "method": {"name": "panda", "length": 3},
             "teachers": [{"delta": "near", "similarity": 0.9}]},
        ],
    }  # fmt: skip
    forecasts = anytune.run(recipe, dry_run=True)
    assert [one.state for one in forecasts] == ["new"] * 3
    assert [bool(one.notes) for one in forecasts] == [False, True, True]
    made = [entry for [entry] in anytune.run(recipe)]
    assert [one.name for one in forecasts] == [one.name for one in made]
    assert [[parent.id for parent in one.manifest.parents] for one in made] == [[], [made[0].id], [made[1].id]]
    assert made[2].manifest.recipe["teachers"] == [{"delta": made[1].reference, "similarity": 0.9}]
    assert json.dumps(made[2].manifest.recipe)
    again = anytune.run(recipe, dry_run=True)
    assert [one.state for one in again] == ["stored"] * 3


@pytest.mark.parametrize(
    ("kind", "of_task"), [("llama", "generation"), ("t5", "generation"), ("t5", "token-classification")]
)
def test_students_that_write_or_tag_are_taught_by_every_loss(kind, of_task, tmp_path):
    base = load_base(make_kind(kind, tmp_path / "base"))
    for name, word in (("cries", "the"), ("calls", "an")):
        rows: list[dict[str, object]] = [
            {"prompt": f"the old owl {place}", "response": f"{word} owl {place % 3}"} for place in range(24)
        ]
        if of_task == "token-classification":
            rows = [{"words": [word, "old", "owl"], "tags": ["A", "B", "AB"[place % 2]]} for place in range(24)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    store, task = Store(tmp_path / "store"), tmp_path / "cries.jsonl"
    source = tune(base, tmp_path / "calls.jsonl", store, PROMPT)
    teacher = tune(base, task, store, "prompt_transfer", sources=[source])
    alone = tune(base, task, store, PROMPT)
    for loss in ("mse", "kl", "hidden", "cosine"):
        taught = tune(base, task, store, {**PROMPT, "name": "panda", "loss": loss}, teachers=[teacher])
        assert taught.manifest.task.kind == of_task
        first, second = (prompt_of_entry(one).values for one in (taught, alone))
        assert bool(torch.isfinite(first).all())
        assert not torch.equal(first, second), f"{loss}: the teacher taught nothing"
