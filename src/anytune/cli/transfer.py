"""``anytune transfer``: a library of soft prompts (:mod:`anytune.jobs.transfer` and its neighbours)."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from anytune.cli import options, show, values

Measures = Annotated[
    list[str] | None,
    typer.Option("--measure", metavar="NAME", help="Compute this measure alone; may be repeated (default: all)."),
]
Metric = Annotated[
    str | None, typer.Option("--by", metavar="NAME", help="The measure that ranks (default: the best one at hand).")
]
Of = Annotated[
    list[str] | None, typer.Option("--source", metavar="DELTA", help="These stored prompts alone; may be repeated.")
]
Pooling = Annotated[str, typer.Option(help="Of task embeddings: 'mean', 'cls', 'pooler' or 'paper'.")]
Centring = Annotated[str, typer.Option(help="Of task embeddings: 'none', 'library' or 'base'.")]
Every = Annotated[bool, typer.Option("--every", help="All prompts, several of one task too.")]
ReadRows = Annotated[int, typer.Option(metavar="N", help="Training rows that are read.", rich_help_panel=options.DATA)]
TaskMetric = Annotated[str | None, typer.Option("--metric", help="Metric of the task.", rich_help_panel=options.DATA)]


def build(**settings: Any) -> typer.Typer:
    """The group of commands about transfer."""
    app = typer.Typer(**settings, help="Rank stored soft prompts for a task, and start from them.")
    app.command("rank")(rank)
    app.command("matrix")(matrix)
    app.command("run")(run)
    app.command("add")(add)
    app.command("tables")(tables)
    return app


def rank(
    task: options.Task = None,
    base: options.Base = None,
    by: Metric = None,
    measure: Measures = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="DELTA", help="A stored prompt of this task (default: the best one stored).")
    ] = None,
    train: Annotated[
        int | None, typer.Option(metavar="STEPS", help="Without one, tune a prompt of the task for so many steps.")
    ] = None,
    source: Of = None,
    every: Every = False,
    rows: ReadRows = 256,
    seed: Annotated[int, typer.Option(help="Draws the rows.")] = 0,
    pooling: Pooling = "mean",
    centring: Centring = "none",
    csv: Annotated[str | None, typer.Option(metavar="FILE", help="Also write the table.")] = None,
    text: options.Text = None,
    label: options.Label = None,
    metric: TaskMetric = None,
    kind: options.Kind = None,
    limit: options.Limit = None,
    label_names: options.LabelNames = None,
    store: options.Store = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Rank the stored prompts of a base for a task.

    Each measure says what it needs; those that compare two prompts need one of the task itself.

    Example: anytune transfer rank --task reviews.csv --base sample:minilm-l6
    """
    task, base = _needed(task, base, "rank")
    columns = values.task_columns(
        text=text, label=label, metric=metric, kind=kind, limit=limit, label_names=values.names(label_names)
    )
    from anytune.engine.progress import reporter
    from anytune.jobs.transfer import rank as job

    found = job(
        task, base, store=store, metric=by, metrics=measure, prompt=prompt, train=train, sources=source, every=every,
        rows=rows, seed=seed, pooling=pooling, centring=centring, reporter=reporter(quiet), **columns,
    )  # fmt: skip
    if csv is not None:
        found.to_csv(csv)
    if json:
        show.print_json(found.record())
        return
    show.print_table(*found.table())
    print()
    show.print_table(*found.costs())
    _print_left_out(found.left_out)
    show.say(f"\nranked by {found.metric} on {found.rows} rows of {found.task} in {found.seconds:.1f} s; "
             "better is higher in every column")  # fmt: skip
    if all(one.name != "task_cosine" or one.problem for one in found.measures):
        show.say("measures that compare two prompts: --train 100 tunes one of this task first")
    first = found.ranked[0].reference
    show.say(
        f"\nnext: anytune transfer run --task {show.quoted(task)} --base {show.quoted(base)}{show.in_store(store)}"
    )
    show.say(f"      anytune tune {show.quoted(base)} {show.quoted(task)} --method prompt_transfer --source {first}")


def matrix(
    base: options.Base = None,
    by: Annotated[str, typer.Option("--by", metavar="NAME", help="The measure.")] = "task_cosine",
    source: Of = None,
    every: Every = False,
    pooling: Pooling = "mean",
    centring: Centring = "none",
    out: Annotated[str | None, typer.Option(metavar="FOLDER", help="Write the table and the heat-map here.")] = None,
    figures: Annotated[bool, typer.Option("--figures", help="With --out, also as PNG (matplotlib).")] = False,
    store: options.Store = None,
    json: options.Json = False,
) -> None:
    """Compare all tasks of the library with each other; clusters stand together.

    Example: anytune transfer matrix --base sample:minilm-l6 --out heat-maps
    """
    base = values.needed("base", base, "anytune transfer matrix --base sample:minilm-l6")
    from anytune.jobs.transfer_matrix import matrix as job

    found = job(base, store=store, metric=by, sources=source, every=every, pooling=pooling, centring=centring)
    written = [] if out is None else found.write(out, figures=figures)
    if json:
        show.print_json(found.record())
        return
    order = list(found.order)
    names = [found.tasks[place] for place in order]
    show.print_table(
        ["", *names],
        [[names[row], *(_cell(found.values[place, other]) for other in order)] for row, place in enumerate(order)],
    )
    _print_left_out(found.left_out)
    for path in written:
        show.say(str(path))


