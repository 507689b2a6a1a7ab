"""Many independent runs over local processes, CPU threads shared out.

A unit is an importable function with plain arguments; what it makes goes into a store, so nothing but progress
crosses between processes, and a unit that is already done gives its result back at once. Units may wait for others.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anytune.engine.progress import Reporter
from anytune.errors import AnytuneError, SettingsError, TrainingError

#: Seconds between looks whether all workers are alive.
LOOK_SECONDS = 1.0
#: Seconds a worker has for the end of its step and a checkpoint before it is killed.
GRACE_SECONDS = 10.0


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


def core_count() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_count(units: int, wanted: int | None = None) -> int:
    """How many processes: ``wanted``, else one per core up to 8; never more than there are units."""
    return max(1, min(wanted or min(core_count(), 8), units))


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
    import torch

    from anytune.engine.interrupts import InterruptedRunError

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides; it ends us by SIGTERM
    torch.set_num_threads(threads)
    while (unit := _next(units)) is not None:
        try:
            unit.function(**unit.arguments, reporter=_ToParent(unit.name, messages))
            messages.put(("done", unit.name, None))
        except InterruptedRunError:
            return  # its checkpoint is written
        except AnytuneError as problem:
            messages.put(("failed", unit.name, (type(problem), problem.what, problem.why, problem.fix)))
        except BaseException:
            messages.put(("crashed", unit.name, traceback.format_exc()))


def _next(units: Any) -> Unit | None:
    """The next unit, or None once the parent is gone: nobody would end us then."""
    parent = multiprocessing.parent_process()
    while parent is None or parent.is_alive():
        with contextlib.suppress(queue.Empty):
            unit: Unit = units.get(timeout=LOOK_SECONDS)
            return unit
    return None


def run_units(
    units: Sequence[Unit], *, title: str, reporter: Reporter, workers: int | None = None, threads: int | None = None
) -> None:
    """Run all units, as many at once as there are workers, in the order given as far as ``after`` allows.

    Args:
        threads: torch threads per process; default: the cores shared out. Bits are promised for equal threads.

    Raises:
        AnytuneError: a unit failed (of the unit's own class, its name before what is wrong). The others end after
            their step, with a checkpoint; what was finished is kept.
        SettingsError: two units share a name, or units wait for one that does not exist or for each other.
    """
    check_order(units)
    if not units:
        return
    count = worker_count(len(units), workers)
    context = multiprocessing.get_context("spawn")
    work, messages = context.Queue(), context.Queue()
    shared = threads or max(1, core_count() // count)
    processes = [context.Process(target=_work, args=(work, messages, shared), daemon=True) for _ in range(count)]
    try:
        with _thread_variables(shared):
            for process in processes:
                process.start()
        _drive(units, work, messages, processes, title, reporter)
        for _ in processes:
            work.put(None)  # nothing left: a worker that ends by itself cleans up after itself
    except BaseException:
        _end(processes, asked=False)
        raise
    finally:
        reporter.finish()
        _end(processes, asked=True)


def check_order(units: Sequence[Unit]) -> None:
    """Refuse units that could never all be run.

    Raises:
        SettingsError: two share a name, or some wait for one that does not exist or for each other.
    """
    names = [unit.name for unit in units]
    doubled = {name for name in names if names.count(name) > 1}
    if doubled:
        raise SettingsError(f"several units are called {', '.join(sorted(doubled))}", why="Names must be unique.")
    waiting, done = {unit.name: unit.after for unit in units}, set[str]()
    while ready := [name for name, after in waiting.items() if after <= done]:
        done.update(ready)
        waiting = {name: after for name, after in waiting.items() if name not in done}
    if waiting:
        name, after = next(iter(waiting.items()))
        raise SettingsError(
            f"'{name}' waits for {', '.join(sorted(after - done))}",
            why="That is no unit of this plan, or it waits for this one in turn.",
        )


@contextlib.contextmanager
def _thread_variables(threads: int) -> Iterator[None]:
    """What a child's maths libraries read when they are loaded, so it is set before the child starts."""
    before = {key: os.environ.get(key) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ.update(dict.fromkeys(before, str(threads)))
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def _end(processes: Sequence[Any], *, asked: bool) -> None:
    """See the workers out; one in the middle of a run writes its checkpoint first, if that is quick.

    Args:
        asked: they have been told that nothing is left, and end by themselves.
    """
    started = [process for process in processes if process.pid is not None]
    for process in started:
        if not asked:
            process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for process in started:
        process.join(timeout=max(0.0, deadline - time.monotonic()))
    for process in started:
        if process.is_alive():
            process.kill()
            process.join()


def _drive(
    units: Sequence[Unit], work: Any, messages: Any, processes: Sequence[Any], title: str, reporter: Reporter
) -> None:
    waiting, running, done = list(units), set[str](), set[str]()
    made, of_unit = 0, {unit.name: 0 for unit in units}
    planned = {unit.name: unit.steps for unit in units}
    looked = time.monotonic()
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
            kind, name, value = messages.get(timeout=LOOK_SECONDS)
        except queue.Empty:
            _check_alive(processes, running, title)
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
            error, what, why, fix = value
            raise error(f"{name}: {what}", why=why, fix=fix)
        else:
            raise RuntimeError(f"{name} crashed:\n{value}")
        if time.monotonic() - looked > LOOK_SECONDS:  # others may report all the time
            _check_alive(processes, running, title)
            looked = time.monotonic()


def _check_alive(processes: Sequence[Any], running: set[str], title: str) -> None:
    """A worker that was killed takes its unit with it: say so rather than wait for ever."""
    dead = [process for process in processes if not process.is_alive()]
    if dead and running:
        raise TrainingError(
            f"{title}: a worker process ended with code {dead[0].exitcode} while running {', '.join(sorted(running))}",
            why="It was killed, or the machine ran out of memory.",
            fix="the same command again: finished runs are kept and started ones go on",
        )
