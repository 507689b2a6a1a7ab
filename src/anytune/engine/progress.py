"""Progress: a live rich view on a terminal, plain lines elsewhere, and JSONL always."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO


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

    def start(self, title: str, total: int, done: int = 0) -> None:
        """Print the title, and where a resumed run goes on."""
        self.title, self.total, self._began, self._done = title, total, time.monotonic(), done
        self._last = self._began
        self.say(f"{title}: {total} steps" + (f", going on at step {done}" if done else ""))

    def step(self, step: int, values: Mapping[str, Any]) -> None:
        """Print a line if the last one is ``every`` seconds old."""
        now = time.monotonic()
        if now - self._last < self.every:
            return
        self._last = now
        rate = (step - self._done) / max(1e-9, now - self._began)
        left = (self.total - step) / max(1e-9, rate)
        self.say(f"{self.title}: step {step}/{self.total}, {_show(values)}, {rate:.1f} steps/s, {_clock(left)} left")

    def say(self, text: str) -> None:
        """Print one line."""
        print(text, file=self.stream, flush=True)

    def finish(self) -> None:
        """Nothing more."""


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
        )
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
    return ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items())


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


class JsonLines:
    """Appends one JSON object a line; on resume, lines of steps that will be made again are dropped first."""

    def __init__(self, path: Path | None, resume_at: int = 0) -> None:
        self.path = path
        self._handle: TextIO | None = None
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if resume_at and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line).get("step", 0) <= resume_at:
                        kept.append(line)
                except (ValueError, AttributeError):
                    continue  # the half line a killed process leaves
        path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self._handle = path.open("a", encoding="utf-8", buffering=1)

    def write(self, **values: Any) -> None:
        """Append a line."""
        if self._handle is not None:
            self._handle.write(json.dumps(values, allow_nan=True) + "\n")

    def close(self) -> None:
        """Close the file."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None
