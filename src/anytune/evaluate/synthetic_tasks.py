"""Synthetic tasks with three separate knobs, to see what a measure of transferability looks at.

Real tasks differ in everything at once: what the label depends on, which words occur, how the input is laid out. Here
each of the three is set by itself, and the other two stay what they are, to the letter:

    rule     an angle in [0, 180). Each of 24 cue words points in a direction of the plane, a text's three cues add up,
             and the label says on which side of the line through 0 at this angle the sum lies. Two rules with angles d
             apart agree on about 1 - d / 180 of the texts; 90 is unrelated.
    inputs   a share in [0, 1]: how many of the eight other words come from one list (offices) instead of another (the
             sea). They say nothing about the label.
    format   single: one text; pair: the first half and the second half as two segments; question: one text in a
             template; list: one text with its words numbered.

Both labels are equally likely under every rule. Tasks of one seed draw the same cues and the same places, so a knob
changes nothing but itself; of other seeds, other texts of the same kind. What a measure looks at is read off by
:func:`knob_effects`. Pure functions: who wants files writes :meth:`SyntheticTask.files`.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from anytune.errors import DataError, SettingsError

Format = Literal["single", "pair", "question", "list"]
Knob = Literal["rule", "inputs", "format"]
FORMATS: tuple[Format, ...] = get_args(Format)
KNOBS: tuple[Knob, ...] = get_args(Knob)
LABELS = ("left", "right")
#: Cue word i points at 15 i + 7.5 degrees, so each has its opposite twelve places on.
CUES = (
    *("red", "table", "north", "paper", "stone", "music", "green", "window", "river", "train", "bread", "glass"),
    *("horse", "cloud", "yellow", "garden", "hammer", "letter", "ship", "candle", "mirror", "button", "pepper"),
    "ladder",
)
SEA = (
    *("wave", "tide", "harbor", "sail", "anchor", "coast", "island", "storm"),
    *("shore", "fish", "boat", "wind", "beach", "dock", "crew", "whale"),
)
OFFICE = (
    *("meeting", "report", "manager", "email", "budget", "contract", "client", "desk"),
    *("salary", "office", "project", "team", "phone", "staff", "boss", "lawyer"),
)
_FORMAT: dict[str, Format] = {name: name for name in FORMATS}
_NAME = re.compile(r"rule(?P<rule>[^-]+)-inputs(?P<inputs>[^-]+)-(?P<format>[^-]+)-seed(?P<seed>\d+)")
_CUES_A_TEXT, _OTHERS_A_TEXT = 3, 8
#: Degrees added to every rule, so that no sum of cues lies on its line.
_TILT = 1.0


@dataclass(frozen=True)
class SyntheticTask:
    """A task by its knobs; ``seed`` draws its texts.

    Raises:
        SettingsError: a knob out of its range.
    """

    rule: float = 0.0
    inputs: float = 0.0
    format: Format = "single"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rule < 180:
            raise SettingsError(
                f"rule={self.rule}", why="It is an angle in degrees, from 0 to below 180.", fix="rule=90"
            )
        if not 0 <= self.inputs <= 1:
            raise SettingsError(f"inputs={self.inputs}", why="It is a share.", fix="inputs=1")
        if self.format not in FORMATS:
            raise SettingsError(f"unknown format '{self.format}'", why=f"Known: {', '.join(FORMATS)}.", fix="single")

    @property
    def name(self) -> str:
        """Its knobs in a word: "rule30-inputs0.5-pair-seed0"."""
        return f"rule{self.rule:g}-inputs{self.inputs:g}-{self.format}-seed{self.seed}"

    def rows(self, count: int) -> list[tuple[str, ...]]:
        """``count`` distinct rows (text, label), or (text, text_pair, label) where the format is pair."""
        draw = np.random.default_rng(self.seed)
        found: dict[tuple[str, ...], str] = {}
        while len(found) < count:
            cues = draw.integers(0, len(CUES), _CUES_A_TEXT)
            places = draw.integers(0, len(SEA), _OTHERS_A_TEXT)
            other = draw.random(_OTHERS_A_TEXT) < self.inputs
            order = draw.permutation(_CUES_A_TEXT + _OTHERS_A_TEXT)
            angles = np.radians(360 / len(CUES) * (cues + 0.5))
            total = np.array([np.cos(angles).sum(), np.sin(angles).sum()])
            if np.abs(total).max() < 1e-9:
                continue  # three cues that cancel out lie on every line
            across = math.radians(self.rule + _TILT + 90)
            side = total @ (math.cos(across), math.sin(across))
            words = [CUES[cue] for cue in cues]
            words += [(OFFICE if flag else SEA)[place] for place, flag in zip(places, other, strict=True)]
            found.setdefault(_laid_out([words[place] for place in order], self.format), LABELS[int(side < 0)])
        return [(*text, label) for text, label in found.items()]

    def files(self, train: int = 256, validation: int = 128, test: int = 256) -> dict[str, str]:
        """The three splits as the text of CSV files by their names; no row is in two of them."""
        rows, made, start = self.rows(train + validation + test), {}, 0
        head = ("text", "text_pair", "label") if self.format == "pair" else ("text", "label")
        for split, size in (("train", train), ("validation", validation), ("test", test)):
            written = io.StringIO()
            csv.writer(written, lineterminator="\n").writerows([head, *rows[start : start + size]])
            made[f"{split}.csv"] = written.getvalue()
            start += size
        return made


def by_name(name: str) -> SyntheticTask | None:
    """The task that has this name; None if none has."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    try:
        made = SyntheticTask(
            float(found["rule"]), float(found["inputs"]), _FORMAT[found["format"]], int(found["seed"])
        )
    except (SettingsError, KeyError, ValueError):
        return None
    return made if made.name == name else None


