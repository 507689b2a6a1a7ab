"""What a training step of each tune method costs, as a ratio to plain fine-tuning.

    python benchmarks/tune.py                              # everything; about 25 minutes on two quiet cores
    python benchmarks/tune.py --models minilm-l6 --arms dps-dense dps-mix --cycles 5
    python benchmarks/tune.py --only selection             # choosing entries, beside a full sort

All arms train in one process on the same batches, in turn: step n of every arm, then step n + 1. So a machine that
slows down slows all of them. A ratio is taken over a whole DPS cycle (both stages, its selection included), and the
table gives the median over cycles with the smallest and largest. Plain is full fine-tuning with torch's fused AdamW.
Peak bytes are counted tensor by tensor (``live_bytes.py``) over a cycle and given beyond plain's, for each entry of
the matrices that DPS selects from.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
from alternating import Arm, in_turn, now, tell, tell_times, write_results
from live_bytes import LiveBytes

from anytune.data.batches import ExampleBatches, encode_task
from anytune.data.samples import cache_folder, sample_folder
from anytune.data.tasks import load_task
from anytune.engine.allocator import keep_freed_memory
from anytune.methods import registry
from anytune.methods.chosen import chosen_weights
from anytune.methods.objective import Classification
from anytune.methods.protocol import Batch, Run
from anytune.methods.selection import exact_mask
from anytune.models.base import load_base

BATCH, LENGTH = 16, 128
#: steps of a stage: a short one, so that selection weighs more than it does in practice
STAGE = 5
DPS = {"name": "dps", "stage_steps": STAGE}
ARMS: dict[str, Any] = {
    "plain": [],
    "plain again": [],  # what the measure itself is worth
    "dps-dense": {**DPS, "freeze": "hard"},
    "dps-dense-grad": {**DPS, "freeze": "grad"},
    "dps-mix": {**DPS, "variant": "mix", "freeze": "hard"},
    "dps-mix-grad": {**DPS, "variant": "mix", "freeze": "grad"},
    "child_tuning-F": {"name": "child_tuning", "variant": "F"},
    "child_tuning-D": {"name": "child_tuning", "variant": "D", "batches": 4},
    "mixout": "mixout", "l2sp": "l2sp", "recadam": "recadam", "extrapolation": "extrapolation",
    "rdrop": "rdrop", "r3f": "r3f", "smart": "smart", "lnsr": "lnsr", "slca": "slca", "llrd": "llrd",
    "reinit": "reinit", "top_k_layers": "top_k_layers", "sift": "sift", "dft_plus": "dft_plus",
    "lora": "lora", "bitfit": "bitfit",
}  # fmt: skip
#: the arms whose memory is counted
COUNTED = ("plain", "dps-dense", "dps-dense-grad", "dps-mix", "dps-mix-grad", "child_tuning-D", "mixout", "sift")


@dataclass
class Workload:
    """A model and its batches."""

    model: str
    text: str
    precision: str
    base: Any
    fresh: nn.Module
    head_names: list[str]
    batches: Any


@dataclass
class Fixed:
    """Batches of one length, all real tokens."""

    rows: list[Batch]

    @property
    def batches_per_epoch(self) -> int:
        return len(self.rows)

    def batch(self, step: int) -> Batch:
        return self.rows[step % len(self.rows)]


def four_layers() -> Any:
    """A BERT of 4 layers, 512 wide (the size published as BERT-small), with random weights."""
    from transformers import BertConfig, BertModel

    folder = cache_folder() / "benchmarks" / "bert-small"
    if not (folder / "model.safetensors").exists():
        torch.manual_seed(0)
        config = BertConfig(hidden_size=512, num_hidden_layers=4, num_attention_heads=8, intermediate_size=2048)
        BertModel(config).save_pretrained(folder)
        load_base("sample:bert-tiny", resolve_sample=sample_folder).tokenizer().save_pretrained(folder)
    return load_base(folder)


def workload(model: str, text: str, precision: str, stage: int = STAGE) -> Workload:
    base = four_layers() if model == "bert-small" else load_base(f"sample:{model}", resolve_sample=sample_folder)
    if text == "hpo":
        task = load_task("sample:hpo").subset(train_size=BATCH * 40, seed=0)
        batches: Any = ExampleBatches(encode_task(task.train, base.tokenizer(), LENGTH, task.kind), BATCH, 0)
        names = task.label_names
    else:
        generator = torch.Generator().manual_seed(0)
        names = tuple("abcde")
        batches = Fixed([
            {
                "input_ids": torch.randint(1000, 20000, (BATCH, LENGTH), generator=generator),
                "attention_mask": torch.ones(BATCH, LENGTH, dtype=torch.long),
                "labels": torch.randint(0, len(names), (BATCH,), generator=generator),
                "num_items": BATCH,
            }
            for _ in range(20)
        ])  # fmt: skip
    fresh, head_names = base.task_model("classification", names, 0)
    return Workload(model, text, precision, base, fresh, head_names, batches)


def arm_of(name: str, work: Workload, steps: int) -> Arm:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    given = ARMS[name]
    run = Run(seed=0, steps=steps, anatomy=work.base.anatomy, head_names=work.head_names,
              objective=Classification(), batches=work.batches, base=work.base, device=device)  # fmt: skip
    return Arm(name, registry.parse(given, "tune") if given else [], work.fresh, run, work.precision)


def time_arms(work: Workload, names: Sequence[str], cycles: int) -> list[dict[str, Any]]:
    """Times of DPS's cycles: both stages, its selection included."""
    arms = [arm_of(name, work, 2 * STAGE * (cycles + 1)) for name in names]
    where = {"model": work.model, "text": work.text, "precision": work.precision}
    rows = [{**where, **row} for row in in_turn(arms, 2 * STAGE, cycles)]
    for row in rows:
        tell_times(f"{work.model} {work.text} {work.precision}", row)
    return rows


