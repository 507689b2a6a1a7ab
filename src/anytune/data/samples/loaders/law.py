"""Law: licence notices and licence texts of ScanCode's data."""

from __future__ import annotations

import re
from pathlib import Path

from anytune.data.samples.rows import RawText, Records, Row

#: the 20 licences with most notices; catch-alls of the data ("proprietary-license", "public-domain" ...) left out
LICENCES = (
    "agpl-3.0",
    "agpl-3.0-plus",
    "apache-2.0",
    "bsd-new",
    "bsd-simplified",
    "cc-by-3.0",
    "cc-by-4.0",
    "cc0-1.0",
    "gpl-1.0-plus",
    "gpl-2.0",
    "gpl-2.0-plus",
    "gpl-3.0",
    "gpl-3.0-plus",
    "lgpl-2.0",
    "lgpl-2.0-plus",
    "lgpl-2.1",
    "lgpl-2.1-plus",
    "lgpl-3.0",
    "lgpl-3.0-plus",
    "mit",
)
SHORTEST_NOTICE = 100
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_KEY = re.compile(r"[a-z0-9][a-z0-9.+_-]*")
_MARKS = re.compile(r"\{\{|\}\}|\[\[|\]\]")  # ScanCode's marks of required phrases


def licence_notice(folder: Path) -> Records:
    """Notices ("this file is under the ...") labelled with the licence.

    Text outside the task: licence texts and rules of other licence families alone. The full text of a licence in the
    task quotes its own notice, and a family's texts quote each other, which no near-duplicate search would see.
    """
    families = {family(key) for key in LICENCES}
    records = Records()
    for place in sorted((folder / "licensedcode/data/rules").glob("*.RULE")):
        facts, text = read_rule(place)
        keys = set(_KEY.findall(facts.get("license_expression", ""))) - {"and", "or", "with"}
        if len(text) < SHORTEST_NOTICE or facts.get("is_false_positive") == "yes":
            continue
        if facts.get("is_license_notice") == "yes" and facts.get("license_expression") in LICENCES:
            records.rows.append(Row(text, None, facts["license_expression"]))
        elif keys and not families & {family(key) for key in keys}:
            records.outside.append(RawText(text, f"family-{family(min(keys))}"))
    for place in sorted((folder / "licensedcode/data/licenses").glob("*.LICENSE")):
        text = read_rule(place)[1]
        if len(text) >= SHORTEST_NOTICE and family(place.stem) not in families:
            records.outside.append(RawText(text, f"family-{family(place.stem)}"))
    return records


def read_rule(place: Path) -> tuple[dict[str, str], str]:
    """The simple ``key: value`` lines of the front matter, and the text with marks and line breaks taken out."""
    content = place.read_text(encoding="utf-8")
    front = _FRONT_MATTER.match(content)
    facts = {}
    for line in (front.group(1) if front else "").splitlines():
        key, colon, value = line.partition(": ")
        if colon and not line.startswith(" "):
            facts[key] = value.strip()
    text = content[front.end() :] if front else content
    return facts, " ".join(_MARKS.sub(" ", text).split())


def family(key: str) -> str:
    """The name of a licence before its version: "lgpl" and "gpl" and "agpl" (which quote each other) are "gpl"."""
    first = key.split("-")[0]
    return {"lgpl": "gpl", "agpl": "gpl", "x11": "mit", "cc0": "cc"}.get(first, first)
