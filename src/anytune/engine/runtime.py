"""Where and in which precision a run computes: device, processes, threads, autocast, seeds.

No state is kept here: an :class:`Runtime` is made for each run and thrown away.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from anytune._version import __version__
from anytune.manifests import Environment


def derive_seed(*parts: Any) -> int:
    """A 63-bit seed from any parts, the same on every machine and in every process."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's global generators seeded inside, and as they were afterwards (a run leaves no trace in its caller)."""
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        yield


@functools.cache
def native_bf16(device_type: str) -> bool:
    """Whether bf16 matrix products run in hardware: AMX or AVX-512-BF16 on a CPU, Ampere or newer on a GPU."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type != "cpu":
        return False
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="ignore") as handle:
            flags = next((line for line in handle if line.startswith("flags")), "")
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


@dataclass(frozen=True)
class Runtime:
    """Device, precision and processes of one run."""

    device: torch.device
    precision: str
    rank: int
    world: int
    accelerator: Any

    def autocast(self) -> Callable[[], Any] | None:
        """A context factory for the forward pass, or None in fp32."""
        if self.precision != "bf16":
            return None
        return functools.partial(torch.autocast, self.device.type, dtype=torch.bfloat16)

    def to_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with its tensors on the device."""
        return {
            key: value.to(self.device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for key, value in batch.items()
        }

    def environment(self) -> Environment:
        """What a manifest records of this runtime."""
        import accelerate
        import peft
        import transformers

        versions = {
            "anytune": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
            "accelerate": accelerate.__version__,
        }
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return Environment(versions=versions, threads=torch.get_num_threads(), precision=self.precision, device=name)


def make_runtime(precision: str = "auto") -> Runtime:
    """The runtime for this process, by accelerate: GPU if there is one, processes as the launcher set them up.

    Args:
        precision: "fp32", "bf16", or "auto" for bf16 autocast exactly where the hardware has it.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from accelerate import Accelerator

    # Precision is ours (autocast in the step module): accelerate keeps its own in a process-wide singleton, which
    # would make the second run of a process inherit the first one's, or a Trainer's; asking for another is an error.
    accelerator = Accelerator()
    accelerator.native_amp, accelerator.scaler = False, None
    device = accelerator.device
    chosen = ("bf16" if native_bf16(device.type) else "fp32") if precision == "auto" else precision
    return Runtime(device, chosen, accelerator.process_index, accelerator.num_processes, accelerator)
