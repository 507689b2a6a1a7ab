"""From words on the command line to the arguments of a job; pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from anytune.errors import SettingsError


def seeds(text: str | None) -> list[int] | None:
    """``--seeds``: see :func:`anytune.jobs.recipe_files.parse_seeds`."""
    from anytune.jobs.recipe_files import parse_seeds

    return None if text is None else parse_seeds(text)


def training(pairs: Sequence[str], **named: Any) -> dict[str, Any]:
    """Training settings of their own options and of ``--training key=value``; only what was given.

    Raises:
        SettingsError: one setting was given in both ways.
    """
    from anytune.jobs.recipe_files import parse_pairs

    given = {key: value for key, value in named.items() if value is not None}
    for key, value in parse_pairs(pairs, "--training").items():
        if key in given:
            option = f"--{key.replace('_', '-')}"
            raise SettingsError(
                f"{option} {given[key]} and --training {key}={value}", why="Both set the same.", fix="one of them"
            )
        given[key] = value
    return given


def methods(names: Sequence[str], pairs: Sequence[str]) -> list[dict[str, Any]]:
    """Methods with their settings: ``--method lora --set r=4``; of several, ``--set lora.r=4`` says whose it is.

    Raises:
        SettingsError: with several methods, a setting that does not say whose it is.
    """
    from anytune.jobs.recipe_files import parse_pairs

    made: list[dict[str, Any]] = [{"name": name, "settings": {}} for name in names]
    for key, value in parse_pairs(pairs, "--set").items():
        owner, dot, inner = key.partition(".")
        fitting = [one for one in made if dot and owner in (one["name"], one["name"].rpartition("/")[2])]
        if fitting:
            fitting[0]["settings"][inner] = value
        elif len(made) == 1:
            made[0]["settings"][key] = value
        else:
            first = names[0].rpartition("/")[2] if names else "METHOD"
            raise SettingsError(
                f"--set {key}={value}: whose setting is it?"
                if not dot
                else f"--set {key}: no method '{owner}' is chosen",
                why=f"Methods: {', '.join(names) or 'none'}.",
                fix=f"--set {first}.{inner or key}={value}" if names else "--method NAME",
            )
    return made


def tags(pairs: Sequence[str]) -> dict[str, str] | None:
    """``--tag arm=fresh``: free labels; None if there are none."""
    from anytune.jobs.recipe_files import parse_pairs

    return {key: str(value) for key, value in parse_pairs(pairs, "--tag").items()} or None


def names(text: str | None) -> list[str] | None:
    """``a,b,c`` as a list."""
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]


def sizes(text: str | None) -> list[int] | None:
    """``100,300`` as numbers.

    Raises:
        SettingsError: something else.
    """
    words = names(text)
    if words is None:
        return None
    if not words or not all(word.isascii() and word.isdigit() for word in words):
        raise SettingsError(f"--train-sizes {text}", why="Sizes are counts of rows.", fix="--train-sizes 100,300")
    return [int(word) for word in words]


def subset_seed(text: str | None) -> int | Literal["run"] | None:
    """``--subset-seed``: "run", or a number.

    Raises:
        SettingsError: something else.
    """
    if text is None:
        return None
    if text == "run":
        return "run"
    if not (text.isascii() and text.isdigit()):
        raise SettingsError(
            f"--subset-seed {text}", why="'run': each run draws its own rows; a number: all draw the same.",
            fix="--subset-seed run",
        )  # fmt: skip
    return int(text)


def resume(must: bool, never: bool) -> Literal["auto", "must", "never"]:
    """``--resume`` and ``--restart`` as the job's ``resume``; neither is "auto".

    Raises:
        SettingsError: both are given.
    """
    if must and never:
        raise SettingsError(
            "--resume and --restart", why="One goes on with the interrupted run, the other throws it away.",
            fix="one of them; without either the same command goes on by itself",
        )  # fmt: skip
    return "must" if must else "never" if never else "auto"


def task_columns(**given: Any) -> dict[str, Any]:
    """The options that say how a task's data are read; only what was given."""
    return {key: value for key, value in given.items() if value is not None}


def placed(positions: Sequence[tuple[str, str | None, str | None]]) -> list[str | None]:
    """Things that can stand in their place or be named by an option: (name, in its place, by option) for each.

    ``anytune recycle DELTA NEW`` and ``anytune recycle DELTA --base NEW`` mean the same.

    Raises:
        SettingsError: one is given in both ways and differently.
    """
    chosen = []
    for name, in_place, by_option in positions:
        if in_place is not None and by_option is not None and in_place != by_option:
            raise SettingsError(
                f"two values for {name}: '{in_place}' and --{name} '{by_option}'", fix=f"--{name} {by_option}   alone"
            )
        chosen.append(in_place if in_place is not None else by_option)
    return chosen


def needed(name: str, value: str | None, fix: str) -> str:
    """The value; if it is missing, the error that says what to type.

    Raises:
        SettingsError: it is None.
    """
    if value is None:
        raise SettingsError(f"no {name} is given", fix=fix)
    return value
