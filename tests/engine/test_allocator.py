"""Freed memory stays in the process where it is asked to, and only there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from anytune.engine.allocator import keep_freed_memory

print(keep_freed_memory() if sys.argv[1] == "keep" else False)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(60):
    torch.empty(12_000_000).fill_(1.0)  # 48 MB: what glibc maps and unmaps each time
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(word: str, **variables: str) -> tuple[str, int]:
    done = subprocess.run([sys.executable, "-c", FAULTS, word], capture_output=True, text=True, check=True,
                          env={**os.environ, **variables})  # fmt: skip
    agreed, count = done.stdout.split()
    return agreed, int(count)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone has this setting")
def test_memory_that_is_kept_is_not_filled_with_zeros_again():
    agreed, kept = faults("keep")
    if agreed != "True":
        pytest.skip("the C library has no such setting")
    assert kept < faults("leave")[1] / 3


def test_a_users_own_setting_is_left_alone():
    assert faults("keep", MALLOC_ARENA_MAX="2")[0] == "False"
