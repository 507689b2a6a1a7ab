"""Figures and panel of anytime matrices: the numbers they show are those of the lines."""

from __future__ import annotations

import csv
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from anytune.evaluate.anytime import Column, matrices
from anytune.evaluate.anytime_losses import loss_matrices
from anytune.report import page
from anytune.report.anytime_charts import frontier, heat_map, stage_curves
from anytune.report.anytime_figures import write_anytime_figures
from anytune.report.anytime_panel import Matrices, panel
from anytune.report.anytime_tables import anytime_tables, failures, summary
from anytune.report.anytime_views import Point, _placed, arm_looks, best_settings, views
from tests.report.anytime_lines import DOMAINS, made_up

LINES, STAGES = made_up()


def mean_score(arm: str, order: int, stage: int, task: str, lines=LINES) -> float:
    return 100 * float(np.mean([
        line["test"] for line in lines
        if (line["arm"], line["order"], line["stage"], line["task"]) == (arm, order, stage, task)
    ]))  # fmt: skip


def test_heat_maps_show_mean_gains_over_row_0():
    found = views(LINES)
    assert [(heat.arm, heat.order, heat.seeds) for heat in found.heats] == [
        (arm, order, 3) for arm in ("sequential", "anchored") for order in (0, 1)
    ]
    heat = found.heats[3]
    assert heat.domains == ("law", "computing", "biomedical", "reviews")
    row0 = mean_score(None, None, 0, "biomedical")
    assert heat.values[1][2] == pytest.approx(mean_score("anchored", 1, 2, "biomedical") - row0)
    assert heat.values[1][0] is None, "an earlier domain is needed after the last stage alone"
    drawn = heat_map(heat, heat.largest)
    ElementTree.fromstring(str(drawn))
    texts = re.findall(r">([+−][0-9.]+)<", str(drawn))
    assert texts == [
        f"{value:+.1f}".replace("-", "−") for row in heat.values for value in row if value is not None
    ]  # fmt: skip
    assert drawn.count('class="own"') == 4
    assert drawn.count('class="none"') == sum(value is None for row in heat.values for value in row)


def test_without_row_0_the_scores_themselves_are_shown():
    lines, _ = made_up(row0=False)
    [heat, *_] = views([{**line, "metrics": ["a_acc"]} for line in lines]).heats
    assert not heat.gains
    assert heat.values[0][0] == pytest.approx(mean_score("sequential", 0, 1, "reviews", lines))


def test_arms_stand_at_their_difference_to_the_control_over_the_streams_both_have():
    found = views(LINES)
    runs, others = (matrices(LINES)[arm] for arm in ("anchored", "sequential"))
    control, point = found.points
    assert (point.arm, point.runs) == ("anchored", 6)
    assert point.a == pytest.approx(np.mean([one.value("a_acc") for one in runs.values()]))
    middle = np.mean([one.value("o_acc") for one in others.values()])
    ends = [middle + runs[run].value("o_acc") - others[run].value("o_acc") for run in runs]
    assert point.o_ends == pytest.approx((min(ends), max(ends)))
    assert control.o_ends == pytest.approx((middle, middle))
    drawn = str(frontier(found.points, found))
    ElementTree.fromstring(drawn)
    assert f"anchored: {point.a:.2f} across, {point.o:.2f} up (6 runs)" in drawn
    assert frontier([], found) is None
    # with one stream alone an arm is not moved by which one that is
    few = [line for line in LINES if line["arm"] != "anchored" or (line["order"], line["seed"]) == (1, 0)]
    [_, alone] = views(few).points
    [run] = matrices(few)["anchored"]
    moved = runs[run].value("a_acc") - others[run].value("a_acc")
    assert alone.a == pytest.approx(control.a + moved)
    assert alone.runs == 1


@pytest.mark.parametrize("own", [1 / 3, 0.1, 33.59865038625716])
def test_rounding_puts_no_arm_beside_its_own_ends(own):
    """An error bar of matplotlib may not be negative; the control's ends are all one number."""
    values = {("0", 0): own, ("1", 1): own / 7, ("2", 2): own * 1.7}
    same = Column("a_acc", {"plain": values, "twin": {run: value + 1e-3 for run, value in values.items()}}, {})
    for arm in ("plain", "twin"):
        mean, low, high, runs = _placed(same, arm, "plain")
        assert low <= mean <= high
        assert runs == 3
    mean, low, high, _ = _placed(same, "plain", "plain")
    assert low == high == mean


