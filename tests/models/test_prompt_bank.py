"""A batch of many tasks in one pass against one pass for each task."""

from __future__ import annotations

import copy

import pytest
import torch

from anytune.errors import MethodError, WrongBaseError
from anytune.manifests import BaseIdentity
from anytune.models.anatomy import anatomy_of
from anytune.models.answering import task_output
from anytune.models.prompt_bank import PromptBank
from anytune.models.soft_prompt_config import SoftPromptConfig
from anytune.models.soft_prompts import PromptSource, attach_prompt, make_prompt, prompt_of, prompt_width
from tests.models.kinds import DECODERS, KINDS
from tests.models.test_soft_prompts import batch_of, task_model

SEQUENCE, TOKENS = "sequence-classification", "token-classification"


def source_for(model, kind: str, length: int, outputs: int, seed: int) -> PromptSource:
    """A prompt of large numbers with a head of its own, a BERT pooler included."""
    draw = torch.Generator().manual_seed(seed)
    anatomy = anatomy_of(model)
    values = torch.randn(length, prompt_width(model, kind, anatomy), generator=draw)
    state = model.state_dict()
    head = {}
    for name in [name for name in state if name in anatomy.split(state).task_head or anatomy.is_pooler(name)]:
        shape = list(state[name].shape)
        if shape[0] == model.config.num_labels:
            shape[0] = outputs
        head[name] = torch.randn(shape, generator=draw)
    return PromptSource(f"task{seed}", SoftPromptConfig(kind=kind, length=length), values, head)


def alone(model, source: PromptSource, batch):
    """The same by itself: the prompt put on, the head written in."""
    one = copy.deepcopy(model)
    anatomy = anatomy_of(one)
    prompt = make_prompt(one, source.config, anatomy, seed=0, values=source.values)
    attach_prompt(one, prompt, anatomy)
    for name, tensor in source.head.items():
        module = one.get_submodule(name.rpartition(".")[0])
        setattr(module, name.rpartition(".")[2], torch.nn.Parameter(tensor.clone()))
    return one, task_output(one, batch).logits


IDS = [1, 0, 2, 1]
LENGTHS = (3, 5, 3)
OUTPUTS = (3, 2, 4)


@pytest.mark.parametrize("prompts", ["deep", "input"])
@pytest.mark.parametrize("purpose", [SEQUENCE, TOKENS])
@pytest.mark.parametrize("kind", KINDS)
def test_a_mixed_batch_answers_and_learns_as_separate_passes(kind, purpose, prompts):
    model = task_model(kind, purpose)
    batch, anatomy = batch_of(kind, rows=4), anatomy_of(model)
    sources = [
        source_for(model, prompts, n, c, seed) for seed, (n, c) in enumerate(zip(LENGTHS, OUTPUTS, strict=True))
    ]
    bank = PromptBank(model, anatomy)
    assert [bank.add(source) for source in sources] == [0, 1, 2]
    answers = bank(batch, torch.tensor(IDS))
    weights = [torch.randn(one.shape, generator=torch.Generator().manual_seed(9)) for one in answers]
    shown = [batch["attention_mask"][row].bool() if purpose == TOKENS else slice(None) for row in range(len(IDS))]
    sum((one[real] * by[real]).sum() for one, by, real in zip(answers, weights, shown, strict=True)).backward()
    for task, source in enumerate(sources):
        rows = [row for row, one in enumerate(IDS) if one == task]
        single, logits = alone(task_model(kind, purpose), source, {key: one[rows] for key, one in batch.items()})
        sum(
            (one[shown[row]] * weights[row][shown[row]]).sum() for row, one in zip(rows, logits, strict=True)
        ).backward()
        for row, one in zip(rows, logits, strict=True):
            assert answers[row].shape == one.shape
            torch.testing.assert_close(answers[row][shown[row]], one[shown[row]], rtol=1e-4, atol=2e-5)
        table = prompt_of(single).table.grad
        torch.testing.assert_close(bank.prompts[task].grad, table, rtol=1e-3, atol=1e-4 * float(table.abs().max()))
        for name, weight in bank.head(task).items():
            theirs = single.get_parameter(name).grad
            if theirs is None:  # a pooler that words' heads do not read
                assert weight.grad is None
                continue
            torch.testing.assert_close(weight.grad, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max() + 1e-3))


def test_the_model_is_no_parameter_of_the_bank_and_is_as_it_was_afterwards():
    model = task_model("bert", SEQUENCE)
    batch, before = batch_of("bert"), copy.deepcopy(model.state_dict())
    bank = PromptBank(model, anatomy_of(model))
    bank.add(source_for(model, "deep", 2, 3, 0))
    bank(batch, [0, 0, 0])
    assert {id(one) for one in bank.parameters()}.isdisjoint({id(one) for one in model.parameters()})
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
    assert "forward" not in vars(model.bert)


@pytest.mark.parametrize("kind", [DECODERS[1], "t5"])
def test_prompts_of_models_that_write_need_no_heads(kind):
    model = task_model(kind, "pretraining")
    anatomy, batch = anatomy_of(model), batch_of(kind, writes=True)
    bank = PromptBank(model, anatomy)
    sources = [source_for(model, "deep", n, 3, seed) for seed, n in enumerate((2, 4))]
    for source in sources:
        bank.add(PromptSource(source.name, source.config, source.values))
    with torch.no_grad():
        answers = bank(batch, [1, 0, 1])
        for row, one in enumerate([1, 0, 1]):
            own = {key: value[row : row + 1] for key, value in batch.items()}
            _, logits = alone(task_model(kind, "pretraining"), bank.sources[one], own)
            real = slice(None) if kind == "t5" else own["attention_mask"][0].bool()
            torch.testing.assert_close(answers[row][real], logits[0][real], rtol=1e-4, atol=1e-5)


def test_what_does_not_belong_into_a_bank_is_refused():
    model = task_model("bert", SEQUENCE)
    here, there = BaseIdentity(backbone="a" * 64, name="here"), BaseIdentity(backbone="b" * 64, name="there")
    bank = PromptBank(model, anatomy_of(model), here)
    good = source_for(model, "deep", 2, 3, 0)
    with pytest.raises(WrongBaseError, match="there"):
        bank.add(PromptSource("x", good.config, good.values, good.head, base=there))
    with pytest.raises(MethodError, match="NaN"):
        bank.add(PromptSource("x", good.config, good.values * float("nan"), good.head))
    with pytest.raises(MethodError, match="width"):
        bank.add(PromptSource("x", good.config, good.values[:, 1:], good.head))
    with pytest.raises(MethodError, match=r"the head of 'x' does not fit: score.weight"):
        bank.add(PromptSource("x", good.config, good.values, {"score.weight": torch.zeros(3, 16)}))
    bank.add(good)
    with pytest.raises(MethodError, match="kind input"):
        bank.add(source_for(model, "input", 2, 3, 1))
    with pytest.raises(MethodError, match="prompt 1 is none of the bank's 1"):
        bank(batch_of("bert"), [0, 1, 0])
    with pytest.raises(MethodError, match="2 prompt ids for 3 texts"):
        bank(batch_of("bert"), [0, 0])
