"""Tables of a comparison of arms as Markdown, from its lines alone (:mod:`anytune.evaluate.arms`)."""

from __future__ import annotations

from collections.abc import Sequence

from anytune.evaluate.arms import Column, Line, Section, cost, failures, sections
from anytune.evaluate.compare import unit
from anytune.evaluate.stability import SPREAD_RUNS, Against, Stability

TITLES = {
    "test": "scores on test",
    "ood": "scores on other tasks of the same labels",
    "probe": "linear probes over the frozen body, on other tasks",
}
NOTES = {
    "test": "",
    "ood": "Trained on the first task, scored on the test split of the second.",
    "probe": "Ridge on the mean of the last hidden states; the untouched base is what was there before tuning.",
}


def arm_tables(lines: Sequence[Line]) -> str:
    """The whole document.

    Args:
        lines: at least one.
    """
    control = lines[0]["control"]
    metrics = list(dict.fromkeys(line["metric"] for line in lines))
    points = "points (100 times the metric)" if all(unit(metric) != 1.0 for metric in metrics) else "the metric's unit"
    text = [
        f"# {len({line['arm'] for line in lines})} arms against '{control}'\n",
        f"Scores are {', '.join(metrics)} on test in {points}, of the weights that validation chose: mean +/- sample "
        "standard deviation over runs. Differences are arm minus control, paired by seed, above 0 is better, with a "
        "95 % bootstrap interval; 'all' resamples tasks and runs (a run scored on several other tasks is one run). A "
        "word (higher, lower, undecided) needs an interval without 0 and a sign-flip p below 0.05 after Holm's "
        "correction over the arms. 'No worse': the interval's "
        "lower end is above -0.5. 'Could show': the smallest true difference with an 80 % chance to be shown. "
        "Failed: diverged, or not above the score of always giving the commonest training answer, with which a "
        "diverged run is counted. Spread: Brown-Forsythe against the control, column by column, not corrected. "
        "Cost: training seconds as a multiple of the control's.\n",
    ]
    for kind, title in TITLES.items():
        for section in sections(lines, kind):
            text.append(f"## {section.title[0].upper()}{section.title[1:]}: {title}\n")
            if NOTES[kind]:
                text.append(NOTES[kind] + "\n")
            text.append(_scores(section))
            if section.differences:
                text += ["Difference to the control:\n", _differences(section)]
            text.append(_over_all(section, cost(lines, section.size) if kind == "test" else {}))
    failed = failures(lines)
    if failed:
        text += ["## Runs that diverged\n", *(f"* {what}" for what in failed), ""]
    return "\n".join(text)


def summary(lines: Sequence[Line]) -> str:
    """A few lines for a terminal: each arm over all tasks, size by size."""
    said = []
    for section in sections(lines):
        spent = cost(lines, section.size)
        many = len(section.columns) > 1 and bool(section.overall)
        head = f"{section.title}, {len(section.columns)} task{'s' if len(section.columns) > 1 else ''}"
        said.append(f"{head}: test, difference to {section.control}")
        for arm in section.rows:
            cells = [cell for column in section.columns if (cell := section.cell(arm, column))]
            failed, runs = sum(cell.failed for cell in cells), sum(cell.n for cell in cells)
            means = " ".join(number_text(cell.mean) for cell in cells)
            found = section.overall.get(arm) if many else _only(section, arm)
            beside = f"  {difference_text(found)}" if found else ""
            times = f"  cost {spent[arm]:.2f}" if arm in spent else ""
            said.append(f"  {arm}: {means}{beside}  failed {failed} of {runs}{times}")
    return "\n".join(said)


def _only(section: Section, arm: str) -> Against | None:
    return next((column[arm] for column in section.differences.values() if arm in column), None)


def _scores(section: Section) -> str:
    rows = []
    for arm in section.rows:
        rows.append([arm, *(_cell(section.cell(arm, column)) for column in section.columns)])
    floors: list[Column] = [column for column in section.columns if column.floor is not None]
    if floors:
        rows.append(["one answer", *(number_text(column.floor) for column in section.columns)])
    if any(column.words is not None for column in section.columns):
        rows.append(["words alone", *(number_text(column.words) for column in section.columns)])
    return markdown_table(["arm", *(f"{column.name} ({column.metric})" for column in section.columns)], rows)


def _differences(section: Section) -> str:
    arms = [arm for arm in section.rows if arm != section.control]
    rows = [
        [arm, *(difference_text(section.differences.get(column.name, {}).get(arm)) for column in section.columns)]
        for arm in arms
    ]
    return markdown_table(["arm", *(column.name for column in section.columns)], rows)


def _over_all(section: Section, spent: dict[str, float]) -> str:
    """What does not stand in a column: over all tasks, worst run, failed runs, spread, cost."""
    rows = []
    for arm in section.rows:
        cells = [(column, cell) for column in section.columns if (cell := section.cell(arm, column)) is not None]
        found = section.overall.get(arm)
        failed, runs = sum(cell.failed for _, cell in cells), sum(cell.n for _, cell in cells)
        spread = [one for column in section.differences.values() if (one := column.get(arm)) is not None]
        rows.append([
            arm, difference_text(found), power_text(found), " / ".join(number_text(cell.worst) for _, cell in cells),
            f"{failed} of {runs}", _spread(spread), f"{spent[arm]:.2f}" if arm in spent else "",
        ])  # fmt: skip
    return markdown_table(["arm", "all: difference", "could show", "worst run", "failed", "spread", "cost"], rows)


def _spread(found: Sequence[Against]) -> str:
    """Brown-Forsythe against the control's spread, column by column."""
    shown = [one for one in found if one.spread_p is not None]
    if not shown:
        return ""
    few = any(min(one.difference.n for one in shown) < SPREAD_RUNS for _ in shown)
    words = " / ".join(f"{one.spread} (p {one.spread_p:.2g})" for one in shown)
    return f"{words}; fewer than {SPREAD_RUNS} runs" if few else words


def _cell(cell: Stability | None) -> str:
    if cell is None:
        return ""
    failed = f", {cell.failed} failed" if cell.failed else ""
    return f"{number_text(cell.mean)} +/- {number_text(cell.sd)} ({cell.n}{failed})"


def difference_text(found: Against | None) -> str:
    """Mean, interval, outcome and corrected p; empty for none."""
    if found is None:
        return ""
    one = found.difference
    if one.low is None or one.high is None:
        return f"{one.mean:+.2f} (one run): undecided"
    no_worse = ", no worse" if found.no_worse and found.outcome == "undecided" else ""
    return f"{one.mean:+.2f} ({one.low:+.2f} to {one.high:+.2f}): {found.outcome}{no_worse} (p {found.p:.2g})"


def power_text(found: Against | None) -> str:
    """The smallest true difference the runs could show; empty for none."""
    return "" if found is None or found.smallest is None else f"{found.smallest:.2f}"


def number_text(value: float | None) -> str:
    """Two decimals, or a dash."""
    return "-" if value is None else f"{value:.2f}"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") or " " for cell in row) + " |" for row in lines) + "\n"
