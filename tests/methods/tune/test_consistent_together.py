"""Methods that add terms go together: what each adds alone stands beside what the other adds."""

from __future__ import annotations

import pytest
import torch

from anytune.methods import registry
from anytune.methods.objective import objective_for
from anytune.methods.protocol import Run
from anytune.methods.step import StepModule
from anytune.models.base import load_base
from tests.contract.bench import Bench, equal
from tests.contract.places import Places
from tests.models.kinds import make_kind

PAIRS = [("rdrop", "slca"), ("r3f", "rdrop"), ("smart", "lnsr"), ("lnsr", "smart"), ("rdrop", "lnsr"),
         ("dft_plus", "rdrop"), ("rdrop", "dft_plus"), ("smart", "dft_plus"), ("dft_plus", "smart")]  # fmt: skip


@pytest.fixture(scope="module")
def bench(tiny_base, other_base, tiny_task, tiny_domain, tmp_path_factory) -> Bench:
    return Bench(tiny_base, other_base, tiny_task, tiny_domain, tmp_path_factory.mktemp("together"))


def made(names, neutral=None):
    return [
        registry.create(f"tune/{name}", registry.get(f"tune/{name}").neutral if name == neutral else None)
        for name in names
    ]


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_both_do_their_part_and_a_neutral_one_does_none(pair, bench: Bench):
    both = bench.loop("tune/full", methods=made(pair), steps=3).after
    for neutral in pair:
        left = [name for name in pair if name != neutral]
        alone = bench.loop("tune/full", methods=made(left), steps=3).after
        assert equal(alone, bench.loop("tune/full", methods=made(pair, neutral), steps=3).after)
        assert not equal(alone, both)


@pytest.mark.parametrize("pair", [("rdrop", "slca"), ("r3f", "rdrop"), ("dft_plus", "smart")], ids="-".join)
def test_together_they_give_the_same_bits_in_all_places(pair, bench: Bench, tmp_path, monkeypatch):
    monkeypatch.setattr(Places, "methods", lambda self: made(pair))
    places = Places(bench, "tune/full", accumulation=2, steps=3)
    looped = places.loop()
    assert equal(looped, places.by_hand())
    assert equal(looped, places.in_trainer(tmp_path))


@pytest.mark.parametrize("pair", [("rdrop", "slca"), ("dft_plus", "rdrop"), ("rdrop", "dft_plus")], ids="-".join)
def test_together_they_still_add_up_over_micro_batches_and_count_each_example_once(pair, bench: Bench):
    settings = {"precise": True, "steps": 4, "batch_size": 6, "learning_rate": 1e-3}
    whole, cut = (bench.loop("tune/full", methods=made(pair), **settings, pieces=pieces) for pieces in (1, 2))
    plain = bench.loop("tune/full", methods=[], **settings)
    assert whole.result.items == cut.result.items == plain.result.items
    for name, tensor in cut.after.items():
        torch.testing.assert_close(tensor, whole.after[name], rtol=0, atol=1e-12)


def test_a_trainers_checkpoint_with_a_borrowed_head_can_be_gone_on_from(bench: Bench, tmp_path):
    places = Places(bench, "tune/dft_plus", steps=4)
    whole = places.in_trainer(tmp_path / "whole")
    saving = {"save_strategy": "steps", "save_steps": 3}
    assert equal(whole, places.in_trainer(tmp_path / "cut", arguments=saving))
    trainer = places.trainer(tmp_path / "cut", arguments=saving)
    trainer.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    assert equal(whole, {name: tensor.detach() for name, tensor in trainer.inner.state_dict().items()})


@pytest.mark.parametrize("name", ["rdrop", "r3f", "smart", "lnsr", "slca"])
@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_they_tune_a_generating_model_too(name, kind, tmp_path):
    base = load_base(make_kind(kind, tmp_path))
    model, head_names = base.task_model("generation", (), 0)
    objective = objective_for("generation", base.anatomy)
    ids = torch.tensor([[5, 9, 12, 1, 20, 0], [7, 8, 9, 30, 31, 32]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 0], [1] * 6])
    batch = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill((mask == 0) | (ids < 9), -100)}
    method = registry.create(f"tune/{name}", {"slow": 1.0} if name == "slca" else None)
    run = Run(seed=0, steps=2, anatomy=base.anatomy, head_names=head_names, objective=objective, base=base)
    model = method.prepare(model, run).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    added = []
    for _ in range(2):
        method.before_step(model)
        terms = StepModule(model, [method], objective)(method.prepare_batch(batch))
        added = [value.item() for key, value in terms.items() if key != "loss"]
        sum(terms.values()).backward()
        optimizer.step()
        method.after_step(model)
    assert added
    assert all(value > 0 for value in added)
