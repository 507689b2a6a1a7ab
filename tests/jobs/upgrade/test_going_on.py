"""An upgrade that is cut, ends early or meets what is broken: nothing is lost, and the same command goes on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from anytune.jobs import upgrade_runs
from anytune.jobs.upgrade import SPENT_NAME, _spent, upgrade
from anytune.jobs.upgrade_choices import store_choice
from anytune.store import Store
from tests.jobs.upgrade.shelves import content, full_of, task_file


def test_an_upgrade_that_was_cut_goes_on_and_ends_in_the_same_bits(far, tiny_base, tmp_path, monkeypatch):
    store, new = far
    whole = tmp_path / "whole"
    shutil.copytree(store, whole)
    tasks = {"things": task_file(store)}
    upgrade(whole, old=tiny_base, new=new, tasks=tasks)
    cuts = {"score": 2, "train": 1, "write": 2}

    def cut(name, function):
        def called(*args, **kwargs):
            cuts[name] -= 1
            if cuts[name] == 0:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return called

    monkeypatch.setattr(upgrade_runs, "_on_old", cut("score", upgrade_runs._on_old))
    monkeypatch.setattr(upgrade_runs, "recycle", cut("train", upgrade_runs.recycle))
    monkeypatch.setattr("anytune.jobs.upgrade.store_choice", cut("write", store_choice))
    for _ in cuts:
        with pytest.raises(KeyboardInterrupt):
            upgrade(store, old=tiny_base, new=new, tasks=tasks)
    result = upgrade(store, old=tiny_base, new=new, tasks=tasks)
    assert max(cuts.values()) <= 0
    assert content(store) == content(whole)
    again = upgrade(store, old=tiny_base, new=new, tasks=tasks)  # all is decided: nothing is computed
    assert [one.record() for one in again.outcomes] == [one.record() for one in result.outcomes]


def test_a_budget_that_ends_leaves_the_best_so_far_and_a_larger_one_goes_on(far, tiny_base, monkeypatch):
    store, new = far
    tasks = {"things": task_file(store)}
    monkeypatch.setattr(upgrade_runs, "seconds_for", lambda entry, step: 1e6)  # no training step will fit
    first = upgrade(store, old=tiny_base, new=new, tasks=tasks, budget="10m")
    flagged = [one for one in first.outcomes if one.flag == "budget"]
    assert flagged
    for one in flagged:
        assert {attempt.step for attempt in one.attempts} <= {"old", "keep", "scale"}
        assert one.decision.score == max(attempt.score for attempt in one.attempts[1:])
        assert one.made
    monkeypatch.undo()
    second = upgrade(store, old=tiny_base, new=new, tasks=tasks)
    assert all(one.flag in ("", "short") for one in second.outcomes)
    assert len(content(store)) == len(second.outcomes)  # what was the best so far has given way
    assert second.seconds > first.seconds


def test_a_budget_may_end_before_anything_is_scored(far, tiny_base):
    store, new = far
    result = upgrade(store, old=tiny_base, new=new, budget=0.001)
    assert {one.flag for one in result.outcomes} == {"unseen"}
    assert not content(store)


def damage(store: Path) -> dict[str, str]:
    """Three bad deltas beside the good ones: what is bad -> its reference."""
    found = {}
    good = next(entry for entry in Store(store).find("delta") if entry.manifest.form == "peft")
    for name in ("truncated", "not a number", "other head"):
        folder = shutil.copytree(good.folder, good.folder.with_name(f"bad-{name.replace(' ', '-')}"))
        manifest = json.loads((folder / "anytune.json").read_text())
        path = folder / "adapter_model.safetensors"
        if name == "truncated":
            path.write_bytes(path.read_bytes()[:-40])
        else:
            tensors = load_file(path)
            key = next(key for key in tensors if key.endswith("classifier.weight"))
            tensors[key] = tensors[key][:2] if name == "other head" else torch.full_like(tensors[key], float("nan"))
            save_file({key: value.contiguous() for key, value in tensors.items()}, path, {"format": "pt"})
            manifest["files"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        manifest["id"] = name.encode().hex().ljust(64, "0")
        (folder / "anytune.json").write_text(json.dumps(manifest))
        found[name] = folder.name
    (good.folder.with_name("bad-manifest")).mkdir()
    (good.folder.with_name("bad-manifest") / "anytune.json").write_text("{")
    return found


def test_bad_deltas_are_told_and_the_others_go_on(shelf, tiny_base, cli):
    store, near = shelf
    bad = damage(store)
    answer = cli("upgrade", store, "--from", tiny_base, "--to", near, "--tolerance", "2%", "--json", "--quiet")
    assert answer.code == 2
    assert "Traceback" not in answer.err
    found = {one["delta"]: one for one in json.loads(answer.out)["deltas"]}
    assert "truncated" in found[bad["truncated"]]["problem"]
    assert "NaN" in found[bad["not a number"]]["problem"]
    assert "does not fit" in found[bad["other head"]]["problem"]
    assert "anytune.json" in found["bad-manifest"]["problem"]
    good = [one for one in found.values() if not one["problem"]]
    assert [one["step"] for one in good] == ["keep"] * 3
    assert all(one["made"] for one in good)
    assert "/" not in "".join(one["problem"] or "" for one in found.values() if one["delta"] != "bad-manifest")


def test_training_rows_that_cannot_be_had_are_no_failed_step_and_the_right_file_goes_on(far, tiny_base):
    store, new = far
    options = {
        "old": tiny_base,
        "new": new,
        "tolerance": 0,
        "deltas": [full_of(store)],
        "steps": ["keep", "initialize"],
    }
    [first] = upgrade(store, **options, tasks={"things": store.parent / "thinks.csv"}).outcomes
    assert first.flag == "rows"
    assert "thinks.csv" in first.decision.reason
    assert str(store.parent) not in first.decision.reason
    assert [attempt.step for attempt in first.attempts] == ["old", "keep"]
    [second] = upgrade(store, **options, tasks={"things": task_file(store)}).outcomes
    assert [attempt.step for attempt in second.attempts] == ["old", "keep", "initialize"]
    assert second.attempts[-1].problem is None


def test_a_delta_that_is_whole_again_is_no_longer_left_out(far, tiny_base):
    store, new = far
    full = full_of(store)
    weights = store / "deltas" / full / "delta.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-40])
    first = upgrade(store, old=tiny_base, new=new, tolerance=0)
    assert [one.delta for one in first.problems] == [full]
    assert any(one.flag == "rows" for one in first.outcomes)  # so that what is known so far is kept
    weights.write_bytes(good)
    assert not upgrade(store, old=tiny_base, new=new, tolerance=0).problems


def test_the_same_weights_with_all_steps_tried_are_told_so_and_nothing_is_done_again(far, tiny_base, monkeypatch):
    store, new = far
    options = {"old": tiny_base, "new": new, "tolerance": 0, "deltas": [full_of(store)], "steps": ["keep", "retune"],
               "tasks": {"things": task_file(store)}}  # fmt: skip

    def fails(*args):
        raise KeyError("no such thing")  # what nobody foresaw is told of the one delta

    monkeypatch.setattr(upgrade_runs, "_trained", fails)
    monkeypatch.setattr(upgrade_runs, "seconds_for", lambda entry, step: 1e6)
    [first] = upgrade(store, **options, budget="10m").outcomes
    monkeypatch.setattr(upgrade_runs, "seconds_for", lambda entry, step: 0.0)
    [second] = upgrade(store, **options).outcomes
    assert (first.flag, second.flag) == ("budget", "short")
    assert first.made == second.made
    assert "KeyError" in second.attempts[-1].problem
    assert Store(store).get(second.made).manifest.decision["flag"] == "short"
    monkeypatch.setattr("anytune.jobs.upgrade.score_shelf", lambda **call: call["references"] and pytest.fail("again"))
    [third] = upgrade(store, **options).outcomes
    assert third.record() == second.record()


def test_killed_between_the_better_choice_and_the_removal_of_the_other_one(far, tiny_base, monkeypatch):
    store, new = far
    options = {"old": tiny_base, "new": new, "tolerance": 0, "deltas": [full_of(store)],
               "steps": ["keep", "initialize"], "tasks": {"things": task_file(store)}}  # fmt: skip
    monkeypatch.setattr(upgrade_runs, "seconds_for", lambda entry, step: 1e6)
    [kept] = upgrade(store, **options, budget="10m").outcomes
    monkeypatch.setattr(upgrade_runs, "seconds_for", lambda entry, step: 0.0)

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Store, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            upgrade(store, **options)
    assert len(content(store)) == 2
    [made] = upgrade(store, **options).outcomes
    assert list(content(store)) == [made.made] != [kept.made]
    assert made.decision.step == "initialize"


def test_a_call_that_was_killed_counts_until_it_last_wrote_something(tmp_path):
    assert _spent(tmp_path) == 0
    for written, seconds in (({"seconds": 5}, 5), ({"seconds": 5, "since": 1000.0}, 65), ({"seconds": "x"}, 0)):
        (tmp_path / SPENT_NAME).write_text(json.dumps(written))
        (tmp_path / "deltas").mkdir(exist_ok=True)
        (tmp_path / "deltas" / "a.json").write_text("{}")
        for path in tmp_path.rglob("*"):
            os.utime(path, (1060.0, 1060.0))
        assert _spent(tmp_path) == seconds
