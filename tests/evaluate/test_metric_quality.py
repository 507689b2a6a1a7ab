from __future__ import annotations

import itertools
import math
import re
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anytune.errors import DataError
from anytune.evaluate.metric_quality import average_ranks, evaluate_metric, gain, kendall, ndcg, regret, spearman

#: small whole numbers, so that ties are common
COLUMN = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=9)


def column(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    left, right = np.array(pairs, dtype=float).T
    return left, right


@given(COLUMN)
@settings(max_examples=150, deadline=None)
def test_rank_correlations_equal_scipy_with_ties(pairs):
    statistics = pytest.importorskip("scipy.stats")
    a, b = column(pairs)
    np.testing.assert_array_equal(average_ranks(a), statistics.rankdata(a))
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert math.isnan(spearman(a, b))
        assert math.isnan(kendall(a, b))
        return
    assert spearman(a, b) == pytest.approx(statistics.spearmanr(a, b).statistic, abs=1e-12)
    assert kendall(a, b) == pytest.approx(statistics.kendalltau(a, b).statistic, abs=1e-12)


@given(COLUMN, st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_ndcg_equals_scikit_learn_on_truth_from_0_to_1(pairs, k):
    metrics = pytest.importorskip("sklearn.metrics")
    predicted, truth = column(pairs)
    found = ndcg(predicted, truth, k)
    if len(set(truth)) == 1:
        assert found == 1.0
    else:
        gains = (truth - truth.min()) / (truth.max() - truth.min())
        assert found == pytest.approx(metrics.ndcg_score([gains], [predicted], k=k), abs=1e-12)


@given(COLUMN.filter(lambda pairs: len(pairs) <= 6), st.data())
@settings(max_examples=60, deadline=None)
def test_regret_is_the_mean_over_all_orders_of_tied_sources(pairs, data):
    predicted, truth = column(pairs)
    k = data.draw(st.integers(1, len(pairs)))
    expected = []
    for order in itertools.permutations(range(len(truth))):
        if all(predicted[a] >= predicted[b] for a, b in itertools.pairwise(order)):
            expected.append(truth.max() - max(truth[place] for place in order[:k]))
    assert regret(predicted, truth, k) == pytest.approx(np.mean(expected), abs=1e-12)


def drawn(sources: int = 12, targets: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return draw.normal(size=(sources, targets)), draw.normal(size=(sources, targets))


def test_a_perfect_measure():
    _, truth = drawn()
    found = evaluate_metric(np.exp(truth), truth, k=(1, 2, 5))  # only the order counts
    assert found.spearman.mean == pytest.approx(1)
    assert found.kendall.mean == pytest.approx(1)
    assert all(one.mean == pytest.approx(1) for one in found.ndcg.values())
    assert all(one.mean == 0 for one in found.regret.values())
    assert found.p == pytest.approx(1 / 1001)
    assert found.over_random is not None
    assert found.over_random.outcome == "higher"
    assert found.over_random.mean == pytest.approx((truth.max(axis=0) - truth.mean(axis=0)).mean())


def test_a_random_measure_is_near_0_and_its_p_is_no_rarer_than_chance():
    means, p = [], []
    for seed in range(40):
        found = evaluate_metric(*drawn(seed=seed), permutations=99, resamples=10)
        means.append(found.spearman.mean)
        p.append(found.p)
    assert abs(np.mean(means)) < 3 / math.sqrt(40 * 6 * 11)
    assert np.mean(np.array(p) <= 0.05) <= 0.15


def test_a_measure_that_only_likes_sources_is_tested_by_exchanging_sources():
    """Equal columns on both sides are one observation, however many targets there are."""
    guess, truth = (np.repeat(side[:, :1], 8, axis=1) for side in drawn(sources=5, seed=3))
    found = evaluate_metric(guess, truth, permutations=999)
    exact = [abs(spearman(guess[list(order), 0], truth[:, 0])) for order in itertools.permutations(range(5))]
    share = np.mean(np.array(exact) >= abs(spearman(guess[:, 0], truth[:, 0])) - 1e-12)
    assert found.p == pytest.approx(share, abs=0.06)


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_exchanging_sources_counts_what_one_order_after_another_would(seed):
    """Ties, pairs without a number and constant columns among them; more orders than are compared at once."""
    draw = np.random.default_rng(seed)
    guess, truth = (draw.integers(0, 4, (5, 3)).astype(float) for _ in range(2))
    guess[draw.random((5, 3)) < 0.2] = math.nan
    truth[:, 0] = truth[0, 0] if seed % 3 == 0 else truth[:, 0]

    def mean_of_columns(order):
        moved, found = guess[order], []
        for place in range(3):
            own = np.isfinite(moved[:, place])
            found += [spearman(moved[own, place], truth[own, place])] if own.any() else []
        known = [one for one in found if not math.isnan(one)]
        return np.mean(known) if known else math.nan

    with mock.patch("anytune.evaluate.metric_quality._COMPARED", 5 * 3 * 5 * 7):
        found = evaluate_metric(guess, truth, permutations=40)
    orders = np.random.default_rng(0)
    observed = mean_of_columns(np.arange(5))
    beyond = [abs(mean_of_columns(orders.permutation(5))) >= abs(observed) - 1e-12 for _ in range(40)]
    assert found.p == (None if math.isnan(observed) else pytest.approx((1 + sum(beyond)) / 41, abs=1e-12))


def test_regret_falls_with_k_and_that_of_a_constant_measure_is_that_of_random_sources():
    guess, truth = drawn()
    ks = tuple(range(1, 13))
    found = evaluate_metric(guess, truth, k=ks, permutations=0)
    for one in found.targets:
        values = [one.regret[k] for k in ks]
        assert values == sorted(values, reverse=True)
        assert values[-1] == 0
        assert one.random_regret[1] == pytest.approx(one.oracle - one.random)
    same = evaluate_metric(np.zeros_like(truth), truth, k=ks, permutations=0)
    assert same.regret == same.random_regret
    assert [same.spearman.mean, same.p, same.pooled] == [None, None, None]
    assert same.undefined == 6


def test_a_constant_column_is_counted_and_left_out_not_0():
    guess, truth = drawn(targets=3)
    guess[:, 1] = 0.5
    found = evaluate_metric(guess, truth, permutations=0)
    assert found.undefined == 1
    assert found.targets[1].spearman is None
    assert found.targets[1].kendall is None
    assert found.spearman.n == 2
    assert found.spearman.mean == pytest.approx(np.mean([spearman(guess[:, t], truth[:, t]) for t in (0, 2)]))


def test_self_pairs_and_missing_pairs_are_out_and_only_the_missing_are_counted():
    guess, truth = drawn()
    own = np.eye(12, 6, dtype=bool)
    marked, whole = guess.copy(), truth.copy()
    marked[own], whole[own] = 1e9, 1e9
    guess[own], truth[own] = 0, 0
    marked[7, 2], whole[8, 2] = np.nan, np.inf
    guess[7, 2] = truth[8, 2] = np.nan
    found = evaluate_metric(marked, whole, own, sizes=range(12))
    assert found == evaluate_metric(guess, truth, own, sizes=range(12))
    assert [one.sources for one in found.targets] == [11, 11, 9, 11, 11, 11]
    assert found.left_out == 2
    keep = [place for place in range(12) if place not in (2, 7, 8)]
    assert found.targets[2].spearman == pytest.approx(spearman(guess[keep, 2], truth[keep, 2]))
    assert found.targets[2].size == truth[11, 2]
    assert evaluate_metric(guess, truth).targets[0].sources == 12


def test_intervals_hold_the_mean_and_families_widen_them():
    guess, truth = drawn(targets=6, seed=5)
    for side in (guess, truth):
        side[:, 3:] = side[:, :3]  # the same three targets twice
    alone = evaluate_metric(guess, truth, permutations=0)
    as_families = evaluate_metric(guess, truth, permutations=0, families=[0, 1, 2, 0, 1, 2])
    once = evaluate_metric(guess[:, :3], truth[:, :3], permutations=0)
    assert alone.spearman.mean == pytest.approx(as_families.spearman.mean)
    assert alone.spearman.low <= alone.spearman.mean <= alone.spearman.high
    assert (as_families.spearman.low, as_families.spearman.high) == pytest.approx(
        (once.spearman.low, once.spearman.high)
    )
    assert as_families.over_random.n == 3
    assert alone.spearman.high - alone.spearman.low < once.spearman.high - once.spearman.low


def test_against_the_largest_source():
    guess, truth = drawn()
    sizes = np.arange(12)
    found = evaluate_metric(truth, truth, sizes=sizes, permutations=0)
    assert found.over_size is not None
    assert found.over_size.mean == pytest.approx((truth.max(axis=0) - truth[11]).mean())
    assert evaluate_metric(np.tile(sizes[:, None], 6), truth, sizes=sizes, permutations=0).over_size.mean == 0
    assert evaluate_metric(guess, truth, permutations=0).over_size is None


def test_one_target_has_a_mean_and_no_interval_and_a_k_beyond_the_sources_no_number():
    guess, truth = drawn(sources=4, targets=1)
    found = evaluate_metric(guess, truth, k=(1, 9))
    assert (found.spearman.n, found.spearman.low) == (1, None)
    assert found.regret[9].mean is None


def test_the_same_input_gives_the_same_numbers_and_gain_moves_no_order_within_a_target():
    guess, truth = drawn()
    found = evaluate_metric(guess, truth, seed=4)
    assert found == evaluate_metric(guess, truth, seed=4)
    moved = evaluate_metric(guess, gain(truth, np.arange(6.0)), seed=4)
    assert moved.spearman == found.spearman
    assert moved.p == found.p
    assert moved.pooled != found.pooled
    assert moved.regret[1].mean == pytest.approx(found.regret[1].mean)
    assert moved.ndcg[3].mean == pytest.approx(found.ndcg[3].mean)


@pytest.mark.parametrize(
    ("predicted", "truth", "more", "said"),
    [
        (np.zeros((3, 2)), np.zeros((2, 3)), {}, "(3, 2), (2, 3)"),
        (np.zeros(3), np.zeros(3), {}, "(3,)"),
        (np.eye(2), np.eye(2), {"self_pairs": np.eye(2)}, "no target has two sources"),
        (np.full((3, 2), np.nan), np.zeros((3, 2)), {}, "no target has two sources"),
        (np.zeros((3, 2)), np.zeros((3, 2)), {"sizes": [1, 2]}, "2 sizes for 3 sources"),
        (np.zeros((3, 2)), np.zeros((3, 2)), {"families": "abc"}, "3 families for 2 targets"),
    ],
)
def test_what_cannot_be_compared_is_said(predicted, truth, more, said):
    with pytest.raises(DataError, match=re.escape(said)):
        evaluate_metric(predicted, truth, **more)
