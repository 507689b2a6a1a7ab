"""Tune a small model with BitFit in a PyTorch loop written by hand: every hook of a method, called where it belongs.

python examples/tune_with_pytorch.py [BASE] [TASK]
"""

import hashlib
import sys

import torch

import anytune
from anytune.data.batches import ExampleBatches, encode_task, evaluation_batches
from anytune.engine import derive_seed, learning_rate_share, method_groups
from anytune.methods import Run, StepModule, create, objective_for, total

BASE = sys.argv[1] if len(sys.argv) > 1 else "sample:bert-tiny"
TASK = sys.argv[2] if len(sys.argv) > 2 else "sample:rotten_tomatoes"
SEED, STEPS = 0, 100

base, task = anytune.open_base(BASE), anytune.load_task(TASK, limit=800)
tokenizer, objective = base.tokenizer(), objective_for(task.kind, base.anatomy)
train, test = (encode_task(rows, tokenizer, 48, task.kind) for rows in (task.train, task.test))
batches = ExampleBatches(train, 16, derive_seed(SEED, "order"))
model, head_names = base.task_model(task.kind, task.label_names, derive_seed(SEED, "head"))

method = create("bitfit")
run = Run(seed=derive_seed(SEED, "method"), steps=STEPS, anatomy=base.anatomy, head_names=head_names,
          objective=objective, batches=batches, base=base)  # fmt: skip
torch.manual_seed(derive_seed(SEED, "train"))
model = method.prepare(model, run)
step_module = StepModule(model, [method], objective)
optimizer = torch.optim.AdamW(method_groups(model, [method], learning_rate=2e-3, weight_decay=0.0), fused=True)
method.attach(model, optimizer)
for step in range(STEPS):
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * learning_rate_share(step, STEPS, warmup=0.06, schedule="linear")
    model.train()
    method.before_step(model)
    terms = step_module(method.prepare_batch(batches.batch(step)))
    total(terms).backward()
    method.after_backward(model)
    torch.nn.utils.clip_grad_norm_([weight for group in optimizer.param_groups for weight in group["params"]], 1.0)
    optimizer.step()
    method.after_step(model)
    optimizer.zero_grad()
model = method.finish(model, run).eval()

with torch.no_grad():
    pairs = ((objective.forward(model, batch).logits, batch) for _, batch in evaluation_batches(test, 64))
    right = sum(int((logits.argmax(-1) == batch["labels"]).sum()) for logits, batch in pairs)
print(f"{task.name}: accuracy on the test split {right / len(test):.4f}")
weights = b"".join(tensor.cpu().numpy().tobytes() for _, tensor in sorted(model.state_dict().items()))
print(f"weights {hashlib.sha256(weights).hexdigest()[:16]}")
