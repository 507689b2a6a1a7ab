"""Separation against naive oracles: all pairs compared, sets of Python strings."""

from __future__ import annotations

import random
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anytune.data.separation import (
    jaccard,
    merge_groups,
    name_groups,
    near_duplicate_clusters,
    normalise,
    overlap,
    shingles,
    signatures,
    split_by_group,
)
from anytune.errors import DataError

WORDS = ["river", "stone", "maple", "lantern", "copper", "window", "garden", "winter", "silver", "thunder"]
WORDS += ["marble", "orchard", "candle", "meadow", "harbour"]


def naive_set(text: str) -> set[str]:
    clean = normalise(text)
    return {clean[start : start + 5] for start in range(max(1, len(clean) - 4))}


def naive_jaccard(left: str, right: str) -> float:
    a, b = naive_set(left), naive_set(right)
    return len(a & b) / len(a | b)


def naive_clusters(texts: list[str], threshold: float) -> list[set[int]]:
    """Connected components by comparing all pairs, merging sets until nothing changes."""
    clusters = [{index} for index in range(len(texts))]
    for left in range(len(texts)):
        for right in range(left):
            if (
                normalise(texts[left])
                and normalise(texts[right])
                and naive_jaccard(texts[left], texts[right]) >= threshold
            ):
                mine = next(cluster for cluster in clusters if left in cluster)
                other = next(cluster for cluster in clusters if right in cluster)
                if mine is not other:
                    clusters.remove(other)
                    mine |= other
    return clusters


def as_sets(numbers: list[int]) -> set[frozenset[int]]:
    found = defaultdict(set)
    for index, number in enumerate(numbers):
        found[number].add(index)
    return {frozenset(members) for members in found.values()}


def some_texts(count: int, seed: int) -> list[str]:
    """Random sentences, a third of them edited copies of an earlier one."""
    chance = random.Random(seed)
    texts: list[str] = []
    for _ in range(count):
        if texts and chance.random() < 0.4:
            words = chance.choice(texts).split()
            for _ in range(chance.randrange(3)):
                words[chance.randrange(len(words))] = chance.choice(WORDS)
            texts.append(" ".join(words))
        else:
            texts.append(" ".join(chance.choices(WORDS, k=chance.randrange(3, 25))))
    return texts


@given(st.text(max_size=60), st.text(max_size=60))
@settings(max_examples=100, deadline=None)
def test_jaccard_equals_the_jaccard_of_sets_of_strings(left, right):
    assert jaccard(shingles(left), shingles(right)) == pytest.approx(naive_jaccard(left, right))


def test_case_punctuation_and_spacing_do_not_make_texts_different():
    assert near_duplicate_clusters(["Stop — it's  OVER!", "stop it s over", "stop it is not over yet, you know"]) == [
        0,
        0,
        1,
    ]


