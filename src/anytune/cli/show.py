"""How results look: aligned columns that can be piped, or JSON; and what to type next."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anytune.store import Entry


def print_json(value: Any) -> None:
    """One JSON document on stdout; NaN, which JSON lacks, becomes null."""
    print(_escaped(json.dumps(_finite(value), indent=1, ensure_ascii=False)))


def print_json_line(value: Any) -> None:
    """One JSON object on a line."""
    print(_escaped(json.dumps(_finite(value), ensure_ascii=False)))


def say(text: str, file: Any = None) -> None:
    """Print words that may come from a manifest or a file name, which must not steer the terminal."""
    print(printable(text), file=file)


def printable(text: str) -> str:
    """Control characters written out (an escape sequence, a right-to-left mark); line ends and tabs stay."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else repr(letter)[1:-1] for letter in text)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Rows under a header, aligned; numbers to the right."""
    print(table(columns, rows))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Aligned text; columns in which no row has anything are left out."""
    cells = [[cell(value) for value in row] for row in rows]
    numeric = [all(_is_number(row[place]) for row in cells if row[place] != "-") for place in range(len(columns))]
    kept = [place for place in range(len(columns)) if not cells or any(row[place] != "-" for row in cells)]
    widths = {place: max(width(text) for text in [columns[place], *(row[place] for row in cells)]) for place in kept}
    lines = []
    for row in [list(columns), *cells]:
        parts = []
        for place in kept:
            gap = " " * (widths[place] - width(row[place]))
            parts.append(gap + row[place] if numeric[place] and cells else row[place] + gap)
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def cell(value: Any) -> str:
    """A value as a table shows it, on one line."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 1000 else f"{value:.0f}"
    text = " ".join(str(value).split())
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def width(text: str) -> int:
    """Columns a text takes on a terminal: wide letters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text
    )


def shorten(text: str, limit: int) -> str:
    """A text on one line, cut to ``limit`` columns."""
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 3].rstrip()}..."


def size(count: int) -> str:
    """Bytes in words: ``8.9 MB``."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def run_record(entry: Entry) -> dict[str, Any]:
    """What a script wants to know of a stored run."""
    manifest = entry.manifest
    return {
        "reference": entry.reference, "folder": str(entry.folder), "kind": manifest.kind, "name": manifest.name,
        "id": manifest.id, "task": manifest.task.name if manifest.task else None, "base": manifest.base.short,
        "methods": [method.model_dump() for method in manifest.methods], "seed": manifest.seed, "form": manifest.form,
        "metric": entry.main_metric(), "scores": manifest.scores, "steps": manifest.steps,
        "best_step": manifest.best_step, "seconds": manifest.seconds, "notes": manifest.notes,
        **({"failed": manifest.failed} if manifest.failed else {}),
    }  # fmt: skip


def print_runs(entries: Sequence[Entry]) -> None:
    """A row per seed, and the mean over seeds where there are several."""
    metric = entries[0].main_metric() or "score"
    # exact match is 0 for long, and then says nothing
    perplexities = [entry.manifest.scores.get("test", {}).get("perplexity") for entry in entries]
    beside = perplexities if metric == "exact_match" else [None] * len(entries)
    sizes = [entry.manifest.task.counts.get("train") if entry.manifest.task else None for entry in entries]
    several = len(set(sizes)) > 1
    rows: list[list[Any]] = [
        [entry.manifest.seed, size if several else None, entry.score("validation"), entry.score("test"), perplexity,
         entry.manifest.steps, f"{entry.manifest.seconds:.1f}", entry.reference]
        for entry, size, perplexity in zip(entries, sizes, beside, strict=True)
    ]  # fmt: skip
    if len(rows) > 1 and not several:
        rows.append(["mean", None, *(_mean([row[place] for row in rows]) for place in (2, 3, 4)), None, None, None])
    names = ["seed", "examples", f"validation {metric}", "test", "test perplexity", "steps", "seconds", "reference"]
    print_table(names, rows)
    for note in dict.fromkeys(note for entry in entries for note in entry.manifest.notes):
        say(f"note: {note}", file=sys.stderr)


def print_bases(entries: Sequence[Entry]) -> None:
    """A row per new base: perplexity on its own held-out text before and after."""
    rows = []
    for entry in entries:
        manifest = entry.manifest
        names = [domain.name for domain in manifest.domains]
        held = [
            manifest.scores.get(f"{when}heldout:{name}", {}).get("perplexity")
            for name in names
            for when in ("before:", "")
        ]
        before, after = held if len(held) == 2 else (None, None)
        rows.append(
            [
                manifest.name,
                ", ".join(names),
                before,
                after,
                manifest.steps,
                f"{manifest.seconds:.1f}",
                entry.reference,
            ]
        )
    print_table(["base", "domain", "perplexity before", "after", "steps", "seconds", "reference"], rows)


def in_store(store: str | None) -> str:
    """The option that names the store in a command to type next, if it is not the usual one."""
    return f" --store {quoted(store)}" if store else ""


def quoted(word: str) -> str:
    """A word as a shell takes it."""
    import shlex

    return shlex.quote(word)


def _escaped(document: str) -> str:
    """The same JSON with every character that steers a terminal as an escape; such stand only inside strings."""
    return "".join(
        letter if letter.isprintable() or letter == "\n" else json.dumps(letter)[1:-1] for letter in document
    )


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if len(present) == len(values) else None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text == "mean"
    return True


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def predicting(entry: Any) -> str:
    """The command that predicts with a delta, for single texts or for pairs as it was tuned."""
    columns = entry.manifest.task.text_columns if entry.manifest.task else []
    if len(columns) == 2:
        return f"anytune predict {quoted(entry.reference)} --file FILE --text {quoted(','.join(columns))}"
    kind = entry.manifest.task.kind if entry.manifest.task else "classification"
    example = {"generation": "a prompt", "token-classification": "some words"}.get(kind, "some text")
    return f'anytune predict {quoted(entry.reference)} "{example}"'
