from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest

from anytune.data import sources
from anytune.data.tasks import Example, load_task
from anytune.errors import DataError, SampleError, SettingsError


def write(path, rows, header="text,label"):
    path.write_text(header + "\n" + "".join(",".join(f'"{value}"' for value in row) + "\n" for row in rows))
    return path


def rows(count=60, classes=("neg", "pos", "new"), start=0):
    return [(f"text {place}", classes[place % len(classes)]) for place in range(start, start + count)]


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "reviews.csv", rows())


def test_a_file_becomes_a_task_with_three_splits(path):
    task = load_task(path)
    assert (task.name, task.kind, task.metric, task.ref) == ("reviews", "classification", "accuracy", None)
    assert task.label_names == ("neg", "new", "pos")
    assert (task.text_columns, task.label_column) == (("text",), "label")
    assert task.record().counts == {"train": 42, "validation": 6, "test": 12}
    everything = [example.text for split in (task.train, task.validation, task.test) for example in split]
    assert sorted(everything) == sorted(text for text, _ in rows())
    expected = dict(rows())
    assert all(task.label_names[example.label] == expected[example.text] for example in task.train)
    assert Counter(example.label for example in task.test) == {0: 4, 1: 4, 2: 4}


def test_the_same_file_gives_the_same_task_and_the_seed_another_split(path):
    first, second, other = load_task(path), load_task(str(path)), load_task(path, split_seed=1)
    assert first == second
    assert first.content != other.content
    assert first.label_names == other.label_names


def test_the_content_hash_follows_what_decides_results_and_not_the_name(path, tmp_path):
    base = load_task(path)
    assert load_task(path, name="other").content == base.content
    changed = rows()
    changed[0] = ("text zero", changed[0][1])
    contents = {
        base.content,
        load_task(write(tmp_path / "changed.csv", changed)).content,
        load_task(path, label_names=["pos", "neg", "new"]).content,
        load_task(path, limit=20).content,
        base.subset(train_size=10).content,
        load_task(path, metric="macro_f1").content,
    }
    assert len(contents) == 6


def test_validation_and_test_files_are_taken_whole(path, tmp_path):
    test = write(tmp_path / "test.csv", rows(9, start=100))
    task = load_task(path, test=test)
    assert [example.text for example in task.test] == [f"text {place}" for place in range(100, 109)]
    assert task.record().counts == {"train": 54, "validation": 6, "test": 9}
    both = load_task(path, test=test, validation=test)
    assert both.record().counts == {"train": 60, "validation": 9, "test": 9}


def test_a_folder_with_all_splits_is_taken_as_it_is(tmp_path):
    for split, start in (("train", 0), ("validation", 100), ("test", 200)):
        write(tmp_path / f"{split}.csv", rows(6, start=start))
    task = load_task(tmp_path)
    assert task.record().counts == {"train": 6, "validation": 6, "test": 6}
    assert [example.text for example in task.train] == [f"text {place}" for place in range(6)]
    assert task.name == tmp_path.name


def test_pairs_and_regression(tmp_path):
    lines = [f"left {place},right {place},{place / 7:.3f}" for place in range(60)]
    path = tmp_path / "pairs.csv"
    path.write_text("sentence1,sentence2,score\n" + "\n".join(lines))
    task = load_task(path)
    assert (task.kind, task.metric, task.label_names) == ("regression", "pearson", ())
    assert task.text_columns == ("sentence1", "sentence2")
    example = task.train[0]
    assert example.text_pair == example.text.replace("left", "right")
    assert example.label == pytest.approx(int(example.text.split()[1]) / 7, abs=1e-3)
    assert load_task(path, kind="classification", validation_fraction=0, test_fraction=0).metric == "accuracy"
    assert load_task(path, metric="pearson_spearman").metric == "pearson_spearman"


def test_a_mapping_holds_the_arguments(path):
    task = load_task({"source": str(path), "name": "named", "limit": 10}, split_seed=3)
    assert task == replace(load_task(path, limit=10, split_seed=3), name="named")


def test_numeric_labels_are_named_in_the_order_of_their_values(tmp_path):
    path = tmp_path / "rows.jsonl"
    records = [{"text": f"text {place}", "label": [10, 9, -1][place % 3]} for place in range(30)]
    path.write_text("\n".join(map(json.dumps, records)))
    assert load_task(path).label_names == ("-1", "9", "10")


def test_duplicates_between_splits_are_noted(path, tmp_path):
    test = write(tmp_path / "test.csv", [*rows(3), ("fresh", "pos")])
    assert "3 of 4 test texts stand in train word for word" in load_task(path, test=test, validation_fraction=0).notes
    assert not any("word for word" in note for note in load_task(path).notes)


def test_limit_keeps_classes_in_each_split(path):
    task = load_task(path, limit=6)
    assert task.record().counts == {"train": 6, "validation": 6, "test": 6}
    assert Counter(example.label for example in task.train) == {0: 2, 1: 2, 2: 2}


