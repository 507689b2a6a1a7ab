from __future__ import annotations

import json
import threading

import pytest
import torch

import anytune
from anytune.data.batches import ExampleBatches
from anytune.engine.interrupts import InterruptedRunError
from anytune.errors import DeltaError, SettingsError, StoreError, TrainingError, WrongBaseError
from anytune.jobs import resuming, tuning
from anytune.jobs.deltas import load_delta
from anytune.jobs.resuming import RUN_NAME, forget, interrupted_runs
from anytune.store import Store
from anytune.store.folders import held
from tests.reporters import Says

TRAINING = {"steps": 8, "batch_size": 8, "max_length": 16, "learning_rate": 1e-3, "precision": "fp32",
            "checkpoint_every": 2, "evaluate_every": 4, "keep": "last"}  # fmt: skip


@pytest.fixture
def run(tiny_base, tiny_task, tmp_path):
    """``run(learning_rate=..., resume=...)``: tune in a store of this test; training settings go where they belong."""

    def run(*, base=tiny_base, reporter=None, **given):
        training = {**TRAINING, **{key: given.pop(key) for key in list(given) if key in TRAINING and key != "keep"}}
        return anytune.tune(base, tiny_task, store=tmp_path / "store", training=training, reporter=reporter, **given)

    run.store = lambda: Store(tmp_path / "store")
    return run


@pytest.fixture
def cut(run):
    """The run, interrupted at step 4 of 8."""
    with pytest.raises(InterruptedRunError):
        run(reporter=Says(4))
    return run


def test_a_run_that_goes_on_says_so_before_anything_slow_is_loaded(cut, monkeypatch):
    says, order = Says(), []
    real = tuning.EncodedTask.of
    monkeypatch.setattr(tuning.EncodedTask, "of", lambda *given: order.append(len(says.said)) or real(*given))
    cut(reporter=says)
    assert order == [1]
    assert says.said[0].startswith("tune things seed 0: going on at step 4 of 8 (checkpoint 0 s old)")


def test_a_run_that_goes_on_asks_for_no_batch_it_has_had(cut, monkeypatch):
    asked = []
    real = ExampleBatches.batch
    monkeypatch.setattr(ExampleBatches, "batch", lambda self, step: asked.append(step) or real(self, step))
    cut()
    assert asked == [4, 5, 6, 7]


def test_resume_goes_on_and_gives_a_finished_run_back(cut):
    [entry] = cut(resume="must")
    assert entry.manifest.steps == 8
    [again] = cut(resume="must")
    assert again.folder == entry.folder


def test_resume_of_a_changed_run_is_refused_and_names_the_difference(cut):
    with pytest.raises(TrainingError, match="no interrupted run has these settings") as caught:
        cut(learning_rate=2e-3, resume="must")
    assert "at step 4 of 8, differs in learning_rate 0.001 -> 0.002" in caught.value.what
    with pytest.raises(TrainingError, match="method tune/full -> tune/bitfit"):
        cut(method="bitfit", resume="must")
    with pytest.raises(TrainingError, match="seed 0 -> 3"):
        cut(seeds=[3], resume="must")
    assert [found.step for found in interrupted_runs(cut.store())] == [4], "it stays as it was"


def test_resume_of_one_of_several_seeds_is_enough(cut):
    assert [entry.manifest.seed for entry in cut(seeds=[5, 0], resume="must", steps=8)] == [5, 0]


def test_resume_where_nothing_was_interrupted(run):
    with pytest.raises(TrainingError, match="no interrupted run to go on with"):
        run(resume="must")
    with pytest.raises(SettingsError, match="resume = 'allways'"):
        run(resume="allways")


def test_a_changed_run_is_a_new_one_says_so_and_both_stay(cut):
    says = Says()
    [entry] = cut(learning_rate=2e-3, reporter=says)
    assert says.said[0] == (
        "tune things seed 0: interrupted at step 4 of 8 and differs in learning_rate 0.001 -> 0.002; this is a new run"
    )
    assert entry.manifest.training["learning_rate"] == 2e-3
    assert [found.step for found in interrupted_runs(cut.store())] == [4]
    assert cut()[0].manifest.training["learning_rate"] == 1e-3


