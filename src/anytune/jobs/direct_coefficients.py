"""Learn the forecast of direct reuse from past ones::

    python -m anytune.jobs.direct_coefficients EVIDENCE... --out src/anytune/evaluate/direct_forecast.json

EVIDENCE is the folder of a ``job: recycle-grid`` (``runs.jsonl``, ``bases.jsonl``), or a file of JSON lines that each
hold a ``reuse`` (``DeltaDiagnosis.reuse``). The same lines give the same bytes. Users fit a forecaster to their own
reuses in the same way and hand it to ``anytune.diagnose(forecaster=...)``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from anytune.errors import AnytuneError, DataError
from anytune.evaluate.direct_forecast import LEVEL, Forecaster, Reuse
from anytune.evaluate.past_reuses import reuses_of_grid
from anytune.jobs.arms import read_lines
from anytune.manifests import write_atomic


def read_reuses(places: Sequence[str | Path]) -> list[Reuse]:
    """The reuses of folders of grids and of files of lines.

    Raises:
        DataError: one cannot be read, or holds no reuse.
    """
    found: list[Reuse] = []
    for place in map(Path, places):
        if place.is_dir():
            lines = read_lines(place / "runs.jsonl", ("arm", "metric", "predictions"))
            here = reuses_of_grid(lines, read_lines(place / "bases.jsonl", ("upgrade", "distance")), place.name)
        else:
            here = [one for one in map(Reuse.of_line, read_lines(place, ())) if one is not None]
        if not here:
            raise DataError(f"{place} holds no direct reuse", why="The forecast is learned from such.")
        found += here
    return found


def fit_from(places: Sequence[str | Path], *, level: float = LEVEL) -> Forecaster:
    """A forecaster fitted to the reuses of folders and files; it names them as its source."""
    names = ", ".join(Path(place).name if Path(place).is_dir() else Path(place).parent.name for place in places)
    return Forecaster.fitted(read_reuses(places), level=level, source=names)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit, write and say how well leaving out one upgrade at a time goes; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evidence", nargs="+", metavar="EVIDENCE")
    parser.add_argument("--out", required=True, metavar="FILE")
    parser.add_argument("--level", type=float, default=LEVEL, help="of the intervals")
    given = parser.parse_args(arguments)
    try:
        forecaster = fit_from(given.evidence, level=given.level)
        write_atomic(Path(given.out), forecaster.dumps().encode())
    except AnytuneError as problem:
        print(f"error: {problem}")
        return problem.exit_code
    for kind, found in forecaster.coverage.items():
        held = "no interval" if found.covered is None else f"{found.covered:.0%} of {found.bounded} in the interval"
        wide = "" if found.mean_width is None else f", {100 * found.mean_width:.1f} points wide"
        print(
            f"{kind}: {found.reuses} reuses over {found.upgrades} upgrades; left out one at a time, {held} "
            f"(meant: {found.level:.0%}{wide}), mean error {100 * found.mean_error:.1f} points against "
            f"{100 * found.mean_without:.1f} of predicting no loss"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
