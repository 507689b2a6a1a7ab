"""``anytune pull``: have an artefact from a hub (:func:`anytune.jobs.hub.pull`)."""

from __future__ import annotations

from typing import Annotated

import typer

from anytune.cli import options, show, values


def pull(
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME[@REVISION]", help="The repository.")],
    base: Annotated[str | None, typer.Option(help="For a plain PEFT adapter: the base it was trained on.")] = None,
    name: options.Name = None,
    task: Annotated[str | None, typer.Option(help="For a plain PEFT adapter: name of its task.")] = None,
    label_names: options.LabelNames = None,
    metric: options.Metric = None,
    store: options.Store = None,
    json: options.Json = False,
) -> None:
    """Have a delta or a base from a hub.

    Everything is checked before it stands in the store.

    Example: anytune pull me/reviews-lora
    """
    from anytune.jobs.hub import pull as job

    given = {"task": task, "label_names": values.names(label_names), "metric": metric}
    chosen = {key: value for key, value in given.items() if value is not None}
    entry = job(repository, store=store, base=base, name=name, **chosen)
    if json:
        show.print_json(show.run_record(entry))
        return
    show.say(entry.reference)
    following = (
        show.predicting(entry)
        if entry.manifest.kind == "delta"
        else f"anytune tune {show.quoted(entry.reference)} TASK.csv"
    )
    show.say(f"\nnext: {following}{show.in_store(store)}")
