"""Synthetic tasks by name, where a task's source stands."""

from __future__ import annotations

import pytest

from anytune.errors import SettingsError
from anytune.evaluate.synthetic_tasks import SyntheticTask, by_name, factorial
from anytune.jobs.opening import open_task
from anytune.jobs.synthetic import parse_synthetic


def test_a_name_gives_the_task_of_its_knobs():
    task = open_task("synthetic:rule=45,inputs=0.5,format=pair,seed=3")
    made = SyntheticTask(45, 0.5, "pair", 3)
    assert task.name == made.name == "rule45-inputs0.5-pair-seed3"
    assert by_name(task.name) == made
    rows = made.rows(256 + 128 + 256)
    assert [(row.text, row.text_pair, task.label_names[row.label]) for row in task.train] == rows[:256]
    assert [(row.text, row.text_pair, task.label_names[row.label]) for row in task.test] == rows[-256:]
    assert len(task.validation) == 128
    again = open_task({"source": task.ref, "metric": "macro_f1"})
    assert (again.train, again.metric) == (task.train, "macro_f1")


def test_every_name_leads_back_to_its_task_and_no_other_name_does():
    for task in factorial(inputs=(0.0, 0.25, 1.0), formats=("single", "list")):
        assert by_name(task.name) == task
    for name in ("hpo", "rule1e3-inputs0-pair-seed0", "rule0-inputs0-verse-seed0", "rule0.0-inputs0-pair-seed0",
                 "rulex-inputs0-pair-seed0"):  # fmt: skip
        assert by_name(name) is None


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("synthetic:rul=3", r"knob of 'synthetic:rul=3'[\s\S]*rule"),
        ("synthetic:rule=far", "rule=far"),
        ("synthetic:rule=200", "rule=200"),
        ("synthetic:format=verse", "unknown format 'verse'"),
    ],
)
def test_knobs_that_cannot_be_are_named(source, words):
    with pytest.raises(SettingsError, match=words):
        parse_synthetic(source)
