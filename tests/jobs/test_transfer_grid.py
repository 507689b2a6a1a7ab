"""A grid of sources and targets, and one new task from a library; on a tiny base, in a few steps."""

from __future__ import annotations

import json

import numpy as np
import pytest

import anytune
from anytune.errors import AnytuneError, MethodError, SettingsError
from anytune.evaluate.transfer_arms import grid_of, pair_gains, readings
from anytune.jobs import transfer_runs
from anytune.jobs.recipes import load_recipe
from anytune.jobs.transfer_design import check_transfer_arms, with_prompt
from anytune.jobs.transfer_grid import record, transfer_grid, transfers_again
from anytune.jobs.transfer_run import transfer_run
from anytune.report.transfer_tables import choices_of, teachers_of
from anytune.store import Store
from tests.conftest import tiny_rows, write_rows

TRAINING = {"steps": 2, "batch_size": 8, "max_length": 24, "precision": "fp32", "learning_rate": 1e-2,
            "evaluate_every": 1}  # fmt: skip
PROMPT = {"length": 3, "dropout": 0.0}
ARMS = {
    "transfer": {"method": "prompt_transfer", "sources": "all"},
    "panda": {"method": "panda", "sources": "all", "teacher": "transfer"},
    "panda, self": {"method": "panda", "teacher": "prompt tuning"},
    "panda, shuffled": {"method": {"name": "panda", "shuffle_teacher": True}, "sources": "chosen",
                        "teacher": "transfer"},
    "restarts": {"method": "prompt_tuning", "restarts": 2, "seeds": [0]},
    "one at random": {"method": "prompt_transfer", "sources": "random"},
    "attempt": {"method": "attempt", "sources": "chosen", "together": 2, "seeds": [0]},
    "fused": {"method": "prompt_transfer", "sources": "chosen", "together": 2, "seeds": [0]},
    "two teachers": {"method": "panda", "sources": "chosen", "together": 2, "teacher": "transfer", "seeds": [0]},
    "smooth": {"method": ["prompt_tuning", "label_smoothing"], "targets": ["new"], "seeds": [0]},
}  # fmt: skip


@pytest.fixture(scope="module")
def tasks(tmp_path_factory, tiny_task):
    """(sources, targets): ``things`` is both, ``alive`` shares no text with the targets, ``half`` all with ``new``."""
    folder = tmp_path_factory.mktemp("transfer-tasks")
    alive = write_rows(folder / "alive.csv", [(text, str(name == "stone")) for text, name in tiny_rows(60, 5)])
    new = write_rows(folder / "new.csv", tiny_rows(60, 8))
    half = write_rows(folder / "half.csv", [(text, "ab"[len(text) % 2]) for text, _ in tiny_rows(60, 8)])
    return [tiny_task, alive, half], [tiny_task, new]


