"""Every command on a tiny real model: what it prints, its JSON, and that it is the Python function beneath."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from tests.conftest import tiny_rows, write_rows

QUICK = ("--steps", 2, "--batch-size", 8)


@pytest.fixture
def tuned(cli, tiny_base, tiny_task) -> dict:
    """One LoRA delta in ``anytune-store`` of the current folder, as its JSON record."""
    answer = cli("tune", tiny_base, tiny_task, "--method", "lora", "--set", "r=2", *QUICK, "--quiet", "--json")
    [record] = json.loads(answer.out)
    return record


def test_tune_prints_a_row_per_seed_their_mean_and_what_to_type_next(cli, tiny_base, tiny_task):
    answer = cli("tune", "--base", tiny_base, "--task", tiny_task, "--seeds", 2, "--name", "mine", *QUICK)
    assert answer.code == 0
    header, first, second, mean, empty, *_summary, following = answer.out.splitlines()
    assert header.split() == ["seed", "validation", "accuracy", "test", "steps", "seconds", "reference"]
    assert (first.split()[0], second.split()[0], mean.split()[0], empty) == ("0", "1", "mean", "")
    assert following == f'next: anytune predict {first.split()[-1]} "some text"'
    assert "2 steps" in answer.err  # progress, which --quiet leaves out
    assert "2 steps" not in cli("tune", tiny_base, tiny_task, "--seeds", "5,", *QUICK, "--quiet").err


def test_tune_hands_every_option_to_the_job(cli, monkeypatch):
    given = {}

    def job(base, task, **options):
        given.update(options, base=base, task=task)
        raise KeyboardInterrupt

    monkeypatch.setattr("anytune.jobs.tune.tune", job)
    cli(
        "tune", "b", "t.csv", "--method", "lora", "--method", "llrd", "--set", "lora.r=4", "--seeds", "3,1", "--store",
        "s", "--name", "n", "--keep", "scores", "--tag", "arm=x", "--steps", "7", "--epochs", "1.5",
        "--batch-size", "4",
        "--learning-rate", "1e-4", "--max-length", "32", "--precision", "fp32", "--evaluate-every", "3", "--training",
        "warmup=1e-1", "--text", "a,b", "--label", "l", "--metric", "macro_f1", "--kind", "classification",
        "--validation", "v.csv", "--test", "w.csv", "--limit", "9", "--label-names", "x,y", "--train-size", "8",
        "--train-sizes", "8,9", "--subset-seed", "run", "--score-on", "o", "--probe-on", "q", "--against", "full",
        "--per-class", "2", "--start-from", "d", "--resume", "--quiet", "--log-with", "tensorboard", "--log-with",
        "trackio", "--log-dir", "l", "--source", "s1", "--source", "s2", "--teacher", "t1",
    )  # fmt: skip
    assert type(given.pop("reporter")).__name__ == "Silent"
    assert given == {
        "sources": ["s1", "s2"], "teachers": ["t1"],
        "base": "b", "task": "t.csv", "seeds": [3, 1], "store": "s", "name": "n", "keep": "scores",
        "tags": {"arm": "x"}, "start_from": "d", "resume": "must", "train_size": 8, "per_class": 2, "text": "a,b",
        "train_sizes": [8, 9], "subset_seed": "run", "score_on": ["o"], "probe_on": ["q"], "against": "full",
        "label": "l", "metric": "macro_f1", "log_with": ["tensorboard", "trackio"], "log_dir": "l", "dry_run": False,
        "workers": None, "fan_out": "processes", "keep_sample": True,
        "kind": "classification", "validation": "v.csv", "test": "w.csv", "limit": 9, "label_names": ["x", "y"],
        "method": [{"name": "lora", "settings": {"r": 4}}, {"name": "llrd", "settings": {}}],
        "training": {"steps": 7, "epochs": 1.5, "batch_size": 4, "learning_rate": 1e-4, "max_length": 32,
                     "precision": "fp32", "evaluate_every": 3, "warmup": 0.1},
    }  # fmt: skip


def test_recycle_hands_every_option_to_the_job(cli, monkeypatch):
    given = {}

    def job(delta, base, **options):
        given.update(options, delta=delta, base=base)
        raise KeyboardInterrupt

    monkeypatch.setattr("anytune.jobs.recycle.recycle", job)
    cli(
        "recycle", "d", "--base", "v1", "--task", "t.csv", "--method", "initialize", "--tune", "full", "--set",
        "full.x=1", "--old-base", "v0", "--steps", "7", "--restart", "--quiet",
    )  # fmt: skip
    del given["reporter"]
    assert given == {
        "delta": "d", "base": "v1", "task": "t.csv", "method": {"name": "initialize", "settings": {}},
        "tune": [{"name": "full", "settings": {"x": 1}}], "old_base": "v0", "training": {"steps": 7}, "store": None,
        "seeds": None, "name": None, "keep": "weights", "tags": None, "train_size": None, "per_class": None,
        "resume": "never", "log_with": None, "log_dir": None, "dry_run": False, "unlabelled": None,
        "projection": None, "keep_sample": True,
    }  # fmt: skip


def test_dated_text_is_pre_trained_period_by_period(cli, tiny_base, tmp_path):
    posts = tmp_path / "posts.jsonl"
    rows = [{"text": f"the owl is near {place} oaks", "day": f"{2016 + place % 2}-01-01"} for place in range(120)]
    posts.write_text("\n".join(map(json.dumps, rows)))
    given = ("pretrain", tiny_base, posts, "--date", "day", "--block-size", 16, "--steps", 1, "--json", "--quiet")
    answer = cli(*given, "--split-by", "year")
    assert [made["name"] for made in json.loads(answer.out)] == ["tiny-posts-2016", "tiny-posts-2016-posts-2017"]
    answer = cli(*given, "--split-by", "2016-06,2016-12")
    assert answer.code == 2
    assert "from-2016-06" in answer.err


def test_scores_alone_are_not_offered_for_prediction(cli, tiny_base, tiny_task):
    assert "predict" not in cli("tune", tiny_base, tiny_task, "--keep", "scores", *QUICK).out


def test_the_life_cycle_by_commands(cli, tuned, tiny_base, tiny_domain, tiny_task):
    answer = cli("pretrain", tiny_base, tiny_domain, "--name", "v1", "--steps", 2, "--block-size", 32, "--quiet")
    assert answer.code == 0
    assert answer.out.splitlines()[1].split()[:2] == ["v1", "walks"]
    assert "next: anytune recycle DELTA --base v1-" in answer.out
    answer = cli("recycle", tuned["reference"], "--base", "v1", "--task", tiny_task, *QUICK, "--json")
    assert answer.code == 0
    [kept] = json.loads(answer.out)
    assert "recycle/initialize" in [method["name"] for method in kept["methods"]]
    assert kept["base"].startswith("v1 (")
    answer = cli("store", "show", kept["reference"])
    assert answer.out.startswith(f"{kept['reference']}   delta of things by ")
    assert "recycle/initialize" in answer.out.splitlines()[0]
    assert f"  delta: {tuned['reference']}" in answer.out
    assert "files" in answer.out
    assert "whole" in answer.out
    page = cli("report", "--out", "page.html")
    assert page.out == "page.html\n"
    assert Path("page.html").read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html>")


def test_predict_takes_texts_from_arguments_stdin_and_files_alike(cli, tuned, monkeypatch):
    texts = ["the owl is near", "oak and fern"]
    answer = cli("predict", tuned["reference"], *texts)
    assert answer.out.splitlines()[0].split() == ["label", "probability", "text"]
    assert [line.split(maxsplit=2)[2] for line in answer.out.splitlines()[1:]] == texts
    wanted = cli("predict", tuned["reference"], *texts, "--json").out
    records = [json.loads(line) for line in wanted.splitlines()]
    assert [record["text"] for record in records] == texts
    assert sum(records[0]["probabilities"].values()) == pytest.approx(1)
    assert records[0]["label"] in ("animal", "plant", "stone")
    Path("t.txt").write_text("\n\n".join(texts), encoding="utf-8")
    write_rows(Path("t.csv"), [(number, text) for number, text in enumerate(texts)], header=("n", "body"))
    Path("t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    assert cli("predict", tuned["reference"], "--file", "t.txt", "--json").out == wanted
    assert cli("predict", tuned["reference"], "--file", "t.csv", "--text", "body", "--json").out == wanted
    assert cli("predict", tuned["reference"], "--file", "t.jsonl", "--json").out == wanted
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(("\ufeff" + "\r\n".join(texts)).encode())))
    assert cli("predict", tuned["reference"], "-", "--json").out == wanted


def test_predict_takes_pairs_from_two_columns(cli, tuned, tiny_base):
    rows = [
        (f"the {word}", f"a {other}", str(number % 2))
        for number, (word, other) in enumerate(
            (word, other) for word in ("owl", "cat", "fox") for other in ("oak", "moss", "jade", "fern")
        )
    ]
    write_rows(Path("pairs.csv"), rows * 3, header=("a", "b", "label"))
    made = cli("tune", tiny_base, "pairs.csv", "--text", "a,b", "--steps", 2, "--max-length", 32, "--json")
    [entry] = json.loads(made.out)
    advised = cli("tune", tiny_base, "pairs.csv", "--text", "a,b", "--steps", 2, "--max-length", 32).out
    assert f"next: anytune predict {entry['reference']} --file FILE --text a,b" in advised
    write_rows(Path("t.csv"), [("the owl", "the oak")], header=("a", "b"))
    [line] = cli("predict", entry["reference"], "--file", "t.csv", "--text", "a,b", "--json").out.splitlines()
    assert json.loads(line)["text_pair"] == "the oak"
    refused = cli("predict", tuned["reference"], "--file", "t.csv", "--text", "a,b")
    assert (refused.code, "single texts" in refused.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["x", "--file", "t.txt"], "--file too"), (["x", "--text", "a"], "no --file"),
        (["--file", "no.txt"], "no.txt"), (["--file", "t.csv"], "'text'"),
        (["--file", "t.csv", "--text", "bdy"], "body"),
        (["--file", "t.csv", "--text", "a,b,c"], "a,b,c"),
    ],
)  # fmt: skip
def test_texts_that_cannot_be_had_are_told(cli, tuned, words, says):
    Path("t.txt").write_text("x")
    write_rows(Path("t.csv"), [("1", "the owl")], header=("n", "body"))
    answer = cli("predict", tuned["reference"], *words)
    assert answer.code == 2
    assert says in answer.err


def test_evaluate_prints_the_scores_of_the_run(cli, tuned, tiny_task):
    answer = cli("evaluate", tuned["reference"], "--task", tiny_task, "--json")
    assert json.loads(answer.out)["scores"] == pytest.approx(tuned["scores"]["test"])
    answer = cli("evaluate", tuned["reference"], tiny_task, "--split", "validation")
    assert answer.out.splitlines()[0].split() == ["metric", "validation"]


def test_merge_and_export_print_the_folder_they_wrote(cli, tuned):
    assert cli("merge", tuned["reference"], "--out", "model").out == "model\n"
    assert Path("model/config.json").is_file()
    assert cli("export", tuned["reference"]).out == f"{tuned['reference']}-exported\n"
    assert Path(f"{tuned['reference']}-exported/adapter_config.json").is_file()
    again = cli("merge", tuned["reference"], "--out", "model")
    assert again.code == 2
    assert "model exists" in again.err


def test_store_list_filters_and_has_json(cli, tuned, tiny_base, tiny_domain):
    cli("pretrain", tiny_base, tiny_domain, "--name", "v1", "--steps", 1, "--block-size", 32, "--quiet")
    rows = json.loads(cli("store", "list", "--json").out)
    assert [row["kind"] for row in rows] == ["delta", "base"]
    assert rows[0]["reference"] == tuned["reference"]
    assert cli("store", "list", "--kind", "base").out.splitlines()[1].startswith("v1-")
    for words in (
        ["--task", "things"],
        ["--method", "lora"],
        ["--base", "tiny"],
        ["--seed", "0"],
        ["--tag", "arm=fresh"],
    ):
        found = json.loads(cli("store", "list", "--kind", "delta", *words, "--json").out)
        assert [row["reference"] for row in found] == [tuned["reference"]], words
    assert cli("store", "list", "--method", "full").out == "nothing fits\n"
    assert cli("store", "list", "--kind", "dleta").code == 2


def test_store_show_verify_and_remove(cli, tuned):
    shown = json.loads(cli("store", "show", tuned["reference"], "--json").out)
    assert shown["manifest"]["methods"][0]["settings"]["r"] == 2
    assert shown["whole"] is True
    assert cli("store", "verify").out == f"whole    {tuned['reference']}\n"
    weights = Path(tuned["folder"]) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    answer = cli("store", "verify")
    assert answer.code == 2
    assert "damaged" in answer.out
    assert "adapter_model.safetensors" in answer.out
    assert cli("store", "show", tuned["folder"]).code == 2
    assert cli("store", "remove", tuned["reference"]).out == f"removed {tuned['reference']}\n"
    assert cli("store", "list").out == "nothing there\n"


def test_what_export_wrote_is_imported_whole_with_its_manifest(cli, tuned, tiny_base):
    cli("export", tuned["reference"], "--out", "plain")
    answer = cli("store", "import", "plain", "--base", tiny_base, "--store", "other", "--json")
    assert answer.code == 0, answer.err
    [adopted] = json.loads(answer.out)
    assert adopted["id"] == tuned["id"]


def test_held_out_rows_that_were_exported_are_imported_and_others_are_not(cli, tuned, tiny_base):
    own = Path(tuned["folder"], "sample.jsonl").read_bytes()
    for option, there in (("--sample", True), ("--quiet", False)):
        out = f"plain{option}"
        cli("export", tuned["reference"], "--out", out, *([option] if there else []))
        [adopted] = json.loads(cli("store", "import", out, "--base", tiny_base, "--store", f"s{option}", "--json").out)
        rows = Path(adopted["folder"], "sample.jsonl")
        assert rows.is_file() == there
        assert not there or rows.read_bytes() == own
    Path("plain--sample/sample.jsonl").write_bytes(own[:-20])
    answer = cli("store", "import", "plain--sample", "--base", tiny_base, "--store", "third")
    assert answer.code == 2
    assert "sample.jsonl is not the file that the manifest" in answer.err
    assert not list(Path("third").glob("deltas/*"))


def test_store_import_adopts_what_export_wrote(cli, tuned, tiny_base):
    cli("export", tuned["reference"], "--out", "plain")
    Path("plain/anytune.json").unlink()
    words = [
        "store",
        "import",
        "plain",
        "--base",
        tiny_base,
        "--label-names",
        "animal,plant,stone",
        "--store",
        "other",
    ]
    answer = cli(*words, "--json")
    assert answer.code == 0, answer.err
    [adopted] = json.loads(answer.out)
    texts = ["the owl is near", "oak leaf"]
    ours = cli("predict", tuned["reference"], *texts, "--json").out
    theirs = cli("predict", adopted["reference"], *texts, "--store", "other", "--json").out
    for left, right in zip(ours.splitlines(), theirs.splitlines(), strict=True):
        assert json.loads(left)["probabilities"] == pytest.approx(json.loads(right)["probabilities"], abs=1e-6)


def test_run_takes_a_recipe_with_overrides(cli, tiny_base, tiny_task):
    Path("r.yaml").write_text(
        f"job: tune\nbase: {tiny_base}\ntask: {tiny_task}\ntraining: {{steps: 9, batch_size: 8}}\n"
    )
    checked = json.loads(cli("run", "r.yaml", "training.steps=3", "seeds=2", "--check").out)
    assert checked["training"]["steps"] == 3
    assert checked["seeds"] == [0, 1]
    assert not Path("anytune-store").exists()
    answer = cli("run", "r.yaml", "training.steps=3", "--quiet", "--json")
    [record] = json.loads(answer.out)
    assert record["steps"] == 3
    again = json.loads(cli("run", record["reference"], f"base={tiny_base}", f"task={tiny_task}", "--json").out)
    assert again[0]["reference"] == record["reference"]


def test_run_of_several_jobs_prints_each(cli, tiny_base, tiny_task, tiny_domain):
    Path("r.yaml").write_text(
        f"base: {tiny_base}\ntraining: {{steps: 2, batch_size: 8, block_size: 32}}\njobs:\n"
        f"  - {{job: tune, task: {tiny_task}, name: t}}\n"
        f"  - {{job: pretrain, domains: {tiny_domain}, names: [v1]}}\n"
        f"  - {{job: evaluate, delta: t, task: {tiny_task}}}\n"
        "  - {job: report, out: page.html}\n"
    )
    answer = cli("run", "r.yaml", "--quiet")
    assert answer.code == 0, answer.err
    parts = [part.splitlines()[0] for part in answer.out.strip().split("\n\n")]
    assert parts == ["tune", "pretrain", "evaluate", "report"]
    assert len(json.loads(cli("run", "r.yaml", "--quiet", "--json").out)) == 4


def test_run_of_an_upgrade_prints_the_shelf_and_ends_with_2_where_a_delta_was_left_out(
    cli, tuned, tiny_base, tiny_domain
):
    cli("pretrain", tiny_base, tiny_domain, "--name", "v1", "--steps", 2, "--block-size", 32, "--quiet")
    Path("r.yaml").write_text(f"job: upgrade\nold: {tiny_base}\nnew: v1\nsteps: keep\n")
    answer = cli("run", "r.yaml", "--quiet")
    assert answer.code == 0, answer.err
    assert tuned["reference"] in answer.out
    [weights] = Path(tuned["folder"]).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])
    Path("r.yaml").write_text(f"job: upgrade\nold: {tiny_base}\nnew: v1\nsteps: keep\ntolerance: 2%\n")
    answer = cli("run", "r.yaml", "--quiet")
    assert answer.code == 2
    assert f"left out: {tuned['reference']}" in answer.out


def test_methods_lists_rooms_and_prints_cards(cli):
    answer = cli("methods")
    assert "tune/lora" in answer.out
    assert "recycle/direct" in answer.out
    assert "recycle/direct" not in cli("methods", "--room", "tune").out
    card = cli("methods", "lora")
    assert card.out.startswith("tune/lora\n\nLoRA")
    assert "int, gt=0, le=4096" in card.out
    assert "rank of the difference" in card.out
    record = json.loads(cli("methods", "lora", "--json").out)
    assert [one["name"] for one in record["settings"]] == ["r", "alpha", "dropout", "targets"]
    assert {one["method"] for one in json.loads(cli("methods", "--json").out)} >= {"tune/full", "recycle/initialize"}
    assert cli("methods", "laro", "--room", "tnue").code == 2


def test_samples_are_listed_and_shown_without_a_download(cli):
    records = json.loads(cli("samples", "--json").out)
    assert {"bert-tiny", "hpo"} <= {record["name"] for record in records}
    listed = cli("samples").out
    assert all(record["name"] in listed for record in records)
    shown = cli("samples", "show", "hpo").out
    assert "licence" in shown
    assert records[0]["sha256"] is not None
    answer = cli("samples", "fetch", "hpo", "foldok")
    assert answer.code == 2
    assert "foldoc" in answer.err


def test_samples_fetch_prints_where_they_are(cli, monkeypatch):
    told = []

    def fetch(name, *, progress=None):
        told.append(name)
        if progress:
            progress("downloading")
        return Path("cache") / name

    monkeypatch.setattr("anytune.data.samples.fetch", fetch)
    answer = cli("samples", "fetch", "hpo", "sample:foldoc")
    assert answer.out == "hpo: cache/hpo\nfoldoc: cache/foldoc\n"
    assert answer.err == "downloading\ndownloading\n"
    assert cli("samples", "fetch", "hpo", "--quiet").err == ""


def test_demo_hands_its_options_to_the_job_and_prints_the_page(cli, monkeypatch):
    given, opened = {}, []
    module = type(sys)("anytune.jobs.demo")
    module.demo = lambda **options: given.update(options) or Path("anytune-demo/report.html")
    monkeypatch.setitem(sys.modules, "anytune.jobs.demo", module)
    monkeypatch.setattr("webbrowser.open", opened.append)
    answer = cli("demo", "--fast", "--model", "minilm-l6", "--folder", "here", "--seeds", "2", "--workers", "1")
    assert answer.out == "anytune-demo/report.html\n"
    del given["reporter"]
    assert given == {
        "model": "minilm-l6", "fast": True, "folder": "here", "seeds": [0, 1], "workers": 1, "fan_out": "processes",
        "dry_run": False,
    }  # fmt: skip
    assert opened == []  # no terminal, no browser


def test_demo_hands_on_nothing_that_the_job_does_not_take():
    import inspect

    from anytune.jobs.demo import demo

    assert {"model", "fast", "folder", "seeds", "workers", "reporter"} <= set(inspect.signature(demo).parameters)


def test_the_same_tune_again_gives_the_same_artefact_without_training(cli, tuned, tiny_base, tiny_task):
    answer = cli("tune", tiny_base, tiny_task, "--method", "lora", "--set", "r=2", *QUICK, "--json")
    assert json.loads(answer.out)[0]["id"] == tuned["id"]
    assert "steps" not in answer.err


def test_rows_of_the_table_are_those_of_the_file(cli, tuned):
    write_rows(Path("rows.csv"), tiny_rows(7))
    assert len(cli("predict", tuned["reference"], "--file", "rows.csv").out.splitlines()) == 8
