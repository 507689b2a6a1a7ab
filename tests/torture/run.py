"""Kill commands at random moments and start them again until they end: ``make torture``.

``pretrain``, ``tune`` (full and LoRA) and ``recycle`` run on tiny random bases. Each is first run undisturbed, in a
process of its own. Then, moment by moment, the same command is killed by SIGKILL: somewhere in its time, or as a
checkpoint or an artefact is being written (the hidden folder it is written into has just appeared); sometimes it is
killed again while it goes on. After each kill everything the store lists must be whole; at the end every file of the
artefact, its scores, its curve and its log must be those of the undisturbed run.

Start-up would take most of the time, so killed commands are forked from this process, which has imported the
libraries and done nothing with them (no tensor, no thread). Every tenth is a fresh ``python -m anytune`` instead, and
so are the undisturbed runs: a difference that the fork made would show.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Before torch and huggingface_hub are imported: both read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from anytune.engine.checkpoints import newest
from anytune.errors import AnytuneError
from anytune.store import Entry, Store
from tests.conftest import tiny_rows, write_rows, write_tiny_base

TRAINING = (
    "--steps", "60", "--batch-size", "4", "--precision", "fp32", "--evaluate-every", "10", "--training",
    "accumulation=2", "--training", "checkpoint_every=4", "--training", "checkpoints_kept=2",
)  # fmt: skip
#: name -> words of the command; {place} is the folder with bases and data, {store} the store
COMMANDS = {
    "pretrain": ("pretrain", "{place}/base", "{place}/domain.txt", "--names", "upgraded", "--block-size", "32",
                 "--learning-rate", "3e-3"),
    "tune full": ("tune", "{place}/base", "{place}/things.csv", "--max-length", "24", "--learning-rate", "5e-3"),
    "tune lora": ("tune", "{place}/base", "{place}/things.csv", "--max-length", "24", "--method", "lora",
                  "--learning-rate", "5e-3"),
    "recycle": ("recycle", "outdated", "{place}/other", "--task", "{place}/things.csv", "--learning-rate", "5e-3"),
}  # fmt: skip
KINDS = ("any time", "any time", "any time", "checkpoint", "store")
#: No command takes so long; one that does hangs.
PATIENCE_SECONDS = 120.0


@dataclass
class Outcome:
    """What one command gave: everything that must not depend on where it was killed."""

    files: dict[str, str]
    scores: dict[str, Any]
    curve: list[dict[str, Any]]
    log: list[dict[str, Any]]

    @classmethod
    def of(cls, entry: Entry) -> Outcome:
        lines = [json.loads(line) for line in (entry.folder / "metrics.jsonl").read_text().splitlines()]
        return cls(
            entry.manifest.files,
            entry.manifest.scores,
            [point.model_dump(exclude={"seconds"}) for point in entry.manifest.curve],
            [{key: value for key, value in line.items() if key != "seconds"} for line in lines],
        )

    def differences(self, other: Outcome) -> list[str]:
        changed = [name for name in ("scores", "curve", "log") if getattr(self, name) != getattr(other, name)]
        return changed + sorted(
            name for name in {*self.files, *other.files} if self.files.get(name) != other.files.get(name)
        )


@dataclass
class Moment:
    """One row of the table."""

    command: str
    kind: str
    fresh: bool
    kills: int = 0
    reached: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class Child:
    """A command in a process of its own, its output in a file."""

    def __init__(self, words: list[str], folder: Path, fresh: bool) -> None:
        self.log = folder / "output.txt"
        if fresh:
            with self.log.open("w") as out:
                process = subprocess.Popen(
                    [sys.executable, "-m", "anytune", *words], cwd=folder, stdout=out, stderr=out
                )
            self.id, self._process = process.pid, process  # kept, so that nobody else waits for it
        else:
            self.id, self._process = os.fork(), None
            if self.id == 0:
                _become(words, folder, self.log)
        self.code: int | None = None
        self.began = time.monotonic()

    def running(self) -> bool:
        if self.code is None:
            if self._process is not None:
                self.code = self._process.poll()
            else:
                found, status = os.waitpid(self.id, os.WNOHANG)
                self.code = os.waitstatus_to_exitcode(status) if found else None
        if self.code is None and time.monotonic() - self.began > PATIENCE_SECONDS:
            self.kill()
            raise SystemExit(f"a command hangs: {self.log.read_text()[-2000:]}")
        return self.code is None

    def kill(self) -> None:
        os.kill(self.id, signal.SIGKILL)
        while self.running():
            time.sleep(0.0005)

    def end(self) -> int:
        while self.running():
            time.sleep(0.005)
        assert self.code is not None
        return self.code


def _become(words: list[str], folder: Path, log: Path) -> None:
    """In a forked child: be the command."""
    code = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.chdir(folder)
        from anytune.cli.main import main

        main(words)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 0 if left.code is None else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Torture:
    """Commands, what they give undisturbed, and how long they take."""

    def __init__(self, place: Path, draw: random.Random) -> None:
        self.place, self.draw = place, draw
        self.whole: dict[str, Outcome] = {}
        self.seconds: dict[str, float] = {}
        self.checkpoints: dict[str, int] = {}

    def prepare(self) -> None:
        """Bases, data, a shelf with an outdated delta, and every command once undisturbed."""
        self._made("bases", lambda: [write_tiny_base(self.place / name, seed) for name, seed in BASES.items()])
        write_rows(self.place / "things.csv", tiny_rows())
        texts = [" ".join(text for text, _ in tiny_rows(12, seed)) for seed in range(100, 160)]
        (self.place / "domain.txt").write_text("\n\n".join(texts), encoding="utf-8")
        shelf = self._folder("shelf")
        words = ["tune", f"{self.place}/base", f"{self.place}/things.csv", "--name", "outdated", "--steps", "20",
                 "--precision", "fp32", "--store", str(shelf / "store")]  # fmt: skip
        self._succeed(Child(words, shelf, fresh=True))
        for name in COMMANDS:
            for fresh in (True, False):
                folder = self._case(f"whole-{name}-{fresh}")
                child = Child(self._words(name, folder), folder, fresh)
                seen = sum(1 for _ in self._appearing(child, folder, "checkpoint"))
                self._succeed(child)
                self.seconds[name], self.checkpoints[name] = time.monotonic() - child.began, max(1, seen)
                found = Outcome.of(self._result(name, folder))
                if found.differences(self.whole.setdefault(name, found)):
                    raise SystemExit(f"{name}: a forked command gives other bits than a fresh one")

    def moment(self, number: int) -> Moment:
        """Kill one command once or twice, start it again until it ends, and compare."""
        name = list(COMMANDS)[number % len(COMMANDS)]
        moment = Moment(name, self.draw.choice(KINDS), fresh=number % 10 == 9)
        kinds = [moment.kind, *(["any time"] if self.draw.random() < 0.3 else [])]
        for attempt in range(3):  # it may end before it is struck
            folder = self._case(f"moment-{number}-{attempt}")
            for kind in kinds:
                child = Child(self._words(name, folder), folder, moment.fresh)
                self._strike(child, name, folder, kind)
                if child.code == -signal.SIGKILL:
                    moment.kills += 1
                    moment.reached.append(self._reached(folder))
                self._check_store(folder, moment)
            if moment.kills:
                break
        child = Child(self._words(name, folder), folder, moment.fresh)
        if child.end() != 0:
            moment.wrong.append(f"exit code {child.code}: {child.log.read_text()[-300:]}")
            return moment
        self._check_store(folder, moment)
        moment.wrong += self.whole[name].differences(Outcome.of(self._result(name, folder)))
        if Store(folder / "store").work_folders():
            moment.wrong.append("its work folder is still there")
        return moment

    def _strike(self, child: Child, name: str, folder: Path, kind: str) -> None:
        """Kill a command at a moment of a kind; it may end before."""
        if kind == "any time":
            until = child.began + self.draw.uniform(0.0, self.seconds[name] * (4.0 if child._process else 1.0))
            while child.running() and time.monotonic() < until:
                time.sleep(0.001)
        else:
            count = self.draw.randint(1, self.checkpoints[name]) if kind == "checkpoint" else 1
            delay = self.draw.uniform(0.0, 0.004 if kind == "checkpoint" else 0.015)
            for seen, _ in enumerate(self._appearing(child, folder, kind), start=1):
                if seen == count:
                    until = time.monotonic() + delay
                    while time.monotonic() < until:
                        pass
                    break
        if child.running():
            child.kill()

    def _appearing(self, child: Child, folder: Path, kind: str) -> Iterator[Path]:
        """The hidden folders into which a command writes checkpoints or artefacts, as they appear."""
        patterns = [".work/*/.partial-step-*"] if kind == "checkpoint" else ["deltas/.partial-*", "bases/.partial-*"]
        seen: set[Path] = set()
        while child.running():
            found: list[Path] = []
            for pattern in patterns:
                with contextlib.suppress(OSError):  # a folder vanishes while it is listed
                    found += (folder / "store").glob(pattern)
            for path in found:
                if path not in seen:
                    seen.add(path)
                    yield path
            time.sleep(0.0002)

    def _check_store(self, folder: Path, moment: Moment) -> None:
        """What the store lists is whole, whatever happened."""
        if not (folder / "store").is_dir():
            return
        store = Store(folder / "store", create=False)
        moment.wrong += [f"{path.name}: {text}" for path, text in store.problems()]
        for entry in store.find():
            try:
                store.verify(entry)
            except AnytuneError as problem:
                moment.wrong.append(str(problem))

    def _reached(self, folder: Path) -> str:
        works = Store(folder / "store").work_folders() if (folder / "store").is_dir() else []
        last = newest(works[0]) if works else None
        return str(last.step) if last else "-"

    def _result(self, name: str, folder: Path) -> Entry:
        found = Store(folder / "store", create=False).find("base" if name == "pretrain" else "delta")
        return next(entry for entry in reversed(found) if entry.name != "outdated")

    def _case(self, name: str) -> Path:
        folder = self._folder(name.replace(" ", "-"))
        shutil.copytree(self.place / "shelf" / "store", folder / "store")
        return folder

    def _folder(self, name: str) -> Path:
        folder = self.place / name
        folder.mkdir()
        return folder

    def _words(self, name: str, folder: Path) -> list[str]:
        words = [word.format(place=self.place) for word in COMMANDS[name]]
        return [*words, *TRAINING, "--store", str(folder / "store"), "--quiet"]

    def _succeed(self, child: Child) -> None:
        if child.end() != 0:
            raise SystemExit(f"an undisturbed command failed: {child.log.read_text()[-2000:]}")

    def _made(self, name: str, make: Callable[[], Any]) -> None:
        """Run what computes in a child, so that this process stays as it was when it is forked later."""
        child = os.fork()
        if child == 0:
            try:
                make()
                os._exit(0)
            finally:
                os._exit(1)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
            raise SystemExit(f"the {name} could not be made")


BASES = {"base": 0, "other": 1}


def warm_up() -> None:
    """Import what a command imports; nothing is computed."""
    for name in (
        "accelerate", "peft", "transformers.models.bert.modeling_bert", "anytune.jobs.pretrain",
        "anytune.jobs.recycle", "anytune.jobs.tune",
    ):  # fmt: skip
        importlib.import_module(name)


def main() -> int:
    """Run it; 1 if anything differed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--moments", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    began = time.monotonic()
    place = Path(tempfile.mkdtemp(prefix="anytune-torture-"))
    os.environ["ANYTUNE_CACHE"] = str(place / "cache")
    warm_up()
    torture = Torture(place, random.Random(given.seed))
    torture.prepare()
    for name, seconds in torture.seconds.items():
        print(f"undisturbed {name}: {seconds:.1f} s, {torture.checkpoints[name]} checkpoint writes seen", flush=True)
    print(f"\n{'':>3}  {'command':10} {'killed in':10} {'process':8} {'kills':>5}  {'checkpoints':12} result")
    moments = []
    for number in range(given.moments):
        moment = torture.moment(number)
        moments.append(moment)
        result = "; ".join(moment.wrong) if moment.wrong else "same bits"
        print(
            f"{number:>3}  {moment.command:10} {moment.kind:10} {'fresh' if moment.fresh else 'forked':8} "
            f"{moment.kills:>5}  {', '.join(moment.reached):12} {result}",
            flush=True,
        )
    bad = sum(bool(moment.wrong) for moment in moments)
    kills = sum(moment.kills for moment in moments)
    counts = [(kind, sum(m.kills > 0 and m.kind == kind for m in moments)) for kind in dict.fromkeys(KINDS)]
    print(
        f"\n{len(moments)} moments, {kills} kills ({', '.join(f'{kind}: {count}' for kind, count in counts)}), "
        f"seed {given.seed}, {time.monotonic() - began:.0f} s: "
        + (f"{bad} DIFFER, kept in {place}" if bad else "all end in the same bits, every store whole")
    )
    if not bad:
        shutil.rmtree(place)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
