"""What this machine can do, and what stands in the way: ``anytune doctor``.

Each look gives findings: "ok"; "note", which costs speed or is good to know; "problem", which will stop a run or make
it wrong, with what to type. Nothing is written but a few files in a temporary folder, which is deleted.
"""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from anytune.data.samples import cache_folder
from anytune.engine.loop import train
from anytune.engine.processes import check_launcher
from anytune.engine.runtime import BF16_FLAGS, bf16_by, check_sharding_launcher, make_runtime, seeded
from anytune.engine.settings import training_settings
from anytune.errors import AnytuneError
from anytune.jobs import machine, packages
from anytune.jobs.opening import DEFAULT_STORE
from anytune.methods.objective import Classification

Level = Literal["ok", "note", "problem"]
#: Less free than this is told: a few checkpoints and deltas of a model with 100 million weights.
LITTLE_DISK = 2_000_000_000
LITTLE_MEMORY = 1_000_000_000
#: bf16 has 8 bits of precision: a product rounds by at most 1/256, and its sum is kept in fp32.
BF16_ERROR = 2 / 256
#: Environment variables of the hub that change what anytune finds.
HUB_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "ANYTUNE_CACHE")


@dataclass(frozen=True)
class Finding:
    """One thing the doctor found: ``topic``, ``level``, what was seen, and what to type if something is to be done."""

    topic: str
    level: Level
    text: str
    fix: str = ""


def diagnose(store: str | Path | None = None) -> list[Finding]:
    """All findings, in the order they are shown; takes a few seconds.

    Args:
        store: the store whose disk is looked at (default: ``anytune-store`` in the current folder).
    """
    found: list[Finding] = []
    looks: dict[str, Callable[[], Iterator[Finding]]] = {
        "versions": versions, "cores": core_findings, "bf16": bf16_findings, "accelerator": accelerators,
        "memory": memory, "disk": lambda: disk(Path(store or DEFAULT_STORE)), "cache": cache, "hub": hub,
        "launcher": launcher, "run": two_steps,
    }  # fmt: skip
    for topic, look in looks.items():
        try:
            found.extend(look())
        except AnytuneError as problem:
            found.append(Finding(topic, "problem", problem.what, problem.fix))
        except Exception as problem:  # a look that fails is a finding, too
            found.append(Finding(topic, "problem", f"{type(problem).__name__}: {problem}"))
    return found


def usable(findings: list[Finding]) -> bool:
    """Whether nothing stands in the way."""
    return all(finding.level != "problem" for finding in findings)


def versions() -> Iterator[Finding]:
    """Python and the packages against the declared ranges, and combinations that are known to go wrong."""
    yield Finding("versions", "ok", f"python {platform.python_version()}, {platform.system()} {platform.machine()}")
    declared = {one.name.lower(): one.specifier for one in packages.requirements()}
    for name in packages.CORE:
        version, allowed = packages.installed(name), str(declared.get(name, ""))
        if version is None:
            yield Finding("versions", "problem", f"{name} is not installed", f"pip install '{name}{allowed}'")
        elif not packages.fits(version, allowed):
            yield Finding("versions", "problem", f"{name} {version} is outside {allowed}",
                          f"pip install '{name}{allowed}'")  # fmt: skip
        else:
            yield Finding("versions", "ok", f"{name} {version}" + (f" (declared {allowed})" if allowed else ""))
    for row in (*packages.known_bad(), *packages.built_for_another_torch()):
        yield Finding("versions", "problem", f"{row.wrong} ({row.link})", row.fix)


def core_findings() -> Iterator[Finding]:
    """Cores and threads: more threads than cores make every step slower."""
    found = machine.cores()
    granted = f", its control group grants {found.granted:.1f}" if found.granted else ""
    said = f"{found.machine} cores, this process may use {found.allowed}{granted}; torch uses {found.threads} threads"
    if found.variable is not None:
        said += f" (OMP_NUM_THREADS={found.variable})"
    if found.threads > found.usable:
        yield Finding("cores", "note", f"{said}: threads wait for each other", f"OMP_NUM_THREADS={found.usable}")
    elif found.threads < found.usable:
        unset = "" if found.variable is None else "unset OMP_NUM_THREADS   (or "
        yield Finding("cores", "note", f"{said}: cores stand idle in a single run",
                      f"{unset}OMP_NUM_THREADS={found.usable}{')' if unset else ''}")  # fmt: skip
    else:
        yield Finding("cores", "ok", said)


