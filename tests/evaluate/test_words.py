from __future__ import annotations

import numpy as np
import pytest

from anytune.evaluate.words import answers_by_words, term_weights, words_of

TEXTS = ["A cat, a cat and THE dog", "the dog barks at night", "fish swim", "dog eats fish; cat eats fish"]
OTHERS = ["the fish barks", "x y z", "unknown things"]


def test_words_are_runs_of_two_and_more_letters_in_lower_case():
    assert words_of("A cat's tail, x9 déjà_vu!") == ["cat", "tail", "x9", "déjà_vu"]


def test_term_weights_are_those_of_scikit_learn():
    text = pytest.importorskip("sklearn.feature_extraction.text")
    model = text.TfidfVectorizer()
    train = model.fit_transform(TEXTS).toarray()
    mine, other = term_weights(TEXTS, OTHERS)
    np.testing.assert_allclose(mine, train, atol=1e-12)
    np.testing.assert_allclose(other, model.transform(OTHERS).toarray(), atol=1e-12)
    assert not other[1].any()


def same(predicted: np.ndarray, gold: np.ndarray) -> float:
    return float((predicted == gold).mean())


@pytest.mark.parametrize("penalty", [0.01, 1.0, 30.0])
def test_answers_are_those_of_a_ridge_on_them(penalty):
    linear = pytest.importorskip("sklearn.linear_model")
    labels = np.array([0, 1, 2, 0])
    train, test = term_weights(TEXTS, OTHERS)
    targets = np.eye(3)[labels]
    ridge = linear.Ridge(alpha=penalty, fit_intercept=False).fit(train, targets - targets.mean(axis=0))
    wanted = (ridge.predict(test) + targets.mean(axis=0)).argmax(axis=1)
    found = answers_by_words(
        (TEXTS, labels), (TEXTS, labels), OTHERS, classes=3, better=same, penalties=[penalty]
    )  # fmt: skip
    assert found.tolist() == wanted.tolist()
    numbers = np.array([0.5, -1.0, 2.0, 3.0])
    ridge = linear.Ridge(alpha=penalty, fit_intercept=False).fit(train, numbers - numbers.mean())
    found = answers_by_words(
        (TEXTS, numbers), (TEXTS, numbers), OTHERS, classes=None, better=lambda p, g: -float(np.abs(p - g).sum()),
        penalties=[penalty],
    )  # fmt: skip
    np.testing.assert_allclose(found, ridge.predict(test) + numbers.mean(), atol=1e-9)


def test_validation_chooses_the_penalty_and_of_equal_ones_the_largest():
    seen: list[list[float]] = []

    def better(predicted: np.ndarray, gold: np.ndarray) -> float:
        seen.append(predicted.tolist())
        return 0.0

    labels = np.array([0.0, 1.0, 2.0, 3.0])
    found = answers_by_words((TEXTS, labels), (TEXTS, labels), TEXTS, classes=None, better=better, penalties=[1, 100])
    assert len(seen) == 2
    assert found.tolist() == seen[1]
    exact = answers_by_words(
        (TEXTS, labels), (TEXTS, labels), TEXTS, classes=None, better=lambda p, g: -float(np.abs(p - g).sum()),
        penalties=[1e-9, 100],
    )  # fmt: skip
    np.testing.assert_allclose(exact, labels, atol=1e-6)
