"""How a canary speaks: whatever goes wrong inside, one sentence comes out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def assumption(sentence: str) -> Iterator[None]:
    """Fail with ``sentence`` (what upstream no longer does: what of ours leans on it) and the reason in brackets."""
    reason = ""
    try:
        yield
    except (Exception, pytest.fail.Exception) as problem:  # the latter: what pytest.raises fails with
        reason = f"{type(problem).__name__}: {(str(problem).strip().splitlines() or ['it does not hold'])[0][:120]}"
    if reason:
        raise pytest.fail.Exception(f"{sentence} ({reason})", pytrace=False) from None
