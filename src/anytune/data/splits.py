"""Seeded orders, splits and few-shot subsets that come out the same on every machine.

Everything here is a pure function of its arguments. Randomness comes from the raw 64-bit stream of numpy's PCG64,
whose values numpy promises never to change, seeded by SHA-256: no ``hash()``, no order of a set, no library shuffle
whose algorithm may move between releases. Stratified choices follow one idea: shuffle the rows inside each stratum,
give the row of rank r in a stratum of n rows the position (r + 1/2) / n, and read all rows by position. Every prefix
of that order then holds each stratum in proportion, and a larger subset contains every smaller one.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from anytune.errors import DataError, SettingsError

SPLITS = ("train", "validation", "test")
#: Regression labels and lengths of responses are stratified in at most so many slices of equal size, from low to high.
REGRESSION_STRATA = 10


def stable_seed(*parts: str | int) -> int:
    """A 63-bit seed from a few words and numbers: equal on every machine, unrelated for different parts."""
    text = json.dumps(parts, ensure_ascii=False)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def permutation(count: int, *parts: str | int) -> np.ndarray:
    """A permutation of ``range(count)`` [count, int64], decided by ``parts`` alone."""
    draws = np.random.PCG64(stable_seed(*parts)).random_raw(count) if count else np.zeros(0, dtype=np.uint64)
    return np.argsort(np.asarray(draws), kind="stable")


def strata_of(labels: Sequence[Any], kind: str) -> list[int]:
    """The stratum of each row.

    Classification: its class. Token-classification: the tag in the sentence that the fewest sentences have, so that
    splits and subsets hold rare tags too. Regression and generation: the slice of the rows that its number, or the
    length of its response, falls into, from low to high; there are up to ten slices, of at least five rows each.
    """
    if kind == "classification":
        return [int(label) for label in labels]
    if kind == "token-classification":
        having = Counter(tag for tags in labels for tag in set(tags))
        return [min(tags, key=lambda tag: (having[tag], tag)) for tags in labels]
    values = [len(label) if kind == "generation" else float(label) for label in labels]
    strata = np.zeros(len(labels), dtype=np.int64)
    ranked = np.argsort(np.asarray(values, dtype=np.float64), kind="stable")
    slices = max(1, min(REGRESSION_STRATA, len(labels) // 5))
    strata[ranked] = np.arange(len(labels)) * slices // max(len(labels), 1)
    return strata.tolist()


def stratified_order(strata: Sequence[int], *parts: str | int) -> list[int]:
    """Row numbers in an order whose every prefix holds the strata in proportion.

    Args:
        strata: the stratum of each row.
        parts: words and numbers that decide the shuffle.
    """
    shuffled = permutation(len(strata), *parts).tolist()
    sizes = Counter(strata)
    seen: Counter[int] = Counter()
    placed = []
    for place, row in enumerate(shuffled):
        stratum = strata[row]
        placed.append(((seen[stratum] + 0.5) / sizes[stratum], place, row))
        seen[stratum] += 1
    return [row for _, _, row in sorted(placed)]


def choose(strata: Sequence[int], size: int, *parts: str | int) -> list[int]:
    """``size`` row numbers, ascending: strata in proportion, and at least one row of each where ``size`` allows it.

    The choice of a larger size contains that of a smaller one.
    """
    order = stratified_order(strata, *parts)
    first = set()
    met = set()
    for row in order:
        if strata[row] not in met:
            met.add(strata[row])
            first.add(row)
    ranked = [row for row in order if row in first] + [row for row in order if row not in first]
    return sorted(ranked[:size])


def choose_per_class(labels: Sequence[int], per_class: int, *parts: str | int) -> list[int]:
    """``per_class`` row numbers of each class, ascending; a class with fewer rows gives all it has."""
    taken: Counter[int] = Counter()
    chosen = []
    for row in permutation(len(labels), *parts).tolist():
        if taken[labels[row]] < per_class:
            taken[labels[row]] += 1
            chosen.append(row)
    return sorted(chosen)


def check_fractions(validation_fraction: float, test_fraction: float) -> None:
    """Refuse fractions that leave nothing to train on.

    Raises:
        SettingsError: a fraction is outside [0, 1), or both together reach 1.
    """
    for name, value in (("validation_fraction", validation_fraction), ("test_fraction", test_fraction)):
        if not 0 <= value < 1:
            raise SettingsError(f"{name} is {value}", why="A fraction lies between 0 and 1.", fix=f"{name}=0.1")
    if validation_fraction + test_fraction >= 1:
        raise SettingsError(
            f"validation_fraction {validation_fraction} and test_fraction {test_fraction} leave nothing for training",
            fix="validation_fraction=0.1 test_fraction=0.2",
        )


def split_rows(
    strata: Sequence[int], *, validation_fraction: float, test_fraction: float, seed: int
) -> dict[str, list[int]]:
    """Cut rows into train, validation and test, stratified.

    Every row lands in exactly one split; every stratum keeps at least one row in train; a split with a fraction above
    zero gets at least one row.

    Args:
        strata: the stratum (class) of each row.
        validation_fraction: share of all rows for validation; 0 for none.
        test_fraction: share of all rows for test; 0 for none.
        seed: decides which rows.

    Returns:
        split name -> row numbers, ascending.

    Raises:
        SettingsError: the fractions leave nothing to train on.
        DataError: there are too few rows for the splits asked for.
    """
    check_fractions(validation_fraction, test_fraction)
    order = stratified_order(strata, "split", seed)
    # The last row of each stratum in this order stays in train, whatever the fractions.
    kept = set({strata[row]: row for row in order}.values())
    free = [row for row in order if row not in kept]
    sizes = {
        name: max(1, round(len(strata) * fraction)) if fraction else 0
        for name, fraction in (("test", test_fraction), ("validation", validation_fraction))
    }
    wanted = sum(sizes.values())
    if wanted > len(free):
        raise DataError(
            f"{len(strata)} labelled rows in {len(kept)} classes are too few to set {sizes['validation']} aside for "
            f"validation and {sizes['test']} for test",
            why="Each class needs a row to train on, and the splits need rows of their own.",
            fix="label more rows, or give validation and test files of your own",
        )
    test, validation = free[: sizes["test"]], free[sizes["test"] : wanted]
    return {
        "train": sorted(kept | set(free[wanted:])),
        "validation": sorted(validation),
        "test": sorted(test),
    }
