"""Words alone: a ridge classifier on TF-IDF, the floor that a language model has to beat to be worth its cost.

Term weights are tf * idf with idf = ln((1 + n) / (1 + df)) + 1 over the n training texts, rows scaled to length 1;
words are runs of two and more letters, digits or underscores in lower case. The classifier is
W = argmin |X W - Y|^2 + penalty |W|^2 on one-hot labels with their mean taken off, solved in its dual form.
Pure functions on texts and numbers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

#: Penalties tried; the validation score chooses.
PENALTIES = tuple(10.0**power for power in range(-3, 3))
_WORD = re.compile(r"\b\w\w+\b")


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return _WORD.findall(text.lower())


def term_weights(train: Sequence[str], *others: Sequence[str]) -> list[np.ndarray]:
    """TF-IDF of the training texts [n, words] and of other splits by the same words and idf, rows of length 1.

    A text without a known word is a row of zeros.
    """
    counts = [[Counter(words_of(text)) for text in split] for split in (train, *others)]
    vocabulary = {word: place for place, word in enumerate(sorted(set().union(*counts[0])))}
    frequency = np.zeros(len(vocabulary))
    for one in counts[0]:
        frequency[[vocabulary[word] for word in one]] += 1
    idf = np.log((1 + len(train)) / (1 + frequency)) + 1
    made = []
    for split in counts:
        rows = np.zeros((len(split), len(vocabulary)))
        for row, one in zip(rows, split, strict=True):
            for word, count in one.items():
                if word in vocabulary:
                    row[vocabulary[word]] = count
        rows *= idf
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        made.append(rows / np.where(lengths > 0, lengths, 1))
    return made


def answers_by_words(
    train: tuple[Sequence[str], np.ndarray],
    validation: tuple[Sequence[str], np.ndarray],
    test: Sequence[str],
    *,
    classes: int | None,
    better: Callable[[np.ndarray, np.ndarray], float],
    penalties: Sequence[float] = PENALTIES,
) -> np.ndarray:
    """What words alone answer to the test texts [n]: class numbers, or numbers for regression.

    Args:
        train: texts and labels, class numbers or real values.
        validation: the same; it chooses the penalty, of equally good ones the largest.
        classes: number of classes; None for regression.
        better: (predicted, gold) -> a number that is larger for the better.
    """
    own, checked, asked = term_weights(train[0], validation[0], test)
    labels = np.asarray(train[1])
    wanted = np.eye(classes)[labels.astype(int)] if classes is not None else labels.astype(float)[:, None]
    mean = wanted.mean(axis=0)
    values, vectors = np.linalg.eigh(own @ own.T)
    projected = vectors.T @ (wanted - mean)

    def answer(inputs: np.ndarray, penalty: float) -> np.ndarray:
        dual = vectors @ (projected / (np.maximum(values, 0)[:, None] + penalty))
        scores = inputs @ (own.T @ dual) + mean
        return scores.argmax(axis=1) if classes is not None else scores[:, 0]

    gold = np.asarray(validation[1])
    best = max(penalties, key=lambda penalty: (better(answer(checked, penalty), gold), penalty))
    return answer(asked, best)
