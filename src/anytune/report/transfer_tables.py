"""Tables of transfers of soft prompts as Markdown, from their lines alone (:mod:`anytune.evaluate.transfer_arms`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from anytune.errors import AnytuneError
from anytune.evaluate.compare import unit
from anytune.evaluate.metric_quality import Interval, MetricQuality, evaluate_metric
from anytune.evaluate.synthetic_tasks import KNOBS, by_name, knob_effects
from anytune.evaluate.transfer_arms import READINGS, Grid, Line, Reading, grid_of, pairs, readings, truth
from anytune.report.arm_tables import difference_text, markdown_table, number_text, power_text

#: What a measure may be held against, and how tables say it.
TRUTHS = {"early": "validation at the first look", "test": "test", "gain": "gain over the control on test"}


def choices_of(rankings: Sequence[Line]) -> dict[str, str | None]:
    """Target -> the source that the recipe's measure puts first; sources without a value are not chosen."""
    best: dict[str, tuple[float, str]] = {}
    for line in rankings:
        if line["measure"] == line["choose_by"] and line["value"] is not None:
            found = best.get(line["target"])
            if found is None or (-line["value"], line["source"]) < (
                -found[0],
                found[1],
            ):  # of equals the first by name
                best[line["target"]] = (line["value"], line["source"])
    return {target: source for target, (_, source) in best.items()}


def teachers_of(lines: Sequence[Line]) -> dict[str, str]:
    """Arm that is run from sources and taught -> the arm of its teachers, where that is run from sources, too."""
    sourced = {line["arm"] for line in lines if line["source"] is not None}
    return {
        line["arm"]: line["teacher"] for line in lines if line["arm"] in sourced and line.get("teacher") in sourced
    }  # fmt: skip


def transfer_tables(lines: Sequence[Line], rankings: Sequence[Line] = ()) -> str:
    """The whole document.

    Args:
        lines: of ``runs.jsonl``, at least one.
        rankings: of ``ranking.jsonl``.
    """
    grid, chosen, teachers = grid_of(lines), choices_of(rankings), teachers_of(lines)
    points = "points (100 times the metric)" if all(unit(one) != 1 for one in grid.metrics.values()) else "its unit"
    text = [
        f"# {len(grid.sources)} sources, {len(grid.targets)} targets, against '{grid.control}'\n",
        f"Scores are on test in {points}, of the weights that validation chose; of runs that differ in rate or "
        "restart alone validation chooses one, and all are paid for. Gains are over the control on the same target "
        "and seed, above 0 is better, with a 95 % bootstrap interval over targets and seeds; a word (higher, lower, "
        "undecided) needs an interval without 0 and a sign-flip p below 0.05 after Holm's correction over the rows. "
        "'Could show': the smallest true gain with an 80 % chance to be shown. Cost: steps spent on one result, those "
        "of the source and of the teacher among them, as a multiple of the control's.\n",
        *(f"* {kind}: {meaning}" for kind, meaning in READINGS.items()), "",
        "## Gains\n", _gains(grid, readings(grid, chosen, teachers)),
    ]  # fmt: skip
    if grid.families:
        without = grid_of(lines, families=False)
        text += [f"### Without the {len(grid.families)} pairs over the same texts\n",
                 _gains(without, readings(without, chosen, teachers), columns=False)]  # fmt: skip
    if any(source is not None for arm in grid.runs.values() for source in arm):
        text += ["## Pairs of source and target\n",
                 "Each pair is a mean over seeds. Negative: below the control. Worst: the mean over targets of the "
                 "source that did worst.\n", _pairs(grid)]  # fmt: skip
        if grid.families:
            text += ["### Without the pairs over the same texts\n", _pairs(grid_of(lines, families=False))]
        text += [_each_pair(grid)]
    if rankings:
        text += [
            "## How good each measure was\n",
            *_measures(grid, lines, rankings),
            _choices(grid, rankings),
            *_knobs(grid, rankings),
        ]
    failed = [line for line in lines if line["failed"]]
    if failed:
        text += ["## Runs that diverged\n", *(f"* {_said(line)}: {line['failed']}" for line in failed), ""]
    return "\n".join(text)


def summary(lines: Sequence[Line], rankings: Sequence[Line] = ()) -> str:
    """A few lines for a terminal: each reading over all targets."""
    grid = grid_of(lines)
    shown = readings(grid, choices_of(rankings), teachers_of(lines))
    paid = paid_steps(grid, shown)
    said = [f"{len(grid.targets)} targets: test, gain over {grid.control}"]
    for one in shown:
        gain = f"  {difference_text(one.against)}" if one.against else ""
        said.append(f"  {one.name}: {number_text(over_targets(grid, one))}{gain}  cost {paid[one.name]:.1f}")
    return "\n".join(said)


def _said(line: Line) -> str:
    source = f" from {line['source']}" if line["source"] else ""
    return f"{line['arm']}{source} on {line['target']}, seed {line['seed']}"


# Gains


