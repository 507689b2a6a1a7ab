"""From manifests to numbers: scores over seeds, learning curves, comparisons at equal budget, and plain sentences.

Pure functions on numbers and manifests: nothing here reads a file or loads a model.
"""

from __future__ import annotations

from anytune.evaluate.compare import Row, compare
from anytune.evaluate.curves import Band, Curve, Reached, align, area, curve_of, reach
from anytune.evaluate.heldout import HeldOut, held_out
from anytune.evaluate.runs import Artefact, Run, runs_of
from anytune.evaluate.scores import Difference, Summary, paired_difference, summarise
from anytune.evaluate.verdicts import verdicts

__all__ = [
    "Artefact",
    "Band",
    "Curve",
    "Difference",
    "HeldOut",
    "Reached",
    "Row",
    "Run",
    "Summary",
    "align",
    "area",
    "compare",
    "curve_of",
    "held_out",
    "paired_difference",
    "reach",
    "runs_of",
    "summarise",
    "verdicts",
]
