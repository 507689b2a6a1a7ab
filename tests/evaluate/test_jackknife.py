"""The error of a score over its texts, beside formulas that are known."""

import math

import numpy as np
import pytest

from anytune.evaluate.jackknife import jackknife_error
from anytune.metrics import macro_f1


def test_of_a_mean_it_is_the_usual_standard_error():
    values = np.random.default_rng(0).normal(size=60)
    found = jackknife_error(lambda kept: values[kept].mean(), 60)
    assert found == pytest.approx(values.std(ddof=1) / math.sqrt(60), rel=1e-12)


def test_of_the_loss_of_f1_it_is_what_other_draws_of_texts_spread_by():
    """Against the truth: the same two models on five hundred other samples of texts."""
    draw = np.random.default_rng(1)

    def sample():
        gold = draw.integers(0, 3, 300)
        before, after = (np.where(draw.random(300) < right, gold, draw.integers(0, 3, 300)) for right in (0.7, 0.5))
        return gold, before, after

    def lost(gold, before, after):
        return macro_f1(before, gold) - macro_f1(after, gold)

    truth = np.std([lost(*sample()) for _ in range(500)])
    samples = [sample() for _ in range(20)]
    errors = [jackknife_error(lambda kept, own=own: lost(*(side[kept] for side in own)), 300) for own in samples]
    assert np.mean(errors) == pytest.approx(truth, rel=0.1)


def test_texts_sorted_by_label_spread_over_all_groups():
    gold = np.repeat(np.arange(4), 50)
    seen = []
    jackknife_error(lambda kept: seen.append(np.bincount(gold[kept], minlength=4).min()) or 0.0, 200, groups=10)
    assert seen == [45] * 10


@pytest.mark.parametrize("texts", [0, 1])
def test_of_fewer_than_two_texts_nothing_is_known(texts):
    assert jackknife_error(lambda kept: 0.5, texts) == math.inf


@pytest.mark.parametrize("undefined", [None, math.nan])
def test_where_it_is_undefined_without_some_texts_nothing_is_known(undefined):
    assert jackknife_error(lambda kept: 0.5 if 3 in kept else undefined, 10) == math.inf
