"""describe.py: rows and trees."""

from __future__ import annotations

import json

from anytune.manifests import MANIFEST_NAME, DomainRecord, Parent
from anytune.store.describe import lineage_tree, rows
from tests.store.conftest import base_manifest, delta_manifest, parent, put


def test_a_row_says_what_an_artefact_is(store):
    entry = put(store, delta_manifest("hpo-full", seed=3, created="2026-01-01"), b"12345678")
    size = 8 + (entry.folder / MANIFEST_NAME).stat().st_size
    assert rows([entry]) == [
        {
            "name": "hpo-full",
            "id": entry.id[:12],
            "kind": "delta",
            "task": "hpo",
            "base": "v0 (aaaaaaaaaa)",
            "method": "full",
            "form": "full",
            "seed": 3,
            "metric": "accuracy",
            "score": 0.5,
            "bytes": size,
            "created": "2026-01-01",
            "reference": entry.reference,
        }
    ]
    assert json.loads(json.dumps(rows([entry]))) == rows([entry])
    assert rows([entry], split="test")[0]["score"] is None


def test_a_base_has_a_row_without_task_and_score(store):
    row = rows([put(store, base_manifest())])[0]
    assert (row["task"], row["method"], row["metric"], row["score"]) == (None, None, None, None)


def test_a_tree_shows_every_generation_and_what_the_store_lacks(store):
    v0 = put(store, base_manifest("v0", "a"))
    v1 = put(store, base_manifest("v1", "b", parents=[parent(v0)], domains=[DomainRecord(name="law")]))
    old = put(store, delta_manifest("old", "a", parents=[Parent(id="f" * 64, role="delta", name="gone")]))
    new = put(store, delta_manifest("new", "b", method="initialize", parents=[parent(v1), parent(old)]))
    assert lineage_tree(store, new).splitlines() == [
        f"{new.reference}   delta of hpo by initialize",
        f"  base: {v1.reference}   base after law",
        f"    base: {v0.reference}   base",
        f"  delta: {old.reference}   delta of hpo by full",
        "    delta: gone (ffffffffffff), not in this store",
        f"    base: {v0.reference}   base (see above)",
    ]


def test_a_delta_whose_base_is_elsewhere_says_so(store):
    entry = put(store, delta_manifest())
    assert lineage_tree(store, entry).splitlines()[1] == "  base: v0 (aaaaaaaaaa), not in this store"


def test_a_cycle_ends_in_the_tree(store):
    one = put(store, base_manifest("one", "a"))
    two = put(store, base_manifest("two", "b", parents=[parent(one)]))
    content = json.loads((one.folder / MANIFEST_NAME).read_text())
    content["parents"] = [parent(two).model_dump()]
    (one.folder / MANIFEST_NAME).write_text(json.dumps(content))
    assert lineage_tree(store, store.get("one")).splitlines()[-1] == f"    base: {one.reference}   base (see above)"
