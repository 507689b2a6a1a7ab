"""A shelf of deltas upgraded: what is taken and why, and what becomes of interruptions and of bad deltas."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import anytune
from anytune.errors import SettingsError, StoreError
from anytune.jobs import upgrade_runs
from anytune.jobs.stored_sample import read_sample
from anytune.jobs.upgrade import SPENT_NAME, _spent, upgrade
from anytune.jobs.upgrade_choices import store_choice
from anytune.manifests import SAMPLE_NAME
from anytune.store import Store
from tests.conftest import tiny_rows, write_rows

TRAINING = {"steps": 100, "batch_size": 16, "learning_rate": 1e-2, "max_length": 16, "precision": "fp32"}


@pytest.fixture(scope="module")
def things(tmp_path_factory) -> Path:
    """Enough rows for 40 held-out ones."""
    return write_rows(tmp_path_factory.mktemp("rows") / "things.csv", tiny_rows(400))


@pytest.fixture(scope="module")
def made(tiny_base, things, tiny_domain, tmp_path_factory):
    """A store with a full difference, a LoRA and a prompt, and a base pre-trained on a little."""
    folder = tmp_path_factory.mktemp("made") / "store"
    methods = {"full": 2e-3, "lora": 2e-3, "prompt_tuning": 1e-2}
    for name, rate in methods.items():
        method = {"name": "lora", "r": 8, "targets": "all-linear"} if name == "lora" else name
        [one] = anytune.tune(
            tiny_base, things, store=folder, method=method, training={**TRAINING, "learning_rate": rate}
        )
        # a random base answers no prompt; of the others, bad ones would show nothing
        assert one.score() > 0.6 or name == "prompt_tuning"
    [near] = anytune.pretrain(
        tiny_base, tiny_domain, store=folder, names=["near"],
        training={"steps": 2, "batch_size": 4, "block_size": 16, "learning_rate": 1e-4, "precision": "fp32"},
    )  # fmt: skip
    return folder, near


@pytest.fixture
def shelf(made, tmp_path) -> tuple[Path, str]:
    folder, near = made
    shutil.copytree(folder, tmp_path / "store")
    return tmp_path / "store", near.reference


def lines(result):
    return [json.loads(line) for line in result.journal.read_text().splitlines()]


def content(store: Path) -> dict[str, dict[str, str]]:
    """Name of each upgraded delta -> hashes of its files, which are its bits."""
    return {entry.reference: entry.manifest.files for entry in Store(store).find("delta")
            if entry.manifest.decision is not None}  # fmt: skip


def test_a_small_upgrade_keeps_everything_as_it_is(shelf, tiny_base):
    store, near = shelf
    result = upgrade(store, old=tiny_base, new=near, tolerance="2%")
    assert [one.decision.step for one in result.outcomes] == ["keep"] * 3
    assert not result.problems
    for one in result.outcomes:
        entry = Store(store).get(one.made)
        record = entry.manifest.decision
        assert record["step"] == "keep"
        assert record["flag"] == ""
        assert record["score"] >= record["goal"] == pytest.approx(record["old"] - 0.02)
        assert entry.manifest.base.backbone == Store(store).get(near).manifest.base.backbone
        assert entry.manifest.parents[-1].name == Store(store).get(one.delta).name
        assert "test" not in entry.manifest.scores  # nothing but the held-out rows was read
        assert (entry.folder / SAMPLE_NAME).is_file()
        assert read_sample(entry) is not None
        anytune.load(entry, store=store)  # the probe and the files agree
        direct = anytune.recycle(one.delta, near, store=store, method="direct", old_base=tiny_base,
                                 task=_task_file(store), keep="weights")[0]  # fmt: skip
        weights = "delta.safetensors" if entry.manifest.form == "full" else "adapter_model.safetensors"
        assert entry.manifest.files[weights] == direct.manifest.files[weights]
    found = lines(result)
    assert [line["step"] for line in found] == ["keep"] * 3
    assert all(line["reason"] and line["seconds"] > 0 for line in found)
    assert "3 of 3 deltas" in result.page.read_text()
    assert not list((store / ".work").iterdir())


def _task_file(store: Path) -> Path:
    return store.parent / "things.csv"


@pytest.fixture(autouse=True)
def _beside(tmp_path, things):
    shutil.copyfile(things, tmp_path / "things.csv")


@pytest.fixture
def far(shelf, other_base, tmp_path):
    """A shelf whose new base has nothing in common with the old one, so that weights do not carry over."""
    return shelf[0], other_base


def test_where_the_weights_do_not_carry_over_deltas_climb_and_each_step_is_told(far, tiny_base, tmp_path):
    store, new = far
    result = upgrade(store, old=tiny_base, new=new, tolerance="1%", tasks={"things": _task_file(store)})
    for one in result.outcomes:
        tried = [attempt.step for attempt in one.attempts]
        scaling = ["scale"] if one.method != "prompt_tuning" else []
        full = ["old", "keep", *scaling, "initialize", "combined", "retune"]
        assert tried == full[: len(tried)], (one.method, one.attempts)
        taken = one.decision
        assert taken.step in tried
        best = max(attempt.score for attempt in one.attempts[1:] if attempt.score is not None)
        assert taken.flag in ("", "short")
        assert taken.score >= taken.goal - 1e-9 if taken.flag == "" else taken.score == best
        entry = Store(store).get(one.made)
        assert entry.manifest.decision["attempts"] == [attempt.record() for attempt in one.attempts]
        assert entry.score("validation") == pytest.approx(taken.score)
        anytune.load(entry, store=store, base=new)
        if taken.step in ("initialize", "combined", "retune"):
            settings = next(attempt.settings for attempt in one.attempts if attempt.step == taken.step)
            assert entry.manifest.steps == settings["steps"] <= settings["of"]
    assert any(len(one.attempts) > 3 for one in result.outcomes)


def test_an_upgrade_that_was_cut_goes_on_and_ends_in_the_same_bits(far, tiny_base, tmp_path, monkeypatch):
    store, new = far
    whole = tmp_path / "whole"
    shutil.copytree(store, whole)
    tasks = {"things": _task_file(store)}
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


def test_the_test_split_decides_nothing(far, tiny_base, tmp_path):
    store, new = far
    other = tmp_path / "other"
    shutil.copytree(store, other)
    task = anytune.load_task(_task_file(store))
    turned = [row.__class__(row.text, None, (row.label + 1) % 3) for row in task.test]
    results = [
        upgrade(place, old=tiny_base, new=new, tasks={"things": data}, steps=["keep", "initialize"])
        for place, data in ((store, task), (other, task.with_rows(test=turned)))
    ]
    decisions = [[(one.decision, [dict(attempt.scores) for attempt in one.attempts]) for one in result.outcomes]
                 for result in results]  # fmt: skip
    assert decisions[0] == decisions[1]
    assert content(store) == content(other)
    assert any(one.decision.step == "initialize" for one in results[0].outcomes)
    for one in results[0].outcomes:  # nor is it read at all
        entry = Store(store).get(one.made)
        assert "test" not in entry.manifest.scores
        assert not (entry.folder / "predictions.jsonl").exists()
        if one.decision.step == "initialize":
            assert "test" not in entry.manifest.task.counts


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


def test_a_budget_that_ends_leaves_the_best_so_far_and_a_larger_one_goes_on(far, tiny_base, monkeypatch):
    store, new = far
    tasks = {"things": _task_file(store)}
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


def test_without_training_rows_only_steps_that_need_no_label_are_taken(far, tiny_base, tiny_domain):
    store, new = far
    bare = upgrade(store, old=tiny_base, new=new, tolerance=0)
    assert {one.flag for one in bare.outcomes} <= {"", "rows"}
    assert any(one.flag == "rows" for one in bare.outcomes)
    texts = upgrade(store, old=tiny_base, new=new, tolerance=0, unlabelled=tiny_domain)
    tried = [attempt for one in texts.outcomes for attempt in one.attempts if attempt.step == "distill"]
    assert tried
    assert all(attempt.problem is None for attempt in tried)
    for one in texts.outcomes:
        assert "test" not in Store(store).get(one.made).manifest.scores


def test_rows_that_decide_are_left_out_of_what_is_trained_on(shelf, tiny_base):
    from anytune.jobs.upgrade_shelf import Shelf

    store, near = shelf
    whole = Shelf(place=store, old=tiny_base, new=near, work=store / ".work" / "x", tolerance=0.01,
                  tasks={"things": {"source": str(_task_file(store)), "validation_fraction": 0.0}})  # fmt: skip
    entry = Store(store).find("delta")[0]
    sample = whole.sample(entry)
    task = whole.training_task(entry, sample)
    held = {row.text for row in sample.validation}
    assert held
    assert not held & {row.text for row in task.train}
    assert task.validation == sample.validation


def test_a_dry_run_tells_and_writes_nothing(shelf, tiny_base, cli):
    store, near = shelf
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    answer = cli("upgrade", store, "--from", tiny_base, "--to", near, "--dry-run", "--json",
                 "--task", f"things={_task_file(store)}")  # fmt: skip
    found = json.loads(answer.out)
    assert len(found["deltas"]) == 3
    assert all(one["state"] == "new" and one["rows"] > 0 and one["training"] for one in found["deltas"])
    assert found["at_most_seconds"] >= found["scoring_seconds"] > 0
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before


def test_the_command_prints_the_shelf(shelf, tiny_base, cli):
    store, near = shelf
    answer = cli("upgrade", store, "--from", tiny_base, "--to", near, "--tolerance", "2%", "--quiet")
    assert answer.code == 0
    assert "3 of 3 are within the tolerance (2 %) of their old score" in answer.out
    for words in (["--to", near], ["--from", tiny_base], ["--from", tiny_base, "--to", tiny_base],
                  ["--from", tiny_base, "--to", near, "--task", "things.csv"],
                  ["--from", tiny_base, "--to", near, "--step", "kept"],
                  ["--from", tiny_base, "--to", near, "--tolerance", "1"],
                  ["--from", tiny_base, "--to", near, "--unlabelled", "nowhere.txt"],
                  ["--from", tiny_base, "--to", near, "--task", f"thing={_task_file(store)}"],
                  ["--from", tiny_base, "--to", near, "--budget", "soon"]):  # fmt: skip
        wrong = cli("upgrade", store, *words)
        assert wrong.code == 2
        assert "try:" in wrong.err


def test_a_base_without_deltas_has_nothing_to_upgrade(shelf, tiny_base, other_base):
    store, near = shelf
    with pytest.raises(StoreError, match="holds no delta"):
        upgrade(store, old=other_base, new=near)
    with pytest.raises(SettingsError, match="open base"):
        upgrade(store, old=anytune.open_base(tiny_base), new=near, workers=2)


@pytest.mark.slow
def test_processes_share_the_deltas_and_give_the_same_bits(shelf, tiny_base, tmp_path):
    store, near = shelf
    alone = tmp_path / "alone"
    shutil.copytree(store, alone)
    tasks = {"things": str(_task_file(store))}
    shared = upgrade(store, old=str(tiny_base), new=near, tasks=tasks, workers=2, tolerance=0)
    single = upgrade(alone, old=str(tiny_base), new=near, tasks=tasks, tolerance=0)
    assert [one.decision for one in shared.outcomes] == [one.decision for one in single.outcomes]
    assert content(store) == content(alone)


def test_onto_a_base_of_another_shape_the_old_model_teaches(shelf, tiny_base, tmp_path):
    from transformers import BertConfig, BertForMaskedLM

    store, _ = shelf
    config = BertConfig(vocab_size=200, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
                        intermediate_size=32, max_position_embeddings=64, pad_token_id=0)  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        BertForMaskedLM(config).save_pretrained(tmp_path / "narrow")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny_base / file, tmp_path / "narrow" / file)
    full = next(entry for entry in Store(store).find("delta") if entry.manifest.form == "full")
    result = upgrade(store, old=tiny_base, new=tmp_path / "narrow", deltas=[full.reference],
                     tasks={"things": _task_file(store)}, steps=["keep", "distill"])  # fmt: skip
    [one] = result.outcomes
    assert not one.problem
    assert [attempt.step for attempt in one.attempts] == ["old", "keep", "distill"]
    assert "shape" in one.attempts[1].problem or "hidden" in one.attempts[1].problem
    assert one.decision.step == "distill"
    anytune.load(one.made, store=store, base=tmp_path / "narrow")


def full_of(store: Path) -> str:
    return next(entry.reference for entry in Store(store).find("delta") if entry.manifest.form == "full")


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
    [second] = upgrade(store, **options, tasks={"things": _task_file(store)}).outcomes
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
               "tasks": {"things": _task_file(store)}}  # fmt: skip

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
               "steps": ["keep", "initialize"], "tasks": {"things": _task_file(store)}}  # fmt: skip
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


def test_a_step_that_is_not_wanted_is_neither_tried_nor_taken(far, tiny_base):
    store, new = far
    full = full_of(store)
    [kept] = upgrade(store, old=tiny_base, new=new, deltas=[full], steps=["keep"]).outcomes
    assert [attempt.step for attempt in kept.attempts] == ["old", "keep"]
    assert kept.flag == "short"
    prompt = Store(store).find("delta", method="prompt_tuning")[0].reference
    both = upgrade(store, old=tiny_base, new=new, deltas=[prompt], steps=["keep"])
    assert [line["delta"] for line in lines(both)] == [full, prompt]  # a call about one leaves the other's line
    assert json.loads(json.dumps(kept.record())) == lines(both)[0]
    [none] = upgrade(store, old=tiny_base, new=new, deltas=[full], steps=["retune"], tolerance="100%").outcomes
    assert none.decision.step is None
    assert none.flag == "rows"
    assert none.made is None


def test_deltas_of_the_same_weights_with_another_tokenizer_are_another_bases(shelf, tiny_base):
    store, near = shelf
    full = full_of(store)
    path = store / "deltas" / full / "anytune.json"
    manifest = json.loads(path.read_text())
    manifest["base"]["vocabulary"] = "0" * 64
    path.write_text(json.dumps(manifest))
    result = upgrade(store, old=tiny_base, new=near, tolerance="2%")
    assert len(result.outcomes) == 2
    assert full not in [one.delta for one in result.outcomes]
    with pytest.raises(StoreError, match="another tokenizer"):
        upgrade(store, old=tiny_base, new=near, deltas=[full])


def test_texts_without_labels_are_read_without_the_rows_that_decide(shelf, tiny_base, tmp_path):
    from anytune.jobs.upgrade_shelf import Shelf

    store, near = shelf
    entry = Store(store).get(full_of(store))
    sample = read_sample(entry)
    held = [row.text for row in sample.validation]
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(["one of its own", held[0], held[1], "and another one"]))
    one = Shelf(place=store, old=tiny_base, new=near, work=store / ".work" / "x", tolerance=0.01, unlabelled=texts)
    found = one.texts_beside(sample)
    assert found
    assert not set(held) & set(found)


def test_what_is_told_holds_no_folder():
    told = upgrade_runs.without_folders
    assert told("cannot read /data.csv") == "cannot read data.csv"
    assert told("'/home/me/x/rows.csv' is empty") == "'rows.csv' is empty"
    assert told("cannot read C:\\rows\\mine.csv: no") == "cannot read mine.csv: no"
    assert told("see https://a.org/b/c, keep / scale, 3/4") == "see https://a.org/b/c, keep / scale, 3/4"


def test_a_call_that_was_killed_counts_until_it_last_wrote_something(tmp_path):
    assert _spent(tmp_path) == 0
    for content, seconds in (({"seconds": 5}, 5), ({"seconds": 5, "since": 1000.0}, 65), ({"seconds": "x"}, 0)):
        (tmp_path / SPENT_NAME).write_text(json.dumps(content))
        (tmp_path / "deltas").mkdir(exist_ok=True)
        (tmp_path / "deltas" / "a.json").write_text("{}")
        for path in tmp_path.rglob("*"):
            os.utime(path, (1060.0, 1060.0))
        assert _spent(tmp_path) == seconds