def family(knob: Knob, values: Sequence[Any], **others: Any) -> list[SyntheticTask]:
    """Tasks that differ in ``knob`` alone, on the same draws: ``family("rule", (0, 30, 60, 90), format="pair")``."""
    return [SyntheticTask(**{**others, knob: value}) for value in values]


def factorial(
    rules: Sequence[float] = (0.0, 45.0, 90.0),
    inputs: Sequence[float] = (0.0, 1.0),
    formats: Sequence[Format] = ("single", "pair"),
    seed: int = 0,
) -> list[SyntheticTask]:
    """A task for each combination, each with draws of its own, so that none shares its texts with another."""
    every = itertools.product(rules, inputs, formats)
    return [SyntheticTask(*knobs, seed=seed + place) for place, knobs in enumerate(every)]


def distance(a: SyntheticTask, b: SyntheticTask, knob: Knob) -> float:
    """How far apart two tasks are in one knob, in [0, 1]; rules by the angle between their lines, 1 for 90 degrees."""
    if knob == "rule":
        apart = abs(a.rule - b.rule)
        return min(apart, 180 - apart) / 90
    return abs(a.inputs - b.inputs) if knob == "inputs" else float(a.format != b.format)


@dataclass(frozen=True)
class KnobEffects:
    """What a measure looks at.

    Attributes:
        effects: knob -> by how many standard deviations (over pairs) the measure falls where tasks lie one standard
            deviation further apart in this knob and no further in the others; only knobs that vary.
        explained: share of the measure's variance over pairs that the knobs explain together (R^2), in [0, 1].
        pairs: that were looked at.
    """

    effects: dict[Knob, float]
    explained: float
    pairs: int


def knob_effects(similarities: Any, tasks: Sequence[SyntheticTask]) -> KnobEffects:
    """Regress a measure on the distances of its pairs, all in units of their standard deviation.

    In a balanced design (:func:`factorial`) the distances are nearly uncorrelated, and an effect of 1 beside two of 0
    means that the measure looks at nothing else.

    Args:
        similarities: [K, K], row the source and column the target; the diagonal is left out, and NaN.
        tasks: the K tasks.

    Raises:
        DataError: shapes differ, no more pairs than varying knobs, or the measure is the same for all pairs.
    """
    values = np.asarray(similarities, dtype=np.float64)
    if values.shape != (len(tasks), len(tasks)):
        raise DataError(f"similarities of shape {values.shape} for {len(tasks)} tasks", why="One row and column each.")
    keep = np.isfinite(values) & ~np.eye(len(tasks), dtype=bool)
    apart = {knob: np.array([[distance(a, b, knob) for b in tasks] for a in tasks])[keep] for knob in KNOBS}
    varying = [knob for knob in KNOBS if keep.any() and np.ptp(apart[knob]) > 0]
    seen = values[keep]
    if len(seen) <= len(varying) + 1 or not varying:
        raise DataError(
            f"{len(seen)} pairs, {len(varying)} knobs that vary", why="An effect needs more pairs than knobs."
        )
    if np.ptp(seen) <= 0:
        raise DataError(f"a measure that is {seen[0]:g} for all pairs", why="It looks at nothing.")
    regressors = np.stack([_standard(apart[knob]) for knob in varying], axis=1)
    wanted = _standard(seen)
    slopes = np.linalg.lstsq(regressors, wanted, rcond=None)[0]
    explained = 1 - float(((wanted - regressors @ slopes) ** 2).mean())
    effects = {knob: -float(slope) for knob, slope in zip(varying, slopes, strict=True)}
    return KnobEffects(effects, min(1.0, max(0.0, explained)), len(seen))


def _standard(values: np.ndarray) -> np.ndarray:
    return np.asarray((values - values.mean()) / values.std())


def _laid_out(words: Sequence[str], format: Format) -> tuple[str, ...]:
    if format == "pair":
        half = len(words) // 2
        return " ".join(words[:half]), " ".join(words[half:])
    if format == "question":
        return (f"which side do these words take : {' '.join(words)} ?",)
    if format == "list":
        return (" ".join(f"{place} . {word}" for place, word in enumerate(words, 1)),)
    return (" ".join(words),)
