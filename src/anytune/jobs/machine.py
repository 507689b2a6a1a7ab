"""What this machine has: cores, threads, memory, disk, a driver, and how fast it multiplies. Facts, no judgement."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Side of the square matrices that are multiplied: the size of a small model's products, milliseconds each.
MATRIX = 512
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Cores:
    """Cores of the machine, those this process may use, those its control group grants, and threads torch uses."""

    machine: int
    allowed: int
    granted: float | None
    threads: int
    variable: str | None

    @property
    def usable(self) -> int:
        """Whole cores this process can keep busy."""
        return max(1, int(min(self.allowed, self.granted or self.allowed)))


def cores() -> Cores:
    """Cores and threads of this process."""
    import torch

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Cores(os.cpu_count() or 1, allowed, granted_cores(), torch.get_num_threads(),
                 os.environ.get("OMP_NUM_THREADS"))  # fmt: skip


def granted_cores(root: Path = CGROUP) -> float | None:
    """Cores that a container's control group grants (its quota over its period); None for no limit."""
    for name in ("cpu.max", "cpu/cpu.cfs_quota_us"):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            words = (root / name).read_text().split()
            period = words[1] if len(words) > 1 else (root / "cpu/cpu.cfs_period_us").read_text()
            if words[0] not in ("max", "-1"):
                return int(words[0]) / int(period)
    return None


def free_memory(root: Path = CGROUP) -> int | None:
    """Bytes of main memory that a new process could have; None where the system does not tell."""
    found: list[int] = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    with contextlib.suppress(OSError, ValueError):  # "max" is no number
        limit = int((root / "memory.max").read_text())
        found.append(limit - int((root / "memory.current").read_text()))
    return max(0, min(found)) if found else None


def free_disk(folder: Path) -> int | None:
    """Bytes free where a folder is, or would be; None where it cannot be told."""
    place = folder.expanduser().absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        return shutil.disk_usage(place).free
    except OSError:
        return None


def folder_sizes(folder: Path, seconds: float = 1.0) -> dict[str, int]:
    """Name -> bytes of each thing directly in a folder; stops counting after ``seconds``."""
    until = time.monotonic() + seconds
    sizes: dict[str, int] = {}
    for child in sorted(folder.iterdir()) if folder.is_dir() else []:
        total = child.stat().st_size if child.is_file() else 0
        for root, _, names in os.walk(child):
            for name in names:
                with contextlib.suppress(OSError):
                    total += os.lstat(os.path.join(root, name)).st_size
            if time.monotonic() > until:
                break
        if not child.name.startswith("."):
            sizes[child.name] = total
    return sizes


def driver() -> str | None:
    """The version of the NVIDIA driver, if there is one."""
    if shutil.which("nvidia-smi") is None:
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        said = subprocess.run(asked, capture_output=True, text=True, timeout=3, check=True).stdout
        return said.splitlines()[0].strip() if said.strip() else None
    return None


@dataclass(frozen=True)
class Speed:
    """Speed of matrix products in GFLOP/s, and the largest relative error of those in bf16."""

    fp32: float
    bf16: float
    error: float


def speed(device: Any = "cpu", size: int = MATRIX, repeats: int = 9) -> Speed:
    """Multiply two square matrices in fp32 and in bf16; the median of several times."""
    import torch

    generator = torch.Generator().manual_seed(0)
    left, right = (torch.rand(size, size, generator=generator).to(device) for _ in range(2))
    rates, products = {}, {}
    for dtype in (torch.float32, torch.bfloat16):
        first, second = left.to(dtype), right.to(dtype)
        seconds = []
        for _ in range(repeats):
            began = time.perf_counter()
            products[dtype] = first @ second
            products[dtype][0, 0].item()  # on a GPU: wait for it
            seconds.append(time.perf_counter() - began)
        rates[dtype] = 2 * size**3 / statistics.median(seconds) / 1e9
    exact = products[torch.float32]
    error = ((products[torch.bfloat16].float() - exact).abs() / exact).max().item()  # all products are above 0
    return Speed(rates[torch.float32], rates[torch.bfloat16], error)
