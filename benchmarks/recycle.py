"""What recycling costs: a step of distillation, the line between two models, and a whole shelf upgraded.

    python benchmarks/recycle.py                          # everything; about two hours on two quiet cores
    python benchmarks/recycle.py --smoke                  # a few minutes on bert-tiny: does it run?
    python benchmarks/recycle.py --only shelf --deltas 100

``step``: steps of ``distill`` and ``combined`` beside plain tuning, in one process and in turn (``alternating.py``).
``path``: the share of its time that the 26-point line spends in forward passes. ``shelf``: LoRA deltas of real tasks
carried over to an upgraded base by one ``upgrade``, against tuning afresh on that base, which is measured on one delta
of each task and multiplied; one delta of each task is tuned on, to see what is to be had beyond its old score. Deltas
beyond the first of a task are copies with a little noise (said in the results: how many tasks are really different).
Memory is the process's peak after a tenth of the shelf and after all of it. ``afresh``, for a shelf whose deltas were
tuned earlier (``--work``): tuning afresh timed once more, so that both sides of the share are of one day.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from alternating import Arm, in_turn, now, tell, tell_times, write_results

import anytune
from anytune.data.batches import ExampleBatches, encode_task
from anytune.data.tasks import Task, load_task
from anytune.engine.allocator import keep_freed_memory
from anytune.engine.runtime import make_runtime
from anytune.engine.settings import training_settings
from anytune.errors import AnytuneError
from anytune.evaluate.base_distance import base_distance
from anytune.evaluate.connectivity import path_between
from anytune.jobs.deltas import load_delta
from anytune.jobs.outdated import Moving
from anytune.jobs.scoring import EncodedTask, Scorer
from anytune.jobs.stored_sample import read_sample
from anytune.jobs.upgrade_results import Outcome
from anytune.methods import registry
from anytune.methods.objective import Classification
from anytune.methods.protocol import Run
from anytune.models.adapters import AdapterDelta
from anytune.store import Entry, Store

TASKS = ("rotten_tomatoes", "hpo", "foldoc", "bbc", "newsgroups", "r8", "tweets2016", "guardian_headlines",
         "licence_notice", "debian", "r52", "vader_tweets")  # fmt: skip
#: Points of a score that an upgraded delta may be below tuning afresh.
POINT = 0.01


def training(smoke: bool, steps: int = 200) -> dict[str, Any]:
    steps = 20 if smoke else steps
    return {"steps": steps, "batch_size": 16, "learning_rate": 2e-3, "max_length": 64, "precision": "fp32",
            "evaluate_every": max(steps // 5, 1)}  # fmt: skip


def step(model: str, folder: Path, cycles: int, smoke: bool) -> list[dict[str, Any]]:
    """Steps of the methods that learn from the old model, beside plain tuning."""
    base, settings = anytune.open_base(model), training_settings(training(smoke))
    task = load_task("sample:hpo", limit=400).subset(train_size=320, seed=0)
    [entry] = anytune.tune(base, task, store=folder, training={**training(smoke), "steps": 5})
    encoded, runtime = EncodedTask.of(task, base, settings.max_length), make_runtime("fp32")
    batches, moving = ExampleBatches(encoded.train, settings.batch_size, 0), Moving(entry, base, base)
    fresh, head_names = base.task_model(task.kind, task.label_names, 0)
    arms = []
    for name, methods in (("plain", []), ("plain again", []), ("distill", ["distill"]), ("combined", ["combined"])):
        run = Run(
            seed=0, steps=10**6, anatomy=base.anatomy, head_names=head_names, batches=batches, base=base,
            objective=Classification(), device=runtime.device, label_names=task.label_names,
            outdated=moving.in_run(task, encoded.train, settings, 0, runtime),
        )  # fmt: skip
        arms.append(Arm(name, registry.parse(methods, "recycle"), fresh, run, "fp32"))
    rows = in_turn(arms, cycle=5, cycles=cycles)
    for row in rows:
        tell_times(f"step, {model}", row)
    return rows


def path(model: str, folder: Path, smoke: bool) -> dict[str, Any]:
    """The 26-point line between two tuned models."""
    base = anytune.open_base(model)
    task = load_task("sample:hpo", limit=400).subset(train_size=320, seed=0)
    ends = [
        anytune.tune(base, task, store=folder, seeds=[seed], training={**training(smoke), "steps": 5})[0]
        for seed in (0, 1)
    ]
    models = [anytune.load(end, store=folder)[0] for end in ends]
    runtime, length = make_runtime("fp32"), 64
    scorer = Scorer(
        task=task, encoded=EncodedTask.of(task, base, length).validation, split="validation", base=base,
        batch_size=64, runtime=runtime,
    )  # fmt: skip
    states = [{name: tensor.clone() for name, tensor in one.state_dict().items()} for one in models]
    found = path_between(models[0].to(runtime.device), *states, lambda current: scorer(current)[0])
    share = found.forward_share
    tell(f"path, {model}: {len(found.points)} points in {found.seconds:.1f} s, {100 * share:.1f} % of it in forwards")
    return {"points": len(found.points), "seconds": found.seconds, "forward_share": share,
            "examples": len(task.validation)}  # fmt: skip


def shelf(
    model: str, work: Path, folder: Path, count: int, tasks: int, steps: int, domain: str, smoke: bool
) -> dict[str, Any]:  # fmt: skip
    """A shelf upgraded, against every delta tuned afresh.

    Args:
        steps: of tuning each delta, on the old base and afresh.
        domain: what the base is upgraded with.
        work: where deltas are tuned; what is there already, with its time, is not tuned again.
        folder: where the shelf is filled up and upgraded, always from the beginning.
    """
    base, store = anytune.open_base(model), Store(work / "old")
    data = real_tasks(tasks)
    first = [anytune.tune(base, task, store=store, method="lora", training=training(smoke, steps))[0] for task in data]
    [new] = anytune.pretrain(
        base, [{"source": domain, "name": "upgrade"}], store=store, names=["upgraded"],
        training={"steps": 5 if smoke else 100, "batch_size": 16, "block_size": 128, "learning_rate": 2e-4,
                  "precision": "fp32"},
    )  # fmt: skip
    distance = base_distance(base, anytune.open_base(new)).whole.relative
    times_file, fresh = work / "seconds.json", {}
    times = json.loads(times_file.read_text()) if times_file.exists() else {}
    for task in data:
        place = work / "fresh" / task.name
        if task.name not in times:  # what was cut in the middle would be timed by its second half alone
            shutil.rmtree(place, ignore_errors=True)
        began = now()
        [one] = anytune.tune(new, task, store=place, method="lora", training=training(smoke, steps))
        if times.get(task.name, {}).get("id") != one.id:
            times[task.name] = {"id": one.id, "seconds": now() - began}
            times_file.write_text(json.dumps(times))
        fresh[task.name] = one
    afresh = sum(times[task.name]["seconds"] for task in data) * count / len(data)
    shutil.copytree(store.folder, folder)
    copies(Store(folder), first, count)
    sources = {task.name: task for task in data}
    tenth = upgraded(folder, base, new, sources, [entry.reference for entry in first])
    whole = upgraded(folder, base, new, sources, None, headroom=True)
    outcomes = whole["result"].outcomes
    # What a point is worth: tuning afresh with another seed is not always within a point of tuning afresh.
    again = {task.name: anytune.tune(new, task, store=work / "fresh" / task.name, method="lora", seeds=[1],
                                     training=training(smoke, steps))[0] for task in data}  # fmt: skip
    goal = {name: must(one.score("test")) - POINT for name, one in fresh.items()}
    tested = {one.delta: scored(one.made, folder, new, sources[one.task], "test") for one in outcomes if one.made}
    behind = [one for one in outcomes if tested.get(one.delta, 0.0) < goal[one.task]]
    deciding = {name: scored(one, work / "fresh" / name, new, read_sample(old), "validation")
                for old, (name, one) in zip(first, fresh.items(), strict=True)}  # fmt: skip
    probes = [one for one in outcomes if one.headroom and one.headroom["probe"] == one.delta]
    decisions = [(one.task, one.decision) for one in outcomes if one.decision is not None]
    seconds = tenth["seconds"] + whole["seconds"]
    found = {
        "deltas": count, "different_tasks": len(data), "tuning_steps": training(smoke, steps)["steps"],
        "domain": domain, "distance": distance,
        "seconds": seconds, "afresh_seconds": afresh,
        "share": seconds / afresh,
        "share_of_training_alone": seconds * len(data) / count / sum(one.manifest.seconds for one in fresh.values()),
        "within_a_point_of_fresh": count - len(behind),
        "others_flagged": sum(bool(one.flag or one.more) for one in behind),
        "others_by_task": tally(one.task for one in behind),
        "within_a_point_on_deciding_rows": sum(
            (one.score or 0.0) >= deciding[task] - POINT for task, one in decisions
        ),
        "tasks_with_another_fresh_seed_within": sum(must(again[name].score("test")) >= goal[name] for name in fresh),
        "steps_taken": tally(one.step for _, one in decisions),
        "flags": tally(one.flag for one in outcomes if one.flag),
        "can_do_more": tally(one.task for one in outcomes if one.more),
        "on_deciding_rows": {one.task: headroom(one) | {"fresh": deciding[one.task]} for one in probes},
        "headroom_seconds": sum(one.headroom["seconds"] for one in probes if one.headroom),
        "test": {
            task.name: {
                "old": old.score("test"), "fresh": fresh[task.name].score("test"),
                "fresh_again": again[task.name].score("test"), "upgraded": tested.get(old.reference),
            }
            for old, task in zip(first, data, strict=True)
        },
        "peak_bytes_after_a_tenth": tenth["peak"], "peak_bytes_after_all": whole["peak"],
    }  # fmt: skip
    tell(
        f"shelf, {model}: {count} deltas of {len(data)} tasks in {seconds:.0f} s, {100 * found['share']:.1f} % of "
        f"{afresh:.0f} s afresh; {count - len(behind)} within a point of it on test, "
        f"{found['others_flagged']} others flagged; "
        f"peak {tenth['peak'] / 2**20:.0f} then {whole['peak'] / 2**20:.0f} MiB"
    )
    return found


def must(score: float | None) -> float:
    """A score that is there: every delta here was tuned with test rows."""
    assert score is not None
    return score


def scored(delta: Entry | str, store: Path, base: Entry, task: Task | None, split: str) -> float:
    """The main score of a delta on the rows of a split."""
    assert task is not None
    model, tokenizer = anytune.load(delta, store=store)
    opened, runtime = anytune.open_base(base), make_runtime("fp32")
    encoded = encode_task(getattr(task, split), tokenizer, 64, task.kind)
    scorer = Scorer(task=task, encoded=encoded, split=split, base=opened, batch_size=64, runtime=runtime)
    return float(scorer(model.to(runtime.device))[0].scores[task.metric])


def headroom(one: Outcome) -> dict[str, Any]:
    """What tuning it on gave beside what was taken, on the rows that decide."""
    assert one.headroom is not None
    assert one.decision is not None
    return {"old": one.decision.old, "upgraded": one.decision.score, "tuned_on": one.headroom["score"],
            "error": one.headroom["error"]}  # fmt: skip


def upgraded(
    store: Path, base: Any, new: Entry, tasks: dict[str, Task], deltas: Sequence[str] | None, headroom: bool = False
) -> dict[str, Any]:
    """An upgrade, timed."""
    began = now()
    result = anytune.upgrade(store, old=base, new=new, tasks=tasks, deltas=deltas, headroom=headroom)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"result": result, "seconds": now() - began, "peak": peak}


def real_tasks(count: int) -> list[Task]:
    """The first tasks that can be had here; 800 training rows of each."""
    found: list[Task] = []
    for name in TASKS:
        if len(found) == count:
            break
        try:
            found.append(load_task(f"sample:{name}", limit=1000).subset(train_size=800, seed=0))
        except AnytuneError as problem:
            tell(f"sample:{name} left out: {problem.what}")
    return found


def afresh(model: str, work: Path, folder: Path, tasks: int, steps: int, smoke: bool) -> dict[str, Any]:
    """Seconds of tuning every task afresh, again: beside those a shelf found in ``work``, how far the machine drifts.

    Args:
        work: of a shelf that was upgraded before, with its upgraded base.
        folder: where it is tuned, from the beginning.
    """
    [new] = [one for one in Store(work / "old").find("base") if one.manifest.name == "upgraded"]
    before, seconds = json.loads((work / "seconds.json").read_text()), {}
    for task in real_tasks(tasks):
        began = now()
        anytune.tune(new, task, store=folder, method="lora", training=training(smoke, steps))
        seconds[task.name] = now() - began
    known = sum(before[name]["seconds"] for name in seconds)
    total = sum(seconds.values())
    tell(f"afresh, {model}: {len(seconds)} tasks in {total:.0f} s, {total / known:.2f} of the {known:.0f} s known")
    return {"seconds": seconds, "seconds_known": known, "ratio": total / known}


def copies(store: Store, entries: Sequence[Entry], count: int) -> None:
    """Fill a shelf up to ``count`` deltas with copies whose matrices are a thousandth of their size off."""
    for number in range(len(entries), count):
        entry = entries[number % len(entries)]
        delta = load_delta(entry)
        assert isinstance(delta, AdapterDelta)
        draw = torch.Generator().manual_seed(number)
        noisy = {
            name: tensor + 1e-3 * tensor.std() * torch.randn(tensor.shape, generator=draw)
            for name, tensor in delta.tensors.items()
        }
        manifest = entry.manifest.model_copy(deep=True, update={"seed": number, "probe": None})

        def write(folder: Path, entry: Entry = entry, delta: AdapterDelta = delta, noisy: Any = noisy) -> None:
            AdapterDelta(delta.config, noisy).save(folder, entry.manifest.base)
            shutil.copyfile(entry.folder / "sample.jsonl", folder / "sample.jsonl")

        store.add(manifest, write)


def tally(words: Any) -> dict[str, int]:
    listed = list(words)
    return {str(word): listed.count(word) for word in dict.fromkeys(listed)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="default: warmed:minilm-l6, bert-tiny with --smoke")
    parser.add_argument("--only", nargs="*", default=["step", "path", "shelf"],
                        choices=["step", "path", "shelf", "afresh"],
                        help="afresh: time tuning afresh once more, with --work of an earlier shelf")  # fmt: skip
    parser.add_argument("--deltas", type=int, default=None)
    parser.add_argument("--tasks", type=int, default=None)
    parser.add_argument("--steps", type=int, default=500, help="of tuning a delta of the shelf; 50 are one epoch")
    parser.add_argument("--domain", default="sample:hpo", help="what the shelf's base is upgraded with")
    parser.add_argument("--cycles", type=int, default=None)
    parser.add_argument("--smoke", action="store_true", help="small, to see that it runs")
    parser.add_argument("--work", type=Path, help="folder of the deltas tuned for the shelf: kept, and found again")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results")
    given = parser.parse_args()
    keep_freed_memory()
    model = given.model or ("sample:bert-tiny" if given.smoke else "warmed:minilm-l6")
    found: dict[str, Any] = {"model": model}
    with tempfile.TemporaryDirectory() as scratch:
        if "step" in given.only:
            cycles = given.cycles or (2 if given.smoke else 30)
            found["step"] = step(model, Path(scratch) / "step", cycles, given.smoke)
        if "path" in given.only:
            found["path"] = path(model, Path(scratch) / "path", given.smoke)
        if "shelf" in given.only:
            count, tasks = given.deltas or (6 if given.smoke else 100), given.tasks or (2 if given.smoke else 10)
            work = given.work or Path(scratch) / "work"
            found["shelf"] = shelf(model, work, Path(scratch) / "shelf", count, tasks, given.steps,
                                   given.domain, given.smoke)  # fmt: skip
        if "afresh" in given.only:
            if given.work is None:
                parser.error("afresh needs the --work of an earlier shelf")
            tasks = given.tasks or (2 if given.smoke else 10)
            found["afresh"] = afresh(model, given.work, Path(scratch) / "afresh", tasks, given.steps, given.smoke)
    write_results(given.out, "recycle", found)


if __name__ == "__main__":
    main()
