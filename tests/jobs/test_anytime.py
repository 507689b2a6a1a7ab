"""Anytime matrices: what is run, that it is shared and found again, and the tables from the lines alone."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

import anytune
from anytune.data.tasks import load_task
from anytune.engine.progress import Silent
from anytune.engine.runtime import make_runtime
from anytune.errors import AnytuneError, DataError, DivergedError, MethodError, SettingsError
from anytune.evaluate.anytime import AccuracyMatrix, columns, matrices
from anytune.jobs import anytime_runs as runs
from anytune.jobs.anytime import anytime_again, anytime_matrix
from anytune.jobs.anytime_design import design
from anytune.jobs.extra_scores import ExtraScores
from anytune.jobs.stages import stored_stages
from anytune.manifests import file_hashes
from anytune.models.base import load_base
from anytune.store import Store
from tests.conftest import COMMON, TOPICS, tiny_rows, write_rows

ORDERS = [["animal", "plant", "stone"], ["animal", "stone", "plant"]]
TRAINING = {"batch_size": 8, "block_size": 16, "precision": "fp32", "learning_rate": 1e-3}
TUNING = {"training": {"steps": 4, "batch_size": 8, "max_length": 32, "precision": "fp32", "learning_rate": 1e-2},
          "train_size": 24, "subset_seed": "run"}  # fmt: skip


def texts(words: list[str], seed: int, count: int = 120) -> str:
    draw = random.Random(seed)
    return "\n".join(" ".join(draw.choices(words + COMMON, k=14)) for _ in range(count))


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """Three domains, each about other words, with a task each."""
    folder = tmp_path_factory.mktemp("stream")
    made = []
    for number, (name, words) in enumerate(TOPICS.items()):
        (folder / f"{name}.txt").write_text(texts(words, number))
        task = write_rows(folder / f"{name}s.csv", tiny_rows(60, seed=10 + number))
        made.append({"name": name, "domain": str(folder / f"{name}.txt"), "task": str(task)})
    return made


@pytest.fixture
def given(tiny_base, subjects, tmp_path):
    return {
        "base": str(tiny_base), "domains": subjects, "arms": {"slower": {"method": "sequential",
        "training": {"learning_rate": 1e-4}}}, "out": tmp_path / "out", "store": tmp_path / "s",
        "training": {**TRAINING, "steps": 3}, "tuning": TUNING,
    }  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory, session_cache, tiny_base, subjects):
    """(result, store): two arms, two orders, two seeds; the second arm takes the first order alone."""
    folder = tmp_path_factory.mktemp("anytime")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYTUNE_CACHE", str(session_cache))
        found = anytime_matrix(
            str(tiny_base), subjects,
            {"slower": {"method": "sequential", "training": {"learning_rate": 1e-4}, "orders": 1}},
            out=folder / "out", store=folder / "s", orders=ORDERS,
            seeds=[0, 1], training=TRAINING, tokens=3 * 8 * 16 + 5, tuning=TUNING,
        )  # fmt: skip
    return found, folder / "s"


def test_each_stage_and_each_needed_cell_is_a_run_and_what_is_equal_is_made_once(made):
    found, store = made
    entries = Store(store, create=False).find("delta")
    bases = Store(store, create=False).find("base")
    # the orders share their first stage: 1 + 2 + 2 of the control, 3 of the other arm, each with two seeds
    assert len(bases) == (5 + 3) * 2
    # of 9 cells after a stage the metrics need all but (2, 1); the shared first stage shares its 3 cells
    assert len(found.lines) == 2 * 3 + (2 * 8 + 8) * 2
    assert len(entries) == 2 * (3 + 3 + 5 + 5 + 8)
    cells = [(line["arm"], line["order"], line["seed"], line["stage"], line["task"]) for line in found.lines]
    assert len(set(cells)) == len(cells)
    assert ("sequential", 0, 0, 2, "animal") not in cells
    assert {line["steps"] for line in found.stages} == {3}, "the budget of tokens is three steps and a rest"
    assert {line["tokens"] for line in found.stages} == {3 * 8 * 16}
    rates = {line["arm"]: line["learning_rate"] for line in found.stages}
    assert rates == {"sequential": 1e-3, "slower": 1e-4}
    by_run = {entry.manifest.run: entry for entry in entries}
    for line in found.lines:
        entry = by_run[line["run"]]
        assert line["test"] == entry.score("test")
        assert (line["train"], len(line["predictions"])) == (24, entry.manifest.task.counts["test"])
    stream = [
        line["after"] for line in found.stages if (line["arm"], line["order"], line["seed"]) == ("sequential", 1, 0)
    ]
    assert stream == ["animal", "stone", "plant"]


def test_a_cell_is_tuned_from_the_base_of_its_stage_and_leaves_it_as_it_was(made, subjects, tiny_base):
    found, place = made
    store = Store(place, create=False)
    for base in store.find("base"):
        assert base.manifest.files.items() <= file_hashes(base.folder).items()
    bases = {entry.manifest.run: entry for entry in store.find("base")}
    backbones = {
        (line["arm"], line["order"], line["seed"], line["stage"]): bases[line["run"]].manifest.base.backbone
        for line in found.stages
    }
    cells = {entry.manifest.run: entry.manifest for entry in store.find("delta")}
    first = anytune.open_base(str(tiny_base)).identity.backbone
    for line in found.lines:
        key = (line["arm"], line["order"], line["seed"], line["stage"])
        assert cells[line["run"]].base.backbone == line["base"] == (backbones[key] if line["stage"] else first)
    # the same cell by hand, from the stored base, after all others: the same score
    [line] = [one for one in found.lines if (one["arm"], one["order"], one["seed"], one["stage"], one["task"])
              == ("slower", 0, 1, 2, "stone")]  # fmt: skip
    [stage] = [one for one in found.stages if (one["arm"], one["seed"], one["stage"]) == ("slower", 1, 2)]
    [again] = anytune.tune(
        bases[stage["run"]].folder, subjects[2]["task"], store=place.parent / "by-hand", seeds=[1], keep="scores",
        training=TUNING["training"], train_size=24, subset_seed="run",
    )  # fmt: skip
    assert again.manifest.run == line["run"]
    assert again.manifest.scores["test"] == cells[line["run"]].scores["test"]


def test_the_stages_are_those_of_a_pre_training_by_hand_which_is_found(given, tmp_path):
    sources = [{"source": one["domain"], "name": one["name"]} for one in given["domains"]]
    tell = Silent()
    by_hand = anytune.pretrain(
        given["base"], sources, store=given["store"], training={**given["training"], "evaluate_every": 3}, seed=0,
        apart_from=[one["task"] for one in given["domains"]], reporter=tell,
    )  # fmt: skip
    found = anytime_matrix(**{**given, "arms": {"sequential": {"method": "sequential"}}})
    assert [line["run"] for line in found.stages] == [entry.manifest.run for entry in by_hand]
    assert len(Store(given["store"], create=False).find("base")) == 3
    for line, entry in zip(found.stages, by_hand, strict=True):
        assert line["losses"].keys() == {"animal", "plant", "stone"}
        for name, loss in line["losses"].items():
            assert loss["after"] == entry.manifest.scores[f"heldout:{name}"]["loss"]
            assert loss["perplexity"] == pytest.approx(math.exp(loss["after"]))
    assert by_hand[0].manifest.domains[0].overlap == dict.fromkeys(("animals", "plants", "stones"), 0)


def test_nothing_is_made_again_and_the_tables_come_from_the_lines_alone(made, monkeypatch, tmp_path, tiny_base,
                                                                         subjects):  # fmt: skip
    found, store = made
    for name in ("make_stream", "tune_cell"):
        monkeypatch.setattr(runs, name, lambda **call: pytest.fail("it was made again"))
    again = anytime_matrix(
        str(tiny_base), subjects,
        {"slower": {"method": "sequential", "training": {"learning_rate": 1e-4}, "orders": 1}},
        out=tmp_path / "out", store=store, orders=ORDERS,
        seeds=[0, 1], training=TRAINING, tokens=3 * 8 * 16 + 5, tuning=TUNING,
    )  # fmt: skip
    assert list(again.lines) == list(found.lines)
    written = (tmp_path / "out" / "tables.md").read_text()
    for name in ("tables.md", "tasks.jsonl"):
        (tmp_path / "out" / name).unlink()
    assert str(anytime_again(tmp_path / "out")).splitlines()[:-1] == str(found).splitlines()[:-1]
    assert (tmp_path / "out" / "tables.md").read_text() == written
    for words in ("## Metrics", "### slower, order 0 (2 seeds)", "| 0: before |", "## Held-out losses", "undecided"):
        assert words in written


def test_row_0_has_a_probe_over_the_base_that_nothing_has_tuned(made, tiny_base, subjects):
    found, _ = made
    base, runtime = load_base(tiny_base), make_runtime("fp32")
    assert all(line["frozen_base"] is None for line in found.lines if line["arm"] is not None)
    for seed in (0, 1):
        [cell] = [line for line in found.lines if (line["arm"], line["task"], line["seed"]) == (None, "plant", seed)]
        part = load_task(subjects[1]["task"]).subset(train_size=24, seed=seed)
        body, _ = base.task_model("classification", part.label_names, 5)
        scored = ExtraScores(base, (), (part,), 32, 64)(body, runtime)
        assert cell["frozen_base"] == scored[f"probe:{part.name}"][part.metric]


def test_the_metrics_are_those_of_matrices_made_by_hand_from_the_lines(made):
    found, _ = made
    both = matrices(found.lines)
    assert {arm: sorted(runs) for arm, runs in both.items()} == {
        "sequential": [(0, 0), (0, 1), (1, 0), (1, 1)], "slower": [(0, 0), (0, 1)],
    }  # fmt: skip
    order = ["animal", "stone", "plant"]
    score = {(line["stage"], line["task"]): 100 * line["test"] for line in found.lines
             if (line["arm"], line["order"], line["seed"]) == ("sequential", 1, 1)}  # fmt: skip
    matrix = both["sequential"][1, 1]
    assert isinstance(matrix, AccuracyMatrix)
    assert matrix.domains == tuple(order)
    assert matrix.value("a_acc") == pytest.approx(np.mean([score[i + 1, name] for i, name in enumerate(order)]))
    assert matrix.value("f_acc") == pytest.approx(np.mean([score[3, name] for name in order]))
    assert matrix.value("o_acc") == pytest.approx(np.mean([score[1, "stone"], score[1, "plant"], score[2, "plant"]]))
    [column] = columns(both, "sequential", ["f_acc"])
    assert column.against["slower"].difference.n == 2, "paired by order and seed"


@pytest.mark.parametrize("flow", ["restart", "joint"])
def test_streams_that_restart_or_mix_have_the_rows_they_can(flow, given, monkeypatch):
    from anytune.methods.pretrain.sequential import Sequential

    monkeypatch.setattr(Sequential, "stream", flow)
    found = anytime_matrix(**{**given, "arms": {"sequential": {"method": "sequential"}}, "seeds": [3]})
    both = matrices(found.lines)["sequential"][0, 3]
    bases = {entry.manifest.run: entry for entry in Store(given["store"], create=False).find("base")}
    assert len(bases) == len(found.stages) == (1 if flow == "joint" else 3)
    if flow == "joint":
        assert [(line["stage"], line["after"], line["steps"]) for line in found.stages] == [
            (3, "animal+plant+stone", 9)
        ]
        assert both.value("f_acc") is not None
        assert both.missing("a_acc") == [(1, 1), (2, 2)]
        assert "| sequential | - |" in (found.folder / "tables.md").read_text()
    else:
        parents = {entry.manifest.parents[0].id if entry.manifest.parents else "first" for entry in bases.values()}
        assert len(parents) == 1, "every stage begins at the first base"
        assert both.value("a_acc") is not None
    again = stored_stages(
        given["base"], [job_domain(one) for one in given["domains"]], store=given["store"],
        training={**given["training"], "evaluate_every": 3}, seed=3,
    )  # fmt: skip
    assert [entry.manifest.run for entry in again] == [line["run"] for line in found.stages]


def job_domain(item):
    return anytune.load_domain(item["domain"], name=item["name"])


def test_a_stream_that_diverges_ends_nothing_and_counts_as_one_answer(given, monkeypatch):
    honest = runs.pretrain

    def second_diverges(**call):
        if call.get("training", {}).get("learning_rate") == 1e-4:
            honest(**{**call, "domains": call["domains"][:1]})
            raise DivergedError("the loss is nan at step 2")
        return honest(**call)

    monkeypatch.setattr(runs, "pretrain", second_diverges)
    found = anytime_matrix(**given, seeds=[0])
    lost = [line for line in found.lines if line["failed"]]
    assert {(line["arm"], line["stage"]) for line in lost} == {("slower", 2), ("slower", 3)}
    assert all(line["test"] is None and line["floor"] is not None for line in lost)
    matrix = matrices(found.lines)["slower"][0, 0]
    assert matrix.at(3, 1) == 100 * lost[-1]["floor"] or matrix.at(3, 1) in [100 * line["floor"] for line in lost]
    assert "pre-training diverged at stage 2: the loss is nan at step 2" in str(found)
    monkeypatch.setattr(runs, "pretrain", lambda **call: pytest.fail("it was tried again"))
    assert list(anytime_matrix(**given, seeds=[0]).lines) == list(found.lines)


def test_an_arms_own_tuning_stands_over_that_of_all_arms_setting_by_setting(given):
    def own(tuning):
        made = design(
            load_base(given["base"]), given["domains"], {"longer": {"method": "sequential", "tuning": tuning}},
            control="sequential", orders=1, seeds=[0], runs="paired", training=given["training"], tokens=None,
            tuning=TUNING, cells="needed", metrics=None,
        )  # fmt: skip
        [arm] = [one for one in made.arms if one.name == "longer"]
        return arm.tuning

    longer = own({"training": {"steps": 12}})
    assert longer.training == {**TUNING["training"], "steps": 12}
    assert (longer.train_size, longer.subset_seed, longer.method) == (24, "run", "full")
    assert own({"training": {"epochs": 2}}).training == {
        **{key: value for key, value in TUNING["training"].items() if key != "steps"}, "epochs": 2,
    }  # fmt: skip
    assert own({"method": "bitfit"}).training == TUNING["training"]


@pytest.mark.slow
def test_a_recipe_is_shared_out_over_processes_and_an_arm_may_tune_in_its_own_way(given, tmp_path):
    recipe = {
        "job": "anytime", **{key: str(value) if key in ("out", "store") else value for key, value in given.items()},
        "domains": given["domains"][:2], "arms": {"biases": {"method": "sequential", "tuning": {"method": "bitfit"}}},
        "seeds": 2, "orders": 2, "runs": "paired", "cells": "all", "workers": 2,
        "metrics": ["a_acc", "worst_unseen_drop"],
    }  # fmt: skip
    planned = anytune.run(recipe, dry_run=True)
    assert [(one.job, one.state) for one in planned] == [("pretrain", "new")] * 8 + [("tune", "new")] * (4 + 16)
    assert not (tmp_path / "out").exists()
    assert [(one.seed, one.name) for one in planned[:4]] == [
        (0, "tiny-animal"), (0, "tiny-animal-plant"), (1, "tiny-plant"), (1, "tiny-plant-animal"),
    ]  # fmt: skip
    found = anytune.run(recipe)
    entries = Store(tmp_path / "s", create=False).find()
    assert {entry.manifest.environment.threads for entry in entries} == {1}
    assert {(line["order"], line["seed"]) for line in found.stages} == {(0, 0), (1, 1)}
    tuned = {entry.manifest.run: [one.name for one in entry.manifest.methods] for entry in entries}
    for line in found.lines:
        assert tuned[line["run"]] == (["tune/bitfit"] if line["arm"] == "biases" else ["tune/full"])
    assert len([line for line in found.lines if line["arm"] == "biases"]) == 2 * 4
    assert len({entry.manifest.run for entry in entries if entry.manifest.kind == "base"}) == 4, "arms share stages"
    assert [one.state for one in anytune.run(recipe, dry_run=True)] == ["stored"] * 28


def test_the_command_prints_the_summary_or_all_tables(cli, made):
    found, _ = made
    short, long = cli("anytime", found.folder), cli("anytime", found.folder, "--tables")
    assert (short.code, long.code) == (0, 0)
    assert "slower against sequential: A_Acc" in short.out
    assert "| after stage |" in long.out
    numbers = json.loads(cli("anytime", found.folder, "--json").out)
    assert numbers["metrics"]["a_acc"]["summary"]["slower"]["n"] == 2
    missing = cli("anytime", "nowhere")
    assert (missing.code, "cannot read nowhere/runs.jsonl" in missing.err) == (2, True)


@pytest.mark.parametrize("of_an_arm", [True, False])
def test_tuning_that_cannot_be_done_on_a_task_is_refused_before_anything_is_trained(of_an_arm, given, tmp_path):
    numbers = write_rows(tmp_path / "numbers.csv", [(row[0], place / 7) for place, row in enumerate(tiny_rows(60))])
    tuning = {"method": {"name": "slca", "reverse": 0.5}}
    given["domains"] = [{**given["domains"][0], "task": str(numbers)}, given["domains"][1]]
    if of_an_arm:
        given["arms"]["slower"]["tuning"] = tuning
    else:
        given["tuning"] = {**given["tuning"], **tuning}
    with pytest.raises(MethodError, match="on a regression"):
        anytime_matrix(**given)
    assert not given["store"].exists()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"domains": []}, ["no list of domains"]),
        ({"domains": ["law.txt"]}, ["domain 1", "law.txt"]),
        ({"domains": [{"name": "x", "task": "t.csv"}]}, ["'domain'", "(x)"]),
        ({"domains": "TWICE"}, ["'animal'"]),
        ({"domains": [{"domian": "x"}]}, ["'domian'", "domain:"]),
        ({"orders": [["animal", "plant"]]}, ["['animal', 'plant']"]),
        ({"orders": 7}, ["orders = 7", "6 orders"]),
        ({"orders": [["animal", "plant", "stone"]] * 2}, ["distinct"]),
        ({"orders": 2, "runs": "paired"}, ["2 orders and 1 seeds"]),
        ({"runs": "mixed"}, ["runs = 'mixed'"]),
        ({"arms": {}}, ["no arms"]),
        ({"arms": {"x": {"method": "sequentil"}}}, ["sequentil"]),
        ({"arms": {"x": {"method": "full"}}}, ["full"]),
        ({"arms": {"x": {"method": "sequential", "orders": 2}}}, ["arm 'x'", "orders = 2"]),
        ({"arms": {"x": {"method": "sequential", "seeds": [1]}}, "runs": "paired"}, ["arm 'x'", "paired"]),
        ({"arms": {"x": {"method": "sequential", "tuning": {"steps": 1}}}}, ["arm 'x'", "'steps'"]),
        ({"control": "y"}, ["'y'"]),
        ({"tuning": {"method": "nothing"}}, ["nothing"]),
        ({"tuning": {"train_size": 9000}}, ["9000"]),
        ({"tuning": "full"}, ["tuning is 'full'"]),
        ({"tokens": 5}, ["tokens = 5", "128"]),
        ({"tokens": "all"}, ["tokens = 'all'"]),
        ({"tokens": 5000, "training": {"steps": 2}}, ["both tokens"]),
        ({"cells": "some"}, ["cells = 'some'"]),
        ({"metrics": ["a_ac"]}, ["a_ac", "a_acc"]),
        ({"seeds": [1, 1]}, ["distinct"]),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(changed, words, given, tmp_path):
    if changed.get("domains") == "TWICE":
        changed = {"domains": [given["domains"][0]] * 2}
    if "tokens" in changed:
        changed = {"training": {"batch_size": 8, "block_size": 16}, **changed}
    with pytest.raises(AnytuneError) as caught:
        anytime_matrix(**{**given, **changed})
    for word in words:
        assert word in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_errors_are_not_averaged_with_accuracies(given, tmp_path):
    task = write_rows(tmp_path / "n.csv", [(text, place / 7) for place, (text, _) in enumerate(tiny_rows(60))])
    numbers = {"source": str(task), "kind": "regression", "metric": "mse"}
    with pytest.raises(SettingsError, match="mse, of which less is better"):
        anytime_matrix(
            **{**given, "domains": [*given["domains"], {**given["domains"][0], "name": "n", "task": numbers}]}
        )


def test_held_out_texts_in_a_domain_are_an_error(given, tmp_path):
    path = tmp_path / "leaking.txt"
    path.write_text("\n".join([*(text for text, _ in tiny_rows(60, seed=10)), texts(TOPICS["animal"], 5)]))
    with pytest.raises(DataError, match="also in the held-out part of task 'animal'"):
        anytime_matrix(**{**given, "domains": [{**given["domains"][0], "domain": str(path)}, *given["domains"][1:]]})


@pytest.mark.parametrize("name", ["runs.jsonl", "stages.jsonl"])
@pytest.mark.parametrize("text", ["", "x\n", "{}\n", "[1]\n"])
def test_a_damaged_file_is_refused(name, text, made, tmp_path):
    found, _ = made
    for file in ("runs.jsonl", "stages.jsonl"):
        (tmp_path / file).write_bytes((found.folder / file).read_bytes())
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=name):
        anytime_again(tmp_path)


def test_an_open_base_cannot_be_sent_to_workers(given):
    with pytest.raises(SettingsError, match="open base"):
        anytime_matrix(**{**given, "base": anytune.open_base(given["base"]), "workers": 2})


def test_texts_are_compared_once_for_each_domain_and_task(subjects, monkeypatch, tmp_path):
    from anytune.jobs import pretrain

    monkeypatch.setenv("ANYTUNE_CACHE", str(tmp_path))
    domain, task = job_domain(subjects[0]), anytune.load_task(subjects[1]["task"])
    leaking = anytune.load_domain(subjects[0]["domain"], name="other", limit=50)
    assert pretrain.count_overlap(domain, [task]) == {"plants": 0}
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "overlap", lambda *texts: pytest.fail("they were compared again"))
        assert pretrain.count_overlap(domain, [task]) == {"plants": 0}
    monkeypatch.setattr(pretrain, "overlap", lambda *texts: 3)
    for _ in range(2):
        with pytest.raises(DataError, match="3 texts of domain 'other'"):
            pretrain.count_overlap(leaking, [task])


def test_dated_text_is_a_stream_over_time(tiny_base, tmp_path):
    from anytune.jobs.anytime_design import open_subjects

    rows = [(text, label, f"{2016 + place % 2}-03-0{place % 9 + 1}") for place, (text, label) in
            enumerate(tiny_rows(120, seed=4))]  # fmt: skip
    task = write_rows(tmp_path / "posts.csv", rows, header=("text", "label", "day"))
    raw = [(text, f"{2016 + place % 2}") for place, text in enumerate(texts(TOPICS["plant"], 3).split("\n"))]
    domain = write_rows(tmp_path / "talk.csv", raw, header=("text", "day"))
    item = {"domain": {"source": str(domain), "date": "day", "split_by": "year"},
            "task": {"source": str(task), "date": "day", "text": "text", "label": "label"}}  # fmt: skip
    found = open_subjects([item])
    assert [(one.name, one.domain.name, one.task.name) for one in found] == [
        (name, name, name) for name in ("talk-2016", "talk-2017")
    ]
    assert found[0].task.content != found[1].task.content
    assert [one.name for one in open_subjects([{**item, "name": "x"}])] == ["x-2016", "x-2017"]
    with pytest.raises(SettingsError, match="2016, 2017, its task before-2017, from-2017"):
        open_subjects([{**item, "task": {**item["task"], "split_by": [2017]}}])
    with pytest.raises(SettingsError, match="is opened already"):
        open_subjects([{**item, "task": found[0].task}])
    made = anytune.pretrain(
        str(tiny_base), [item["domain"]], store=tmp_path / "s", training={**TRAINING, "steps": 2}, names=["a", "b"]
    )
    assert [entry.manifest.domains[0].name for entry in made] == ["talk-2016", "talk-2017"]


def test_a_warmed_sample_is_a_base_by_name(monkeypatch):
    from anytune.jobs import warm
    from anytune.jobs.opening import open_base

    monkeypatch.setattr(warm, "warmed", lambda name: f"the warmed {name}")
    assert open_base("warmed:minilm-l6") == "the warmed minilm-l6"
    monkeypatch.undo()
    with pytest.raises(AnytuneError, match="unknown warming 'minilm'"):
        open_base("warmed:minilm")


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "recipes/evidence").glob("anytime-*.yaml")),
                         ids=lambda path: path.stem)  # fmt: skip
def test_the_recipes_of_evidence_are_good_and_their_first_line_is_their_command(path):
    from anytune.jobs.recipes import load_recipe

    assert path.read_text(encoding="utf-8").splitlines()[0] == f"# anytune run recipes/evidence/{path.name}"
    assert load_recipe(path).jobs
