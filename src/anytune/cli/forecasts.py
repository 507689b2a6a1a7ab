"""How a dry run looks: what would be made, what it would cost, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from anytune.cli import show

if TYPE_CHECKING:
    from anytune.jobs.forecast import Forecast

#: Runs whose cost is written out; a plan of many has more than anybody reads.
DETAILED = 4
STATES = {"new": "to be made", "stored": "in the store already", "begun": "goes on"}


def print_forecasts(forecasts: Sequence[Forecast], *, json: bool = False, workers: int = 1) -> None:
    """The runs as a table, what one of each kind costs, and the sum; or all of it as JSON."""
    from anytune.jobs.forecast import summed

    total = summed(forecasts, workers)
    if json:
        show.print_json({"runs": [record(one) for one in forecasts], "total": {**total, "workers": workers}})
        return
    show.print_table(
        ["job", "name", "seed", "steps", "time", "state", "in"],
        [
            [one.job, one.name, one.seed, one.steps, clock(one.seconds) if one.state != "stored" else "",
             state(one), one.place]
            for one in forecasts
        ],
    )  # fmt: skip
    for note in dict.fromkeys(note for one in forecasts for note in one.notes):
        print(f"note: {note}")
    detailed = distinct(forecasts)
    for one in detailed[:DETAILED]:
        print(f"\n{one.job} {one.name}")
        for name, text in cost(one):
            print(f"  {name:<10} {text}")
    if len(detailed) > DETAILED:
        print(f"\n{len(detailed) - DETAILED} more were measured alike; each run is in the table above")
    over = f" in {workers} processes" if workers > 1 else ""
    print(
        f"\nin all: {total['runs']} run{'' if total['runs'] == 1 else 's'}, {total['steps']:,} steps, about "
        f"{clock(total['seconds'])}{over}, {show.size(int(total['memory']))} of memory, "
        f"{show.size(int(total['disk']))} to store\nnothing was written"
    )


def record(forecast: Forecast) -> dict[str, Any]:
    """A forecast as JSON takes it."""
    plain = {**asdict(forecast), "place": str(forecast.place)}
    if forecast.trial is not None:
        plain["trial"]["memory"]["total"] = forecast.trial.memory.total
    return plain


def state(forecast: Forecast) -> str:
    """``"goes on after step 300"``."""
    if forecast.job == "evaluate":
        return "to be scored"
    return STATES[forecast.state] + (f" after step {forecast.done}" if forecast.state == "begun" else "")


def distinct(forecasts: Sequence[Forecast]) -> list[Forecast]:
    """One forecast of each trial: seeds share one."""
    first: dict[int, Forecast] = {}
    for one in forecasts:
        if one.trial is not None:
            first.setdefault(id(one.trial), one)
    return list(first.values())


def cost(forecast: Forecast) -> list[tuple[str, str]]:
    """What a run costs, line by line: (what, how much)."""
    trial = forecast.trial
    assert trial is not None
    memory, size = trial.memory, show.size
    whole = trial.trainable == trial.parameters
    share = "all trained" if whole else f"{trial.trainable:,} trained ({trial.trainable / trial.parameters:.2%})"
    lines = [("parameters", f"{trial.parameters:,}, {share}")]
    if forecast.steps:
        lines.append((
            "a step", f"{trial.examples:.0f} examples, {trial.tokens:.0f} tokens, {seconds(trial.step_seconds)}"
        ))  # fmt: skip
    if trial.evaluated:
        times = len(trial.evaluated)
        lines.append(
            ("evaluation", f"{times} time{'' if times == 1 else 's'}, {seconds(trial.evaluation_seconds)} each")
        )
    parts = {
        "weights": memory.weights, "gradients": memory.gradients, "moments": memory.moments,
        "best weights": memory.best, "activations": memory.activations, "methods": memory.methods,
    }  # fmt: skip
    shown = ", ".join(f"{name} {size(count)}" for name, count in parts.items() if count)
    lines.append(("memory", f"{size(memory.total)}: {shown}"))
    if memory.measured:
        lines.append(("", f"the device held {size(memory.measured)} at most"))
    if trial.process_memory:
        lines.append(("", f"this process has held {size(trial.process_memory)}, data and libraries included"))
    where = f"{forecast.device}, {forecast.threads} thread{'' if forecast.threads == 1 else 's'}"
    if forecast.processes > 1:
        where += f", {forecast.processes} processes"
    lines.append(("precision", f"{forecast.precision}: {forecast.precision_reason} ({where})"))
    return lines


def seconds(value: float) -> str:
    """``"12.5 ms"``, ``"3.40 s"``."""
    return f"{1000 * value:.1f} ms" if value < 1 else f"{value:.2f} s"


def clock(value: float) -> str:
    """``"0:42"``, ``"1:02:03"``; seconds are rounded up."""
    minutes, rest = divmod(int(-(-value // 1)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
