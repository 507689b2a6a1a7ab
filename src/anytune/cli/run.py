"""``anytune run``: run a recipe (:func:`anytune.jobs.recipes.run`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from anytune.cli import forecasts, options, show, stability_tables
from anytune.cli.upgrade import print_upgrade, upgrade_record
from anytune.errors import SettingsError


def run(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or an artefact to make again.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides: training.steps=50, method.r=4.")
    ] = None,
    store: options.Store = None,
    check: Annotated[bool, typer.Option("--check", help="Only check it, and print what would run.")] = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Run a recipe: one job, or several in order.

    Example: anytune run recipes/tune-lora.yaml training.steps=50 method.r=4
    """
    from anytune.jobs import recipes

    source = _source(recipe, store)
    loaded = recipes.load_recipe(source, overrides or [])
    if check:
        show.print_json(loaded.resolved() if loaded.several else loaded.resolved()[0])
        return
    if dry_run:
        planned = recipes.run(source, overrides or [], store=store, dry_run=True)
        forecasts.print_forecasts(planned, json=json)
        return
    from anytune.engine.progress import reporter

    results = recipes.run(source, overrides or [], store=store, reporter=reporter(quiet))
    found = results if loaded.several else [results]
    if json:
        plain = [_plain(result) for result in found]
        show.print_json(plain if loaded.several else plain[0])
    else:
        for job, result in zip(loaded.resolved(), found, strict=True):
            if loaded.several:
                print(f"\n{job['job']}")
            _print(job["job"], result)
    if any(getattr(result, "problems", None) for result in found):  # of an upgrade: deltas that were left out
        raise typer.Exit(SettingsError.exit_code)


def _source(recipe: str, store: str | None) -> str | Path:
    """A file or folder as it is; else the artefact of that name in the store."""
    path = Path(recipe).expanduser()
    if path.exists() or path.suffix.lower() in (".yaml", ".yml", ".json"):
        return path
    from anytune.jobs.opening import open_store

    return open_store(store, create=False).get(recipe).folder


def _print(job: str, result: Any) -> None:
    if job == "evaluate":
        show.print_table(["metric", "value"], result.items())
    elif job == "pretrain":
        show.print_bases(result)
    elif job == "upgrade":
        print_upgrade(result)
    elif isinstance(result, list):
        show.print_runs(result)
        stability_tables.print_summaries(result)
    else:
        show.say(str(result))


def _plain(result: Any) -> Any:
    if hasattr(result, "outcomes"):
        return upgrade_record(result)
    if hasattr(result, "rankings"):
        from anytune.jobs import transfer_grid

        return transfer_grid.record(result)
    if hasattr(result, "upgrades"):
        from anytune.jobs import recycle_grid

        return recycle_grid.record(result)
    if hasattr(result, "lines"):
        if hasattr(result, "stages"):
            from anytune.jobs import anytime

            return anytime.record(result)
        from anytune.jobs.arms import record

        return record(result)
    if isinstance(result, list):
        return stability_tables.runs_record(result)
    return result if isinstance(result, dict) else str(result)
