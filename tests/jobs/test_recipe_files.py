from __future__ import annotations

import math

import pytest

from anytune.errors import SettingsError
from anytune.jobs.recipe_files import parse_pairs, parse_recipe, parse_seeds, parse_value, read_recipe, with_overrides


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1.0e-5", 1e-5), ("2E3", 2000.0), (".5", 0.5), ("-3", -3), ("7", 7), ("1.", 1.0),
        ("true", True),         ("null", None), ("", None), ("no", "no"), ("on", "on"), ("12:30", "12:30"),
        ("2026-11-01", "2026-11-01"),         ("010", "010"), ("1_000", "1_000"), ("0x10", "0x10"),
        ("[1, 2e-1]", [1, 0.2]), ("{r: 8}", {"r": 8}),
        ("'8'", "8"),         ("a: b", "a: b"), ("it's", "it's"), ("[broken", "[broken"), ("-inf", "-inf"),
    ],
)  # fmt: skip
def test_a_value_is_a_number_only_where_it_looks_like_one(text, value):
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_infinity_and_nan_are_written_with_a_dot():
    assert parse_value("-.inf") == -math.inf
    assert math.isnan(parse_value(".nan"))


def test_a_recipe_reads_numbers_that_pyyaml_takes_for_text():
    assert parse_recipe("rate: 1e-5\nname: no\ndate: 2026-11-01\nquoted: '1e-5'").values == {
        "rate": 1e-5, "name": "no", "date": "2026-11-01", "quoted": "1e-5",
    }  # fmt: skip


def test_lines_are_those_of_keys_and_items():
    text = parse_recipe("job: tune\ntraining:\n  steps: 3\njobs:\n  - {job: a}\n  - job: b\n", "r.yaml")
    assert text.where("training", "steps") == "r.yaml, line 3"
    assert text.where("jobs", 1) == "r.yaml, line 6"
    assert text.where("absent") == "r.yaml"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("job: tune\nbase: a\njob: report\n", ["line 3", "'job'", "twice", "line 1"]),
        ("job: tune\ntraining:\n\tsteps: 3\n", ["line 3", "tab"]),
        ("- a\n- b\n", ["holds a list"]),
        ("just words\n", ["holds a text"]),
        ("", ["is empty"]),
        ("# only a comment\n", ["is empty"]),
        ("job: [tune\n", ["line 2"]),
        ("a: 1\n---\nb: 2\n", ["line"]),
        ("job: !!python/object/apply:os.system [ls]\n", ["line 1", "python"]),
        ("job: !mine x\n", ["line 1", "!mine"]),
        ("? [a, b]\n: 1\n", ["line 1", "a key must be a word"]),
        ("a: &x [*x]\n", ["line 1", "without end"]),
    ],
)
def test_a_recipe_that_cannot_be_read_is_told_with_its_line(text, words):
    with pytest.raises(SettingsError) as caught:
        parse_recipe(text, "r.yaml")
    assert "r.yaml" in caught.value.what
    for word in words:
        assert word in caught.value.what


def test_aliases_that_multiply_are_refused_before_they_fill_memory():
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(SettingsError, match="without end"):
        parse_recipe("\n".join(rows))


def test_an_alias_used_twice_is_fine():
    assert parse_recipe("a: &x {r: 8}\nb: *x\n").values == {"a": {"r": 8}, "b": {"r": 8}}


def test_a_missing_recipe_suggests_the_file_beside_it(tmp_path):
    (tmp_path / "tune-lora.yaml").write_text("job: tune")
    with pytest.raises(SettingsError) as caught:
        read_recipe(tmp_path / "tune-lara.yaml")
    assert "tune-lora.yaml" in caught.value.fix


def test_a_recipe_in_another_encoding_is_told_with_line_and_byte(tmp_path):
    (tmp_path / "r.yaml").write_bytes("job: tune\nname: caf\xe9\n".encode("latin-1"))
    with pytest.raises(SettingsError, match=r"line 2: byte 0xe9"):
        read_recipe(tmp_path / "r.yaml")


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbfjob: tune\n")
    assert read_recipe(tmp_path / "r.yaml").values == {"job": "tune"}


@pytest.mark.parametrize(
    ("value", "seeds"),
    [("0,1,2", [0, 1, 2]), ("3", [0, 1, 2]), (3, [0, 1, 2]), ("7,", [7]), ([7], [7]), ("5, 4", [5, 4]), ("1", [0])],
)
def test_seeds_are_a_list_or_a_count(value, seeds):
    assert parse_seeds(value) == seeds


@pytest.mark.parametrize("value", ["", ",", "a", "1.5", "-1", "0", 0, 101, True, None, 1.5, "1;2"])
def test_seeds_that_are_neither_are_refused(value):
    with pytest.raises(SettingsError) as caught:
        parse_seeds(value)
    assert "seeds" in caught.value.what
    assert "seed" in caught.value.fix


def test_overrides_reach_inner_keys_and_leave_the_recipe_as_it_was():
    recipe = {
        "method": "lora",
        "training": {"steps": 3},
        "jobs": [{"base": "a"}],
        "task": "f.csv",
        "tune": ["full", "x"],
    }
    changed = with_overrides(
        recipe, ["method.r=4", "training.steps=5", "jobs.0.base=b", "new.key=1e-1", "task.text=body", "tune.0.rate=2"]
    )
    assert changed == {
        "method": {"name": "lora", "r": 4}, "training": {"steps": 5}, "jobs": [{"base": "b"}], "new": {"key": 0.1},
        "task": {"source": "f.csv", "text": "body"}, "tune": [{"name": "full", "rate": 2}, "x"],
    }  # fmt: skip
    assert recipe["training"] == {"steps": 3}
    assert recipe["method"] == "lora"


@pytest.mark.parametrize("word", ["steps", "=3", "base.x=1", "jobs.5.base=b", "jobs.x=1"])
def test_overrides_that_fit_nowhere_are_refused(word):
    with pytest.raises(SettingsError) as caught:
        with_overrides({"base": "a", "jobs": [{"base": "a"}]}, [word])
    assert word.partition("=")[0].partition(".")[0] in caught.value.what


def test_a_pair_given_twice_is_refused_with_both_values():
    with pytest.raises(SettingsError, match=r"'r' is given twice: 4 and '8'"):
        parse_pairs(["r=4", "r=8"])
