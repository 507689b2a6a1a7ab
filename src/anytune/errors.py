"""Errors a user can act on.

Every one has three parts: what is wrong (with the values), why it matters, and what to type instead. The command line
prints them without a traceback and leaves with exit code 2; Python code gets an ordinary exception.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AnytuneError(Exception):
    """Something the user can put right.

    Args:
        what: what is wrong, with the values that are wrong.
        why: why it matters (one sentence; may be empty).
        fix: what to type or change instead (may be empty).
    """

    exit_code = 2

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        self.what, self.why, self.fix = what, why, fix
        super().__init__("\n".join(part for part in (what, why, f"Try: {fix}" if fix else "") if part))


class BaseError(AnytuneError):
    """A base model that cannot be found, read or used."""


class DeltaError(AnytuneError):
    """A delta that cannot be read or applied."""


class WrongBaseError(DeltaError):
    """A delta of one base was about to be put onto another."""


class DataError(AnytuneError):
    """Text or labels that cannot be used as they are."""


class SampleError(AnytuneError):
    """A named sample that is unknown or cannot be fetched."""


class SettingsError(AnytuneError):
    """A recipe, option or method setting that is unknown or out of range."""


class MethodError(AnytuneError):
    """A method that does not exist, cannot do this, or collides with another."""


class StoreError(AnytuneError):
    """A store that cannot be read or written, or an artefact that is missing or damaged."""


class HubError(AnytuneError):
    """A hub repository that cannot be reached, read or written, or that holds what is not taken from one."""


class TrainingError(AnytuneError):
    """A run that cannot go on (loss not finite, nothing to train, changed settings on resume)."""


class DivergedError(TrainingError):
    """A run whose loss or weights are no longer finite numbers."""


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice most like ``word``, or None if none is near: ``nearest("lerning_rate", ...) -> "learning_rate"``."""
    by_lower = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def unknown(kind: str, word: str, choices: Iterable[str], error: type[AnytuneError] = AnytuneError) -> AnytuneError:
    """The error for a word that is not one of ``choices``: it suggests the near one, else lists what there is."""
    names = sorted(choices)
    near = nearest(word, names)
    fix = f"{near}" if near else f"one of {', '.join(names)}" if names else ""
    return error(f"unknown {kind} '{word}'", why=f"Known: {', '.join(names) or 'none'}.", fix=fix)
