"""Pair tasks: WordNet glosses (three relations) and the Lee documents (human similarity)."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from anytune.data.samples.rows import RawText, Records, Row

#: pairs of each relation and part of speech, so that the classes are equally large
PAIRS_OF_A_KIND = {"noun": 5000, "verb": 1500}
#: synsets below the same node of this depth form a region; both sides of a pair come from one region
REGION_DEPTH = {"noun": 5, "verb": 1}
SMALLEST_REGION = 8


@dataclass
class Synset:
    """One set of synonyms; ``above`` and ``below`` are offsets of its hypernyms and hyponyms."""

    word: str
    gloss: str
    above: list[int] = field(default_factory=list)
    below: list[int] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Word and gloss, as the task shows them."""
        return f"{self.word}: {self.gloss}"


def wordnet_pairs(folder: Path) -> Records:
    """Gloss pairs labelled hypernym (the second is more general), sibling (same hypernym) or random (same region).

    Shaped like natural language inference (three relations of two texts), but it is not NLI. All three kinds are drawn
    inside one region of the hierarchy, and whole regions go to one split, so that no gloss is in two splits.
    """
    records = Records()
    for part in ("noun", "verb"):
        synsets = read_synsets(folder / f"usr/share/wordnet/data.{part}")
        regions = _regions(synsets, REGION_DEPTH[part])
        used: set[int] = set()
        for label, pairs in _relations(synsets, regions).items():
            for left, right in sorted(pairs, key=lambda pair: _order(label, *pair))[: PAIRS_OF_A_KIND[part]]:
                group = f"{part}-{regions[left]}"
                records.rows.append(Row(synsets[left].text, synsets[right].text, label, group))
                used |= {left, right}
        for offset, synset in synsets.items():
            if offset not in used:
                records.outside.append(RawText(synset.text, f"{part}-{regions[offset]}"))
    return records


def lee_pairs(folder: Path) -> Records:
    """Pairs of the 50 short news documents of Lee et al. 2005 with their mean similarity rating, 0.2 to 1.

    Documents, not pairs, are split (35 / 5 / 10), and pairs of documents of two splits are left out: 595 / 10 / 45 of
    1,225 remain. The background documents are text outside the task.
    """
    data = folder / "gensim/test/test_data"
    documents = [" ".join(line.split()) for line in _lines(data / "lee.cor")]
    ratings = [[float(value) for value in line.split()] for line in _lines(data / "similarities0-1.txt")]
    order = sorted(range(len(documents)), key=lambda index: _order("lee", index))
    split_of = {
        index: "test" if place < 10 else "validation" if place < 15 else "train" for place, index in enumerate(order)
    }
    records = Records(official=[])
    assert records.official is not None
    for left in range(len(documents)):
        for right in range(left + 1, len(documents)):
            if split_of[left] == split_of[right]:
                records.rows.append(Row(documents[left], documents[right], ratings[left][right]))
                records.official.append(split_of[left])
    records.outside = [RawText(" ".join(line.split())) for line in _lines(data / "lee_background.cor")]
    return records


def read_synsets(place: Path) -> dict[int, Synset]:
    """Synsets of a WordNet ``data.*`` file by offset, links filled in; example sentences are cut off the gloss."""
    synsets: dict[int, Synset] = {}
    for line in place.read_text(encoding="latin-1").splitlines():
        if line.startswith("  "):  # the licence at the top
            continue
        head, _, gloss = line.partition(" | ")
        fields = head.split()
        word_count = int(fields[3], 16)
        links = fields[4 + 2 * word_count + 1 :]
        definition = gloss.split('; "')[0].strip().rstrip(";")
        synset = Synset(fields[4].replace("_", " "), definition)
        for place_of_link in range(0, 4 * int(fields[4 + 2 * word_count]), 4):
            symbol, target = links[place_of_link], int(links[place_of_link + 1])
            if symbol == "@":
                synset.above.append(target)
            elif symbol == "~":
                synset.below.append(target)
        synsets[int(fields[0])] = synset
    return synsets


def _regions(synsets: dict[int, Synset], depth: int) -> dict[int, int]:
    """The ancestor at ``depth`` on each synset's first path from the top; the synset itself where it is higher."""
    paths: dict[int, list[int]] = {}

    def path(offset: int) -> list[int]:
        if offset not in paths:
            paths[offset] = [offset]  # guards against a loop in the data
            above = synsets[offset].above
            paths[offset] = [*(path(above[0]) if above else []), offset]
        return paths[offset]

    return {offset: path(offset)[: depth + 1][-1] for offset in synsets}


def _relations(synsets: dict[int, Synset], regions: dict[int, int]) -> dict[str, list[tuple[int, int]]]:
    """Candidate pairs of each relation, both sides in one region that is large enough."""
    members: dict[int, list[int]] = defaultdict(list)
    for offset, region in regions.items():
        members[region].append(offset)
    found: dict[str, list[tuple[int, int]]] = {"hypernym": [], "sibling": [], "random": []}
    for offset, synset in synsets.items():
        around = members[regions[offset]]
        if len(around) < SMALLEST_REGION:
            continue
        parents = [parent for parent in synset.above if regions[parent] == regions[offset]]
        found["hypernym"] += [(offset, parent) for parent in parents[:1]]
        sisters = {sister for parent in synset.above for sister in synsets[parent].below} - {offset}
        close = sorted(sister for sister in sisters if regions[sister] == regions[offset])
        if close:
            found["sibling"].append((offset, close[int(_order("sibling", offset), 16) % len(close)]))
        related = {offset, *sisters, *synset.above, *synset.below}
        far = around[int(_order("random", offset), 16) % len(around)]
        if far not in related:
            found["random"].append((offset, far))
    return found


def _order(*what: object) -> str:
    return hashlib.sha256(repr(what).encode()).hexdigest()


def _lines(place: Path) -> list[str]:
    return [line for line in place.read_text(encoding="latin-1").splitlines() if line.strip()]
