"""Software: descriptions of Debian packages, labelled with their section of the archive."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from anytune.data.samples.package_lists import DESCRIPTIONS, PACKAGES
from anytune.data.samples.rows import RawText, Records, Row

#: the 30 sections with most descriptions in Debian 12; packages of others are text outside the task. Without "rust":
#: nine in ten of its texts are one sentence of a tool, each with another name in it
SECTIONS = (
    "admin",
    "devel",
    "doc",
    "fonts",
    "games",
    "gnome",
    "gnu-r",
    "golang",
    "graphics",
    "haskell",
    "java",
    "javascript",
    "libdevel",
    "libs",
    "lisp",
    "mail",
    "math",
    "misc",
    "net",
    "ocaml",
    "perl",
    "php",
    "python",
    "ruby",
    "science",
    "sound",
    "text",
    "utils",
    "web",
    "x11",
)
SHORTEST_TEXT = 40
#: one source package in this many is taken: 20,000 texts separate in a minute or two, and no task uses as many
ONE_SOURCE_IN = 3
#: what a tool writes for every Rust crate: 1,900 near-duplicates that would be a tenth of the raw texts
_TEMPLATE = re.compile(r"This (?:meta)?package [^.]* the Rust \S+ crate, [^.]*\.(?: Additionally, [^.]*\.)?")


def debian(folder: Path) -> Records:
    """Long descriptions of packages, labelled with their section, grouped by source package.

    One row a distinct text. The first line of a description (the synopsis) is left out: it often spells the section
    ("development files", "documentation"). Texts of packages of several sections, or of small ones, are text outside
    the task. A text of several source packages is of the one that comes first by name. Source packages are taken by
    a hash of their name, so that the same ones stay taken when the archive moves.
    """
    packages = [dict(fields) for fields in _paragraphs(folder / PACKAGES)]
    described = {fields["Description-md5"]: fields["Description-en"] for fields in _paragraphs(folder / DESCRIPTIONS)}
    owners: dict[str, list[tuple[str, str]]] = {}
    for package in packages:
        # "Source: gcc-12 (12.2.0-14)" names a version too; a source package of the same name is not named at all
        source = package.get("Source", package["Package"]).split(" ", 1)[0]
        section = package.get("Section", "").rsplit("/", 1)[-1]  # "universe/net" is "net" of another component
        text = long_description(described.get(package.get("Description-md5", ""), ""))
        if len(text) >= SHORTEST_TEXT:
            owners.setdefault(text, []).append((source, section))
    records = Records()
    for text, found in owners.items():
        source, sections = min(found)[0], {section for _, section in found}
        if not is_taken(source):
            continue
        if len(sections) == 1 and sections <= set(SECTIONS):
            records.rows.append(Row(text, None, sections.pop(), source))
        else:
            records.outside.append(RawText(text, source))
    return records


def long_description(description: str) -> str:
    """The text below the synopsis on one line, without a tool's template; a lone "." stands for an empty line."""
    lines = [line.strip() for line in description.split("\n")[1:]]
    text = " ".join(" ".join(line for line in lines if line != ".").split())
    return _TEMPLATE.sub("", text).strip()


def is_taken(source: str) -> bool:
    """Whether descriptions of that source package are part of the sample."""
    return int.from_bytes(hashlib.sha256(source.encode()).digest()[:8], "big") % ONE_SOURCE_IN == 0


def _paragraphs(place: Path) -> Iterator[dict[str, str]]:
    """Field -> value of each paragraph of a Debian control file; further lines of a value keep their indent."""
    for paragraph in place.read_text(encoding="utf-8").split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in paragraph.split("\n"):
            if line[:1] in (" ", "\t"):
                fields[name] += f"\n{line}"
            elif line:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
        if fields:
            yield fields
