"""Keep held-out text out of training text: near-duplicates, groups, splits, overlap.

A score means something only if the texts it was measured on, and texts almost equal to them, were never trained on.
Four pure steps see to that:

1. ``near_duplicate_clusters``: which texts are (almost) the same, by MinHash and then exactly by Jaccard similarity.
2. ``merge_groups``: texts that share a cluster, a film, a document, a licence ... belong together (union-find).
3. ``split_by_group``: whole groups go to train, validation or test, in the order of a hash of the group's name, so
   that neither the order of the rows nor the machine matters.
4. ``overlap``: how many texts of one list are near-duplicates of the other list. Anything but zero is a leak.

Similarity of two texts is the Jaccard similarity of their sets of character 5-grams after normalising (lower case,
letters and digits only, single spaces). MinHash: Broder 1997, "On the resemblance and containment of documents". The
signatures only propose pairs; a pair counts when its exact similarity reaches the threshold, so there are no false
positives, and with 16 bands of 4 rows a pair at similarity 0.8 is missed with probability 2e-4.

Written on numpy alone, with fixed constants: a split must not change with the version of a hashing library.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from anytune.errors import DataError

SPLITS = ("train", "validation", "test")
#: a pair at similarity 0.8 is proposed with probability 1 - (1 - 0.8**4)**16 = 0.9998
ROWS_PER_BAND = 4
_BATCH = 1 << 15
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_ODD = np.uint64(0x9E3779B97F4A7C15)
_LEFT_OUT = re.compile(r"[\W_]+")


def normalise(text: str) -> str:
    """Lower case, compatibility forms folded, everything but letters and digits turned into single spaces."""
    return _LEFT_OUT.sub(" ", unicodedata.normalize("NFKC", text).lower()).strip()


def shingles(text: str, size: int = 5) -> np.ndarray:
    """The set of character ``size``-grams of the normalised text, as sorted 64-bit hashes [n] (n >= 1).

    A text shorter than ``size`` is one shingle of its own.
    """
    return np.unique(_shingle_list(normalise(text), size))


def _shingle_list(normalised: str, size: int) -> np.ndarray:
    """Hashes of all ``size``-grams in order, repeats included."""
    codes = np.frombuffer(normalised.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    width = min(size, len(codes))
    hashes = np.full(max(1, len(codes) - width + 1), np.uint64(width))
    for place in range(width):
        hashes = hashes * _ODD + codes[place : place + len(hashes)]
    return _mix(hashes)


def jaccard(left: np.ndarray, right: np.ndarray) -> float:
    """Shared shingles over all shingles, of two results of ``shingles``; in [0, 1]."""
    shared = len(np.intersect1d(left, right, assume_unique=True))
    return shared / (len(left) + len(right) - shared)


def signatures(texts: Sequence[str], permutations: int = 64, shingle: int = 5) -> np.ndarray:
    """MinHash signatures [len(texts), permutations]: entry k is the smallest shingle of a text under hash function k.

    The share of equal entries of two rows estimates the Jaccard similarity of the two texts.
    """
    multipliers = _mix(np.arange(1, permutations + 1, dtype=np.uint64) * _ODD) | np.uint64(1)
    offsets = _mix(np.arange(permutations + 1, 2 * permutations + 1, dtype=np.uint64) * _ODD)
    result = np.empty((len(texts), permutations), dtype=np.uint64)
    waiting: list[np.ndarray] = []
    for row, text in enumerate(texts):
        waiting.append(_shingle_list(normalise(text), shingle))
        # Many texts at a time, but few enough that their shingles stay in the processor's cache.
        if sum(map(len, waiting)) >= _BATCH or len(waiting) >= _BATCH // 8 or row == len(texts) - 1:
            values = np.concatenate(waiting)
            starts = np.cumsum([0, *map(len, waiting[:-1])])
            part = slice(row + 1 - len(waiting), row + 1)
            for place in range(permutations):
                result[part, place] = np.minimum.reduceat(values * multipliers[place] + offsets[place], starts)
            waiting = []
    return result


def near_duplicate_clusters(
    texts: Sequence[str], threshold: float = 0.8, permutations: int = 64, shingle: int = 5
) -> list[int]:
    """Cluster number of each text: two texts share a number if a chain of near-duplicates joins them.

    Args:
        texts: any texts; empty ones (or ones of signs alone) are each a cluster of their own.
        threshold: the Jaccard similarity from which two texts are near-duplicates, in (0, 1].
        permutations: length of the MinHash signatures, a multiple of 4.
        shingle: characters in a shingle.

    Returns:
        One number a text, numbered 0, 1, 2 ... by first appearance. The clusters do not depend on the order of the
        texts.

    Raises:
        DataError: threshold or permutations out of range.
    """
    _check_similarity(threshold, permutations)
    forest = _Forest(len(texts))
    first_of: dict[str, int] = {}
    for index, text in enumerate(texts):  # equal texts are joined at once; one of them stands for all
        key = normalise(text)
        if key:
            forest.join(first_of.setdefault(key, index), index)
    kept = list(first_of.values())
    among_kept = _Forest(len(kept))
    _join_similar(among_kept, [texts[index] for index in kept], threshold, permutations, shingle)
    for place, index in enumerate(kept):
        forest.join(kept[among_kept.root(place)], index)
    return forest.numbers()


def merge_groups(*columns: Sequence[Hashable]) -> list[int]:
    """Number of the merged group of each row: rows that share a value in any column are in one group, chains too.

    ``None`` and ``""`` mean "no group" and join nothing. Usual call: ``merge_groups(clusters, films)``.

    Raises:
        DataError: the columns differ in length.
    """
    lengths = {len(column) for column in columns}
    if len(lengths) != 1:
        raise DataError(f"group columns of unequal length: {[len(column) for column in columns]}")
    forest = _Forest(lengths.pop())
    for column in columns:
        first_of: dict[Hashable, int] = {}
        for index, value in enumerate(column):
            if value is not None and value != "":
                forest.join(first_of.setdefault(value, index), index)
    return forest.numbers()


def name_groups(groups: Sequence[int], members: Sequence[str]) -> list[str]:
    """A name for each row's group that depends on what is in the group, not on row order: the smallest member name.

    ``members[i]`` names row i by its content (for example a hash of its text).
    """
    smallest: dict[int, str] = {}
    for group, member in zip(groups, members, strict=True):
        smallest[group] = min(member, smallest.get(group, member))
    return [smallest[group] for group in groups]


def split_by_group(
    groups: Sequence[Hashable],
    labels: Sequence[Hashable] | None = None,
    seed: int = 0,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
) -> list[str]:
    """Put whole groups into "train", "validation" or "test"; one answer a row.

    Groups are walked in the order of SHA-256(seed, group). With labels this is done for each label apart (a group
    counts for its most frequent label), so that every split has about the same share of each. A group goes to test
    while test has room for all of it, else to validation, else to train: a very large group always ends in train.

    Args:
        groups: the group of each row; its ``str`` must not depend on row order (see ``name_groups``).
        labels: the label of each row, or None (also for numeric labels).
        seed: another seed, another split.
        fractions: wanted shares of train, validation, test; they sum to 1.

    Raises:
        DataError: the fractions do not sum to 1, or labels and groups differ in length.
    """
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-9:
        raise DataError(f"split fractions {fractions} do not sum to 1", fix="for example (0.7, 0.1, 0.2)")
    if labels is not None and len(labels) != len(groups):
        raise DataError(f"{len(groups)} groups but {len(labels)} labels")
    sizes = Counter(groups)
    strata: dict[str, list[Hashable]] = defaultdict(list)
    for group, label in _main_labels(groups, labels).items():
        strata[label].append(group)
    placed: dict[Hashable, str] = {}
    for members in strata.values():
        total = sum(sizes[group] for group in members)
        room = {"test": round(total * fractions[2]), "validation": round(total * fractions[1])}
        for group in sorted(members, key=lambda group: _order(seed, group)):
            place = next((split for split, left in room.items() if sizes[group] <= left), "train")
            placed[group] = place
            if place != "train":
                room[place] -= sizes[group]
    return [placed[group] for group in groups]


def overlap(
    raw_texts: Sequence[str], heldout_texts: Sequence[str], threshold: float = 0.8, permutations: int = 64
) -> int:
    """How many of ``raw_texts`` fall into a near-duplicate cluster with any of ``heldout_texts``."""
    clusters = near_duplicate_clusters([*raw_texts, *heldout_texts], threshold, permutations)
    heldout = set(clusters[len(raw_texts) :])
    return sum(cluster in heldout for cluster in clusters[: len(raw_texts)])


def _join_similar(forest: _Forest, texts: Sequence[str], threshold: float, permutations: int, shingle: int) -> None:
    """Join the texts whose exact similarity reaches the threshold, among those that share a band of signatures."""
    table = signatures(texts, permutations, shingle)
    sets: dict[int, np.ndarray] = {}
    tried: set[tuple[int, int]] = set()

    def similar(left: int, right: int) -> bool:
        for index in (left, right):
            if index not in sets:
                sets[index] = shingles(texts[index], shingle)
        return jaccard(sets[left], sets[right]) >= threshold

    for start in range(0, permutations, ROWS_PER_BAND):
        for bucket in _buckets(table[:, start : start + ROWS_PER_BAND]):
            for place, left in enumerate(bucket[:-1].tolist()):
                rest = bucket[place + 1 :]
                # A cheap sieve first: the estimate from 64 values is off by more than 0.2 once in 30,000 times.
                for right in rest[(table[rest] == table[left]).mean(axis=1) >= threshold - 0.2].tolist():
                    if (left, right) not in tried and forest.root(left) != forest.root(right):
                        tried.add((left, right))
                        if similar(left, right):
                            forest.join(left, right)


def _buckets(band: np.ndarray) -> list[np.ndarray]:
    """Row numbers (ascending) of each group of two or more equal rows of ``band`` [n, 4]."""
    order = np.lexsort(band.T)
    changes = np.flatnonzero((band[order[1:]] != band[order[:-1]]).any(axis=1)) + 1
    starts, ends = np.array([0, *changes]), np.array([*changes, len(order)])
    large = ends - starts > 1
    return [np.sort(order[start:end]) for start, end in zip(starts[large], ends[large], strict=True)]


def _main_labels(groups: Sequence[Hashable], labels: Sequence[Hashable] | None) -> dict[Hashable, str]:
    """Each group's most frequent label (ties: the first in alphabetical order)."""
    if labels is None:
        return dict.fromkeys(groups, "")
    counts: dict[Hashable, Counter[str]] = defaultdict(Counter)
    for group, label in zip(groups, labels, strict=True):
        counts[group][str(label)] += 1
    return {group: min(count, key=lambda label: (-count[label], label)) for group, count in counts.items()}


