"""What the new base can do beyond an old score: who is tuned on, who is marked, and what stays as it was."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

import anytune
from anytune.jobs import upgrade_headroom
from anytune.jobs.stored_sample import read_sample
from anytune.jobs.upgrade import upgrade
from anytune.jobs.upgrade_headroom import Headroom, can_do_more, exceeds, groups, way_of_tuning
from anytune.manifests import MANIFEST_NAME
from anytune.report.upgrade_page import page
from anytune.store import Store
from tests.jobs.upgrade.conftest import TRAINING
from tests.jobs.upgrade.shelves import content, lines, task_file


class Told:
    """A reporter that remembers what it says."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def start(self, *_args, **_kwargs) -> None: ...

    step = finish = start


@pytest.fixture(scope="module")
def early(made, tiny_base, things, tmp_path_factory):
    """Two LoRAs that were ended long before they had learned all, as deltas of one task."""
    _, near = made
    folder = tmp_path_factory.mktemp("early") / "store"
    shutil.copytree(near.folder.parent.parent, folder)
    for entry in Store(folder).find("delta"):
        Store(folder).remove(entry, force=True)
    training = {**TRAINING, "learning_rate": 2e-3, "steps": 400, "evaluate_every": 5, "stop_at": 0.45}
    deltas = anytune.tune(tiny_base, things, store=folder, method={"name": "lora", "r": 8, "targets": "all-linear"},
                          seeds=[0, 1], training=training)  # fmt: skip
    assert all(entry.manifest.steps < 100 and entry.score("validation") < 0.75 for entry in deltas)
    return folder, near.reference


@pytest.fixture
def half(early, tmp_path, monkeypatch):
    folder, near = early
    monkeypatch.setattr(upgrade_headroom, "steps_for", lambda entry, step: 100)  # a quarter of their few are none
    shutil.copytree(folder, tmp_path / "store")
    return tmp_path / "store", near


@pytest.mark.parametrize(
    ("score", "taken", "error", "metric", "tolerance", "expected"),
    [
        (0.80, 0.70, 0.02, "accuracy", 0.01, True),
        (0.80, 0.70, 0.05, "accuracy", 0.01, False),  # two standard errors are all of it
        (0.80, 0.70, 0.0, "accuracy", 0.2, False),  # within what may be lost
        (0.60, 0.70, 0.0, "accuracy", 0.0, False),
        (0.80, 0.70, None, "accuracy", 0.0, False),
        (0.80, None, 0.0, "accuracy", 0.0, False),
        (8.0, 10.0, 0.5, "perplexity", 0.1, True),  # of an error the tolerance is a share
        (8.0, 10.0, 0.5, "perplexity", 0.3, False),
        (12.0, 10.0, 0.0, "perplexity", 0.0, False),
    ],
)
def test_what_exceeds_is_more_than_the_tolerance_and_more_than_chance(
    score, taken, error, metric, tolerance, expected
):  # fmt: skip
    assert exceeds(score, taken, error, metric, tolerance) is expected


def test_others_are_marked_beside_one_that_gained_itself():
    gained = Headroom("it", 0.80, 0.70, 0.02, 75, 100, 1.0)
    assert [can_do_more(gained, own, "accuracy", 0.01) for own in (0.60, 0.70, 0.77, 0.80, None)] == [
        True, True, False, False, False,
    ]  # fmt: skip
    as_good_before = Headroom("it", 0.80, 0.80, 0.0, 75, 100, 1.0)
    assert not can_do_more(as_good_before, 0.60, "accuracy", 0.01)


