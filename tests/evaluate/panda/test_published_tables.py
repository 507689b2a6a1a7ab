"""What the published tables of PANDA (Zhong et al. 2022) say when recomputed, as a test of ``evaluate_metric``.

Numbers only: ``final.csv`` best development scores, ``first_epoch.csv`` those after one epoch, ``predicted.csv`` three
measures (read off the coloured cells of the heat-maps, so good to about 0.002), for 5 models x 21 sources x 9 targets.
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from anytune.evaluate.metric_quality import evaluate_metric, gain

TARGETS = ("CB", "COPA", "WSC", "RTE", "WIC", "CoLA", "MRPC", "STSB", "CoNLL04")
MODELS = ("bert-large", "bert-base", "bert-medium", "bert-small", "bert-tiny")
MEASURES = ("Eavg", "ON", "ours")


@cache
def rows(name: str) -> dict[tuple[str, ...], np.ndarray]:
    with (Path(__file__).parent / name).open(encoding="utf-8", newline="") as handle:
        head, *body = csv.reader(handle)
    keys = len(head) - len(TARGETS)
    assert tuple(head[keys:]) == TARGETS
    return {tuple(row[:keys]): np.array(row[keys:], dtype=float) for row in body}


@cache
def sources() -> tuple[str, ...]:
    return tuple(source for model, measure, source in rows("predicted.csv") if (model, measure) == (MODELS[0], "ours"))


def table(name: str, *key: str) -> np.ndarray:
    """[21 sources, 9 targets]."""
    return np.array([rows(name)[*key, source] for source in sources()])


def self_pairs() -> np.ndarray:
    return np.array([[source == target for target in TARGETS] for source in sources()])


def test_the_tables_are_whole():
    assert len(sources()) == 21
    assert self_pairs().sum() == 9
    for model in MODELS:
        for measure in MEASURES:
            assert (table("predicted.csv", model, measure)[self_pairs()] == 1).all()
    assert {name: len(rows(name)) for name in ("final.csv", "first_epoch.csv", "predicted.csv")} == {
        "final.csv": 5 * (2 + 21 + 21),
        "first_epoch.csv": 5 * 22,
        "predicted.csv": 5 * 3 * 21,
    }


def test_the_headline_is_the_gain_over_vanilla_transfer_from_all_sources():
    gains = {model: table("final.csv", model, "panda") - table("final.csv", model, "pot") for model in MODELS}
    assert np.mean([one.mean() for one in gains.values()]) == pytest.approx(2.273, abs=5e-4)
    assert [round(gains[model].mean(), 1) for model in MODELS] == [4.1, 1.6, 1.9, 1.9, 1.9]


def test_the_largest_gain_is_one_source_that_breaks_two_targets():
    gains = {
        (model, source): row.mean()
        for model in MODELS
        for source, row in zip(
            sources(), table("final.csv", model, "panda") - table("final.csv", model, "pot"), strict=True
        )
    }
    best = max(gains, key=gains.get)
    assert best == ("bert-large", "CoNLL03")
    assert round(gains[best], 1) == 24.1
    broken = dict(zip(TARGETS, rows("final.csv")["bert-large", "pot", "CoNLL03"], strict=True))
    assert (broken["CoLA"], broken["STSB"]) == (0.0, 16.4)


def test_over_plain_prompt_tuning_the_gain_is_smaller_and_an_oracle_source_does_without():
    over, oracle = [], []
    for model in MODELS:
        plain = rows("final.csv")[model, "baseline", "-"]
        over.append(table("final.csv", model, "panda").mean() - plain.mean())
        best = [
            np.where(self_pairs(), -np.inf, table("final.csv", model, arm)).max(axis=0) for arm in ("pot", "panda")
        ]
        oracle.append([one.mean() for one in best])
    assert over == pytest.approx([0.9, 0.9, 1.25, 1.25, 1.3], abs=0.06)
    expected = [(80.8, 80.5), (77.8, 77.2), (73.7, 73.4), (70.9, 70.3), (62.6, 62.7)]
    assert np.array(oracle) == pytest.approx(np.array(expected), abs=0.06)


#: mean over targets of Spearman, self pairs left out, one number a model in the order of ``MODELS``
FIRST_EPOCH = {
    "Eavg": (0.30, 0.31, 0.28, 0.21, 0.16),
    "ON": (0.09, 0.23, 0.26, 0.04, 0.40),
    "ours": (0.21, 0.31, 0.21, 0.23, 0.17),
}
FINAL = {
    "Eavg": (0.12, 0.37, 0.12, 0.15, 0.28),
    "ON": (0.29, 0.24, 0.31, 0.02, 0.29),
    "ours": (0.16, 0.32, 0.04, 0.17, 0.23),
}
#: mean over models: Spearman at the first epoch, the same with self pairs, at the end; pooled over all pairs of a
#: model at the first epoch, and of the gain over a random start there
MEANS = {
    "Eavg": (0.25, 0.32, 0.21, 0.21, 0.22),
    "ON": (0.20, 0.28, 0.23, 0.06, 0.12),
    "ours": (0.23, 0.30, 0.18, 0.19, 0.25),
}


@pytest.mark.parametrize("measure", MEASURES)
def test_spearman_of_the_three_measures(measure):
    found = []
    for place, model in enumerate(MODELS):
        predicted = table("predicted.csv", model, measure)
        first = np.array([rows("first_epoch.csv")[model, source] for source in sources()])
        start = rows("first_epoch.csv")[model, "Random"]
        early = evaluate_metric(predicted, first, self_pairs(), permutations=0, resamples=10)
        kept = evaluate_metric(predicted, first, permutations=0, resamples=10)
        gained = evaluate_metric(predicted, gain(first, start), self_pairs(), permutations=0, resamples=10)
        late = evaluate_metric(predicted, table("final.csv", model, "pot"), self_pairs(), permutations=0, resamples=10)
        assert early.undefined == late.undefined == 0
        assert [one.sources for one in early.targets] == [20] * 9
        assert early.spearman.mean == pytest.approx(FIRST_EPOCH[measure][place], abs=0.006)
        assert late.spearman.mean == pytest.approx(FINAL[measure][place], abs=0.006)
        assert gained.spearman == early.spearman  # a target's own start changes no order within it
        found.append((early.spearman.mean, kept.spearman.mean, late.spearman.mean, early.pooled, gained.pooled))
    assert np.mean(found, axis=0) == pytest.approx(MEANS[measure], abs=0.006)


#: of the final score of vanilla transfer: with the first of tied sources, and with the mean over them
REGRET = {"Eavg": (4.12, 4.14), "ON": (3.22, 3.25), "ours": (3.55, 3.70)}


@pytest.mark.parametrize("measure", MEASURES)
def test_regret_of_the_first_choice(measure):
    found, first_of_ties, random = [], [], []
    for model in MODELS:
        predicted, final = table("predicted.csv", model, measure), table("final.csv", model, "pot")
        quality = evaluate_metric(predicted, final, self_pairs(), permutations=0, resamples=10)
        found.append(quality.regret[1].mean)
        random.append(quality.random_regret[1].mean)
        free = np.where(self_pairs(), -np.inf, final)
        chosen = np.where(self_pairs(), -np.inf, predicted).argmax(axis=0)
        first_of_ties.append((free.max(axis=0) - free[chosen, np.arange(9)]).mean())
    assert (np.mean(first_of_ties), np.mean(found)) == pytest.approx(REGRET[measure], abs=0.006)
    assert np.mean(random) == pytest.approx(4.58, abs=0.006)


def test_what_panda_scores_hardly_depends_on_the_source():
    """Rank correlation of the authors' measure with PANDA's final score; spread over sources of two targets."""
    found = [
        evaluate_metric(
            table("predicted.csv", model, "ours"), table("final.csv", model, "panda"), self_pairs(),
            permutations=0, resamples=10,
        ).spearman.mean
        for model in MODELS
    ]  # fmt: skip
    assert found == pytest.approx([0.10, 0.05, 0.01, 0.10, 0.01], abs=0.006)
    spread = {arm: table("final.csv", "bert-large", arm).std(axis=0) for arm in ("pot", "panda")}
    cola, stsb = TARGETS.index("CoLA"), TARGETS.index("STSB")
    assert spread["pot"][cola] > 20 * spread["panda"][cola]
    assert spread["pot"][stsb] > 20 * spread["panda"][stsb]
