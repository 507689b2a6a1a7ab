"""The ``anytune`` command: puts the commands together, one file each."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from anytune._version import __version__
from anytune.cli import (
    anytime,
    compare,
    demo,
    diagnose,
    doctor,
    evaluate,
    export,
    lm_eval,
    merge,
    methods,
    predict,
    pretrain,
    pull,
    push,
    recycle,
    recycle_tables,
    report,
    run,
    samples,
    store,
    transfer,
    tune,
    upgrade,
)
from anytune.cli.failures import Guarded, hang_up, interrupted, leave_speech_to_first
from anytune.engine.allocator import keep_freed_memory


def build(rich_help: bool = False) -> typer.Typer:
    """The application. ``rich_help`` draws help with colours and boxes, which costs a tenth of a second."""
    options: dict[str, Any] = {
        "rich_markup_mode": "rich" if rich_help else None,
        "no_args_is_help": True,
        "pretty_exceptions_enable": False,
        "context_settings": {"help_option_names": ["-h", "--help"]},
    }
    app = typer.Typer(name="anytune", cls=Guarded, **options)
    app.callback()(root)
    app.command("demo")(demo.demo)
    app.command("doctor")(doctor.doctor)
    app.add_typer(samples.build(**options), name="samples")
    app.command("methods")(methods.methods)
    app.command("pretrain")(pretrain.pretrain)
    app.command("tune")(tune.tune)
    app.command("recycle")(recycle.recycle)
    app.command("upgrade")(upgrade.upgrade)
    app.command("recycle-tables")(recycle_tables.recycle_tables)
    app.command("diagnose")(diagnose.diagnose)
    app.command("compare")(compare.compare)
    app.command("anytime")(anytime.anytime)
    app.add_typer(transfer.build(**options), name="transfer")
    app.command("evaluate")(evaluate.evaluate)
    app.command("lm-eval")(lm_eval.lm_eval)
    app.command("predict")(predict.predict)
    app.command("merge")(merge.merge)
    app.command("export")(export.export)
    app.command("push")(push.push)
    app.command("pull")(pull.pull)
    app.command("report")(report.report)
    app.add_typer(store.build(**options), name="store")
    app.command("run")(run.run)
    return app


def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an unexpected error arose.")] = False,
) -> None:
    """Keep what you tuned when the base model is upgraded.

    Tune tasks on a base, go on pre-training the base, and carry the tuned weights over to it. 'anytune demo' shows
    all of it on a small real model in a few minutes.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line (``sys.argv`` by default); ends with SystemExit: 0, 2 (yours to put right) or 1 (a bug)."""
    safe_output()
    leave_speech_to_first()
    if arguments is None:  # the process is ours
        keep_freed_memory()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words[:1] == ["--version"]:
            typer.echo(f"anytune {__version__}")
            raise SystemExit(0)
        build(rich_help=sys.stdout.isatty())(args=words, prog_name="anytune")
    except KeyboardInterrupt:
        raise SystemExit(interrupted()) from None
    except BrokenPipeError:
        raise SystemExit(hang_up()) from None
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            hang_up()


def safe_output() -> None:
    """Let no character end a command: pipes and files get UTF-8, a terminal of another encoding gets '?'."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is None:
            continue
        chosen = None if stream.isatty() or "PYTHONIOENCODING" in os.environ else "utf-8"
        reconfigure(encoding=chosen, errors="replace")


if __name__ == "__main__":
    main()