def _gains(grid: Grid, shown: Sequence[Reading], *, columns: bool = True) -> str:
    paid = paid_steps(grid, shown)
    rows = []
    for one in shown:
        cells = [number_text(_mean(grid, one, target)) for target in grid.targets] if columns else []
        rows.append([
            one.name, number_text(over_targets(grid, one)), *cells, difference_text(one.against),
            power_text(one.against), f"{paid[one.name]:.1f}",
        ])  # fmt: skip
    if columns and any(floor is not None for floor in grid.floors.values()):
        floors = [number_text(None if (floor := grid.floors[target]) is None else abs(floor))
                  for target in grid.targets]  # fmt: skip
        rows.append(["one answer", "", *floors, "", "", ""])
    names = [f"{target} ({grid.metrics[target]})" for target in grid.targets] if columns else []
    return markdown_table(["arm", "mean", *names, "gain", "could show", "cost"], rows)


def paid_steps(grid: Grid, shown: Sequence[Reading]) -> dict[str, float]:
    """Steps spent on one result of each reading, as a multiple of the control's."""
    control = next((one.steps for one in shown if one.name == grid.control), 0.0)
    return {one.name: one.steps / control if control else float("nan") for one in shown}


def _mean(grid: Grid, one: Reading, target: str) -> float | None:
    floor = grid.floors[target]
    values = [floor if value is None else value for value in one.scores.get(target, {}).values()]
    known = [value for value in values if value is not None]
    # signed so that more is better: an error is shown as it is
    return abs(float(np.mean(known))) if known and unit(grid.metrics[target]) == 1 else (
        float(np.mean(known)) if known else None
    )  # fmt: skip


def over_targets(grid: Grid, one: Reading) -> float | None:
    """The mean score over targets; None where it was not run on all of them."""
    values = [found for target in grid.targets if (found := _mean(grid, one, target)) is not None]
    return float(np.mean(values)) if len(values) == len(grid.targets) else None


# Pairs


def _pairs(grid: Grid) -> str:
    rows = [
        [one.arm, str(one.n), f"{one.gain:+.2f}", f"{100 * one.negative:.0f} %", f"{one.worst:+.2f}",
         f"{one.worst_source[0]} ({one.worst_source[1]:+.2f})"]
        for one in pairs(grid)
    ]  # fmt: skip
    return markdown_table(["arm", "pairs", "mean gain", "negative", "worst", "source that did worst"], rows)


def _each_pair(grid: Grid) -> str:
    """The gain of every pair of every arm that was run from several sources."""
    text = []
    for arm in grid.runs:
        names, targets, gains = truth(grid, arm, "gain")
        if np.isfinite(gains).sum() <= len(targets):
            continue
        rows = [
            [name, *(_pair_cell(value, (name, target) in grid.families)
                     for value, target in zip(row, targets, strict=True))]
            for name, row in zip(names, gains, strict=True) if np.isfinite(row).any()
        ]  # fmt: skip
        text += [f"### {arm}: gain of each pair (* over the same texts)\n",
                 markdown_table(["source", *targets], rows)]  # fmt: skip
    return "\n".join(text)


def _pair_cell(value: float, family: bool) -> str:
    return "" if not np.isfinite(value) else f"{value:+.2f}{' *' if family else ''}"


# Measures


def measure_table(
    rankings: Sequence[Line], measure: str, sources: Sequence[str], targets: Sequence[str]
) -> np.ndarray:
    """What a measure said, [sources, targets]; NaN where nothing."""
    table = np.full((len(sources), len(targets)), np.nan)
    for line in rankings:
        known = line["measure"] == measure and line["value"] is not None
        if known and line["source"] in sources and line["target"] in targets:
            table[sources.index(line["source"]), targets.index(line["target"])] = line["value"]
    return table


def qualities(
    grid: Grid, rankings: Sequence[Line], arm: str, kind: str, *, families: bool = True
) -> dict[str, MetricQuality]:
    """Every measure held against what an arm gave; measures without two sources for any target are left out.

    Args:
        kind: of :data:`TRUTHS`.
        families: whether pairs over the same texts count.
    """
    sources, targets, true = truth(grid, arm, kind)
    if not families:
        for source, target in grid.families:
            if source in sources and target in targets:
                true[sources.index(source), targets.index(target)] = np.nan
    sizes = {line["source"]: line["size"] for line in rankings}
    together = target_families(grid)
    found = {}
    for measure in dict.fromkeys(line["measure"] for line in rankings):
        try:
            found[measure] = evaluate_metric(
                measure_table(rankings, measure, sources, targets), true,
                sizes=[sizes.get(source, 0) for source in sources],
                families=[together[target] for target in targets],
            )  # fmt: skip
        except AnytuneError:
            continue
    return found


def target_families(grid: Grid) -> dict[str, str]:
    """Target -> the first of the targets that hold the same texts, by way of a source that shares them with both."""
    first = {target: target for target in grid.targets}
    for source, target in sorted(grid.families):
        others = [one for one in grid.targets if one == source or (source, one) in grid.families]
        names = {first[one] for one in (target, *others)}
        keep = next(one for one in grid.targets if one in names)
        first = {one: keep if found in names else found for one, found in first.items()}
    return first


