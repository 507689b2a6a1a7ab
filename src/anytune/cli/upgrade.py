"""``anytune upgrade``: a whole store over to an upgraded base (:func:`anytune.jobs.upgrade.upgrade`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anytune.cli import forecasts, options, show, values
from anytune.errors import SettingsError

if TYPE_CHECKING:
    from anytune.jobs.upgrade_forecast import UpgradeForecast
    from anytune.jobs.upgrade_results import Outcome, Upgrade

#: Rows of the table that are printed; all of them stand on the page.
SHOWN = 40


def upgrade(
    store: Annotated[
        str | None, typer.Argument(metavar="STORE", help="Folder of bases and deltas (default: anytune-store).")
    ] = None,
    from_: Annotated[
        str | None, typer.Option("--from", metavar="BASE", help="The base the deltas were tuned on.")
    ] = None,
    to: Annotated[str | None, typer.Option("--to", metavar="BASE", help="The upgraded base.")] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long it may take: '30m', '2h'. Default: as it needs.")
    ] = None,
    tolerance: Annotated[
        str, typer.Option(metavar="SHARE", help="How much of a score may be lost: '1%' is one point of accuracy.")
    ] = "1%",
    task: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="Where the data of a task (or of one delta) are; may be repeated."),
    ] = None,
    unlabelled: Annotated[
        str | None, typer.Option(metavar="FILE", help="Texts without labels, for deltas without training rows.")
    ] = None,
    delta: Annotated[
        list[str] | None, typer.Option(metavar="DELTA", help="This delta alone; may be repeated.")
    ] = None,
    step: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only these steps: keep, scale, initialize, combined, distill, retune."),
    ] = None,
    headroom: Annotated[
        bool, typer.Option("--headroom", help="Also tune one delta of each task on: can the new base do more for it?")
    ] = False,
    out: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Where upgrade.jsonl and the page go (default: in the store).")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that share the deltas (default: this one alone).")
    ] = None,
    fan_out: options.FanOut = "processes",
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Bring every delta of a base over to its upgrade.

    Each by the cheapest step that brings its score back.

    Example: anytune upgrade anytune-store --from sample:bert-tiny --to news-2026-11 --task reviews=reviews.csv
    """
    fix = "anytune upgrade STORE --from OLD_BASE --to NEW_BASE"
    old, new = values.needed("old base", from_, fix), values.needed("upgraded base", to, fix)
    from anytune.engine.progress import reporter
    from anytune.jobs.upgrade import upgrade as job

    found: Any = job(
        store, old=old, new=new, budget=budget, tolerance=tolerance, tasks=tasks_of(task or []), unlabelled=unlabelled,
        deltas=delta or None, steps=step or None, headroom=headroom, workers=workers, fan_out=fan_out, out=out,
        dry_run=dry_run, reporter=reporter(quiet),
    )  # fmt: skip
    if dry_run:
        print_forecast(found, json=json)
        return
    if json:
        show.print_json(upgrade_record(found))
    else:
        print_upgrade(found)
    if found.problems:
        raise typer.Exit(SettingsError.exit_code)


def tasks_of(pairs: list[str]) -> dict[str, str]:
    """``NAME=FILE`` pairs.

    Raises:
        SettingsError: one has no name.
    """
    found = {}
    for pair in pairs:
        name, sign, source = pair.partition("=")
        if not sign or not name or not source:
            raise SettingsError(
                f"--task {pair}", why="It says whose data they are.", fix=f"--task {Path(pair).stem}={pair}"
            )
        found[name] = source
    return found


def upgrade_record(found: Upgrade) -> dict[str, Any]:
    """An upgrade as JSON takes it."""
    return {"old": found.old, "new": found.new, "seconds": found.seconds,
            "deltas": [one.record() for one in found.outcomes]}  # fmt: skip


def print_upgrade(found: Upgrade) -> None:
    """The shelf as a table, then what could not be used and where all of it stands."""
    show.print_table(
        ["delta", "task", "old", "direct", "now", "step", "flag", "time"],
        [
            [one.delta, one.task, one.score("old"), one.score("keep"), one.decision.score if one.decision else None,
             (one.decision.step if one.decision else None) or "", one.flag or ("more" if one.more else ""),
             forecasts.clock(one.seconds)]
            for one in found.outcomes[:SHOWN]
        ],
    )  # fmt: skip
    if len(found.outcomes) > SHOWN:
        show.say(f"{len(found.outcomes) - SHOWN} more stand on the page")
    back = sum(one.flag == "" for one in found.outcomes)
    show.say(
        f"\n{back} of {len(found.outcomes)} are within the tolerance ({100 * found.tolerance:.4g} %) of their old "
        f"score, after {forecasts.clock(found.seconds)}"
    )
    print_headroom(found)
    flagged = {one.flag for one in found.outcomes} & {"budget", "unseen", "rows"}
    if flagged & {"budget", "unseen"}:
        show.say("the budget ended: the same command with a larger --budget goes on")
    if "rows" in flagged:
        show.say("some lack training rows: the same command with --task NAME=FILE goes on")
        wrong = [f"{one.delta}: {one.decision.reason}" for one in found.outcomes
                 if one.flag == "rows" and one.decision and "(" in one.decision.reason]  # fmt: skip
        for line in wrong[:SHOWN]:
            show.say(line)
    for one in found.problems:
        show.say(f"left out: {one.delta}: {one.problem}")
    show.say(f"\npage: {found.page}\njournal: {found.journal}")


def print_headroom(found: Upgrade) -> None:
    """Where the new base can do more than was asked of it; nothing where nobody looked."""
    from anytune.report.upgrade_page import further

    if told := further(found.new, [one.headroom for one in found.outcomes]):
        show.say(told)
    above: dict[str, list[Outcome]] = {}
    for one in found.outcomes:
        if one.headroom and one.more:
            above.setdefault(one.headroom["probe"], []).append(one)
    for probe, group in above.items():
        seen, taken = group[0].headroom or {}, [one.decision.score or 0.0 for one in group if one.decision]
        least, greatest = f"{min(taken):.4g}", f"{max(taken):.4g}"
        show.say(
            f"{group[0].task}: {len(group)} at {least}{'' if least == greatest else f' to {greatest}'}; "
            f"tuned on for {seen['step']} steps, {probe} scores {seen['score']:.4g}"
        )


def print_forecast(found: UpgradeForecast, *, json: bool) -> None:
    """What would be done, as a table or as JSON."""
    if json:
        show.print_json(found.record())
        return
    show.print_table(
        ["delta", "task", "rows", "training rows", "scoring", "training at most", "state"],
        [
            [one.delta, one.task, one.rows or "", "yes" if one.training else "no", forecasts.clock(one.scoring),
             forecasts.clock(sum((one.training_seconds or {}).values())), one.problem or one.state]
            for one in found.deltas[:SHOWN]
        ],
    )  # fmt: skip
    show.say(
        f"\n{len(found.deltas)} deltas: about {forecasts.clock(found.scoring)} of scoring, at most "
        f"{forecasts.clock(found.at_most)} if all need every step\nnothing was written"
    )