@pytest.fixture(scope="module")
def made(tmp_path_factory, session_cache, tiny_base, tasks):
    """(grid, store folder, arguments)."""
    folder = tmp_path_factory.mktemp("transfer")
    given = {
        "sources": tasks[0], "targets": tasks[1], "arms": ARMS, "prompt": PROMPT, "seeds": [0, 1], "train_size": 24,
        "source_training": {"steps": 3}, "training": TRAINING, "store": folder / "s",
        "measures": ["logme", "task_cosine", "size", "random"],
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYTUNE_CACHE", str(session_cache))
        found = transfer_grid(tiny_base, out=folder / "out", **given)
    return found, folder, given


def lines_of(found, **wanted):
    return [line for line in found.lines if all(line[key] == value for key, value in wanted.items())]


def test_sources_given_at_once_are_the_first_of_the_ranking_and_all_are_paid_for(made):
    found, folder, _ = made
    store = Store(folder / "s", create=False)
    best = {}
    for line in found.rankings:
        if line["measure"] == "logme":
            best.setdefault(line["target"], []).append((-line["value"], line["source"]))
    for name, method in (("attempt", "attempt"), ("fused", "prompt_transfer"), ("two teachers", "panda")):
        lines = lines_of(found, arm=name)
        assert [(line["target"], line["seed"]) for line in lines] == [("things", 0), ("new", 0)]
        for line in lines:
            names = [source for _, source in sorted(best[line["target"]])[:2]]
            assert line["source"] == " + ".join(names)
            assert line["family"] == ("half" in names and line["target"] == "new")
            [entry] = store.find("delta", run=line["run"])
            given = [store.get(one.id) for one in entry.manifest.parents if one.role == "delta"]
            assert len(given) == 2
            if name == "two teachers":  # two sources of 3 steps, two teachers of 2, and 2 of its own
                assert {one.manifest.methods[0].name for one in given} == {"transfer/prompt_transfer"}
                assert line["spent_steps"] == 2 * 3 + 2 * 2 + 2
            else:
                assert [one.manifest.task.name for one in given] == names
                assert line["spent_steps"] == 2 * 3 + 2
            assert entry.manifest.methods[0].name == f"transfer/{method}"


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        ({"sources": "all", "together": 2}, "sources at once, of sources: all"),
        ({"sources": "chosen", "together": 0}, "together = 0"),
        ({"sources": "chosen", "together": True}, "together = True"),
    ],
)
def test_a_count_of_sources_that_cannot_be_is_refused(arm, words):
    with pytest.raises(SettingsError, match=words):
        check_transfer_arms({"x": {"method": "attempt", **arm}}, "prompt tuning")


def test_every_arm_source_target_and_seed_is_a_line_and_no_task_is_its_own_source(made):
    found, _, _ = made
    cells = [(line["arm"], line["source"], line["target"], line["seed"], line["restart"]) for line in found.lines]
    assert len(set(cells)) == len(cells)
    assert not [line for line in found.lines if line["source"] == line["target"]]
    per_seed = {"prompt tuning": 2, "transfer": 2 + 3, "panda": 2 + 3, "panda, self": 2, "panda, shuffled": 2,
                "one at random": 2}  # fmt: skip
    for arm, count in per_seed.items():
        assert len(lines_of(found, arm=arm)) == 2 * count, arm
    assert len(lines_of(found, arm="restarts")) == 2 * 2
    assert [(line["target"], line["seed"]) for line in lines_of(found, arm="smooth")] == [("new", 0)]
    families = {(line["source"], line["target"]) for line in found.lines
                if line["family"] and " + " not in line["source"]}  # fmt: skip
    assert families == {("half", "new")}
    assert all(line["train"] == 24 for line in found.lines)
    assert all(line["early"] is not None and line["failed"] is None for line in found.lines)


def test_runs_stand_on_the_runs_they_should_and_pay_for_them(made):
    found, folder, _ = made
    store = {entry.manifest.run: entry for entry in Store(folder / "s", create=False).find("delta")}
    by_id = {entry.id: run for run, entry in store.items()}

    def parents(line):
        return {by_id[parent.id] for parent in store[line["run"]].manifest.parents if parent.id in by_id}

    sources = {json.loads(text)["source"]: json.loads(text) for text in
               (found.folder / "sources.jsonl").read_text().splitlines()}  # fmt: skip
    for line in lines_of(found, arm="transfer"):
        assert parents(line) == {sources[line["source"]]["run"]}
        assert (line["steps"], line["spent_steps"], line["shared_steps"]) == (2, 5, 3)
    teachers = {
        (line["source"], line["target"], line["seed"]): line["run"] for line in lines_of(found, arm="transfer")
    }
    for arm in ("panda", "panda, shuffled"):
        for line in lines_of(found, arm=arm):
            assert parents(line) == {teachers[line["source"], line["target"], line["seed"]]}
            assert line["spent_steps"] == 7
    plain = {(line["target"], line["seed"]): line["run"] for line in lines_of(found, arm="prompt tuning")}
    for line in lines_of(found, arm="panda, self"):
        assert parents(line) == {plain[line["target"], 1 - line["seed"]]}, "another seed's run teaches"
        assert line["spent_steps"] == 4
    first, second = (lines_of(found, arm="restarts", restart=one, target="new")[0] for one in (0, 1))
    assert first["run"] == plain["new", 0] != second["run"]
    contents = {store[line["run"]].manifest.task.content for line in (first, second)}
    assert len(contents) == 1, "restarts train on the same rows"
    kept = {store[line["run"]].manifest.form for line in lines_of(found, arm="panda")}
    assert kept == {"scores"}


