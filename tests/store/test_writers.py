"""Several processes that write one store at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import anytune
from anytune.store import Store
from tests.store.conftest import delta_manifest, put

#: Each adds five artefacts of its own and one that all add, updates a shared one twenty times, and removes one of its
#: own; the others do the same meanwhile.
WRITER = """
import sys
from pathlib import Path
from anytune.store import Store
from tests.store.conftest import delta_manifest, writing

folder, shared, name = sys.argv[1:]
store = Store(folder)
print("ready", flush=True)
sys.stdin.readline()
for number in range(5):
    manifest = delta_manifest(name=f"{name}-{number}", run=f"{name}-{number}")
    mine = store.add(manifest, writing(f"{name} {number}".encode()))
    store.add(delta_manifest(name=name, run="common"), writing(b"common"))
    for time in range(4):
        store.update(store.get(shared), scores={name: {str(number * 4 + time): 1.0}}, tags={name: str(number)})
    if number == 2:
        store.remove(store.get(mine))
"""

#: Tunes one and the same run.
TUNER = """
import sys
import anytune

base, task, store = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
training = {"steps": 30, "batch_size": 8, "max_length": 32, "precision": "fp32", "learning_rate": 1e-3}
[entry] = anytune.tune(base, task, store=store, training=training)
print(entry.manifest.id)
"""


def run_together(script: str, *arguments: list[str]) -> list[str]:
    """Start a process for each list of arguments, let all go at once, and give what each printed."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, *map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for words in arguments
    ]
    try:
        for process in started:
            assert process.stdout.readline() == "ready\n"
        for process in started:
            process.stdin.write("go\n")
            process.stdin.flush()
        said = [process.communicate(timeout=120)[0] for process in started]
        assert [process.returncode for process in started] == [0] * len(started)
    finally:
        for process in started:
            process.kill()
    return said


def test_four_processes_that_add_update_and_remove_lose_nothing(store: Store):
    shared = put(store, delta_manifest())
    writers = ["one", "two", "three", "four"]
    run_together(WRITER, *([store.folder, shared.id, name] for name in writers))
    contents = [(entry.folder / "weights.bin").read_text() for entry in store.find() if entry.id != shared.id]
    kept = [f"{name} {number}" for name in writers for number in (0, 1, 3, 4)]
    assert sorted(contents) == sorted([*kept, "common"])
    for entry in store.find():
        store.verify(entry)
    assert store.problems() == []
    manifest = store.get(shared.id).manifest
    assert {name: len(manifest.scores[name]) for name in writers} == dict.fromkeys(writers, 20)
    assert manifest.tags == dict.fromkeys(writers, "4")
    left = [path.name for path in (store.folder / "deltas").iterdir() if path.name.startswith(".")]
    assert left == [], "something half was left behind"


def test_the_same_run_started_twice_at_once_is_trained_once(tiny_base: Path, tiny_task: Path, tmp_path: Path):
    folder = tmp_path / "store"
    first, second = run_together(TUNER, *[[tiny_base, tiny_task, folder]] * 2)
    [entry] = Store(folder, create=False).find()
    assert first.split() == second.split() == [entry.id]
    log = [json.loads(line) for line in (entry.folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in log if line["kind"] == "train"]
    assert steps == sorted(set(steps)), "both processes trained and wrote into one log"
    assert not list((folder / ".work").iterdir())
    [again] = anytune.tune(
        tiny_base, tiny_task, store=tmp_path / "alone",
        training={"steps": 30, "batch_size": 8, "max_length": 32, "precision": "fp32", "learning_rate": 1e-3},
    )  # fmt: skip
    assert again.manifest.files == entry.manifest.files
