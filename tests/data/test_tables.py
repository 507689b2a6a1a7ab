from __future__ import annotations

import json

import pandas
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anytune.data.tables import folder_files, listed, read_table, shown
from anytune.errors import DataError

ROWS = [("NA", "pos"), ('She said "no", twice', "neg"), ("two\nlines", "pos"), ("ünï — 文\u2028字", "neg")]


def columns(rows):
    return {"text": [text for text, _ in rows], "label": [label for _, label in rows]}


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json", ".parquet"])
def test_values_arrive_as_they_stand_in_the_file(tmp_path, suffix):
    path, frame = tmp_path / f"rows{suffix}", pandas.DataFrame(columns(ROWS))
    if suffix == ".csv":
        frame.to_csv(path, index=False)
    elif suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table(columns(ROWS)), path)
    else:
        frame.to_json(path, orient="records", lines=suffix == ".jsonl", force_ascii=False)
    table = read_table(path)
    assert table.columns == columns(ROWS)
    assert len(table) == 4


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=12)


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_survives_csv(tmp_path, rows):
    path = tmp_path / "rows.csv"
    pandas.DataFrame(columns(rows)).to_csv(path, index=False, lineterminator="\n", quoting=1)
    assert read_table(path).columns == columns(rows)


def test_a_byte_order_mark_and_windows_line_ends_are_passed_over(tmp_path):
    path = write(tmp_path / "rows.csv", b"\xef\xbb\xbftext,label\r\na,x\r\n\r\nb,y\r\n")
    table = read_table(path)
    assert table.columns == {"text": ["a", "b"], "label": ["x", "y"]}
    assert table.place(1) == f"line 4 of {path}"


def test_tab_separated_quotes_are_text_unless_they_wrap_a_field(tmp_path):
    raw = write(tmp_path / "raw.tsv", 'text\tlabel\n"a b" he said\tx\n12" wide\ty\n"both ""sides"""\tz\n')
    assert read_table(raw).columns["text"] == ['"a b" he said', '12" wide', 'both "sides"']
    wrapped = write(tmp_path / "wrapped.tsv", 'text\tlabel\n"two\nlines"\tx\n"a\ttab"\ty\n')
    assert read_table(wrapped).columns["text"] == ["two\nlines", "a\ttab"]


def test_json_may_hold_columns_or_lines(tmp_path):
    by_column = write(tmp_path / "columns.json", '{"text": ["a", "b"], "label": [1, 2]}')
    assert read_table(by_column).columns == {"text": ["a", "b"], "label": [1, 2]}
    lines = write(tmp_path / "lines.json", '{"text": "a"}\n{"text": "b", "label": 2}\n')
    assert read_table(lines).columns == {"text": ["a", "b"], "label": [None, 2]}


BAD = {
    "nothing.csv": (b"", "is empty"),
    "white.jsonl": (b" \n \n", "is empty"),
    "header.csv": (b"text,label\n", "has no rows, only the columns text, label"),
    "list.json": (b"[]", "has no rows"),
    "latin.csv": ("text,label\na,x\ncafé,y\n".encode("latin-1"), "byte 0xe9 at offset 18, in line 3"),
    "marked.csv": (b"\xef\xbb\xbftext\ncaf\xe9\n", "byte 0xe9 at offset 11, in line 2"),
    "wide.csv": ("text,label\na,x\n".encode("utf-16"), "is UTF-16: it begins with the bytes ff fe"),
    "zero.csv": (b"text,label\na\x00,x\n", "zero byte in line 2"),
    "more.csv": (b"text,label\na,x\nb, c,y\n", "line 3 of .* has 3 fields, the header has 2"),
    "index.csv": (b"text,label\n0,a,x\n1,b,y\n", "line 2 of .* has 3 fields"),
    "fewer.csv": (b"text,label\na\n", "line 2 of .* has 1 fields"),
    "open.csv": (b'text,label\na,x\n"b,y\nc,x\n', "unexpected end of data, in the record that begins in line 3"),
    "twice.csv": (b"text,text\na,b\n", "more than one column 'text'"),
    "semicolon.csv": (b"text;label\na;b\n", "semicolons"),
    "tabs.csv": (b"text\tlabel\na\tb\n", r"\.tsv"),
    "more.tsv": (b"text\tlabel\na\tx\tz\n", "line 2 of .* has 3 fields"),
    "cut.jsonl": (b'{"text": "a"}\n{"text": \n', "line 2 of .* is not JSON"),
    "array.jsonl": (b'{"text": "a"}\n\n["b"]\n', "line 3 of .* is a list"),
    "number.json": (b"3", "holds a number"),
    "object.json": (b'{"text": "a"}', "holds an object"),
    "uneven.json": (b'{"text": ["a"], "label": []}', "different lengths"),
    "cut.json": (b'[{"text": "a"},\n {"text"', "line 2 of .* is not JSON"),
    "deep.json": (b"[" * 100_000, "nested too deeply"),
    "cut.parquet": (b"PAR1 and no more", "no readable Parquet"),
    "sheet.xlsx": (b"PK", r"suffix '\.xlsx'"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_an_unusable_file_is_named_with_the_place_and_the_error_stays_short(tmp_path, name):
    content, words = BAD[name]
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=words) as caught:
        read_table(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 700 + 3 * len(str(path))


def test_a_cut_parquet_file_is_an_error(tmp_path):
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns(ROWS * 100)), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="no readable Parquet"):
        read_table(path)