def test_a_student_is_told_how_near_its_source_is(made):
    found, folder, _ = made
    store = {entry.manifest.run: entry for entry in Store(folder / "s", create=False).find("delta")}
    cosine = {(line["source"], line["target"]): line["value"] for line in found.rankings
              if line["measure"] == "task_cosine"}  # fmt: skip
    for line in lines_of(found, arm="panda"):
        [given] = store[line["run"]].manifest.recipe["teachers"]
        assert given["similarity"] == round(cosine[line["source"], line["target"]], 4)


def test_the_chosen_source_is_the_first_of_the_measure(made):
    found, _, _ = made
    logme = {}
    for line in found.rankings:
        if line["measure"] == "logme":
            logme.setdefault(line["target"], {})[line["source"]] = line["value"]
    best = {target: max(values, key=values.get) for target, values in logme.items()}
    assert choices_of(found.rankings) == best
    assert {line["target"]: line["source"] for line in lines_of(found, arm="panda, shuffled")} == best


def test_nothing_is_made_again_and_the_tables_come_from_the_lines_alone(made, monkeypatch, tmp_path, tiny_base):
    found, _, given = made
    monkeypatch.setattr(transfer_runs, "make_runs", lambda **_: pytest.fail("a run was made again"))
    again = transfer_grid(tiny_base, out=tmp_path / "out", **given)
    assert list(again.lines) == list(found.lines)
    tables = (tmp_path / "out" / "tables.md").read_text()
    assert tables == (found.folder / "tables.md").read_text()
    (tmp_path / "out" / "tables.md").unlink()
    assert str(transfers_again(tmp_path / "out")).splitlines()[:-1] == str(found).splitlines()[:-1]
    assert (tmp_path / "out" / "tables.md").read_text() == tables
    for words in ("worst source", "oracle source", "better of teacher and student", "Without the 1 pairs",
                  "How good each measure was", "regret@1"):  # fmt: skip
        assert words in tables, words
    assert json.dumps(record(found), allow_nan=False)


def test_the_readings_are_those_of_a_naive_loop(made):
    found, _, _ = made
    grid = grid_of(found.lines)
    shown = {one.name: one for one in readings(grid, choices_of(found.rankings), teachers_of(found.lines))}

    def test(arm, source, target, seed):
        [line] = lines_of(found, arm=arm, source=source, target=target, seed=seed)
        return 100 * line["test"]

    for target in ("things", "new"):
        names = sorted({line["source"] for line in lines_of(found, arm="transfer", target=target)})
        means = {name: np.mean([test("transfer", name, target, seed) for seed in (0, 1)]) for name in names}
        for seed in (0, 1):
            values = [test("transfer", name, target, seed) for name in names]
            assert shown["transfer, mean source"].scores[target][seed] == pytest.approx(np.mean(values))
            for kind, order in (("oracle source", max), ("worst source", min)):
                chosen = order(means, key=means.get)
                assert shown[f"transfer, {kind}"].scores[target][seed] == pytest.approx(
                    test("transfer", chosen, target, seed)
                )
            pairs = []
            for name in names:
                two = [lines_of(found, arm=arm, source=name, target=target, seed=seed)[0]
                       for arm in ("panda", "transfer")]  # fmt: skip
                pairs.append(100 * max(two, key=lambda line: line["validation"])["test"])
            better = shown["panda, better of teacher and student, mean source"]
            assert better.scores[target][seed] == pytest.approx(np.mean(pairs))
        gains = pair_gains(grid, "transfer")
        for name in names:
            control = np.mean([test("prompt tuning", None, target, seed) for seed in (0, 1)])
            assert gains[name, target] == pytest.approx(means[name] - control)
    assert shown["restarts"].steps == 4
    assert shown["transfer, mean source"].steps == 5
    assert shown["one at random"].scores.keys() == {"things", "new"}
    assert set(shown["one at random"].scores["new"]) == {0, 1}


