"""store.py: finding artefacts, and who was made from whom."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from anytune.errors import StoreError
from anytune.manifests import MANIFEST_NAME, TaskRecord, read_manifest
from anytune.store import Store
from tests.store.conftest import base_manifest, delta_manifest, parent, put, rewrite


def names(place: Path) -> list[str]:
    return sorted(os.listdir(place)) if place.exists() else []


# Finding


def test_every_filter_finds_what_it_names_and_nothing_else(store):
    wanted = put(
        store, delta_manifest("w", method="tune/full", seed=3, run="r1", tags={"arm": "fresh", "upgrade": "v1"})
    )
    put(store, delta_manifest("o", digit="b", method="lora", form="peft", task={"name": "foldoc"}, tags={"arm": "x"}))
    put(store, base_manifest())
    for filters in (
        {"task": "hpo"},
        {"base": "a" * 8, "kind": "delta"},
        {"base": wanted.manifest.base, "kind": "delta"},
        {"method": "tune/full"},
        {"method": "full"},
        {"seed": 3},
        {"tags": {"arm": "fresh"}},
        {"tags": {"arm": "fresh", "upgrade": "v1"}},
        {"run": "r1"},
        {"form": "full"},
    ):
        assert [entry.name for entry in store.find(**filters)] == ["w"], filters
    for filters in ({"task": "hp"}, {"base": "aaa"}, {"method": "tune/lora"}, {"seed": 4}, {"tags": {"arm": "v1"}}):
        assert "w" not in [entry.name for entry in store.find(**filters)], filters
    assert [entry.name for entry in store.find("base")] == ["v0"]
    assert store.find(base="") == store.find("neither") == []


def test_artefacts_come_oldest_first_then_by_name(store):
    for name, created in (("b", "2026-01-02"), ("c", "2026-01-01"), ("a", "2026-01-02")):
        put(store, delta_manifest(name, created=created))
    assert [entry.name for entry in store.find()] == ["c", "a", "b"]


def test_the_best_is_the_highest_score_or_the_lowest_error_and_the_earliest_of_equals(store):
    for index, (score, mse) in enumerate([(0.5, 3.0), (0.9, 2.0), (0.9, 1.0), (None, None)]):
        entry = put(store, delta_manifest(f"d{index}", score=score, created=f"2026-01-0{index + 1}"))
        store.update(entry, scores={"test": {"mse": mse}})
    entries = store.find()
    assert store.best(entries).name == "d1"
    assert store.best(entries, "test", "mse").name == "d2"


def test_the_best_of_nothing_or_of_several_metrics_is_an_error(store):
    put(store, delta_manifest("one"))
    put(store, delta_manifest("two", task={"name": "sts", "metric": "pearson"}))
    with pytest.raises(StoreError, match="accuracy, pearson"):
        store.best(store.find())
    with pytest.raises(StoreError, match="Known scores: validation/accuracy"):
        store.best(store.find(task="hpo"), "test")
    with pytest.raises(StoreError, match="none of 0"):
        store.best([])


def test_an_artefact_is_got_by_folder_name_name_id_prefix_and_path(store, tmp_path):
    entry = put(store, delta_manifest("my name"))
    put(store, delta_manifest("other"))
    for reference in (entry.reference, "my-name", "my name", entry.id, entry.id[:6], entry.id[:6].upper()):
        assert store.get(reference).folder == entry.folder, reference
    outside = shutil.copytree(entry.folder, tmp_path / "outside")
    assert store.get(str(outside)).folder == outside
    assert store.get(outside).id == entry.id


def test_an_ambiguous_reference_lists_what_to_type(store):
    entries = [put(store, delta_manifest("same", seed=seed)) for seed in (0, 1)]
    with pytest.raises(StoreError, match="means 2 artefacts") as caught:
        store.get("same")
    assert all(entry.reference in caught.value.what for entry in entries)
    assert store.get(caught.value.fix).name == "same"


def test_a_missing_reference_suggests_the_near_name(store):
    put(store, delta_manifest("hpo-full"))
    with pytest.raises(StoreError, match="no artefact 'hpo-ful'") as caught:
        store.get("hpo-ful")
    assert "hpo-full" in caught.value.fix
    with pytest.raises(StoreError, match="at least 4 digits"):
        store.get("abc")
    for nothing in ("", " ", "x" * 5000, "a\0b"):
        with pytest.raises(StoreError, match="no artefact '"):
            store.get(nothing)


def test_an_empty_store_says_that_it_is_empty(store):
    with pytest.raises(StoreError, match="the store is empty"):
        store.get("anything")


def test_a_folder_without_a_manifest_is_no_artefact(store, tmp_path):
    with pytest.raises(StoreError, match="store import"):
        store.get(tmp_path)


def test_damaged_artefacts_are_problems_and_never_fatal(store):
    whole = put(store, delta_manifest("whole"))
    deltas = whole.folder.parent
    for name, text in (("cut", '{"kind": "del'), ("list", "[]"), ("bytes", "\udcff")):
        (deltas / name).mkdir()
        (deltas / name / MANIFEST_NAME).write_bytes(text.encode("utf-8", "surrogateescape"))
    (deltas / "bare").mkdir()
    (deltas / "stray.txt").write_text("not a folder")
    lacking = put(store, delta_manifest("lacking"))
    (lacking.folder / "weights.bin").unlink()
    shutil.copytree(whole.folder, deltas / "zcopy")
    assert [entry.name for entry in store.find()] == ["lacking", "whole"]
    problems = {folder.name: message for folder, message in store.problems()}
    assert sorted(problems) == sorted(["bare", "bytes", "cut", "list", lacking.reference, "zcopy"])
    assert problems[lacking.reference] == "missing weights.bin"
    assert problems["zcopy"] == f"a copy of {whole.reference}"


def test_a_copied_store_holds_the_same(store, tmp_path):
    base = put(store, base_manifest())
    put(store, delta_manifest(parents=[parent(base)]))
    copy = Store(shutil.copytree(store.folder, tmp_path / "copy"))
    assert [entry.id for entry in copy.find()] == [entry.id for entry in store.find()]
    assert copy.base_of(copy.find("delta")[0].manifest) == copy.folder / "bases" / base.reference


def test_five_hundred_artefacts_are_listed_within_a_second(store):
    entry = put(store, delta_manifest("d"))
    for index in range(500):
        manifest = entry.manifest.model_copy(update={"id": f"{index:064x}"})
        folder = entry.folder.parent / f"d{index}"
        folder.mkdir()
        (folder / MANIFEST_NAME).write_text(manifest.model_dump_json())
    begin = time.process_time()
    assert len(store.find()) == 501
    assert time.process_time() - begin < 1.0


# Relations


def test_the_base_is_found_by_its_backbone_whatever_its_name(store):
    put(store, base_manifest("other", "b"))
    base = put(store, base_manifest("v0", "a"))
    assert store.base_of(delta_manifest(digit="a")) == base.folder
    assert store.base_of(delta_manifest(digit="c")) is None
    assert store.base_of(delta_manifest(digit="")) is None


def test_of_bases_with_one_backbone_the_named_parent_is_taken_else_the_most_alike(store):
    first = put(store, base_manifest("first", created="2026-01-01"))
    second_manifest = base_manifest("second", created="2026-01-02")
    second_manifest.base.vocabulary = "words"
    second = put(store, second_manifest)
    plain = delta_manifest()
    assert store.base_of(plain) == first.folder
    alike = delta_manifest()
    alike.base.vocabulary = "words"
    assert store.base_of(alike) == second.folder
    assert store.base_of(delta_manifest(parents=[parent(second)])) == second.folder


def test_lineage_goes_all_the_way_up_nearest_first(store):
    v0 = put(store, base_manifest("v0", "a"))
    v1 = put(store, base_manifest("v1", "b", parents=[parent(v0)]))
    old = put(store, delta_manifest("old", "a"))  # its base is known by content alone
    new = put(store, delta_manifest("new", "b", parents=[parent(v1), parent(old)]))
    assert [entry.name for entry in store.lineage(new)] == ["v1", "old", "v0"]
    assert [entry.name for entry in store.parents(old)] == ["v0"]
    assert sorted(entry.name for entry in store.children(v0)) == ["old", "v1"]
    assert store.lineage(v0) == store.children(new) == []


def test_a_cycle_in_edited_manifests_ends(store):
    one, two = put(store, base_manifest("one", "a")), put(store, base_manifest("two", "b"))
    rewrite(one, parents=[parent(two), parent(one)])
    rewrite(two, parents=[parent(one)])
    assert [entry.name for entry in store.lineage(store.get("one"))] == ["two"]
    assert [entry.name for entry in store.children(store.get("one"))] == ["two"]


def test_deltas_are_found_by_their_score_and_errors_count_the_other_way(store):
    put(store, base_manifest())
    good = put(store, delta_manifest("good", score=0.9), b"good")
    put(store, delta_manifest("poor", score=0.4), b"poor")
    small = delta_manifest("small", score=0.3, task=TaskRecord(name="price", kind="regression", metric="mse"))
    small.scores = {"validation": {"mse": 0.3}}
    error = put(store, small, b"small")
    assert {entry.name for entry in store.find("delta", score=0.8)} == {good.name, error.name}
    assert [entry.name for entry in store.find("delta", task="price", score=0.2)] == []
    assert store.find("base", score=0.1) == []


def test_a_search_by_run_reads_the_manifest_of_that_run_alone(store, monkeypatch):
    """Thousands of runs lie in a store, and every run asks first whether it has been made before."""
    for run in ("a1", "b2", "a1b2", 'odd "one"'):
        store.add(delta_manifest(run=run, form="scores"), lambda folder: None)
    (broken := store.folder / "deltas" / "broken").mkdir()
    (broken / "anytune.json").write_text('{"run": "b2"')
    read = []
    real = read_manifest
    monkeypatch.setattr("anytune.store.store.read_manifest", lambda folder: read.append(folder) or real(folder))
    for run in ("a1", "b2", "a1b2", 'odd "one"'):
        assert [entry.manifest.run for entry in store.find("delta", run=run)] == [run]
    assert len(read) == 1 + 2 + 1 + 5  # the damaged one is looked at where it may be meant
    assert store.find(run="c3") == []
    assert len(read) == 9
