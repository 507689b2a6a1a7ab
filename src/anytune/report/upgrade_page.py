"""The page of an upgrade: the whole shelf before and after, what each delta took, cost, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from anytune import __version__
from anytune.manifests import write_atomic
from anytune.report import words
from anytune.report.upgrade_charts import SHOWN, Line, key_of_marks, shelf_chart

#: what a flag means, for readers
FLAGS = {
    "": "back within the tolerance",
    "short": "nothing brought it back; the best is kept",
    "rows": "no training rows for more; the best is kept",
    "budget": "the budget ended first; the best so far is kept",
    "unseen": "the budget ended before it was scored",
    "problem": "could not be used",
}


def write_page(path: Path, old: str, new: str, tolerance: float, lines: Sequence[Line], seconds: float) -> None:
    """Write the page of an upgrade; it appears whole or not at all.

    Args:
        lines: what ``upgrade.jsonl`` holds.
        tolerance: as a share.
        seconds: of the whole upgrade.
    """
    write_atomic(path, page(old, new, tolerance, lines, seconds).encode())


def page(old: str, new: str, tolerance: float, lines: Sequence[Line], seconds: float) -> str:
    """The page as text. Pure: the same lines give the same page."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    metrics = list(dict.fromkeys(line["metric"] for line in lines if line["old"] is not None))
    charts = [
        (metric, shelf_chart([line for line in lines if line["metric"] == metric], f"Scores by {metric}"))
        for metric in metrics
    ]
    return environment.get_template("upgrade.html").render(
        style=Markup(_asset("page.css")), old=old, new=new, headline=headline(old, new, tolerance, lines, seconds),
        steps=_steps(lines), charts=charts, marks=key_of_marks(), shown=SHOWN, many=len(lines) > SHOWN,
        rows=[_row(line) for line in lines], further=further(new, [line.get("headroom") for line in lines]),
        version=__version__,
    )  # fmt: skip


def headline(old: str, new: str, tolerance: float, lines: Sequence[Line], seconds: float) -> str:
    """What came of it, in a sentence."""
    back, share = sum(line["flag"] == "" for line in lines), f"{100 * tolerance:.4g}\N{NO-BREAK SPACE}%"
    more = sum(bool(_more(line)) for line in lines)
    return (
        f"{back} of {len(lines)} deltas of {old} are within the tolerance ({share}) of their old score on {new}, "
        f"after {words.duration(seconds)}" + (f"; {more} can do more on it" if more else "")
    )


def further(new: str, headroom: Iterable[Mapping[str, Any] | None]) -> str:
    """What looking for headroom gave, also where it found none; nothing where nobody looked.

    Args:
        headroom: of each delta, as its manifest and ``upgrade.jsonl`` hold it; None where it was not looked for.
    """
    looked = [one for one in headroom if one]
    if not looked:
        return ""
    tuned, more = len({one["probe"] for one in looked}), sum(bool(one["more"]) for one in looked)
    return (
        f"{more} of {len(looked)} can do more on {new} than bring their old score back; "
        f"to see that, {tuned} {'was' if tuned == 1 else 'were'} tuned on."
    )


def _steps(lines: Sequence[Line]) -> list[tuple[str, int, str, str]]:
    """(step, deltas, seconds, seconds each) of what was taken, and how many are flagged with what."""
    found = []
    for step, count in Counter(line["step"] or FLAGS[line["flag"]] for line in lines).most_common():
        spent = sum(line["seconds"] for line in lines if (line["step"] or FLAGS[line["flag"]]) == step)
        found.append((step, count, words.duration(spent), words.duration(spent / count)))
    return found


def _row(line: Line) -> dict[str, Any]:
    def number(key: str) -> str:
        return words.NOTHING if line[key] is None else f"{line[key]:.4f}"

    return {
        "delta": line["delta"], "task": line["task"], "method": line["method"], "metric": line["metric"],
        "old": number("old"), "direct": number("direct"), "score": number("score"), "step": line["step"] or "–",
        "flag": FLAGS[line["flag"]] if line["flag"] else "can do more" if _more(line) else "",
        "seconds": words.duration(line["seconds"]),
        "reason": "; ".join(part for part in (line["reason"], _more(line)) if part), "made": line["made"] or "",
    }  # fmt: skip


def _more(line: Line) -> str:
    """Why the new base can do more for a delta; journals of before headroom was looked for say nothing of it."""
    return (line.get("headroom") or {}).get("more", "")


def _asset(name: str) -> str:
    return resources.files("anytune.report").joinpath("assets", name).read_text(encoding="utf-8")
