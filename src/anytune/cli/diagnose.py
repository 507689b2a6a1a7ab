"""``anytune diagnose``: what an upgrade did to a base and to deltas of it (:func:`anytune.jobs.diagnose.diagnose`)."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from anytune.cli import options, show, values


def diagnose(
    old: Annotated[str, typer.Argument(metavar="OLD", help="The old base: a name in the store, a folder, a hub id.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The upgraded base.")],
    delta: Annotated[
        list[str] | None, typer.Option(metavar="DELTA", help="A delta of the old base; may be repeated.")
    ] = None,
    task: options.Task = None,
    texts: Annotated[
        str | None, typer.Option(metavar="FILE", help="Texts without labels, in place of a task (see --text).")
    ] = None,
    fresh: Annotated[
        str | None, typer.Option(metavar="DELTA", help="A delta tuned on the new base: where the path ends.")
    ] = None,
    out: Annotated[str | None, typer.Option(metavar="FILE", help="Also a page with the pictures.")] = None,
    store: options.Store = None,
    points: Annotated[int, typer.Option(help="Points of the path, both ends included; 0 leaves it out.")] = 26,
    rows: Annotated[int, typer.Option(help="Validation rows (or texts) read, at most.")] = 256,
    tolerance: Annotated[
        str, typer.Option(metavar="SHARE", help="Loss that is put up with: '1%' is one point of a score.")
    ] = "1%",
    text: options.Text = None,
    label: options.Label = None,
    metric: options.Metric = None,
    kind: options.Kind = None,
    validation: options.Validation = None,
    test: options.Test = None,
    limit: options.Limit = None,
    label_names: options.LabelNames = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Say what an upgrade did to a base and deltas.

    Nothing is trained and nothing is stored.

    Example: anytune diagnose sample:bert-tiny news-2026-11 --delta reviews-full-bert-tiny --out diagnose.html
    """
    columns = values.task_columns(
        text=None if texts else text, label=label, metric=metric, kind=kind, validation=validation, test=test,
        limit=limit, label_names=values.names(label_names),
    )  # fmt: skip
    from anytune.cli.predict import file_texts
    from anytune.engine.progress import reporter
    from anytune.errors import DeltaError
    from anytune.jobs.diagnose import diagnose as job
    from anytune.jobs.upgrade_steps import share_of

    found = job(
        old, new, delta=delta or [], task=task, texts=file_texts(texts, text) if texts else None, fresh=fresh,
        store=store, points=points, rows=rows, tolerance=share_of(tolerance), reporter=reporter(quiet), **columns,
    )  # fmt: skip
    record = found.record()
    if out is not None:
        from anytune.report.recycle_panel import write_diagnosis

        written = write_diagnosis(record, out)
    if json:
        show.print_json(record)
    else:
        _print(record)
        if out is not None:
            show.say(f"\nthe page: {written}")
    if any(one.problem for one in found.deltas):
        raise typer.Exit(DeltaError.exit_code)


def _print(record: dict[str, Any]) -> None:
    """The two bases, a row per delta, and what could not be looked at."""
    from anytune.report.recycle_panel import MEANING, facts, headline, points_lost

    show.say(headline(record))
    show.say("")
    show.print_table(["", "value"], facts(record["distance"]))
    for reason in record["distance"]["apart"][:5]:
        show.say(f"note: {reason}", file=sys.stderr)
    if not record["deltas"]:
        return
    rows = []
    for one in record["deltas"]:
        forecast, flips = one["forecast"], one["flips"]
        said = None
        if forecast is not None:
            said = f"{100 * forecast['drop']:.1f}"
            if forecast["low"] is not None:
                said += f" ({100 * forecast['low']:.1f} to {100 * forecast['high']:.1f})"
        path, similarity, lost = one["path"], one["similarity"], points_lost(one["drop"], one["measured"])
        rows.append([
            one["reference"], one["form"], one["size"], one["disagreement"],
            flips["negative_rate"] if flips else None, one["before"], one["after"], lost, said,
            path["barrier"] if path else None, similarity["mean_js"] if similarity else None, one["verdict"],
        ])  # fmt: skip
    show.say("")
    show.print_table(
        ["delta", "form", "size", "changed", "negative flips", "old score", "as it is", "loss, points", "predicted",
         "barrier", "head similarity", "verdict"], rows,
    )  # fmt: skip
    for one in record["deltas"]:
        for reason in filter(None, (one["problem"], one["refusal"])):
            show.say(f"{one['reference']}: {reason}", file=sys.stderr)
        for note in one["notes"]:
            show.say(f"note: {one['reference']}: {note}", file=sys.stderr)
    forecasts = [one["forecast"] for one in record["deltas"] if one["forecast"]]
    if forecasts:
        first = forecasts[0]
        show.say(
            f"predicted: a forecast of the loss with a {first['level']:.0%} interval, learned from {first['reuses']} "
            f"direct reuses over {first['upgrades']} upgrades ({record['forecast_source'] or 'your own'})"
        )
    for verdict in dict.fromkeys(one["verdict"] for one in record["deltas"]):
        show.say(f"{verdict}: {MEANING[verdict]}")
