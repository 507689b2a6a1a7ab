"""A linear probe: how much of a task can be read off features that were not made for it.

A body that was tuned on one task is frozen, and a ridge classifier (or regression) is fitted on its features of the
texts of another task. Where the untouched base gives a better probe, tuning has thrown away what the base knew
(representation collapse, as Aghajanyan et al. 2021, "Better Fine-Tuning by Reducing Representational Collapse",
measure it). Pure functions on numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

#: Penalties tried, on features of unit variance; the validation score chooses.
PENALTIES = tuple(10.0**power for power in range(-2, 6))


@dataclass(frozen=True)
class Features:
    """One split: ``inputs`` [n, width] and ``labels`` [n], class numbers or real values."""

    inputs: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Probed:
    """What a probe answers to the test split, [n], and the penalty that validation chose."""

    predicted: np.ndarray
    penalty: float


def probe(
    train: Features,
    validation: Features,
    test: Features,
    *,
    classes: int | None,
    better: Callable[[np.ndarray, np.ndarray], float],
    penalties: Sequence[float] = PENALTIES,
) -> Probed:
    """Fit on ``train``, choose the penalty on ``validation``, answer ``test``.

    W = argmin |X W - Y|^2 + penalty |W|^2, where X [n, width] are the training features with mean 0 and variance 1
    (features that never vary count as 0) and Y [n, classes] the one-hot labels with their mean taken off; for
    regression Y [n, 1]. One singular value decomposition gives all penalties. The mean is put back and is not
    penalised; the largest of a row's numbers is its class.

    Args:
        classes: number of classes; None for regression.
        better: (predicted, gold) -> a number that is larger for the better.
        penalties: of equally good ones the largest is taken.
    """
    centre, scale = train.inputs.mean(axis=0), train.inputs.std(axis=0)
    constant = scale <= 1e-7 * np.maximum(1.0, np.abs(centre))
    scale = np.where(constant, 1.0, scale)

    def standard(inputs: np.ndarray) -> np.ndarray:
        moved = (inputs.astype(np.float64) - centre) / scale
        moved[:, constant] = 0.0
        return np.asarray(moved, dtype=np.float64)

    targets = np.eye(classes)[train.labels] if classes is not None else train.labels.astype(np.float64)[:, None]
    mean = targets.mean(axis=0)
    left, singular, right = np.linalg.svd(standard(train.inputs), full_matrices=False)
    turned = left.T @ (targets - mean)
    looks, tests = standard(validation.inputs) @ right.T, standard(test.inputs) @ right.T

    def answers(inputs: np.ndarray, penalty: float) -> np.ndarray:
        outputs = inputs @ ((singular / (singular**2 + penalty))[:, None] * turned) + mean
        return np.asarray(outputs.argmax(axis=1) if classes is not None else outputs[:, 0])

    scored = [(better(answers(looks, penalty), validation.labels), penalty) for penalty in penalties]
    chosen = max(scored)[1]
    return Probed(answers(tests, chosen), chosen)