def run(
    task: options.Task = None,
    base: options.Base = None,
    top: Annotated[int, typer.Option(metavar="N", help="Sources that are tried.")] = 3,
    by: Metric = None,
    measure: Measures = None,
    source: Of = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of every prompt, as length=20.")
    ] = None,
    beside: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Method that stands beside it (default: lora and full).")
    ] = None,
    seeds: options.Seeds = None,
    train_size: options.TrainSize = None,
    rows: ReadRows = 256,
    training: options.Training = None,
    steps: options.Steps = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    learning_rate: options.LearningRate = None,
    max_length: options.MaxLength = None,
    precision: options.Precision = None,
    evaluate_every: options.EvaluateEvery = None,
    text: options.Text = None,
    label: options.Label = None,
    metric: TaskMetric = None,
    kind: options.Kind = None,
    limit: options.Limit = None,
    label_names: options.LabelNames = None,
    workers: options.Workers = None,
    store: options.Store = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Rank, start from the best sources, teach students, and stand plain tuning beside them.

    The run that validates best is kept as a delta. All runs are ordinary ones: the same command goes on where it was.

    Example: anytune transfer run --task reviews.csv --base sample:minilm-l6 --top 3 --steps 200
    """
    task, base = _needed(task, base, "run")
    from anytune.engine.progress import reporter
    from anytune.jobs.recipe_files import parse_pairs
    from anytune.jobs.transfer_run import BESIDE
    from anytune.jobs.transfer_run import transfer_run as job

    found = job(
        task, base, store=store, top=top, metric=by, metrics=measure, sources=source,
        prompt=parse_pairs(set_ or [], "--set"), beside=BESIDE if beside is None else beside,
        seeds=values.seeds(seeds) or (0,), train_size=train_size, rows=rows, workers=workers,
        training=values.training(
            training or [], steps=steps, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate,
            max_length=max_length, precision=precision, evaluate_every=evaluate_every,
        ),
        reporter=reporter(quiet),
        **values.task_columns(
            text=text, label=label, metric=metric, kind=kind, limit=limit, label_names=values.names(label_names)
        ),
    )  # fmt: skip
    if json:
        show.print_json(found.record())
        return
    show.print_table(*found.table())
    show.say("\nsteps: of one run, those of its teacher among them; scores are means over seeds; validation chose")
    show.say(f"kept: {found.best.reference}")
    show.say(f"\nnext: {show.predicting(found.best)}{show.in_store(store)}")


def add(
    prompt: Annotated[
        str, typer.Argument(metavar="FOLDER", help="A PEFT folder, a P-tuning v2 checkpoint, or DELTA.")
    ],
    base: options.Base = None,
    task: options.Task = None,
    name: options.Name = None,
    text: options.Text = None,
    label: options.Label = None,
    metric: TaskMetric = None,
    kind: options.Kind = None,
    limit: options.Limit = None,
    label_names: options.LabelNames = None,
    tag: options.Tag = None,
    store: options.Store = None,
    json: options.Json = False,
) -> None:
    """Adopt a prompt made elsewhere, and make what ranking needs of its task.

    Example: anytune transfer add my-prompt --base sample:minilm-l6 --task reviews.csv
    """
    from anytune.jobs.transfer_add import add_prompt

    columns = values.task_columns(
        text=text, label=label, metric=metric, kind=kind, limit=limit, label_names=values.names(label_names)
    )
    entry, features = add_prompt(
        prompt, base=base, task=task, store=store, name=name, tags=values.tags(tag or []), **columns
    )
    problem = features if isinstance(features, str) else None
    if json:
        show.print_json({**show.run_record(entry), "features": problem is None, "problem": problem})
        return
    show.print_table(
        ["reference", "task", "rows read"],
        [[entry.reference, entry.manifest.task.name if entry.manifest.task else None,
          None if isinstance(features, str) else features.rows]],
    )  # fmt: skip
    if problem:
        show.say(f"note: {problem}", file=sys.stderr)
    reference = entry.manifest.base.ref or entry.manifest.base.name
    show.say(f"\nnext: anytune transfer rank --task DATA --base {show.quoted(reference)}{show.in_store(store)}")


def tables(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="The 'out' folder of a job: transfer.")],
    all_: Annotated[bool, typer.Option("--tables", help="Print all tables, not their summary alone.")] = False,
    figures: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Also the gains of all pairs as figures.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Make the tables of a grid of transfers again, from its lines alone.

    'anytune run RECIPE' makes the grid, by a recipe of job: transfer.

    Example: anytune transfer tables transfer-out --tables
    """
    from anytune.jobs.arms import TABLES_NAME
    from anytune.jobs.transfer_grid import record, transfers_again

    found = transfers_again(folder)
    if figures is not None:
        from anytune.evaluate.transfer_arms import grid_of
        from anytune.report.transfer_charts import write_transfer_figures

        write_transfer_figures(grid_of(found.lines), figures)
    if json:
        show.print_json(record(found))
        return
    if all_:
        show.say((found.folder / TABLES_NAME).read_text(encoding="utf-8"))
    show.say(str(found))


def _needed(task: str | None, base: str | None, command: str) -> tuple[str, str]:
    given = values.needed("task", task, f"anytune transfer {command} --task FILE --base BASE")
    return given, values.needed("base", base, f"anytune transfer {command} --task {given} --base sample:minilm-l6")


def _cell(value: float) -> str | None:
    return None if value != value else f"{value:.3f}"


def _print_left_out(left_out: Any) -> None:
    for what, why in left_out.items():
        show.say(
            f"left out: {what}: {why}" if not what.startswith("unusable") else f"left out: {why}", file=sys.stderr
        )
