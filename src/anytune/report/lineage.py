"""The lineage as one drawing: bases left to right, a lane for each task, arrows where weights were recycled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from anytune.evaluate import Artefact, Run
from anytune.evaluate.runs import arm_rank
from anytune.manifests import Manifest, Parent
from anytune.report.arms import Look
from anytune.report.svg import marker, tag
from anytune.report.words import short_count

LABELS, BOX, GAP, LANE = 128, 176, 138, 60
MIDDLE = {"text_anchor": "middle"}
HEAD = 64  # top of the lanes below the base boxes
#: tasks drawn as lanes of their own; the others share the last lane
LANES = 8


@dataclass
class Node:
    """A base: ``key`` is its backbone hash, ``parent`` the key of the base it was pre-trained from."""

    key: str
    name: str
    parent: str | None = None
    domains: tuple[tuple[str, int], ...] = ()
    in_store: bool = False
    depth: int = 0
    created: str = ""


@dataclass
class Lane:
    """A task (or the rest of them): how many runs of each arm stand on each base, and what was recycled where."""

    label: str
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    arrows: Counter[tuple[str, str]] = field(default_factory=Counter)


def nodes_of(artefacts: Iterable[Artefact], runs: Iterable[Run]) -> list[Node]:
    """All bases that the store holds or mentions, parents before children."""
    bases = [artefact.manifest for artefact in artefacts if artefact.manifest.kind == "base"]
    nodes = {
        base.base.backbone: Node(
            base.base.backbone,
            base.name,
            domains=tuple((domain.name, domain.tokens) for domain in base.domains),
            in_store=True,
            created=base.created,
        )
        for base in bases
    }
    for run in runs:
        nodes.setdefault(run.base_key, Node(run.base_key, run.base))
    for base in bases:
        for parent in base.parents:
            if parent.role == "base":
                nodes[base.base.backbone].parent = _parent_key(parent, bases, nodes)
    for node in nodes.values():
        node.depth = _depth(node, nodes)
    return sorted(nodes.values(), key=lambda node: (node.depth, node.created, node.name))


def _parent_key(parent: Parent, bases: Sequence[Manifest], nodes: dict[str, Node]) -> str:
    """By artefact id or backbone, else by name; a parent known by name only becomes a node of its own."""
    for base in bases:
        if parent.id and parent.id in {base.id, base.base.backbone}:
            return base.base.backbone
    if parent.id in nodes:
        return parent.id
    for key, node in nodes.items():
        if parent.name and node.name == parent.name:
            return key
    key = parent.id or f"name:{parent.name}"
    nodes[key] = Node(key, parent.name or parent.id[:10])
    return key


def _depth(node: Node, nodes: Mapping[str, Node]) -> int:
    depth, seen = 0, {node.key}
    while node.parent and node.parent in nodes and node.parent not in seen:
        node = nodes[node.parent]
        seen.add(node.key)
        depth += 1
    return depth


def lanes_of(runs: Sequence[Run], most: int = LANES) -> list[Lane]:
    """One lane for each task; beyond ``most`` tasks the smaller ones are summed in a last lane."""
    by_id = {run.manifest.id: run for run in runs if run.manifest.id}
    sizes = Counter(run.task_key for run in runs)
    largest = sorted(sizes, key=lambda key: (-sizes[key], key))
    chosen = set(largest[: most if len(sizes) <= most else most - 1])
    lanes: dict[object, Lane] = {}
    for run in sorted(runs, key=lambda run: (run.task_key not in chosen, run.task)):
        own = run.task_key in chosen
        key = run.task_key if own else None
        lane = lanes.setdefault(key, Lane(run.task if own else f"{len(sizes) - len(chosen)} more tasks"))
        lane.counts.setdefault(run.base_key, Counter())[run.arm] += 1
        old = by_id.get(run.outdated or "")
        if old and old.base_key != run.base_key:
            lane.arrows[(old.base_key, run.base_key)] += 1
    return list(lanes.values())


def lineage(artefacts: Sequence[Artefact], runs: Sequence[Run], looks: Mapping[str, Look]) -> Markup | None:
    """The drawing; None where there is neither a base nor a delta."""
    nodes, lanes = nodes_of(artefacts, runs), lanes_of(runs)
    if not nodes:
        return None
    column = {node.key: LABELS + index * (BOX + GAP) for index, node in enumerate(nodes)}
    arcs = any(node.parent and _skips(node.parent, node.key, column) for node in nodes)
    top = 34 if arcs else 6
    width = LABELS + len(nodes) * (BOX + GAP) - GAP + 4
    height = top + HEAD + len(lanes) * LANE + 8
    parts = [part for node in nodes for part in _base(node, column, top)]
    for index, lane in enumerate(lanes):
        parts += _lane(lane, column, looks, top + HEAD + index * LANE, width)
    names = ", ".join(node.name for node in nodes)
    label = f"Lineage: bases {names}; {len(runs)} deltas in {len(lanes)} lanes, arrows where weights were recycled."
    return tag(
        "svg", tag("title", label), *parts, viewBox=f"0 0 {width} {height}", role="img", aria_label=label,
        class_="lineage", style=f"min-width:{width * 0.8:.0f}px;max-width:{width * 1.15:.0f}px",
    )  # fmt: skip


def _skips(start: str, end: str, column: Mapping[str, int]) -> int:
    return round((column[end] - column[start]) / (BOX + GAP)) - 1 if start in column else 0


def shorten(text: str, most: int) -> str:
    """The text, cut with an ellipsis to at most ``most`` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _base(node: Node, column: Mapping[str, int], top: int) -> list[Markup]:
    x = column[node.key]
    note = "in this store" if node.in_store else "not in this store"
    parts = [
        tag("rect", x=x, y=top, width=BOX, height=44, rx=8, class_="base" if node.in_store else "base outside"),
        tag(
            "text", tag("title", node.name), shorten(node.name, 20), x=x + BOX / 2, y=top + 20, **MIDDLE,
            class_="base-name",
        ),
        tag("text", note, x=x + BOX / 2, y=top + 36, **MIDDLE, class_="note"),
    ]  # fmt: skip
    if node.parent in column and node.parent is not None:
        parts += _upgrade(node, column[node.parent], x, top, _skips(node.parent, node.key, column))
    return parts


