"""``anytune recycle``: carry a delta over to an upgraded base (:func:`anytune.jobs.recycle.recycle`)."""

from __future__ import annotations

import functools
from typing import Annotated, Any

import typer

from anytune.cli import forecasts, options, show, values


def recycle(
    delta: Annotated[str, typer.Argument(metavar="DELTA", help="The tuned delta: name, id or folder.")],
    base: Annotated[
        str | None, typer.Argument(metavar="BASE", help="The upgraded base, here or as --base.", show_default=False)
    ] = None,
    base_option: Annotated[
        str | None,
        typer.Option(
            "--base", metavar="BASE", help="The upgraded base: its name in the store, a folder, or a hub id."
        ),
    ] = None,
    task: options.Task = None,
    method: Annotated[
        str, typer.Option(help="'direct' (no training), 'initialize' (start there, then tune), 'distill' ...")
    ] = "initialize",
    tune_with: Annotated[
        list[str] | None, typer.Option("--tune", help="Tune method(s) after the move (default: those of the delta).")
    ] = None,
    set_: options.Set = None,
    unlabelled: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Texts without labels, for methods that read them (distill with label_free).",
            rich_help_panel=options.DATA,
        ),
    ] = None,
    projection: Annotated[
        str | None,
        typer.Option(
            metavar="DELTA",
            help="A delta with a projection trained on another task: these weights go through it, without training.",
            rich_help_panel=options.DATA,
        ),
    ] = None,
    via: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BASE", help="Hop by hop: a base between, first to last (repeat), or 'parents' to find them."
        ),
    ] = None,
    old_base: Annotated[str | None, typer.Option(help="The delta's own base, if it is not found by itself.")] = None,
    seeds: options.Seeds = None,
    store: options.Store = None,
    name: options.Name = None,
    keep: options.Keep = "weights",
    keep_sample: options.KeepSample = True,
    tag: options.Tag = None,
    steps: options.Steps = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    learning_rate: options.LearningRate = None,
    max_length: options.MaxLength = None,
    precision: options.Precision = None,
    evaluate_every: options.EvaluateEvery = None,
    training: options.Training = None,
    resume: options.Resume = False,
    restart: options.Restart = False,
    text: options.Text = None,
    label: options.Label = None,
    metric: options.Metric = None,
    kind: options.Kind = None,
    validation: options.Validation = None,
    test: options.Test = None,
    limit: options.Limit = None,
    label_names: options.LabelNames = None,
    train_size: options.TrainSize = None,
    per_class: options.PerClass = None,
    log_with: options.LogWith = None,
    log_dir: options.LogDir = None,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Carry a tuned delta over to an upgraded base.

    Example: anytune recycle reviews-full-bert-tiny --base news-2026-11 --task reviews.csv --steps 100
    """
    base = values.needed(
        "upgraded base", values.placed([("base", base, base_option)])[0], f"anytune recycle {delta} --base NEW_BASE"
    )
    chosen_seeds = values.seeds(seeds)
    going_on = values.resume(resume, restart)
    methods = values.methods([method, *(tune_with or [])], set_ or [])
    settings = values.training(
        training or [], steps=steps, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate,
        max_length=max_length, precision=precision, evaluate_every=evaluate_every,
    )  # fmt: skip
    columns = values.task_columns(
        text=text, label=label, metric=metric, kind=kind, validation=validation, test=test, limit=limit,
        label_names=values.names(label_names),
    )  # fmt: skip
    labels = values.tags(tag or [])
    from anytune.engine.progress import reporter
    from anytune.jobs.chain import recycle_chain, stops_given
    from anytune.jobs.recycle import recycle as one_hop

    job: Any = functools.partial(recycle_chain, via=stops_given(via)) if via else one_hop
    entries: list[Any] = job(
        delta, base, store=store, method=methods[0], tune=methods[1:] or None, task=task, unlabelled=unlabelled,
        projection=projection, old_base=old_base, training=settings, seeds=chosen_seeds, train_size=train_size,
        per_class=per_class, keep=keep, keep_sample=keep_sample, name=name, tags=labels, resume=going_on,
        log_with=log_with, log_dir=log_dir, dry_run=dry_run, reporter=reporter(quiet), **columns,
    )  # fmt: skip
    if dry_run:
        forecasts.print_forecasts(entries, json=json)
        return
    if json:
        show.print_json([show.run_record(entry) for entry in entries])
        return
    show.print_runs(entries)
    if keep == "weights":
        show.say(f"\nnext: {show.predicting(entries[0])}{show.in_store(store)}")