def _order(seed: int, group: Hashable) -> str:
    return hashlib.sha256(f"{seed}\t{group}".encode()).hexdigest()


def _mix(values: np.ndarray) -> np.ndarray:
    """Spread 64-bit values evenly (the finishing steps of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))


def _check_similarity(threshold: float, permutations: int) -> None:
    if not 0 < threshold <= 1:
        raise DataError(f"near-duplicate threshold {threshold} is not in (0, 1]", fix="0.8")
    if permutations < ROWS_PER_BAND or permutations % ROWS_PER_BAND:
        raise DataError(f"{permutations} permutations is not a multiple of {ROWS_PER_BAND}", fix="64")


class _Forest:
    """Union-find over 0 .. size-1; the root of a tree is its smallest member."""

    def __init__(self, size: int) -> None:
        self.parent = list(range(size))

    def root(self, member: int) -> int:
        while self.parent[member] != member:
            self.parent[member] = self.parent[self.parent[member]]
            member = self.parent[member]
        return member

    def join(self, left: int, right: int) -> None:
        low, high = sorted((self.root(left), self.root(right)))
        self.parent[high] = low

    def numbers(self) -> list[int]:
        """Number of each member's tree, by first appearance."""
        seen: dict[int, int] = {}
        return [seen.setdefault(self.root(member), len(seen)) for member in range(len(self.parent))]
