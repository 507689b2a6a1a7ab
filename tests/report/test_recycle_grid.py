"""Figures and the panel of a grid of recycling, from hand-made lines."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from anytune.evaluate.recycle_arms import NO_DELTA, NOTHING, sections
from anytune.evaluate.recycle_points import flips_against_gain, landings, learning
from anytune.jobs.recipes import load_recipe
from anytune.report.anytime_charts import LEFT, RIGHT, WIDTH
from anytune.report.arms import KNOWN
from anytune.report.page import page
from anytune.report.recycle_figures import _by_distance, views, write_recycle_figures
from anytune.report.recycle_grid_charts import by_distance, flips_chart, grid_looks, learning_curves
from anytune.report.recycle_grid_panel import CASES_SHOWN, RecycleGrid, panel
from tests.evaluate.test_recycle_arms import GOLD, TASKS, grid
from tests.evaluate.test_recycle_arms import path as walked

ARMS = {"direct": -0.02, "initialize": 0.05, "distill": 0.01, "combined": 0.06, "<$mean$>": -0.01}
FORMS = ("full", "lora")
UPGRADES = [{"upgrade": name, "after": None, "domains": ["d"], "tokens": 10, "seconds": 1.0, "same_base": False,
             "distance": {"relative": far, "cosine": 0.9}, "steps": 1, "losses": {}}
            for name, far in (("v1", 0.2), ("v2", 0.1))]  # fmt: skip
GOLDS = [{"task": task, "kind": "classification", "gold": GOLD[task]} for task in TASKS]


def lines_of(forms=FORMS):
    return [{**one, "form": form} for form in forms for one in grid(ARMS)]


@pytest.fixture(scope="module")
def lines():
    return lines_of()


def marks(drawn) -> int:
    return str(drawn).count('class="mark')


def test_arms_of_the_page_keep_their_look_and_all_others_differ(lines):
    arms = sections(lines)[0].arms
    looks = grid_looks([*arms, *(f"arm {place}" for place in range(8))])
    assert {arm: looks[arm] for arm in ("fresh", "initialize", "direct")} == {
        arm: KNOWN[arm] for arm in ("fresh", "initialize", "direct")
    }
    assert len({(look.slot, look.shape) for look in looks.values()}) == len(looks)
    assert len({looks[arm].slot for arm in ("fresh", "initialize", "direct", "distill", "combined")}) == 5
    assert set(grid_looks([str(place) for place in range(60)])) == {str(place) for place in range(60)}


def test_pictures_hold_a_mark_for_every_arm_and_upgrade(lines):
    section = sections(lines)[0]
    looks, landed = grid_looks(section.arms), landings(section, {"v1": 0.2, "v2": 0.1})
    scores, gains = (by_distance(landed, looks, "fresh", gains=one) for one in (False, True))
    assert marks(scores) == 2 * len(section.arms)
    assert marks(gains) == 2 * (len(section.arms) - 2), "neither the control nor always one answer has a gain"
    assert "&lt;$mean$&gt; on v1 (distance 0.2)" in str(scores)
    assert NO_DELTA in str(scores)
    assert NO_DELTA not in str(gains)
    line = r'd="M([^"]+)" class="line thin arm-[0-9]"( stroke-dasharray="[^"]+")?></path>'
    lines_drawn = re.findall(line, str(scores))
    assert [one.count("L") for one, _ in lines_drawn] == [1] * len(section.arms), "a line from upgrade to upgrade"
    assert by_distance([], looks, "fresh", gains=False) is None
    alone = str(by_distance(landings(section, {"v1": 0.2}), looks, "fresh", gains=True))
    assert "nan" not in alone
    assert marks(alone) == len(section.arms) - 2
    assert "nan" not in str(by_distance(landings(section, {"v1": 0.0}), looks, "fresh", gains=True))


def test_curves_and_flips_are_drawn_for_the_arms_that_have_them(lines):
    section = sections(lines)[0]
    looks = grid_looks(section.arms)
    curves = learning_curves(learning(section), looks)
    assert "fresh, initialize, distill, combined" in str(curves)
    assert marks(curves) == 4 * 3
    assert str(curves).count('class="band') == 4
    flips = flips_against_gain(section, GOLD)
    assert marks(flips_chart(flips, looks, "fresh")) == len(section.arms) - 1
    assert learning_curves([], looks) is flips_chart([], looks, "fresh") is None


def test_figures_are_written_with_their_numbers(tmp_path, lines):
    pytest.importorskip("matplotlib")
    written = write_recycle_figures(lines, tmp_path, UPGRADES, GOLDS)
    names = ["score-against-distance", "gain-against-distance", "learning-curves", "flips-against-gain"]
    assert [path.name for path in written] == [f"{name}.{kind}" for name in names for kind in ("png", "svg", "csv")]
    rows = {name: list(csv.DictReader((tmp_path / f"{name}.csv").open(encoding="utf-8"))) for name in names}
    section = sections(lines)[0]
    there = {(row["form"], row["arm"], row["upgrade"]): row for row in rows["score-against-distance"]}
    assert len(there) == len(FORMS) * len(section.arms) * 2
    assert float(there["full", "direct", "v1"]["score"]) == pytest.approx(section.mean("direct", "v1"), abs=1e-6)
    assert float(there["full", "direct", "v1"]["distance"]) == 0.2
    gained = {(row["form"], row["arm"], row["upgrade"]): row for row in rows["gain-against-distance"]}
    one = gained["lora", "initialize", "v2"]
    assert 0 < float(one["low"]) < float(one["gain"]) < float(one["high"])
    assert {row["arm"] for row in rows["learning-curves"]} == {"fresh", "initialize", "distill", "combined"}
    assert {row["arm"] for row in rows["flips-against-gain"]} == {NOTHING, "fresh", *ARMS}
    again = write_recycle_figures(lines, tmp_path / "again", UPGRADES, GOLDS)
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(written, again, strict=True))


def test_however_many_arms_lie_side_by_side_none_is_beyond_the_axis():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    found = views(grid({f"arm {place}": 0.0 for place in range(30)}), UPGRADES, GOLDS)
    plot = figure.add_subplot()
    _by_distance(plot, found.cases[0], found, gains=False)
    low, high = plot.get_xlim()
    drawn = [x for line in plot.get_lines() for x in line.get_xdata()]
    assert len(drawn) >= 2 * 30
    assert low < min(drawn) < 0.1 < 0.2 < max(drawn) < high


@pytest.mark.parametrize("arms", [1, 30, 400])
@pytest.mark.parametrize("distances", [(0.1, 0.2), (0.2, 0.2)])
def test_nor_on_the_page(arms, distances):
    section = sections(grid({f"arm {place}": 0.0 for place in range(arms)}))[0]
    landed = landings(section, dict(zip(("v1", "v2"), distances, strict=True)))
    drawn = str(by_distance(landed, grid_looks(section.arms), "fresh", gains=False))
    bars = [
        float(x) for x in re.findall(r'd="M([0-9.-]+) [0-9.-]+L[0-9. -]+" class="line thin arm-[0-9]" opacity', drawn)
    ]
    assert len(bars) == 2 * len(section.arms)
    assert min(bars) >= LEFT
    assert max(bars) <= WIDTH - RIGHT


def test_a_figure_that_there_is_nothing_for_is_left_out(tmp_path):
    pytest.importorskip("matplotlib")
    written = write_recycle_figures(lines_of(("full",)), tmp_path)
    assert {path.stem for path in written} == {"learning-curves"}


def test_the_panel_has_arms_claims_and_pictures(lines):
    shown = panel(RecycleGrid("g", lines, UPGRADES, [walked([0.8, 0.5, 0.7])], GOLDS))
    assert (shown["note"], shown["control"]) == ("3 tasks, 2 upgrades", "fresh")
    assert shown["upgrades"] == ["v2: 0.1", "v1: 0.2"]
    [full, lora] = shown["cases"]
    assert len(full["pictures"]) == len(lora["pictures"]) == 4
    rows = {row["arm"]: row for row in full["rows"]}
    assert rows["initialize"]["small"].endswith("higher")
    assert rows["direct"]["small"].endswith("lower")
    assert rows["direct"]["cost"].startswith("0.00 / ")
    assert rows[NO_DELTA]["flips"] == rows[NO_DELTA]["cost"] == "–"
    words = {(one["text"], one["form"]): one["outcome"] for one in shown["claims"]}
    assert words["initialize scores higher than tuning afresh", "full"] == "confirmed"


def test_the_page_has_a_section_and_none_without(lines):
    more = lines_of([f"form {place}" for place in range(CASES_SHOWN + 2)])
    more[-1] |= {"failed": "the loss is <nan>", "test": None}
    more.append({**more[-1], "arm": "masked", "failed": None, "refused": "nothing to mask"})
    text = page([], recycle=[RecycleGrid("my <grid>", more, UPGRADES, (), GOLDS)])
    assert 'href="#recycling"' in text
    for words in ("my &lt;grid&gt;", "&lt;$mean$&gt;", "2 more</summary>", "the loss is &lt;nan&gt;",
                  "Refused, and left out: masked on v2", "v2: 0.1, v1: 0.2"):  # fmt: skip
        assert words in text, words
    assert "<grid>" not in text
    assert "<nan>" not in text
    assert text.count("<h4>Learning curves</h4>") == CASES_SHOWN + 2
    assert 'id="recycling"' not in page([])


def test_a_grid_of_fresh_runs_alone_has_a_panel(lines):
    alone = [one for one in lines if one["kind"] == "fresh"]
    assert panel(RecycleGrid("g", alone, UPGRADES))["cases"] == []


def test_commands_take_the_folder(cli, tmp_path):
    pytest.importorskip("matplotlib")
    from tests.report.stores import delta, write_store

    write_store(tmp_path / "store", [delta("a", "v1", "fresh", 0, steps=10)])
    folder = tmp_path / "grid"
    folder.mkdir()
    for name, given in (("runs", lines_of(("full",))), ("bases", UPGRADES), ("tasks", GOLDS)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in given))
    answer = cli("recycle-tables", folder, "--figures", "own")
    assert answer.code == 0, answer.err
    assert Path("own/score-against-distance.png").is_file()
    answer = cli("report", "--store", tmp_path / "store", "--recycle", folder, "--figures", "figures")
    assert answer.code == 0, answer.err
    assert "old weights on a new base" in Path("report.html").read_text()
    assert Path("figures/grid/learning-curves.svg").is_file()
    Path("r.yaml").write_text(f"job: report\nstore: {tmp_path / 'store'}\nrecycle: {folder}\nout: from-recipe.html\n")
    answer = cli("run", "r.yaml", "--quiet")
    assert answer.code == 0, answer.err
    assert "old weights on a new base" in Path("from-recipe.html").read_text()
    missing = cli("report", "--store", tmp_path / "store", "--recycle", "nowhere")
    assert (missing.code, "nowhere/runs.jsonl" in missing.err) == (2, True)


def test_a_recipe_names_the_folder_beside_itself_and_methods_stay_names(tmp_path):
    (tmp_path / "direct").mkdir()
    grid_job = (
        "  - {job: recycle-grid, base: b, upgrades: [{name: v}], tasks: [t], out: o, forms: {f: {method: full}}, "
        "arms: {x: {recycle: direct}}}\n"
    )
    (tmp_path / "r.yaml").write_text(f"jobs:\n{grid_job}  - {{job: report, recycle: [o]}}\n")
    made, shown = load_recipe(tmp_path / "r.yaml").jobs
    assert shown.recycle == [made.out] == [str(tmp_path / "o")]
    assert made.arms == {"x": {"recycle": "direct"}}
