"""Progress: a live rich view on a terminal, plain lines elsewhere, and JSONL always."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

from anytune.errors import TrainingError
from anytune.manifests import write_atomic


class Reporter(Protocol):
    """Who is told how a run goes."""

    def start(self, title: str, total: int, done: int = 0) -> None:
        """A run of ``total`` steps begins, ``done`` of them already made before."""

    def step(self, step: int, values: Mapping[str, Any]) -> None:
        """A step is done; ``values`` may hold loss, rate, seconds."""

    def say(self, text: str) -> None:
        """A sentence for the user."""

    def finish(self) -> None:
        """The run is over."""


class Silent:
    """Tells nobody."""

    def start(self, title: str, total: int, done: int = 0) -> None:
        """Nothing."""

    def step(self, step: int, values: Mapping[str, Any]) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""


class PlainLines:
    """A line at the start, one about every ten seconds, one at the end: for logs and pipes."""

    def __init__(self, stream: TextIO | None = None, every: float = 10.0) -> None:
        self.stream, self.every = stream or sys.stderr, every
        self.title, self.total, self._began, self._last, self._done = "", 0, 0.0, 0.0, 0
        self._unsaid: str | None = None

    def start(self, title: str, total: int, done: int = 0) -> None:
        """Print the title, and where a resumed run goes on."""
        self.title, self.total, self._began, self._done = title, total, time.monotonic(), done
        self._last, self._unsaid = self._began, None
        self.say(f"{title}: {total} steps" + (f", going on at step {done}" if done else ""))

    def step(self, step: int, values: Mapping[str, Any]) -> None:
        """Print a line if the last one is ``every`` seconds old."""
        now = time.monotonic()
        rate = (step - self._done) / max(1e-9, now - self._began)
        left = f"{_clock((self.total - step) / rate)} left" if rate > 0 else "time left unknown"
        line = ", ".join(part for part in (f"{self.title}: step {step}/{self.total}", _show(values)) if part)
        if now - self._last < self.every:
            self._unsaid = f"{line}, {_clock(now - self._began)} taken"
            return
        self._last, self._unsaid = now, None
        self.say(f"{line}, {rate:.1f} steps/s, {left}")

    def say(self, text: str) -> None:
        """Print one line."""
        print(text, file=self.stream, flush=True)

    def finish(self) -> None:
        """Print where the run ended, unless the last line says so already."""
        if self._unsaid is not None:
            self.say(self._unsaid)
            self._unsaid = None


class Live:
    """A live bar by rich, with loss, speed and time left; used only on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as Remaining

        self.console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(), TextColumn("left"), Remaining(), console=self.console, transient=True,
        )  # fmt: skip
        self._task: Any = None

    def start(self, title: str, total: int, done: int = 0) -> None:
        """Open the bar."""
        self.progress.start()
        if self._task is not None:
            self.progress.remove_task(self._task)
        self._task = self.progress.add_task(title, total=total, completed=done, note="")

    def step(self, step: int, values: Mapping[str, Any]) -> None:
        """Move the bar."""
        if self._task is not None:
            self.progress.update(self._task, completed=step, note=_show(values))

    def say(self, text: str) -> None:
        """Print above the bar."""
        self.console.print(text, highlight=False, markup=False)

    def finish(self) -> None:
        """Close the bar."""
        if self._task is not None:
            self.progress.remove_task(self._task)
            self._task = None
        self.progress.stop()


def reporter(quiet: bool = False) -> Reporter:
    """The reporter that fits: silent, live on a terminal, lines elsewhere."""
    if quiet:
        return Silent()
    return Live() if sys.stderr.isatty() else PlainLines()


def _show(values: Mapping[str, Any]) -> str:
    shown = [(key, f"{value:.4g}" if isinstance(value, float) else value) for key, value in values.items()]
    return ", ".join(f"{key} {value}" for key, value in shown)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class JsonLines:
    """Appends one JSON object a line; on resume, lines of steps that will be made again are dropped first.

    Args:
        path: the file; None writes nothing.
        resume_at: the step the run goes on at; 0 starts the file anew.
    """

    def __init__(self, path: Path | None, resume_at: int = 0) -> None:
        self.path = path
        self._handle: TextIO | None = None
        if path is None:
            return
        kept = []
        if resume_at and path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    if json.loads(line).get("step", 0) <= resume_at:
                        kept.append(line)
                except (ValueError, AttributeError, TypeError):
                    continue  # the half line a killed process leaves
        write_atomic(path, "".join(line + "\n" for line in kept).encode())
        self._handle = path.open("a", encoding="utf-8", buffering=1)

    def write(self, **values: Any) -> None:
        """Append a line; NaN and infinity, which JSON lacks, become null."""
        if self._handle is None:
            return
        try:
            self._handle.write(json.dumps(_finite(values), allow_nan=False) + "\n")
        except OSError as problem:
            raise self._unwritable(problem) from problem

    def sync(self) -> None:
        """Have every line so far on the disk: a checkpoint must not outlive the lines before it."""
        if self._handle is not None:
            try:
                self._handle.flush()
                os.fsync(self._handle.fileno())
            except OSError as problem:
                raise self._unwritable(problem) from problem

    def close(self) -> None:
        """Close the file."""
        if self._handle is not None:
            with contextlib.suppress(OSError):  # a full disk was reported when the line was written
                self._handle.close()
            self._handle = None

    def _unwritable(self, problem: OSError) -> TrainingError:
        return TrainingError(
            f"cannot write {self.path}: {problem.strerror or problem}",
            why="The run stops here; its last whole checkpoint is kept.",
            fix="free some space and give the same command again: it goes on from that checkpoint",
        )


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
