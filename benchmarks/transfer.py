"""What prompts cost: a training step, many prompts in one pass, a ranking of stored prompts.

    python benchmarks/transfer.py                              # everything; about 15 minutes on two quiet cores
    python benchmarks/transfer.py --only steps --cycles 9
    python benchmarks/transfer.py --only bank                  # several prompts in one pass, beside one each
    python benchmarks/transfer.py --only ranking --sources 20

``steps``: all arms train in one process on the same texts, in turn: step n of every arm, then step n + 1. A ratio is
taken over a cycle of eight steps, and the table gives the median over cycles with the smallest and largest, as
multiples of plain prompt tuning. ``published`` is the released way to PANDA's loss, written out: a second model with a
prompt of its own, in training mode and with gradients, and every text padded to 128; ``published, short`` the same
without that padding. ``peft`` is PEFT's prefix tuning of the same length in our step, ``peft, bare`` with nothing of
ours around it. ``bare`` is what prompt tuning cannot do without: the model's own passes with the prompt handed over as
a cache, and AdamW; ``no prompt`` trains the head alone, so that no gradient goes through the layers.

``bank``: K prompts with two texts each as one batch, beside K batches of two; forward alone, and with gradients.
``same padding`` pads the small batches like the joint one, ``own padding`` each to its own longest text.

``ranking``: the time of ``anytune transfer rank`` for a task it has not seen, over stored prompts; first with the
measures that need no prompt of that task, then with all, for which one is tuned in a few steps.
"""

from __future__ import annotations

import argparse
import copy
import csv
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))
from alternating import in_turn, now, tell, tell_times, write_results
from transfer_arms import ARMS, DEVICE, Workload, workload

import anytune
from anytune.data.tasks import load_task
from anytune.engine.allocator import keep_freed_memory
from anytune.engine.progress import Silent
from anytune.methods.protocol import Batch
from anytune.models.language_modelling import model_inputs
from anytune.models.prompt_bank import PromptBank
from anytune.models.soft_prompts import attach_prompt, given_prompt_values, make_prompt

CYCLE = 8
#: of a prompt of the task itself, for the measures that compare two
TARGET_STEPS = 30


# ---------------------------------------------------------------------- a step


def time_arms(work: Workload, names: Sequence[str], cycles: int) -> list[dict[str, Any]]:
    arms, ready = list[Any](), dict[str, float]()
    for name in names:
        kind, made = ARMS[name]
        chosen = made()
        takes = {role for method in chosen for role in method.takes}
        run = work.run(CYCLE * (cycles + 1), 1 if name == "prompt_transfer" else 3)
        run.sources = run.sources if "sources" in takes else ()
        run.teachers = run.teachers if "teachers" in takes else ()
        began = now()
        arms.append(kind(name, chosen, work.fresh, run, work.precision))
        ready[name] = now() - began  # a teacher's answers to all texts among it
    rows = [{"model": work.model, "precision": work.precision, "device": DEVICE.type, **row,
             "prepare_seconds": ready[row["arm"]]}
            for row in in_turn(arms, CYCLE, cycles)]  # fmt: skip
    for row in rows:
        tell_times(f"{work.model} {work.precision}", row)
    return rows


def profile(work: Workload, name: str = "prompt_tuning") -> str:
    """What a step spends its time on, by operator."""
    kind, made = ARMS[name]
    arm = kind(name, made(), work.fresh, work.run(2 * CYCLE), work.precision)
    for _ in range(CYCLE):
        arm.step()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if DEVICE.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as found:
        for _ in range(CYCLE):
            arm.step()
    by = f"self_{DEVICE.type}_time_total"
    return str(found.key_averages().table(sort_by=by, row_limit=16, max_name_column_width=42))


# ---------------------------------------------------------------------- many prompts in one pass


