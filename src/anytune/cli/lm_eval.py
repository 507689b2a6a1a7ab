"""``anytune lm-eval``: score with tasks of lm-eval (:func:`anytune.jobs.lm_eval.lm_eval`)."""

from __future__ import annotations

from typing import Annotated

import typer

from anytune.cli import options, show, values


def lm_eval(
    reference: Annotated[str, typer.Argument(metavar="REF", help="A generation delta, or a base.")],
    tasks: Annotated[str, typer.Option(metavar="A,B,C", help="Tasks of lm-eval.")],
    limit: Annotated[int | None, typer.Option(help="At most so many examples of each task.")] = None,
    include_path: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="A folder of further tasks, which you trust.")
    ] = None,
    num_fewshot: Annotated[int | None, typer.Option(help="Examples in the prompt.", min=0)] = None,
    batch_size: Annotated[int, typer.Option(help="Examples per batch.", min=1)] = 8,
    store: options.Store = None,
    base: Annotated[str | None, typer.Option(help="The delta's base, if it is not found by itself.")] = None,
    json: options.Json = False,
) -> None:
    """Score with tasks of lm-eval.

    Needs the extra anytune[lm-eval].

    Example: anytune lm-eval sample:smollm2-135m --tasks arc_easy --limit 100
    """
    from anytune.jobs.lm_eval import lm_eval as job

    result = job(
        reference, values.names(tasks) or [], limit=limit, include_path=include_path, num_fewshot=num_fewshot,
        batch_size=batch_size, store=store, base=base,
    )  # fmt: skip
    if json:
        show.print_json(result)
        return
    rows = [
        [name, metric, value, one["stderr"].get(metric), one["examples"]]
        for name, one in result["tasks"].items()
        for metric, value in one["scores"].items()
    ]
    show.print_table(["task", "metric", "value", "standard error", "examples"], rows)
