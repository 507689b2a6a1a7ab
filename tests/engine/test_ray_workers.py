"""A real Ray of this machine: no dashboard, no network."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from anytune.engine.fanout import Unit, run_units
from anytune.errors import DataError, SettingsError, TrainingError
from tests.engine.test_fanout import Told, fail, train_long, unit

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed (anytune[ray])")


@pytest.fixture(scope="module")
def started() -> Iterator[None]:
    """Ray as a fan-out starts and ends it, once for all tests: it takes seconds."""
    import ray

    from anytune.engine.ray_workers import RayWorkers

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        path = os.environ.get("PYTHONPATH")
        crew = RayWorkers(2, 1)
        assert os.environ.get("PYTHONPATH") == path
        yield
        crew.end(asked=True)
        assert not ray.is_initialized()


def die_after(*, folder: str, reporter) -> None:
    reporter.say("about to die")
    os.kill(os.getpid(), signal.SIGKILL)


@needs_ray
@pytest.mark.usefixtures("started")
def test_rays_tasks_keep_the_order_report_and_break_off_with_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = Told()
    plan = [
        Unit("long", train_long, {"folder": "."}, 100_000),
        unit("b", ".", "a"),
        unit("a", "."),
        Unit("bad", fail, {"folder": str(tmp_path)}, 1, frozenset({"b"})),
    ]
    with pytest.raises(DataError) as caught:
        run_units(plan, title="plan", reporter=told, workers=2, threads=1, fan_out="ray")
    assert (caught.value.what, caught.value.fix) == ("bad: no rows", "another file")
    assert told.said == [f"{name} on 1 threads, 1 for the maths" for name in "ab"]
    assert told.started == [("plan", 100_011, 0)]
    assert told.finished == 1
    assert list((tmp_path / "work").glob("step-*/state.json")), "the long run was stopped without a checkpoint"


@needs_ray
@pytest.mark.usefixtures("started")
def test_a_ray_worker_that_is_killed_is_noticed(tmp_path):
    with pytest.raises(TrainingError, match=r"plan: a worker process ended \(.*\) while running dies") as caught:
        run_units(
            [Unit("dies", die_after, {"folder": str(tmp_path)}, 1)], title="plan", reporter=Told(), workers=1,
            threads=1, fan_out="ray",
        )  # fmt: skip
    assert "same command" in caught.value.fix


def test_without_ray_the_extra_is_named_and_an_unknown_way_suggests_the_near_one(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SettingsError, match="Ray is not installed") as caught:
        run_units([unit("a", tmp_path)], title="plan", reporter=Told(), fan_out="ray")
    assert "anytune[ray]" in caught.value.fix
    with pytest.raises(SettingsError, match="way to fan out") as caught:
        run_units([unit("a", tmp_path)], title="plan", reporter=Told(), fan_out="process")
    assert "processes" in str(caught.value)


def test_fanning_out_from_each_of_a_launchers_processes_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingsError, match="a launcher runs this in 2 processes"):
        run_units([unit("a", tmp_path)], title="plan", reporter=Told())
