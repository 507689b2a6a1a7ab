"""Many independent runs over local processes, CPU threads shared out.

A unit is an importable function with plain arguments; what it makes goes into a store, so nothing but progress
crosses between processes, and a unit that is already done gives its result back at once. Units may wait for others.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anytune.engine.progress import Reporter
from anytune.errors import AnytuneError, TrainingError


@dataclass(frozen=True)
class Unit:
    """One piece of work.

    Attributes:
        name: unique; what progress and errors call it.
        function: module-level function; called with ``arguments`` and ``reporter``.
        arguments: plain values (they are sent to another process).
        steps: training steps it will make, for the time left.
        after: names of units that must be done first.
    """

    name: str
    function: Callable[..., Any]
    arguments: Mapping[str, Any]
    steps: int
    after: frozenset[str] = field(default_factory=frozenset)


def worker_count(units: int, wanted: int | None = None) -> int:
    """How many processes: ``wanted``, else one per core up to 8; never more than there are units."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(wanted or min(cores, 8), units))


class _ToParent:
    """A reporter that sends steps to the parent process."""

    def __init__(self, name: str, messages: Any) -> None:
        self.name, self.messages, self._seen = name, messages, 0

    def start(self, title: str, total: int, done: int = 0) -> None:
        self._seen = done
        if done:
            self.messages.put(("steps", self.name, done))

    def step(self, step: int, values: Mapping[str, Any]) -> None:
        self.messages.put(("steps", self.name, step - self._seen))
        self._seen = step

    def say(self, text: str) -> None:
        self.messages.put(("say", self.name, text))

    def finish(self) -> None:
        pass


def _work(units: Any, messages: Any, threads: int) -> None:
    import signal

    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides; it ends us
    torch.set_num_threads(threads)
    while (unit := units.get()) is not None:
        try:
            unit.function(**unit.arguments, reporter=_ToParent(unit.name, messages))
            messages.put(("done", unit.name, None))
        except AnytuneError as problem:
            messages.put(("failed", unit.name, (problem.what, problem.why, problem.fix)))
        except BaseException:
            messages.put(("crashed", unit.name, traceback.format_exc()))


def run_units(
    units: Sequence[Unit], *, title: str, reporter: Reporter, workers: int | None = None, threads: int | None = None
) -> None:
    """Run all units, as many at once as there are workers, in the order given as far as ``after`` allows.

    Args:
        threads: torch threads per process; default: the cores shared out. Bits are promised for equal threads.

    Raises:
        AnytuneError: a unit failed; the others are stopped, what they finished is kept.
    """
    count = worker_count(len(units), workers)
    cores = os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    work, messages = context.Queue(), context.Queue()
    # A worker's maths libraries read these when they are loaded, so they are set before it starts.
    shared = str(threads or max(1, cores // count))
    before = {key: os.environ.get(key) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ.update(dict.fromkeys(before, shared))
    processes = [context.Process(target=_work, args=(work, messages, int(shared)), daemon=True) for _ in range(count)]
    try:
        for process in processes:
            process.start()
    finally:
        for key, value in before.items():
            os.environ.pop(key, None) if value is None else os.environ.__setitem__(key, value)
    try:
        _drive(units, work, messages, processes, title, reporter)
    finally:
        reporter.finish()
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(timeout=10)


def _drive(
    units: Sequence[Unit], work: Any, messages: Any, processes: Sequence[Any], title: str, reporter: Reporter
) -> None:
    waiting, running, done = list(units), set[str](), set[str]()
    made, of_unit = 0, {unit.name: 0 for unit in units}
    planned = {unit.name: unit.steps for unit in units}
    reporter.start(title, sum(planned.values()))

    def show() -> None:
        reporter.step(made, {"runs done": f"{len(done)}/{len(units)}"})

    while len(done) < len(units):
        ready = [unit for unit in waiting if unit.after <= done]
        for unit in ready[: max(0, len(processes) - len(running))]:
            waiting.remove(unit)
            running.add(unit.name)
            work.put(unit)
        try:
            kind, name, value = messages.get(timeout=1.0)
        except queue.Empty:
            if not any(process.is_alive() for process in processes):
                raise TrainingError(
                    f"{title}: all worker processes ended",
                    why="The machine may have run out of memory.",
                    fix="the same command again: finished runs are kept",
                ) from None
            _check_dead(processes, running, title)
            show()
            continue
        if kind == "steps":
            of_unit[name] += value
            made += value
            show()
        elif kind == "say":
            reporter.say(value)
        elif kind == "done":
            running.discard(name)
            done.add(name)
            made += planned[name] - of_unit[name]  # a unit found finished in the store made fewer
            show()
        elif kind == "failed":
            what, why, fix = value
            raise AnytuneError(f"{name}: {what}", why=why, fix=fix)
        else:
            raise RuntimeError(f"{name} crashed:\n{value}")


def _check_dead(processes: Sequence[Any], running: set[str], title: str) -> None:
    """A worker that was killed takes its unit with it: say so rather than wait for ever."""
    dead = [process for process in processes if not process.is_alive()]
    if dead and running:
        time.sleep(0.5)
        raise TrainingError(
            f"{title}: a worker process ended with code {dead[0].exitcode} while running {', '.join(sorted(running))}",
            why="It was killed, or the machine ran out of memory.",
            fix="the same command again: finished runs are kept and started ones go on",
        )