@pytest.mark.parametrize(("size", "expected"), [({"per_class": 2}, 6), ({"train_size": 5}, 5), ({"train_size": 3}, 3)])
def test_few_shot_subsets_bound_validation_and_keep_the_test(path, size, expected):
    task = load_task(path)
    small = task.subset(**size, seed=1)
    assert len(small.train) == expected
    assert len(small.validation) == min(expected, 6)
    assert small.test == task.test
    assert set(small.train) < set(task.train)
    assert set(small.validation) <= set(task.validation)
    assert {example.label for example in small.train} == {0, 1, 2}
    assert small == task.subset(**size, seed=1)
    assert small.content != task.subset(**size, seed=2).content
    assert task.subset() is task


def test_larger_subsets_contain_smaller_ones(path):
    task = load_task(path)
    sizes = [set(task.subset(train_size=size, seed=4).train) for size in (3, 8, 20, 42)]
    assert all(small < large for small, large in pairwise(sizes))
    assert sizes[-1] == set(task.train)


def test_a_subset_larger_than_the_task_says_so(path):
    small = load_task(path).subset(train_size=1000)
    assert len(small.train) == 42
    assert "1000 rows asked for, 42 taken" in small.notes[-1]


@pytest.mark.parametrize("size", [{"train_size": 5, "per_class": 5}, {"train_size": 0}, {"per_class": -1}])
def test_subset_sizes_that_make_no_sense_are_refused(path, size):
    with pytest.raises(SettingsError):
        load_task(path).subset(**size)


def test_subsets_of_a_regression_task_have_a_size_and_no_classes(tmp_path):
    path = write(tmp_path / "rows.csv", [(f"text {place}", place / 7) for place in range(50)])
    task = load_task(path)
    assert len(task.subset(train_size=7).train) == 7
    with pytest.raises(SettingsError, match="per_class=5 on a regression task"):
        task.subset(per_class=5)


def test_unknown_labels_outside_training_are_refused(path, tmp_path):
    test = write(tmp_path / "test.csv", [("a", "pos"), ("b", "poss")])
    with pytest.raises(DataError, match=r"line 3 of .*test\.csv has the unknown label 'poss'") as caught:
        load_task(path, test=test)
    assert caught.value.fix == "pos"
    with pytest.raises(DataError, match="unknown label 'neg'"):
        load_task(path, label_names=["pos", "new"])


def test_every_split_needs_the_columns(path, tmp_path):
    test = write(tmp_path / "test.csv", rows(), header="text,lable")
    with pytest.raises(DataError, match=r"test\.csv has no column 'label'"):
        load_task(path, test=test)


def test_one_class_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"all 9 training rows of .* have one class: 'pos'"):
        load_task(write(tmp_path / "rows.csv", rows(9, classes=("pos",))))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"metric": "acuracy"}, "unknown metric 'acuracy'"),
        ({"kind": "regresion"}, "unknown kind of task 'regresion'"),
        ({"limit": 0}, "limit is 0"),
        ({"test_fraction": 1.2}, "test_fraction is 1.2"),
        ({"metric": "pearson", "kind": "classification"}, "metric 'pearson' scores regression"),
    ],
)
def test_settings_that_make_no_sense_are_refused(path, settings, words):
    with pytest.raises(SettingsError, match=words):
        load_task(path, **settings)


def test_a_regression_metric_asks_for_numbers(path):
    with pytest.raises(DataError, match="which is no finite number"):
        load_task(path, metric="pearson")


def sample(monkeypatch, **facts):
    def made(name):
        assert name == "hpo"
        row = lambda text, label: SimpleNamespace(text=text, text_pair=None, label=label, group="", date=None)  # noqa: E731
        splits = {
            "train": tuple(row(text, label) for text, label in rows(9)),
            "validation": (row("v", "new"),),
            "test": (row("t", "pos"),),
        }
        return SimpleNamespace(name=name, splits=facts.pop("splits", splits), raw=(), facts=facts)

    monkeypatch.setattr(sources, "sample_rows", made)


def test_a_sample_brings_its_own_splits_and_facts(monkeypatch):
    names = ["pos", "new", "neg"]
    sample(monkeypatch, kind="classification", metric="macro_f1", label_names=names, text_columns=["definition"])
    task = load_task("sample:hpo")
    assert (task.name, task.ref, task.metric, task.label_names) == ("hpo", "sample:hpo", "macro_f1", tuple(names))
    assert task.text_columns == ("definition",)
    assert task.test == (Example("t", None, 0),)
    assert len(task.train) == 9


def test_a_user_may_choose_another_metric_for_a_sample(monkeypatch):
    sample(monkeypatch, kind="classification", metric="macro_f1", label_names=[])
    assert load_task("sample:hpo", metric="matthews").metric == "matthews"


def test_a_sample_with_a_test_file_of_ones_own_has_no_ref(monkeypatch, tmp_path):
    sample(monkeypatch, kind="classification", metric="macro_f1")
    assert load_task("sample:hpo", test=write(tmp_path / "test.csv", rows(3))).ref is None


def test_a_sample_of_raw_text_is_no_task(monkeypatch):
    sample(monkeypatch, splits={})
    with pytest.raises(SampleError, match="no labelled rows"):
        load_task("sample:hpo")
