from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from anytune.evaluate import Artefact, compare, runs_of
from anytune.report.tables import COLUMNS, comparison_table, lines, records
from anytune.report.words import decimal, duration, share, short_count, signed
from tests.report.stores import delta, demo_manifests


def test_records_are_plain_json_with_the_numbers_of_the_rows() -> None:
    rows = compare(runs_of([Artefact(Path(m.name), m) for m in demo_manifests()]))
    found = json.loads(json.dumps(records(rows), allow_nan=False))
    assert len(found) == len(rows)
    for record, row in zip(found, rows, strict=True):
        assert record["test"]["mean"] == row.test.mean if row.test else record["test"] is None
        assert record["steps_to_target"] == row.steps_to_target
        assert record["seeds"] == [0, 1, 2]


def test_the_terminal_table_prints_names_as_they_are() -> None:
    name = "[bold red]x[/]"
    rows = compare(runs_of([Artefact(Path("d"), delta(name, "v1", "fresh", 0))]))
    out = io.StringIO()
    Console(file=out, width=160).print(comparison_table(rows))
    assert name in out.getvalue()
    assert all(len(line) == len(COLUMNS) for line in lines(rows))


def test_numbers_are_written_with_a_true_minus_and_never_as_minus_zero() -> None:
    assert [decimal(value) for value in (-0.04, -1.25, 1234.5, None)] == ["0.0", "−1.2", "1,234.5", "–"]
    assert [signed(value) for value in (0.04, 0.06, -2.0, None)] == ["0.0", "+0.1", "−2.0", "–"]
    assert [short_count(value) for value in (412_000, 1_300_000, 37)] == ["412k", "1.3M", "37"]
    assert [duration(value) for value in (8.44, 200, 7500)] == ["8.4 s", "3 min 20 s", "2 h 5 min"]
    assert [share(value) for value in (0.756, None)] == ["76 %", "–"]
