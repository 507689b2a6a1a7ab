"""The loop against a loop that anyone can check by eye: the same bits, or one of the two is wrong."""

from __future__ import annotations

import torch

from anytune.data.batches import BlockBatches, ExampleBatches, encode_task
from anytune.data.domains import load_domain
from anytune.data.packing import pack
from anytune.data.tasks import load_task
from anytune.engine.loop import train
from anytune.engine.runtime import make_runtime, seeded
from anytune.engine.settings import training_settings
from anytune.methods.objective import Classification, LanguageModelling
from anytune.models.base import load_base

STEPS, RATE, WARMUP = 20, 1e-3, 0.2


def naive(model, batches, loss_of) -> None:
    """Twenty steps of AdamW: a rate that rises over 4 steps and falls to zero, gradients clipped to a norm of 1."""
    parameters = sorted(model.parameters(), key=lambda parameter: parameter.ndim < 2)  # matrices, then vectors
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=True)
    model.train()
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * ((step + 1) / 5 if step < 4 else (STEPS - step) / 16)
        loss = loss_of(model, batches.batch(step))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()


def classification_loss(model, batch):
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "token_type_ids", "labels")}
    return model(**inputs).loss


def masked_loss(model, batch):
    hidden = model.bert(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    chosen = batch["labels"] != -100
    logits = model.cls(hidden[chosen])
    return torch.nn.functional.cross_entropy(logits, batch["labels"][chosen], reduction="sum") / chosen.sum()


def both(make, batches, objective, loss_of):
    with seeded(3):
        oracle = make()
        torch.manual_seed(4)
        naive(oracle, batches, loss_of)
    with seeded(3):
        model = make()
        torch.manual_seed(4)
        train(
            model, methods=[], objective=objective, batches=batches, steps=STEPS, learning_rate=RATE,
            settings=training_settings({"warmup": WARMUP, "keep": "last"}), runtime=make_runtime("fp32"),
        )  # fmt: skip
    return oracle.state_dict(), model.state_dict()


def test_full_tuning_gives_the_bits_of_the_naive_loop(tiny_base, tiny_task):
    base, task = load_base(tiny_base), load_task(tiny_task)
    batches = ExampleBatches(encode_task(task.train, base.tokenizer(), 32), 8, 3)
    oracle, model = both(
        lambda: base.task_model(task.kind, task.label_names, 7)[0], batches, Classification(), classification_loss
    )
    assert oracle.keys() == model.keys()
    assert [name for name in oracle if not torch.equal(oracle[name], model[name])] == []


def test_masked_pretraining_gives_the_bits_of_the_naive_loop(tiny_base, tiny_domain):
    base = load_base(tiny_base)
    tokenizer = base.tokenizer()
    blocks = pack(load_domain(tiny_domain).texts, tokenizer, 32, objective="mlm", cache=None)
    batches = BlockBatches(blocks, 4, 3, "mlm", tokenizer)
    oracle, model = both(lambda: base.pretraining_model(7)[0], batches, LanguageModelling(base.anatomy), masked_loss)
    assert oracle.keys() == model.keys()
    assert [name for name in oracle if not torch.equal(oracle[name], model[name])] == []