def _upgrade(node: Node, start: int, end: int, top: int, skips: int) -> list[Markup]:
    names = ", ".join(name for name, _ in node.domains)
    tokens = sum(count for _, count in node.domains)
    y = top + 22
    middle = end - GAP / 2
    if skips:
        x1, x2 = start + BOX / 2, end + BOX / 2
        parts = [tag("path", d=f"M{x1} {top}C{x1} {top - 30} {x2} {top - 30} {x2} {top - 5}", class_="upgrade")]
        parts.append(_head(x2, top, "down", "upgrade-head"))
    else:
        parts = [tag("path", d=f"M{start + BOX + 4} {y}H{end - 8}", class_="upgrade")]
        parts.append(_head(end - 2, y, "right", "upgrade-head"))
    if names:
        parts.append(
            tag(
                "text",
                tag("title", names),
                shorten(names, 20),
                x=middle,
                y=y - 8,
                **MIDDLE,
                class_="domain",
            )
        )
    if tokens:
        parts.append(tag("text", f"{short_count(tokens)} tokens", x=middle, y=y + 18, **MIDDLE, class_="note"))
    return parts


def _head(x: float, y: float, to: str, class_: str) -> Markup:
    shapes = {"right": "M0 0L-8-4.5V4.5Z", "down": "M0 0L-4.5-8H4.5Z", "up": "M0 0L-4.5 8H4.5Z"}
    return tag("path", d=shapes[to], transform=f"translate({x:.1f} {y:.1f})", class_=class_)


def _lane(lane: Lane, column: Mapping[str, int], looks: Mapping[str, Look], y: int, width: int) -> list[Markup]:
    parts = [
        tag("path", d=f"M0 {y - 10}H{width}", class_="lane-rule"),
        tag("text", tag("title", lane.label), shorten(lane.label, 17), x=2, y=y + 20, class_="lane-name"),
    ]
    for (start, end), number in sorted(lane.arrows.items()):
        parts += _recycled(column[start], column[end], y, number, abs(_skips(start, end, column)))
    for key, counts in lane.counts.items():
        parts += _chip(column[key], y, counts, looks)
    return parts


def _chip(x: int, y: int, counts: Counter[str], looks: Mapping[str, Look]) -> list[Markup]:
    arms = sorted(counts, key=arm_rank)
    words = ", ".join(f"{counts[arm]} {arm}" for arm in arms)
    parts = [tag("rect", tag("title", words), x=x, y=y, width=BOX, height=30, rx=6, class_="chip")]
    shown = arms if len(arms) <= 4 else arms[:3]
    step = BOX / (len(shown) + (len(arms) > len(shown)))
    for index, arm in enumerate(shown):
        at = x + step * (index + 0.5)
        parts.append(marker(looks[arm].shape, at - 9, y + 15, class_=f"mark arm-{looks[arm].slot}"))
        parts.append(tag("text", f"{counts[arm]}", x=at, y=y + 19.5, class_="chip-count"))
    if len(arms) > len(shown):
        rest = sum(counts[arm] for arm in arms[3:])
        parts.append(tag("text", f"+{rest}", x=x + BOX - step / 2, y=y + 19.5, **MIDDLE, class_="chip-count"))
    return parts


def _recycled(start: int, end: int, y: int, number: int, skips: int) -> list[Markup]:
    words = f"{number} recycled"
    if not skips and end > start:
        line = tag("path", d=f"M{start + BOX + 4} {y + 15}H{end - 9}", class_="recycled")
        text = tag("text", words, x=end - GAP / 2, y=y + 9, **MIDDLE, class_="note")
        return [line, _head(end - 2, y + 15, "right", "recycled-head"), text]
    down = y + 32 + min(8 + 4 * skips, 15)
    x1, x2 = start + BOX * 0.75, end + BOX * 0.25
    bend = 14 if x2 > x1 else -14
    line = tag(
        "path",
        d=f"M{x1} {y + 31}Q{x1} {down} {x1 + bend} {down}H{x2 - bend}Q{x2} {down} {x2} {y + 38}",
        class_="recycled",
    )
    text = tag("text", words, x=end - GAP / 2, y=down - 5, **MIDDLE, class_="note")
    return [line, _head(x2, y + 31, "up", "recycled-head"), text]
