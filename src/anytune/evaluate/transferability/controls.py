"""Controls: what a measure has to beat before anybody should look at a prompt.

    size     the number of training rows of the source: large tasks make good sources, whatever the target is
    random   a number drawn for the pair
    tfidf    cosine of the mean tf-idf vectors of two tasks' texts: same words, same task?

tf-idf: a task is kept as two vectors over hashed words, the mean over its texts of each word's share of the text, and
the number of texts it occurs in. idf = ln((1 + n) / (1 + df)) + 1 over all texts of the tasks that are compared, so no
text has to be read again when the library grows.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from anytune.errors import DataError
from anytune.evaluate.transferability.inputs import cosine
from anytune.evaluate.words import words_of

#: Places that words are hashed to: 8192 floats are 32 KB, and a few collisions move no centroid.
PLACES = 8192


def size_score(training_rows: int) -> float:
    """The source's training rows."""
    return float(training_rows)


def random_score(source: str, target: str, seed: int = 0) -> float:
    """A number in [0, 1) for this pair and seed: the same whatever else is ranked beside it."""
    drawn = hashlib.sha256(f"{seed}\0{source}\0{target}".encode()).digest()
    return int.from_bytes(drawn[:8], "big") / 2**64


@dataclass(frozen=True)
class TaskWords:
    """The words of a task: ``rows`` texts, mean share of each place [PLACES], texts that have it [PLACES]; float32."""

    rows: int
    shares: np.ndarray
    documents: np.ndarray


def task_words(texts: Iterable[str]) -> TaskWords:
    """Words of the ``texts``, of pairs both sides in one; a text without a word counts as a row of zeros.

    Raises:
        DataError: there is no text.
    """
    shares, documents, rows = np.zeros(PLACES), np.zeros(PLACES), 0
    for text in texts:
        rows += 1
        counts = Counter(zlib.crc32(word.encode()) % PLACES for word in words_of(text))
        total = sum(counts.values())
        for place, count in counts.items():
            shares[place] += count / total
            documents[place] += 1
    if not rows:
        raise DataError("the words of no texts", why="A task without text has none.")
    return TaskWords(rows, (shares / rows).astype(np.float32), documents.astype(np.float32))


def tfidf_cosines(sources: Sequence[TaskWords], targets: Sequence[TaskWords]) -> np.ndarray:
    """Cosines [S, T] in [0, 1] of tf-idf centroids, idf over the texts of all ``sources`` and ``targets``.

    A task that stands on both sides (the same object) counts once.
    """
    every = list({id(one): one for one in (*sources, *targets)}.values())
    total = sum(one.rows for one in every)
    frequency = np.sum([one.documents for one in every], axis=0, dtype=np.float64)
    idf = np.log((1 + total) / (1 + frequency)) + 1
    left, right = (np.array([one.shares * idf for one in side]) for side in (sources, targets))
    return np.maximum(cosine(left, right), 0.0)
