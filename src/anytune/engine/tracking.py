"""Experiment trackers by accelerate's ``log_with``: tensorboard, trackio, wandb and the others it knows.

A tracker is a copy of ``metrics.jsonl`` for people to look at. It decides nothing: it is in no run key, and one that
fails in the middle of a run is told of once and left alone. Process 0 writes, one row for each step.

A run that was cut and goes on writes no step twice: tensorboard is told from which step on its earlier rows are void;
trackio is asked for the last step it holds; wandb leaves earlier steps out by itself. The others begin another run of
the same name at the step where training goes on.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from anytune.engine.progress import JsonLines
from anytune.errors import SettingsError, unknown

#: What trackers that group runs call ours.
PROJECT = "anytune"
#: Where trackers write if nobody says otherwise: below the current folder, like the store.
DEFAULT_FOLDER = "anytune-logs"
#: tracker -> (module it needs, what to install), as accelerate names them.
PACKAGES = {
    "aim": ("aim", "aim"),
    "clearml": ("clearml", "clearml"),
    "comet_ml": ("comet_ml", "comet-ml"),
    "dvclive": ("dvclive", "dvclive"),
    "mlflow": ("mlflow", "mlflow"),
    "swanlab": ("swanlab", "swanlab"),
    "tensorboard": ("tensorboard", "anytune[tensorboard]"),
    "trackio": ("trackio", "anytune[trackio]"),
    "wandb": ("wandb", "wandb"),
}


@dataclass(frozen=True)
class Tracking:
    """Which trackers a job writes to, and where those that write files put them."""

    names: tuple[str, ...]
    folder: Path

    def of(self, name: str, seed: int, key: str, settings: Mapping[str, Any]) -> TrackedRun:
        """One run of the job, under a name that is its own and the same when it goes on."""
        return TrackedRun(self, f"{name.replace('/', '-')}-seed{seed}-{key[:8]}", flat(settings))


def tracking(log_with: str | Sequence[str] | None, log_dir: str | Path | None = None) -> Tracking | None:
    """The trackers asked for, checked before any work is done; None for none.

    Args:
        log_with: names of trackers: "tensorboard", "trackio", "wandb" ...
        log_dir: folder of the files they write; default ``anytune-logs``.

    Raises:
        SettingsError: a name that accelerate does not know, or a tracker that is not installed.
    """
    names = [log_with] if isinstance(log_with, str) else list(log_with or ())
    for name in names:
        if name not in PACKAGES:
            raise unknown("tracker", str(name), PACKAGES, SettingsError)
        module, package = PACKAGES[name]
        if not _installed(module):
            raise SettingsError(
                f"tracker '{name}' is asked for and not installed",
                why="The run would be followed nowhere.",
                fix=f"pip install '{package}'",
            )
    return Tracking(tuple(dict.fromkeys(names)), Path(log_dir or DEFAULT_FOLDER)) if names else None


@dataclass
class TrackedRun:
    """One run on its way into trackers: a row for each step, written when the next step begins."""

    tracking: Tracking
    name: str
    settings: Mapping[str, Any]
    _open: list[_Writer] = field(default_factory=list, init=False)
    _step: int = field(default=0, init=False)
    _row: dict[str, float] = field(default_factory=dict, init=False)
    _say: Callable[[str], None] = field(default=lambda text: None, init=False)

    def start(self, resume_at: int, say: Callable[[str], None]) -> None:
        """Open the trackers; rows up to step ``resume_at`` are theirs already."""
        self._say = say
        for name in self.tracking.names:
            self._try(name, partial(self._open_one, name, resume_at))

    def write(self, *, kind: str, step: int, **values: Any) -> None:
        """The values of a line of ``metrics.jsonl``, as ``train/loss``, ``validation/accuracy``, ``seconds``."""
        if step != self._step:
            self.sync()
        self._step = step
        scores = values.pop("scores", {})
        for key, value in {**values, **scores}.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                self._row[key if key == "seconds" else f"{kind}/{key}"] = value

    def sync(self) -> None:
        """Hand the row of the step over."""
        row, self._row = self._row, {}
        for writer in list(self._open) if row else []:
            if writer.after is None or self._step > writer.after:
                self._try(writer.name, partial(writer.log, row, self._step), writer)

    def close(self) -> None:
        """Write what is left and close the trackers."""
        self.sync()
        for writer in list(self._open):
            self._try(writer.name, writer.finish, writer)
        self._open.clear()

    def _open_one(self, name: str, resume_at: int) -> None:
        self._open.append(_Writer.of(name, self, resume_at))

    def _try(self, name: str, function: Callable[[], Any], writer: _Writer | None = None) -> None:
        """A tracker's failure must not cost a run."""
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # greetings; stdout belongs to our own output
                function()
        except Exception as problem:
            self._open = [other for other in self._open if other is not writer]
            self._say(f"{name} failed and is left out from here on: {type(problem).__name__}: {problem}")


