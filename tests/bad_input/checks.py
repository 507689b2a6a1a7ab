"""What every test of bad input stands on: how a refusal looks, and that nothing was written."""

from __future__ import annotations

from pathlib import Path

STORE = "kept"
QUICK = ("--store", STORE, "--steps", 2, "--batch-size", 8, "--quiet")


def content(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def check(answer, *values: str, fix: str = "") -> None:
    """One error in three parts on stderr, with the values in it; exit 2, no traceback, nothing on stdout."""
    assert answer.code == 2, answer
    assert answer.err.startswith("error: "), answer.err
    assert answer.err.count("error:") == 1
    assert "Traceback" not in answer.err
    assert "bug" not in answer.err
    assert "\x1b" not in answer.err
    assert answer.out == ""
    for value in values:
        assert value in answer.err, answer.err
    if fix:
        [line] = [line for line in answer.err.splitlines() if line.startswith("try: ")]
        assert fix in line


def nothing_written() -> None:
    assert not Path(STORE).exists()


def refused(cli, base, task, *values: str, fix: str = "", options=()) -> None:
    check(cli("tune", base, task, *options, *QUICK), *values, fix=fix)
    nothing_written()
