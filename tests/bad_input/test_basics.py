"""Bad input through the real command line: one clear error with the values in it, exit 2, nothing half-written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.bad_input.checks import QUICK, STORE, check, content, nothing_written, refused
from tests.conftest import tiny_rows, write_rows

# Bases


def test_a_missing_base(cli, tiny_base, tiny_task):
    refused(cli, tiny_base.with_name("tinny"), tiny_task, "tinny", fix="tiny")


def test_a_missing_base_of_a_recipe(cli, tiny_task):
    Path("r.yaml").write_text(f"job: tune\nbase: ./nowhere\ntask: {tiny_task}\nstore: {STORE}\n")
    check(cli("run", "r.yaml"), "nowhere")
    nothing_written()


def test_a_base_whose_weights_are_cut_off(cli, tiny_base, tiny_task):
    base = Path(shutil.copytree(tiny_base, "cut"))
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    refused(cli, base, tiny_task, "model.safetensors", str(base))


def test_a_base_whose_weights_end_inside_the_header(cli, tiny_base, tiny_task):
    base = Path(shutil.copytree(tiny_base, "cut"))
    (base / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:20])
    refused(cli, base, tiny_task, "model.safetensors")


def test_a_base_with_an_empty_weights_file(cli, tiny_base, tiny_task):
    base = Path(shutil.copytree(tiny_base, "cut"))
    (base / "model.safetensors").write_bytes(b"")
    refused(cli, base, tiny_task, "model.safetensors")


def test_an_unknown_sample_as_base(cli, tiny_task):
    refused(cli, "sample:bert-tinny", tiny_task, "bert-tinny", fix="bert-tiny")


def test_no_base_at_all(cli):
    check(cli("tune"), "base", fix="anytune tune --base")


# Tasks


def test_a_task_file_that_is_missing(cli, tiny_base):
    write_rows(Path("reviews.csv"), tiny_rows(12))
    refused(cli, tiny_base, "reviws.csv", "reviws.csv does not exist", fix="reviews.csv")


def test_an_empty_file(cli, tiny_base):
    Path("empty.csv").write_text("")
    refused(cli, tiny_base, "empty.csv", "empty.csv", "empty")


def test_a_file_with_a_header_only(cli, tiny_base):
    refused(cli, tiny_base, write_rows(Path("header.csv"), []), "header.csv", "no rows", "text, label")


def test_a_missing_column(cli, tiny_base):
    rows = write_rows(Path("rows.csv"), tiny_rows(12), header=("sentence", "label"))
    refused(cli, tiny_base, rows, "sentense", "rows.csv", fix="sentence", options=("--text", "sentense"))
    refused(cli, tiny_base, rows, "labels", "rows.csv", fix="label", options=("--label", "labels"))


def test_one_class_only(cli, tiny_base):
    rows = write_rows(Path("rows.csv"), [(text, "stone") for text, _ in tiny_rows(12)])
    refused(cli, tiny_base, rows, "rows.csv", "stone")


@pytest.mark.parametrize("label", ["nan", "NaN", ""])
def test_a_label_that_is_not_there(cli, tiny_base, label):
    rows = [*tiny_rows(12), ("the old oak", label)]
    refused(cli, tiny_base, write_rows(Path("rows.csv"), rows), "14", "rows.csv", repr(label))


def test_a_label_of_the_test_rows_that_training_never_saw(cli, tiny_base):
    train = write_rows(Path("train.csv"), tiny_rows(30))
    test = write_rows(Path("test.csv"), [*tiny_rows(6, seed=5), ("the old fish", "fish")])
    refused(cli, tiny_base, train, "fish", "test.csv", "animal", options=("--test", test))


def test_a_file_in_another_encoding(cli, tiny_base):
    text = "text,label\nthe old oak,plant\nle café,plant\n"
    Path("rows.csv").write_bytes(text.encode("latin-1"))
    refused(cli, tiny_base, "rows.csv", "rows.csv", "0xe9", "line 3")


def test_labels_that_are_no_numbers_in_a_regression(cli, tiny_base):
    rows = write_rows(Path("rows.csv"), tiny_rows(12))
    refused(cli, tiny_base, rows, "rows.csv", "animal", options=("--kind", "regression"))


def test_an_unknown_metric(cli, tiny_base, tiny_task):
    refused(cli, tiny_base, tiny_task, "acuracy", fix="accuracy", options=("--metric", "acuracy"))


# Recipes, options and methods


def test_an_unknown_key_of_a_recipe(cli, tiny_base, tiny_task):
    text = f"job: tune\nbase: {tiny_base}\ntask: {tiny_task}\nstore: {STORE}\ntraining:\n  lerning_rate: 1e-3\n"
    Path("r.yaml").write_text(text)
    check(cli("run", "r.yaml"), "r.yaml, line 6", "'lerning_rate'", fix="learning_rate")
    nothing_written()


def test_an_unknown_method(cli, tiny_base, tiny_task):
    refused(cli, tiny_base, tiny_task, "'loraa'", "bitfit", fix="lora", options=("--method", "loraa"))


def test_an_unknown_setting_of_a_method(cli, tiny_base, tiny_task):
    options = ("--method", "lora", "--set", "alhpa=4")
    refused(cli, tiny_base, tiny_task, "'lora'", "'alhpa'", fix="alpha=4", options=options)


def test_a_setting_outside_its_limits(cli, tiny_base, tiny_task):
    options = ("--method", "lora", "--set", "r=0")
    refused(cli, tiny_base, tiny_task, "'lora'", "r = 0", options=options)


def test_a_training_setting_outside_its_limits(cli, tiny_base, tiny_task):
    refused(cli, tiny_base, tiny_task, "warmup = 7", options=("--training", "warmup=7"))


def test_an_unknown_training_setting(cli, tiny_base, tiny_task):
    refused(
        cli, tiny_base, tiny_task, "weight_deccay", fix="weight_decay=1", options=("--training", "weight_deccay=1")
    )


def test_a_method_of_another_room(cli, tiny_base, tiny_task):
    refused(cli, tiny_base, tiny_task, "'direct'", options=("--method", "direct"))


@pytest.mark.parametrize("seeds", ["one", "0,0", "-1", "1.5", "1000"])
def test_seeds_that_are_none(cli, tiny_base, tiny_task, seeds):
    refused(cli, tiny_base, tiny_task, "seed", options=(f"--seeds={seeds}",))


# Deltas


def test_a_delta_on_the_wrong_base(cli, own_store, tiny_base, other_base):
    before = content(own_store)
    answer = cli("predict", "things-full-tiny", "the old oak", "--base", other_base, "--store", own_store)
    check(answer, "things-full-tiny", "tiny (", "other (", fix="anytune recycle things-full-tiny")
    answer = cli("merge", "things-lora-tiny", "--out", "merged", "--base", other_base, "--store", own_store)
    check(answer, "things-lora-tiny", "tiny (", "other (", fix="anytune recycle things-lora-tiny")
    assert not Path("merged").exists()
    assert content(own_store) == before


def test_a_delta_whose_weights_are_cut_off(cli, own_store, tiny_base, tiny_task):
    [weights] = own_store.glob("deltas/*/delta.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    before = content(own_store)
    name = weights.parent.name
    for words in (
        ("predict", name, "the old oak"),
        ("evaluate", name, "--task", tiny_task),
        ("merge", name, "--out", "merged"),
        ("recycle", name, "--base", tiny_base, "--task", tiny_task, "--steps", 1, "--quiet"),
    ):
        check(cli(*words, "--store", own_store), "delta.safetensors", name)
    assert not Path("merged").exists()
    assert content(own_store) == before


def test_a_delta_that_is_not_there(cli, own_store):
    check(cli("predict", "things-ful-tiny", "x", "--store", own_store), "things-ful-tiny", fix="things-full-tiny")


def test_a_store_that_is_not_there(cli):
    check(cli("predict", "things", "the old oak", "--store", "nowhere"), "nowhere")
    check(cli("store", "list", "--store", "nowhere"), "nowhere")
    check(cli("report", "--store", "nowhere"), "nowhere")
    assert not Path("nowhere").exists()
    assert not Path("report.html").exists()


def test_labels_that_differ_from_those_of_the_delta(cli, own_store, tiny_base):
    rows = write_rows(Path("rows.csv"), [(text, label.replace("stone", "rock")) for text, label in tiny_rows(30)])
    words = ("--base", tiny_base, "--task", rows, "--store", own_store, "--quiet")
    before = content(own_store)
    check(cli("recycle", "things-full-tiny", *words, "--steps", 1), "stone", "rock")
    assert content(own_store) == before


def test_nothing_to_predict_for(cli, own_store):
    check(cli("predict", "things-full-tiny", "--store", own_store), "no text", fix="anytune predict")
    check(cli("predict", "things-full-tiny", "the oak", " ", "--store", own_store), "text 2 is empty")


# Domains


def test_a_domain_that_is_empty_or_missing(cli, tiny_base):
    Path("walks.txt").write_text("")
    check(cli("pretrain", tiny_base, "walks.txt", *QUICK), "walks.txt")
    check(cli("pretrain", tiny_base, "wlaks.txt", *QUICK), "wlaks.txt", fix="walks.txt")
    nothing_written()


def test_names_that_do_not_fit_the_domains(cli, tiny_base, tiny_domain):
    check(cli("pretrain", tiny_base, tiny_domain, "--names", "a,b", *QUICK), "2 names for 1 domains")
    nothing_written()
