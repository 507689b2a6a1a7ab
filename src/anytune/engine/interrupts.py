"""Ctrl-C and a scheduler's request to end, taken at the end of a step instead of in its middle."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from anytune.engine.processes import launched
from anytune.errors import TrainingError

#: Seconds that a process of several has to say why it ends once its launcher has asked it to.
LAST_WORDS = 5.0


class InterruptedRunError(TrainingError):
    """The run was asked to end; if it has a work folder, its checkpoint is written and the same command goes on."""


@contextlib.contextmanager
def postponed_interrupt() -> Iterator[Callable[[], bool]]:
    """SIGINT (Ctrl-C) and SIGTERM (schedulers, the fan-out's parent) wait for the end of a step.

    Yields a function that says whether one has come. A second Ctrl-C interrupts at once, except under a launcher,
    which passes the first one on once more. A SIGINT that the process ignores stays ignored. Outside the main thread,
    where Python allows no handlers, nothing is postponed.

    When one process of several fails, its launcher at once asks the others to end. Under a launcher an error that
    leaves here therefore keeps SIGTERM away for :data:`LAST_WORDS` seconds, in which the error is printed.
    """
    asked = False

    def note(number: int, _frame: Any) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT and launched()[1] == 1:
            raise KeyboardInterrupt
        asked = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        current = signal.getsignal(number)
        # None: a handler that was not set from Python and could not be put back
        if current not in (signal.SIG_IGN, None):
            before[number] = signal.signal(number, note)
    try:
        yield lambda: asked
    except BaseException:
        if before.get(signal.SIGTERM) == signal.SIG_DFL and launched()[1] > 1:
            before[signal.SIGTERM] = _end_soon
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def request_to_end_raises(what: str) -> Iterator[None]:
    """SIGTERM inside is an :class:`InterruptedRunError`, for a process that waits for others and trains nothing.

    Once: a second one, while the others are seen out, ends the process at once. Outside the main thread, or where
    somebody has a handler already, nothing is changed.
    """

    def end(_number: int, _frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise InterruptedRunError(f"{what}: interrupted", fix="the same command again: it goes on where it was")

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end_soon(_number: int, _frame: Any) -> None:
    """SIGTERM for a process that is about to say why it ends: SIGALRM ends it if that takes too long."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, LAST_WORDS)
