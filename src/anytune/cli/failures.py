"""What a user reads when something fails, and the exit code: 2 for what they can put right, 1 for a bug of ours."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from typing import Any

import typer
from typer.core import TyperGroup

from anytune.errors import AnytuneError

INTERRUPTED = "interrupted; the same command goes on where it was"
FLAG = "--traceback"
ORDER = (
    "demo", "samples", "methods", "pretrain", "tune", "recycle", "evaluate", "predict", "merge", "export", "push",
    "pull", "report", "store", "run",
)  # fmt: skip


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


def show_error(problem: AnytuneError) -> None:
    """Three parts on stderr: what is wrong, why it matters, what to try."""
    print(f"{_colour('error:', 31)} {_printable(problem.what)}", file=sys.stderr)
    if problem.why:
        print(_printable(problem.why), file=sys.stderr)
    if problem.fix:
        print(f"{_colour('try:', 36)} {_printable(problem.fix)}", file=sys.stderr)


def show_bug(problem: BaseException, *, with_traceback: bool) -> None:
    """One line for what should not have happened; the whole traceback if it was asked for."""
    if with_traceback:
        traceback.print_exception(problem, file=sys.stderr)
    said = " ".join(f"{type(problem).__name__}: {problem}".split())
    advice = "this is a bug in anytune" + ("" if with_traceback else f"; rerun with {FLAG}")
    print(f"{_colour('error:', 31)} {_printable(said)} ({advice})", file=sys.stderr)


def is_interruption(problem: BaseException) -> bool:
    """Whether a run ended because it was asked to (Ctrl-C, SIGTERM), its checkpoint written."""
    from anytune.engine.interrupts import InterruptedRunError

    return isinstance(problem, InterruptedRunError)


def interrupted(where: str = "") -> int:
    """Say that the run was interrupted and can go on; the exit code."""
    said = f"{INTERRUPTED} ({_printable(where)})" if where else INTERRUPTED
    print(f"\n{said}" if sys.stderr.isatty() else said, file=sys.stderr)
    return 2


def hang_up() -> int:
    """The reader of our output has gone (``| head``): end quietly; the exit code."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # there may be no real stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _colour(word: str, code: int) -> str:
    plain = not sys.stderr.isatty() or "NO_COLOR" in os.environ
    return word if plain else f"\x1b[1;{code}m{word}\x1b[0m"


def _printable(text: str) -> str:
    """Control characters written out: texts of a data file must not steer the terminal."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else repr(letter)[1:-1] for letter in text)
