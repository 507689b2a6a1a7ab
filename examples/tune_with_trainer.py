"""Tune a small model with BitFit in the transformers Trainer.

    python examples/tune_with_trainer.py [BASE] [TASK]

``anytune.hf_trainer`` gives an ordinary Trainer: callbacks, checkpoints and evaluation are the ones you know.
"""

import hashlib
import sys
import tempfile

from transformers import TrainingArguments

import anytune
from anytune.data.batches import ExampleBatches, encode_task
from anytune.engine import derive_seed

BASE = sys.argv[1] if len(sys.argv) > 1 else "sample:bert-tiny"
TASK = sys.argv[2] if len(sys.argv) > 2 else "sample:rotten_tomatoes"
SEED = 0

base, task = anytune.open_base(BASE), anytune.load_task(TASK, limit=800)
tokenizer = base.tokenizer()
model, head_names = base.task_model(task.kind, task.label_names, derive_seed(SEED, "head"))
train, test = (encode_task(rows, tokenizer, 48, task.kind) for rows in (task.train, task.test))

trainer = anytune.hf_trainer(
    model,
    ["bitfit"],
    head_names=head_names,
    train_dataset=ExampleBatches(train, 16, derive_seed(SEED, "order")),  # or your own dataset and data_collator
    eval_dataset=test,
    compute_metrics=lambda answer: {"accuracy": (answer.predictions.argmax(-1) == answer.label_ids).mean()},
    args=TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        seed=SEED,
        max_steps=100,
        learning_rate=2e-3,
        warmup_steps=0.06,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    ),
)
trainer.train()

print(f"{task.name}: accuracy on the test split {trainer.evaluate()['eval_accuracy']:.4f}")
weights = b"".join(tensor.cpu().numpy().tobytes() for _, tensor in sorted(trainer.inner.state_dict().items()))
print(f"weights {hashlib.sha256(weights).hexdigest()[:16]}")
