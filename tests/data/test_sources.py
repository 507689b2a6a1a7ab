from __future__ import annotations

import datasets
import pytest

from anytune.data import sources
from anytune.data.tables import Table
from anytune.errors import DataError, SettingsError


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("stanfordnlp/imdb", True),
        ("nyu-mll/glue:sst2", True),
        ("imdb", False),
        ("data/reviews.csv", False),
        ("./data/reviews", False),
        ("/data/reviews", False),
        ("a/b/c", False),
        ("here/reviews", False),
    ],
)
def test_hub_ids_are_told_from_paths(tmp_path, monkeypatch, source, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert sources.is_dataset_id(source) is expected


def test_a_data_set_out_of_reach_points_to_the_samples(monkeypatch):
    def offline(*_):
        raise ConnectionError("Couldn't reach it on the Hub " + "x" * 5000)

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match="cannot load the data set owner/name: ConnectionError") as caught:
        sources.find("owner/name")
    assert "anytune samples" in caught.value.fix
    assert len(str(caught.value)) < 600


def test_a_data_set_brings_class_names_and_its_unlabelled_test_is_left_out(monkeypatch):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "positive"])}
    )

    def split(labels):
        return datasets.Dataset.from_dict({"text": ["words"] * len(labels), "label": labels}, features=features)

    asked = []
    loaded = datasets.DatasetDict({"train": split([1, 0, 1]), "dev": split([0]), "test": split([-1, -1])})
    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments: asked.append(arguments) or loaded)
    found = sources.find("owner/name:config")
    assert asked == [("owner/name", "config")]
    assert set(found.tables) == {"train", "validation"}
    assert found.tables["train"].columns["label"] == ["positive", "negative", "positive"]
    assert found.tables["train"].class_names == {"label": ("negative", "positive")}
    assert (found.name, found.ref) == ("name", "owner/name:config")
    assert "test split of owner/name:config has no labels" in found.notes[0]


def table(values):
    return Table("rows.csv", {"text": values}, range(1, len(values) + 1))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (["a", None, ""], r"row 2 of rows\.csv has no text in column 'text' \(2 such rows\)"),
        (["a", float("nan")], r"row 2 of rows\.csv has no text"),
        (["a", " \n"], r"row 2 of rows\.csv has no text"),
        (["a", 3], r"row 2 of rows\.csv has 3 in column 'text', which is no text"),
        (["a", ["b"]], "which is no text"),
        (["a", "half \ud83d"], "row 2 .* half a character"),
    ],
)
def test_a_row_without_text_is_named(values, words):
    with pytest.raises(DataError, match=words):
        sources.checked_texts(table(values), "text")


def test_words_that_look_missing_are_texts():
    values = ["NA", "null", "nan", "None", "0"]
    assert sources.checked_texts(table(values), "text") == values


def test_a_mapping_is_unfolded_and_unknown_keys_suggest_the_near_one():
    given = {"text": None, "limit": 3}
    assert sources.unfolded({"source": "a", "limit": 5}, given, "task") == {"source": "a", "text": None, "limit": 5}
    with pytest.raises(SettingsError, match="unknown task setting 'limti'") as caught:
        sources.unfolded({"source": "a", "limti": 5}, given, "task")
    assert caught.value.fix == "limit"
    with pytest.raises(SettingsError, match="without 'source'"):
        sources.unfolded({"limit": 5}, given, "task")
