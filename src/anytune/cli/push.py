"""``anytune push``: share an artefact on a hub (:func:`anytune.jobs.hub.push`)."""

from __future__ import annotations

from typing import Annotated

import typer

from anytune.cli import options, show


def push(
    reference: Annotated[str, typer.Argument(metavar="REF", help="Name, id or folder of a delta or a base.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository; made if missing.")],
    private: Annotated[bool, typer.Option("--private", help="Only you (and your organisation) can see it.")] = False,
    message: Annotated[str | None, typer.Option(metavar="TEXT", help="Of the commit.")] = None,
    sample: Annotated[
        bool, typer.Option("--sample", help="Also the held-out rows beside it (texts of your task).")
    ] = False,
    store: options.Store = None,
    json: options.Json = False,
) -> None:
    """Share a delta or a base on a hub.

    Its page is made from its manifest.

    Example: anytune push reviews-lora-bert-tiny me/reviews-lora --private
    """
    from anytune.jobs.hub import push as job

    address = job(reference, repository, store=store, private=private, message=message, sample=sample)
    if json:
        show.print_json({"reference": reference, "repository": repository, "address": address, "private": private})
    else:
        print(show.cell(address))
        print(f"\nnext: anytune pull {repository}   (elsewhere)")
