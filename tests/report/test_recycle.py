"""The page of a diagnosis and its pictures, from records written by hand."""

from __future__ import annotations

import copy
import math
import re

from anytune.report.recycle_charts import distance_bars, head_maps, path_chart
from anytune.report.recycle_panel import facts, headline, page, write_diagnosis

POINTS = [{"x": x / 4, "loss": loss, "scores": {"accuracy": score}}
          for x, (loss, score) in enumerate([(1.0, 0.9), (1.2, 0.8), (2.0, 0.5), (1.6, 0.7), (1.4, 0.8)])]  # fmt: skip
SIMILARITY = {
    "texts": 4, "tokens": 20, "above_null": 0.5, "js": [[0.9, 0.2], [0.8, None]], "cosine": [[1, 0.5], [0.5, 1]],
    "mean_js": 0.63, "mean_null_js": 0.4, "mean_cosine": 0.75, "mean_null_cosine": None, "cka": [1.0, 0.9, None],
}  # fmt: skip
DELTA = {
    "reference": "reviews-1a2b", "form": "lora", "task": "reviews", "metric": "accuracy", "size": 0.02,
    "refusal": None, "problem": None, "rows": 256, "source": "stored sample", "disagreement": 0.125,
    "flips": {"negative_rate": 0.0625}, "before": 0.9, "after": 0.8, "drop": 0.1, "measured": [0.02, 0.18],
    "forecast": {"kind": "texts", "drop": 0.05, "low": -0.01, "high": 0.11, "level": 0.9, "reuses": 40,
                 "upgrades": 8},
    "path": {"points": POINTS, "barrier": 0.8, "score_barrier": 0.35, "metric": "accuracy"},
    "path_to": "direct reuse", "similarity": SIMILARITY, "notes": ["a <note>"], "verdict": "undecided",
}  # fmt: skip
RECORD = {
    "old": "M0", "new": "M<1>",
    "distance": {
        "numbers": 1000, "l2": 1.0, "relative": 0.1, "rms": 0.03, "cosine": 0.995,
        "modules": {"embeddings": {"relative": 0.2}, "layer 0 attention": {"relative": 0.05}},
        "vocabulary": {"old": 10, "new": 12, "shared": 10, "renumbered": 0, "same": False},
        "config": {"hidden_size": [32, 64]}, "apart": [f"w{n}: [3] and [4]" for n in range(10)],
    },
    "deltas": [DELTA], "forecast_source": "past runs",
}  # fmt: skip


def test_the_page_holds_every_number_and_escapes_every_name():
    text = page(RECORD)
    for said in ("M&lt;1&gt;", "a &lt;note&gt;", "12.5 %", "6.2 %", "90.00", "80.00", "10.0 (2.0 to 18.0)",
                 "5.0 points, −1.0 to 11.0 with",
                 "40 reuses over 8 upgrades", "32 → 64", "w7: [3] and [4]", "and 2 more tensors", "past runs",
                 "10 of 10 kept, 2 new", "barrier 0.8", "mean 0.630, shuffled heads 0.400"):  # fmt: skip
        assert said in text, said
    assert "w8:" not in text
    assert "M<1>" not in text
    assert not re.search(r"(src|href)=\"(?!data:,|#)", text)  # nothing is fetched
    assert page(RECORD) == text


def test_the_headline_counts_verdicts():
    assert headline(RECORD) == "M<1> is 10 % of its length away from M0; direct reuse of 1 delta: 1 undecided"
    same = copy.deepcopy(RECORD)
    same["distance"] |= {"l2": 0, "apart": []}
    assert headline(same) == "M<1> has the weights of M0, bit for bit"
    assert dict(facts(RECORD["distance"]))["Setting hidden_size"] == "32 → 64"


def test_a_delta_of_which_little_is_known_still_has_its_place():
    bare = copy.deepcopy(RECORD)
    bare["deltas"][0] |= {
        "size": None, "rows": 0, "disagreement": None, "flips": None, "before": None, "after": None, "forecast": None,
        "measured": None,
        "path": None, "similarity": None, "refusal": "w: [3] and [4]", "verdict": "impossible",
    }  # fmt: skip
    text = page(bare)
    assert "cannot be put onto the new base" in text
    assert "Attention heads" not in text


def test_a_path_is_drawn_through_its_points_between_marked_ends():
    picture = str(path_chart(POINTS, "loss", "Loss", ends=("old", "new")))
    [curve] = re.findall(r'd="(M[^"]+)" class="line arm-0"', picture)
    heights = [float(point.split()[1]) for point in re.split("[ML]", curve)[1:]]
    assert heights.index(min(heights)) == 2  # the highest loss is at the top
    assert heights[0] == max(heights)
    assert picture.count('class="mark arm-0"') == 2
    gaps = [{"x": x, "loss": math.nan, "scores": {}} for x in (0, 1)]
    assert path_chart(gaps, "loss", "Loss", ends=("old", "new")) is None
    assert path_chart(POINTS, "f1", "F1", ends=("old", "new")) is None


def test_heads_below_the_null_have_the_other_colour_and_missing_ones_none():
    (title, beside, picture), (_, other, _) = head_maps(SIMILARITY)
    assert title == "1 − Jensen-Shannon"
    assert (str(picture).count('class="up"'), str(picture).count('class="down"')) == (2, 1)
    assert str(picture).count('class="none"') == 1
    assert beside == "mean 0.630, shuffled heads 0.400"
    assert other == "one head: no null"


def test_bars_are_as_long_as_parts_moved():
    picture = str(distance_bars(RECORD["distance"]["modules"]))
    longest, short = (float(width) for width in re.findall(r'width="([\d.]+)"', picture))
    assert longest == 4 * short
    assert distance_bars({}) is None
    assert "∞" in str(distance_bars({"a": {"relative": math.inf}, "b": {"relative": 1.0}}))


def test_a_folder_gets_a_file(tmp_path):
    assert write_diagnosis(RECORD, tmp_path) == tmp_path / "diagnose.html"
    assert (tmp_path / "diagnose.html").read_text(encoding="utf-8") == page(RECORD)
