from __future__ import annotations

import re
from pathlib import Path

from anytune.evaluate import Artefact, runs_of
from anytune.manifests import Manifest
from anytune.report.arms import looks
from anytune.report.lineage import lanes_of, lineage, nodes_of
from tests.report.stores import base, delta, demo_manifests, identity


def artefacts(manifests: list[Manifest]) -> list[Artefact]:
    return [Artefact(Path(manifest.name), manifest) for manifest in manifests]


def test_bases_are_ordered_parents_first_and_the_outside_base_is_known() -> None:
    found = artefacts(demo_manifests(seeds=1))
    nodes = nodes_of(found[::-1], runs_of(found))
    assert [(node.name, node.in_store, node.depth) for node in nodes] == [
        ("v0", False, 0), ("v1", True, 1), ("v2", True, 2),
    ]  # fmt: skip
    assert nodes[1].parent == nodes[0].key
    assert nodes[1].domains == (("biomedical", 412_000),)


def test_a_parent_known_only_by_name_or_by_its_artefact_id_is_found() -> None:
    v1 = base("v1", "v0", "law", {}, "2026-01-01T00:00:00+00:00")
    v2 = base("v2", "v1", "news", {}, "2026-01-02T00:00:00+00:00")
    v2.parents[0].id = v1.id
    v1.parents[0].id = ""
    nodes = nodes_of(artefacts([v1, v2]), [])
    assert [node.name for node in nodes] == ["v0", "v1", "v2"]
    assert nodes[2].parent == identity("v1").backbone


def test_lanes_count_runs_by_arm_and_what_was_recycled() -> None:
    lanes = lanes_of(runs_of(artefacts(demo_manifests())))
    assert [lane.label for lane in lanes] == ["foldoc", "hpo", "rotten-tomatoes"]
    v0, v1 = identity("v0").backbone, identity("v1").backbone
    assert lanes[0].counts[v1] == {"direct": 3, "initialize": 3, "fresh": 3, "fresh, whole budget": 3}
    assert lanes[0].arrows[(v0, v1)] == 6


def test_many_tasks_share_a_last_lane_that_counts_all_of_them() -> None:
    runs = runs_of(artefacts([delta(f"task {n}", f"v{n % 6}", "fresh", 0) for n in range(300)]))
    lanes = lanes_of(runs)
    assert len(lanes) == 8
    assert lanes[-1].label == "293 more tasks"
    assert sum(sum(counts.values()) for lane in lanes for counts in lane.counts.values()) == 300


def test_the_drawing_keeps_text_inside_for_one_to_six_bases_and_a_loop_of_parents_ends() -> None:
    for number in (1, 3, 6):
        made = [
            base(f"v{n}", f"v{n - 1}", "law " * 20, {}, f"2026-01-0{n}T00:00:00+00:00") for n in range(1, number + 1)
        ]
        found = artefacts(made)
        drawn = lineage(found, [], looks([]))
        assert drawn is not None
        width = float(re.search(r'viewBox="0 0 ([\d.]+)', drawn)[1])  # type: ignore[index]
        assert all(0 <= float(x) <= width for x in re.findall(r'<(?:text|rect) x="([\d.]+)"', drawn))
    loop = (
        base("a", "b", "law", {}, "2026-01-01T00:00:00+00:00"),
        base("b", "a", "law", {}, "2026-01-02T00:00:00+00:00"),
    )
    assert lineage(artefacts(list(loop)), [], looks([])) is not None
    assert lineage([], [], looks([])) is None