@pytest.mark.parametrize("threshold", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_clusters_are_those_found_by_comparing_all_pairs(threshold, seed):
    texts = some_texts(120, seed)
    expected = {frozenset(cluster) for cluster in naive_clusters(texts, threshold)}
    found = as_sets(near_duplicate_clusters(texts, threshold))
    if threshold >= 0.8:
        assert found == expected
    else:  # below its design point the search may miss a pair, but never joins what is not joined
        assert all(any(mine <= theirs for theirs in expected) for mine in found)
    assert len(found) < len(texts)


def test_signatures_estimate_the_similarity():
    left = " ".join(WORDS * 3)
    right = " ".join(WORDS * 2 + WORDS[:7] + ["something", "else", "entirely", "different"] * 3)
    table = signatures([left, right], permutations=1024)
    assert (table[0] == table[1]).mean() == pytest.approx(naive_jaccard(left, right), abs=0.06)


def test_signatures_of_a_text_do_not_depend_on_the_texts_around_it():
    texts = some_texts(50, 3)
    assert np.array_equal(signatures(texts)[17], signatures([texts[17]])[0])


def test_empty_texts_are_clusters_of_their_own():
    assert near_duplicate_clusters(["", "...", "a text", ""]) == [0, 1, 2, 3]
    assert near_duplicate_clusters([]) == []


def test_clusters_do_not_depend_on_the_order_of_rows():
    texts = some_texts(80, 5)
    order = list(range(80))
    random.Random(1).shuffle(order)
    shuffled = near_duplicate_clusters([texts[index] for index in order])
    back = {frozenset(order[place] for place in members) for members in as_sets(shuffled)}
    assert back == as_sets(near_duplicate_clusters(texts))


@pytest.mark.parametrize(("threshold", "permutations"), [(0, 64), (1.2, 64), (0.8, 63), (0.8, 0)])
def test_a_setting_out_of_range_is_a_clear_error(threshold, permutations):
    with pytest.raises(DataError):
        near_duplicate_clusters(["a"], threshold, permutations)


def test_merged_groups_are_closed_over_chains_and_ignore_missing_groups():
    clusters = [0, 1, 1, 2, 3, 4]
    films = ["x", "x", "y", "y", "", None]
    assert merge_groups(clusters, films) == [0, 0, 0, 0, 1, 2]
    with pytest.raises(DataError, match="unequal length"):
        merge_groups([1, 2], ["a"])


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_rows_are_in_one_merged_group_exactly_if_a_path_joins_them(rows):
    numbers = merge_groups([row[0] for row in rows], [row[1] for row in rows])
    for start in range(len(rows)):
        reached, waiting = {start}, [start]
        while waiting:
            here = waiting.pop()
            for other in range(len(rows)):
                if other not in reached and (rows[here][0] == rows[other][0] or rows[here][1] == rows[other][1]):
                    reached.add(other)
                    waiting.append(other)
        assert reached == {index for index in range(len(rows)) if numbers[index] == numbers[start]}


def grouped_rows(count: int = 600) -> tuple[list[str], list[str]]:
    chance = random.Random(9)
    groups = [f"g{chance.randrange(150)}" for _ in range(count)]
    return groups, [chance.choice("aab") for _ in range(count)]


def test_a_split_never_separates_a_group_and_keeps_the_shares():
    groups, labels = grouped_rows()
    places = split_by_group(groups, labels, seed=0)
    for group in set(groups):
        assert len({place for place, own in zip(places, groups, strict=True) if own == group}) == 1
    shares = {split: places.count(split) / len(places) for split in ("train", "validation", "test")}
    assert shares == pytest.approx({"train": 0.7, "validation": 0.1, "test": 0.2}, abs=0.02)


def test_a_split_is_stable_under_reordering_and_moves_with_the_seed():
    groups, labels = grouped_rows()
    first = dict(zip(groups, split_by_group(groups, labels, seed=0), strict=True))
    order = list(range(len(groups)))
    random.Random(4).shuffle(order)
    again = split_by_group([groups[index] for index in order], [labels[index] for index in order], seed=0)
    assert all(first[groups[index]] == place for index, place in zip(order, again, strict=True))
    assert first != dict(zip(groups, split_by_group(groups, labels, seed=1), strict=True))


def test_each_label_is_split_alike():
    labels = ["rare"] * 50 + ["common"] * 450
    places = split_by_group(list(range(500)), labels)
    for label in ("rare", "common"):
        mine = [place for place, own in zip(places, labels, strict=True) if own == label]
        assert mine.count("test") == round(0.2 * len(mine))
        assert mine.count("validation") == round(0.1 * len(mine))


def test_a_very_large_group_goes_to_train():
    assert split_by_group(["big"] * 90 + [f"s{index}" for index in range(10)])[0] == "train"


def test_fractions_that_do_not_sum_to_one_are_refused():
    with pytest.raises(DataError, match="do not sum to 1"):
        split_by_group(["a"], None, 0, (0.5, 0.1, 0.1))
    with pytest.raises(DataError, match="1 groups but 2 labels"):
        split_by_group(["a"], ["x", "y"])


def test_group_names_depend_on_the_members_alone():
    assert name_groups([0, 0, 1], ["m", "b", "z"]) == ["b", "b", "z"]
    assert name_groups([0, 1, 1], ["z", "b", "m"]) == ["z", "b", "b"]


def test_overlap_counts_the_raw_texts_near_a_heldout_text():
    heldout = ["the old lantern by the harbour was lit every winter night by the keeper"]
    raw = [
        "The old lantern by the harbour was lit every winter night, by the keeper!",
        "the old lantern by the harbour was lit every winter night by a keeper",
        "a garden of silver maples",
    ]
    assert overlap(raw, heldout) == 2
    assert overlap(raw[2:], heldout) == 0
