"""What a step of each pre-training method costs, as a ratio to sequential pre-training.

    python benchmarks/pretrain.py                                    # everything; about 15 minutes on two quiet cores
    python benchmarks/pretrain.py --models minilm-l6 --arms hprompt "hprompt floor" --cycles 5

All arms train in one process on the same masked blocks, in turn: step n of every arm, then step n + 1. A ratio is
taken over a cycle of eight steps, in which every method does all that it does, and the table gives the median over
cycles with the smallest and largest. ``hprompt floor`` is what HPrompt with both losses on the whole batch cannot do
without: the forward and backward passes of the model, the hypernetwork and the frozen copy, written out with no method
around them. Every method is in its second stage, where old text, old importances and a hypernetwork are there.
Peak bytes are counted tensor by tensor (``live_bytes.py``) over a step, and given as a ratio to sequential's.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
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

from anytune.data.batches import BlockBatches
from anytune.data.domains import load_domain
from anytune.data.packing import pack
from anytune.data.samples import cache_folder, sample_folder
from anytune.engine.allocator import keep_freed_memory
from anytune.methods import registry
from anytune.methods.objective import LanguageModelling
from anytune.methods.protocol import Run
from anytune.models.base import load_base
from anytune.models.hyperprompt import mixture
from anytune.models.language_modelling import label_loss
from anytune.models.prompted import given_prompt, hyperprompt_of

BATCH, LENGTH, CYCLE = 16, 128, 8
FLOOR = "hprompt floor"
ARMS: dict[str, Any] = {
    "sequential": "sequential",
    "sequential again": "sequential",  # what the measure itself is worth
    "hprompt": "hprompt",
    FLOOR: "hprompt",
    "hprompt light": {"name": "hprompt", "preset": "light"},
    "hprompt half": {"name": "hprompt", "loss_share": 0.5},
    "hprompt every 4th": {"name": "hprompt", "loss_every": 4},
    "prompt alone": {"name": "hprompt", "agreement": 0.0, "disagreement": 0.0},
    "replay": {"name": "replay", "share": 0.25},
    "derpp": {"name": "derpp", "size": 64}, "lwf": "lwf", "l2_anchor": "l2_anchor", "cotta": "cotta",
    # what they measure as a stage ends is no part of a step
    "ewc": {"name": "ewc", "examples": 64}, "das": {"name": "das", "examples": 64},
    "slow": "slow", "averaging": "averaging",
}  # fmt: skip


@dataclass
class Workload:
    """A base and two domains of packed blocks: what was learnt before, and what is learnt now."""

    model: str
    precision: str
    base: Any
    fresh: nn.Module
    before: BlockBatches
    batches: BlockBatches


def workload(model: str, precision: str) -> Workload:
    base = load_base(f"sample:{model}", resolve_sample=sample_folder)
    tokenizer = base.tokenizer()
    made = []
    for seed, name in enumerate(("hpo", "foldoc")):
        texts = load_domain(f"sample:{name}").texts
        blocks = pack(texts, tokenizer, LENGTH, objective="mlm", cache=cache_folder() / "blocks")
        made.append(BlockBatches(blocks, BATCH, seed, "mlm", tokenizer))
    return Workload(model, precision, base, base.pretraining_model(0)[0], *made)


def run_on(work: Workload, batches: Any, steps: int, carried: Any = None) -> Run:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Run(seed=0, steps=steps, anatomy=work.base.anatomy, objective=LanguageModelling(work.base.anatomy),
               batches=batches, base=work.base, device=device, carried=carried or {})  # fmt: skip


def arm_of(name: str, work: Workload, steps: int) -> Arm:
    """The method after a first stage of two steps."""
    given = ARMS[name]
    first = Arm(name, registry.parse(given, "pretrain"), work.fresh, run_on(work, work.before, 2), work.precision)
    for _ in range(2):
        first.step()
    model, carried = first.model, {}
    for method in first.methods:
        model = method.finish(model, run_on(work, work.before, 2))
        carried[method.name] = method.carry_state()
    kind = Floor if name == FLOOR else Arm
    model = model.cpu()
    return kind(name, registry.parse(given, "pretrain"), model, run_on(work, work.batches, steps, carried),
                work.precision)  # fmt: skip


class Floor(Arm):
    """HPrompt's forward and backward passes with nothing of ours around them but the prompt's place in the text."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.anatomy = arguments[3].anatomy
        self.copy = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.prompt = torch.randn_like(hyperprompt_of(self.model).components[0].detach())

    def step(self) -> None:
        batch = self.runtime.to_device(self.batches.batch(self.done))
        began = now()
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        autocast = self.runtime.autocast() or contextlib.nullcontext
        with autocast():
            self._loss(batch).backward()
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimizer.step()
        self.seconds.append(now() - began)
        self.done += 1

    def _loss(self, batch: dict[str, Any]) -> torch.Tensor:
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        hyperprompt = hyperprompt_of(self.model)
        prompt = mixture(hyperprompt.weights(*inputs.values()), hyperprompt.components)
        states = []
        for model, shown in ((self.model, prompt), (self.model, self.prompt), (self.copy, self.prompt),
                             (self.copy, prompt.detach())):  # fmt: skip
            with torch.set_grad_enabled(model is self.model), given_prompt(model, shown):
                states.append(self.anatomy.backbone(model)(**inputs)[0])
        chosen = batch["labels"] != -100
        logits, guess = (self.anatomy.pretraining_logits(self.model, state[chosen]) for state in states[:2])
        with torch.no_grad():
            before = self.anatomy.pretraining_logits(self.copy, states[2][chosen])
        apart = nn.functional.kl_div((guess / 2).log_softmax(-1), (before / 2).softmax(-1), reduction="batchmean")
        return label_loss(logits, batch["labels"][chosen]) + 4 * apart + 0.01 * (states[0] * states[3]).mean()


