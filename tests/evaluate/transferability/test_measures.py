"""Measures that read embeddings, prompts, neurons and words."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from anytune.errors import DataError, SettingsError
from anytune.evaluate import transferability as measures
from anytune.evaluate.transferability import prompt_similarity
from anytune.evaluate.transferability.controls import PLACES
from anytune.evaluate.words import words_of

NUMBERS = st.floats(-10, 10, width=32)


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


# Task embeddings


@given(arrays.arrays(np.float64, (4, 5), elements=NUMBERS), st.floats(1e-3, 1e3))
@settings(max_examples=60, deadline=None)
@pytest.mark.filterwarnings("ignore:.*embeddings are zero")
def test_task_cosine_is_symmetric_in_range_and_blind_to_scale(rows, scale):
    found = measures.task_cosines(rows)
    assert (found == found.T).all()
    assert (np.abs(found) <= 1).all()
    np.testing.assert_array_equal(np.diag(found), rows.any(axis=1))
    scaled = rows * np.array([scale, 1, 1, 1])[:, None]
    np.testing.assert_allclose(measures.task_cosines(scaled), found, atol=1e-9)
    assert measures.task_cosine(rows[0], rows[1]) == pytest.approx(measures.task_cosine(rows[1], rows[0]), abs=1e-15)
    for a, b in ((0, 1), (2, 3)):
        size = np.linalg.norm(rows[a]) * np.linalg.norm(rows[b])
        expected = rows[a] @ rows[b] / size if size > 1e-12 else found[a, b]
        assert measures.task_cosines(rows, rows)[a, b] == pytest.approx(expected, abs=1e-9)


def test_a_zero_embedding_has_cosine_0_and_says_so():
    with pytest.warns(UserWarning, match="1 task embeddings are zero"):
        assert measures.task_cosine(np.zeros(3), np.ones(3)) == 0


def test_tiny_and_huge_embeddings_are_compared_by_direction():
    assert measures.task_cosine(np.full(4, 1e-200), np.full(4, 1e200)) == pytest.approx(1)


def test_pooling_by_hand_whatever_the_padding_holds_and_wherever_it_is():
    hidden = torch.arange(24, dtype=torch.float32).reshape(2, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]])
    hidden[mask == 0] = torch.nan
    mean = measures.pooled(hidden, mask)
    assert mean.tolist() == [[1.5, 2.5, 3.5], [18, 19, 20]]
    assert measures.pooled(hidden, mask, "cls").tolist() == [[0, 1, 2], [15, 16, 17]]
    pooler = torch.ones(2, 3)
    assert torch.equal(measures.pooled(hidden, mask, "paper", pooler), pooler)
    assert torch.equal(measures.pooled(hidden, mask, "pooler", pooler), pooler)
    assert torch.equal(measures.pooled(hidden, mask, "paper"), mean)
    assert measures.pooled(hidden.bfloat16(), mask).dtype == torch.float32
    with pytest.raises(DataError, match="pooling=mean"):
        measures.pooled(hidden, mask, "pooler")
    with pytest.raises(DataError, match="without a single token"):
        measures.pooled(hidden, torch.zeros(2, 4))


def test_the_mean_embedding_is_the_same_for_every_batch_size_order_and_padding():
    lengths = [3, 7, 5, 2, 6]
    texts = [torch.from_numpy(drawn(length, 4, seed=length)).float() for length in lengths]

    def embed(order: list[int], size: int, extra: int) -> np.ndarray:
        found = measures.EmbeddingMean()
        for start in range(0, len(order), size):
            batch = [texts[place] for place in order[start : start + size]]
            width = max(map(len, batch)) + extra
            hidden = torch.full((len(batch), width, 4), 9.0)
            mask = torch.zeros(len(batch), width)
            for row, text in enumerate(batch):
                hidden[row, : len(text)], mask[row, : len(text)] = text, 1
            found.add(measures.pooled(hidden, mask))
        assert found.rows == 5
        return found.mean()

    expected = np.mean([text.numpy().mean(axis=0) for text in texts], axis=0)
    for order, size, extra in (([0, 1, 2, 3, 4], 5, 0), ([4, 2, 0, 1, 3], 2, 0), ([1, 0, 3, 4, 2], 1, 5)):
        found = embed(order, size, extra)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=2e-7)
    one = measures.EmbeddingMean()
    one.add(np.ones((1, 4)))
    assert one.mean().tolist() == [1] * 4
    with pytest.raises(DataError, match="no rows"):
        measures.EmbeddingMean().mean()


def test_centring_takes_off_what_tasks_have_in_common():
    rows, shared = drawn(5, 8), 30 * np.ones(8)
    together = measures.task_cosines(rows + shared)
    assert together.min() > 0.9
    by_library = measures.task_cosines(measures.centred(rows + shared, "library"))
    np.testing.assert_allclose(by_library, measures.task_cosines(rows - rows.mean(axis=0)), atol=1e-9)
    for base in (shared, np.tile(shared, (5, 1))):
        np.testing.assert_allclose(measures.centred(rows + shared, "base", base), rows, atol=1e-12)
    np.testing.assert_array_equal(measures.centred(rows), rows)
    with pytest.raises(DataError, match="over 2 tasks"):
        measures.centred(rows[:2], "library")
    with pytest.raises(DataError, match="without embeddings of the base"):
        measures.centred(rows, "base")
    with pytest.raises(DataError, match="go together"):
        measures.centred(rows, "base", rows[:2])
    with pytest.raises(SettingsError, match="unknown centring 'median'"):
        measures.centred(rows, "median")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_and_other_widths_are_refused(bad):
    rows = drawn(3, 4)
    rows[1, 2] = bad
    with pytest.raises(DataError, match="1 of 12 numbers of task embeddings are not finite"):
        measures.task_cosines(rows)
    with pytest.raises(DataError, match="1 of 12 numbers of the target prompt are not finite"):
        measures.mean_cosine(drawn(3, 4), rows)
    with pytest.raises(DataError, match="width 4 and 5"):
        measures.task_cosine(np.ones(4), np.ones(5))
    with pytest.raises(DataError, match=re.escape("shape (0, 4)")):
        measures.task_cosines(np.zeros((0, 4)))


# Prompts


def naive(name: str, p: np.ndarray, q: np.ndarray) -> float:
    def cos(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    return {
        "mean_cosine": lambda: cos(p.mean(0), q.mean(0)),
        "flat_cosine": lambda: cos(p.ravel(), q.ravel()),
        "pairwise_cosine": lambda: np.mean([cos(a, b) for a in p for b in q]),
        "max_pairwise": lambda: np.mean([max(a @ b for b in q) for a in p]),
        "euclidean_flat": lambda: 1 / (1 + np.sqrt(((p - q) ** 2).sum())),
        "euclidean_pairwise": lambda: 1 / (1 + np.mean([np.sqrt(((a - b) ** 2).sum()) for a in p for b in q])),
    }[name]()


@pytest.mark.parametrize("name", prompt_similarity.KINDS)
def test_prompt_similarities_against_their_formulas(name):
    function = prompt_similarity.KINDS[name]
    p, q, longer = drawn(4, 6), drawn(4, 6, seed=1), drawn(7, 6, seed=2)
    assert function(p, q) == pytest.approx(naive(name, p, q), abs=1e-12)
    assert function(torch.from_numpy(p), torch.from_numpy(q)) == function(p, q)
    symmetric = measures.MEASURES[f"prompt_{name}"].symmetric
    assert (function(q, p) == pytest.approx(function(p, q), abs=1e-12)) == symmetric
    if "equal length" in measures.MEASURES[f"prompt_{name}"].needs:
        with pytest.raises(DataError, match="4 and 7 positions"):
            function(p, longer)
    else:
        assert function(p, longer) == pytest.approx(naive(name, p, longer), abs=1e-12)
    with pytest.raises(DataError, match="width 6 and 5"):
        function(p, q[:, :5])


def test_which_prompt_similarities_see_the_order_of_positions_and_which_are_1_for_the_same_prompt():
    p, q = drawn(5, 6), drawn(5, 6, seed=1)
    turned = q[[3, 0, 4, 1, 2]]
    for name, function in prompt_similarity.KINDS.items():
        assert (function(p, turned) == pytest.approx(function(p, q), abs=1e-12)) == ("flat" not in name)
    assert measures.mean_cosine(p, p) == pytest.approx(1)
    assert measures.flat_cosine(p, p) == pytest.approx(1)
    assert measures.pairwise_cosine(p, p) < 0.9
    parallel = np.outer([1.0, 2.0, 0.5], p[0])
    assert measures.pairwise_cosine(parallel, parallel) == pytest.approx(1)


# Neurons


def bits(draw: np.random.Generator, share: float, neurons: int = 101) -> np.ndarray:
    found = measures.FiredNeurons()
    found.add((draw.random((1, neurons)) < share).astype(float))
    return found.bits()


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.05, 0.5, 1.0]), st.sampled_from([0.0, 0.05, 0.5, 1.0]))
@settings(max_examples=80, deadline=None)
def test_overlaps_are_ordered_in_range_and_those_of_sets(seed, first, second):
    draw = np.random.default_rng(seed)
    a, b = bits(draw, first), bits(draw, second)
    cosine, dice, jaccard = (measures.overlap(a, b, kind) for kind in ("cosine", "dice", "jaccard"))
    assert 1 >= cosine >= dice - 1e-12
    assert dice >= jaccard >= 0
    left, right = (set(np.flatnonzero(np.unpackbits(side))) for side in (a, b))
    if left and right:
        assert cosine == pytest.approx(len(left & right) / np.sqrt(len(left) * len(right)))
        assert dice == pytest.approx(2 * len(left & right) / (len(left) + len(right)))
        assert jaccard == pytest.approx(len(left & right) / len(left | right))
    for kind in ("cosine", "dice", "jaccard"):
        assert measures.overlap(a, a, kind) == 1
        assert measures.overlap(a, b, kind) == measures.overlap(b, a, kind)


def test_a_neuron_is_active_if_it_fires_in_most_texts_at_any_scale_and_batch_size():
    activations = drawn(9, 3, 16)
    expected = np.packbits((activations > 0).sum(axis=0).ravel() > 4)
    for size, scale in ((9, 1.0), (2, 1.0), (1, 50.0)):
        found = measures.FiredNeurons()
        for start in range(0, 9, size):
            found.add(torch.from_numpy(scale * activations[start : start + size]))
        assert found.rows == 9
        np.testing.assert_array_equal(found.bits(), expected)
    half = measures.FiredNeurons()
    half.add(torch.tensor([[1.0, 1.0], [1.0, 0.0]]))
    assert np.unpackbits(half.bits()).tolist() == [1, 0, 0, 0, 0, 0, 0, 0]  # half is not most, 0 is not above 0
    assert found.bits().dtype == np.uint8
    assert found.bits().shape == (6,)
    assert np.unpackbits(found.bits(share=0.9)).sum() < np.unpackbits(expected).sum()


def test_neurons_of_other_bases_and_unknown_overlaps_are_refused():
    with pytest.raises(DataError, match="2 and 3 bytes"):
        measures.overlap(np.zeros(2, np.uint8), np.zeros(3, np.uint8))
    with pytest.raises(SettingsError, match="unknown overlap 'euclid'"):
        measures.overlap(np.zeros(2, np.uint8), np.zeros(2, np.uint8), "euclid")
    with pytest.raises(DataError, match="no rows"):
        measures.FiredNeurons().bits()


# Controls


def test_random_scores_are_uniform_and_belong_to_the_pair():
    found = np.array([measures.random_score(f"source {n}", "target", seed) for n in range(100) for seed in range(5)])
    assert ((found >= 0) & (found < 1)).all()
    assert np.histogram(found, 4, (0, 1))[0].min() > 90
    assert len(set(found)) == 500
    assert measures.random_score("a", "b") == measures.random_score("a", "b")
    assert measures.random_score("a", "b") != measures.random_score("b", "a")
    assert measures.size_score(12) == 12.0


TASKS = (
    ["the cat sleeps on the mat", "a cat and a dog", "dogs bark"],
    ["the stock fell", "shares of the bank rose", "the bank and the stock"],
    ["a dog sleeps", "the cat and the dogs bark", "a mat"],
)


def test_tfidf_cosines_against_centroids_by_hand():
    texts = [text for task in TASKS for text in task]
    found_in: dict[str, int] = {}
    for text in texts:
        for word in set(words_of(text)):
            found_in[word] = found_in.get(word, 0) + 1
    vocabulary = sorted(found_in)
    idf = np.array([np.log(10 / (1 + found_in[word])) + 1 for word in vocabulary])
    centroids = []
    for task in TASKS:
        vectors = []
        for text in task:
            words = words_of(text)
            vectors.append([words.count(word) / len(words) for word in vocabulary])
        centroids.append(np.mean(vectors, axis=0) * idf)
    known = [measures.task_words(task) for task in TASKS]
    found = measures.tfidf_cosines(known, known)
    np.testing.assert_allclose(found, measures.task_cosines(np.array(centroids)), atol=1e-6)
    assert found[0, 2] > 2 * found[0, 1]
    assert np.diag(found) == pytest.approx(1)
    np.testing.assert_allclose(measures.tfidf_cosines(known[:1], known[1:])[0], found[0, 1:], atol=1e-12)


def test_words_of_a_task_are_two_vectors_that_any_order_of_texts_gives():
    found, turned = measures.task_words(TASKS[0]), measures.task_words(TASKS[0][::-1])
    assert found.rows == 3
    assert found.shares.shape == found.documents.shape == (PLACES,)
    np.testing.assert_allclose(found.shares, turned.shares, atol=1e-8)
    assert found.shares.sum() == pytest.approx(1)
    assert measures.task_words(["", "!?"]).shares.sum() == 0
    with pytest.raises(DataError, match="no texts"):
        measures.task_words([])
