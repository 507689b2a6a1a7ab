"""What lies between an old tuned model and one on the new base: the straight line, and how alike their heads are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from anytune.data.batches import evaluation_batches
from anytune.data.tasks import Task
from anytune.engine.progress import Reporter
from anytune.engine.runtime import make_runtime
from anytune.errors import AnytuneError
from anytune.evaluate.connectivity import path_between
from anytune.evaluate.functional_similarity import functional_similarity
from anytune.jobs.load import load
from anytune.jobs.recycle_runs import Made, Planned
from anytune.jobs.scoring import EncodedTask, Scorer
from anytune.store import Entry


def path_lines(made: Made, tell: Reporter) -> Iterator[dict[str, Any]]:
    """A line for each run that is connected with its old delta; a fresh run with the first old delta of its seed."""
    connect = made.design.connect
    for one in made.planned:
        if one.plan is None or one.arm is None or one.upgrade is None or one.new is None:
            continue
        old = one.old or next(iter(connect.old), "")
        if one.arm not in connect.arms or not connect.wants(one.arm, old, one.new, one.seed):
            continue
        before, after = made.old.get((one.form, one.task, old, one.seed)), made.entries.get(one.key)
        if before is None or after is None or after.manifest.failed:
            continue
        tell.say(f"path: {one.arm} on {one.upgrade}, {one.form}, {one.task}, seed {one.seed}")
        yield {
            "arm": one.arm, "upgrade": one.upgrade, "same_base": made.same_base(one.upgrade), "form": one.form,
            "task": one.task, "metric": one.part.metric, "old": old, "new": one.new, "seed": one.seed,
            "run": one.key, **between(made, one, before, after),
        }  # fmt: skip


def between(made: Made, one: Planned, before: Entry, after: Entry) -> dict[str, Any]:
    """The path between two tuned models, and the similarity of their heads, on rows of the test split.

    Where the two are of different make (a merged adapter and an adapter), there is no line between them, and it says
    why.
    """
    connect, runtime = made.design.connect, make_runtime("fp32")
    old_base, new_base = made.opened(None), made.opened(one.upgrade)
    length = int(after.manifest.training.get("max_length", 128))
    part = few_rows(one.part, connect.texts)
    encoded = EncodedTask.of(part, new_base, length)
    first, second = (
        load(entry, store=made.store, base=base, check=False)[0].to(runtime.device)
        for entry, base in ((before, old_base), (after, new_base))
    )
    scorer = Scorer(task=part, encoded=encoded.test, split="test", base=new_base, batch_size=64, runtime=runtime)
    found: dict[str, Any] = {"path": None, "similarity": None, "problem": None}
    try:
        alike = functional_similarity(first, second, evaluation_batches(encoded.test, 64), new_base.anatomy, runtime)
        found["similarity"] = alike.record()
        start, end = first.state_dict(), second.state_dict()
        walked = path_between(second, start, end, lambda model: scorer(model)[0], points=connect.points)
        found["path"] = walked.record()
    except AnytuneError as problem:
        found["problem"] = problem.what
    return found


def few_rows(task: Task, rows: int) -> Task:
    """The task with its first test rows; what it is trained on plays no part."""
    return replace(task, train=task.train[:1], validation=task.validation[:1], test=task.test[:rows])