def time_arms(work: Workload, names: Sequence[str], cycles: int) -> list[dict[str, Any]]:
    arms = [arm_of(name, work, CYCLE * (cycles + 1)) for name in names]
    rows = [{"model": work.model, "precision": work.precision, **row} for row in in_turn(arms, CYCLE, cycles)]
    for row in rows:
        tell_times(f"{work.model} {work.precision}", row)
    return rows


def count_arms(work: Workload, names: Sequence[str]) -> list[dict[str, Any]]:
    """Peak bytes of two steps, the model and all that the method keeps included."""
    peaks: dict[str, int] = {}
    for name in names:
        if name == FLOOR:
            continue
        gc.collect()
        with LiveBytes() as live:
            arm = arm_of(name, work, CYCLE)
            for _ in range(2):
                arm.step()
        peaks[name] = live.peak
        del arm
    rows = [{"model": work.model, "arm": name, "bytes": peak, "ratio": peak / peaks["sequential"]}
            for name, peak in peaks.items()]  # fmt: skip
    for row in rows:
        tell(f"{row['model']} {row['arm']:20} {row['bytes'] / 2**20:8.1f} MiB  {row['ratio']:.2f}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["bert-tiny", "minilm-l6"])
    parser.add_argument("--precisions", nargs="+", default=["fp32"], choices=["fp32", "bf16"])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--cycles", type=int, default=3)
    parser.add_argument("--only", choices=["steps", "memory"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    keep_freed_memory()
    arms = ["sequential", *[arm for arm in given.arms if arm != "sequential"]]
    found: dict[str, list[dict[str, Any]]] = {"steps": [], "memory": []}
    for model in given.models:
        if given.only in (None, "memory"):
            found["memory"] += count_arms(workload(model, "fp32"), arms)
        for precision in given.precisions if given.only in (None, "steps") else ():
            found["steps"] += time_arms(workload(model, precision), arms, given.cycles)
    only = f"-{given.only}" if given.only else ""
    write_results(given.out, f"pretrain-{'-'.join(given.models)}{only}", found)


if __name__ == "__main__":
    main()
