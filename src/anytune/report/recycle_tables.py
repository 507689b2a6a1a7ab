"""Tables of a grid of recycling as Markdown, from its lines alone (:mod:`anytune.evaluate.recycle_arms`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from anytune.evaluate.compare import unit
from anytune.evaluate.recycle_arms import (
    NO_DELTA,
    NOTHING,
    Line,
    Reach,
    Section,
    against,
    areas,
    broken,
    by_task,
    cost,
    reaching,
    sections,
)
from anytune.evaluate.recycle_claims import Claim, claims, fall_of, plain_arm
from anytune.evaluate.recycle_points import LEARNING
from anytune.evaluate.stability import counted
from anytune.report.arm_tables import difference_text, markdown_table, number_text, power_text

#: Kinds of tasks whose answers are right or wrong, so that flips can be counted.
COUNTED = ("classification", "token-classification")


def recycle_tables(
    lines: Sequence[Line], upgrades: Sequence[Line] = (), paths: Sequence[Line] = (), tasks: Sequence[Line] = ()
) -> str:
    """The whole document.

    Args:
        lines: of ``runs.jsonl``, at least one of a recycled run.
        upgrades: of ``bases.jsonl``.
        paths: of ``paths.jsonl``.
        tasks: of ``tasks.jsonl``.
    """
    made = sections(lines)
    gold = gold_of(tasks)
    metrics = ", ".join(dict.fromkeys(line["metric"] for line in lines))
    points = "points (100 times the metric)" if all(unit(line["metric"]) != 1 for line in lines) else "its unit"
    control = lines[0]["control"]
    text = [
        f"# Recycled weights against '{control}'\n",
        f"Scores are {metrics} on test in {points}, of the weights that validation chose: means over tasks of means "
        f"over runs, one for each seed. '{NOTHING}' is not to upgrade; '{NO_DELTA}' always gives the "
        "commonest training answer. Gains are paired by task and seed, above 0 is better, with a 95 % bootstrap "
        "interval over tasks and runs; upgrades of one task count as one observation for each seed, and an upgrade "
        "that changed nothing does not count. A word (higher, lower, undecided) needs an interval without 0 and a "
        "sign-flip p below 0.05 after Holm's correction over the arms. 'Could show': the smallest true gain with an "
        "80 % chance to be shown. A run that diverged counts as always one answer.\n",
    ]
    if upgrades:
        text += ["## The upgrades\n", _upgrades(upgrades)]
    if made:
        text += ["## What becomes of the claims\n", _claims(claims(made, paths))]
    for section in made:
        title = str(section.case)
        text += [
            f"## {title[0].upper()}{title[1:]}\n", _scores(section),
            f"Gains over '{control}', over not to upgrade, and over direct reuse:\n", _gains(section),
            f"Learning: the mean height of the validation curve (runs as long as the control's), when the score that "
            f"'{control}' ended with was reached (median over runs, as a share of its steps and seconds), answers "
            "that were right before the upgrade and are wrong now, and what a run costs:\n", _learning(section, gold),
        ]  # fmt: skip
        if len(section.tasks) > 1:
            text += ["Task by task: scores, and means of differences to them:\n", _by_task(section)]
    if upgrades:
        text += ["## Against the distance of the bases\n", _against_distance(made, upgrades, paths)]
    if paths:
        text += ["## The line from the old tuned model\n", _paths(paths)]
    failed = [line for line in lines if line["failed"]]
    if failed:
        text += ["## Runs that diverged\n", *(f"* {named(line)}: {line['failed']}" for line in failed), ""]
    refused = [line for line in lines if line.get("refused")]
    if refused:
        text += ["## Runs that were refused, and are left out\n",
                 *(f"* {named(line)}: {line['refused']}" for line in refused), ""]  # fmt: skip
    return "\n".join(text)


def summary(lines: Sequence[Line], paths: Sequence[Line] = ()) -> str:
    """A few lines for a terminal: each case, arm by arm, and the claims."""
    told: list[str] = []
    made = sections(lines)
    for section in made:
        gains = against([section], section.control)
        told.append(f"{section.case}: test, gain over {section.control}")
        for arm in section.arms:
            gain = f"  {difference_text(gains[arm])}" if arm in gains else ""
            told.append(f"  {arm}: {number_text(section.mean(arm))}{gain}")
    told += [f"{one.text} ({one.form}): {one.word}" for one in claims(made, paths)] if made else []
    return "\n".join(told)


def gold_of(tasks: Sequence[Line]) -> dict[str, Sequence[object]]:
    """Task -> gold answers, of the tasks of ``tasks.jsonl`` whose flips can be counted."""
    return {line["task"]: line["gold"] for line in tasks if line["kind"] in COUNTED}


def named(line: Line) -> str:
    """Which run it is."""
    where = f" on {line['upgrade']}" if line["upgrade"] else ""
    return f"{line['arm']}{where}, {line['form']}, {line['task']}, seed {line['seed']}"


# Tables


def _upgrades(upgrades: Sequence[Line]) -> str:
    rows = []
    for line in upgrades:
        distance = line["distance"]
        rows.append([
            line["upgrade"], line["after"] or "", ", ".join(line.get("domains", ())), f"{line['tokens']:,}",
            _relative(distance), f"{distance['cosine']:.5f}", _losses(line["losses"]), f"{line['seconds']:.0f}",
        ])  # fmt: skip
    head = ["upgrade", "after", "domains", "tokens", "relative distance", "cosine", "held-out loss", "seconds"]
    return markdown_table(head, rows)


def _relative(distance: Mapping[str, float]) -> str:
    return f"{distance['relative']:.4f}"


def _losses(losses: Mapping[str, Mapping[str, float | None]]) -> str:
    said = []
    for name, found in losses.items():
        if name.startswith("heldout:") and found.get("loss") is not None:
            before = losses.get(f"before:{name}", {}).get("loss")
            said.append(f"{name.removeprefix('heldout:')} {number_text(before)} to {number_text(found['loss'])}")
    return "; ".join(said)


def _claims(found: Sequence[Claim]) -> str:
    rows = [
        [one.text, one.form, one.measure, "" if one.mean is None else f"{one.mean:+.2f}{_interval(one)}", str(one.n),
         one.word]
        for one in found
    ]  # fmt: skip
    return markdown_table(["claim", "form", "measured by", "points", "runs", "outcome"], rows)


def _interval(one: Claim) -> str:
    return "" if one.low is None or one.high is None else f" ({one.low:+.2f} to {one.high:+.2f})"


def _scores(section: Section) -> str:
    rows = []
    for arm in section.arms:
        runs = {seed for found in section.runs[arm].values() for seed in found}
        rows.append([
            arm, number_text(section.mean(arm)),
            *(number_text(section.mean(arm, upgrade)) for upgrade in section.upgrades), str(len(runs)),
        ])  # fmt: skip
    head = ["arm", "mean", *(f"{name} (unchanged)" if name in section.same else name for name in section.upgrades)]
    return markdown_table([*head, "seeds"], rows)


def _gains(section: Section) -> str:
    over = [against([section], name) if name in section.runs else {} for name in _compared_with(section)]
    rows = [
        [arm, *(difference_text(one.get(arm)) for one in over), power_text(over[0].get(arm))]
        for arm in section.arms if arm != NO_DELTA
    ]  # fmt: skip
    return markdown_table(["arm", *(f"over {name}" for name in _compared_with(section)), "could show"], rows)


def _compared_with(section: Section) -> list[str]:
    direct = plain_arm([section], "direct")
    return [section.control, NOTHING, *([direct] if direct else [])]


def _learning(section: Section, gold: Mapping[str, Sequence[object]]) -> str:
    heights = against([section], section.control, areas)
    rows = []
    for arm in section.arms:
        if arm == NO_DELTA:
            continue
        flipped, paid = broken(section, arm, gold), cost(section, arm)
        rows.append([
            arm, _height(section, arm), difference_text(heights.get(arm)), *_reached(reaching([section], arm)),
            "" if flipped is None or arm == NOTHING else f"{flipped:.2f}",
            "" if paid is None else f"{paid[0]:.2f} / {paid[1]:.2f}",
        ])  # fmt: skip
    head = ["arm", "mean height", "over the control", "steps to it", "seconds to it", "reached", "negative flips",
            "cost (steps / seconds)"]  # fmt: skip
    return markdown_table(head, rows)


def _by_task(section: Section) -> str:
    """A row for each task; differences are over the upgrades and seeds that both arms have."""
    control = section.control
    columns = [(arm, by_task(section, arm), "{:.2f}") for arm in (NOTHING, control) if arm in section.runs]
    for method in ("direct", *LEARNING):
        arm = plain_arm([section], method)
        if arm is not None:
            columns += [
                (f"{arm}, over {other}", by_task(section, arm, other), "{:+.2f}")
                for other in ((NOTHING, control) if method == "direct" else (control,))
                if other in section.runs
            ]
    rows = [[task, *(text.format(found[task]) if task in found else "" for _, found, text in columns)]
            for task in section.tasks]  # fmt: skip
    return markdown_table(["task", *(title for title, _, _ in columns)], rows)


def _height(section: Section, arm: str) -> str:
    found = [value for column in section.columns()
             for value in counted(areas(section, arm, column), section.floors[column]).values()]  # fmt: skip
    return number_text(float(np.mean(found))) if found else ""


def _reached(found: Reach) -> list[str]:
    if not found.runs:
        return ["", "", ""]
    share = ["never" if one is None else f"{one:.2f}" for one in (found.steps, found.seconds)]
    return [*share, f"{found.reached} of {found.runs}"]


def _against_distance(made: Sequence[Section], upgrades: Sequence[Line], paths: Sequence[Line]) -> str:
    """A row for each upgrade and case: what direct reuse loses and keeps, the paths and the heads, by distance."""
    rows = []
    for line in sorted(upgrades, key=lambda one: one["distance"]["relative"]):
        for section in made:
            if line["upgrade"] not in section.upgrades:
                continue
            here = [one for one in paths if (one["upgrade"], one["form"], one["old"], one["new"])
                    == (line["upgrade"], *section.case) and one["arm"] == section.control]  # fmt: skip
            direct = next((arm for arm in _compared_with(section)[2:]), None)
            nothing, landed, fresh, floor = (
                section.mean(arm, line["upgrade"]) if arm else None
                for arm in (NOTHING, direct, section.control, NO_DELTA)
            )
            rows.append([
                line["upgrade"], _relative(line["distance"]), str(section.case),
                "" if nothing is None or landed is None else f"{landed - nothing:+.2f}",
                _kept(nothing, landed, floor),
                "" if fresh is None or landed is None else f"{landed - fresh:+.2f}",
                _mean([fall_of(one) for one in here]),
                _mean([one["path"]["barrier"] if one["path"] else None for one in here]),
                _mean([one["similarity"]["mean_js"] if one["similarity"] else None for one in here]),
                _mean([one["similarity"]["mean_null_js"] if one["similarity"] else None for one in here]),
            ])  # fmt: skip
    head = ["upgrade", "relative distance", "case", "direct less old", "kept", "direct less fresh",
            "fall on the line", "barrier (loss)", "heads alike (JS)", "shuffled heads"]  # fmt: skip
    return markdown_table(head, rows)


def _kept(nothing: float | None, landed: float | None, floor: float | None) -> str:
    """Of what the old weights have above always one answer on their own base, the share that is left on the new."""
    if nothing is None or landed is None or floor is None or nothing <= floor:
        return ""
    return f"{100 * (landed - floor) / (nothing - floor):.0f} %"


def _paths(paths: Sequence[Line]) -> str:
    groups: dict[tuple[str, ...], list[Line]] = {}
    for line in paths:
        groups.setdefault((line["upgrade"], line["form"], line["arm"], line["old"], line["new"]), []).append(line)
    rows = []
    for key, found in groups.items():
        walked = [one for one in found if one["path"] is not None]
        alike = [one["similarity"] for one in found if one["similarity"] is not None]
        problems = "; ".join(sorted({one["problem"] for one in found if one.get("problem")}))
        rows.append([
            *key, str(len(walked)), _mean([fall_of(one) for one in walked]),
            _mean([one["path"]["barrier"] for one in walked]), _mean([one["mean_js"] for one in alike]),
            _mean([one["mean_null_js"] for one in alike]), _mean([one["mean_cka"] for one in alike]), problems,
        ])  # fmt: skip
    head = ["upgrade", "form", "to", "old", "new", "lines", "fall (points)", "barrier (loss)", "heads alike (JS)",
            "shuffled heads", "CKA of layers", "problem"]  # fmt: skip
    return markdown_table(head, rows)


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None and np.isfinite(value)]
    return f"{float(np.mean(known)):.3f}" if known else ""