def test_the_dashed_line_joins_the_best_settings_of_the_controls_method():
    names = ("sequential", "slower", "worse", "other")
    lines, stages = made_up(arms=names)
    used = {name: "pretrain/ewc" if name == "other" else "pretrain/sequential" for name in names}
    stages = [{**line, "method": [{"name": used[line["arm"]], "settings": {}}]} for line in stages]
    found = views(lines, stages)
    assert found.plain == ["sequential", "slower", "worse"]
    places = {"sequential": (3.0, 0.0), "slower": (2.0, 1.0), "worse": (1.0, 0.5), "other": (4.0, 4.0)}
    points = [Point(name, 1, a, o, (a, a), (o, o)) for name, (a, o) in places.items()]
    assert best_settings(points, found.plain) == [(2.0, 1.0), (3.0, 0.0)]
    assert str(frontier(points, found)).count('class="target"') == 1
    assert 'class="target"' not in str(frontier(points[:1], found))


def test_curves_over_stages_are_means_over_the_cells_of_their_kind():
    lines, _ = made_up(cells="all", seeds=2, orders=1)
    found = {(path.arm, path.kind): path for path in views(lines).paths}
    assert {kind for _, kind in found} == {"own", "unseen", "seen"}
    assert [stage for stage, *_ in found["sequential", "unseen"].points] == [1, 2, 3]
    assert [stage for stage, *_ in found["sequential", "seen"].points] == [2, 3, 4]
    stage, mean, low, high = found["anchored", "unseen"].points[1]
    gains = [[mean_score("anchored", 0, 2, name, [line for line in lines if line["seed"] == seed])
              - mean_score(None, None, 0, name, [line for line in lines if line["seed"] == seed])
              for name in ("computing", "biomedical")] for seed in (0, 1)]  # fmt: skip
    per_run = [np.mean(pair) for pair in gains]
    assert (stage, mean, low, high) == pytest.approx((2, np.mean(per_run), min(per_run), max(per_run)))
    drawn = str(stage_curves(views(lines).paths, "own", views(lines)))
    ElementTree.fromstring(drawn)
    assert drawn.count("line arm-") == 2
    needed = views(LINES)
    assert [path.kind for path in needed.paths if path.arm == "anchored"] == ["own", "unseen", "seen"]
    assert [stage for path in needed.paths if path.kind == "seen" for stage, *_ in path.points] == [4, 4]


def test_many_arms_look_different():
    looks = arm_looks([f"arm {place}" for place in range(21)])
    assert len({(look.slot, look.shape) for look in looks.values()}) == 21


def test_figures_are_written_with_their_numbers_and_equal_numbers_give_equal_bytes(tmp_path):
    pytest.importorskip("matplotlib")
    files = write_anytime_figures(LINES, tmp_path / "one", STAGES)
    names = ("heat-maps", "o-against-a", "o-against-a-losses", "stages", "arms")
    assert [file.name for file in files] == [f"{name}.{kind}" for name in names for kind in ("png", "svg", "csv")]
    again = write_anytime_figures(LINES, tmp_path / "two", STAGES)
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in again]
    for file in files:
        if file.suffix == ".svg":
            ElementTree.parse(file)
    with (tmp_path / "one" / "heat-maps.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    [row] = [
        row
        for row in rows
        if (row["arm"], row["order"], row["stage"], row["task"]) == ("anchored", "1", "2", "biomedical")
    ]
    assert float(row["gain"]) == pytest.approx(
        mean_score("anchored", 1, 2, "biomedical") - mean_score(None, None, 0, "biomedical"), abs=1e-5
    )
    with (tmp_path / "one" / "arms.csv").open(newline="") as handle:
        bars = {(row["metric"], row["arm"]): float(row["mean"]) for row in csv.DictReader(handle)}
    assert bars["f_acc", "sequential"] == pytest.approx(
        np.mean([one.value("f_acc") for one in matrices(LINES)["sequential"].values()]), abs=1e-5
    )