def test_a_wrong_encoding_says_how_to_convert(tmp_path):
    path = write(tmp_path / "rows.csv", b"text\ncaf\xe9\n")
    with pytest.raises(DataError) as caught:
        read_table(path)
    assert caught.value.fix == f"iconv -f WINDOWS-1252 -t UTF-8 '{path}' > '{tmp_path / 'rows.utf8.csv'}'"


def test_a_missing_file_suggests_the_near_one(tmp_path):
    write(tmp_path / "reviews.csv", "text,label\na,b\n")
    with pytest.raises(DataError, match=r"review\.csv does not exist") as caught:
        read_table(tmp_path / "review.csv")
    assert caught.value.fix == str(tmp_path / "reviews.csv")
    with pytest.raises(DataError, match="does not exist either"):
        read_table(tmp_path / "nowhere" / "review.csv")


def test_long_values_and_many_names_are_cut_in_errors():
    assert len(shown("x" * 10_000)) <= 60
    assert len(shown(["x" * 10_000])) <= 60
    names = [f"column{place}" + "x" * 100 for place in range(1000)]
    assert len(listed(names)) < 600
    assert listed(names).endswith("and 988 more")


def test_an_error_about_a_huge_line_stays_short(tmp_path):
    path = write(tmp_path / "rows.jsonl", json.dumps({"text": "x" * 100_000})[:-1])
    with pytest.raises(DataError, match="not JSON") as caught:
        read_table(path)
    assert len(str(caught.value)) < 500 + 2 * len(str(path))


def test_a_folder_is_read_by_split(tmp_path):
    for name in ("train.csv", "dev.jsonl", "test.csv", "notes.txt"):
        write(tmp_path / name, "text,label\na,b\n")
    names = {split: path.name for split, path in folder_files(tmp_path).items()}
    assert names == {"train": "train.csv", "validation": "dev.jsonl", "test": "test.csv"}
    write(tmp_path / "valid.csv", "text,label\na,b\n")
    with pytest.raises(DataError, match=r"2 files for validation: dev\.jsonl, valid\.csv"):
        folder_files(tmp_path)


def test_a_folder_without_training_rows_lists_what_it_holds(tmp_path):
    with pytest.raises(DataError, match="no train file, but no data file"):
        folder_files(tmp_path)
    write(tmp_path / "reviews.csv", "text,label\na,b\n")
    with pytest.raises(DataError, match=r"no train file, but reviews\.csv"):
        folder_files(tmp_path)


CONLL = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O

Peter NNP B-NP B-PER
"""


def test_conll_files_hold_one_word_a_line_and_sentences_between_blank_lines(tmp_path):
    path = tmp_path / "train.conll"
    path.write_text(CONLL)
    table = read_table(path)
    assert table.columns == {
        "tokens": [["EU", "rejects"], ["Peter"]],
        "field 2": [["NNP", "VBZ"], ["NNP"]],
        "field 3": [["B-NP", "B-VP"], ["B-NP"]],
        "tags": [["B-ORG", "O"], ["B-PER"]],
    }
    assert table.place(1) == f"line 6 of {path}"
    path.write_text("1 000\tB-NUM\r\n,\tO\r\n  \r\n# \tO")
    assert read_table(path).columns == {"tokens": [["1 000", ","], ["#"]], "tags": [["B-NUM", "O"], ["O"]]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("EU B-ORG\nrejects\n", r"line 2 of .* has 1 fields, the first has 2: 'rejects'"),
        ("EU B-ORG\n\nrejects VBZ O\n", r"line 3 of .* has 3 fields, the first has 2"),
        ("EU\nrejects\n", r"line 1 of .* has 1 fields: 'EU'"),
        ("-DOCSTART- O\n\n", "has no rows"),
    ],
)
def test_conll_files_that_are_none_name_the_line(tmp_path, text, words):
    path = tmp_path / "train.conll"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        read_table(path)
