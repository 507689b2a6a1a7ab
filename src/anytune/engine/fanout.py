"""Many independent runs over local processes, CPU threads shared out; or over Ray (``ray_workers.py``).

A unit is an importable function with plain arguments; what it makes goes into a store, so nothing but progress
crosses between processes, and a unit that is already done gives its result back at once. Units may wait for others.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from anytune.engine.allocator import keep_freed_memory
from anytune.engine.interrupts import request_to_end_raises
from anytune.engine.processes import launched
from anytune.engine.progress import Reporter
from anytune.errors import AnytuneError, SettingsError, TrainingError, unknown

#: Who can do the units.
FAN_OUT = ("processes", "ray")

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


class ToParent:
    """A reporter that sends steps to the parent process.

    Args:
        put: sends a message ``(kind, name of the unit, value)``.
    """

    def __init__(self, name: str, put: Callable[[tuple[str, str, Any]], Any]) -> None:
        self.name, self.put, self._seen = name, put, 0

    def start(self, title: str, total: int, done: int = 0) -> None:
        """Steps made before count, too."""
        self._seen = done
        if done:
            self.put(("steps", self.name, done))

    def step(self, step: int, values: Mapping[str, Any]) -> None:
        """The steps since the last message."""
        self.put(("steps", self.name, step - self._seen))
        self._seen = step

    def say(self, text: str) -> None:
        """A sentence, as it is."""
        self.put(("say", self.name, text))

    def finish(self) -> None:
        """Nothing: the end of a unit is a message of its own."""


def perform(unit: Unit, put: Callable[[tuple[str, str, Any]], Any]) -> bool:
    """Run a unit in this process and send what comes of it; False if it was asked to end (with a checkpoint)."""
    from anytune.engine.interrupts import InterruptedRunError

    try:
        unit.function(**unit.arguments, reporter=ToParent(unit.name, put))
        put(("done", unit.name, None))
    except InterruptedRunError:
        return False
    except AnytuneError as problem:
        put(("failed", unit.name, (type(problem), problem.what, problem.why, problem.fix)))
    except BaseException:
        put(("crashed", unit.name, traceback.format_exc()))
    return True


def _work(units: Any, messages: Any, threads: int) -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides; it ends us by SIGTERM
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    keep_freed_memory()
    while (unit := _next(units)) is not None:
        if not perform(unit, messages.put):
            return


def _end_with_parent() -> None:
    """Once the parent is gone, ask this process to end as the parent would have: a run writes its checkpoint first.

    Left alone it would train on for nobody, and hold the run that the same command, given again, is to go on with.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _next(units: Any) -> Unit | None:
    """The next unit, or None once the parent is gone: nobody would end us then."""
    parent = multiprocessing.parent_process()
    while parent is None or parent.is_alive():
        with contextlib.suppress(queue.Empty):
            unit: Unit = units.get(timeout=LOOK_SECONDS)
            return unit
    return None


class Workers(Protocol):
    """Who does the units: local processes, or Ray."""

    @property
    def count(self) -> int:
        """How many there are."""

    def give(self, unit: Unit) -> None:
        """Have a unit done; never more at once than ``count``."""

    def hear(self) -> tuple[str, str, Any] | None:
        """The next message ``(kind, name of a unit, value)``; None if none comes for :data:`LOOK_SECONDS`."""

    def check(self, running: set[str], title: str) -> None:
        """Raise TrainingError if a worker was killed: its unit would be waited for in vain."""

    def end(self, *, asked: bool) -> None:
        """See the workers out; unless ``asked``, what they do is broken off, with a checkpoint."""


