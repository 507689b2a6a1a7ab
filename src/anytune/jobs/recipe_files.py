"""Read recipe files and ``key=value`` words: YAML in which numbers are numbers, with the line of every key.

PyYAML follows YAML 1.1, where ``1e-4`` is text, ``no`` is false, ``12:30`` is 750 and a date becomes an object. Here
the plain rules of YAML 1.2 hold: true and false, null, whole numbers, numbers with a fraction or an exponent; all
else is text. A key that is given twice is an error, and so is a tab that indents.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from anytune.errors import SettingsError, nearest

#: Where a value stands in a recipe: keys, and for lists places counted from 0.
Place = tuple[str | int, ...]
#: What YAML 1.1 takes plain values for; we read them by our own rules. Python objects and private tags are refused.
PLAIN_TAGS = {
    f"tag:yaml.org,2002:{name}"
    for name in ("str", "int", "float", "bool", "null", "timestamp", "merge", "value", "seq", "map")
}
MAX_NODES, MAX_BYTES, MAX_DEPTH = 20_000, 2_000_000, 30
_SCALARS: tuple[tuple[re.Pattern[str], Callable[[str], Any]], ...] = (
    (re.compile(r"(?:~|null|Null|NULL|)"), lambda _: None),
    (re.compile(r"true|True|TRUE|false|False|FALSE"), lambda text: text.lower() == "true"),
    (re.compile(r"[-+]?(?:0|[1-9][0-9]{0,300})"), int),
    (re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)?\.[0-9]+|(?:0|[1-9][0-9]*)\.|(?:0|[1-9][0-9]*)(?=[eE]))(?:[eE][-+]?[0-9]+)?"),
     float),
    (re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"), lambda text: float(text.lower().replace(".", ""))),
)  # fmt: skip


@dataclass(frozen=True)
class RecipeText:
    """What a recipe file says: its values, and the line (from 1) of each key or list item."""

    values: dict[str, Any]
    source: str = "recipe"
    lines: Mapping[Place, int] = field(default_factory=dict)

    def where(self, *place: str | int) -> str:
        """``tune.yaml, line 4`` for a key that stands in the file; ``tune.yaml`` for one that does not."""
        line = self.lines.get(place)
        return f"{self.source}, line {line}" if line else self.source


def read_recipe(path: Path) -> RecipeText:
    """Read a recipe file.

    Raises:
        SettingsError: it is missing, no UTF-8, no YAML, not a mapping, or holds a key twice; with the line.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        folder = path.parent
        beside = [file.name for file in folder.iterdir()] if folder.is_dir() else []
        near = nearest(path.name, beside)
        raise SettingsError(
            f"recipe {path} does not exist",
            fix=f"anytune run {folder / near}" if near else "anytune run RECIPE.yaml   (examples are in recipes/)",
        ) from None
    except OSError as problem:
        raise SettingsError(f"cannot read recipe {path}: {problem.strerror or problem}") from None
    if len(data) > MAX_BYTES:
        raise SettingsError(f"{path} has {len(data)} bytes", why="A recipe is a short text; this looks like data.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = data[: problem.start].count(b"\n") + 1
        raise SettingsError(f"{path}, line {line}: byte {data[problem.start]:#04x} is not UTF-8") from None
    return parse_recipe(text, path.name)


def parse_recipe(text: str, source: str = "recipe") -> RecipeText:
    """The values and lines of a recipe's text.

    Raises:
        SettingsError: as ``read_recipe``.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        line = mark.line + 1 if mark else 1
        raise SettingsError(
            f"{source}, line {line}: {_yaml_problem(problem, text, line)}", fix=_yaml_fix(text, line)
        ) from None
    except yaml.YAMLError as problem:
        raise SettingsError(f"{source}: {str(problem).splitlines()[0]}", why="A recipe is YAML text.") from None
    except RecursionError:
        raise SettingsError(f"{source} is nested too deep", why="A recipe is a few levels of keys.") from None
    lines: dict[Place, int] = {}
    values = None if node is None else _Reader(source, lines).read(node, (), ())
    if not isinstance(values, dict):
        found = "is empty" if values is None else f"holds a {_kind(values)}"
        raise SettingsError(
            f"{source} {found}",
            why="A recipe is a mapping of keys to values.",
            fix="job: tune   (and base:, task: ...)",
        )
    return RecipeText(values, source, lines)


class _Reader:
    """Turns YAML nodes into plain values, noting the line of each key."""

    def __init__(self, source: str, lines: dict[Place, int]) -> None:
        self.source, self.lines, self.count = source, lines, 0

    def read(self, node: yaml.Node, place: Place, above: tuple[yaml.Node, ...]) -> Any:
        """The value of a node; ``above`` are the nodes it stands in."""
        self.count += 1
        if self.count > MAX_NODES or node in above:  # aliases can make a small file endless
            raise self._error(node, "aliases (*name) unfold without end", "write the values out")
        if len(above) > MAX_DEPTH:
            raise self._error(node, f"nested deeper than {MAX_DEPTH}", "a few levels of keys")
        if node.tag not in PLAIN_TAGS:
            raise self._error(node, f"the tag {node.tag} is not for recipes", "plain values only")
        if isinstance(node, yaml.ScalarNode):
            return node.value if node.style else scalar(node.value)
        above = (*above, node)
        if isinstance(node, yaml.SequenceNode):
            return [self._item(inner, (*place, number), above) for number, inner in enumerate(node.value)]
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._error(key_node, "a key must be a word", "key: value")
            key = key_node.value
            here = (*place, key)
            if key in values:
                first = self.lines.get(here)
                raise self._error(key_node, f"'{key}' is given twice, first in line {first}", "keep one of them")
            self.lines[here] = key_node.start_mark.line + 1
            values[key] = self.read(value_node, here, above)
        return values

    def _item(self, node: yaml.Node, place: Place, above: tuple[yaml.Node, ...]) -> Any:
        self.lines[place] = node.start_mark.line + 1
        return self.read(node, place, above)

    def _error(self, node: yaml.Node, what: str, fix: str) -> SettingsError:
        return SettingsError(f"{self.source}, line {node.start_mark.line + 1}: {what}", fix=fix)


def scalar(text: str) -> Any:
    """The value of an unquoted word: true / false, null, a number, else the text itself."""
    for pattern, convert in _SCALARS:
        if pattern.fullmatch(text):
            return convert(text)
    return text


def parse_value(text: str) -> Any:
    """The value after ``key=`` on a command line: ``1e-4`` is a number, ``[a, b]`` a list, ``{r: 8}`` a mapping.

    Everything that is not one of these is the text itself, with no need of quotes within quotes.
    """
    stripped = text.strip()
    if stripped[:1] not in ("[", "{", '"', "'"):
        return scalar(stripped)
    try:
        node = yaml.compose(stripped, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError):
        return text
    return None if node is None else _Reader("value", {}).read(node, (), ())


def parse_pairs(words: Iterable[str], option: str = "") -> dict[str, Any]:
    """``["r=4", "dropout=1e-1"]`` as a dict; keys may be dotted.

    Raises:
        SettingsError: a word without ``=``, or a key given twice.
    """
    pairs: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        key = key.strip().removeprefix("--")
        if not equals or not key:
            raise SettingsError(
                f"'{word}' is not key=value",
                why="A setting is given as its name, = and its value.",
                fix=f"{option} KEY=VALUE".strip(),
            )
        if key in pairs:
            raise SettingsError(
                f"'{key}' is given twice: {pairs[key]!r} and {value!r}", fix=f"{option} {key}={value}".strip()
            )
        pairs[key] = parse_value(value)
    return pairs


def with_overrides(recipe: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """The recipe with ``key=value`` overrides put in: ``training.steps=50``, ``method.r=4``, ``jobs.0.base=...``.

    A method given by name becomes a mapping when one of its settings is overridden.

    Raises:
        SettingsError: a word without ``=``, or a place that cannot hold keys.
    """
    changed = _copy(recipe)
    for dotted, value in parse_pairs(overrides).items():
        _put(changed, dotted.split("."), value, dotted)
    return changed


def parse_seeds(value: Any) -> list[int]:
    """Seeds as a list: ``"0,1,2"`` or ``[0, 1, 2]`` are these seeds, ``3`` or ``"3"`` is that many: 0, 1 and 2.

    One certain seed is ``"7,"`` or ``[7]``.

    Raises:
        SettingsError: none of these, or a count outside 1 to 100.
    """
    fix = "0,1,2   (these seeds), or 3   (that many, from 0), or 7,   (seed 7 alone)"
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",")]
        words = [part for part in parts if part]
        if not words or not all(re.fullmatch(r"[0-9]{1,10}", word) for word in words):
            raise SettingsError(f"seeds = {value!r}", why="Seeds are whole numbers.", fix=fix)
        value = int(words[0]) if len(parts) == 1 else [int(word) for word in words]
    if isinstance(value, Sequence):
        return list(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise SettingsError(f"seeds = {value!r}", why="Seeds are whole numbers.", fix=fix)
    if not 1 <= value <= 100:
        raise SettingsError(
            f"seeds = {value}",
            why=f"One number alone is how many seeds: 0 to {value - 1}.",
            fix=f"{value},   (seed {value} alone)",
        )
    return list(range(value))


def _put(target: Any, keys: list[str], value: Any, dotted: str) -> None:
    key, *rest = keys
    if isinstance(target, list):
        if not (key.isdigit() and int(key) < len(target)):
            raise SettingsError(
                f"override '{dotted}': no item '{key}'", why=f"The list has {len(target)} items, from 0."
            )
        if not rest:
            target[int(key)] = value
            return
        if isinstance(target[int(key)], str):
            target[int(key)] = {"name": target[int(key)]}
        _put(target[int(key)], rest, value, dotted)
        return
    if not rest:
        target[key] = value
        return
    inner = target.get(key)
    if isinstance(inner, str) and key in ("method", "tune"):
        inner = {"name": inner}
    if isinstance(inner, str) and key == "task":
        inner = {"source": inner}
    target[key] = {} if inner is None else inner
    if not isinstance(target[key], dict | list):
        raise SettingsError(f"override '{dotted}': {key} is {inner!r}, which has no '{rest[0]}'", fix=f"{key}=VALUE")
    _put(target[key], rest, value, dotted)


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list | tuple) else value


def _kind(value: Any) -> str:
    return {list: "list", str: "text", int: "number", float: "number", bool: "truth value"}.get(type(value), "value")


def _yaml_problem(problem: yaml.MarkedYAMLError, text: str, line: int) -> str:
    if _tab_at(text, line):
        return "a tab is used to indent"
    return problem.problem or problem.context or "not YAML"


def _yaml_fix(text: str, line: int) -> str:
    return (
        "spaces instead of tabs"
        if _tab_at(text, line)
        else "key: value, one a line; quote texts that hold ': ' or '#'"
    )


def _tab_at(text: str, line: int) -> bool:
    rows = text.splitlines()
    return 0 < line <= len(rows) and "\t" in rows[line - 1][: len(rows[line - 1]) - len(rows[line - 1].lstrip())]
