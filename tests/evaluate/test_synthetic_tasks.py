from __future__ import annotations

import csv
import io
import math

import numpy as np
import pytest

from anytune.errors import DataError, SettingsError
from anytune.evaluate import transferability as measures
from anytune.evaluate.synthetic_tasks import (
    CUES,
    FORMATS,
    OFFICE,
    SEA,
    SyntheticTask,
    distance,
    factorial,
    family,
    knob_effects,
)


def cue_sum(text: str) -> complex:
    angles = [2 * math.pi * (CUES.index(word) + 0.5) / 24 for word in text.split() if word in CUES]
    assert len(angles) == 3
    return sum(complex(math.cos(angle), math.sin(angle)) for angle in angles)


def labels(task: SyntheticTask, count: int) -> list[str]:
    return [row[-1] for row in task.rows(count)]


def test_the_label_is_the_side_of_the_line_and_both_are_equally_likely():
    for rule in (0, 45, 90, 135):
        rows = SyntheticTask(rule=rule).rows(1500)
        for text, label in rows:
            turned = cue_sum(text) * np.exp(-1j * math.radians(rule + 1))
            assert label == ("left" if turned.imag > 0 else "right")
        assert abs(np.mean([label == "left" for _, label in rows]) - 0.5) < 4 * 0.5 / math.sqrt(1500)


def test_words_are_told_apart():
    assert len({*CUES, *SEA, *OFFICE}) == 24 + 16 + 16


def test_a_rule_changes_labels_alone_and_by_its_angle():
    tasks = family("rule", (0, 30, 60, 90), inputs=0.5)
    texts = [[row[:-1] for row in task.rows(1500)] for task in tasks]
    assert all(one == texts[0] for one in texts)
    first = np.array(labels(tasks[0], 1500))
    agreement = [np.mean(first == np.array(labels(task, 1500))) for task in tasks]
    assert agreement == pytest.approx([1, 1 - 30 / 180, 1 - 60 / 180, 0.5], abs=0.05)


def test_inputs_change_the_other_words_alone():
    sea, mixed, office = (task.rows(300) for task in family("inputs", (0, 0.25, 1), rule=30))
    assert [row[-1] for row in sea] == [row[-1] for row in mixed] == [row[-1] for row in office]
    for one, other in zip(sea, office, strict=True):
        pairs = list(zip(one[0].split(), other[0].split(), strict=True))
        assert all(a == b for a, b in pairs if a in CUES)
        assert all(SEA.index(a) == OFFICE.index(b) for a, b in pairs if a not in CUES)
    words = [word for row in mixed for word in row[0].split() if word not in CUES]
    assert np.mean([word in OFFICE for word in words]) == pytest.approx(0.25, abs=0.04)


def test_a_format_changes_the_layout_alone():
    bare = set(CUES) | set(SEA) | set(OFFICE)
    plain, *others = ([*task.rows(50)] for task in family("format", FORMATS, rule=30, inputs=0.5))
    for rows in others:
        for one, other in zip(plain, rows, strict=True):
            assert one[-1] == other[-1]
            assert [word for word in " ".join(other[:-1]).split() if word in bare] == one[0].split()
    assert [len(rows[0]) for rows in others] == [3, 2, 2]
    assert len({rows[0][0] for rows in (plain, *others)}) == 4


def test_files_hold_three_splits_without_a_common_row():
    task = SyntheticTask(format="pair", inputs=0.5, seed=3)
    files = task.files(train=40, validation=10, test=20)
    assert files == task.files(train=40, validation=10, test=20)
    read = {name: list(csv.reader(io.StringIO(text))) for name, text in files.items()}
    assert {name: len(rows) - 1 for name, rows in read.items()} == {
        "train.csv": 40,
        "validation.csv": 10,
        "test.csv": 20,
    }
    assert all(rows[0] == ["text", "text_pair", "label"] for rows in read.values())
    body = [tuple(row) for rows in read.values() for row in rows[1:]]
    assert len({row[:2] for row in body}) == 70
    assert body == task.rows(70)
    assert SyntheticTask(format="pair", inputs=0.5, seed=4).rows(70) != body