def test_one_domain_has_no_frontier_and_its_other_figures(tmp_path):
    pytest.importorskip("matplotlib")
    lines, stages = made_up(domains=("law",), orders=1)
    names = {file.stem for file in write_anytime_figures(lines, tmp_path)}
    assert names == {"heat-maps", "stages", "arms"}
    assert panel(Matrices("x", lines, stages))["rows"][0]["cells"][1]["text"] == "–"
    assert "| sequential |" in anytime_tables(lines, stages)


def test_the_panel_shows_what_the_tables_say():
    shown = panel(Matrices("stream", LINES, STAGES))
    text = anytime_tables(LINES, STAGES)
    assert [row["arm"] for row in shown["rows"]] == ["sequential", "anchored"]
    value = np.mean([one.value("a_acc") for one in matrices(LINES)["anchored"].values()])
    assert shown["rows"][1]["cells"][0]["text"].startswith(f"{value:.1f} ± ")
    assert "higher" in shown["rows"][1]["cells"][0]["small"]
    assert f"| anchored | {value:.2f} +/- " in text
    assert shown["rows"][1]["cost"] == "1.50"
    assert "2.600 (13.5)" in text, "the loss after the fourth stage, and its perplexity"
    fell = np.mean([one.value("o_gain") for one in loss_matrices(STAGES)["anchored"].values()])
    [point] = [point for point in views(LINES, STAGES).loss_points if point.arm == "anchored"]
    assert point.o == pytest.approx(fell)
    assert f"| {fell:.2f} +/- " in text[text.index("## Held-out losses: gains") :]
    assert any("held-out loss" in title for title, _ in shown["pictures"])
    assert not views(LINES).loss_points
    assert "anchored against sequential: A_Acc +0.5" in summary(LINES, STAGES)


def test_what_needs_no_pre_training_stands_in_a_table_of_its_own():
    lines = [{**line, "words": 0.45, "frozen_base": 0.4 if line["arm"] is None else None} for line in LINES]
    text = anytime_tables(lines, STAGES)
    floors = text[text.index("## Floors") :]
    assert "| one answer | 30.00 |" in floors
    assert "| words alone | 45.00 |" in floors
    assert "| frozen base | 40.00 |" in floors
    assert "| row 0 | 50.10 |" in floors
    assert "words alone |" not in anytime_tables(LINES, STAGES)
    assert "frozen base |" not in anytime_tables(LINES, STAGES)


class Outline(HTMLParser):
    """Headings and the number of pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.pictures = 0

    def handle_starttag(self, tag, attributes):
        self.ids += [value for key, value in attributes if key == "id"]
        self.pictures += ("class", "heat") in attributes


def test_the_page_has_a_section_for_them_and_none_without():
    text = page([], anytime=[Matrices("<stream> & more", LINES, STAGES)])
    outline = Outline()
    outline.feed(text)
    assert "anytime" in outline.ids
    assert outline.pictures == 4
    assert "&lt;stream&gt; &amp; more" in text
    assert "<stream>" not in text
    assert 'id="anytime"' not in page([])


def test_the_report_command_takes_the_folders(cli, tmp_path):
    import json

    pytest.importorskip("matplotlib")
    from tests.report.stores import delta, write_store

    write_store(tmp_path / "store", [delta("a", "v1", "fresh", 0, steps=10)])
    folder = tmp_path / "stream"
    folder.mkdir()
    for name, lines in (("runs", LINES), ("stages", STAGES)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    answer = cli("report", "--store", tmp_path / "store", "--anytime", folder, "--figures", "figures")
    assert answer.code == 0, answer.err
    assert "Anytime matrices" in Path("report.html").read_text()
    assert Path("figures/stream/heat-maps.png").is_file()
    assert cli("anytime", folder, "--figures", "own").code == 0
    assert Path("own/heat-maps.svg").is_file()
    missing = cli("report", "--store", tmp_path / "store", "--anytime", "nowhere")
    assert (missing.code, "nowhere/runs.jsonl" in missing.err) == (2, True)


def test_failures_are_told_once_for_a_stream_and_each_for_cells():
    whole = "pre-training diverged at stage 2: the loss is nan"
    lines = [{**LINES[-1], "failed": whole, "test": None}, {**LINES[-2], "failed": whole, "test": None},
             {**LINES[0], "failed": "the loss is inf", "test": None}]  # fmt: skip
    assert failures(lines) == [
        f"anchored, order 1, seed 2: {whole}", f"row 0, seed 0, stage 0, {DOMAINS[0]}: the loss is inf",
    ]  # fmt: skip
