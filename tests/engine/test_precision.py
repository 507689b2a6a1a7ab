"""bf16 autocast: products in half precision; weights, gradients, moments, losses and sums in fp32."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from anytune.data.batches import BlockBatches, ExampleBatches, encode_task
from anytune.data.domains import load_domain
from anytune.data.packing import pack
from anytune.data.tasks import load_task
from anytune.engine.loop import Loop, train
from anytune.engine.progress import Silent
from anytune.engine.runtime import make_runtime, seeded
from anytune.engine.settings import training_settings
from anytune.engine.stages import moments
from anytune.methods.objective import Classification, LanguageModelling, Regression
from anytune.models.base import load_base


@pytest.fixture
def tuning(tiny_base, tiny_task):
    base, task = load_base(tiny_base), load_task(tiny_task)
    batches = ExampleBatches(encode_task(task.train, base.tokenizer(), 32), 8, 3)
    with seeded(2):
        model, _ = base.task_model(task.kind, task.label_names, 7)
    return model, {"objective": Classification(), "batches": batches}


@pytest.fixture
def pretraining(tiny_base, tiny_domain):
    base = load_base(tiny_base)
    tokenizer = base.tokenizer()
    blocks = pack(load_domain(tiny_domain).texts, tokenizer, 32, objective="mlm", cache=None)
    with seeded(2):
        model, _ = base.pretraining_model(7)
    batches = BlockBatches(blocks, 4, 3, "mlm", tokenizer)
    return model, {"objective": LanguageModelling(base.anatomy), "batches": batches}


@pytest.mark.parametrize("kind", ["tuning", "pretraining"])
def test_weights_gradients_moments_and_sums_stay_in_fp32(kind, request):
    model, parts = request.getfixturevalue(kind)
    loop = Loop(
        model=model, methods=[], steps=2, settings=training_settings({"accumulation": 2}), learning_rate=1e-3,
        runtime=make_runtime("bf16"), evaluate=None, work=None, title="", reporter=Silent(), **parts,
    )  # fmt: skip
    seen: set[torch.dtype] = set()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _module, _inputs, output: seen.add(output.dtype))
    with seeded(4):
        loss = loop.step(loop.prepare(), 1.0)
    assert seen == {torch.bfloat16}, "autocast is on"
    assert loss.dtype == torch.float32
    assert loop.state.summed.dtype == torch.float32
    parameters = dict(model.named_parameters())
    assert {parameter.dtype for parameter in parameters.values()} == {torch.float32}
    assert {parameter.grad.dtype for parameter in parameters.values() if parameter.grad is not None} == {torch.float32}
    kept = moments(loop.state.optimizer)
    assert kept
    assert {state[name].dtype for state in kept.values() for name in ("exp_avg", "exp_avg_sq")} == {torch.float32}
    # a master copy: the update was smaller than what bf16 can tell apart, and is there
    moved = [parameter for parameter in parameters.values() if (parameter.bfloat16().float() != parameter).any()]
    assert len(moved) > len(parameters) / 2


@pytest.mark.parametrize(
    ("objective", "labels"),
    [(Classification(), torch.tensor([0, 2, 1])), (Regression(), torch.tensor([0.1, 1.7, -3.0]))],
)
def test_logits_are_widened_before_the_loss(objective, labels):
    class Output:
        logits = torch.tensor([[1.0, 2.0, 3.3], [4.1, -1.0, 0.0], [9.0, 9.1, 9.2]]).bfloat16()

    if isinstance(objective, Regression):
        Output.logits = Output.logits[:, :1]
    # outside autocast, which widens some losses by itself and others not
    loss = objective.terms(Output, {"labels": labels})["loss"]
    wide = Output.logits.float()
    expected = (
        nn.functional.mse_loss(wide.squeeze(-1), labels)
        if isinstance(objective, Regression)
        else nn.functional.cross_entropy(wide, labels)
    )
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


class Begins(Silent):
    """Notes the steps that runs began at."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def start(self, title, total, done=0):
        self.steps.append(done)


@pytest.mark.parametrize("kind", ["tuning", "pretraining"])
def test_a_bf16_run_resumes_to_the_same_bits(kind, request, tmp_path):
    model, parts = request.getfixturevalue(kind)
    begun = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ended, begins = [], Begins()
    for _ in range(2):  # the second time from the checkpoint after step 4
        model.load_state_dict(begun)
        with seeded(4):
            train(
                model, methods=[], steps=6, settings=training_settings({"checkpoint_every": 4, "keep": "last"}),
                learning_rate=1e-3, runtime=make_runtime("bf16"), work=tmp_path, reporter=begins, **parts,
            )  # fmt: skip
        ended.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    assert begins.steps == [0, 4]
    assert [name for name, tensor in ended[0].items() if not torch.equal(tensor, ended[1][name])] == []
    assert any(not torch.equal(tensor, begun[name]) for name, tensor in ended[0].items())
