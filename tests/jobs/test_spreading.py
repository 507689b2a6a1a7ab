"""Whether runs are spread over processes where nobody says how many."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

import anytune
from anytune.jobs import tune as tuning_job
from anytune.jobs import workers
from anytune.models.base import load_base

TRAINING = {"steps": 2, "batch_size": 8, "max_length": 32, "precision": "fp32"}


@pytest.fixture
def plans(tiny_base, tiny_task, tmp_path, monkeypatch):
    """The plans of a command and its call, as the rule gets them; cores for four processes."""
    caught = []
    monkeypatch.setattr(tuning_job, "chosen_workers", lambda plans, call: caught.append((plans, call)) or 1)
    monkeypatch.setattr(workers, "worker_count", lambda units: min(units, 4))
    anytune.tune(tiny_base, tiny_task, store=tmp_path, training=TRAINING, seeds=[0, 1, 2])
    monkeypatch.undo()
    monkeypatch.setattr(workers, "worker_count", lambda units: min(units, 4))
    return caught[0]


def test_short_runs_stay_in_this_process_and_long_ones_do_not(plans, monkeypatch):
    made, call = plans
    assert workers.chosen_workers(made, call) == 1
    monkeypatch.setattr(workers, "estimated_seconds", lambda plan: 10.0)
    assert workers.chosen_workers(made, call) == 3
    assert workers.chosen_workers(made[:1], call) == 1


def test_what_forbids_processes_is_heeded(plans, tiny_base, monkeypatch):
    made, call = plans
    monkeypatch.setattr(workers, "estimated_seconds", lambda plan: 1e6)
    assert workers.chosen_workers(made, {**call, "base": load_base(tiny_base)}) == 1
    assert workers.chosen_workers(made, {**call, "method": lambda: None}) == 1, "cannot be sent"
    with monkeypatch.context() as patch:
        patch.setattr(workers, "free_memory", lambda: 2_300_000_000)
        assert workers.chosen_workers(made, call) == 2
    with monkeypatch.context() as patch:
        patch.setattr(workers, "launched", lambda: (0, 2))
        assert workers.chosen_workers(made, call) == 1
    with monkeypatch.context() as patch:
        patch.setattr(workers.multiprocessing, "current_process", lambda: SimpleNamespace(daemon=True))
        assert workers.chosen_workers(made, call) == 1


def test_a_script_without_a_guard_is_not_run_a_second_time_by_children(tmp_path, monkeypatch):
    script = tmp_path / "script.py"
    for text, answer in (("import anytune\n", False), ("if __name__ == '__main__':\n    pass\n", True)):
        script.write_text(text)
        monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__file__=str(script)))
        assert workers.main_can_be_imported() is answer
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace())
    assert workers.main_can_be_imported()


def test_the_estimate_grows_with_steps_and_model(plans):
    [plan, *_], _ = plans
    longer = plan.settings.model_copy(update={"steps": 200})
    little = workers.estimated_seconds(plan)
    plan.settings = longer
    assert workers.estimated_seconds(plan) > 50 * little
    assert workers.estimated_seconds(plan) == pytest.approx(2.0, rel=0.5), "200 tiny steps of about 10 ms"
