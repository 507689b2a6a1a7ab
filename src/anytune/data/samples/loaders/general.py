"""General English for the warm-up: the Brown corpus."""

from __future__ import annotations

import re
from pathlib import Path

from anytune.data.samples.rows import RawText, Records

_PARAGRAPHS = re.compile(r"\n\s*\n\s*\n")
#: the corpus sets spaces around every sign
_OPENING = re.compile(r"(``|`|[(\[]) ")
_CLOSING = re.compile(r" (''|'|[.,;:?!)\]])(?= |$|'')")


def brown(folder: Path) -> Records:
    """The paragraphs of the 500 documents, part-of-speech tags taken off; grouped by document."""
    records = Records()
    for place in sorted((folder / "package").glob("c[a-r][0-9][0-9]")):
        for paragraph in _PARAGRAPHS.split(place.read_text(encoding="latin-1")):
            words = [token.rpartition("/")[0] for token in paragraph.split() if "/" in token]
            text = _CLOSING.sub(r"\1", _OPENING.sub(r"\1", " ".join(words)))
            text = text.replace("``", '"').replace("''", '"').replace("`", "'")
            if text:
                records.outside.append(RawText(text, place.name))
    return records
