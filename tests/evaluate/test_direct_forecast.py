from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anytune.errors import DataError
from anytune.evaluate.direct_forecast import Forecaster, Reuse, coverage, delta_size, fit, shipped
from anytune.jobs.direct_coefficients import fit_from


def reuses(upgrades: int = 10, each: int = 12, seed: int = 0, noise: float = 0.1) -> list[Reuse]:
    """Upgrades at several distances whose drop is half the disagreement, give or take."""
    draw = np.random.default_rng(seed)
    found = []
    for upgrade in range(upgrades):
        moved = 0.02 * (upgrade + 1)
        for task in range(each):
            changed = moved * draw.uniform(0.5, 1.5)
            drop = 0.5 * changed + noise * (0.5 * changed + 0.01) * draw.standard_normal()
            found.append(Reuse(f"u{upgrade}", moved, 0.1, changed, drop, f"t{task}", "full"))
    return found


def test_a_base_that_did_not_move_is_forecast_to_cost_nothing():
    model = fit(reuses(), "texts")
    said = model.forecast(Reuse("none", 0.0, 0.1, 0.0))
    assert said is not None
    assert said.drop == 0
    assert said.low is not None
    assert said.low <= 0 <= said.high


def test_the_law_behind_the_rows_is_found_again_with_more_disagreement_never_predicting_less():
    model = fit(reuses(noise=0.0), "texts")
    assert model.forecast(Reuse("new", 0.1, 0.1, 0.08)).drop == pytest.approx(0.04, abs=0.003)
    drops = [model.forecast(Reuse("new", moved, 0.1, 0.1)).drop for moved in (0.0, 0.1, 0.4)]
    assert drops == sorted(drops)
    assert min(model.weights) >= 0


def test_the_same_rows_in_another_order_give_the_same_model():
    rows = reuses()
    assert fit(rows, "texts") == fit(rows[::-1], "texts")


def test_coverage_over_upgrades_that_were_left_out_is_near_the_level():
    found = coverage(reuses(upgrades=12, each=20), "texts")
    assert found.covered is not None
    assert 0.82 <= found.covered <= 0.98
    assert found.mean_error < found.mean_without / 3
    assert found.bounded == found.reuses == 240


def test_intervals_hold_the_level_on_fresh_reuses_of_the_same_kind():
    """The promise of split-conformal prediction, over many fits."""
    inside = []
    for seed in range(40):
        model = fit(reuses(upgrades=2, each=20, seed=seed), "texts", level=0.8)
        for row in reuses(upgrades=2, each=10, seed=1000 + seed):
            said = model.forecast(row)
            inside.append(said.low <= row.drop <= said.high)
    assert 0.75 <= np.mean(inside) <= 0.9


def test_too_few_reuses_give_a_prediction_without_an_interval_and_no_verdict():
    model = fit(reuses(upgrades=2, each=4), "texts")
    said = model.forecast(Reuse("new", 0.1, 0.1, 0.1))
    assert said.low is None
    assert said.high is None
    assert said.verdict() == "undecided"
    assert said.reuses == 8


def test_the_verdict_needs_the_whole_interval_on_one_side():
    model = fit(reuses(), "texts")
    assert model.forecast(Reuse("new", 0.0, 0.1, 0.0)).verdict(0.05) == "will do"
    assert model.forecast(Reuse("new", 0.5, 0.1, 0.5)).verdict(0.05) == "will not do"
    assert model.forecast(Reuse("new", 0.1, 0.1, 0.1)).verdict(0.05) == "undecided"


def test_without_texts_the_distance_alone_is_used_and_a_prompt_has_no_size():
    forecaster = Forecaster.fitted(reuses())
    assert forecaster.forecast(Reuse("new", 0.1, 0.1, 0.05)).kind == "texts"
    assert forecaster.forecast(Reuse("new", 0.1, 0.1)).kind == "distance"
    assert forecaster.forecast(Reuse("new", 0.1, None)).kind == "distance"
    assert Forecaster({}, {}).forecast(Reuse("new", 0.1)) is None


def test_coefficients_go_to_text_and_back_and_other_text_is_refused():
    forecaster = Forecaster.fitted(reuses(), source="some runs")
    again = Forecaster.loads(forecaster.dumps())
    assert again == forecaster
    assert again.dumps() == forecaster.dumps()
    for text in ("", "[]", '{"models": {"texts": {"x": 1}}, "coverage": {}}'):
        with pytest.raises(DataError, match="no coefficients"):
            Forecaster.loads(text)


def test_what_is_shipped_can_be_read_and_says_what_it_was_learned_from():
    found = shipped()
    for kind, model in found.models.items():
        assert model.kind == kind
        assert model.reuses >= 2
        assert min(model.weights) >= 0
    assert bool(found.models) == bool(found.source)


def test_what_is_shipped_is_what_the_evidence_gives():
    evidence = Path(__file__).resolve().parents[2] / "evidence"
    grids = [evidence / f"recycle-{name}" for name in ("tiny", "chain", "minilm")]
    again, there = fit_from([evidence / "direct-reuse" / "reuses.jsonl", *grids]), shipped()
    assert again.source == there.source
    for kind, model in there.models.items():
        assert again.models[kind].weights == pytest.approx(model.weights)
        assert again.models[kind].quantile == pytest.approx(model.quantile)
        assert again.models[kind].reuses == model.reuses
        assert again.coverage[kind].covered == pytest.approx(there.coverage[kind].covered)


def test_lines_of_a_job_give_reuses_and_others_none():
    row = reuses()[0]
    assert Reuse.of_line({"arm": "direct", "reuse": row.record()}) == row
    assert Reuse.of_line({"arm": "fresh"}) is None
    assert Reuse.of_line({"reuse": {"moved": None}}) is None


def test_rows_that_say_nothing_are_refused():
    with pytest.raises(DataError, match="0 past reuses"):
        fit([Reuse("u", 0.1, 0.1, None, 0.1)], "texts")
    with pytest.raises(DataError, match="1 upgrades"):
        coverage(reuses(upgrades=1), "texts")
    assert delta_size(1.0, 4.0) == 0.25


def test_an_upgrade_unlike_all_others_is_missed_when_it_is_left_out():
    """Its own rows would give it away; the others know nothing of it."""
    rows = reuses(upgrades=9, each=20)
    odd = [replace(row, drop=0.9) for row in reuses(upgrades=1, each=20, seed=5)]
    odd = [replace(row, upgrade="odd") for row in odd]
    found = coverage([*rows, *odd], "texts")
    assert found.covered is not None
    assert found.covered <= 0.9
    alone = fit([*rows], "texts")
    assert all(alone.forecast(row).high < 0.9 for row in odd)
    # nine upgrades of twenty may all be covered, the odd one never
    inside = found.covered * found.bounded
    assert inside <= 180
