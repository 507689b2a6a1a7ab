"""``anytune evaluate``: score a delta (:func:`anytune.jobs.load.evaluate`)."""

from __future__ import annotations

from typing import Annotated

import typer

from anytune.cli import forecasts, options, show, values


def evaluate(
    delta: Annotated[str, typer.Argument(metavar="DELTA", help="The delta: name, id or folder.")],
    task: Annotated[
        str | None,
        typer.Argument(
            help="The task, here or as --task (default: the delta's own, if it can be had again).", show_default=False
        ),
    ] = None,
    task_option: Annotated[str | None, typer.Option("--task", metavar="TASK", help="The task's data.")] = None,
    split: Annotated[str, typer.Option(help="'test', 'validation' or 'train'.")] = "test",
    store: options.Store = None,
    base: Annotated[str | None, typer.Option(help="The delta's base, if it is not found by itself.")] = None,
    batch_size: Annotated[int, typer.Option(help="Examples per batch.", min=1)] = 64,
    text: options.Text = None,
    label: options.Label = None,
    metric: options.Metric = None,
    kind: options.Kind = None,
    validation: options.Validation = None,
    test: options.Test = None,
    limit: options.Limit = None,
    label_names: options.LabelNames = None,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Score a delta on a split of its task.

    Example: anytune evaluate reviews-full-bert-tiny --task reviews.csv --split validation
    """
    columns = values.task_columns(
        text=text, label=label, metric=metric, kind=kind, validation=validation, test=test, limit=limit,
        label_names=values.names(label_names),
    )  # fmt: skip
    from anytune.jobs.load import evaluate as job

    [source] = values.placed([("task", task, task_option)])
    if dry_run:
        from anytune.jobs.use_forecasts import forecast_evaluation

        found = forecast_evaluation(
            delta, source, split=split, store=store, base=base, batch_size=batch_size, **columns
        )  # fmt: skip
        forecasts.print_forecasts([found], json=json)
        return
    scores = job(delta, source, split=split, store=store, base=base, batch_size=batch_size, **columns)
    if json:
        show.print_json({"delta": delta, "split": split, "scores": scores})
    else:
        show.print_table(["metric", split], scores.items())
