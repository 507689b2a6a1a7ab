"""``anytune pretrain``: go on pre-training a base on domains (:func:`anytune.jobs.pretrain.pretrain`)."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from anytune.cli import forecasts, options, show, values


def pretrain(
    base: Annotated[
        str,
        typer.Argument(metavar="BASE", help="The base: sample:NAME, a folder, a base in the store, or a hub id."),
    ],
    domains: Annotated[
        list[str], typer.Argument(metavar="DOMAIN", help="Text, JSONL, CSV, Parquet files or sample:NAME.")
    ],
    names: Annotated[
        str | None,
        typer.Option(
            "--name", "--names", metavar="A,B", help="Names of the new bases, one per domain (default: BASE+DOMAIN)."
        ),
    ] = None,
    method: options.Method = None,
    set_: options.Set = None,
    store: options.Store = None,
    seed: Annotated[int, typer.Option(help="Decides order and masks.")] = 0,
    watch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DOMAIN", help="Also measure the loss on this domain, before and after; may be repeated."
        ),
    ] = None,
    apart_from: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK", help="Refuse domains that hold test texts of this task; may be repeated."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Optimizer steps per domain; wins over epochs.", rich_help_panel=options.TRAINING),
    ] = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    learning_rate: options.LearningRate = None,
    block_size: options.BlockSize = None,
    precision: options.Precision = None,
    evaluate_every: options.EvaluateEvery = None,
    training: options.Training = None,
    resume: options.Resume = False,
    restart: options.Restart = False,
    text: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Text column.", rich_help_panel=options.DATA)
    ] = None,
    date: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of dates.", rich_help_panel=options.DATA)
    ] = None,
    split_by: Annotated[
        str | None,
        typer.Option(
            metavar="year|month|DATE,DATE",
            help="Dated text as a domain for each year or month, or from each of these dates on.",
            rich_help_panel=options.DATA,
        ),
    ] = None,
    limit: options.Limit = None,
    log_with: options.LogWith = None,
    log_dir: options.LogDir = None,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Go on pre-training a base on new domains.

    Each domain in turn; every stage is stored as a base of its own.

    Example: anytune pretrain sample:bert-tiny news.txt law.txt --names news-v1,law-v2 --steps 1000
    """
    settings = values.training(
        training or [], steps=steps, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate,
        block_size=block_size, precision=precision, evaluate_every=evaluate_every,
    )  # fmt: skip
    periods = split_by if split_by in ("year", "month") else values.names(split_by)
    columns = values.task_columns(text=text, date=date, limit=limit, split_by=periods)
    going_on = values.resume(resume, restart)
    methods = values.methods(method or ["sequential"], set_ or [])
    from anytune.engine.progress import reporter
    from anytune.jobs.pretrain import pretrain as job

    entries: list[Any] = job(
        base, domains, store=store, method=methods, training=settings, seed=seed, names=values.names(names),
        watch=watch or [], apart_from=apart_from or [], resume=going_on,
        log_with=log_with, log_dir=log_dir,
        dry_run=dry_run, reporter=reporter(quiet), **columns,
    )  # fmt: skip
    if dry_run:
        forecasts.print_forecasts(entries, json=json)
        return
    if json:
        show.print_json([show.run_record(entry) for entry in entries])
        return
    show.print_bases(entries)
    show.say(f"\nnext: anytune recycle DELTA --base {show.quoted(entries[-1].reference)}{show.in_store(store)}")
