"""What a user reads when something fails, and the exit code: 2 for what they can put right, 1 for a bug of ours."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from anytune.cli.show import printable
from anytune.engine.processes import first_to_speak, launched
from anytune.errors import AnytuneError, SettingsError

INTERRUPTED = "interrupted; the same command goes on where it was"
FLAG = "--traceback"
ORDER = (
    "demo", "doctor", "samples", "methods", "pretrain", "tune", "diagnose", "recycle", "upgrade", "compare", "anytime",
    "recycle-tables", "transfer", "evaluate", "lm-eval", "predict", "merge", "export", "push", "pull", "report",
    "store", "run",
)  # fmt: skip
#: Commands whose work several processes share; any other would be done by each of them.
SHARED = ("pretrain", "tune", "recycle", "run")


class Guarded(TyperGroup):
    """The group of all commands: no exception leaves it as a traceback, unless ``--traceback`` asks for it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take ``--traceback`` wherever it stands, as a user adds it at the end."""
        end = args.index("--") if "--" in args else len(args)
        before = [word for word in args[:end] if word != FLAG]
        flag = [FLAG] if len(before) < end else []
        return super().parse_args(ctx, [*flag, *before, *args[end:]])

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order of the life cycle."""
        return sorted(self.commands, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))

    def invoke(self, ctx: Any) -> Any:
        """Run the command; turn what it raises into lines on stderr and an exit code."""
        try:
            refuse_launcher([*getattr(ctx, "_protected_args", ()), *ctx.args])
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            raise typer.Exit(interrupted()) from None
        except Exception as problem:
            if is_interruption(problem):
                raise typer.Exit(interrupted(str(problem.args[0]).partition("\n")[0])) from None
            if isinstance(problem, AnytuneError):
                show_error(problem)
            elif hasattr(problem, "exit_code") and hasattr(problem, "show"):
                raise  # typer's own: a wrong option or command, which it prints with the near one
            else:
                show_bug(problem, with_traceback=bool(ctx.params.get("traceback")))
            raise typer.Exit(getattr(problem, "exit_code", 1)) from None


def refuse_launcher(words: Sequence[str]) -> None:
    """Refuse to run a command in several processes that do not share its work.

    Raises:
        SettingsError: names the commands that do.
    """
    world = launched()[1]
    if world > 1 and words and words[0] not in SHARED:
        raise SettingsError(
            f"'anytune {words[0]}' was launched in {world} processes",
            why=f"Each would do all of it. Only {', '.join(SHARED[:-1])} and {SHARED[-1]} share their work.",
            fix=f"anytune {words[0]} ...   (without the launcher)",
        )


def leave_speech_to_first() -> None:
    """Of several processes of a launcher only process 0 prints; errors have a way of their own."""
    if launched()[0] > 0:
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for as long as we live


def _say(text: str) -> None:
    """A line on stderr, by the one process of a run that may: the first that failed."""
    if first_to_speak():
        print(text, file=sys.stderr if launched()[0] == 0 else sys.__stderr__, flush=True)


def show_error(problem: AnytuneError) -> None:
    """Three parts on stderr: what is wrong, why it matters, what to try."""
    lines = [f"{_colour('error:', 31)} {printable(problem.what)}"]
    if problem.why:
        lines.append(printable(problem.why))
    if problem.fix:
        lines.append(f"{_colour('try:', 36)} {printable(problem.fix)}")
    _say("\n".join(lines))


def show_bug(problem: BaseException, *, with_traceback: bool) -> None:
    """One line for what should not have happened; the whole traceback if it was asked for."""
    if with_traceback:
        _say("".join(traceback.format_exception(problem)).rstrip())
    said = " ".join(f"{type(problem).__name__}: {problem}".split())
    advice = "this is a bug in anytune" + ("" if with_traceback else f"; rerun with {FLAG}")
    _say(f"{_colour('error:', 31)} {printable(said)} ({advice})")


def is_interruption(problem: BaseException) -> bool:
    """Whether a run ended because it was asked to (Ctrl-C, SIGTERM), its checkpoint written."""
    from anytune.engine.interrupts import InterruptedRunError

    return isinstance(problem, InterruptedRunError)


def interrupted(where: str = "") -> int:
    """Say that the run was interrupted and can go on; the exit code."""
    said = f"{INTERRUPTED} ({printable(where)})" if where else INTERRUPTED
    _say(f"\n{said}" if sys.stderr.isatty() else said)
    return 2


def hang_up() -> int:
    """The reader of our output has gone (``| head``): end quietly; the exit code."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # there may be no real stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _colour(word: str, code: int) -> str:
    plain = not sys.stderr.isatty() or "NO_COLOR" in os.environ
    return word if plain else f"\x1b[1;{code}m{word}\x1b[0m"
