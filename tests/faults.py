"""What goes wrong at a chosen moment: a process that is killed, a full disk, a read-only folder, Ctrl-C."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

#: Exit code of a child that a fault killed: no ``finally`` runs, as after a SIGKILL.
KILLED = 137


def kill() -> None:
    os._exit(KILLED)


def full_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_only() -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def ctrl_c() -> None:
    raise KeyboardInterrupt


def strike(monkeypatch, owner: Any, name: str, fault: Callable[[], None], *, at: int = 1, after: bool = False) -> None:
    """Let ``fault`` happen in the ``at``-th call of ``owner.name``, before it does anything, or ``after`` it has."""
    real = getattr(owner, name)
    calls = 0

    def struck(*given, **named):
        nonlocal calls
        calls += 1
        if calls == at and not after:
            fault()
        result = real(*given, **named)
        if calls == at and after:
            fault()
        return result

    monkeypatch.setattr(owner, name, struck)


def in_child(function: Callable[[], Any]) -> int:
    """Run a function in a forked process; its exit code: 0 where it came to its end, 1 where it raised."""
    child = os.fork()
    if child == 0:
        try:
            function()
            os._exit(0)
        except BaseException:
            traceback.print_exc(file=sys.stderr)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
