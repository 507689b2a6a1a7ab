"""``anytune demo``: the whole life cycle on a real small model (:func:`anytune.jobs.demo.demo`)."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from anytune.cli import forecasts, options, values


def demo(
    model: Annotated[
        str, typer.Option(help="'bert-tiny' (in the package) or 'minilm-l6' (fetched and warmed once).")
    ] = "bert-tiny",
    fast: Annotated[bool, typer.Option("--fast", help="Under 90 seconds: fewer steps and seeds.")] = False,
    folder: Annotated[str, typer.Option(help="Where store and page go.")] = "anytune-demo",
    seeds: options.Seeds = None,
    workers: options.Workers = None,
    fan_out: options.FanOut = "processes",
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open the page at the end.")] = True,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
) -> None:
    """Show the whole life cycle on a small real model.

    Tunes real tasks, upgrades the base, recycles the tuned weights, and makes a page of how it went.

    Example: anytune demo --fast
    """
    chosen = values.seeds(seeds)
    from anytune.engine.progress import reporter
    from anytune.jobs.demo import demo as job

    page: Any = job(
        model=model, fast=fast, folder=folder, seeds=chosen, workers=workers, fan_out=fan_out, dry_run=dry_run,
        reporter=reporter(quiet),
    )  # fmt: skip
    if dry_run:
        from anytune.engine.fanout import worker_count

        forecasts.print_forecasts(page, workers=worker_count(len(page), workers))
        return
    print(page)
    if open_page and sys.stdout.isatty() and has_display():
        import webbrowser

        webbrowser.open(Path(page).resolve().as_uri())


def has_display() -> bool:
    """Whether a browser window could appear; without one a text browser would take the terminal over."""
    return sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
