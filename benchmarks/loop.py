"""How fast the training loop is, beside the transformers Trainer and beside a bare PyTorch loop.

    python benchmarks/loop.py                       # everything; about half an hour on two quiet cores
    python benchmarks/loop.py --only mlm --models bert-tiny --precisions bf16 --rounds 3

Same model, data, batch size, precision, optimizer and number of steps for every arm. The arms run in one process, one
after the other in turn (A B C, A B C, ...), so that a machine that slows down slows all of them; a ratio is taken
within a round, and the table gives the median over rounds with the smallest and largest. Clocks run from the first
step's begin to the last step's end: what an arm does before its first step stands apart ("first step").

Arms:
    anytune           engine.train with the method "sequential" or "full"
    trainer           the Trainer with its defaults: dynamic padding, random order, logits at every position
    trainer, grouped  the same with its length grouping (fine-tuning)
    bare              forward, backward and AdamW on batches made beforehand, as anytune computes them: what is left
                      when everything else costs nothing
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from anytune.data.batches import BlockBatches, ExampleBatches, encode_task
from anytune.data.domains import load_domain
from anytune.data.packing import pack
from anytune.data.samples import cache_folder, sample_folder
from anytune.data.tasks import load_task
from anytune.engine.allocator import keep_freed_memory
from anytune.engine.checkpoints import checkpoints
from anytune.engine.loop import train
from anytune.engine.runtime import make_runtime
from anytune.engine.settings import training_settings
from anytune.methods import registry
from anytune.methods.objective import Classification, LanguageModelling
from anytune.methods.protocol import Method, Run
from anytune.methods.step import StepModule, total
from anytune.models.base import load_base

MODELS = ("bert-tiny", "minilm-l6")
TASKS = {"hpo": 128, "newsgroups": 256}
BATCH = 16
BLOCK = 128
RATE = 1e-4


class Stopwatch(Method):
    """Notes when steps begin and end; as a method, it is called where the Trainer calls its callbacks."""

    name = "stopwatch"

    def __init__(self) -> None:
        self.begins: list[float] = []
        self.ends: list[float] = []

    def before_step(self, model: Any) -> None:
        self.begins.append(now())

    def after_step(self, model: Any) -> None:
        self.ends.append(now())

    @property
    def seconds(self) -> float:
        return self.ends[-1] - self.begins[0]


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass
class Workload:
    """A model, its data and what a unit of work is."""

    kind: str
    model: str
    text: str
    precision: str
    base: Any
    fresh: Any
    batches: Any
    steps: int
    objective: Any
    unit: str
    #: units of work in ``steps`` steps
    amount: int
    #: rows for the Trainer: blocks [n, BLOCK], or lists of token ids with labels
    rows: list[dict[str, Any]]
    lengths: Sequence[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.kind} {self.model} {self.text} {self.precision}"


def find_base(model: str) -> Any:
    if model == "bert-tiny":
        return load_base("sample:bert-tiny", resolve_sample=sample_folder)
    warmed = sorted((cache_folder() / "warmed").glob("minilm-l6-*"))
    return load_base(warmed[-1]) if warmed else load_base("sample:minilm-l6", resolve_sample=sample_folder)


def language_modelling(model: str, precision: str, steps: int) -> Workload:
    base = find_base(model)
    tokenizer = base.tokenizer()
    texts = load_domain("sample:foldoc").texts[:6000]
    blocks = pack(texts, tokenizer, BLOCK, objective="mlm", cache=None)
    batches = BlockBatches(blocks, BATCH, 0, "mlm", tokenizer)
    fresh, _ = base.pretraining_model(0)
    rows = [{"input_ids": row.tolist()} for row in blocks[list(range(min(len(blocks), steps * BATCH)))]]
    return Workload("mlm", model, f"{BATCH}x{BLOCK}", precision, base, fresh, batches, steps,
                    LanguageModelling(base.anatomy), "tokens", steps * BATCH * BLOCK, rows)  # fmt: skip


def classification(model: str, task_name: str, precision: str, examples: int) -> Workload:
    base = find_base(model)
    tokenizer = base.tokenizer()
    task = load_task(f"sample:{task_name}").subset(train_size=examples, seed=0)
    encoded = encode_task(task.train, tokenizer, TASKS[task_name], task.kind)
    batches = ExampleBatches(encoded, BATCH, 0)
    fresh, _ = base.task_model(task.kind, task.label_names, 0)
    rows = [{"input_ids": ids, "labels": int(label)}
            for ids, label in zip(encoded.input_ids, encoded.labels.tolist(), strict=True)]  # fmt: skip
    return Workload("tune", model, task_name, precision, base, fresh, batches, batches.batches_per_epoch,
                    Classification(), "examples", len(encoded), rows, encoded.lengths.tolist())  # fmt: skip


# ---------------------------------------------------------------------------------------------------- arms


def run_anytune(work: Workload, folder: Path | None = None, **settings: Any) -> Stopwatch:
    watch = Stopwatch()
    method = registry.create("pretrain/sequential" if work.kind == "mlm" else "tune/full", {})
    model = copy.deepcopy(work.fresh)
    model = method.prepare(model, Run(seed=0, steps=work.steps, anatomy=work.base.anatomy))
    options = training_settings({"learning_rate": RATE, "batch_size": BATCH, "precision": work.precision,
                                 "keep": "last", "warmup": 0.0, **settings})  # fmt: skip
    train(model, methods=[method, watch], objective=work.objective, batches=work.batches, steps=work.steps,
          settings=options, learning_rate=RATE, runtime=make_runtime(work.precision), work=folder)  # fmt: skip
    return watch


def run_trainer(work: Workload, grouped: bool = False) -> Stopwatch:
    import transformers
    from datasets import Dataset

    watch = Stopwatch()
    tokenizer = work.base.tokenizer()

    class Callback(transformers.TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            watch.before_step(None)

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            watch.after_step(None)

    if work.kind == "mlm":
        collate: Any = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    else:
        collate = transformers.DataCollatorWithPadding(tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder, per_device_train_batch_size=BATCH, max_steps=work.steps, learning_rate=RATE,
            bf16=work.precision == "bf16", use_cpu=not torch.cuda.is_available(), save_strategy="no",
            disable_tqdm=True, log_level="error", logging_strategy="no", report_to="none", warmup_steps=0,
            train_sampling_strategy="group_by_length" if grouped else "random",
        )  # fmt: skip
        trainer = transformers.Trainer(
            copy.deepcopy(work.fresh), arguments, data_collator=collate, train_dataset=Dataset.from_list(work.rows),
            callbacks=[Callback()],
        )  # fmt: skip
        trainer.train()
    return watch


def run_bare(work: Workload) -> Stopwatch:
    """The least that has to be computed, on batches made beforehand."""
    watch = Stopwatch()
    runtime = make_runtime(work.precision)
    model = copy.deepcopy(work.fresh).to(runtime.device)
    step = StepModule(model, [], work.objective, runtime.autocast())
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    batches = [runtime.to_device(work.batches.batch(number)) for number in range(work.steps)]
    model.train()
    for batch in batches:
        watch.before_step(model)
        optimizer.zero_grad(set_to_none=True)
        total(step(batch)).backward()
        optimizer.step()
        watch.after_step(model)
    return watch


ARMS: dict[str, Callable[[Workload], Stopwatch]] = {
    "anytune": run_anytune,
    "trainer": run_trainer,
    "trainer, grouped": lambda work: run_trainer(work, grouped=True),
    "bare": run_bare,
}


# ------------------------------------------------------------------------------------------------ measuring


def compare(work: Workload, arms: Sequence[str], rounds: int) -> dict[str, Any]:
    """Run the arms in turn; per arm the speeds, per other arm the ratio anytune / arm within each round."""
    speeds: dict[str, list[float]] = {arm: [] for arm in arms}
    for number in range(rounds + 1):  # the first round warms caches and allocators up and does not count
        for arm in arms:
            seconds = ARMS[arm](work).seconds
            gc.collect()
            if number:
                speeds[arm].append(work.amount / seconds)
    ratios = {arm: [ours / other for ours, other in zip(speeds["anytune"], speeds[arm], strict=True)]
              for arm in arms if arm != "anytune"}  # fmt: skip
    row = {"workload": work.name, "unit": work.unit, "steps": work.steps, "speeds": speeds, "ratios": ratios}
    if work.lengths:
        row["lengths"] = quantiles(work.lengths)
    show(row)
    return row


def quantiles(lengths: Sequence[int]) -> dict[str, int]:
    found = sorted(lengths)
    return {f"{share}%": found[min(len(found) - 1, len(found) * share // 100)] for share in (0, 25, 50, 75, 100)}


def spread(values: Sequence[float], digits: int = 2) -> str:
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def show(row: dict[str, Any]) -> None:
    lengths = f", tokens an example {row['lengths']}" if row.get("lengths") else ""
    print(f"\n{row['workload']} ({row['steps']} steps a round{lengths})")
    for arm, speeds in row["speeds"].items():
        ratio = f"   anytune / {arm}: {spread(row['ratios'][arm])}" if arm in row["ratios"] else ""
        print(f"  {arm:17} {spread(speeds, 0):>32} {row['unit']}/s{ratio}", flush=True)


def checkpoint_cost(work: Workload) -> dict[str, Any]:
    """What a checkpoint adds between two steps, as a share of the time of 100 steps."""
    every = 10
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        watch = run_anytune(work, Path(folder), checkpoint_every=every)
        written = checkpoints(Path(folder))
        size = sum(file.stat().st_size for path in written for file in path.iterdir()) / len(written)
    gaps = [begin - end for begin, end in zip(watch.begins[1:], watch.ends[:-1], strict=True)]
    saves = [gap for number, gap in enumerate(gaps, start=1) if number % every == 0]
    step = watch.seconds / work.steps
    shares = [save / (100 * step) for save in saves]
    print(f"\ncheckpoint every 100 steps, {work.name}: {spread([100 * share for share in shares])} % of the time; "
          f"{spread(saves)} s for {size / 1e6:.0f} MB")  # fmt: skip
    return {"workload": work.name, "checkpoint_seconds": saves, "checkpoint_share": shares, "bytes": size}


def apart(arm: str, model: str, kind: str, precision: str) -> dict[str, float]:
    """Time to the first step and peak memory of an arm in a process of its own."""
    command = [sys.executable, __file__, "--child", arm, "--models", model, "--only", kind, "--precisions", precision]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def side_by_side(model: str, kind: str, precision: str, rounds: int) -> list[dict[str, Any]]:
    """Each arm in processes of its own, in turn: time to the first step, peak memory, speed."""
    arms = ("anytune", "anytune, keeping", "trainer")
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    for _ in range(rounds):
        for arm in arms:
            found[arm].append(apart(arm, model, kind, precision))
    print(f"\n{kind} {model} {precision}, each arm in a process of its own")
    rows = []
    for arm in arms:
        values = {key: [one[key] for one in found[arm]] for key in found[arm][0]}
        ratios = [ours / plain["steps_per_second"]
                  for ours, plain in zip(values["steps_per_second"], found["anytune"], strict=True)]  # fmt: skip
        print(f"  {arm:17} first step {spread(values['first_step'])} s, peak {spread(values['peak_mib'], 0)} MiB, "
              f"steps/s over anytune's {spread(ratios)}", flush=True)  # fmt: skip
        rows.append({"workload": f"{kind} {model} {precision}", "arm": arm, **values})
    return rows


def child(arm: str, model: str, kind: str, precision: str) -> None:
    """One arm alone: ``anytune, keeping`` runs as the command line does, with freed memory kept in the process."""
    if arm.endswith(", keeping"):
        assert keep_freed_memory()
    work = language_modelling(model, precision, 8) if kind == "mlm" else classification(model, "hpo", precision, 128)
    before = time.perf_counter()
    watch = ARMS[arm.removesuffix(", keeping")](work)
    speed = (len(watch.ends) - 3) / (watch.ends[-1] - watch.ends[2])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**20
    found = {"first_step": watch.ends[0] - before, "peak_mib": peak, "steps_per_second": speed}
    print(json.dumps(found))


def profile(work: Workload) -> str:
    """What the loop spends its time on, by operator."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        run_anytune(work)
    return str(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=14, max_name_column_width=42))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("mlm", "tune", "checkpoint", "apart", "profile"), action="append")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=("fp32", "bf16"))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="steps a round of pre-training (default: 40 for bert-tiny, 12)")
    parser.add_argument("--examples", type=int, help="examples a round of tuning (default: 640 for bert-tiny, 256)")
    parser.add_argument("--out", type=Path, help="write all speeds as JSON")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child, given.models[0], given.only[0], given.precisions[0])
        return
    chosen = given.only or ["mlm", "tune", "checkpoint", "apart", "profile"]
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads(),
               "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"}  # fmt: skip
    print(machine)
    rows: list[dict[str, Any]] = []
    for model in given.models:
        steps = given.steps or (40 if model == "bert-tiny" else 12)
        examples = given.examples or (640 if model == "bert-tiny" else 256)
        for precision in given.precisions:
            if "mlm" in chosen:
                work = language_modelling(model, precision, steps)
                rows.append(compare(work, ["anytune", "trainer", "bare"], given.rounds))
            if "profile" in chosen:
                print(profile(language_modelling(model, precision, steps)))
            if "tune" in chosen:
                for task in given.tasks:
                    work = classification(model, task, precision, examples)
                    rows.append(compare(work, list(ARMS), given.rounds))
            if "apart" in chosen:
                for kind in ("mlm", "tune"):
                    rows += side_by_side(model, kind, precision, given.rounds)
    if "checkpoint" in chosen and "minilm-l6" in given.models:
        rows.append(checkpoint_cost(language_modelling("minilm-l6", given.precisions[-1], 55)))
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
