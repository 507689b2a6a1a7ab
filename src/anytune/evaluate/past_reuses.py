"""Past direct reuses out of a grid of recycling, for the forecast to learn from: pure functions on its lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anytune.errors import DataError
from anytune.evaluate.direct_forecast import SHARES, Reuse
from anytune.evaluate.flips import disagreement
from anytune.evaluate.scores import number


def reuses_of_grid(
    lines: Sequence[Mapping[str, Any]], upgrades: Sequence[Mapping[str, Any]], name: str = ""
) -> list[Reuse]:
    """The direct reuses among the lines of a ``job: recycle-grid``: each with the run of the same delta at home.

    A direct run that stands there for several sizes of new data, of which it uses none, counts once. Left out are
    upgrades that changed nothing, as every forecast is right there, runs that diverged, and metrics that are no share
    of answers. Answers are those to the test split, which chose nothing.

    Args:
        lines: of ``runs.jsonl``.
        upgrades: of ``bases.jsonl``, with the distance of each upgrade from the first base.
        name: of the grid; upgrades of two grids are not the same.
    """
    moved = {one["upgrade"]: number(one["distance"]["relative"]) for one in upgrades}
    home = {_delta(line): line for line in lines if line["arm"] == "old" and not line["failed"]}
    found: list[Reuse] = []
    seen: set[tuple[Any, ...]] = set()
    for line in lines:
        before, far = home.get(_delta(line)), moved.get(line["upgrade"])
        if not _direct(line) or before is None or not far or line["metric"] not in SHARES:
            continue
        scores = number(before["test"]), number(line["test"])
        if scores[0] is None or scores[1] is None or (line["upgrade"], *_delta(line)) in seen:
            continue
        seen.add((line["upgrade"], *_delta(line)))
        found.append(Reuse(
            upgrade=f"{name}/{line['upgrade']}" if name else str(line["upgrade"]), moved=far,
            size=number(before.get("size")), disagreement=_changed(before["predictions"], line["predictions"]),
            drop=scores[0] - scores[1], task=str(line["task"]), form=str(line["form"]),
        ))  # fmt: skip
    return found


def _delta(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return line["form"], line["task"], line["old"], line["seed"]


def _direct(line: Mapping[str, Any]) -> bool:
    """A delta of its own task put straight onto the upgrade, untrained."""
    return (
        line["method"] == "direct" and line["weights"] == "own" and not line["hop"] and not line["steps"]
        and not line["failed"]
    )  # fmt: skip


def _changed(old: Sequence[Any], new: Sequence[Any]) -> float | None:
    """Share of answers that differ; of tags word by word. None where answers are not there, or are no classes."""
    flat = [[tag for one in side for tag in (one if isinstance(one, list) else [one])] for side in (old, new)]
    if not flat[0] or any(isinstance(one, float) for side in flat for one in side):
        return None
    try:
        return disagreement(*flat)
    except DataError:
        return None
