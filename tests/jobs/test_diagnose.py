"""anytune diagnose on tiny random bases: what it says of each form of delta, and that it is what the parts say."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import anytune
from anytune.errors import DataError, SettingsError, StoreError, WrongBaseError
from anytune.evaluate.direct_forecast import Forecast, Forecaster, Reuse
from anytune.evaluate.flips import Flips
from anytune.jobs import direct_coefficients
from anytune.jobs.diagnose import diagnose
from anytune.jobs.diagnose_delta import DeltaDiagnosis
from anytune.jobs.load import evaluate
from anytune.models.base import load_base
from tests.conftest import tiny_rows, write_rows
from tests.evaluate.test_direct_forecast import reuses
from tests.models.kinds import make_kind

TRAINING = {"steps": 12, "batch_size": 8, "max_length": 16, "evaluate_every": 12, "keep": "last"}
RATES = {"full": 3e-3, "lora": 1e-2, "prompt_tuning": 1e-1}


@pytest.fixture(scope="module")
def store(tiny_base, other_base, tiny_task, tmp_path_factory):
    """A delta of each form on the old base, and a full one on the new base."""
    place = tmp_path_factory.mktemp("stores") / "store"
    for form, rate in RATES.items():
        anytune.tune(tiny_base, tiny_task, method=form, store=place, name=form,
                     training={**TRAINING, "learning_rate": rate})  # fmt: skip
    anytune.tune(other_base, tiny_task, method="full", store=place, name="fresh",
                 training={**TRAINING, "learning_rate": 3e-3})  # fmt: skip
    return place


@pytest.fixture(scope="module")
def every(tiny_base, other_base, tiny_task, store):
    """All three deltas, looked at once."""
    return diagnose(tiny_base, other_base, delta=list(RATES), task=tiny_task, store=store, points=5,
                    forecaster=Forecaster.fitted(reuses()))  # fmt: skip


def test_scores_are_those_of_the_tuned_model_and_of_direct_reuse_on_validation_rows(
    every, tiny_base, other_base, tiny_task, store
):
    for form, one in zip(RATES, every.deltas, strict=True):
        own = evaluate(form, tiny_task, split="validation", store=store, base=tiny_base)
        [direct] = anytune.recycle(form, other_base, method="direct", task=tiny_task, store=store,
                                    old_base=tiny_base, keep="scores")  # fmt: skip
        assert one.before == pytest.approx(own["accuracy"])
        assert one.after == pytest.approx(direct.manifest.scores["validation"]["accuracy"])
        assert one.drop == pytest.approx(one.before - one.after)
        assert one.rows == one.flips.examples == 6
        assert one.source == "things"


def test_the_path_ends_at_the_two_models_scores(every):
    for one in every.deltas:
        assert len(one.path.points) == 5
        assert one.path.points[0].scores["accuracy"] == pytest.approx(one.before)
        assert one.path.points[-1].scores["accuracy"] == pytest.approx(one.after)
        assert one.path.mode == ("body" if one.form == "full" else "adapter")
        assert one.path_to == "direct reuse"
        assert one.similarity.js.shape == (2, 2)


def test_forms_and_sizes(every, tiny_base, store):
    assert [one.form for one in every.deltas] == ["full", "lora", "prompt"]
    full, lora, prompt = every.deltas
    assert full.size > 0
    assert lora.size > 0
    assert prompt.size is None
    # by hand: the tuned body less the base, tensor by tensor
    base = load_base(tiny_base)
    for form, one in (("full", full), ("lora", lora)):
        tuned = anytune.load(form, store=store, base=tiny_base)[0]
        if form == "lora":
            from anytune.models.peft_models import merge

            tuned = merge(tuned)
        held = base.tensors()
        moved = length = 0.0
        for name, tensor in tuned.state_dict().items():
            bare = base.anatomy.canonical(name)
            if bare in held:
                moved += float((tensor.double() - held[bare].double()).square().sum())
        length = sum(float(tensor.double().square().sum()) for tensor in held.values())
        assert one.size == pytest.approx((moved / length) ** 0.5, rel=1e-3)


def test_onto_the_same_base_nothing_changes(tiny_base, tiny_task, store):
    found = diagnose(tiny_base, tiny_base, delta=["full", "lora"], task=tiny_task, store=store, points=3,
                     forecaster=Forecaster.fitted(reuses()))  # fmt: skip
    assert found.distance.whole.l2 == 0
    for one in found.deltas:
        assert one.disagreement == 0
        assert one.drop == 0
        assert one.path.moved == 0
        assert one.path.barrier == 0
        assert (one.similarity.js == 1).all()
        assert one.forecast.drop == 0


def test_what_was_measured_decides_and_the_forecast_only_where_it_cannot():
    """An oracle by hand: of 200 texts 40 turn wrong and 10 turn right, so 15 points are lost, give or take 5.4."""

    def one(negative, positive, drop, forecast=None, metric="accuracy", texts=200):
        found = Flips(examples=texts, old_right=120, new_right=120 - negative + positive, negative=negative,
                      positive=positive, changed=negative + positive)  # fmt: skip
        return DeltaDiagnosis(
            reference="d", form="full", task="t", metric=metric, size=0.1, refusal=None, flips=found, before=0.6,
            after=0.6 - drop, forecast=forecast,
        )  # fmt: skip

    low, high = one(40, 10, 0.15).measured
    per_text = np.array([1.0] * 40 + [-1.0] * 10 + [0.0] * 150)
    assert (high - low) / 2 == pytest.approx(1.645 * per_text.std() / np.sqrt(200))
    assert (low + high) / 2 == pytest.approx(0.15)
    safe = Forecast("texts", 0.0, -0.01, 0.005, 0.9, 9, 9)
    assert one(40, 10, 0.15, safe).verdict == "will not do"
    assert one(0, 0, 0.0).verdict == "will do"
    assert one(0, 0, 0.0, texts=20).verdict == "undecided"  # that none of 20 turned says little about one of 100
    assert one(3, 2, 0.005).verdict == "undecided"
    assert one(3, 2, 0.005, safe).verdict == "will do"
    assert one(40, 10, 0.15, metric="pearson").measured is None


def test_of_f1_the_interval_is_that_of_f1_and_not_of_right_answers(tiny_base, other_base, tiny_task, store):
    """An oracle by hand: diagnose without each of the texts in turn."""
    anytune.tune(tiny_base, tiny_task, store=store, name="begun", training={**TRAINING, "learning_rate": 1e-4})

    def one(task):
        return diagnose(tiny_base, other_base, delta="begun", task=task, store=store, points=0).deltas[0]

    task = anytune.load_task(tiny_task, metric="macro_f1")
    rows, whole = task.validation, one(task)
    drops = [one(task.with_rows(validation=rows[:place] + rows[place + 1 :])).drop for place in range(len(rows))]
    assert len(set(drops)) > 1  # else any error would do
    assert whole.error == pytest.approx(np.std(drops) * np.sqrt(len(rows) - 1))
    assert whole.measured[1] - whole.drop == pytest.approx(1.645 * max(whole.error, 1 / len(rows)))
    assert one(tiny_task).error is None
    assert one(task.with_rows(validation=rows[:1])).measured is None  # of one text nothing is known


def test_without_a_task_the_rows_stored_beside_the_delta_are_read(tiny_base, other_base, tiny_task, store):
    stored, given = (
        diagnose(tiny_base, other_base, delta="full", task=task, store=store, points=0).deltas[0]
        for task in (None, tiny_task)
    )
    assert stored.source == "stored sample"
    assert (stored.before, stored.after, stored.disagreement) == (given.before, given.after, given.disagreement)
    assert stored.path is None


def test_texts_without_labels_give_disagreement_and_a_forecast_and_no_scores(tiny_base, other_base, tiny_task, store):
    rows = [text for text, _ in tiny_rows(60)]
    [one] = diagnose(tiny_base, other_base, delta="full", texts=rows, store=store,
                     forecaster=Forecaster.fitted(reuses())).deltas  # fmt: skip
    assert one.rows == 60
    models = [anytune.load("full", store=store, base=tiny_base)[0], None]
    [direct] = anytune.recycle("full", other_base, method="direct", task=tiny_task, store=store, old_base=tiny_base)
    models[1], tokenizer = anytune.load(direct, store=store, base=other_base)
    with torch.no_grad():
        batch = tokenizer(rows, return_tensors="pt", padding=True, truncation=True, max_length=16)
        answers = [model(**batch).logits.argmax(dim=-1).numpy() for model in models]
    assert one.disagreement == pytest.approx(np.mean(answers[0] != answers[1]))
    assert one.before is None
    assert one.path is None
    assert one.forecast.kind == "texts"
    assert "no path: losses need labels" in one.notes


def test_a_delta_tuned_on_the_new_base_is_the_other_end_of_the_path(tiny_base, other_base, tiny_task, store):
    [one] = diagnose(tiny_base, other_base, delta="lora", task=tiny_task, fresh="fresh", store=store, points=3).deltas
    assert one.path_to.startswith("fresh-")
    # an adapter at one end and a full difference at the other: both as plain weights
    assert one.path.mode == "body"
    fresh = evaluate("fresh", tiny_task, split="validation", store=store, base=other_base)
    assert one.path.points[-1].scores["accuracy"] == pytest.approx(fresh["accuracy"])


def test_bases_of_another_shape_are_compared_and_the_delta_is_refused_with_reasons(
    tiny_base, tiny_task, tmp_path, store
):
    deeper = make_kind("bert", tmp_path / "deeper", hidden_size=16)
    [one] = (found := diagnose(tiny_base, deeper, delta="full", task=tiny_task, store=store)).deltas
    assert found.distance.apart
    assert found.distance.config["hidden_size"] == (32, 16)
    assert one.verdict == "impossible"
    assert one.refusal
    assert one.before is not None
    assert one.after is None
    assert one.forecast is None


def test_without_texts_weights_are_looked_at_all_the_same(tiny_base, other_base, tiny_task, tmp_path):
    anytune.tune(tiny_base, tiny_task, store=tmp_path / "store", training=TRAINING, keep_sample=False, name="bare")
    [one] = diagnose(tiny_base, other_base, delta="bare", store=tmp_path / "store",
                     forecaster=Forecaster.fitted(reuses())).deltas  # fmt: skip
    assert one.rows == 0
    assert one.disagreement is None
    assert one.forecast.kind == "distance"


def test_what_does_not_belong_together_is_refused_before_anything_is_computed(
    tiny_base, other_base, tiny_task, tmp_path, store
):
    with pytest.raises(WrongBaseError, match="belongs to base"):
        diagnose(tiny_base, other_base, delta="fresh", store=store)
    with pytest.raises(WrongBaseError, match="belongs to base"):
        diagnose(tiny_base, other_base, delta="full", fresh="lora", store=store)
    with pytest.raises(DataError, match="a task and texts"):
        diagnose(tiny_base, other_base, delta="full", task=tiny_task, texts=["a"], store=store)
    with pytest.raises(DataError, match="no --delta"):
        diagnose(tiny_base, other_base, fresh="fresh", store=store)
    with pytest.raises(SettingsError, match="points = 1"):
        diagnose(tiny_base, other_base, points=1)
    with pytest.raises(StoreError, match="nothing"):
        diagnose(tiny_base, other_base, delta="nothing", store=store)
    others = write_rows(tmp_path / "others.csv", [(text, f"x{label}") for text, label in tiny_rows()])
    with pytest.raises(DataError, match="unknown label 'xanimal'"):
        diagnose(tiny_base, other_base, delta="full", task=others, store=store)


def test_no_store_is_made(tiny_base, other_base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = diagnose(tiny_base, other_base)
    assert not found.deltas
    assert not list(tmp_path.iterdir())


def test_a_record_is_json_and_a_delta_is_a_row_to_learn_from(every):
    record = json.loads(json.dumps(every.record(), allow_nan=False))
    assert [one["form"] for one in record["deltas"]] == ["full", "lora", "prompt"]
    row = every.deltas[0].reuse("tiny", 0.3)
    assert Reuse.of_line({"reuse": json.loads(json.dumps(row.record()))}) == row
    assert row.drop == every.deltas[0].drop
    assert replace(every.deltas[0], metric="perplexity").reuse("tiny", 0.3).drop is None


def test_coefficients_are_fitted_from_files_of_lines_by_a_command(tmp_path, capsys):
    lines = tmp_path / "past" / "reuses.jsonl"
    lines.parent.mkdir()
    lines.write_text("".join(json.dumps({"reuse": row.record()}) + "\n" for row in reuses()), encoding="utf-8")
    outs = [tmp_path / name for name in ("a.json", "b.json")]
    for out in outs:
        assert direct_coefficients.main([str(lines), "--out", str(out)]) == 0
    assert outs[0].read_bytes() == outs[1].read_bytes()
    found = Forecaster.loads(outs[0].read_text(encoding="utf-8"))
    assert found.source == "past"
    assert found.models["texts"].reuses == 120
    assert "left out one at a time" in capsys.readouterr().out
    lines.write_text('{"arm": "fresh"}\n', encoding="utf-8")
    assert direct_coefficients.main([str(lines), "--out", str(outs[0])]) == 2
