"""Tune a shelf of deltas, go on pre-training their base, and bring the whole shelf over in one call.

    python examples/upgrade_a_shelf.py [BASE] [DOMAIN] [TASK ...]

Every delta gets the cheapest step that brings its score back: as it is, scaled, a short tuning from there, or more.
``anytune upgrade`` is the same as a command; here it is shown what it goes by, before and after.
"""

import sys
import tempfile

import anytune

BASE = sys.argv[1] if len(sys.argv) > 1 else "sample:bert-tiny"  # comes with anytune
DOMAIN = sys.argv[2] if len(sys.argv) > 2 else "sample:hpo"  # what the base is pre-trained on; fetched once
TASKS = sys.argv[3:] or ["sample:hpo", "sample:rotten_tomatoes"]

training = {"steps": 60, "batch_size": 16, "max_length": 48, "learning_rate": 1e-3, "precision": "fp32"}
with tempfile.TemporaryDirectory() as store:  # leave it out, and all of it stays in ./anytune-store
    tasks = {}
    for source in TASKS:
        task = anytune.load_task(source, limit=600)
        tasks[task.name] = task
        for method in ("full", "lora"):
            anytune.tune(BASE, task, store=store, method=method, name=f"{task.name}-{method}", training=training)

    settings = {"steps": 50, "batch_size": 16, "block_size": 64, "learning_rate": 5e-4, "precision": "fp32"}
    [base] = anytune.pretrain(BASE, DOMAIN, store=store, names=["upgraded"], training=settings)

    seen = anytune.diagnose(BASE, base, store=store)
    print(f"the base moved by {100 * seen.distance.whole.relative:.2f} % of its length")

    found = anytune.upgrade(store, old=BASE, new="upgraded", tasks=tasks, tolerance="1%")
    for one in found.outcomes:
        now = one.decision.score if one.decision else None
        print(f"{one.delta}: {one.score('old')} before, {one.score('keep')} as it is, {now} by {one.decision.step}")
