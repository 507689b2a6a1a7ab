"""Tune a small model with BitFit by one call of anytune.

    python examples/tune_with_anytune.py [BASE] [TASK]

Beside it, tune_with_trainer.py and tune_with_pytorch.py do the same in the transformers Trainer and in a loop written
by hand. On a CPU all three print the same score and the same hash of the weights.
"""

import hashlib
import sys
import tempfile

import anytune

BASE = sys.argv[1] if len(sys.argv) > 1 else "sample:bert-tiny"  # comes with anytune
TASK = sys.argv[2] if len(sys.argv) > 2 else "sample:rotten_tomatoes"  # 9 MB, fetched once

task = anytune.load_task(TASK, limit=800)
with tempfile.TemporaryDirectory() as store:  # leave it out, and the delta stays in ./anytune-store
    [delta] = anytune.tune(
        BASE,
        task,
        store=store,
        method="bitfit",
        seeds=[0],
        training={
            "steps": 100,
            "batch_size": 16,
            "learning_rate": 2e-3,
            "max_length": 48,
            "precision": "fp32",
            "keep": "last",
        },
    )
    model, tokenizer = anytune.load(delta, store=store)

print(f"{task.name}: accuracy on the test split {delta.manifest.scores['test']['accuracy']:.4f}")
weights = b"".join(tensor.cpu().numpy().tobytes() for _, tensor in sorted(model.state_dict().items()))
print(f"weights {hashlib.sha256(weights).hexdigest()[:16]}")