def test_one_delta_is_tuned_on_for_its_task_and_all_below_it_are_marked(half, tiny_base):
    store, near = half
    tasks, plain = {"things": task_file(store)}, store.parent / "plain"
    shutil.copytree(store, plain)
    result = upgrade(store, old=tiny_base, new=near, tasks=tasks, headroom=True)
    without = upgrade(plain, old=tiny_base, new=near, tasks=tasks)
    first, second = result.outcomes
    seen = first.headroom
    assert seen["probe"] == first.delta
    assert seen == {**second.headroom, "more": seen["more"]}
    assert seen["steps"] == 100
    assert seen["taken"] == first.decision.score
    assert 0 < seen["step"] <= 100
    for one in result.outcomes:
        assert one.flag == ""
        assert one.more
        assert seen["score"] - one.decision.score > max(0.01, 2 * seen["error"])
        assert one.more in result.page.read_text()
        assert Store(store).get(one.made).manifest.decision["headroom"] == one.headroom
        assert "test" not in Store(store).get(one.made).manifest.scores
    assert "; 2 can do more on it" in result.page.read_text()
    further = "2 of 2 can do more on near than bring their old score back; to see that, 1 was tuned on."
    assert further in result.page.read_text()
    assert "was tuned on" not in without.page.read_text()
    # what is taken is what is taken without looking
    assert content(store) == content(plain)
    assert [one.decision for one in result.outcomes] == [one.decision for one in without.outcomes]
    assert all(one.headroom is None and not one.more for one in without.outcomes)
    assert [line["headroom"] for line in lines(result)] == [one.headroom for one in result.outcomes]
    assert not list((store / ".work").iterdir())


def test_the_error_is_of_the_difference_row_by_row(half, tiny_base):
    store, near = half
    result = upgrade(store, old=tiny_base, new=near, tasks={"things": task_file(store)}, headroom=True)
    probe = Store(store).get(result.outcomes[0].delta)
    sample = read_sample(probe)
    data = anytune.load_task(task_file(store))
    held = {row.text for row in sample.validation}
    task = data.with_rows(train=[row for row in data.train if row.text not in held],
                          validation=sample.validation, test=sample.validation[:1])  # fmt: skip
    [run] = anytune.recycle(probe, near, store=store, old_base=tiny_base, method="initialize", task=task,
                            training={"steps": 100, "evaluate_every": 20, "keep": "best"})  # fmt: skip
    right = []
    for delta in (run.reference, result.outcomes[0].made):
        model, tokenizer = anytune.load(delta, store=store)
        said = []
        for row in sample.validation:
            with torch.no_grad():
                answer = model(**tokenizer(row.text, return_tensors="pt", truncation=True, max_length=16))
            said.append(float(int(answer.logits.argmax()) == row.label))
        right.append(np.array(said))
    assert result.outcomes[0].headroom["score"] == pytest.approx(right[0].mean())
    gained = right[0] - right[1]
    assert gained.std(ddof=1) > 0
    # of means over rows, each left out alone, the jackknife is the usual standard error
    assert result.outcomes[0].headroom["error"] == pytest.approx(gained.std(ddof=1) / len(gained) ** 0.5)


def test_what_was_upgraded_before_is_looked_at_as_well_and_only_once(half, tiny_base, monkeypatch):
    store, near = half
    tasks = {"things": task_file(store)}
    upgrade(store, old=tiny_base, new=near, tasks=tasks)
    one, _ = [entry.reference for entry in Store(store).find("delta") if entry.manifest.decision is None]
    [looked] = upgrade(store, old=tiny_base, new=near, tasks=tasks, deltas=[one], headroom=True).outcomes
    assert looked.more
    monkeypatch.setattr(upgrade_headroom, "recycle", None)  # not trained again for the other one, nor for the same
    for _ in range(2):
        found = upgrade(store, old=tiny_base, new=near, tasks=tasks, headroom=True)
        assert [outcome.headroom["probe"] for outcome in found.outcomes] == [one, one]
    asked_for_less = upgrade(store, old=tiny_base, new=near, tasks=tasks)
    assert all(outcome.more for outcome in asked_for_less.outcomes)  # what is known stays known


