"""Scores of a run beyond its own test split: other tasks, and probes over the frozen body."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import anytune
from anytune.data.batches import encode_task
from anytune.data.tasks import load_task
from anytune.engine.prediction import pooled_features
from anytune.engine.runtime import make_runtime
from anytune.errors import DataError, SettingsError
from anytune.evaluate.probing import Features, probe
from anytune.jobs import extra_scores
from anytune.jobs.extra_scores import of_our_labels
from anytune.models.base import load_base
from tests.conftest import tiny_rows, write_rows

TRAINING = {"steps": 6, "batch_size": 8, "max_length": 32, "precision": "fp32", "learning_rate": 1e-3}


@pytest.fixture
def elsewhere(tmp_path):
    """Other rows with the same labels under two names, and one more."""
    rows = [(text, {"animal": "beast"}.get(label, label)) for text, label in tiny_rows(60, seed=5)]
    rows += [(f"{text} by", "other") for text, _ in tiny_rows(20, seed=6)]
    return write_rows(tmp_path / "elsewhere.csv", rows)


MAP = {"elsewhere": {"beast": "animal", "other": None}}


def test_a_run_is_scored_on_another_task_as_evaluate_scores_it(tiny_base, tiny_task, elsewhere, tmp_path):
    [run] = anytune.tune(
        tiny_base, tiny_task, store=tmp_path / "s", training=TRAINING, score_on=[elsewhere], label_map=MAP
    )
    kept = [(text, {"beast": "animal"}.get(label, label)) for text, label in
            ((row.text, load_task(elsewhere).label_names[row.label]) for row in load_task(elsewhere).test)
            if label != "other"]  # fmt: skip
    same = write_rows(tmp_path / "mapped.csv", kept)
    expected = anytune.score(run, {"source": str(tiny_task), "test": str(same)}, split="test", store=tmp_path / "s")
    assert run.manifest.scores["test:elsewhere"] == expected
    assert len(kept) < len(load_task(elsewhere).test)


def test_extra_scores_change_neither_the_weights_nor_the_scores_of_a_run(tiny_base, tiny_task, other_task, tmp_path):
    [plain] = anytune.tune(tiny_base, tiny_task, store=tmp_path / "a", training=TRAINING)
    [more] = anytune.tune(
        tiny_base, tiny_task, store=tmp_path / "a", training=TRAINING, probe_on=[other_task], score_on=[other_task]
    )
    assert more.manifest.run != plain.manifest.run
    assert more.manifest.files == plain.manifest.files
    assert {key: more.manifest.scores[key] for key in ("validation", "test")} == plain.manifest.scores
    assert set(more.manifest.scores) == {"validation", "test", "test:more", "probe:more", "probe_base:more"}
    [again] = anytune.tune(tiny_base, tiny_task, store=tmp_path / "a", training=TRAINING)
    assert again.id == plain.id


@pytest.fixture
def other_task(tmp_path):
    return write_rows(tmp_path / "more.csv", tiny_rows(90, seed=9))


def test_the_recipe_in_the_manifest_makes_the_same_scores_again(tiny_base, tiny_task, elsewhere, tmp_path):
    [run] = anytune.tune(
        tiny_base, tiny_task, store=tmp_path / "a", training=TRAINING, score_on=[str(elsewhere)], label_map=MAP,
        probe_on=[{"source": str(elsewhere), "limit": 20}], train_sizes=[24], subset_seed="run", seeds=[3],
    )  # fmt: skip
    assert run.manifest.recipe["subset_seed"] == 3
    assert "/" not in json.dumps(run.manifest.recipe["score_on"])
    local = [f"base={tiny_base}", f"task={tiny_task}", f"score_on=[{elsewhere}]", f"probe_on.0.source={elsewhere}"]
    [again] = anytune.run(run.folder, [*local, f"store={tmp_path / 'b'}"])
    assert again.manifest.run == run.manifest.run
    assert again.manifest.scores == run.manifest.scores


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"score_on": ["X"]}, DataError, ["'elsewhere'", "beast", "other", "animal, plant, stone"]),
        ({"score_on": ["X"], "label_map": {"elsewhere": {"beast": "animl", "other": None}}}, DataError, ["'animl'"]),
        ({"score_on": ["X"], "label_map": {"elsewhere": {"best": "animal"}}}, DataError, ["'best'", "beast"]),
        ({"score_on": ["X"], "label_map": {"elswhere": {}}}, SettingsError, ["elswhere", "elsewhere"]),
        ({"score_on": ["X", "X"], "label_map": MAP}, SettingsError, ["twice"]),
        ({"score_on": ["N"]}, SettingsError, ["regression", "classification"]),
        ({"probe_on": ["G"]}, SettingsError, ["generation"]),
        ({"label_map": MAP}, SettingsError, ["elsewhere", "none"]),
        ({"score_on": ["X"], "label_map": {"elsewhere": dict.fromkeys(["beast", "plant", "stone", "other"])}},
         DataError, ["no test row"]),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_refused_before_anything_is_trained(
    given, error, words, tiny_base, tiny_task, elsewhere, tmp_path
):
    numbers = write_rows(tmp_path / "numbers.csv", [(text, f"{n / 7:.4f}") for n, (text, _) in enumerate(tiny_rows())])
    texts = write_rows(tmp_path / "texts.csv", tiny_rows(), header=("prompt", "response"))
    files = {"X": elsewhere, "N": numbers, "G": texts}
    given = {
        key: [files[name] for name in value] if isinstance(value, list) else value for key, value in given.items()
    }
    with pytest.raises(error) as caught:
        anytune.tune(tiny_base, tiny_task, store=tmp_path / "s", training=TRAINING, **given)
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "s").exists()


def test_numbers_need_no_map_and_are_scored_in_the_metric_of_the_tuned_task(tiny_base, tmp_path):
    files = [
        write_rows(tmp_path / f"{name}.csv", [(text, f"{len(text) / 7:.4f}") for text, _ in tiny_rows(60, seed)])
        for seed, name in enumerate(("one", "two"))
    ]
    other = {"source": files[1], "kind": "regression"}
    [run] = anytune.tune(
        tiny_base, files[0], store=tmp_path / "s", training=TRAINING, metric="spearman", score_on=[other],
        probe_on=[other], method="lora",
    )  # fmt: skip
    assert list(run.manifest.scores["test:two"]) == list(run.manifest.scores["test"])
    assert "pearson" in run.manifest.scores["probe:two"]


def test_tags_are_renamed_one_by_one():
    from anytune.data.tasks import Example, Task

    def task(name: str, names, rows) -> Task:
        made = tuple(Example(" ".join("w" * len(tags)), None, tags, ("w",) * len(tags)) for tags in rows)
        return Task(name, "token-classification", "accuracy_tokens", made, made, made, names, ("t",), "l", None, name)

    ours, theirs = task("ours", ("O", "B-X"), [(0, 1)]), task("theirs", ("B-X", "B-Y", "O"), [(0, 2), (1, 2), (2, 2)])
    assert [row.label for row in of_our_labels(theirs, ours, {"B-Y": "B-X"}).test] == [(1, 0), (1, 0), (0, 0)]
    assert [row.label for row in of_our_labels(theirs, ours, {"B-Y": None}).test] == [(1, 0), (0, 0)]


def test_features_are_means_over_the_tokens_of_each_text_alone(tiny_base, tiny_task):
    base, task = load_base(tiny_base), load_task(tiny_task)
    model, _ = base.task_model("classification", task.label_names, 0)
    encoded = encode_task(task.test, base.tokenizer(), 32, None)
    found = pooled_features(model, base.anatomy, encoded, 5, make_runtime("fp32"))
    for row, ids in enumerate(encoded.input_ids):
        with torch.no_grad():
            hidden = model.bert(input_ids=torch.tensor([ids])).last_hidden_state[0]
        torch.testing.assert_close(found[row], hidden.mean(dim=0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("classes", [3, None])
def test_a_probe_is_ridge_regression_with_the_best_penalty(classes):
    draw = np.random.default_rng(0)
    weights = draw.normal(size=(5, 3))

    def split(rows: int) -> Features:
        inputs = np.concatenate([draw.normal(size=(rows, 5)) * [1, 10, 0.1, 1, 1], np.full((rows, 1), 7.0)], axis=1)
        outputs = inputs[:, :5] @ weights + draw.normal(size=(rows, 3))
        return Features(inputs.astype(np.float32), outputs.argmax(axis=1) if classes else outputs[:, 0])

    def better(predicted, gold) -> float:
        return float((predicted == gold).mean()) if classes else -float(((predicted - gold) ** 2).mean())

    train, validation, test = split(40), split(30), split(20)
    found = probe(train, validation, test, classes=classes, better=better)

    centre, scale = train.inputs.astype(float).mean(0)[:5], train.inputs.astype(float).std(0)[:5]
    standard = [(one.inputs.astype(float)[:, :5] - centre) / scale for one in (train, validation, test)]
    targets = np.eye(3)[train.labels] if classes else train.labels[:, None]
    tried = {}
    for penalty in [10.0**power for power in range(-2, 6)]:
        solved = np.linalg.solve(
            standard[0].T @ standard[0] + penalty * np.eye(5), standard[0].T @ (targets - targets.mean(0))
        )
        looks, tests = (one @ solved + targets.mean(0) for one in standard[1:])
        answer = [one.argmax(1) if classes else one[:, 0] for one in (looks, tests)]
        tried[penalty] = (better(answer[0], validation.labels), answer[1])
    chosen = max(tried, key=lambda penalty: (tried[penalty][0], penalty))
    assert found.penalty == chosen
    np.testing.assert_allclose(found.predicted, tried[chosen][1], rtol=1e-6, atol=1e-6)


def test_an_untrained_body_probes_as_the_base_does_and_its_control_is_made_once(
    tiny_base, tiny_task, other_task, tmp_path, monkeypatch
):
    made = []
    real = extra_scores.untouched
    monkeypatch.setattr(extra_scores, "untouched", lambda base: made.append(1) or real(base))
    runs = anytune.tune(
        tiny_base, tiny_task, store=tmp_path / "s", training={**TRAINING, "learning_rate": 1e-12, "weight_decay": 0},
        probe_on=[other_task], seeds=[0, 1],
    )  # fmt: skip
    for run in runs:
        assert run.manifest.scores["probe:more"] == run.manifest.scores["probe_base:more"]
    assert len(made) == 1
    [trained] = anytune.tune(
        tiny_base, tiny_task, store=tmp_path / "s", training={**TRAINING, "learning_rate": 5e-2, "keep": "last"},
        probe_on=[other_task],
    )  # fmt: skip
    assert trained.manifest.scores["probe_base:more"] == runs[0].manifest.scores["probe_base:more"]
    assert trained.manifest.scores["probe:more"] != trained.manifest.scores["probe_base:more"]


def test_a_probe_reads_a_part_of_a_large_task(monkeypatch, tiny_task):
    monkeypatch.setattr(extra_scores, "PROBE_TRAIN", 12)
    monkeypatch.setattr(extra_scores, "PROBE_TEST", 6)
    task = load_task(tiny_task)
    cut = extra_scores._cut(task)
    assert (len(cut.train), len(cut.test)) == (12, 6)
    assert len(cut.validation) <= 12
    assert sorted(row.label for row in cut.test) == [0, 0, 1, 1, 2, 2]
    assert len({cut.content, task.content, task.subset(train_size=12).content}) == 3