def run_units(
    units: Sequence[Unit],
    *,
    title: str,
    reporter: Reporter,
    workers: int | None = None,
    threads: int | None = None,
    fan_out: str = "processes",
) -> None:
    """Run all units, as many at once as there are workers, in the order given as far as ``after`` allows.

    Args:
        threads: torch threads per process; default: the cores shared out. Bits are promised for equal threads.
        fan_out: "processes" of this machine, or "ray": tasks of a Ray started here, or of the cluster that
            ``RAY_ADDRESS`` names (all of whose machines must see the store under the same path).

    Raises:
        AnytuneError: a unit failed (of the unit's own class, its name before what is wrong). The others end after
            their step, with a checkpoint; what was finished is kept.
        InterruptedRunError: SIGTERM came; the same.
        SettingsError: two units share a name, units wait for one that does not exist or for each other, Ray is asked
            for and not installed, or a launcher runs this very command in several processes.
    """
    check_fan_out(fan_out)
    check_order(units)
    if not units:
        return
    count = worker_count(len(units), workers)
    shared = threads or max(1, core_count() // count)
    crew = _workers(fan_out, count, shared)
    try:
        with request_to_end_raises(title):
            _drive(units, crew, title, reporter)
    except BaseException:
        crew.end(asked=False)
        raise
    else:
        crew.end(asked=True)
    finally:
        reporter.finish()


def check_fan_out(fan_out: str) -> None:
    """Refuse an unknown way to fan out, and fanning out from each of several processes.

    Raises:
        SettingsError: which of the two, and what to type.
    """
    if fan_out not in FAN_OUT:
        raise unknown("way to fan out", fan_out, FAN_OUT, SettingsError)
    world = launched()[1]
    if world > 1:
        raise SettingsError(
            f"a launcher runs this in {world} processes, and each would fan out its own",
            why="A launcher shares one run among processes; workers take whole runs.",
            fix="the command without the launcher, or without --workers",
        )


def _workers(fan_out: str, count: int, threads: int) -> Workers:
    if fan_out == "ray":
        from anytune.engine.ray_workers import RayWorkers

        return RayWorkers(count, threads)
    return LocalWorkers.started(count, threads)


@dataclass
class LocalWorkers:
    """Processes of this machine, with a queue of units to them and one of messages back."""

    work: Any
    messages: Any
    processes: Sequence[Any]

    @classmethod
    def started(cls, count: int, threads: int) -> LocalWorkers:
        """``count`` processes of ``threads`` threads each."""
        context = multiprocessing.get_context("spawn")
        work, messages = context.Queue(), context.Queue()
        processes = [context.Process(target=_work, args=(work, messages, threads), daemon=True) for _ in range(count)]
        crew = cls(work, messages, processes)
        try:
            with _thread_variables(threads):
                for process in processes:
                    process.start()
        except BaseException:
            crew.end(asked=False)
            raise
        return crew

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.processes)

    def give(self, unit: Unit) -> None:
        """Put a unit into the queue."""
        self.work.put(unit)

    def hear(self) -> tuple[str, str, Any] | None:
        """The next message, or None."""
        try:
            message: tuple[str, str, Any] = self.messages.get(timeout=LOOK_SECONDS)
        except queue.Empty:
            return None
        return message

    def check(self, running: set[str], title: str) -> None:
        """A worker that was killed takes its unit with it: say so rather than wait for ever."""
        dead = [process for process in self.processes if not process.is_alive()]
        if dead and running:
            raise lost_worker(title, f"ended with code {dead[0].exitcode}", running)

    def end(self, *, asked: bool) -> None:
        """See the workers out; one in the middle of a run writes its checkpoint first, if that is quick."""
        started = [process for process in self.processes if process.pid is not None]
        for process in started:
            if asked:
                self.work.put(None)  # a worker that ends by itself cleans up after itself
            else:
                process.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        for process in started:
            process.join(timeout=max(0.0, deadline - time.monotonic()))
        for process in started:
            if process.is_alive():
                process.kill()
                process.join()


def lost_worker(title: str, how: str, running: set[str]) -> TrainingError:
    """The error for a worker that is gone with its unit."""
    return TrainingError(
        f"{title}: a worker process {how} while running {', '.join(sorted(running))}",
        why="It was killed, or the machine ran out of memory.",
        fix="the same command again: finished runs are kept and started ones go on",
    )


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


def _drive(units: Sequence[Unit], workers: Workers, title: str, reporter: Reporter) -> None:
    waiting, running, done, said = list(units), set[str](), set[str](), set[str]()
    made, of_unit = 0, {unit.name: 0 for unit in units}
    planned = {unit.name: unit.steps for unit in units}
    looked = time.monotonic()
    reporter.start(title, sum(planned.values()))

    def show() -> None:
        reporter.step(made, {"runs done": f"{len(done)}/{len(units)}"})

    while len(done) < len(units):
        ready = [unit for unit in waiting if unit.after <= done]
        for unit in ready[: max(0, workers.count - len(running))]:
            waiting.remove(unit)
            running.add(unit.name)
            workers.give(unit)
        message = workers.hear()
        if message is None:
            workers.check(running, title)
            show()
            continue
        kind, name, value = message
        if kind == "steps":
            of_unit[name] += value
            made += value
            show()
        elif kind == "say":
            if value not in said:  # what is true of every unit is said by each of them
                reporter.say(value)
            said.add(value)
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
            workers.check(running, title)
            looked = time.monotonic()
