"""Dictionaries in DICT format: FOLDOC (computing, two tasks) and GCIDE (general, raw text only)."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

from anytune.data.samples.rows import RawText, Records, Row

#: the 15 most frequent fields; entries of other fields, of several, or of none are text outside the task
FOLDOC_FIELDS = (
    "character",
    "communications",
    "company",
    "computer",
    "database",
    "hardware",
    "jargon",
    "language",
    "mathematics",
    "networking",
    "operating system",
    "processor",
    "programming",
    "storage",
    "tool",
)
SHORTEST_TEXT = 40
#: words of a paragraph whose terms are to be found: shorter ones mostly say "See X", longer ones are lists and code
TERM_WORDS = (8, 100)
_LINK = re.compile(r"\{([^{}]*)\}")
_WORD = re.compile(r"\w+(?:[-'./+]\w+)*|[^\w\s]")
_DIGITS = {
    sign: value for value, sign in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
}
_FIELD = re.compile(r"<([^<>{}@]{2,60})>")
#: the field at the start of each numbered sense; other angle brackets (<stdio.h>) are text
_SENSE_FIELD = re.compile(r"(^|\n)(\s*(?:\d+\.\s+)?)<[^<>{}@]{2,60}>")
_DATE = re.compile(r"\((\d{4}-\d\d-\d\d)\)\s*$")
_PRONUNCIATION = re.compile(r"\\[^\\]*\\(?:\s*\([^()]*\))?")
_LIGATURE = re.compile(r"\[(ae|oe|AE|OE)\]")
_SOURCE_MARK = re.compile(r"\[[^\[\]]*(?:Webster|WordNet|PJC|GCIDE|Century|AHD|Soukhanov|RHUD|MW\d)[^\[\]]*\]")


def foldoc(folder: Path) -> Records:
    """Entries labelled with their one field; the field, the closing date and link braces are taken out of the text.

    The date is that of the entry's last change. Entries that share a headword are one group.
    """
    records = Records()
    for headwords, entry in read_dictionary(folder / "usr/share/dictd/foldoc"):
        if headwords[0].startswith("00-database"):
            continue
        head, _, body = entry.partition("\n\n")
        title = head.split("\n")[0].strip()
        date = _DATE.search(body)
        field = _FIELD.match(body.strip())
        text = _SENSE_FIELD.sub(r"\1\2", _DATE.sub("", body))
        text = " ".join(text.replace("{", "").replace("}", "").split())
        if len(text) < SHORTEST_TEXT:
            continue
        text = f"{title}: {text}"
        changed, group = (date.group(1) if date else None), title.lower()
        if field and field.group(1) in FOLDOC_FIELDS:
            records.rows.append(Row(text, None, field.group(1), group, changed))
        else:
            records.outside.append(RawText(text, group, changed))
    return records


def foldoc_terms(folder: Path) -> Records:
    """Paragraphs whose words carry tags: B-TERM and I-TERM for what the editors linked to another entry, else O.

    Words are runs of letters and digits (hyphens and the like inside them included) or single signs. Words and tags
    stand joined by one space. Links to the web and short paragraphs are taken out; paragraphs without a link, or too
    long, are text outside the task. Entries that share a headword are one group.
    """
    records = Records()
    for headwords, entry in read_dictionary(folder / "usr/share/dictd/foldoc"):
        if headwords[0].startswith("00-database"):
            continue
        head, _, body = entry.partition("\n\n")
        title = head.split("\n")[0].strip()
        date = _DATE.search(body)
        changed, group = (date.group(1) if date else None), title.lower()
        for paragraph in re.split(r"\n\s*\n", _SENSE_FIELD.sub(r"\1\2", _DATE.sub("", body))):
            words, tags = tagged_terms(paragraph)
            if len(words) < TERM_WORDS[0]:
                continue
            if "B-TERM" in tags and len(words) <= TERM_WORDS[1]:
                records.rows.append(Row(" ".join(words), None, " ".join(tags), group, changed))
            else:
                records.outside.append(RawText(" ".join(words), group, changed))
    return records


def tagged_terms(paragraph: str) -> tuple[list[str], list[str]]:
    """Words and tags of a paragraph: the first word of a {link} is B-TERM, its others I-TERM, all else O."""
    words: list[str] = []
    tags: list[str] = []
    for place, part in enumerate(_LINK.split(paragraph)):
        linked = place % 2 == 1
        if linked and "://" in part:
            continue
        found = _WORD.findall(part)
        words += found
        tags += (["B-TERM"] + ["I-TERM"] * (len(found) - 1) if linked else ["O"] * len(found)) if found else []
    return words, tags


def gcide(folder: Path) -> Records:
    """Entries as raw text: source marks, pronunciation and braces taken out, entries of WordNet left out."""
    records = Records()
    for headwords, entry in read_dictionary(folder / "usr/share/dictd/gcide"):
        if headwords[0].startswith("00-") or "WordNet" in entry:
            continue
        text = _LIGATURE.sub(r"\1", _PRONUNCIATION.sub(",", _SOURCE_MARK.sub(" ", entry), count=1))
        text = re.sub(r"\s+([,.])[,\s]*", r"\1 ", " ".join(text.replace("{", "").replace("}", "").split()))
        if len(text) >= SHORTEST_TEXT:
            records.outside.append(RawText(text))
    return records


def read_dictionary(stem: Path) -> list[tuple[list[str], str]]:
    """Headwords and text of each entry of ``stem.dict.dz`` + ``stem.index``, in the order of the file."""
    with gzip.open(stem.with_name(f"{stem.name}.dict.dz")) as handle:
        content = handle.read()
    places: dict[tuple[int, int], list[str]] = {}
    for line in stem.with_name(f"{stem.name}.index").read_text(encoding="utf-8").splitlines():
        word, start, size = line.split("\t")[:3]
        places.setdefault((_number(start), _number(size)), []).append(word)
    return [
        (words, content[start : start + size].decode("utf-8", "replace"))
        for (start, size), words in sorted(places.items())
    ]


def _number(digits: str) -> int:
    """A number in DICT's base 64, most significant digit first."""
    value = 0
    for digit in digits:
        value = value * 64 + _DIGITS[digit]
    return value
