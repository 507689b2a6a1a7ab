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
from typing import Any, TypeVar

import torch
from torch import Tensor

from anytune._version import __version__
from anytune.engine.processes import TIMEOUT, check_launcher, launched, noticing_loss
from anytune.errors import AnytuneError, SettingsError, TrainingError
from anytune.manifests import Environment

Value = TypeVar("Value")


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


#: Flags of a CPU that multiplies bf16 in hardware, the faster first.
BF16_FLAGS = ("amx_bf16", "avx512_bf16")


@functools.cache
def bf16_by(device_type: str) -> str | None:
    """What multiplies bf16 matrices in hardware: a CPU flag, or a GPU's name (Ampere or newer); None if nothing."""
    if device_type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.cuda.get_device_name() if native else None
    if device_type != "cpu":
        return None
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="ignore") as handle:
            flags = next((line for line in handle if line.startswith("flags")), "").split()
    except OSError:
        return None
    return next((flag for flag in BF16_FLAGS if flag in flags), None)


def native_bf16(device_type: str) -> bool:
    """Whether bf16 matrix products run in hardware: AMX or AVX-512-BF16 on a CPU, Ampere or newer on a GPU."""
    return bf16_by(device_type) is not None


def choose_precision(asked: str, device_type: str) -> tuple[str, str]:
    """The precision for what was asked ("auto", "fp32", "bf16"), and why, in words for a reader.

    >>> choose_precision("auto", "cpu")  # doctest: +SKIP
    ("bf16", "this CPU multiplies bf16 in hardware (amx_bf16)")
    """
    by = bf16_by(device_type)
    kind = {"cpu": "CPU", "cuda": "GPU"}.get(device_type, "device")
    if by is not None:
        reason = f"this {kind} multiplies bf16 in hardware ({by})"
    else:
        reason = f"this {kind} has no bf16 in hardware" if kind != "device" else f"bf16 is not used on {device_type}"
    if asked == "auto":
        return ("bf16" if by is not None else "fp32"), reason
    return asked, "as asked" + (f"; {reason}" if asked == "bf16" and by is None else "")


@dataclass(frozen=True)
class Runtime:
    """Device, precision and processes of one run.

    Every process calls the collective methods (:meth:`first`, :meth:`gather`, :meth:`mean`) in the same order.
    """

    device: torch.device
    precision: str
    rank: int
    world: int
    accelerator: Any
    #: the weights are to be split up over the processes (FSDP2)
    sharded: bool = False
    #: why this precision (see :func:`choose_precision`)
    reason: str = ""

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

    def decides(self) -> dict[str, Any]:
        """What of the runtime decides a run's result, for its run key; of one process nothing but the precision."""
        found: dict[str, Any] = {"precision": self.precision}
        if self.world > 1:  # each adds its own batches to a step
            found["processes"] = self.world
        if self.sharded:  # gradients are summed in another order
            found["sharding"] = "fsdp"
        return found

    def first(self, function: Callable[[], Value]) -> Value:
        """Run ``function`` in process 0 alone; every process gets what it gave, or raises what it raised."""
        if self.world == 1:
            return function()
        problem: BaseException | None = None
        sent: list[Any] = [None]
        if self.rank == 0:
            try:
                sent = [("value", function())]
            except AnytuneError as error:
                problem, sent = error, [("error", (type(error), error.what, error.why, error.fix))]
            except Exception as error:
                problem, sent = error, [("bug", f"{type(error).__name__}: {error}")]
        with noticing_loss():
            torch.distributed.broadcast_object_list(sent, src=0, device=self.device)
        if problem is not None:
            raise problem
        kind, value = sent[0]
        if kind == "error":
            error_class, what, why, fix = value
            raise error_class(what, why=why, fix=fix)
        if kind == "bug":
            raise TrainingError(f"process 0 failed: {value}")
        found: Value = value
        return found

    def gather(self, value: Value) -> list[Value]:
        """The value of each process, by rank; given to every process."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        with noticing_loss():
            torch.distributed.all_gather_object(found, value)
        return found

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over the processes (a copy)."""
        if self.world == 1:
            return value
        summed = value.detach().clone()
        with noticing_loss():
            torch.distributed.all_reduce(summed)
        return summed / self.world

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
        return Environment(versions=versions, threads=torch.get_num_threads(), precision=self.precision, device=name,
                           precision_reason=self.reason, processes=self.world)  # fmt: skip


def make_runtime(precision: str = "auto", *, sharding: str = "none") -> Runtime:
    """The runtime for this process, by accelerate: GPU if there is one, processes as the launcher set them up.

    Args:
        precision: "fp32", "bf16", or "auto" for bf16 autocast exactly where the hardware has it.
        sharding: "fsdp" splits weights, gradients and moments up over the processes; "none" gives each a copy.

    Raises:
        SettingsError: sharding is asked for and cannot be had here, or the launcher started too few processes.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    check_launcher()
    world = launched()[1]
    if world > 1 and not (torch.cuda.is_available() or torch.xpu.is_available()):
        os.environ["ACCELERATE_USE_CPU"] = "true"  # or accelerate lets each process train alone, without a word
    sharded = _sharded(sharding, world)
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    # Precision is ours (autocast in the step module): accelerate keeps its own in a process-wide singleton, which
    # would make the second run of a process inherit the first one's, or a Trainer's; asking for another is an error.
    with noticing_loss():
        accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)])
    accelerator.native_amp, accelerator.scaler = False, None
    if accelerator.num_processes != world:
        raise TrainingError(
            f"the launcher started {world} processes, and accelerate knows of {accelerator.num_processes}",
            why="Each would train alone. Something set accelerate up before anytune did.",
            fix=f"torchrun --nproc-per-node {world} -m anytune ...",
        )
    device = accelerator.device
    chosen, reason = choose_precision(precision, device.type)
    return Runtime(device, chosen, accelerator.process_index, accelerator.num_processes, accelerator, sharded, reason)


def check_sharding_launcher() -> bool:
    """Whether ``accelerate launch --use_fsdp`` asks for weights that are split up.

    Accelerate itself gives plain copies on a CPU whatever it was asked for; that is an error here.

    Raises:
        SettingsError: it asks for something that cannot be had.
    """
    by_launcher = os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true", "yes")
    if by_launcher and not torch.cuda.is_available():
        raise SettingsError(
            "accelerate was launched with FSDP, and there is no GPU",
            why="On a CPU accelerate keeps a whole copy of the weights in every process, and does not say so.",
            fix="torchrun --nproc-per-node 2 -m anytune ... --training sharding=fsdp   (or without --use_fsdp)",
        )
    if by_launcher and os.environ.get("FSDP_VERSION", "1") != "2":
        raise SettingsError(
            "accelerate was launched with FSDP version 1",
            why="anytune shards by fully_shard, which is version 2.",
            fix="accelerate launch --use_fsdp --fsdp_version 2 ...",
        )
    if by_launcher and os.environ.get("FSDP_OFFLOAD_PARAMS", "").lower() == "true":
        raise SettingsError("FSDP with parameters kept in main memory is not supported", fix="without offloading")
    return by_launcher


def _sharded(sharding: str, world: int) -> bool:
    """Whether weights are to be split up, by the setting or by the launcher."""
    if not check_sharding_launcher() and sharding != "fsdp":
        return False
    if world == 1:
        raise SettingsError(
            "sharding=fsdp, and there is one process",
            why="It splits the weights up over several processes.",
            fix="torchrun --nproc-per-node 2 -m anytune ...   (or sharding=none)",
        )
    return True
