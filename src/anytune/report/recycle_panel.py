"""The page of a diagnosis: one self-contained HTML file from its record alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from anytune import __version__
from anytune.manifests import write_atomic
from anytune.report import words
from anytune.report.recycle_charts import distance_bars, head_maps, map_width, path_chart

#: What the verdicts mean, in a reader's words.
MEANING = {
    "will do": "direct reuse will probably do",
    "will not do": "direct reuse will probably not do: initialize from it and tune, or distill",
    "undecided": "what is known does not say: score it on more labelled texts (--task)",
    "impossible": "cannot be put onto the new base: distill, or map",
    "damaged": "its weights cannot be read: put them back from a copy, or tune it again",
}
#: reasons shown for tensors that cannot be compared
REASONS_SHOWN = 8


def write_diagnosis(record: Mapping[str, Any], out: str | Path) -> Path:
    """Write the page of a diagnosis (``Diagnosis.record()``); a folder gets a ``diagnose.html``.

    Raises:
        StoreError: it cannot be written.
    """
    place = Path(out)
    if place.is_dir():
        place = place / "diagnose.html"
    write_atomic(place, page(record).encode())
    return place


def page(record: Mapping[str, Any]) -> str:
    """The page as text. Pure: the same record gives the same page."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    distance = record["distance"]
    return environment.get_template("diagnose.html").render(
        style=Markup(_asset("page.css")),
        version=__version__,
        old=record["old"],
        new=record["new"],
        headline=headline(record),
        facts=facts(distance),
        apart=distance["apart"][:REASONS_SHOWN],
        more_apart=max(0, len(distance["apart"]) - REASONS_SHOWN),
        bars=distance_bars(distance["modules"]),
        deltas=[delta_panel(one) for one in record["deltas"]],
        source=record["forecast_source"],
    )


def headline(record: Mapping[str, Any]) -> str:
    """What this says, in one sentence with numbers."""
    distance = record["distance"]
    if distance["l2"] == 0 and not distance["apart"]:
        return f"{record['new']} has the weights of {record['old']}, bit for bit"
    moved = f"{record['new']} is {100 * distance['relative']:.2g} % of its length away from {record['old']}"
    said = [one["verdict"] for one in record["deltas"]]
    if not said:
        return moved
    counts = [f"{said.count(verdict)} {verdict}" for verdict in MEANING if verdict in said]
    return f"{moved}; direct reuse of {len(said)} delta{'s' * (len(said) != 1)}: {', '.join(counts)}"


def facts(distance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, number) pairs about the two bases."""
    found = [
        ("Weights compared", words.count(distance["numbers"])),
        ("Relative distance", f"{distance['relative']:.3g}"),
        ("Per weight (RMS)", f"{distance['rms']:.3g}"),
        ("Cosine", f"{distance['cosine']:.6f}"),
    ]
    vocabulary = distance["vocabulary"]
    if vocabulary is not None:
        said = f"{words.count(vocabulary['shared'])} of {words.count(vocabulary['old'])} kept"
        if vocabulary["new"] > vocabulary["shared"]:
            said += f", {words.count(vocabulary['new'] - vocabulary['shared'])} new"
        if vocabulary["renumbered"]:
            said += f", {words.count(vocabulary['renumbered'])} renumbered"
        found.append(("Words", "the same" if vocabulary["same"] else said))
    found += [(f"Setting {name}", f"{before} → {after}") for name, (before, after) in distance["config"].items()]
    return found


def points_lost(drop: float | None, interval: Sequence[float] | None) -> str:
    """``8.6 (2.9 to 14.2)``: a loss measured in points, with its interval; empty where there is none."""
    if drop is None or interval is None:
        return ""
    return f"{100 * drop:.1f} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def delta_panel(one: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows of a delta."""
    share = 100 if one["metric"] is not None else 1
    numbers = [
        ("Form", one["form"]),
        ("Size beside the base", words.NOTHING if one["size"] is None else f"{one['size']:.3g}"),
        ("Texts", f"{one['rows']} ({one['source']})" if one["rows"] else "none"),
        ("Answers that change", _percent(one["disagreement"])),
    ]
    if one["flips"] is not None:
        numbers.append(("Right answers that become wrong", _percent(one["flips"]["negative_rate"])))
    if one["before"] is not None:
        metric = str(one["metric"]).replace("_", " ")
        numbers += [
            (f"{metric} on the old base", words.decimal(share * one["before"], 2)),
            (f"{metric} on the new base, as it is",
             words.NOTHING if one["after"] is None else words.decimal(share * one["after"], 2)),
        ]  # fmt: skip
    if one["measured"] is not None:
        lost = points_lost(one["drop"], one["measured"])
        numbers.append(("Loss of direct reuse on these texts, points (90 %)", lost.replace("-", "−")))
    forecast = one["forecast"]
    if forecast is not None:
        said = f"{100 * forecast['drop']:.1f} points"
        if forecast["low"] is not None:
            said += f", {100 * forecast['low']:.1f} to {100 * forecast['high']:.1f} with {forecast['level']:.0%}"
        numbers.append(("Predicted loss of direct reuse", said.replace("-", "−")))
        numbers.append(("Learned from", f"{forecast['reuses']} reuses over {forecast['upgrades']} upgrades"))
    pictures = []
    if one["path"] is not None:
        ends = ("old", "new" if one["path_to"] == "direct reuse" else one["path_to"])
        walked = one["path"]
        for value, title, beside in (
            (
                "loss",
                "Loss along the path",
                "barrier unknown" if walked["barrier"] is None else f"barrier {walked['barrier']:.3g}",
            ),
            (walked["metric"], f"{str(walked['metric']).replace('_', ' ')} along the path", ""),
        ):
            drawn = path_chart(walked["points"], value, title, ends=ends) if value else None
            if drawn is not None:
                pictures.append((title, beside, drawn))
    heads = [] if one["similarity"] is None else head_maps(one["similarity"])
    cka = [] if one["similarity"] is None else one["similarity"]["cka"]
    return {
        "reference": one["reference"], "task": one["task"], "verdict": one["verdict"],
        "meaning": MEANING[one["verdict"]], "refusal": one["problem"] or one["refusal"],
        "numbers": numbers, "pictures": pictures,
        "heads": heads,
        "width": map_width(one["similarity"]) if heads else 0,
        "cka": [words.decimal(value, 3) for value in cka], "notes": one["notes"],
    }  # fmt: skip


def _percent(value: float | None) -> str:
    return words.NOTHING if value is None else f"{100 * value:.1f} %"


def _asset(name: str) -> str:
    return resources.files("anytune.report").joinpath("assets", name).read_text(encoding="utf-8")