def test_a_dry_run_counts_the_runs_and_makes_none(made, tiny_base, tmp_path):
    _, _, given = made
    forecasts = transfer_grid(tiny_base, out=tmp_path / "out", **{**given, "store": tmp_path / "s"}, dry_run=True)
    assert len(forecasts) == 3 + 4 + 10 + 10 + 4 + 4 + 4 + 4 + 1 + 3 * 2
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("s/deltas/*"))


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        ({"transfer": {"method": "prompt_transfer"}}, "has no sources"),
        ({"panda": {"method": "panda", "sources": "all"}}, "has no teacher"),
        ({"panda": {"method": "panda", "teacher": "tranfer"}, "transfer": ARMS["transfer"]}, "tranfer"),
        ({"plain": {"method": "prompt_tuning", "sources": "all"}}, "its method takes none"),
        ({"plain": {"method": "prompt_tuning", "sources": "each"}}, "each"),
        ({"plain": {"method": "prompt_tuning", "restart": 3}}, "unknown key 'restart'"),
        ({"plain": {"method": "prompt_tuning", "restarts": 0}}, "restarts = 0"),
        ({"prompt tuning": {"method": "prompt_transfer", "sources": "all"}}, "control"),
        ({}, "no arms"),
    ],
)
def test_arms_that_cannot_be_are_named(arms, said):
    with pytest.raises(SettingsError, match=said):
        check_transfer_arms(arms, "prompt tuning")


def test_teachers_must_have_a_run_for_what_they_teach(tiny_base, tasks, tmp_path):
    def grid(**arms):
        return transfer_grid(tiny_base, *tasks, arms, out=tmp_path / "o", store=tmp_path / "s", training=TRAINING)

    few = {"method": "prompt_transfer", "sources": ["alive"]}
    with pytest.raises(SettingsError, match="its teacher 'few'"):
        grid(few=few, panda={"method": "panda", "sources": "all", "teacher": "few"})
    with pytest.raises(SettingsError, match="seeds"):
        grid(few={**few, "seeds": [0]}, panda={"method": "panda", "sources": ["alive"], "teacher": "few"})
    with pytest.raises(SettingsError, match="teaches itself"):
        grid(a={"method": "panda", "teacher": "b"}, b={"method": "panda", "teacher": "a"})
    with pytest.raises(SettingsError, match="newer"):
        grid(plain={"method": "prompt_tuning", "targets": ["newer"]})
    with pytest.raises(SettingsError, match="not run on"):
        grid(few={**few, "targets": ["new"]}, panda={"method": "panda", "sources": ["alive"], "teacher": "few"})
    with pytest.raises(SettingsError, match="alivee"):
        grid(few={"method": "prompt_transfer", "sources": ["alivee"]})


def test_an_arm_that_cannot_be_run_on_a_target_is_refused_before_the_first_run(tiny_base, tasks, tmp_path):
    numbers = write_rows(
        tmp_path / "numbers.csv", [(text, place / 7) for place, (text, _) in enumerate(tiny_rows(60))]
    )
    sources, targets = tasks
    panda = {"method": {"name": "panda", "loss": "kl"}, "sources": "all", "teacher": "moved"}
    arms = {"moved": {"method": "prompt_transfer", "sources": "all"}, "panda": panda}

    def grid(arms):
        return transfer_grid(
            tiny_base, sources, [*targets, numbers], arms, out=tmp_path / "o", store=tmp_path / "s", training=TRAINING,
            dry_run=True,
        )  # fmt: skip

    with pytest.raises(MethodError, match="loss=kl on a regression"):
        grid(arms)
    with pytest.raises(MethodError, match="label_smoothing"):
        grid({"smooth": {"method": ["prompt_tuning", "label_smoothing"]}})
    assert not (tmp_path / "s").exists()
    grid({**arms, "panda": {**panda, "targets": ["new", "things"]}})


