"""The demo: its plan, its words, and a tiny run of it on the real samples where they are at hand."""

from __future__ import annotations

import importlib

import pytest

from anytune.data.samples import is_fetched
from anytune.engine.fanout import check_order
from anytune.engine.progress import Silent
from anytune.errors import SampleError, SettingsError
from anytune.store import Store

demo_job = importlib.import_module("anytune.jobs.demo")
SMALL = demo_job.Scale(4, 2, 60, (0,), 1e-3, 5e-4)


class Heard(Silent):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


def plan():
    return demo_job.units(demo_job.PARTS, SMALL, "store")


def test_every_task_meets_every_upgrade_with_every_arm_and_control():
    arms = ("direct", "initialize", "fresh", "fresh, whole budget")
    names = {unit.name for unit in plan()}
    tasks = [part.sample for part in demo_job.PARTS]
    wanted = {f"{task} on {base}, {arm}" for task in tasks for base in ("v1", "v2") for arm in arms}
    assert names == wanted | {"v1", "v2"} | {f"{task} on v0" for task in tasks}


def test_the_plan_can_be_run_and_nothing_starts_before_what_it_needs():
    check_order(plan())
    after = {unit.name: unit.after for unit in plan()}
    assert after["v2"] == {"v1"}
    assert after["hpo on v2, initialize"] == {"v2", "hpo on v0"}
    assert after["hpo on v2, fresh"] == {"v2"}


def test_arms_are_equal_but_for_what_they_compare():
    by_name = {unit.name: unit.arguments for unit in plan()}
    fresh, recycled = by_name["hpo on v1, fresh"], by_name["hpo on v1, initialize"]
    whole = by_name["hpo on v1, fresh, whole budget"]
    assert fresh["training"] == recycled["training"] == by_name["hpo on v0"]["training"]
    assert whole["training"] == {**fresh["training"], "steps": 2 * fresh["training"]["steps"]}
    for arm in (fresh, recycled, whole):
        assert (arm["seeds"], arm["train_size"], arm["task"], arm["base"]) == ([0], 60, "sample:hpo", "v1")


def test_pretraining_is_kept_apart_from_every_task():
    for unit in plan():
        if unit.name in ("v1", "v2"):
            assert unit.arguments["apart_from"] == [f"sample:{part.sample}" for part in demo_job.PARTS]


def test_an_unknown_model_is_refused_with_the_near_one(tmp_path):
    with pytest.raises(SettingsError, match="minilm-l6"):
        demo_job.demo(model="minilm", folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_text_that_cannot_be_had_is_replaced_and_said(monkeypatch):
    def refuse(name, **_):
        if name == "foldoc":
            raise SampleError("apt-get is not on this machine")

    monkeypatch.setattr(demo_job, "fetch", refuse)
    monkeypatch.setattr(demo_job, "sample_rows", lambda name, **_: None)
    heard = Heard()
    parts = demo_job.gather(heard)
    assert [part.sample for part in parts] == [demo_job.STAND_IN.sample, "hpo", "rotten_tomatoes"]
    assert any("apt-get is not on this machine" in line for line in heard.said)


def test_the_warming_is_announced_with_its_time_before_it_is_made(monkeypatch, tmp_path):
    monkeypatch.setattr(demo_job, "warmed_folder", lambda model: tmp_path / "none")
    assert "warmed" in demo_job.estimate("minilm-l6", plan(), 2)
    monkeypatch.setattr(demo_job, "warmed_folder", lambda model: tmp_path)
    assert "warmed" not in demo_job.estimate("minilm-l6", plan(), 2)


@pytest.mark.downloads
@pytest.mark.slow
def test_a_tiny_demo_runs_end_to_end_on_the_real_samples_and_finds_its_runs_again(tmp_path, monkeypatch):
    if not all(is_fetched(part.sample) for part in demo_job.PARTS):
        pytest.skip("the samples are not in the cache")
    monkeypatch.setitem(demo_job.SCALES, ("bert-tiny", True), SMALL)
    heard = Heard()
    page = demo_job.demo(fast=True, folder=tmp_path / "demo", reporter=heard)
    store = Store(tmp_path / "demo" / "store")
    assert len(store.find("delta")) == 3 + 2 * 3 * 4
    assert [entry.name for entry in store.find("base")] == ["v0", "v1", "v2"]
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert any("On hpo after v2" in line for line in heard.said)
    before = {entry.folder for entry in store.find()}
    demo_job.demo(fast=True, folder=tmp_path / "demo", reporter=Heard())
    assert {entry.folder for entry in store.find()} == before