def _measures(grid: Grid, lines: Sequence[Line], rankings: Sequence[Line]) -> Iterator[str]:
    taught = teachers_of(lines)
    arms = [arm for arm in grid.runs
            if arm not in taught and max((len(grid.pairs(arm, t)) for t in grid.targets), default=0) > 1]  # fmt: skip
    if not arms:
        yield "No arm was run from several sources, so there is nothing to hold a measure against.\n"
        return
    yield (
        "Means over targets with 95 % bootstrap intervals over targets (those over the same texts drawn together); "
        "target by target over the sources. Spearman "
        "and Kendall: rank correlation with what is true; p: Spearman, by exchanging sources. NDCG@3: 1 is the best "
        "order. Regret@k: points lost against the best source by trying the first k. Over random, over size: what the "
        "first choice gained over a random and over the largest source. 'size' and 'random' are the controls that a "
        "measure has to beat.\n"
    )
    for arm in arms:
        for kind, meaning in TRUTHS.items():
            found = qualities(grid, rankings, arm, kind)
            if found:
                yield f"### {arm}: {meaning}\n"
                yield _quality_table(found)
        if grid.families:
            found = qualities(grid, rankings, arm, "test", families=False)
            if found:
                yield f"### {arm}: test, without pairs over the same texts\n"
                yield _quality_table(found)


def _quality_table(found: Mapping[str, MetricQuality]) -> str:
    order = sorted(found, key=lambda name: -(found[name].spearman.mean or -2.0))
    rows = []
    for name in order:
        one = found[name]
        rows.append([
            name, _interval(one.spearman), "" if one.p is None else f"{one.p:.2g}", _interval(one.kendall),
            _interval(one.ndcg.get(3)), _interval(one.regret.get(1)), _interval(one.regret.get(3)),
            *(("" if over is None else f"{over.mean:+.2f}") for over in (one.over_random, one.over_size)),
            str(one.undefined) if one.undefined else "",
        ])  # fmt: skip
    first = next(iter(found.values()))
    rows.append([
        "a random order", "0", "", "0", "", *(_interval(first.random_regret.get(k)) for k in (1, 3)), "", "", "",
    ])  # fmt: skip
    head = ["measure", "Spearman", "p", "Kendall", "NDCG@3", "regret@1", "regret@3", "over random", "over size",
            "undefined"]  # fmt: skip
    return markdown_table(head, rows)


def _interval(one: Interval | None) -> str:
    if one is None or one.mean is None:
        return "-"
    between = "" if one.low is None or one.high is None else f" ({one.low:.2f} to {one.high:.2f})"
    return f"{one.mean:.2f}{between}"


def _choices(grid: Grid, rankings: Sequence[Line]) -> str:
    """Which source each measure puts first for each target."""
    measures = list(dict.fromkeys(line["measure"] for line in rankings))
    rows = []
    for measure in measures:
        cells = []
        for target in grid.targets:
            here = [line for line in rankings if (line["target"], line["measure"]) == (target, measure)]
            own = {line["source"]: line["value"] for line in here if line["value"] is not None}
            cells.append(min(own, key=lambda name: (-own[name], name)) if own else "-")
        rows.append([measure, *cells])
    return "### What each measure chooses\n\n" + markdown_table(["measure", *grid.targets], rows)


def _knobs(grid: Grid, rankings: Sequence[Line]) -> Iterator[str]:
    """Where every task is a synthetic one: what each measure, and what transfer itself, goes by."""
    names = list(dict.fromkeys([*grid.sources, *grid.targets]))
    tasks = [by_name(name) for name in names]
    known = [task for task in tasks if task is not None]
    if len(known) < len(names) or not names:
        return
    shown: dict[str, np.ndarray] = {}
    for arm in grid.runs:
        sources, targets, gains = truth(grid, arm, "gain")
        if np.isfinite(gains).sum() > len(targets):
            table = np.full((len(names), len(names)), np.nan)
            table[np.ix_([names.index(one) for one in sources], [names.index(one) for one in targets])] = gains
            shown[f"{arm}: its gain itself"] = table
    for measure in dict.fromkeys(line["measure"] for line in rankings):
        shown[measure] = measure_table(rankings, measure, names, names)
    rows = []
    for name, table in shown.items():
        try:
            found = knob_effects(table, known)
        except AnytuneError as problem:
            rows.append([name, *("" for _ in KNOBS), "", problem.what])
            continue
        effects = [f"{found.effects[knob]:+.2f}" if knob in found.effects else "" for knob in KNOBS]
        rows.append([name, *effects, f"{100 * found.explained:.0f} %", str(found.pairs)])
    yield (
        "### What each measure looks at\n\nThe tasks are synthetic and differ in three knobs, set one by one. By how "
        "many standard deviations (over pairs) a measure falls where source and target lie one standard deviation "
        "further apart in a knob and no further in the others; 'explained': by the three together. A measure that "
        "predicts transfer goes by what the gain itself goes by.\n"
    )
    yield markdown_table(["measure", *KNOBS, "explained", "pairs"], rows)