def test_a_full_design_has_every_combination_once_with_texts_of_its_own():
    tasks = factorial()
    assert len(tasks) == 12
    assert len({(task.rule, task.inputs, task.format) for task in tasks}) == 12
    assert len({task.name for task in tasks}) == 12
    assert len({task.rows(1)[0][0] for task in tasks}) == 12
    assert tasks[1].name == "rule0-inputs0-pair-seed1"


def test_distances():
    assert distance(SyntheticTask(rule=10), SyntheticTask(rule=170), "rule") == pytest.approx(20 / 90)
    assert distance(SyntheticTask(rule=0), SyntheticTask(rule=90), "rule") == 1
    assert distance(SyntheticTask(inputs=0.2), SyntheticTask(inputs=0.7), "inputs") == pytest.approx(0.5)
    assert distance(SyntheticTask(), SyntheticTask(format="list"), "format") == 1
    assert distance(SyntheticTask(), SyntheticTask(seed=9), "format") == 0


@pytest.mark.parametrize("knob", ["rule", "inputs", "format"])
def test_effects_of_a_measure_that_looks_at_one_knob(knob):
    tasks = factorial()
    alone = np.array([[1 - distance(a, b, knob) for b in tasks] for a in tasks])
    found = knob_effects(alone, tasks)
    assert found.effects == pytest.approx({one: float(one == knob) for one in ("rule", "inputs", "format")}, abs=1e-9)
    assert found.explained == pytest.approx(1)
    assert found.pairs == 12 * 11
    noise = np.random.default_rng(0).normal(size=(12, 12))
    assert knob_effects(noise, tasks).explained < 0.1
    alone[0, 1] = np.nan
    assert knob_effects(alone, tasks).pairs == 12 * 11 - 1


def test_what_two_measures_see():
    """tf-idf sees which words occur and not what they mean for the label; LogME on the source's rule sees the rule."""
    tasks = factorial(rules=(0, 45, 90), inputs=(0, 1), formats=("single", "question"))
    rows = [task.rows(120) for task in tasks]
    words = [measures.task_words(row[0] for row in one) for one in rows]
    by_words = knob_effects(measures.tfidf_cosines(words, words), tasks).effects
    assert by_words["inputs"] > 0.5
    assert by_words["format"] > 0.2
    assert abs(by_words["rule"]) < 0.1

    def features(source: SyntheticTask, texts: list[tuple[str, ...]]) -> np.ndarray:
        sums = np.array([cue_sum(text) for text, _ in texts])
        return np.stack([(sums * np.exp(-1j * math.radians(source.rule))).imag, np.ones(len(sums))], axis=1)

    scores = [
        [measures.logme(features(source, one), [int(label == "left") for _, label in one], classes=2) for one in rows]
        for source in tasks
    ]
    by_evidence = knob_effects(scores, tasks).effects
    assert by_evidence["rule"] > 0.9
    assert max(abs(by_evidence["inputs"]), abs(by_evidence["format"])) < 0.1


def test_knobs_out_of_range_and_effects_of_nothing_are_refused():
    for bad in ({"rule": 180}, {"rule": -1}, {"inputs": 1.5}, {"format": "table"}, {"rule": math.nan}):
        with pytest.raises(SettingsError):
            SyntheticTask(**bad)
    tasks = factorial()
    with pytest.raises(DataError, match=r"\(3, 3\) for 12 tasks"):
        knob_effects(np.eye(3), tasks)
    with pytest.raises(DataError, match="is 1 for all pairs"):
        knob_effects(np.ones((12, 12)), tasks)
    with pytest.raises(DataError, match="0 pairs"):
        knob_effects(np.full((12, 12), np.nan), tasks)
    with pytest.raises(DataError, match="0 knobs that vary"):
        knob_effects(np.eye(3), [SyntheticTask(seed=seed) for seed in range(3)])
