"""Units of a fan-out as tasks of Ray, on this machine or on a cluster (``pip install 'anytune[ray]'``).

A worker is a Ray task with as many CPUs as it has threads. Ray sends functions and arguments between its processes by
pickling; they come from this very program and nothing that lies in a file is read that way. Everything that is kept
goes through the store, which every machine must see under the same path.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import Any

from anytune.engine.fanout import GRACE_SECONDS, LOOK_SECONDS, Unit, lost_worker, perform
from anytune.errors import SettingsError

#: Bytes of Ray's shared memory: nothing but messages goes through it.
_OBJECT_STORE = 100 * 2**20
#: Seconds between looks for messages.
_POLL_SECONDS = 0.05


class Mailbox:
    """Messages from the workers to the parent, in order of arrival."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, str, Any]] = []

    def put(self, message: tuple[str, str, Any]) -> None:
        """Add one."""
        self._messages.append(message)

    def take(self) -> list[tuple[str, str, Any]]:
        """All that have come since the last call."""
        taken, self._messages = self._messages, []
        return taken


def work(unit: Unit, mailbox: Any, threads: int, folder: str) -> None:
    """What a Ray task does: one unit, its messages into the mailbox, in the parent's current folder."""
    import ray
    import torch

    if os.path.isdir(folder):
        os.chdir(folder)  # paths are relative to where the command was given
    torch.set_num_threads(threads)
    perform(unit, lambda message: ray.get(mailbox.put.remote(message)))


class RayWorkers:
    """Up to ``count`` Ray tasks at once, each with ``threads`` CPUs.

    A cluster that is already connected, or that ``RAY_ADDRESS`` names, is used; otherwise a Ray of this machine is
    started without dashboard and usage statistics, and ended with the units.

    Raises:
        SettingsError: Ray is not installed, or the cluster does not answer.
    """

    def __init__(self, count: int, threads: int) -> None:
        self._ray = _imported()
        self.count, self._threads = count, threads
        self._began = not self._ray.is_initialized()
        if self._began:
            _start(self._ray, count * threads)
        self._mailbox = self._ray.remote(num_cpus=0)(Mailbox).remote()
        self._task = self._ray.remote(num_cpus=threads, max_retries=0)(work)
        self._running: dict[Any, str] = {}
        self._heard: list[tuple[str, str, Any]] = []

    def give(self, unit: Unit) -> None:
        """Start a task for the unit."""
        self._running[self._task.remote(unit, self._mailbox, self._threads, os.getcwd())] = unit.name

    def hear(self) -> tuple[str, str, Any] | None:
        """The next message, or None."""
        deadline = time.monotonic() + LOOK_SECONDS
        while not self._heard:
            self._heard = self._ray.get(self._mailbox.take.remote())
            if not self._heard:
                if time.monotonic() > deadline:
                    return None
                time.sleep(_POLL_SECONDS)
        return self._heard.pop(0)

    def check(self, running: set[str], title: str) -> None:
        """Raise TrainingError if a task ended without a word."""
        if not self._running:
            return
        ended, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        for task in ended:
            name = self._running.pop(task)
            try:
                self._ray.get(task)
            except self._ray.exceptions.RayTaskError as problem:
                raise RuntimeError(f"{name} crashed:\n{problem}") from problem
            except self._ray.exceptions.RayError as problem:
                raise lost_worker(title, f"ended ({type(problem).__name__})", {name} | running) from problem

    def end(self, *, asked: bool) -> None:
        """See the tasks out: one in the middle of a run writes its checkpoint first, if that is quick."""
        tasks = list(self._running)
        with contextlib.suppress(self._ray.exceptions.RayError):
            if not asked:
                for task in tasks:
                    self._ray.cancel(task)  # arrives there as Ctrl-C does
                if tasks:
                    self._ray.wait(tasks, num_returns=len(tasks), timeout=GRACE_SECONDS)
            self._ray.kill(self._mailbox)
        if self._began:
            self._ray.shutdown()


def _imported() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise SettingsError(
            "fan_out = 'ray', and Ray is not installed",
            why="It is an extra of anytune.",
            fix="pip install 'anytune[ray]'   (or --fan-out processes)",
        ) from None
    return ray


def _start(ray: Any, cpus: int) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if not os.environ.get("RAY_ADDRESS"):
        options |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(sys.path))  # workers find what this process finds
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as problem:
        raise SettingsError(
            f"Ray cannot be reached: {str(problem).strip().splitlines()[0]}",
            why=f"RAY_ADDRESS = {os.environ.get('RAY_ADDRESS', 'not set')}.",
            fix="--fan-out processes, or a RAY_ADDRESS that answers",
        ) from problem
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
