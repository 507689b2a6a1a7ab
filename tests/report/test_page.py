from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from anytune.errors import StoreError
from anytune.evaluate import compare, runs_of
from anytune.manifests import MANIFEST_NAME, Manifest
from anytune.report import build, page, read_store
from anytune.report.words import decimal, mean_sd, signed
from tests.report.stores import base, delta, demo_manifests, write_store

VOID = {"meta", "link", "br", "input", "img", "hr"}


class Reader(HTMLParser):
    """Checks that every element is closed in order, and collects elements and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> out of order"

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def made(folder: Path, manifests: list[Manifest]) -> str:
    return build(write_store(folder / "store", manifests), folder / "out.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("demo")
    return folder, made(folder, demo_manifests())


def test_the_page_is_well_formed_and_ids_are_unique(demo: tuple[Path, str]) -> None:
    reader = read(demo[1])
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    controlled = {attributes["aria-controls"] for _, attributes in reader.elements if "aria-controls" in attributes}
    assert controlled <= set(ids)
    assert [tag for tag, _ in reader.elements].count("h1") == 1


def test_nothing_is_loaded_from_anywhere(demo: tuple[Path, str]) -> None:
    text = demo[1]
    for tag, attributes in read(text).elements:
        for key in ("src", "href", "action", "data", "xlink:href"):
            value = attributes.get(key)
            assert value is None or value.startswith("#") or value == "data:,", (tag, key, value)
    assert not re.search(r"https?://|@import|url\(|@font-face", text)
    assert "default-src 'none'" in text


def test_the_table_shows_the_computed_numbers(demo: tuple[Path, str]) -> None:
    folder, text = demo
    rows = compare(runs_of(read_store(folder / "store")[0]))
    groups = re.findall(r'<tbody class="group".*?</tbody>', text, re.S)
    assert len(groups) == len(rows) == 27
    for row, group in zip(rows, groups, strict=True):
        cells = [
            (html.unescape(value), html.unescape(shown))
            for value, shown in re.findall(r'<td class="number "[^>]*data-value="([^"]*)"[^>]*>([^<]*)', group)
        ]
        assert row.test is not None
        assert cells[0] == (f"{row.test.mean:.6g}", mean_sd(row.test))
        for cell, gain in zip(cells[1:4], (row.over_fresh, row.over_direct, row.over_outdated), strict=True):
            assert cell == (("", "–") if gain is None else (f"{gain.mean:.6g}", signed(gain.mean)))
        assert cells[4][1] == ("not reached" if row.steps_to_target is None else decimal(row.steps_to_target, 0))
        assert cells[6][0] == f"{row.total_steps:.6g}"
        for run in row.runs:
            assert run.test is not None
            assert f"<dd>{decimal(100 * run.test, 2)}</dd>" in group
            assert run.manifest.name in group


def test_the_curves_hold_the_computed_points_and_end_values(demo: tuple[Path, str]) -> None:
    folder, text = demo
    row = next(
        row for row in compare(runs_of(read_store(folder / "store")[0]))
        if (row.task, row.base, row.arm) == ("hpo", "v1", "initialize")
    )  # fmt: skip
    charts = {
        re.search(r"<h4>(.*?)</h4>", figure)[1]: figure  # type: ignore[index]
        for figure in re.findall(r'<figure class="card chart".*?</figure>', text, re.S)
    }
    assert len(charts) == 6
    figure = charts["hpo on v1"]
    data = json.loads(html.unescape(re.search(r'data-chart="([^"]*)"', figure)[1]))  # type: ignore[index]
    direct, initialize = data["steps"]["series"][:2]
    assert len(direct) == 1
    ends = [100 * run.curve.scores[-1] for run in row.runs if run.curve]
    assert initialize[-1] == pytest.approx([400, sum(ends) / 3, min(ends), max(ends)], abs=0.006)
    assert f">{decimal(sum(ends) / 3)}</span>" in figure
    assert f"{row.steps_to_target:.0f} steps</text>" in figure


def test_every_run_has_its_recipe_and_the_foot_says_what_was_measured(demo: tuple[Path, str]) -> None:
    text = demo[1]
    assert text.count("<summary>Recipe</summary>") == 81
    assert "anytune run recipe.yaml" in text
    assert "job: tune\nbase: v0\nseed: 0\nsteps: 400\ntask: sample:hpo</code>" in text
    words = " ".join(read(text).text)
    assert "selected on validation and scored on test" in words
    assert "torch 2.13.0" in words
    assert "fp32" in words


def test_names_in_manifests_cannot_become_markup_or_script(tmp_path: Path) -> None:
    evil = '</script><script>alert(1)</script><img src=x onerror="alert(2)">{{ 7919*7919 }}\'"'
    manifests = [base(evil, evil, evil, {evil: (3.0, 2.0)}, "2026-01-01T00:00:00+00:00")]
    for seed in range(2):
        fresh = delta(evil, evil, "fresh", seed)
        other = delta(evil, evil, evil, seed, outdated=fresh.id)
        other.recipe = {"task": evil, evil: [evil]}
        other.environment.versions = {evil: evil}
        manifests += [fresh, other]
    text = made(tmp_path, manifests)
    reader = read(text)
    assert [tag for tag, _ in reader.elements].count("script") == 1
    assert all(tag not in {"img", "iframe", "object"} for tag, _ in reader.elements)
    assert not [key for _, attributes in reader.elements for key in attributes if key.startswith("on")]
    assert "{{ 7919*7919 }}" in text
    assert str(7919 * 7919) not in text


def test_the_script_is_the_one_that_the_page_allows(demo: tuple[Path, str]) -> None:
    import base64
    import hashlib

    script = re.search(r"<script>(.*)</script>", demo[1], re.S)[1]  # type: ignore[index]
    allowed = re.search(r"sha256-([^']+)", html.unescape(demo[1]))[1]  # type: ignore[index]
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() == allowed


def test_no_path_of_the_machine_stands_on_the_page(demo: tuple[Path, str]) -> None:
    assert str(demo[0]) not in demo[1]


def test_a_missing_store_is_a_clear_error_and_an_empty_one_a_page_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no store at"):
        build(tmp_path / "none", tmp_path / "out.html")
    assert not (tmp_path / "out.html").exists()
    text = made(tmp_path, [])
    assert "no tuned deltas yet" in text
    assert "anytune demo" in text
    read(text)


@pytest.mark.parametrize("manifests", [
    [delta("hpo", "v0", "fresh", 0)],
    [delta("hpo", "v0", "direct", 0, steps=0)],
    [base("v1", "v0", "law", {"law": (3.0, 2.0)}, "2026-01-01T00:00:00+00:00")],
    demo_manifests(seeds=1),
    [delta(f"task {n:03d}", f"v{n % 6}", "fresh", 0) for n in range(300)],
], ids=["one delta", "one without training", "bases only", "one seed", "300 deltas"])  # fmt: skip
def test_any_store_makes_a_page(tmp_path: Path, manifests: list[Manifest]) -> None:
    text = made(tmp_path, manifests)
    read(text)
    assert "nan" not in re.sub(r"<script>.*", "", text, flags=re.S).lower().replace("finan", "").split()


def test_missing_scores_and_none_scores_are_shown_as_a_dash(tmp_path: Path) -> None:
    lost, none = delta("hpo", "v1", "fresh", 0), delta("hpo", "v1", "initialize", 0, outdated="gone")
    lost.scores, lost.curve, lost.recipe, lost.task = {}, [], {}, lost.task
    none.scores = {"test": {"accuracy": None}}
    nothing = delta("hpo", "v1", "direct", 1, steps=0)
    nothing.task, nothing.methods, nothing.scores = None, [], {}
    text = made(tmp_path, [lost, none, nothing])
    read(text)
    assert "no recipe was recorded" in text
    assert "(no task)" in text
    assert "None" not in re.sub(r"<script>.*", "", text, flags=re.S)


def test_a_damaged_manifest_is_named_and_the_rest_still_shown(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", demo_manifests(seeds=1))
    next((store / "deltas").iterdir()).joinpath(MANIFEST_NAME).write_text("{ broken")
    text = build(store, tmp_path / "out.html").read_text(encoding="utf-8")
    assert "Left out:" in text
    assert str(tmp_path) not in text


def test_the_same_manifests_give_the_same_page(demo: tuple[Path, str]) -> None:
    artefacts, problems = read_store(demo[0] / "store")
    assert page(artefacts, problems, name="store") == page(artefacts[::-1], problems, name="store") == demo[1]


def test_a_folder_as_out_takes_a_report_html(tmp_path: Path) -> None:
    assert build(write_store(tmp_path / "store", []), tmp_path) == tmp_path / "report.html"
