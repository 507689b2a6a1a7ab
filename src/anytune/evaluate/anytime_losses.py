"""Held-out losses of a stream, read as an anytime matrix: adaptation, generalisation and forgetting in nats.

Where few examples hide in a tuned score what pre-training did, the loss on held-out text still shows it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from anytune.evaluate.anytime import AccuracyMatrix, Cell, Line, RunName
from anytune.evaluate.scores import number


def loss_table(stages: Iterable[Line]) -> dict[str, dict[int, dict[str, dict[int, float]]]]:
    """Arm -> order -> domain -> stage -> mean held-out loss over seeds (nats per predicted token); stage 0 is before.

    Args:
        stages: lines of a ``stages.jsonl``: ``arm``, ``order``, ``stage``, ``losses`` (domain -> ``before``,
            ``after``).
    """
    gathered: dict[tuple[str, int, str, int], list[float]] = {}
    for line in stages:
        for name, loss in line["losses"].items():
            own = {line["stage"]: loss.get("after")}
            if line["first"]:
                own[0] = loss.get("before")
            for stage, value in own.items():
                if (value := number(value)) is not None:
                    gathered.setdefault((line["arm"], line["order"], name, stage), []).append(value)
    made: dict[str, dict[int, dict[str, dict[int, float]]]] = {}
    for (arm, order, name, stage), values in sorted(gathered.items(), key=lambda item: item[0][3]):
        made.setdefault(arm, {}).setdefault(order, {}).setdefault(name, {})[stage] = float(np.mean(values))
    return made


#: what is read off the losses: all of them gains, so that above 0 is better
LOSS_METRICS = ("a_gain", "o_gain", "f_gain", "forgetting")
#: a nat in the unit of loss matrices; one such unit is about one per cent of perplexity
NAT = 100.0


def loss_matrices(stages: Iterable[Line]) -> dict[str, dict[RunName, AccuracyMatrix]]:
    """Arm -> run -> matrix of held-out losses, in hundredths of a nat and with a minus sign: more is better.

    So the metrics of scores speak of losses, too: ``a_gain`` is how far a stage's own loss fell, ``o_gain`` what
    became of the domains that had not come yet, ``forgetting`` what was lost again.

    Args:
        stages: as for :func:`loss_table`, with ``stream`` and ``seed``; of domains without held-out text, and after a
            stage that diverged, there is nothing.
    """
    found: dict[str, dict[RunName, tuple[tuple[str, ...], dict[Cell, float | None]]]] = {}
    for line in stages:
        stream = tuple(line["stream"])
        _, cells = found.setdefault(line["arm"], {}).setdefault((line["order"], line["seed"]), (stream, {}))
        for name, loss in line["losses"].items():
            place = stream.index(name) + 1
            for stage, value in (
                (line["stage"], loss.get("after")),
                (0, loss.get("before") if line["first"] else None),
            ):
                if (known := number(value)) is not None:
                    cells[stage, place] = -NAT * known
    return {
        arm: {run: AccuracyMatrix.of_cells(stream, cells) for run, (stream, cells) in runs.items()}
        for arm, runs in found.items()
    }
