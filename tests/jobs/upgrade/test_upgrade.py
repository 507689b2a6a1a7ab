"""A shelf of deltas upgraded: what is taken and why."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

import anytune
from anytune.errors import SettingsError, StoreError
from anytune.jobs import upgrade_runs
from anytune.jobs.stored_sample import read_sample
from anytune.jobs.upgrade import upgrade
from anytune.manifests import SAMPLE_NAME
from anytune.store import Store
from tests.jobs.upgrade.shelves import content, full_of, lines, task_file


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
                                 task=task_file(store), keep="weights")[0]  # fmt: skip
        weights = "delta.safetensors" if entry.manifest.form == "full" else "adapter_model.safetensors"
        assert entry.manifest.files[weights] == direct.manifest.files[weights]
    found = lines(result)
    assert [line["step"] for line in found] == ["keep"] * 3
    assert all(line["reason"] and line["seconds"] > 0 for line in found)
    assert "3 of 3 deltas" in result.page.read_text()
    assert not list((store / ".work").iterdir())


def test_where_the_weights_do_not_carry_over_deltas_climb_and_each_step_is_told(far, tiny_base, tmp_path):
    store, new = far
    result = upgrade(store, old=tiny_base, new=new, tolerance="1%", tasks={"things": task_file(store)})
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


def test_the_test_split_decides_nothing(far, tiny_base, tmp_path):
    store, new = far
    other = tmp_path / "other"
    shutil.copytree(store, other)
    task = anytune.load_task(task_file(store))
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
                  tasks={"things": {"source": str(task_file(store)), "validation_fraction": 0.0}})  # fmt: skip
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
                 "--task", f"things={task_file(store)}")  # fmt: skip
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
                  ["--from", tiny_base, "--to", near, "--task", f"thing={task_file(store)}"],
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
    tasks = {"things": str(task_file(store))}
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
                     tasks={"things": task_file(store)}, steps=["keep", "distill"])  # fmt: skip
    [one] = result.outcomes
    assert not one.problem
    assert [attempt.step for attempt in one.attempts] == ["old", "keep", "distill"]
    assert "shape" in one.attempts[1].problem or "hidden" in one.attempts[1].problem
    assert one.decision.step == "distill"
    anytune.load(one.made, store=store, base=tmp_path / "narrow")


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