def short(batch: Batch) -> Batch:
    """Two rows of 16 tokens: activations weigh little, so that what is counted is weights and their company."""
    cut = {"input_ids": (2, 16), "attention_mask": (2, 16), "labels": (2,)}
    return {key: batch[key][tuple(map(slice, sizes))] for key, sizes in cut.items()} | {"num_items": 2}


def count_arms(work: Workload, names: Sequence[str]) -> list[dict[str, Any]]:
    """Peak bytes of a cycle and the first steps of the next beyond plain's, for each entry DPS selects from."""
    peaks: dict[str, int] = {}
    entries = sum(weight.numel() for weight in chosen_weights(work.fresh, work.base.anatomy).values())
    small = copy.copy(work)
    small.batches = Fixed([short(work.batches.batch(0))])
    for name in names:
        gc.collect()
        with LiveBytes() as live:
            arm = arm_of(name, small, 10 * STAGE)
            for _ in range(2 * STAGE + 2):
                arm.step()
        peaks[name] = live.peak
        del arm
    rows = [{"model": work.model, "arm": name, "bytes": peak, "entries": entries,
             "per_entry": (peak - peaks["plain"]) / entries} for name, peak in peaks.items()]  # fmt: skip
    for row in rows:
        tell(f"{row['model']} {row['arm']:16} {row['bytes'] / 2**20:8.1f} MiB  {row['per_entry']:+.2f} bytes an entry")
    return rows


def time_selection(rounds: int) -> list[dict[str, Any]]:
    """Choosing 70 % of a matrix of 4.2 million entries, beside a full sort of it."""
    scores = torch.rand(2048, 2048, generator=torch.Generator().manual_seed(0)).square()
    if torch.cuda.is_available():
        scores = scores.cuda()
    count = int(scores.numel() * 0.7)
    ratios, own = [], []
    for _ in range(rounds + 1):
        began = now()
        scores.flatten().sort(descending=True)
        sorted_at = now()
        exact_mask(scores, count)
        own.append(now() - sorted_at)
        ratios.append((sorted_at - began) / own[-1])
    ratios, own = ratios[1:], own[1:]
    row = {"what": "selection", "entries": scores.numel(), "milliseconds": 1e3 * statistics.median(own),
           "times_faster": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}  # fmt: skip
    tell(f"selection of {scores.numel():,} entries: {row['milliseconds']:.1f} ms, {row['times_faster']:.1f} times as "
         f"fast as a sort ({row['low']:.1f} to {row['high']:.1f})")  # fmt: skip
    return [row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["minilm-l6", "bert-small"])
    parser.add_argument("--texts", nargs="+", default=["16x128", "hpo"])
    parser.add_argument("--precisions", nargs="+", default=["fp32"], choices=["fp32", "bf16"])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--cycles", type=int, default=3)
    parser.add_argument("--only", choices=["steps", "memory", "selection"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    keep_freed_memory()
    arms = ["plain", *[arm for arm in given.arms if arm != "plain"]]
    found: dict[str, list[dict[str, Any]]] = {"steps": [], "memory": [], "selection": []}
    if given.only in (None, "selection"):
        found["selection"] = time_selection(7)
    for model in given.models:
        if given.only in (None, "memory"):
            counted = [arm for arm in COUNTED if arm in arms]
            found["memory"] += count_arms(workload(model, "16x128", "fp32"), counted)
        for text in given.texts if given.only in (None, "steps") else ():
            for precision in given.precisions:
                found["steps"] += time_arms(workload(model, text, precision), arms, given.cycles)
    only = f"-{given.only}" if given.only else ""
    write_results(given.out, f"tune-{'-'.join(given.models)}{only}", found)


if __name__ == "__main__":
    main()