def test_settings_of_every_prompt_go_to_the_methods_that_have_them():
    assert with_prompt("prompt_tuning", {"length": 5, "kind": "input"}) == {
        "name": "prompt_tuning", "length": 5, "kind": "input"
    }  # fmt: skip
    assert with_prompt({"name": "panda", "length": 9}, {"length": 5})["length"] == 9
    assert "kind" not in with_prompt("prompt_transfer", {"length": 5, "kind": "deep"})
    assert with_prompt("lora", {"dropout": 0.1}) == "lora"
    both = with_prompt(["prompt_tuning", "label_smoothing"], {"length": 5})
    assert both == [{"name": "prompt_tuning", "length": 5}, {"name": "label_smoothing"}]


def test_one_new_task_from_the_library_keeps_what_validates_best(made, tiny_base, tasks, tmp_path):
    _, folder, _ = made
    task = write_rows(tmp_path / "fresh.csv", tiny_rows(60, 21))
    sources = [entry for entry in Store(folder / "s", create=False).find("delta", form="peft")
               if entry.manifest.tags.get("arm") == "source"]  # fmt: skip
    found = transfer_run(
        task, tiny_base, store=folder / "s", top=2, training=dict(TRAINING.items()),
        beside=["bitfit"], sources=sources, metric="logme",
    )  # fmt: skip
    names = [(one.name, one.source) for one in found.arms]
    first, second = (row.task for row in found.ranking.top(2))
    assert names == [("prompt tuning", None), ("transfer", first), ("panda", first), ("transfer", second),
                     ("panda", second), ("bitfit", None)]  # fmt: skip
    assert [round(one.spent) for one in found.arms] == [2, 2, 4, 2, 4, 2]
    weights = [run for one in found.arms[:-1] for run in one.runs]
    assert found.best.score() == max(run.score() for run in weights)
    assert found.best.manifest.form == "peft"
    [kept] = {one.name for one in found.arms if any(run.id == found.best.id for run in one.runs)}
    assert [row[-1] for row in found.table()[1] if row[0] == kept].count("best") == 1
    assert anytune.predict(found.best, ["cat the dog"], store=folder / "s", base=tiny_base)
    rates = {run.manifest.training["learning_rate"] for one in found.arms for run in one.runs if one.name == "bitfit"}
    assert TRAINING["learning_rate"] not in rates, "a rate for prompts is none for full tuning"
    json.dumps(found.record())


def test_one_new_task_says_what_is_wrong(tiny_base, tiny_task, tmp_path):
    with pytest.raises(AnytuneError, match="no soft prompt"):
        transfer_run(tiny_task, tiny_base, store=tmp_path / "s")
    with pytest.raises(SettingsError, match="top = 0"):
        transfer_run(tiny_task, tiny_base, store=tmp_path / "s", top=0)


def test_the_recipe_is_checked_before_anything_runs(tmp_path):
    recipe = {"job": "transfer", "base": "sample:bert-tiny", "sources": ["a.csv"], "targets": ["b.csv"], "out": "o",
              "arms": {"transfer": {"method": "prompt_transfer", "sources": "all"}}}  # fmt: skip
    assert load_recipe(recipe).resolved() == [recipe]
    for change, said in (
        ({"arms": {"transfer": {"method": "prompt_transfer"}}}, "no sources"),
        ({"choose_by": "logmee"}, "logme"),
        ({"rates": [0.0]}, "rates"),
        ({"prompt": {"lenght": 3}}, "lenght"),
        ({"source_training": {"stepz": 3}}, "stepz"),
        ({"measure": ["logme"]}, "measure"),
    ):
        with pytest.raises(AnytuneError, match=said):
            load_recipe({**recipe, **change})
