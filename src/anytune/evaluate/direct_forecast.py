"""What direct reuse will cost, before it is tried: predicted loss of score with an interval, learned from past reuses.

A row is one past reuse: a delta put onto an upgraded base as it is. Its ``drop`` is the score on the old base less the
score on the new one, as a share (0.01 is one point; below 0 the score rose). Two forecasts are made of it, both with
weights that are never negative and no constant, so that a base that did not move predicts a drop of 0:

    distance   drop ~ w1 log(1 + 100 moved) + w2 log(1 + moved / size)         moved = ||new - old|| / ||old||
    texts      drop ~ the same + w3 disagreement                                size  = ||delta|| / ||old||

``disagreement`` is the share of texts that the tuned model answers differently on the new base: it takes texts and no
labels. Of a soft prompt ``size`` says nothing about weights; it leaves w2 out.

The interval is split-conformal: half of the past upgrades fit the weights, and the others say how large errors are,
as multiples of (predicted + 1 point); of these the (n + 1) * level / n quantile is taken. It holds on average for
reuses like the past ones. A new upgrade is never quite like them, so ``coverage`` leaves out one upgrade at a time
and counts how often the others' interval holds what was measured. Nothing here is a promise about one reuse.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import numpy as np

from anytune.errors import DataError
from anytune.evaluate.scores import number

Kind = Literal["distance", "texts"]
KINDS: tuple[Kind, ...] = ("distance", "texts")
LEVEL = 0.9
#: One point: errors are measured against the predicted drop plus this, so that small drops get narrow intervals.
FLOOR = 0.01
#: With fewer upgrades than this, their rows are divided in place of whole upgrades.
FEWEST_UPGRADES = 4
#: Makes the weights of features that never vary 0; far below what any measured row decides.
_RIDGE = 1e-6
#: Metrics that are a share of answers, or like one: whose drop a forecast speaks of.
SHARES = ("accuracy", "macro_f1", "micro_f1", "matthews", "f1_entities", "accuracy_tokens", "exact_match")
SHIPPED = "direct_forecast.json"


@dataclass(frozen=True)
class Reuse:
    """One direct reuse, past or planned.

    Attributes:
        upgrade: which upgrade of which base; reuses of one upgrade are not independent of each other.
        moved: relative distance of the bases (``base_distance(...).whole.relative``).
        size: length of the delta relative to the old base (``delta_size``); None for soft prompts.
        disagreement: share of texts with another answer, 0 to 1; None where it was not measured.
        drop: what was measured, as a share; None where it is to be forecast.
        task, form: for reading alone.
    """

    upgrade: str
    moved: float
    size: float | None = None
    disagreement: float | None = None
    drop: float | None = None
    task: str = ""
    form: str = ""

    @classmethod
    def of_line(cls, line: Mapping[str, Any]) -> Reuse | None:
        """The reuse that a line of a job's ``runs.jsonl`` records under "reuse"; None for lines without."""
        found = line.get("reuse")
        if not isinstance(found, Mapping) or number(found.get("moved")) is None:
            return None
        values = {name: number(found.get(name)) for name in ("moved", "size", "disagreement", "drop")}
        words = {name: str(found.get(name, "")) for name in ("upgrade", "task", "form")}
        return cls(**values, **words)  # type: ignore[arg-type]

    def record(self) -> dict[str, Any]:
        """Plain values for JSON: what ``of_line`` reads."""
        return dict(vars(self))


@dataclass(frozen=True)
class Forecast:
    """A predicted drop and its interval at ``level``, as shares; None where too few reuses are known for one."""

    kind: Kind
    drop: float
    low: float | None
    high: float | None
    level: float
    #: reuses and upgrades it was learned from
    reuses: int
    upgrades: int

    def verdict(self, tolerance: float = FLOOR) -> Literal["will do", "will not do", "undecided"]:
        """Whether direct reuse loses at most ``tolerance``, as far as the whole interval says so."""
        if self.high is not None and self.high <= tolerance:
            return "will do"
        return "will not do" if self.low is not None and self.low > tolerance else "undecided"

    def record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dict(vars(self))