def bf16_findings() -> Iterator[Finding]:
    """Whether bf16 runs in hardware, how fast both precisions are, and whether bf16 products are right."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    by, measured = bf16_by(device), machine.speed(device)
    said = f"fp32 {measured.fp32:.0f} GFLOP/s, bf16 {measured.bf16:.0f} GFLOP/s on {device}"
    if measured.error > BF16_ERROR:
        yield Finding(
            "bf16", "problem",
            f"bf16 products are wrong here (by {measured.error:.0%}; see "
            "https://github.com/pytorch/pytorch/issues/163347)", "precision=fp32",
        )  # fmt: skip
    elif by is None:
        named = f" ({', '.join(BF16_FLAGS)})" if device == "cpu" else ""
        yield Finding("bf16", "note", f"not in hardware{named}: precision=auto takes fp32; {said}")
    elif measured.bf16 < measured.fp32:
        yield Finding("bf16", "note", f"in hardware ({by}), so precision=auto takes it, and slower just now: {said}",
                      "precision=fp32, if it is slower on a quiet machine too")  # fmt: skip
    else:
        yield Finding("bf16", "ok", f"in hardware ({by}), so precision=auto takes it: {said}")


def accelerators() -> Iterator[Finding]:
    """GPUs, or why there is none."""
    driver = machine.driver()
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            free, whole = torch.cuda.mem_get_info(number)
            name = torch.cuda.get_device_name(number)
            said = f"{name}, {free / 1e9:.1f} of {whole / 1e9:.1f} GB free, CUDA {torch.version.cuda}"
            native = torch.cuda.is_bf16_supported(including_emulation=False)
            yield Finding(
                "accelerator", "ok", f"{said}, driver {driver or 'unknown'}, bf16 {'yes' if native else 'no'}"
            )
    elif driver is not None:
        built = (
            f"torch {torch.__version__} is built for {'CUDA ' + torch.version.cuda if torch.version.cuda else 'CPU'}"
        )
        yield Finding("accelerator", "note", f"there is an NVIDIA driver ({driver}) and torch sees no GPU: {built}",
                      "install the CUDA build of torch: https://pytorch.org/get-started/locally")  # fmt: skip
    elif torch.backends.mps.is_available():
        yield Finding("accelerator", "ok", "MPS (Apple); fp32")
    else:
        yield Finding("accelerator", "ok", "no GPU; everything runs on the CPU")


def memory() -> Iterator[Finding]:
    """Free main memory."""
    free = machine.free_memory()
    if free is None:
        return
    low = free < LITTLE_MEMORY
    fix = "--dry-run says what a run needs; a smaller batch_size with accumulation needs less" if low else ""
    yield Finding("memory", "note" if low else "ok", f"{free / 1e9:.1f} GB free", fix)


def disk(store: Path) -> Iterator[Finding]:
    """Free disk at the store and at the cache."""
    for what, folder, other in (("store", store, "--store FOLDER"), ("cache", cache_folder(), "ANYTUNE_CACHE=FOLDER")):
        free = machine.free_disk(folder)
        if free is None:
            continue
        level: Level = "problem" if free < LITTLE_DISK / 20 else "note" if free < LITTLE_DISK else "ok"
        yield Finding(
            "disk", level, f"{free / 1e9:.1f} GB free at the {what} ({folder})", "" if level == "ok" else other
        )


def cache() -> Iterator[Finding]:
    """What the cache holds."""
    sizes = machine.folder_sizes(cache_folder())
    held = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items()) or "nothing"
    yield Finding("cache", "ok", f"{cache_folder()}: {held} (may be deleted; it is made again)")


def hub() -> Iterator[Finding]:
    """The hub's variables; a token's value is never shown."""
    set_ = [f"{name}={os.environ[name]}" for name in HUB_VARIABLES if name in os.environ]
    if "HF_TOKEN" in os.environ:
        set_.append("HF_TOKEN is set")
    offline = any(os.environ.get(name, "").upper() in ("1", "TRUE", "YES", "ON") for name in HUB_VARIABLES[:2])
    said = ", ".join(set_) or "no variable is set"
    if offline:
        yield Finding("hub", "note", f"offline: only models and data on this machine are found ({said})",
                      "unset HF_HUB_OFFLINE TRANSFORMERS_OFFLINE   (to fetch from the hub)")  # fmt: skip
    else:
        yield Finding("hub", "ok", said)


def launcher() -> Iterator[Finding]:
    """What a launcher asked for in the environment, and whether it can be had here."""
    check_launcher()
    check_sharding_launcher()
    yield Finding("launcher", "ok", f"{os.environ.get('WORLD_SIZE', '1')} process")


def two_steps() -> Iterator[Finding]:
    """Train a tiny random model for two steps in each precision; stopped after the first and resumed, it must end in
    the same bits.
    """
    for precision in ("fp32", "bf16"):
        with tempfile.TemporaryDirectory(prefix="anytune-doctor-") as folder:
            whole, resumed = (_two_steps(precision, Path(folder)) for _ in range(2))
        if not all(torch.isfinite(tensor).all() for tensor in whole.values()):
            yield Finding("run", "problem", f"two steps in {precision} give weights that are not finite",
                          "precision=fp32" if precision == "bf16" else "")  # fmt: skip
        elif any(not torch.equal(tensor, resumed[name]) for name, tensor in whole.items()):
            yield Finding("run", "problem", f"two steps in {precision} end in other bits when they are resumed",
                          "pip install -U torch")  # fmt: skip
        else:
            yield Finding(
                "run", "ok", f"two steps in {precision}, a checkpoint, and the same bits when resumed from it"
            )


def _two_steps(precision: str, work: Path) -> dict[str, torch.Tensor]:
    """The weights after two steps; from step 1 on if ``work`` holds a checkpoint of it."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=32,
    )  # fmt: skip
    with seeded(0):
        model = BertForSequenceClassification(config)
        train(
            model, methods=[], objective=Classification(), batches=_Noise(), steps=2, learning_rate=1e-3,
            settings=training_settings({"checkpoint_every": 1, "keep": "last"}), runtime=make_runtime(precision),
            work=work,
        )  # fmt: skip
    return {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}


class _Noise:
    """Batches of random tokens, a function of the step."""

    batches_per_epoch = 2

    def batch(self, step: int, /) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(0, 64, (8, 16), generator=generator)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % 2, "num_items": 8}
