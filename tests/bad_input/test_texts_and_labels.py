"""Files of text and labels that cannot be used as they are, and some odd ones that can."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.bad_input.checks import QUICK, STORE, check, nothing_written, refused
from tests.conftest import tiny_rows, write_rows


def jsonl(name: str, rows) -> Path:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Path(name)


def test_a_line_of_ten_megabytes_in_a_task_is_cut_and_said(cli, tiny_base):
    rows = tiny_rows()
    long = " ".join(["cat"] * 2_600_000)
    task = write_rows(Path("long.csv"), [(long, rows[0][1]), *rows[1:]])
    answer = cli("tune", tiny_base, task, *QUICK)
    assert answer.code == 0, answer.err


def test_a_line_of_ten_megabytes_in_a_domain_is_packed(cli, tiny_base):
    Path("long.txt").write_text(" ".join(["cat", "dog"] * 1_300_000) + "\nan owl\na fox near the fern\n")
    answer = cli("pretrain", tiny_base, "long.txt", *QUICK, "--block-size", 32)
    assert answer.code == 0, answer.err


@pytest.mark.parametrize("number", ["inf", "-inf", "nan", "NaN", "1e999"])
def test_a_regression_label_that_is_not_finite(cli, tiny_base, number):
    rows = [(text, f"{place / 7:.3f}") for place, (text, _) in enumerate(tiny_rows())]
    rows[3] = (rows[3][0], number)
    task = write_rows(Path("scores.csv"), rows)
    refused(cli, tiny_base, task, "scores.csv", "5", number, options=("--kind", "regression"))


def test_an_infinite_label_in_json(cli, tiny_base):
    rows = [{"text": text, "label": place / 7} for place, (text, _) in enumerate(tiny_rows())]
    Path("t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows).replace("0.0}", "Infinity}", 1))
    refused(cli, tiny_base, "t.jsonl", "t.jsonl", options=("--kind", "regression"))


def test_classes_written_as_floats_are_classes(cli, tiny_base):
    """What a table program makes of whole numbers once one is missing."""
    rows = [(text, f"{place % 3}.0") for place, (text, _) in enumerate(tiny_rows())]
    answer = cli("tune", tiny_base, write_rows(Path("floats.csv"), rows), *QUICK)
    assert answer.code == 0, answer.err


def test_too_many_classes_for_a_classification(cli, tiny_base):
    rows = [(text, f"class {place}") for place, (text, _) in enumerate(tiny_rows())]
    refused(cli, tiny_base, write_rows(Path("many.csv"), rows), "60 classes")


def test_an_empty_text(cli, tiny_base):
    rows = tiny_rows()
    rows[4] = ("", rows[4][1])
    refused(cli, tiny_base, write_rows(Path("gap.csv"), rows), "gap.csv", "6")


def test_a_text_of_blanks(cli, tiny_base):
    rows = tiny_rows()
    rows[4] = (" \t  ", rows[4][1])
    refused(cli, tiny_base, write_rows(Path("gap.csv"), rows), "gap.csv", "6")


def test_a_label_that_is_empty(cli, tiny_base):
    rows = tiny_rows()
    rows[4] = (rows[4][0], "")
    refused(cli, tiny_base, write_rows(Path("gap.csv"), rows), "gap.csv", "6")


def test_a_column_of_lists_as_text(cli, tiny_base):
    task = jsonl("lists.jsonl", [{"text": text.split(), "label": label} for text, label in tiny_rows()])
    refused(cli, tiny_base, task, "lists.jsonl", "text")


def test_a_column_of_lists_as_label(cli, tiny_base):
    task = jsonl("lists.jsonl", [{"text": text, "label": [label]} for text, label in tiny_rows()])
    refused(cli, tiny_base, task, "lists.jsonl", "label")


def test_a_column_of_mappings(cli, tiny_base):
    task = jsonl("maps.jsonl", [{"text": {"en": text}, "label": label} for text, label in tiny_rows()])
    refused(cli, tiny_base, task, "maps.jsonl", "text")


def test_a_label_column_that_is_the_text_column(cli, tiny_base, tiny_task):
    refused(cli, tiny_base, tiny_task, "text", options=("--text", "text", "--label", "text"))


def test_two_columns_of_one_name(cli, tiny_base):
    task = write_rows(Path("twice.csv"), [(*row, row[1]) for row in tiny_rows()], header=("text", "label", "label"))
    refused(cli, tiny_base, task, "twice.csv", "label")


def test_a_row_with_too_many_cells(cli, tiny_base):
    Path("ragged.csv").write_text(
        "text,label\n" + "".join(f"{text},{label}\n" for text, label in tiny_rows()) + "one,two,three,four\n"
    )
    refused(cli, tiny_base, "ragged.csv", "ragged.csv", "62")


def test_a_quote_that_never_closes(cli, tiny_base):
    Path("quote.csv").write_text('text,label\n"never closed,animal\n' + "a cat,animal\n" * 20)
    refused(cli, tiny_base, "quote.csv", "quote.csv")


def test_a_broken_line_of_json(cli, tiny_base):
    task = jsonl("broken.jsonl", [{"text": text, "label": label} for text, label in tiny_rows()])
    task.write_text(task.read_text() + '{"text": "cut o\n')
    refused(cli, tiny_base, task, "broken.jsonl", "61")


def test_a_line_of_json_that_is_no_object(cli, tiny_base):
    task = jsonl("odd.jsonl", [*({"text": text, "label": label} for text, label in tiny_rows()), ["a", "b"]])
    refused(cli, tiny_base, task, "odd.jsonl", "61")


def test_json_nested_a_hundred_thousand_deep(cli, tiny_base):
    Path("deep.json").write_text("[" * 100_000)
    refused(cli, tiny_base, "deep.json", "deep.json")


def test_a_parquet_file_that_is_cut_off(cli, tiny_base):
    import pandas

    pandas.DataFrame(tiny_rows(), columns=["text", "label"]).to_parquet("cut.parquet")
    whole = Path("cut.parquet").read_bytes()
    Path("cut.parquet").write_bytes(whole[: len(whole) // 2])
    refused(cli, tiny_base, "cut.parquet", "cut.parquet")


def test_a_picture_as_a_table(cli, tiny_base):
    Path("picture.csv").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20)
    refused(cli, tiny_base, "picture.csv", "picture.csv")


def test_a_file_of_a_kind_nobody_reads(cli, tiny_base):
    Path("sheet.xlsx").write_bytes(b"PK\x03\x04")
    refused(cli, tiny_base, "sheet.xlsx", "sheet.xlsx", ".csv")


def test_a_folder_without_a_training_file(cli, tiny_base):
    Path("data").mkdir()
    write_rows(Path("data/test.csv"), tiny_rows())
    refused(cli, tiny_base, "data", "train")


def test_a_loop_of_links(cli, tiny_base):
    os.symlink("b.csv", "a.csv")
    os.symlink("a.csv", "b.csv")
    refused(cli, tiny_base, "a.csv", "a.csv")


def test_a_loop_of_links_among_the_domains(cli, tiny_base):
    Path("texts").mkdir()
    os.symlink("texts", "texts/again")
    os.symlink("loop", "texts/loop")
    check(cli("pretrain", tiny_base, "texts", *QUICK), "texts")
    nothing_written()


def test_more_training_rows_asked_for_than_there_are(cli, tiny_base, tiny_task):
    """All of them are taken; the manifest says so."""
    answer = cli("tune", tiny_base, tiny_task, "--train-size", 100_000, *QUICK)
    assert answer.code == 0, answer.err
    [manifest] = Path(STORE).glob("deltas/*/anytune.json")
    assert "100000 rows asked for" in manifest.read_text()


@pytest.mark.parametrize("size", [0, -5])
def test_a_training_size_below_one(cli, tiny_base, tiny_task, size):
    refused(cli, tiny_base, tiny_task, str(size), options=("--train-size", size))


def test_a_lone_surrogate_in_a_text(cli, tiny_base):
    rows = tiny_rows()
    lines = [json.dumps({"text": text, "label": label}) for text, label in rows[1:]]
    Path("odd.jsonl").write_text('{"text": "half \\ud83d a cat", "label": "animal"}\n' + "\n".join(lines))
    answer = cli("tune", tiny_base, "odd.jsonl", *QUICK)
    if answer.code:
        check(answer, "odd.jsonl", "1")


def test_nothing_but_one_row(cli, tiny_base):
    refused(cli, tiny_base, write_rows(Path("one.csv"), tiny_rows()[:1]), "one.csv")
