"""Tables and heat-maps of transfers, from lines written by hand."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest

from anytune.evaluate.clustering import cluster_order
from anytune.evaluate.metric_quality import spearman
from anytune.evaluate.synthetic_tasks import distance, factorial
from anytune.evaluate.transfer_arms import chosen, grid_of, pairs, readings, truth
from anytune.report.page import page
from anytune.report.transfer_charts import heat_map, middle_of, write_transfer_figures
from anytune.report.transfer_panel import Grids
from anytune.report.transfer_tables import choices_of, qualities, summary, target_families, transfer_tables

SOURCES, TARGETS = ("far", "near", "twin"), ("a", "b", "c")
#: what each source gives each target over the control's 0.6, and what a measure says of the pair
GAINS = {("far", "a"): -0.2, ("near", "a"): 0.1, ("twin", "a"): 0.2,
         ("far", "b"): -0.1, ("near", "b"): 0.05, ("twin", "b"): 0.02,
         ("far", "c"): 0.0, ("near", "c"): 0.1, ("twin", "c"): -0.05}  # fmt: skip


def line(arm, target, seed, test, source=None, **more):
    return {
        "arm": arm, "control": "plain", "sources": "none" if source is None else "all", "source": source,
        "target": target, "family": (source, target) == ("twin", "a"), "metric": "accuracy", "seed": seed,
        "restart": 0, "learning_rate": 1e-2, "validation": test, "early": test, "test": test, "floor": 0.5,
        "steps": 10, "seconds": 1.0, "spent_steps": 10 if source is None else 20, "spent_seconds": 1.0,
        "shared_steps": 0 if source is None else 10, "shared_seconds": 0.0, "failed": None if test is not None
        else "the loss is nan", "predictions": [], "teacher": None, **more,
    }  # fmt: skip


def lines_of_grid():
    made = [line("plain", target, seed, 0.6 + 0.01 * seed) for target in TARGETS for seed in range(6)]
    for (source, target), gain in GAINS.items():
        made += [line("transfer", target, seed, 0.6 + 0.01 * seed + gain, source) for seed in range(6)]
    return made


def ranking():
    made = []
    for place, ((source, target), gain) in enumerate(GAINS.items()):
        for measure, value in (("good", gain), ("bad", -gain), ("flat", 1.0), ("size", float(place)), ("lost", None)):
            made.append({"target": target, "source": source, "measure": measure, "value": value, "size": place,
                         "family": False, "choose_by": "good"})  # fmt: skip
    return made


def test_readings_pairs_and_choices_of_a_known_grid():
    grid = grid_of(lines_of_grid())
    shown = {one.name: one for one in readings(grid, choices_of(ranking()))}

    def gain(name):
        return shown[name].against.difference.mean

    assert choices_of(ranking()) == {"a": "twin", "b": "near", "c": "near"}
    assert gain("transfer, chosen source") == pytest.approx((20 + 5 + 10) / 3)
    assert gain("transfer, oracle source") == pytest.approx((20 + 5 + 10) / 3)
    assert gain("transfer, worst source") == pytest.approx((-20 - 10 - 5) / 3)
    assert gain("transfer, mean source") == pytest.approx(100 * sum(GAINS.values()) / 9)
    assert shown["transfer, mean source"].steps == 20
    assert shown["transfer, best source on validation"].steps == 60, "all three were tried"
    assert shown["plain"].against is None
    assert shown["plain"].steps == 10
    [found] = pairs(grid)
    assert (found.n, found.negative) == (9, pytest.approx(3 / 9))
    assert found.worst == pytest.approx((-20 - 10 - 5) / 3)
    assert found.worst_source == ("far", pytest.approx(-10.0))


def test_pairs_over_the_same_texts_can_be_left_out():
    whole, without = grid_of(lines_of_grid()), grid_of(lines_of_grid(), families=False)
    assert whole.families == {("twin", "a")}
    assert pairs(without)[0].n == 8
    oracle = {one.name: one for one in readings(without, {})}["transfer, oracle source"]
    assert oracle.scores["a"][0] == pytest.approx(70)


def test_validation_chooses_among_rates_and_all_are_paid():
    runs = [line("plain", "a", 0, 0.9, validation=0.4), line("plain", "a", 0, 0.5, validation=0.8, learning_rate=1.0),
            line("plain", "a", 0, None, failed="the loss is nan")]  # fmt: skip
    found = chosen(runs)
    assert (found.test, found.validation, found.steps) == (50, 80, 30)
    taught = [line("t", "a", 0, 0.5, "far"), line("t", "a", 0, 0.6, "far", learning_rate=1.0)]
    assert chosen(taught).steps == 30, "the source is paid for once"


def test_a_run_that_diverged_counts_as_the_floor_in_a_pair_and_is_named():
    lines = [one for one in lines_of_grid() if (one["source"], one["target"]) != ("near", "a")]
    lines += [line("transfer", "a", seed, None, "near") for seed in range(6)]
    grid = grid_of(lines)
    _, _, gains = truth(grid, "transfer", "gain")
    assert gains[grid.sources.index("near"), 0] == pytest.approx(50 - np.mean([60 + seed for seed in range(6)]))
    assert "transfer from near on a, seed 0: the loss is nan" in transfer_tables(lines, ranking())


def test_errors_are_signed_so_that_less_is_better():
    lines = [line("plain", "a", seed, 2.0, metric="mse", floor=4.0) for seed in range(3)]
    lines += [line("transfer", "a", seed, 1.5, source, metric="mse", floor=4.0)
              for seed in range(3) for source in ("far", "near")]  # fmt: skip
    grid = grid_of(lines)
    assert pairs(grid)[0].gain == pytest.approx(0.5)
    assert "| 2.00 |" in transfer_tables(lines), "the error itself is shown"


def test_measures_are_held_against_what_transfer_gave():
    grid = grid_of(lines_of_grid())
    found = qualities(grid, ranking(), "transfer", "test")
    assert set(found) == {"good", "bad", "flat", "size"}
    assert found["good"].spearman.mean == pytest.approx(1)
    assert found["bad"].spearman.mean == pytest.approx(-1)
    assert found["good"].regret[1].mean == pytest.approx(0)
    assert found["flat"].undefined == 3
    column = [GAINS[source, "b"] for source in SOURCES]
    order = [place for place, key in enumerate(GAINS) if key[1] == "b"]
    assert found["size"].targets[1].spearman == pytest.approx(spearman(np.array(order, float), np.array(column)))
    fewer = qualities(grid, ranking(), "transfer", "test", families=False)
    assert fewer["good"].targets[0].sources == 2


def test_the_document_holds_every_table():
    text = transfer_tables(lines_of_grid(), ranking())
    for words in ("# 3 sources, 3 targets, against 'plain'", "| transfer, chosen source |", "## Pairs", "33 %",
                  "far (-10.00)", "### transfer: test", "a random order", "### What each measure chooses",
                  "+20.00 *", "| one answer |"):  # fmt: skip
        assert words in text, words
    assert "transfer, mean source" in summary(lines_of_grid(), ranking())
    assert transfer_tables([one for one in lines_of_grid() if one["source"] is None])


def test_clusters_stand_together_whatever_the_order_was():
    draw = np.random.default_rng(0)
    group = np.repeat([0, 1, 2], 4)
    similarity = np.where(group[:, None] == group[None, :], 0.9, 0.1) + 0.01 * draw.random((12, 12))
    similarity = (similarity + similarity.T) / 2
    mixed = draw.permutation(12)
    order = cluster_order(similarity[np.ix_(mixed, mixed)])
    assert sorted(order) == list(range(12))
    seen = [int(group[mixed[place]]) for place in order]
    assert sum(a != b for a, b in itertools.pairwise(seen)) == 2
    assert cluster_order(np.full((3, 3), math.nan))
    assert cluster_order(np.ones((1, 1))) == [0]


def test_a_heat_map_shows_each_number_in_its_colour():
    values = np.array([[1.0, -0.5], [math.nan, 0.25]])
    drawn = str(heat_map(["<one>", "two"], ["x", "y"], values, "label", marked=[(0, 1)]))
    assert drawn.count('class="up"') == 2
    assert drawn.count('class="down"') == 1
    assert drawn.count('class="none"') == 1
    assert drawn.count('class="own"') == 1
    assert "&lt;one&gt;" in drawn
    assert "<one>" not in drawn
    assert 'fill-opacity="0.650"' in drawn, "the largest has the full colour"
    assert middle_of(np.array([[1.0, 0.2], [0.4, 1.0]])) == pytest.approx(0.3)
    assert middle_of(np.array([[1.0, -0.2], [0.4, 1.0]])) == 0


def test_figures_are_written_with_their_numbers(tmp_path):
    pytest.importorskip("matplotlib")
    written = write_transfer_figures(grid_of(lines_of_grid()), tmp_path)
    assert {path.suffix for path in written} == {".png", ".svg", ".csv"}
    assert {path.stem for path in written} == {"gains-transfer"}
    table = next(path for path in written if path.suffix == ".csv").read_text().splitlines()
    assert table[0] == ",a,b,c"
    assert table[1].startswith("far,-20.0,-10.0,")


def test_the_page_has_a_section_with_every_gain(tmp_path):
    lines = [*lines_of_grid(), line("transfer", "b", 9, None, "<far>")]
    text = page([], transfer=[Grids("my <grid>", lines, ranking())])
    assert 'href="#transfer"' in text
    for words in (
        "my &lt;grid&gt;",
        "transfer, chosen source",
        "3 targets",
        "framed",
        "Diverged: transfer on b, seed 9",
    ):
        assert words in text, words
    assert "<grid>" not in text
    assert 'href="#transfer"' not in page([])


def test_targets_over_the_same_texts_are_one_family():
    shared = frozenset({("a", "b"), ("b", "a"), ("far", "c"), ("far", "d")})
    grid = SimpleNamespace(targets=["a", "b", "c", "d", "e"], families=shared)
    assert target_families(grid) == {"a": "a", "b": "a", "c": "c", "d": "c", "e": "e"}


def test_what_a_measure_looks_at_is_read_off_synthetic_tasks():
    """One measure that is the rule's nearness, one that is the format's, and a gain that goes by the rule."""
    tasks = factorial(seed=3)
    lines, ranks = [], []
    for a, b in itertools.permutations(tasks, 2):
        near = 1 - distance(a, b, "rule")
        lines.append({**line("transfer", b.name, 0, 0.6 + 0.1 * near, source=a.name), "sources": "all"})
        ranks += [
            {"target": b.name, "source": a.name, "measure": name, "value": value, "size": 9, "choose_by": "rule's"}
            for name, value in (("rule's", near), ("format's", -distance(a, b, "format")), ("deaf", 1.0))
        ]
    lines += [line("plain", task.name, 0, 0.6) for task in tasks]
    text = transfer_tables(lines, ranks)
    table = text[text.index("What each measure looks at") :].replace("-0.00", "+0.00")
    pairs = len(tasks) * (len(tasks) - 1)
    assert f"| transfer: its gain itself | +1.00 | +0.00 | +0.00 | 100 % | {pairs} |" in table
    assert f"| rule's | +1.00 | +0.00 | +0.00 | 100 % | {pairs} |" in table
    assert f"| format's | +0.00 | +0.00 | +1.00 | 100 % | {pairs} |" in table
    assert "| deaf |   |   |   |   | a measure that is 1 for all pairs |" in table
    assert "What each measure looks at" not in transfer_tables(lines_of_grid(), ranking())
