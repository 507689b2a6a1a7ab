from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import yaml

from anytune.errors import AnytuneError, MethodError, SettingsError
from anytune.jobs import recipes
from anytune.jobs.anytime import anytime_matrix
from anytune.jobs.arms import compare_arms
from anytune.jobs.load import evaluate
from anytune.jobs.pretrain import pretrain
from anytune.jobs.recipe_schemas import JOBS, EvaluateRecipe, PretrainRecipe, TuneRecipe
from anytune.jobs.recipes import load_recipe, run
from anytune.jobs.recycle import recycle
from anytune.jobs.recycle_grid import recycle_grid
from anytune.jobs.report import report
from anytune.jobs.transfer_grid import transfer_grid
from anytune.jobs.tune import tune
from anytune.jobs.upgrade import upgrade

FUNCTIONS = {
    "tune": tune, "pretrain": pretrain, "recycle": recycle, "evaluate": evaluate, "compare": compare_arms,
    "anytime": anytime_matrix, "transfer": transfer_grid, "recycle-grid": recycle_grid, "report": report,
    "upgrade": upgrade,
}  # fmt: skip
EXAMPLES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def write(folder: Path, text: str, name: str = "r.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refused(path, *overrides, kind: type[AnytuneError] = SettingsError) -> AnytuneError:
    with pytest.raises(kind) as caught:
        load_recipe(path, overrides)
    return caught.value


@pytest.mark.parametrize("name", JOBS)
def test_the_keys_of_a_recipe_are_the_arguments_of_the_job(name):
    from anytune.data.domains import load_domain
    from anytune.data.tasks import load_task

    parameters = inspect.signature(FUNCTIONS[name]).parameters
    arguments = {key for key, one in parameters.items() if one.kind is not one.VAR_KEYWORD} - {"reporter", "dry_run"}
    columns = {"tune": load_task, "recycle": load_task, "evaluate": load_task, "pretrain": load_domain}.get(name)
    if columns is not None:
        arguments |= set(inspect.signature(columns).parameters) - {"source", "name"}
    assert set(JOBS[name].model_fields) - {"job"} == arguments


@pytest.mark.parametrize("name", JOBS)
def test_defaults_of_a_recipe_are_those_of_the_job(name):
    parameters = inspect.signature(FUNCTIONS[name]).parameters
    for key, field in JOBS[name].model_fields.items():
        if (
            key in parameters
            and not field.is_required()
            and field.default is not None
            and field.default_factory is None
        ):
            assert field.default == parameters[key].default, key


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_a_good_recipe_whose_first_line_is_its_command(path):
    assert path.read_text(encoding="utf-8").splitlines()[0] == f"# anytune run recipes/{path.name}"
    assert load_recipe(path).jobs


def test_there_are_examples():
    assert {path.stem for path in EXAMPLES} >= {"tune-lora", "pretrain-two-domains", "recycle"}


def test_only_what_is_given_is_handed_to_the_job(tmp_path):
    path = write(tmp_path, "job: tune\nbase: b\ntask: t\nseeds: 3\ntraining: {learning_rate: 1e-3}\nname: 2026\n")
    [job] = load_recipe(path).jobs
    assert job.arguments() == {
        "base": "b", "task": "t", "seeds": [0, 1, 2], "training": {"learning_rate": 1e-3}, "name": "2026",
    }  # fmt: skip


def test_files_are_looked_for_beside_the_recipe(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "model").mkdir()
    path = write(
        folder,
        "job: tune\nbase: model\ntask: {source: ../rows.csv, text: body}\nvalidation: dev.csv\n"
        "store: mine\nname: model\n",
    )
    [job] = load_recipe(path).jobs
    assert isinstance(job, TuneRecipe)
    assert job.base == str(folder / "model")
    assert job.task == {"source": str(folder / "../rows.csv"), "text": "body"}
    assert job.validation == str(folder / "dev.csv")
    assert job.store == str(folder / "mine")
    assert job.name == "model"


def test_files_of_an_upgrade_are_looked_for_beside_the_recipe_and_sizes_of_a_grid_are_none(tmp_path):
    for name in ("v0", "mine", "full"):
        (tmp_path / name).mkdir()
    text = "job: upgrade\nold: v0\nnew: v1\ndeltas: [mine]\ntasks: {rows: rows.csv}\nunlabelled: texts.txt\nstore: s\n"
    [job] = load_recipe(write(tmp_path, text)).jobs
    given = job.arguments()
    assert given == {
        "old": str(tmp_path / "v0"), "new": "v1", "deltas": [str(tmp_path / "mine")],
        "tasks": {"rows": str(tmp_path / "rows.csv")}, "unlabelled": str(tmp_path / "texts.txt"),
        "store": str(tmp_path / "s"),
    }  # fmt: skip
    grid = {"job": "recycle-grid", "base": "b", "upgrades": [{"name": "u"}], "tasks": ["t"], "forms": {"full": "full"},
            "arms": {"direct": {"recycle": "direct"}}, "out": "o", "old": ["full"]}  # fmt: skip
    [job] = load_recipe(write(tmp_path, yaml.safe_dump(grid), "g.yaml")).jobs
    assert job.arguments()["old"] == ["full"]
    shared = "old: v0\nstore: s\njobs:\n  - {job: upgrade, new: v1}\n"
    [job] = load_recipe(write(tmp_path, shared, "j.yaml")).jobs
    assert job.arguments()["old"] == str(tmp_path / "v0")
    texts = "job: recycle\ndelta: d\nbase: b\nunlabelled: [mine, what.txt]\n"  # a list holds the texts themselves
    [job] = load_recipe(write(tmp_path, texts, "t.yaml")).jobs
    assert job.arguments()["unlabelled"] == ["mine", "what.txt"]


def test_names_that_are_no_files_stay_names(tmp_path):
    path = write(tmp_path, "job: pretrain\nbase: sample:bert-tiny\ndomains: [owner/name, sample:brown, v.jsonl]\n")
    [job] = load_recipe(path).jobs
    assert isinstance(job, PretrainRecipe)
    assert job.base == "sample:bert-tiny"
    assert job.domains == ["owner/name", "sample:brown", str(tmp_path / "v.jsonl")]


def test_paths_of_an_override_are_from_the_current_folder(tmp_path):
    path = write(tmp_path, "job: tune\nbase: b\ntask: a.csv\n")
    [job] = load_recipe(path, ["task=b.csv", "store=here"]).jobs
    assert isinstance(job, TuneRecipe)
    assert (job.task, job.store) == ("b.csv", "here")


def test_one_domain_may_stand_without_a_list():
    [job] = load_recipe({"job": "pretrain", "base": "b", "domains": {"source": "x.txt", "name": "x"}}).jobs
    assert isinstance(job, PretrainRecipe)
    assert job.domains == [{"source": "x.txt", "name": "x"}]


@pytest.mark.parametrize(
    ("text", "words", "fix"),
    [
        ("job: tune\nbase: b\ntaks: t\n", ["r.yaml, line 3", "unknown key 'taks'"], "task:"),
        ("job: tune\nbase: b\ntask: t\ntraining:\n  steps: 3\n  lerning_rate: 1\n",
         ["line 6", "unknown key 'lerning_rate'"], "learning_rate:"),
        ("job: tune\nbase: b\ntask: t\ntraining: {steps: 0}\n", ["line 4", "steps", "0", "greater than 0"], ""),
        ("job: tune\nbase: b\ntask: t\nmethod: {name: lora, rank: 8}\n", ["line 4", "'lora'", "'rank'"],
         "anytune methods lora"),
        ("job: tune\nbase: b\ntask: t\nmethod: {name: lora, r: 0}\n", ["line 4", "r = 0"], None),
        ("job: tune\nbase: b\n", ["r.yaml", "needs 'task'"], "task: ..."),
        ("job: tuen\nbase: b\n", ["line 1", "unknown job 'tuen'"], "job: tune"),
        ("base: b\n", ["no job is named"], "job: tune"),
        ("job: tune\nbase: b\ntask: t\nkeep: all\n", ["line 4", "keep = 'all'"], ""),
        ("job: tune\nbase: b\ntask: t\nseeds: x\n", ["line 4", "seeds = 'x'"], None),
        ("job: tune\nbase: b\ntask: t\ntrain_size: -5\n", ["line 4", "train_size = -5"], ""),
        ("job: tune\nbase: b\ntask: t\ntraining: fast\n", ["line 4", "training = 'fast'"], ""),
        ("job: tune\nbase: [a, b]\ntask: t\n", ["line 2", "base"], ""),
        ("job: compare\nbase: b\ntasks: [t]\nout: o\narms: {x: {methd: lora}}\n", ["line 5", "'x'", "'methd'"],
         "method:"),
        ("job: compare\nbase: b\ntasks: [t]\nout: o\narms: {x: {training: {steps: 2}}}\n",
         ["line 5", "'x' names no method"], None),
        ("job: compare\nbase: b\ntasks: [t]\nout: o\narms: {x: lora}\n", ["line 5", "'x'"], "x: {method: lora}"),
        ("job: compare\nbase: b\ntasks: [t]\nout: o\narms: {}\n", ["no arms"], None),
        ("job: compare\nbase: b\ntasks: [t]\nout: o\narms: {x: {method: lora, training: {step: 2}}}\n",
         ["line 5", "'step'"], "steps:"),
        ("job: compare\nbase: b\ntasks: [t]\nout: o\ncontrol: y\narms:\n  x: {method: lora}\n",
         ["arm as control", "'y'"], None),
        ("job: compare\nbase: b\ntasks: [t]\nout: o\narms: {plain: {method: full}}\n", ["only arm"], None),
        ("job: anytime\nbase: b\ndomains: [{}]\nout: o\narms: {x: {seeds: 2}}\n", ["line 5", "'x' names no method"],
         "x: {method: sequential}"),
        ("job: anytime\nbase: b\ndomains: [{}]\nout: o\narms: {x: {method: sequential, train_sizes: [5]}}\n",
         ["line 5", "'train_sizes'"], "training:"),
        ("job: anytime\nbase: b\ndomains: [{}]\nout: o\narms: {x: {method: sequential}}\ntuning: {step: 3}\n",
         ["line 6", "'step'"], None),
        ("job: anytime\nbase: b\ndomains: [{}]\nout: o\narms: {x: {method: sequential}}\nmetrics: [a_ac]\n",
         ["line 6", "'a_ac'"], "a_acc"),
        ("job: anytime\nbase: b\ndomains: [{}]\nout: o\narms: {x: {method: sequential}}\ntokens: some\n",
         ["line 6", "tokens"], None),
        ("job: tune\nbase: b\ntask: t\ntrain_sizes: [0]\n", ["line 4", "train_sizes"], ""),
        ("job: tune\nbase: b\ntask: t\nsubset_seed: runs\n", ["line 4", "subset_seed = 'runs'"], ""),
        ("job: tune\nbase: b\ntask: t\nlabel_map: [a]\n", ["line 4", "label_map"], ""),
        ("jobs: []\n", ["line 1", "no list of jobs"], "jobs: [{job: tune, ...}, {job: report}]"),
        ("jobs:\n  - report\n", ["line 2", "a job is a mapping"], "{job: tune, base: ..., task: ...}"),
        ("sede: 1\njobs:\n  - {job: report}\n", ["line 1", "unknown key 'sede'"], None),
        ("jobs:\n  - {job: report}\n  - {job: report, ouut: x}\n", ["line 3", "unknown key 'ouut'"], "out:"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_is_told_with_line_key_and_near_key(tmp_path, text, words, fix):
    problem = refused(write(tmp_path, text))
    for word in words:
        assert word in problem.what
    if fix is not None:
        assert problem.fix == fix


def test_an_unknown_method_is_told_with_its_line_and_the_near_one(tmp_path):
    problem = refused(write(tmp_path, "job: tune\nbase: b\ntask: t\nmethod: loraa\n"), kind=MethodError)
    assert "line 4" in problem.what
    assert problem.fix == "lora"


def test_an_unknown_control_is_told_with_its_line(tmp_path):
    problem = refused(write(tmp_path, "job: tune\nbase: b\ntask: t\nagainst: ful\n"), kind=MethodError)
    assert "line 4" in problem.what
    assert problem.fix == "full"


def test_a_wrong_override_is_told_though_it_has_no_line(tmp_path):
    problem = refused(write(tmp_path, "job: tune\nbase: b\ntask: t\n"), "training.stpes=5")
    assert "unknown key 'stpes'" in problem.what
    assert problem.fix == "steps:"


def test_every_job_is_checked_before_the_first_runs(tmp_path, tiny_base, tiny_task):
    text = f"store: s\njobs:\n  - {{job: tune, base: {tiny_base}, task: {tiny_task}}}\n  - {{job: report, page: x}}\n"
    with pytest.raises(SettingsError, match="unknown key 'page'"):
        run(write(tmp_path, text))
    assert not (tmp_path / "s").exists()


def test_keys_beside_jobs_are_defaults_that_a_job_may_change():
    loaded = load_recipe({
        "base": "b", "seeds": 2, "training": {"steps": 5, "batch_size": 4},
        "jobs": [
            {"job": "tune", "task": "t", "training": {"steps": 9}},
            {"job": "pretrain", "base": "other", "domains": ["d"]},
            {"job": "report"},
        ],
    })  # fmt: skip
    assert loaded.resolved() == [
        {"job": "tune", "base": "b", "task": "t", "seeds": [0, 1], "training": {"steps": 9, "batch_size": 4}},
        {"job": "pretrain", "base": "other", "domains": ["d"], "training": {"steps": 5, "batch_size": 4}},
        {"job": "report"},
    ]


def test_a_recipe_of_one_job_gives_what_the_job_gives(tmp_path, tiny_base, tiny_task):
    recipe = {
        "job": "tune", "base": str(tiny_base), "task": str(tiny_task), "store": str(tmp_path / "s"),
        "training": {"steps": 2, "batch_size": 8}, "method": {"name": "lora", "r": 2},
    }  # fmt: skip
    [entry] = run(recipe, ["training.steps=3", "method.r=3"])
    assert entry.manifest.steps == 3
    assert entry.manifest.methods[0].settings["r"] == 3


def test_the_recipe_of_a_manifest_makes_the_same_artefact_again(tmp_path, tiny_base, tiny_task):
    [first] = tune(
        str(tiny_base), str(tiny_task), store=tmp_path / "a", training={"steps": 2, "batch_size": 8}, seeds=[4],
        method=[{"name": "lora", "r": 2}], train_size=20,
    )  # fmt: skip
    local = [f"base={tiny_base}", f"task={tiny_task}"]  # no path stands in a manifest
    [again] = run(first.folder, [*local, f"store={tmp_path / 'b'}"])
    assert again.id == first.id
    assert again.folder.is_relative_to(tmp_path / "b")
    [found] = run(first.folder / "anytune.json", local)
    assert found.folder.resolve() == first.folder.resolve()  # without a store it is the one it stands in
    [same] = run(first.manifest.recipe, local, store=tmp_path / "a")
    assert same.id == first.id


def test_a_manifest_without_a_recipe_says_so(tmp_path):
    from anytune.manifests import BaseIdentity, Manifest, write_manifest

    write_manifest(tmp_path, Manifest(kind="base", name="old", base=BaseIdentity(backbone="a" * 64)))
    assert "'old' holds no recipe" in refused(tmp_path).what


def test_the_whole_life_cycle_runs_as_one_recipe_and_later_jobs_know_earlier_ones(
    tmp_path, tiny_base, tiny_task, tiny_domain
):
    common = {"task": str(tiny_task)}
    recipe = {
        "store": "s", "training": {"steps": 2, "batch_size": 8, "block_size": 32}, "seeds": 2,
        "jobs": [
            {"job": "tune", "name": "t v0", "base": str(tiny_base), **common},
            {"job": "pretrain", "base": str(tiny_base), "domains": [str(tiny_domain)], "names": ["v1"]},
            {"job": "recycle", "delta": "t v0", "base": "v1", **common},
            {"job": "recycle", "delta": "t v0", "base": "v1", "method": "direct", "seeds": 1, **common},
            {"job": "tune", "name": "one", "base": "v1", "seeds": 1, **common},
            {"job": "evaluate", "delta": "one", **common},
            {"job": "report", "out": "page.html"},
        ],
    }  # fmt: skip
    path = write(tmp_path, yaml.safe_dump(recipe))
    tuned, bases, kept, direct, fresh, scores, page = run(path)
    assert [entry.manifest.seed for entry in tuned] == [0, 1]
    assert [entry.manifest.seed for entry in kept] == [0, 1]
    assert len(direct) == 2  # one for each delta; 'seeds' cannot mean another
    [base] = bases
    assert {entry.manifest.base.backbone for entry in kept} == {base.manifest.base.backbone}
    for old, new in zip(tuned, kept, strict=True):
        assert old.id in [parent.id for parent in new.manifest.parents]
    assert scores["accuracy"] == fresh[0].score("test")
    assert Path(page).resolve() == (tmp_path / "page.html").resolve()
    assert (tmp_path / "s").is_dir()
    assert [entry.id for entry in run(path)[2]] == [entry.id for entry in kept]  # and nothing is run again


def test_a_shelf_is_upgraded_by_a_recipe_to_the_base_that_an_earlier_job_made(
    tmp_path, tiny_base, tiny_task, tiny_domain
):
    recipe = {
        "store": "s", "training": {"steps": 2, "batch_size": 8, "block_size": 32},
        "jobs": [
            {"job": "tune", "name": "ours", "base": str(tiny_base), "task": str(tiny_task), "seeds": 2},
            {"job": "pretrain", "base": str(tiny_base), "domains": [str(tiny_domain)], "names": ["v1"]},
            {"job": "upgrade", "old": str(tiny_base), "new": "v1", "deltas": ["ours"], "steps": ["keep"]},
        ],
    }  # fmt: skip
    path = write(tmp_path, yaml.safe_dump(recipe))
    tuned, [base], upgraded = run(path)
    assert [one.delta for one in upgraded.outcomes] == [entry.reference for entry in tuned]
    assert upgraded.new == base.name == "v1"
    assert {one.decision.step for one in upgraded.outcomes} == {"keep"}
    assert run(path)[2].outcomes == upgraded.outcomes


def test_an_evaluation_hands_on_only_what_the_job_knows():
    [job] = load_recipe({"job": "evaluate", "delta": "d", "split": "validation"}).jobs
    assert isinstance(job, EvaluateRecipe)
    assert job.arguments() == {"delta": "d", "split": "validation"}


def test_run_is_the_function_the_package_offers():
    import anytune

    assert anytune.run is recipes.run
