"""A LoRA of a language model of 135 million parameters, brought over to the model's upgrade.

    python examples/recycle_smollm2.py [BASE] [TASK] [DOMAIN]

A few small steps of everything, so that a CPU holds it (a quarter of an hour, 3 GB); on a GPU raise ``limit`` and the
steps. The adapter is scored where it was tuned, on the upgraded base as it is, after a short tuning from there, and
beside an adapter that was tuned afresh with as many steps.
"""

import sys
import tempfile

import anytune

BASE = sys.argv[1] if len(sys.argv) > 1 else "sample:smollm2-135m"  # fetched once
TASK = sys.argv[2] if len(sys.argv) > 2 else "sample:rotten_tomatoes"
DOMAIN = sys.argv[3] if len(sys.argv) > 3 else "sample:hpo"

training = {"steps": 40, "batch_size": 8, "max_length": 48, "learning_rate": 1e-3, "evaluate_every": 10}
with tempfile.TemporaryDirectory() as store:  # leave it out, and all of it stays in ./anytune-store
    task = anytune.load_task(TASK, limit=400)
    lora = {"name": "lora", "r": 8}
    [old] = anytune.tune(BASE, task, store=store, method=lora, training=training)

    settings = {"steps": 20, "batch_size": 8, "block_size": 64, "learning_rate": 5e-5}
    [upgraded] = anytune.pretrain(BASE, DOMAIN, store=store, training=settings)

    given = {"store": store, "old_base": BASE, "task": task, "training": {**training, "steps": 10}}
    [direct] = anytune.recycle(old, upgraded, method="direct", **given)
    [short] = anytune.recycle(old, upgraded, method="initialize", **given)
    [fresh] = anytune.tune(upgraded, task, store=store, method=lora, training=given["training"])

    ways = {"old base": old, "as it is": direct, "10 steps from there": short, "10 steps afresh": fresh}
    for way, delta in ways.items():
        print(f"{way}: {task.metric} on the test split {delta.score('test'):.4f}")