def test_killed_while_it_looks_it_goes_on_and_ends_in_the_same_bits(half, tiny_base, tmp_path, monkeypatch):
    store, near = half
    whole, tasks = tmp_path / "whole", {"things": task_file(store)}
    shutil.copytree(store, whole)
    expected = upgrade(whole, old=tiny_base, new=near, tasks=tasks, headroom=True)
    runs = []

    def counted(*args, **kwargs):
        runs.append(1)
        return recycle(*args, **kwargs)

    def killed(*_args):
        raise KeyboardInterrupt

    recycle = upgrade_headroom.recycle
    monkeypatch.setattr(upgrade_headroom, "recycle", counted)
    for name in ("jackknife_error", "write_atomic"):  # behind the training, and behind all but the writing down
        with monkeypatch.context() as patch:
            patch.setattr(upgrade_headroom, name, killed)
            with pytest.raises(KeyboardInterrupt):
                upgrade(store, old=tiny_base, new=near, tasks=tasks, headroom=True)
    with monkeypatch.context() as patch:
        patch.setattr("anytune.jobs.upgrade.marked", killed)
        with pytest.raises(KeyboardInterrupt):
            upgrade(store, old=tiny_base, new=near, tasks=tasks, headroom=True)
    assert len(runs) == 3
    found = upgrade(store, old=tiny_base, new=near, tasks=tasks, headroom=True)
    assert len(runs) == 3  # written down before it was marked
    assert content(store) == content(whole)

    def timeless(result):
        return [{key: value for key, value in one.headroom.items() if key != "seconds"} for one in result.outcomes]

    assert timeless(found) == timeless(expected)


def test_without_rows_or_time_it_says_so_and_all_else_is_done(half, tiny_base, things, monkeypatch):
    store, near = half
    for entry in Store(store).find("delta"):  # nobody says where the rows are
        path = entry.folder / MANIFEST_NAME
        content_ = json.loads(path.read_text())
        content_["task"]["ref"] = None
        path.write_text(json.dumps(content_))
    told = Told()
    result = upgrade(store, old=tiny_base, new=near, headroom=True, reporter=told)
    assert [one.flag for one in result.outcomes] == ["", ""]
    assert all(one.headroom is None for one in result.outcomes)
    assert [text for text in told.said if "no training rows, so that its headroom stays unknown" in text]
    monkeypatch.setattr(upgrade_headroom, "seconds_for", lambda entry, step: 1e6)
    told = Told()
    tasks = {"things": task_file(store)}
    result = upgrade(store, old=tiny_base, new=near, tasks=tasks, headroom=True, budget="10m", reporter=told)
    assert all(one.headroom is None for one in result.outcomes)
    assert [text for text in told.said if "the budget leaves no time to look for headroom" in text]
    monkeypatch.undo()
    monkeypatch.setattr(upgrade_headroom, "recycle", _fails)
    told = Told()
    result = upgrade(store, old=tiny_base, new=near, tasks=tasks, headroom=True, reporter=told)
    assert [text for text in told.said if "its headroom stays unknown: RuntimeError: too much" in text]
    assert all(one.flag == "" and one.headroom is None for one in result.outcomes)


def _fails(*_args, **_kwargs):
    raise RuntimeError("too much")


def test_one_delta_speaks_for_those_of_its_task_tuned_in_the_same_way(far, shelf, tiny_base):
    store, near = shelf
    result = upgrade(store, old=tiny_base, new=near, tolerance="2%")
    entries = [Store(store).get(one.delta) for one in result.outcomes]
    taken = {entry.id: Store(store).get(one.made) for entry, one in zip(entries, result.outcomes, strict=True)}
    assert [[entry.reference for entry in group] for group in groups(entries, taken)] == [
        [entry.reference] for entry in entries
    ]  # one task, three ways of tuning
    twice = [*entries, *(Store(store).get(one.delta) for one in result.outcomes)]
    assert [len(group) for group in groups(twice, taken)] == [2, 2, 2]
    assert groups(entries, {}) == []
    for change in ({"flag": "short"}, {"step": "retune"}, {"step": "distill"}):
        entry = taken[entries[0].id]
        decision = {**entry.manifest.decision, **change}
        other = entry.__class__(entry.folder, entry.manifest.model_copy(update={"decision": decision}))
        assert len(groups(entries, {**taken, entries[0].id: other})) == 2


