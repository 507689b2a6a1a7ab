"""The processes of one run: what the launcher started, and which of them speaks when something fails.

``torchrun`` and ``accelerate launch`` start the same command several times and say in environment variables who is
who. Only process 0 prints, writes and scores; the others compute their share. An error is said once, by whichever
process met it first. Nothing heavy is imported here before it is needed: the command line asks before it does
anything else.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from datetime import timedelta

from anytune.errors import SettingsError, TrainingError

#: The longest that one process waits for another. A process that ends is noticed at once; this is for one that
#: stands still, and must leave time for what process 0 does alone (scoring, storing).
TIMEOUT = timedelta(minutes=30)
#: torchrun and accelerate, PMI, OpenMPI, MVAPICH2: (rank, number of processes)
_VARIABLES = (
    ("RANK", "WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
)
#: What the back ends say when another process is gone; only some say it in a class of their own.
_LOST = ("closed by peer", "reset by peer", "broken pipe", "timed out", "gloo", "nccl", "socket", "remote process")


class LostProcessError(TrainingError):
    """Another process of the run has ended or does not answer."""


def launched() -> tuple[int, int]:
    """(rank, number of processes) as the launcher's environment variables say; (0, 1) without one."""
    for rank, world in _VARIABLES:
        with contextlib.suppress(KeyError, ValueError):
            return int(os.environ[rank]), max(1, int(os.environ[world]))
    return 0, 1


#: What ``accelerate launch`` says of an engine that takes training over.
_ENGINES = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM"}


def check_engine() -> None:
    """Refuse an engine with an optimizer of its own.

    Raises:
        SettingsError: ``accelerate launch --use_deepspeed`` (or an accelerate config) asks for one.
    """
    for variable, engine in _ENGINES.items():
        if os.environ.get(variable, "").lower() in ("1", "true", "yes", "y", "on", "t"):
            raise SettingsError(
                f"accelerate was launched with {engine}",
                why="It puts an optimizer and weights of its own in place of those that methods work on.",
                fix="torchrun --nproc-per-node 2 -m anytune ...   (--training sharding=fsdp splits the weights up), "
                f"or {variable}=false",
            )


def check_launcher() -> None:
    """Refuse a launcher that started fewer processes than it was asked for, or an engine that takes training over.

    Raises:
        SettingsError: ``accelerate launch --cpu --num_processes N`` starts one process, and says nothing of it; or as
            :func:`check_engine`.
    """
    check_engine()
    asked = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    if asked and not any(world in os.environ for _, world in _VARIABLES):
        raise SettingsError(
            "the launcher was asked for several processes and started one",
            why="'accelerate launch --cpu' starts more than one only through MPI (--mpirun_hostfile).",
            fix="torchrun --nproc-per-node 2 -m anytune ...   (or --num_processes 1)",
        )


@functools.cache
def first_to_speak() -> bool:
    """Whether this process is the one of its run that says what went wrong: the first that asks.

    torchrun's own store counts, which outlives any of the processes. Where there is none, process 0 speaks.
    """
    rank, world = launched()
    if world == 1:
        return True
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return rank == 0
    try:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        place, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(place, port, None, False, timeout=timedelta(seconds=5), wait_for_workers=False)
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return bool(store.add(f"anytune/said/{attempt}", 1) == 1)
    except (KeyError, ValueError, RuntimeError):
        return rank == 0


@contextlib.contextmanager
def noticing_loss() -> Iterator[None]:
    """What a back end raises when another process is gone becomes a :class:`LostProcessError`."""
    try:
        yield
    except RuntimeError as problem:
        if launched()[1] == 1 or not _is_loss(problem):
            raise
        raise LostProcessError(
            "another process of this run has ended, or does not answer any more",
            why="It failed (then it has said why), was killed, or stands still. What was stored before is whole.",
            fix="the same command again: it goes on from the last checkpoint",
        ) from problem


def _is_loss(problem: RuntimeError) -> bool:
    from torch import distributed

    said = str(problem).lower()
    return isinstance(problem, distributed.DistError) or any(word in said for word in _LOST)
