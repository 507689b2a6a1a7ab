"""``anytune tune``: tune a task on a base (:func:`anytune.jobs.tune.tune`)."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from anytune.cli import forecasts, options, show, stability_tables, values


def tune(
    base: Annotated[
        str | None, typer.Argument(metavar="BASE", help="The base, here or as --base.", show_default=False)
    ] = None,
    task: Annotated[
        str | None, typer.Argument(metavar="TASK", help="The task, here or as --task.", show_default=False)
    ] = None,
    base_option: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="BASE",
            help="The base: sample:NAME, a folder, the name of a base in the store, or a hub id.",
        ),
    ] = None,
    task_option: Annotated[
        str | None,
        typer.Option(
            "--task",
            metavar="TASK",
            help="The task: a CSV, JSONL or Parquet file, a folder of splits, sample:NAME, or a datasets id.",
        ),
    ] = None,
    method: options.Method = None,
    set_: options.Set = None,
    against: options.Against = None,
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
    start_from: options.StartFrom = None,
    source: options.Source = None,
    teacher: options.Teacher = None,
    text: options.Text = None,
    label: options.Label = None,
    metric: options.Metric = None,
    kind: options.Kind = None,
    validation: options.Validation = None,
    test: options.Test = None,
    limit: options.Limit = None,
    label_names: options.LabelNames = None,
    train_size: options.TrainSize = None,
    train_sizes: options.TrainSizes = None,
    per_class: options.PerClass = None,
    subset_seed: options.SubsetSeed = None,
    score_on: options.ScoreOn = None,
    probe_on: options.ProbeOn = None,
    log_with: options.LogWith = None,
    log_dir: options.LogDir = None,
    dry_run: options.DryRun = False,
    workers: options.Workers = None,
    fan_out: options.FanOut = "processes",
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Tune a task on a base and store the result.

    Example: anytune tune sample:bert-tiny reviews.csv --method lora --set r=4 --seeds 3
    """
    base, task = values.placed([("base", base, base_option), ("task", task, task_option)])
    base = values.needed("base", base, "anytune tune --base sample:bert-tiny --task FILE")
    task = values.needed("task", task, f"anytune tune --base {base} --task FILE")
    chosen_seeds = values.seeds(seeds)
    going_on = values.resume(resume, restart)
    methods = values.methods(method or ["full"], set_ or [])
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
    from anytune.jobs.tune import tune as job

    entries: list[Any] = job(
        base, task, store=store, method=methods, training=settings, seeds=chosen_seeds or (0,), train_size=train_size,
        train_sizes=values.sizes(train_sizes), per_class=per_class, subset_seed=values.subset_seed(subset_seed),
        score_on=score_on, probe_on=probe_on, against=against,
        keep=keep, keep_sample=keep_sample, name=name, tags=labels, start_from=start_from,
        sources=source, teachers=teacher, resume=going_on, log_with=log_with, log_dir=log_dir,
        dry_run=dry_run, workers=workers, fan_out=fan_out, reporter=reporter(quiet), **columns,
    )  # fmt: skip
    if dry_run:
        forecasts.print_forecasts(entries, json=json)
        return
    if json:
        show.print_json(stability_tables.runs_record(entries))
        return
    show.print_runs(entries)
    stability_tables.print_summaries(entries)
    kept = [entry for entry in entries if not entry.manifest.failed]
    if keep == "weights" and kept:
        show.say(f"\nnext: {show.predicting(kept[0])}{show.in_store(store)}")