def test_those_tuned_for_longer_or_on_more_rows_are_spoken_for_by_one_of_their_own(half):
    entry = Store(half[0]).find("delta")[0]
    manifest = entry.manifest

    def like(**changes):
        return way_of_tuning(entry.__class__(entry.folder, manifest.model_copy(update=changes)))

    def asked(**training):
        return {**manifest.recipe, "training": {**manifest.recipe["training"], **training}}

    own, task, seeds = way_of_tuning(entry), manifest.task, Store(half[0]).find("delta")
    assert len({one.manifest.steps for one in seeds}) == 2  # ended early, each at a step of its own
    assert {way_of_tuning(one) for one in seeds} == {own}
    assert like(recipe=asked(steps=800)) != own
    assert len({own, *(like(recipe=asked(steps=None, epochs=count)) for count in (2, 3))}) == 3
    assert like(task=task.model_copy(update={"counts": {**task.counts, "train": 8}})) != own
    assert like(task=task.model_copy(update={"counts": {**task.counts, "test": 8}})) == own
    assert like(task=task.model_copy(update={"name": "others"})) != own
    assert like(label_names=manifest.label_names[::-1]) != own
    assert like(methods=[]) != own


def test_what_an_upgrade_brought_over_is_grouped_as_it_was_before(half, tiny_base):
    store, near = half
    before = {one.reference: way_of_tuning(one) for one in Store(store).find("delta")}
    for given in ({"steps": ["keep"]}, {"steps": ["initialize"], "tolerance": 0.0}):
        place = store.parent / given["steps"][0]
        shutil.copytree(store, place)
        result = upgrade(place, old=tiny_base, new=near, tasks={"things": task_file(store)}, **given)
        assert [one.decision.step for one in result.outcomes] == given["steps"] * 2
        ways = {one.delta: way_of_tuning(Store(place).get(one.made)) for one in result.outcomes}
        assert ways == before
        assert len(set(ways.values())) == 1  # two seeds that ended at steps of their own


def test_where_nothing_more_was_found_the_page_says_that_it_was_looked_for():
    taken = {
        "delta": "a",
        "task": "t",
        "metric": "accuracy",
        "method": "lora",
        "seed": 0,
        "flag": "",
        "step": "keep",
        "score": 0.7,
        "old": 0.7,
        "direct": 0.7,
        "goal": 0.69,
        "reason": "back",
        "seconds": 1.0,
        "made": "b",
    }
    seen = {"probe": "a", "more": ""}
    lines = [{**taken, "headroom": seen}, {**taken, "headroom": {**seen, "probe": "c"}}, taken]
    assert "0 of 2 can do more on new than bring their old score back; to see that, 2 were tuned on." in (
        page("old", "new", 0.01, lines, 3.0)
    )
    assert "can do more" not in page("old", "new", 0.01, [taken], 3.0)


def test_the_command_tells_and_the_dry_run_counts_it(half, tiny_base, cli):
    store, near = half
    words = ("upgrade", store, "--from", tiny_base, "--to", near, "--task", f"things={task_file(store)}")
    asked, plain = [json.loads(cli(*words, "--dry-run", "--json", *more).out) for more in (("--headroom",), ())]
    training = [one["training_seconds"]["initialize"] for one in plain["deltas"]]
    added = (asked["at_most_seconds"] - asked["scoring_seconds"]) - (
        plain["at_most_seconds"] - plain["scoring_seconds"]
    )
    assert added == pytest.approx(training[0], abs=max(training) + 0.3)
    assert added > 0
    answer = cli(*words, "--headroom", "--quiet")
    assert answer.code == 0
    assert "2 of 2 can do more on near than bring their old score back; to see that, 1 was tuned on." in answer.out
    assert "tuned on for" in answer.out
    assert [row.split()[-2] for row in answer.out.splitlines() if row.startswith("things-lora") and " keep " in row]


@pytest.mark.slow
def test_processes_share_the_looking_and_mark_the_same(shelf, tiny_base, tmp_path):
    store, near = shelf
    alone, tasks = tmp_path / "alone", {"things": str(task_file(store))}
    shutil.copytree(store, alone)
    how = {"old": str(tiny_base), "new": near, "tasks": tasks, "tolerance": "2%", "headroom": True}
    results = [upgrade(store, **how, workers=2), upgrade(alone, **how)]
    assert all(one.headroom for one in results[0].outcomes)
    for one, other in zip(results[0].outcomes, results[1].outcomes, strict=True):
        assert {**one.headroom, "seconds": 0} == {**other.headroom, "seconds": 0}
    assert content(store) == content(alone)
