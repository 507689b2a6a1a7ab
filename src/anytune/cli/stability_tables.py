"""What several runs of one command say together: a row a training size under the table of runs, or as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from anytune.cli import show

if TYPE_CHECKING:
    from anytune.evaluate.stability import Against
    from anytune.jobs.runs import Summary
    from anytune.store import Entry

COLUMNS = ("method", "examples", "runs", "mean", "sd", "worst", "failed", "against", "difference", "interval", "is")


def runs_record(entries: Sequence[Entry]) -> Any:
    """The runs of a command as JSON takes them: a list; several of ``tune`` with their summary and control."""
    runs = [show.run_record(entry) for entry in entries]
    summaries = _summaries(entries)
    if not summaries:
        return runs
    control = [show.run_record(entry) for entry in getattr(entries, "control", [])]
    return {"runs": runs, "control": control, "summary": [one.record() for one in summaries]}


def print_summaries(entries: Sequence[Entry]) -> None:
    """Mean, spread, worst, failed runs and the paired interval against the control; nothing for a single run."""
    summaries = _summaries(entries)
    if not summaries:
        return
    rows: list[list[Any]] = []
    for one in summaries:
        rows.append([one.method, one.size, *_numbers(one.runs), *_against(one.control, one.against)])
        if one.control_runs is not None:
            rows.append([one.control, one.size, *_numbers(one.control_runs), *[None] * 4])
    print()
    show.print_table(COLUMNS, rows)
    for one in summaries:
        for what in one.failed:
            show.say(f"failed: {what}")
    for line in _explained(summaries):
        print(line)


def _summaries(entries: Sequence[Entry]) -> list[Summary]:
    return entries.summaries() if len(entries) > 1 and hasattr(entries, "summaries") else []


def _numbers(runs: Any) -> list[str | int | None]:
    shown = [None if value is None else f"{value:.2f}" for value in (runs.mean, runs.sd, runs.worst)]
    return [runs.n, *shown, f"{runs.failed} of {runs.n}" if runs.failed else "0"]


def _against(control: str | None, found: Against | None) -> list[str | None]:
    if found is None:
        return [control, None, None, None]
    one = found.difference
    interval = None if one.low is None or one.high is None else f"{one.low:+.2f} to {one.high:+.2f}"
    words = found.outcome + (", no worse" if found.outcome == "undecided" and found.no_worse else "")
    return [control, f"{one.mean:+.2f}", interval, words]


def _explained(summaries: Sequence[Summary]) -> list[str]:
    """What the columns mean, as far as they are there."""
    metric, points = summaries[0].metric, summaries[0].scaled
    lines = [f"test {metric}{', in points (x 100)' if points else ''}; failed: diverged, or not above the score of "
             "always giving one answer"]  # fmt: skip
    floors = {one.floor for one in summaries}
    if None not in floors:
        lines[0] += f" ({', '.join(f'{floor:.2f}' for floor in sorted(floor for floor in floors if floor))})"
    shown = [one.against for one in summaries if one.against is not None]
    if any(one.difference.low is not None for one in shown):
        lines.append("interval: 95 %, over the runs of equal seeds; above 0 is better than the control")
    smallest = [one.smallest for one in shown if one.smallest is not None]
    if smallest and any(one.outcome == "undecided" for one in shown):
        lines.append(f"smallest difference that these runs had an 80 % chance to show: {max(smallest):.2f}")
    if not shown and summaries[0].method != "full":
        lines.append("no control beside it: --against full makes one")
    return lines
