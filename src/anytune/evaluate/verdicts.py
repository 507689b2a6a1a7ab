"""What happened, in plain sentences: also where recycling did not help, and where the numbers cannot decide."""

from __future__ import annotations

from collections.abc import Sequence

from anytune.evaluate.compare import Row
from anytune.evaluate.runs import DIRECT
from anytune.evaluate.scores import Difference, higher_is_better

#: changes smaller than this (in points) are written as "equal" rather than as 0.0 points
SMALLEST = 0.05


def count(value: float) -> str:
    """A count for a sentence: no decimals, thousands apart."""
    return f"{value:,.0f}"


def difference_words(difference: Difference) -> str:
    """``"undecided: 3 seeds, interval -0.4 to 2.0"``, or ``"3 seeds, interval 0.4 to 2.0"``."""
    seeds = f"{difference.n} seed{'s' if difference.n != 1 else ''}"
    interval = ""
    if difference.low is not None and difference.high is not None:
        interval = f", interval {_end(difference.low)} to {_end(difference.high)}"
    return f"{'undecided: ' if difference.outcome == 'undecided' else ''}{seeds}{interval}"


def _end(value: float) -> str:
    """An end of an interval: one decimal, more where one would read as 0.0."""
    return f"{value:.1f}" if abs(value) >= SMALLEST else "0" if value == 0 else f"{value:.2g}"


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Sentences for a reader in a hurry: ``summaries``, then ``sentences``; an empty list only for no rows at all."""
    return summaries(rows) + sentences(rows)


def summaries(rows: Sequence[Row]) -> list[str]:
    """One sentence for each recycling arm over all its tasks and upgrades, or one that nothing was recycled."""
    if not rows:
        return []
    recycled = [row for row in rows if row.recycled]
    arms = dict.fromkeys(row.arm for row in recycled)
    return [_summary(arm, [row for row in recycled if row.arm == arm]) for arm in arms] or [_nothing_recycled(rows)]


def sentences(rows: Sequence[Row]) -> list[str]:
    """One sentence for each task and upgrade where something was recycled."""
    return [f"{lead}, {rest}" for lead, rest in told(rows)]


def told(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """The ``sentences`` in two parts, as ("On foldoc after v2", "direct reuse lost ...")."""
    cells: dict[tuple[tuple[str, str], str], list[Row]] = {}
    for row in rows:
        if row.recycled:
            cells.setdefault((row.task_key, row.base_key), []).append(row)
    parts = [(cell[0], [part for part in map(_row, cell) if part]) for cell in cells.values()]
    return [(f"On {first.task} after {first.base}", f"{'; '.join(said)}.") for first, said in parts if said]


def _nothing_recycled(rows: Sequence[Row]) -> str:
    deltas = sum(len(row.runs) for row in rows)
    tasks = len({row.task_key for row in rows})
    bases = len({row.base_key for row in rows})
    return (
        f"Nothing has been recycled in this store yet: it holds {_plural(deltas, 'tuned delta')} "
        f"of {_plural(tasks, 'task')} on {_plural(bases, 'base')}."
    )


def _plural(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _of(part: int, whole: int) -> str:
    """``"all 6 comparisons"``, ``"none of 6 comparisons"``, ``"5 of 6 comparisons"``."""
    if whole == 1:
        return "the one comparison" if part else "none of 1 comparison"
    return f"{'all' if part == whole else 'none of' if not part else f'{part} of'} {_plural(whole, 'comparison')}"


def _standing(outcomes: Sequence[str]) -> str:
    """Where an arm stands against fresh tuning: only the outcomes that occur."""
    phrases = {"higher": "above", "lower": "below", "undecided": "undecided"}
    (number, word), *rest = [(outcomes.count(key), word) for key, word in phrases.items() if key in outcomes]
    against = f"{word}{' against' if word == 'undecided' else ''} fresh tuning's"
    if not rest:
        return f"{against} in {_of(number, len(outcomes))}"
    return f"{against} in {number}, {', '.join(f'{word} in {times}' for times, word in rest)} of {len(outcomes)}"


def _range(rows: Sequence[Row]) -> str:
    """Smallest and largest mean difference, where all are in points."""
    gains = [row.over_fresh.mean for row in rows if row.over_fresh]
    if not gains or not all(higher_is_better(row.metric) for row in rows):
        return ""
    low, high = (f"{value + 0.0:+.1f}" for value in (min(gains), max(gains)))
    return f" ({low} points)" if len(gains) == 1 else f" ({low} to {high} points)"


def _summary(arm: str, rows: Sequence[Row]) -> str:
    """One sentence over all tasks and upgrades of an arm."""
    cells = _plural(len(rows), "comparison")
    outcomes = [row.over_fresh.outcome if row.over_fresh else None for row in rows]
    compared = [outcome for outcome in outcomes if outcome]
    name = "Direct reuse" if arm == DIRECT else arm[:1].upper() + arm[1:]
    if not compared:
        return f"{name}: {cells}, none of them with fresh tuning beside it, so nothing can be said about its gain."
    final = _standing(compared)
    timed = [row for row in rows if row.target is not None and arm != DIRECT]
    if not timed:
        return f"{name}: the test score was {final}{_range(rows)}."
    sooner = [row for row in timed if row.saved is not None and row.saved > 0]
    text = (
        f"{name} reached fresh tuning's final validation score in fewer steps than fresh tuning itself in "
        f"{_of(len(sooner), len(timed))}; its test score was {final}{_range(rows)}."
    )
    others = [f"{row.task} after {row.base}" for row in timed if row not in sooner]
    if others:
        shown = ", ".join(others[:4]) + (f" and {len(others) - 4} more" if len(others) > 4 else "")
        text += f" It saved no steps on {shown}."
    return text


def _row(row: Row) -> str:
    if row.arm == DIRECT:
        return _direct(row)
    steps, final = _steps(row), " and ".join(part for part in (_final(row), _whole(row)) if part)
    if steps and final:
        return f"{row.label} {steps}; its final test score is {final}"
    if final:
        return f"{row.label}'s final test score is {final}"
    return f"{row.label} {steps}" if steps else ""


def _unit(row: Row) -> str:
    return "points" if higher_is_better(row.metric) else row.metric


def _direct(row: Row) -> str:
    if row.over_fresh is None:
        return f"direct reuse scored {row.test.mean:.1f} on test" if row.test else ""
    gain = row.over_fresh
    if abs(gain.mean) < SMALLEST:
        moved = "was level with fresh tuning"
    else:
        verb = "gained" if gain.mean > 0 else "lost"
        moved = f"{verb} {abs(gain.mean):.1f} {_unit(row)} against fresh tuning"
    return f"direct reuse {moved} ({difference_words(gain)})"


def _steps(row: Row) -> str:
    if row.target is None:
        return ""
    seeds = f"{row.reached} of {_plural(len(row.runs), 'seed')}"
    if row.steps_to_target is None:
        return f"did not reach fresh tuning's final validation score within its {count(row.steps)} steps ({seeds} did)"
    own = row.fresh_steps_to_target
    itself = f"fresh itself first after {count(own)}" if own is not None else "the median fresh seed never did"
    return (
        f"reached fresh tuning's final validation score after {count(row.steps_to_target)} of {count(row.steps)} "
        f"steps ({seeds}; {itself})"
    )


def _final(row: Row) -> str:
    if row.over_fresh is None:
        return f"{row.test.mean:.1f}" if row.test else ""
    return f"{_above(row, row.over_fresh)} fresh tuning's ({difference_words(row.over_fresh)})"


def _whole(row: Row) -> str:
    if row.over_whole is None:
        return ""
    return (
        f"{_above(row, row.over_whole)} that of fresh tuning with the whole budget, old and new steps "
        f"({difference_words(row.over_whole)})"
    )


def _above(row: Row, gain: Difference) -> str:
    if abs(gain.mean) < SMALLEST:
        return "level with"
    return f"{abs(gain.mean):.1f} {_unit(row)} {'above' if gain.mean > 0 else 'below'}"