@dataclass(eq=False)
class _Writer:
    """One open tracker of accelerate's."""

    name: str
    tracker: Any
    #: steps up to this one are in the tracker already
    after: int | None = None

    @classmethod
    def of(cls, name: str, run: TrackedRun, resume_at: int) -> _Writer:
        folder = run.tracking.folder
        if name == "trackio":
            _place_trackio(folder / "trackio")
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # its trackers ask it which process they are in
        kind = LOGGER_TYPE_TO_CLASS[name]
        options = _options(name, run, folder, resume_at)
        if name == "tensorboard":  # it has no projects: each run is a folder
            tracker = kind(run.name, folder / "tensorboard", **options)
        elif kind.requires_logging_directory:
            tracker = kind(PROJECT, folder, **options)
        else:
            tracker = kind(PROJECT, **options)
        after = _last_step_in_trackio(run.name) if name == "trackio" and resume_at else None
        tracker.start()
        if not resume_at:  # a run that goes on has said its settings before
            tracker.store_init_configuration(dict(run.settings))
        return cls(name, tracker, after)

    def log(self, row: dict[str, float], step: int) -> None:
        self.tracker.log(row, step=step)

    def finish(self) -> None:
        if self.name == "trackio":  # by itself the tracker would be finished a second time when the process ends
            import trackio

            trackio.finish()
        else:
            self.tracker.finish()


def _options(name: str, run: TrackedRun, folder: Path, resume_at: int) -> dict[str, Any]:
    """What a tracker must be told to give the run its name and to go on where it was."""
    if name == "tensorboard":
        return {"purge_step": resume_at + 1} if resume_at else {}
    if name == "trackio":  # nothing but the run: no page, no measurements of the machine
        resume = "allow" if resume_at else "never"
        return {"name": run.name, "resume": resume, "embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
    if name == "wandb":
        return {"name": run.name, "id": run.name, "resume": "allow", "dir": str(folder)}
    return {"run_name": run.name} if name in ("mlflow", "aim") else {}


def _place_trackio(folder: Path) -> None:
    """Have trackio write below ``folder``: it takes its place from the environment when it is first imported."""
    wanted = folder.resolve()
    if "trackio" not in sys.modules:
        os.environ["TRACKIO_DIR"] = str(wanted)
    import trackio.utils

    now = Path(trackio.utils.TRACKIO_DIR).resolve()
    if now != wanted:
        raise SettingsError(
            f"trackio writes to {now} in this process, not to {wanted}",
            why="It takes its folder when it is first imported.",
            fix="one log_dir for each process",
        )


def _last_step_in_trackio(run: str) -> int | None:
    from trackio.sqlite_storage import SQLiteStorage

    found = SQLiteStorage.get_last_step(PROJECT, run)
    return None if found is None else int(found)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, bool | str | float | int]:
    """Settings as trackers take them: one level, plain values; ``{"method": {"r": 8}}`` -> ``{"method.r": 8}``."""
    made: dict[str, bool | str | float | int] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            made |= flat(value, f"{prefix}{key}.")
        elif value is not None:
            made[f"{prefix}{key}"] = value if isinstance(value, bool | str | float | int) else str(value)
    return made


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


class RunLog:
    """A run's log: its lines in ``metrics.jsonl``, and the same in its trackers."""

    def __init__(self, lines: JsonLines, tracked: TrackedRun | None = None) -> None:
        self.lines, self.tracked = lines, tracked

    def write(self, **values: Any) -> None:
        """Add a line: ``kind``, ``step``, and what was measured."""
        self.lines.write(**values)
        if self.tracked is not None:
            self.tracked.write(**values)

    def sync(self) -> None:
        """Have all of it written: a checkpoint must not outlive the lines before it."""
        self.lines.sync()
        if self.tracked is not None:
            self.tracked.sync()

    def close(self) -> None:
        """Close the file and the trackers."""
        self.lines.close()
        if self.tracked is not None:
            self.tracked.close()
