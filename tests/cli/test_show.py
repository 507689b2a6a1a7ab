from __future__ import annotations

import json

from anytune.cli import show


def test_columns_are_aligned_numbers_to_the_right():
    assert show.table(["name", "score"], [["a", 0.5], ["long name", 12.25]]) == (
        "name         score\na           0.5000\nlong name  12.2500"
    )


def test_a_column_without_anything_is_left_out():
    assert show.table(["name", "task"], [["a", None], ["b", ""]]) == "name\na\nb"


def test_wide_letters_take_two_columns():
    assert show.table(["w", "n"], [["猫", "x"], ["abc", "y"]]) == "w    n\n猫   x\nabc  y"


def test_a_cell_is_one_line_without_control_characters():
    assert show.cell("a\n b\x1b[2J") == "a b?[2J"
    assert show.cell(True) == "yes"
    assert show.cell(0) == "0"
    assert show.cell(12345.678) == "12346"


def test_json_has_no_nan(capsys):
    show.print_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": "é"})
    said = capsys.readouterr().out
    assert json.loads(said) == {"a": None, "b": [None, 1.5], "c": "é"}
    assert "é" in said


def test_sizes_are_in_words():
    assert [show.size(count) for count in (12, 8_900_000, 4_500, 3_000_000_000)] == [
        "12 B",
        "8.9 MB",
        "4.5 kB",
        "3.0 GB",
    ]


def test_texts_are_cut_to_a_line():
    assert show.shorten("one two\nthree four", 12) == "one two t..."
    assert show.shorten("short", 12) == "short"


def test_a_store_of_the_usual_name_is_not_repeated():
    assert show.in_store(None) == ""
    assert show.in_store("my store") == " --store 'my store'"
