"""``anytune samples``: real models and texts by name (:mod:`anytune.data.samples`)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anytune.cli import options, show

if TYPE_CHECKING:
    from anytune.data.samples import Sample


def build(**settings: Any) -> typer.Typer:
    """The group of commands about samples."""
    app = typer.Typer(**{**settings, "no_args_is_help": False}, invoke_without_command=True)
    app.callback()(samples)
    app.command("fetch")(fetch)
    app.command("show")(show_one)
    return app


def samples(ctx: typer.Context, json: options.Json = False) -> None:
    """List real models and texts; fetch them by name.

    Example: anytune samples fetch hpo
    """
    if ctx.invoked_subcommand is not None:
        return
    from anytune.data.samples import list_samples

    records = [record(sample) for sample in list_samples()]
    if json:
        show.print_json(records)
        return
    rows = [
        [one["name"], one["kind"], one["task"], show.size(one["bytes"]) if one["bytes"] else None, one["fetched"],
         show.shorten(one["licence"], 28), show.shorten(one["title"], 72)]
        for one in records
    ]  # fmt: skip
    show.print_table(["name", "kind", "task", "download", "fetched", "licence", "what"], rows)
    print("\nnext: anytune samples show NAME, anytune samples fetch NAME; use as sample:NAME")


def fetch(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Names of samples.")],
    quiet: options.Quiet = False,
) -> None:
    """Download samples into the cache, checked by SHA-256."""
    from anytune.data.samples import fetch as job
    from anytune.data.samples import get_sample

    wanted = [get_sample(name) for name in names]  # a wrong name ends it before anything is downloaded
    for sample in wanted:
        folder = job(sample.name, progress=None if quiet else lambda line: print(line, file=sys.stderr, flush=True))
        print(f"{sample.name}: {folder}")


def show_one(name: Annotated[str, typer.Argument(help="Name of a sample.")], json: options.Json = False) -> None:
    """Say what a sample is, where it comes from and under which licence."""
    from anytune.data.samples import get_sample

    facts = record(get_sample(name))
    if json:
        show.print_json(facts)
        return
    width = max(map(len, facts))
    for key, value in facts.items():
        for place, line in enumerate(value if isinstance(value, list) else [value]):
            if line not in (None, "", []):
                print(f"{key if not place else '':<{width}}  {show.size(line) if key == 'bytes' else show.cell(line)}")


def record(sample: Sample) -> dict[str, Any]:
    """What there is to say about a sample."""
    from anytune.data.samples import is_fetched

    columns = list(sample.text_columns) if sample.kind == "text" else []
    return {
        "name": sample.name, "kind": sample.kind, "title": sample.title, "licence": sample.licence,
        "bytes": sample.size_bytes, "sha256": sample.sha256, "source": sample.source.title, "domain": sample.domain,
        "task": sample.task, "metric": sample.metric or None, "text_columns": columns,
        "dated": sample.dated, "shares_text_with": list(sample.shares_text_with), "fetched": is_fetched(sample.name),
        "notes": list(sample.notes),
    }  # fmt: skip