def time_bank(work: Workload, prompts: int, rows: int, rounds: int) -> list[dict[str, Any]]:
    """``prompts`` prompts with ``rows`` texts each: one pass, beside one pass each."""
    anatomy = work.base.anatomy
    models = [copy.deepcopy(work.fresh).requires_grad_(False).to(DEVICE).eval() for _ in range(2)]
    bank, alone = PromptBank(models[0], anatomy), models[1]
    sources = [work.prompt(seed) for seed in range(prompts)]
    ids = [bank.add(source) for source in sources]
    attach_prompt(alone, make_prompt(alone, sources[0].config, anatomy, 0).requires_grad_(False), anatomy)
    values = [source.values.to(DEVICE) for source in sources]
    head = [weight for name, weight in alone.named_parameters() if name in work.head_names]
    which = [one for one in ids for _ in range(rows)]

    def joint(batch: Batch) -> Tensor:
        return torch.stack([answer.sum() for answer in bank(batch, which)]).sum()

    def separate(batch: Batch, own_padding: bool) -> Tensor:
        sums = []
        for number, one in enumerate(values):
            part = {key: value[rows * number : rows * (number + 1)] for key, value in batch.items()}
            if own_padding:
                longest = int(part["attention_mask"].sum(dim=1).max())
                part = {key: value[:, :longest] if value.ndim == 2 else value for key, value in part.items()}
            with given_prompt_values(alone, one):
                sums.append(alone(**model_inputs(alone, part)).logits.sum())
        return torch.stack(sums).sum()

    ways = {"bank": joint, "same padding": lambda batch: separate(batch, False),
            "own padding": lambda batch: separate(batch, True)}  # fmt: skip
    found = []
    for gradients in (False, True):
        for one in (*bank.parameters(), *values, *head):
            one.requires_grad_(gradients)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds + 1):
            given = work.batches.batch(number)
            batch = {key: value.to(DEVICE) for key, value in given.items() if isinstance(value, Tensor)}
            order = list(ways)
            for name in [*order[number % 3 :], *order[: number % 3]]:
                began = now()
                with torch.set_grad_enabled(gradients):
                    loss = ways[name](batch)
                if gradients:
                    loss.backward()
                times[name].append(now() - began)
        for name in ("same padding", "own padding"):
            ratios = [apart / one for apart, one in zip(times[name][1:], times["bank"][1:], strict=True)]
            row = {"model": work.model, "device": DEVICE.type, "prompts": prompts, "rows": rows,
                   "gradients": gradients, "beside": name, "milliseconds": 1e3 * statistics.median(times["bank"][1:]),
                   "separate_milliseconds": 1e3 * statistics.median(times[name][1:]), "rounds": rounds,
                   "times_faster": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}  # fmt: skip
            tell(f"{work.model} {prompts} prompts x {rows} texts, {'with' if gradients else 'no'} gradients: "
                 f"{row['milliseconds']:.1f} ms, {row['times_faster']:.2f} times as fast as separate passes, {name} "
                 f"({row['low']:.2f} to {row['high']:.2f})")  # fmt: skip
            found.append(row)
    return found


# ---------------------------------------------------------------------- ranking


def time_ranking(model: str, sources: int, rows: int, rounds: int) -> list[dict[str, Any]]:
    """``anytune transfer rank`` for a task that no prompt of the store was tuned on."""
    from anytune.jobs.transfer import rank

    examples = list(load_task("sample:hpo").train)
    size = min(400, len(examples) // (sources + 1))
    with tempfile.TemporaryDirectory() as place:
        files = []
        for number in range(sources + 1):
            part = examples[size * number : size * (number + 1)]
            files.append(Path(place) / f"task-{number}.csv")
            with files[-1].open("w", encoding="utf-8", newline="") as handle:
                csv.writer(handle).writerows([("text", "label"), *((row.text, row.label) for row in part)])
        store = Path(place) / "store"
        for file in files[1:]:
            anytune.tune(f"sample:{model}", file, store=store, method="prompt_tuning", reporter=Silent(),
                         training={"steps": 2, "batch_size": 16, "precision": "fp32"})  # fmt: skip
        found = []
        for train in [None] * rounds + [TARGET_STEPS]:
            began = now()
            ranking = rank(files[0], f"sample:{model}", store=store, rows=rows, train=train)
            took = now() - began
            tell(f"{sources} sources ranked in {took:.1f} s{', a prompt tuned for it' if train else ''}")
            found.append({
                "model": model, "device": DEVICE.type, "sources": sources, "rows": ranking.rows, "seconds": took,
                "tuned_steps": train or 0, "each": {one.name: one.seconds for one in ranking.measures},
            })  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["minilm-l6"])
    parser.add_argument("--precisions", nargs="+", default=["fp32"], choices=["fp32", "bf16"])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--cycles", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=8, help="of the bank")
    parser.add_argument("--rows", type=int, nargs="+", default=[2, 16], help="texts of each prompt of the bank")
    parser.add_argument("--rounds", type=int, default=15, help="of the bank; of the ranking a fifth")
    parser.add_argument("--sources", type=int, default=20, help="of the ranking")
    parser.add_argument("--read", type=int, default=256, help="rows that the ranking reads")
    parser.add_argument("--only", choices=["steps", "bank", "ranking", "profile"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    keep_freed_memory()
    arms = ["prompt_tuning", *[arm for arm in given.arms if arm != "prompt_tuning"]]
    found: dict[str, list[dict[str, Any]]] = {"steps": [], "bank": [], "ranking": []}
    for model in given.models:
        for precision in given.precisions if given.only in (None, "steps") else ():
            found["steps"] += time_arms(workload(model, precision), arms, given.cycles)
        if given.only in (None, "bank"):
            for rows in given.rows:
                work = workload(model, "fp32", batch=given.prompts * rows)
                found["bank"] += time_bank(work, given.prompts, rows, given.rounds)
        if given.only in (None, "ranking"):
            found["ranking"] += time_ranking(model, given.sources, given.read, max(1, given.rounds // 5))
        if given.only == "profile":
            tell(profile(workload(model, given.precisions[0])))
    if given.only != "profile":
        only = f"-{given.only}" if given.only else ""
        write_results(given.out, f"transfer-{'-'.join(given.models)}{only}", found)


if __name__ == "__main__":
    main()
