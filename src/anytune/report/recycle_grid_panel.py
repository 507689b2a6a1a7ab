"""The panel of a grid of recycling on the page: claims, and case by case the arms, distances, curves and flips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from anytune.evaluate.recycle_arms import NO_DELTA, Line, Section, against, cost, sections
from anytune.evaluate.recycle_claims import claims
from anytune.evaluate.recycle_points import flips_against_gain, landings, learning
from anytune.report import words
from anytune.report.anytime_tables import plural
from anytune.report.arms import swatch
from anytune.report.recycle_grid_charts import by_distance, flips_chart, grid_looks, learning_curves
from anytune.report.recycle_tables import gold_of, named

#: cases shown at once; the others are folded away
CASES_SHOWN = 4


@dataclass(frozen=True)
class RecycleGrid:
    """The lines of one grid, and what the page calls it."""

    name: str
    lines: Sequence[Line]
    upgrades: Sequence[Line] = ()
    paths: Sequence[Line] = ()
    tasks: Sequence[Line] = ()


def panel(found: RecycleGrid) -> dict[str, Any]:
    """What the template shows of a grid."""
    made = sections(found.lines)
    looks = grid_looks(list(dict.fromkeys(arm for section in made for arm in section.arms)))
    cases = [_case(section, found, looks) for section in made]
    names = {line["task"] for line in found.lines}
    return {
        "name": found.name, "control": found.lines[0]["control"],
        "note": f"{plural(len(names), 'task')}, {plural(len(found.upgrades), 'upgrade')}",
        "upgrades": [f"{line['upgrade']}: {line['distance']['relative']:.3g}"
                     for line in sorted(found.upgrades, key=lambda line: line["distance"]["relative"])],
        "claims": [
            {"text": one.text, "form": one.form, "measure": one.measure, "outcome": one.word,
             "mean": words.signed(one.mean, 2), "small": words.interval_text(one.low, one.high)}
            for one in claims(made, found.paths)
        ],
        "cases": cases[:CASES_SHOWN], "more": cases[CASES_SHOWN:],
        "failed": [f"{named(line)}: {line['failed']}" for line in found.lines if line["failed"]],
        "refused": [f"{named(line)}: {line['refused']}" for line in found.lines if line.get("refused")],
    }  # fmt: skip


def _case(section: Section, found: RecycleGrid, looks: Any) -> dict[str, Any]:
    control = section.control
    distances = {line["upgrade"]: float(line["distance"]["relative"]) for line in found.upgrades}
    gains, flips = against([section], control), flips_against_gain(section, gold_of(found.tasks))
    flipped = {one.arm: one.flips for one in flips}
    rows = []
    for arm in section.arms:
        small, paid = "", None if arm == NO_DELTA else cost(section, arm)
        if arm in gains:
            one = gains[arm]
            small = f"{words.signed(one.difference.mean)} {words.interval(one.difference)}".strip()
            small += f", {one.outcome}"
        rows.append({
            "arm": arm, "swatch": swatch(looks[arm]), "control": arm == control, "small": small,
            "mean": words.decimal(section.mean(arm), 2),
            "flips": words.decimal(flipped[arm].mean, 2) if arm in flipped else words.NOTHING,
            "cost": words.NOTHING if paid is None else f"{words.decimal(paid[0], 2)} / {words.decimal(paid[1], 2)}",
        })  # fmt: skip
    landed = landings(section, distances)
    pictures = [
        ("Test score against the distance of the bases", by_distance(landed, looks, control, gains=False)),
        (f"Gain over {control} against the distance", by_distance(landed, looks, control, gains=True)),
        ("Learning curves", learning_curves(learning(section), looks)),
        ("Negative flips against the gain", flips_chart(flips, looks, control)),
    ]
    title = str(section.case)
    return {
        "title": f"{title[0].upper()}{title[1:]}", "rows": rows,
        "pictures": [(name, drawn) for name, drawn in pictures if drawn is not None],
    }  # fmt: skip