@dataclass(frozen=True)
class Model:
    """Fitted weights of one kind of forecast, and how large its errors were on reuses it was not fitted on."""

    kind: Kind
    weights: tuple[float, ...]
    #: the conformal quantile of |error| / (predicted + FLOOR); None: too few reuses for the level
    quantile: float | None
    level: float
    reuses: int
    calibrated_on: int
    upgrades: int

    def forecast(self, reuse: Reuse) -> Forecast | None:
        """The forecast for a reuse; None where it lacks what this kind needs."""
        if not _has(reuse, self.kind):
            return None
        drop = float(_features(reuse, self.kind) @ np.array(self.weights))
        ends: tuple[float | None, float | None] = (None, None)
        if self.quantile is not None:
            wide = self.quantile * (drop + FLOOR)
            ends = (max(-1.0, drop - wide), min(1.0, drop + wide))
        return Forecast(self.kind, drop, *ends, self.level, self.reuses, self.upgrades)

    def record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self), "weights": list(self.weights)}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Model:
        """Back from ``record``."""
        return cls(**{**record, "weights": tuple(record["weights"])})


@dataclass(frozen=True)
class Coverage:
    """What leaving out one upgrade at a time says of a kind of forecast.

    Attributes:
        covered: share of reuses whose measured drop lay in the interval made from the other upgrades.
        level: what it was meant to be.
        mean_error: mean of |predicted - measured|, as a share; ``mean_without`` of predicting no drop at all.
        mean_width: of the intervals.
        reuses, upgrades: how many there were; ``bounded`` of the reuses had an interval at all.
    """

    kind: Kind
    level: float
    covered: float | None
    mean_error: float
    mean_without: float
    mean_width: float | None
    reuses: int
    bounded: int
    upgrades: int

    def record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dict(vars(self))


def fit(rows: Iterable[Reuse], kind: Kind = "distance", *, level: float = LEVEL) -> Model:
    """Learn a forecast from past reuses: those with a measured drop, and for ``texts`` a disagreement.

    The same rows give the same model in whatever order they come.

    Raises:
        DataError: fewer than two such rows.
    """
    known = _known(rows, kind)
    if len(known) < 2:
        raise DataError(
            f"{len(known)} past reuses for the forecast '{kind}'",
            why="It takes some to fit the weights and others to say how large its errors are.",
        )
    fitted, held = _halves(known)
    weights = _nonnegative(
        np.stack([_features(row, kind) for row in fitted]), np.array([row.drop for row in fitted], dtype=np.float64)
    )
    errors = []
    for row in held:
        predicted = float(_features(row, kind) @ weights)
        errors.append(abs(float(row.drop or 0.0) - predicted) / (predicted + FLOOR))
    return Model(
        kind, tuple(float(value) for value in weights), _quantile(errors, level), level, len(known), len(held),
        len({row.upgrade for row in known}),
    )  # fmt: skip


def coverage(rows: Iterable[Reuse], kind: Kind = "distance", *, level: float = LEVEL) -> Coverage:
    """Leave out one upgrade at a time, forecast its reuses from all others, and compare with what was measured.

    Raises:
        DataError: fewer than two upgrades, or too few reuses in the others.
    """
    known = _known(rows, kind)
    upgrades = sorted({row.upgrade for row in known})
    if len(upgrades) < 2:
        raise DataError(f"{len(upgrades)} upgrades", why="One is left out at a time, and the others forecast it.")
    inside, widths, errors = [], [], []
    for upgrade in upgrades:
        model = fit([row for row in known if row.upgrade != upgrade], kind, level=level)
        for row in known:
            said = model.forecast(row) if row.upgrade == upgrade else None
            if said is None or row.drop is None:
                continue
            errors.append(abs(said.drop - row.drop))
            if said.low is not None and said.high is not None:
                inside.append(said.low <= row.drop <= said.high)
                widths.append(said.high - said.low)
    return Coverage(
        kind=kind, level=level, covered=float(np.mean(inside)) if inside else None,
        mean_error=float(np.mean(errors)), mean_without=float(np.mean([abs(row.drop or 0.0) for row in known])),
        mean_width=float(np.mean(widths)) if widths else None, reuses=len(known), bounded=len(inside),
        upgrades=len(upgrades),
    )  # fmt: skip


