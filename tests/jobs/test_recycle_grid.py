"""A grid of recycling on a tiny base in a few steps: its runs, lines and tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from anytune.errors import AnytuneError, MethodError, SettingsError
from anytune.evaluate.control_deltas import body_norm
from anytune.evaluate.recycle_arms import NO_DELTA, NOTHING, against, sections
from anytune.jobs import recycle_runs
from anytune.jobs.deltas import load_delta
from anytune.jobs.direct_coefficients import read_reuses
from anytune.jobs.recipes import load_recipe
from anytune.jobs.recycle_design import check_recycle_arms, check_sizes
from anytune.jobs.recycle_grid import record, recycle_grid, recycled_again
from anytune.store import Store
from tests.conftest import tiny_rows, write_rows

TRAINING = {"steps": 2, "batch_size": 8, "max_length": 24, "precision": "fp32", "learning_rate": 1e-3,
            "evaluate_every": 1, "keep": "last"}  # fmt: skip
ARMS = {
    "fresh x3": {"fresh": True, "budget": 3, "forms": ["full"], "seeds": [0]},
    "direct": {"recycle": "direct"},
    "initialize": {"recycle": "initialize"},
    "initialize, random": {"recycle": "initialize", "weights": "random", "upgrades": ["near"], "seeds": [0]},
    "initialize, wrong": {"recycle": "initialize", "weights": "wrong-task", "upgrades": ["near"], "seeds": [0]},
    "initialize, mean": {"recycle": "initialize", "weights": "mean", "upgrades": ["near"], "seeds": [0]},
    # a prompt has nothing that could be masked: those runs are refused, and the others go on
    "masked": {"recycle": "masked", "upgrades": ["near"], "seeds": [0]},
    "direct, hop by hop": {"recycle": "direct", "hop": True, "upgrades": ["near", "far"], "forms": ["full"]},
}  # fmt: skip
UPGRADES = [{"name": "none"}, {"name": "near", "domains": ["DOMAIN"]},
            {"name": "far", "after": "near", "domains": ["DOMAIN"], "tokens": 512}]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory, session_cache, tiny_base, tiny_task, tiny_domain):
    """(grid, folder, arguments)."""
    folder = tmp_path_factory.mktemp("recycling")
    finds = write_rows(folder / "finds.csv", tiny_rows(60, 8))
    given = {
        "upgrades": [{**one, **({"domains": [str(tiny_domain)]} if "domains" in one else {})} for one in UPGRADES],
        "tasks": [str(tiny_task), str(finds)], "arms": ARMS, "seeds": [0, 1],
        "forms": {"full": {"method": "full", "old_training": {"steps": 4}},
                  "prompt": {"method": {"name": "prompt_tuning", "length": 3}, "training": {"learning_rate": 1e-2}}},
        "old": ["full"], "new": [4], "training": TRAINING, "store": folder / "s",
        "pretraining": {"steps": 3, "batch_size": 8, "block_size": 16, "learning_rate": 1e-3, "precision": "fp32"},
        "connect": {"arms": ["fresh", "initialize"], "points": 3, "texts": 6},
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYTUNE_CACHE", str(session_cache))
        found = recycle_grid(tiny_base, out=folder / "out", **given)
    return found, folder, given


def lines_of(found, **wanted):
    return [line for line in found.lines if all(line[key] == value for key, value in wanted.items())]


def test_every_arm_upgrade_form_task_size_and_seed_is_a_line(made):
    found, _, _ = made
    keys = ("arm", "upgrade", "form", "task", "old", "new", "seed")
    cells = [tuple(line[key] for key in keys) for line in found.lines]
    assert len(set(cells)) == len(cells)
    forms, tasks, sizes, seeds = 2, 2, 1, 2
    assert len(lines_of(found, kind="outdated")) == forms * tasks * seeds
    for arm in ("fresh", "direct", "initialize"):
        assert len(lines_of(found, arm=arm)) == 3 * forms * tasks * sizes * seeds, arm
    assert len(lines_of(found, arm="fresh x3")) == 3 * tasks * sizes
    for arm in ("random", "wrong", "mean"):
        assert len(lines_of(found, arm=f"initialize, {arm}")) == forms * tasks * sizes
    assert len(lines_of(found, arm="direct, hop by hop")) == 2 * tasks * sizes * seeds
    assert not [line for line in found.lines if line["failed"]]
    assert {line["steps"] for line in lines_of(found, arm="fresh x3")} == {6}
    assert {line["steps"] for line in lines_of(found, kind="outdated", form="full")} == {4}
    assert {line["steps"] for line in lines_of(found, arm="direct")} == {0}
    assert {line["steps"] for line in lines_of(found, arm="initialize")} == {2}
    assert {line["train"] for line in found.lines if line["new"] == "4"} == {12}
    assert {line["train"] for line in found.lines if line["new"] is None} == {42}
    assert all(line["old"] is None for line in lines_of(found, kind="fresh"))
    assert [row[0] for row in lines_of(found, arm="initialize")[0]["curve"]] == [0, 1, 2]


def test_forecasts_of_direct_reuse_are_learned_from_its_folder(made):
    found, folder, _ = made
    learned = read_reuses([folder / "out"])
    # two upgrades that change something, two forms, two tasks, two seeds
    assert len(learned) == 16
    assert {one.upgrade for one in learned} == {"out/near", "out/far"}
    assert all((one.size or 0) > 0 for one in learned if one.form == "full")
    assert all(one.size is None for one in learned if one.form == "prompt")
    one = next(one for one in learned if one.upgrade == "out/far" and one.form == "full")
    lines = {line["arm"]: line for line in lines_of(found, form="full", task=one.task, seed=0)
             if line["arm"] == "old" or (line["arm"] == "direct" and line["upgrade"] == "far")}  # fmt: skip
    assert one.drop == lines["old"]["test"] - lines["direct"]["test"]


def test_runs_that_a_method_refuses_are_told_and_left_out(made):
    found, _, _ = made
    refused = [line for line in found.lines if line["refused"]]
    assert {(line["arm"], line["form"]) for line in refused} == {("masked", "prompt")}
    assert len(refused) == 2
    assert all("nothing to mask" in line["refused"] for line in refused)
    cases = {section.case.form: section for section in sections(found.lines)}
    assert "masked" in cases["full"].arms
    assert "masked" not in cases["prompt"].arms
    assert "nothing to mask" in found.tables.split("Runs that were refused")[1]


def test_on_an_unchanged_base_direct_reuse_is_the_old_model(made):
    found, _, _ = made
    before = {(line["form"], line["task"], line["seed"]): line for line in lines_of(found, kind="outdated")}
    same = lines_of(found, arm="direct", upgrade="none")
    assert all(line["same_base"] for line in same)
    for line in same:
        own = before[line["form"], line["task"], line["seed"]]
        assert line["predictions"] == own["predictions"]
        assert line["test"] == own["test"]
    assert not any(line["same_base"] for line in found.lines if line["upgrade"] in ("near", "far"))


def test_old_new_and_fresh_runs_of_a_seed_are_tuned_on_the_same_rows_in_the_same_way(made):
    found, folder, _ = made
    store = {entry.manifest.run: entry.manifest for entry in Store(folder / "s", create=False).find("delta")}
    for form in ("full", "prompt"):
        runs = [store[line["run"]] for arm in ("fresh", "initialize")
                for line in lines_of(found, arm=arm, form=form, seed=1, task="things")]  # fmt: skip
        assert len(runs) == 6
        assert len({run.task.content for run in runs}) == 1
        assert all(run.training == runs[0].training for run in runs)
    contents = {store[line["run"]].task.content for line in lines_of(found, arm="fresh", new="4", task="things")}
    assert len(contents) == 2, "each seed draws rows of its own"


def test_a_chain_hops_over_its_own_results_and_direct_reuse_ends_where_it_ends_at_once(made):
    found, folder, _ = made
    store = {entry.manifest.run: entry for entry in Store(folder / "s", create=False).find("delta")}
    by_id = {entry.id: entry.manifest.run for entry in store.values()}
    first = {(line["task"], line["new"], line["seed"]): line["run"]
             for line in lines_of(found, arm="direct, hop by hop", upgrade="near")}  # fmt: skip
    for line in lines_of(found, arm="direct, hop by hop", upgrade="far"):
        parents = {by_id.get(parent.id) for parent in store[line["run"]].manifest.parents}
        assert first[line["task"], line["new"], line["seed"]] in parents
        [at_once] = lines_of(found, arm="direct", upgrade="far", form="full", task=line["task"], new=line["new"],
                             seed=line["seed"])  # fmt: skip
        assert line["predictions"] == at_once["predictions"]


def test_stand_ins_keep_the_head_and_change_the_body(made):
    _, folder, _ = made
    store = Store(folder / "s", create=False)
    entries = {entry.id: entry for entry in store.find("delta")}
    stand_ins = [entry for entry in entries.values() if "stand-in" in entry.manifest.tags]
    assert len(stand_ins) == 3 * 2 * 2
    for entry in stand_ins:
        weights = entry.manifest.tags["stand-in"]
        used = [entries[parent.id] for parent in entry.manifest.parents if parent.id in entries]
        own, others = used[0], used[1:]
        assert entry.name == f"{own.name}-{weights}"
        assert len(others) == (0 if weights == "random" else 1)
        delta, before = load_delta(entry), load_delta(own)
        if entry.manifest.form == "full":
            assert all(torch.equal(delta.head[name], before.head[name]) for name in before.head)
            assert delta.difference.keys() == before.difference.keys()
            assert not any(torch.equal(delta.difference[name], before.difference[name]) for name in delta.difference)
        else:
            same = {name for name in delta.tensors if torch.equal(delta.tensors[name], before.tensors[name])}
            assert same == set(delta.tensors) - {"prompt_embeddings"}
        if weights == "random":
            assert body_norm(delta) == pytest.approx(body_norm(before), rel=1e-5)


def test_paths_lie_between_the_old_model_and_the_run(made):
    found, _, _ = made
    assert len(found.paths) == 2 * 3 * 2 * 2
    assert {line["seed"] for line in found.paths} == {0}
    assert not [line["problem"] for line in found.paths if line["problem"]]
    for line in found.paths:
        assert [point["x"] for point in line["path"]["points"]] == [0.0, 0.5, 1.0]
        assert line["path"]["mode"] == ("body" if line["form"] == "full" else "adapter")
        assert line["similarity"]["texts"] == 6
    assert {line["upgrade"] for line in found.upgrades} == {"none", "near", "far"}
    distance = {line["upgrade"]: line["distance"]["relative"] for line in found.upgrades}
    assert distance["none"] == 0 < distance["near"] < distance["far"]
    assert {line["upgrade"]: line["tokens"] for line in found.upgrades} == {"none": 0, "near": 384, "far": 512}


def test_nothing_is_made_again(made, monkeypatch, tmp_path, tiny_base):
    found, _, given = made
    made_again = []
    monkeypatch.setattr(recycle_runs, "make_runs", lambda calls, reporter: made_again.extend(calls))
    again = recycle_grid(tiny_base, out=tmp_path / "out", **given)
    assert [call["method"] for call in made_again] == ["masked"] * 2, "what was refused is asked again"
    assert list(again.lines) == list(found.lines)
    assert [line["path"]["points"] for line in again.paths] == [line["path"]["points"] for line in found.paths]


def test_the_tables_are_those_of_the_lines(made):
    found, _, _ = made
    tables = (found.folder / "tables.md").read_text()
    (found.folder / "tables.md").unlink()
    again = recycled_again(found.folder)
    assert (found.folder / "tables.md").read_text() == tables
    assert str(again) == str(found)
    for words in ("What becomes of the claims", "Against the distance of the bases", "negative flips", NOTHING,
                  NO_DELTA, "none (unchanged)", "outdated weights stay partly compatible"):  # fmt: skip
        assert words in tables, words
    assert json.dumps(record(found), allow_nan=False)


def test_gains_are_those_of_a_naive_loop(made):
    found, _, _ = made
    for section in sections(found.lines):
        gains = against([section], "fresh")
        form, old, new = section.case
        wanted = {"form": form, "new": new, "seed": 0}
        differences = []
        for task in ("things", "finds"):
            for seed in (0, 1):
                values = []
                for upgrade in ("near", "far"):
                    [own] = lines_of(found, **{**wanted, "seed": seed}, arm="initialize", task=task, upgrade=upgrade,
                                     old=old)  # fmt: skip
                    [fresh] = lines_of(found, **{**wanted, "seed": seed}, arm="fresh", task=task, upgrade=upgrade)
                    values.append(100 * (own["test"] - fresh["test"]))
                differences.append(sum(values) / len(values))
        assert gains["initialize"].difference.mean == pytest.approx(sum(differences) / len(differences))
        assert gains["initialize"].difference.n == 4, "upgrades of one task and seed are one observation"


def test_a_dry_run_counts_and_makes_nothing(made, tiny_base, tmp_path):
    _, _, given = made
    forecasts = recycle_grid(tiny_base, out=tmp_path / "out", **{**given, "store": tmp_path / "s"}, dry_run=True)
    assert len(forecasts) > 50
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("s/deltas/*"))


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        ({}, "no arms"),
        ({"a": {"method": "direct"}}, "neither fresh nor recycled"),
        ({"a": {"recycle": "direct", "fresh": True}}, "neither fresh nor recycled"),
        ({"a": {"recycle": "dirct"}}, "dirct"),
        ({"a": {"recycle": "direct", "weight": "own"}}, "unknown key 'weight'"),
        ({"a": {"recycle": "direct", "weights": "other"}}, "other"),
        ({"a": {"recycle": "direct", "weights": "mean", "hop": True}}, "hops"),
        ({"a": {"recycle": "initialize", "budget": 0}}, "budget = 0"),
        ({"a": {"recycle": "initialize", "training": {"steps": 3}}}, "steps of its own"),
        ({"a": {"fresh": True, "weights": "own"}}, "starts from no weights"),
        ({"fresh": {"recycle": "direct"}}, "control"),
        ({"fresh": {"fresh": True, "budget": 2}}, "restricted in budget"),
    ],
)
def test_arms_that_cannot_be_are_named(arms, said):
    with pytest.raises(AnytuneError, match=said):
        check_recycle_arms(arms, "fresh")


@pytest.mark.parametrize("sizes", [[], [0], [True], ["all"], [8, 8], "8"])
def test_sizes_that_cannot_be_are_named(sizes):
    with pytest.raises(SettingsError, match="old = "):
        check_sizes(sizes, "old")


CHANGES = [
    ({"upgrades": [{"name": "a", "after": "b", "domains": ["D"]}, {"name": "b", "domains": ["D"]}]}, "none before it"),
    ({"upgrades": [{"domains": ["D"]}]}, "has no name"),
    ({"upgrades": [{"name": "a"}, {"name": "a"}]}, "two upgrades"),
    ({"upgrades": [{"name": "a", "tokens": 100}]}, "no domains"),
    ({"upgrades": [{"name": "a", "domain": ["D"]}]}, "unknown key 'domain'"),
    ({"forms": {"full": {"method": "full", "training": {"evaluate_every": None}}}, "training": {}}, "no steps"),
    ({"forms": {"full": {"method": "full", "old_training": {"warmup": 0.1}}}}, "old_training has warmup"),
    ({"forms": {"full": {}}}, "names no method"),
    ({"arms": {"x": {"recycle": "direct", "forms": ["lora"]}}}, "lora"),
    ({"arms": {"x": {"recycle": "direct", "upgrades": ["v9"]}}}, "v9"),
    ({"arms": {"x": {"recycle": "direct", "weights": "mean"}}, "tasks": ["TASK"]}, "one task"),
    ({"connect": {"arms": ["none"]}}, "'none'"),
    ({"connect": {"arms": ["fresh"], "points": 1}}, "points = 1"),
]


@pytest.mark.parametrize(("change", "said"), CHANGES, ids=[said for _, said in CHANGES])
def test_designs_that_cannot_be_are_refused_before_anything_is_trained(
    change, said, tiny_base, tiny_task, tiny_domain, tmp_path
):
    given = {"upgrades": [{"name": "v1", "domains": ["D"]}], "tasks": ["TASK"], "forms": {"full": {"method": "full"}},
             "arms": {"direct": {"recycle": "direct"}}, "training": TRAINING, "seeds": [0],
             "pretraining": {"steps": 1}, **change}  # fmt: skip
    words = json.loads(json.dumps(given).replace('"D"', json.dumps(str(tiny_domain))).replace(
        '"TASK"', json.dumps(str(tiny_task))))  # fmt: skip
    with pytest.raises(AnytuneError, match=said):
        recycle_grid(tiny_base, out=tmp_path / "o", store=tmp_path / "s", **words)
    assert not (tmp_path / "o").exists()
    assert not list(tmp_path.glob("s/*/*"))


def test_a_form_that_cannot_be_tuned_on_a_task_is_refused_before_anything_is_trained(tiny_base, tiny_domain, tmp_path):
    numbers = write_rows(tmp_path / "numbers.csv", [(row[0], place / 7) for place, row in enumerate(tiny_rows(60))])
    upgrades = [{"name": "v1", "domains": [str(tiny_domain)]}]
    forms = {"smooth": {"method": ["prompt_tuning", "label_smoothing"]}}
    with pytest.raises(MethodError, match="label_smoothing"):
        recycle_grid(
            tiny_base, out=tmp_path / "o", store=tmp_path / "s", upgrades=upgrades,
            tasks=[{"source": str(numbers), "metric": "pearson_spearman"}], forms=forms, training=TRAINING, seeds=[0],
            arms={"direct": {"recycle": "direct"}}, pretraining={"steps": 1},
        )  # fmt: skip
    assert not list(tmp_path.glob("s/*/*"))


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "recipes/evidence").glob("recycle-*.yaml")),
                         ids=lambda path: path.stem)  # fmt: skip
def test_the_recipes_of_evidence_are_good_and_their_first_line_is_their_command(path):
    assert path.read_text(encoding="utf-8").splitlines()[0] == f"# anytune run recipes/evidence/{path.name}"
    assert load_recipe(path).jobs


def test_the_recipe_is_checked_before_anything_runs():
    recipe = {"job": "recycle-grid", "base": "sample:bert-tiny", "upgrades": [{"name": "v1", "domains": ["a.txt"]}],
              "tasks": ["a.csv"], "forms": {"full": {"method": "full"}}, "out": "o", "old": ["full", 16],
              "arms": {"direct": {"recycle": "direct"}}}  # fmt: skip
    assert load_recipe(recipe).resolved() == [recipe]
    for change, said in (
        ({"arms": {"direct": {"recycle": "directly"}}}, "directly"),
        ({"old": ["all"]}, "old"),
        ({"new": [0]}, "new"),
        ({"control": "frsh"}, "frsh"),
        ({"pretraining": {"stepz": 3}}, "stepz"),
        ({"forms": {"full": {"method": "full", "old_training": {"stepz": 3}}}}, "stepz"),
        ({"task": ["a.csv"]}, "task"),
    ):
        with pytest.raises(AnytuneError, match=said):
            load_recipe({**recipe, **change})
