"""The cache folder, its lock, and folders that appear whole or not at all."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from anytune.data.samples import cache as room
from anytune.data.samples.cache import appearing, cache_folder, locked
from anytune.errors import SampleError


def test_the_environment_names_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("ANYTUNE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("ANYTUNE_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "anytune"


def test_a_folder_that_fails_leaves_nothing(tmp_path):
    def fail() -> None:
        with appearing(tmp_path / "x") as partial:
            (partial / "half").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_appears_with_its_whole_content_and_replaces_an_older_one(tmp_path):
    for text in ("old", "new"):
        with appearing(tmp_path / "x") as partial:
            (partial / text).write_text(text)
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_a_killed_process_left_is_swept_after_an_hour(tmp_path):
    old, fresh = tmp_path / ".partial-x-1", tmp_path / ".partial-y-2"
    old.mkdir()
    fresh.mkdir()
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    with appearing(tmp_path / "z"):
        pass
    assert not old.exists()
    assert fresh.exists()


def test_the_second_holder_of_a_lock_waits_and_says_so(tmp_path):
    held, release, order = threading.Event(), threading.Event(), []

    def first() -> None:
        with locked(tmp_path / "x"):
            held.set()
            release.wait(10)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    held.wait(10)
    said: list[str] = []

    def tell(line: str) -> None:
        said.append(line)
        release.set()

    with locked(tmp_path / "x", tell):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
    assert said == ["waiting for another process that is making x"]


def test_a_lock_that_never_falls_free_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "LOCK_WAIT_SECONDS", 0.1)
    failures = []

    def second() -> None:
        try:
            with locked(tmp_path / "x"):
                pass
        except SampleError as problem:
            failures.append(str(problem))

    with locked(tmp_path / "x"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(10)
    assert "has been locked by another process" in failures[0]