@dataclass(frozen=True)
class Forecaster:
    """The fitted models of both kinds, as shipped or as fitted on reuses of one's own."""

    models: Mapping[str, Model]
    coverage: Mapping[str, Coverage]
    source: str = ""

    @classmethod
    def fitted(cls, rows: Iterable[Reuse], *, level: float = LEVEL, source: str = "") -> Forecaster:
        """Fit every kind that the rows allow, and measure its coverage where there are upgrades enough."""
        rows = list(rows)
        models: dict[str, Model] = {}
        covered: dict[str, Coverage] = {}
        for kind in KINDS:
            try:
                models[kind] = fit(rows, kind, level=level)
                covered[kind] = coverage(rows, kind, level=level)
            except DataError:
                continue  # a kind that nothing is known for is not forecast
        return cls(models, covered, source)

    def forecast(self, reuse: Reuse) -> Forecast | None:
        """The forecast that uses most of what is known about a reuse; None where no model fits it."""
        for kind in reversed(KINDS):
            said = self.models[kind].forecast(reuse) if kind in self.models else None
            if said is not None:
                return said
        return None

    def dumps(self) -> str:
        """As JSON text; the same rows give the same bytes."""
        value = {
            "source": self.source,
            "models": {kind: model.record() for kind, model in self.models.items()},
            "coverage": {kind: found.record() for kind, found in self.coverage.items()},
        }
        return json.dumps(value, indent=1) + "\n"

    @classmethod
    def loads(cls, text: str) -> Forecaster:
        """Back from ``dumps``.

        Raises:
            DataError: the text is something else.
        """
        try:
            value = json.loads(text)
            return cls(
                {kind: Model.of_record(record) for kind, record in value["models"].items()},
                {kind: Coverage(**record) for kind, record in value["coverage"].items()},
                str(value.get("source", "")),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise DataError(
                f"these are no coefficients of a forecast: {problem!r}", why="They are made from past reuses."
            ) from None


def shipped() -> Forecaster:
    """The forecaster that comes with the package; it has no model where no evidence was there to make one."""
    place = resources.files("anytune.evaluate").joinpath(SHIPPED)
    return Forecaster.loads(place.read_text(encoding="utf-8")) if place.is_file() else Forecaster({}, {})


def delta_size(difference_length: float, base_length: float) -> float:
    """``||delta|| / ||old||``: how large a tuned difference is (``base_distance.norm_of``) beside its base."""
    return difference_length / base_length if base_length else math.inf


def _has(row: Reuse, kind: Kind) -> bool:
    return math.isfinite(row.moved) and (kind == "distance" or row.disagreement is not None)


def _known(rows: Iterable[Reuse], kind: Kind) -> list[Reuse]:
    found = [row for row in rows if _has(row, kind) and row.drop is not None and math.isfinite(row.drop)]
    return sorted(found, key=_draw)


def _features(row: Reuse, kind: Kind) -> np.ndarray:
    ratio = 0.0 if not row.size else math.log1p(row.moved / row.size)
    found = [math.log1p(100.0 * row.moved), ratio]
    return np.array([*found, row.disagreement or 0.0] if kind == "texts" else found)


def _draw(row: Reuse) -> str:
    """A place in an order that has nothing to do with what was measured, and is the same every time."""
    return hashlib.sha256(repr((row.upgrade, row.task, row.form, row.moved, row.size, row.drop)).encode()).hexdigest()


def _halves(rows: Sequence[Reuse]) -> tuple[list[Reuse], list[Reuse]]:
    """Rows to fit on and rows to calibrate on: whole upgrades where there are some, else single rows."""
    upgrades = sorted({row.upgrade for row in rows}, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    if len(upgrades) >= FEWEST_UPGRADES:
        first = set(upgrades[::2])
        return [row for row in rows if row.upgrade in first], [row for row in rows if row.upgrade not in first]
    return list(rows[::2]), list(rows[1::2])


def _quantile(errors: Sequence[float], level: float) -> float | None:
    """The ceil((n + 1) level)-th smallest error; None where n is too small for the level."""
    place = math.ceil((len(errors) + 1) * level)
    return sorted(errors)[place - 1] if place <= len(errors) else None


def _nonnegative(features: np.ndarray, target: np.ndarray, rounds: int = 500) -> np.ndarray:
    """argmin over w >= 0 of |X w - y|^2 + ridge |w|^2, by coordinate descent. X [n, k], y [n] -> w [k]."""
    gram = features.T @ features + _RIDGE * np.eye(features.shape[1])
    aim, weights = features.T @ target, np.zeros(features.shape[1])
    for _ in range(rounds):
        for place in range(len(weights)):
            left = aim[place] - gram[place] @ weights + gram[place, place] * weights[place]
            weights[place] = max(0.0, left / gram[place, place])
    return weights
