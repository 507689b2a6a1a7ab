"""Tune soft prompts on other tasks, ask which of them helps a new one, start from it, and learn from the result.

    python examples/transfer_a_prompt.py [BASE] [TASK] [SOURCE ...]

These are the steps one by one; ``anytune transfer run`` makes them all, for several sources and with controls.
"""

import sys
import tempfile

import anytune

BASE = sys.argv[1] if len(sys.argv) > 1 else "sample:bert-tiny"  # comes with anytune
TASK = sys.argv[2] if len(sys.argv) > 2 else "sample:hpo"  # the three tasks are fetched once
SOURCES = sys.argv[3:] or ["sample:foldoc", "sample:rotten_tomatoes"]

training = {"steps": 60, "batch_size": 16, "max_length": 48, "precision": "fp32"}
with tempfile.TemporaryDirectory() as store:  # leave it out, and the library stays in ./anytune-store
    for name in SOURCES:
        source = anytune.load_task(name, limit=600)
        anytune.tune(BASE, source, store=store, method="prompt_tuning", training=training)

    task = anytune.load_task(TASK, limit=400)
    [plain] = anytune.tune(BASE, task, store=store, method="prompt_tuning", training=training)
    ranking = anytune.rank_sources(task, BASE, store=store)
    print(ranking)

    best = ranking.top(1)[0]
    [teacher] = anytune.tune(
        BASE, task, store=store, method="prompt_transfer", sources=[best.entry], training=training
    )
    given = {"delta": teacher, "similarity": best.similarity}
    [student] = anytune.tune(BASE, task, store=store, method="panda", teachers=[given], training=training)

    for way, delta in (("prompt tuning", plain), (f"from {best.task}", teacher), ("taught by that", student)):
        print(f"{way}: {task.metric} on the test split {delta.score('test'):.4f}")
