"""How sure a score is of the texts it was measured on, for scores that are no mean over texts (F1, Matthews)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

#: Groups of texts that are left out in turn; more would take longer and say little more.
GROUPS = 100


def jackknife_error(statistic: Callable[[np.ndarray], float | None], texts: int, *, groups: int = GROUPS) -> float:
    """Standard error of a statistic over texts: one group of them is left out at a time (Tukey 1958).

    With G groups and ``t_g`` the statistic without group g: ``((G - 1) / G * sum (t_g - mean t)^2)^(1/2)``. Text i is
    in group i mod G, so that texts sorted by label spread over all groups. Of a mean over texts, each a group, this
    is its usual standard error.

    Args:
        statistic: what it is of the texts of these numbers, an increasing int64 array; None where it is undefined.
        texts: how many there are.
        groups: at most so many.

    Returns:
        In the statistic's unit; infinity where it is undefined without one of the groups, or there is but one.
    """
    count = min(texts, groups)
    numbers = np.arange(texts)
    without = [statistic(numbers[numbers % count != group]) for group in range(count)] if count > 1 else []
    known = np.array([value for value in without if value is not None], dtype=np.float64)
    if not without or len(known) < len(without) or not np.isfinite(known).all():
        return float("inf")
    return float(np.sqrt((count - 1) / count * np.square(known - known.mean()).sum()))