def test_restart_begins_at_step_0_and_ends_in_the_same_bits(cut, tiny_base, tiny_task, tmp_path, monkeypatch):
    asked = []
    real = ExampleBatches.batch
    monkeypatch.setattr(ExampleBatches, "batch", lambda self, step: asked.append(step) or real(self, step))
    [entry] = cut(resume="never")
    assert asked == list(range(8))
    [whole] = anytune.tune(tiny_base, tiny_task, store=tmp_path / "whole", training=TRAINING)
    assert entry.manifest.files == whole.manifest.files
    lines = [json.loads(line) for line in (entry.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [4, 8]


def test_run_json_says_what_the_run_is_and_that_of_another_run_is_refused(cut):
    [folder] = cut.store().work_folders()
    stored = json.loads((folder / RUN_NAME).read_text())
    assert stored["key"] == folder.name
    assert stored["settings"]["learning_rate"] == 1e-3
    assert stored["settings"]["task"].startswith("things (")
    stored["decides"]["training"]["batch_size"] = 9
    stored["settings"]["batch_size"] = 9
    (folder / RUN_NAME).write_text(json.dumps(stored))
    with pytest.raises(TrainingError, match="belongs to another run: batch_size 9 -> 8"):
        cut()


def test_a_run_that_fails_before_its_first_checkpoint_leaves_nothing_behind(run, monkeypatch, tmp_path):
    def fails(*given):
        raise SettingsError("no such length")

    monkeypatch.setattr(tuning.EncodedTask, "of", fails)
    with pytest.raises(SettingsError):
        run()
    assert not (tmp_path / "store" / ".work").exists()


def test_interrupted_runs_are_listed_and_can_be_forgotten(cut, monkeypatch):
    [found] = interrupted_runs(cut.store())
    assert (found.title, found.place, found.running) == ("tune things seed 0", "step 4 of 8", False)
    with pytest.raises(StoreError, match="no interrupted run with a key that begins with 'zz'"):
        forget(cut.store(), "zz")
    with cut.store().at_work(found.key, lambda folder: None), pytest.raises(StoreError, match="a process is at work"):
        forget(cut.store(), found.key[:6])
    forget(cut.store(), found.key[:6])
    assert interrupted_runs(cut.store()) == []
    assert list((cut.store().folder / ".work").iterdir()) == []


def test_what_a_kill_left_between_the_artefact_and_its_work_folder_is_tidied_up(run, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(Store, "end_work", lambda self, key: None)
        run()
    assert interrupted_runs(run.store()) == [], "a finished run is not in work"
    assert len(run.store().work_folders()) == 1
    run()
    assert run.store().work_folders() == []


def test_the_second_process_on_a_run_says_so_waits_and_takes_the_first_ones_result(run, monkeypatch):
    """Two holders of the same folder in one process: the system's lock does not care."""
    steps, ready, go = [], threading.Event(), threading.Event()
    real = ExampleBatches.batch

    def batch(self, step):
        steps.append(step)
        ready.set()
        assert go.wait(30)
        return real(self, step)

    monkeypatch.setattr(ExampleBatches, "batch", batch)
    found = {}

    class Waits(Says):
        def say(self, text):
            super().say(text)
            go.set()

    waits = Waits()
    first = threading.Thread(target=lambda: found.update(first=run()))
    first.start()
    assert ready.wait(30)
    second = threading.Thread(target=lambda: found.update(second=run(reporter=waits)))
    second.start()
    first.join(60)
    second.join(60)
    assert found["first"][0].folder == found["second"][0].folder
    assert steps == list(range(8)), "it is trained once"
    assert "another process" in waits.said[0]
    assert "waiting for its result" in waits.said[0]
    assert run.store().work_folders() == []


def test_a_folder_that_was_deleted_and_made_anew_while_its_lock_was_waited_for_is_not_held(tmp_path, monkeypatch):
    """Its holder has just ended: whoever holds the deleted folder holds nothing."""
    fcntl = pytest.importorskip("fcntl")
    place = tmp_path / "run"
    place.mkdir()
    real = fcntl.flock

    def flock(*given):
        place.rename(tmp_path / "deleted")
        place.mkdir()
        return real(*given)

    monkeypatch.setattr(fcntl, "flock", flock)
    with held(place) as ours:
        assert not ours


# Start a new run from stored weights


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_new_run_starts_from_a_stored_delta(run, method):
    [first] = run(method=method, learning_rate=1e-2)
    [second] = run(method=method, start_from=first, name="second", learning_rate=1e-9, keep="scores")
    before = first.manifest.curve[-1]
    assert second.manifest.curve[0].scores == before.scores, "its step 0 is where the first one ended"
    assert second.manifest.curve[0].loss == pytest.approx(before.loss, abs=1e-6)
    assert [(parent.role, parent.id) for parent in second.manifest.parents][-1] == ("delta", first.id)
    assert second.manifest.recipe["start_from"] == first.reference
    assert second.manifest.methods == first.manifest.methods
    [fresh] = run(method=method, learning_rate=1e-9, keep="scores")
    assert fresh.manifest.run != second.manifest.run
    assert fresh.manifest.curve[0].loss != second.manifest.curve[0].loss


def test_an_adapter_that_goes_on_stays_one_and_learns(run):
    [first] = run(method="lora")
    [second] = run(method="lora", start_from=first, name="second")
    before, after = load_delta(first).tensors, load_delta(second).tensors
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(DeltaError, match="cannot go on with method full"):
        run(start_from=first)
    with pytest.raises(SettingsError, match=r"lora\.r = 4, and .* was made with 8"):
        run(method={"name": "lora", "r": 4}, start_from=first)


def test_an_adapter_on_a_full_difference_and_a_delta_of_another_base_are_refused(run, other_base):
    [first] = run()
    with pytest.raises(DeltaError, match="is a full difference, and an adapter cannot start from it"):
        run(method="lora", start_from=first)
    with pytest.raises(WrongBaseError) as caught:
        run(base=other_base, start_from=first)
    assert "anytune recycle" in caught.value.fix


def test_a_run_that_starts_from_a_delta_resumes_in_the_same_bits(run, tiny_base, tiny_task, tmp_path):
    [first] = run(keep="weights")
    with pytest.raises(InterruptedRunError):
        run(start_from=first, name="cut", learning_rate=5e-4, reporter=Says(4))
    [resumed] = run(start_from=first, name="cut", learning_rate=5e-4, resume="must")
    other = Store(tmp_path / "whole")
    [whole] = anytune.tune(
        tiny_base, tiny_task, store=other, training={**TRAINING, "learning_rate": 5e-4}, start_from=first.folder
    )
    assert resumed.manifest.files == whole.manifest.files


def test_a_similar_run_of_another_seed_is_not_spoken_of(cut):
    says = Says()
    cut(seeds=[1], reporter=says)
    assert says.said == []


def test_spans_of_time_are_in_their_largest_unit():
    assert [resuming._span(seconds) for seconds in (3, 125, 7300, 200_000)] == ["3 s", "2 min", "2 h", "2 d"]
