from __future__ import annotations

import math

import pytest
import torch

from anytune.errors import MethodError
from anytune.methods.distillation import logit_distillation, patience


def logits(seed: int, rows: int = 6, classes: int = 5) -> torch.Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [1.0, 5.0, 20.0])
def test_equal_logits_cost_nothing_and_pull_nowhere(temperature):
    student = logits(0).requires_grad_()
    loss = logit_distillation(student, logits(0), temperature)
    loss.backward()
    assert loss.item() == 0.0
    assert student.grad.abs().max().item() == 0.0


def test_equal_hidden_states_cost_nothing_and_pull_nowhere():
    student = [logits(layer).requires_grad_() for layer in range(3)]
    loss = patience(student, [logits(layer) for layer in range(3)])
    loss.backward()
    assert loss.item() == 0.0
    assert all(layer.grad.abs().max().item() == 0.0 for layer in student)


def test_the_divergence_is_the_naive_sum():
    student, teacher, temperature = logits(1), logits(2), 3.0
    total = 0.0
    for row, other in zip(student.tolist(), teacher.tolist(), strict=True):
        p = [math.exp(value / temperature) for value in other]
        q = [math.exp(value / temperature) for value in row]
        p, q = [value / sum(p) for value in p], [value / sum(q) for value in q]
        total += temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert logit_distillation(student, teacher, temperature).item() == pytest.approx(total / 6, rel=1e-5)
    assert logit_distillation(student, teacher, temperature, "element").item() == pytest.approx(total / 30, rel=1e-5)


def test_the_gradient_is_that_of_the_naive_divergence():
    student, teacher = logits(1).double().requires_grad_(), logits(2).double()
    log_student = torch.log_softmax(student / 4.0, -1)
    target = torch.softmax(teacher / 4.0, -1)
    naive = 16.0 * (target * (target.log() - log_student)).sum(-1).mean()
    (expected,) = torch.autograd.grad(naive, student)
    (found,) = torch.autograd.grad(logit_distillation(student, teacher, 4.0), student)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_a_doubled_batch_changes_nothing():
    student, teacher = logits(1), logits(2)
    doubled = logit_distillation(torch.cat([student] * 2), torch.cat([teacher] * 2), 5.0)
    assert doubled.item() == pytest.approx(logit_distillation(student, teacher, 5.0).item(), rel=1e-6)


def test_at_a_high_temperature_the_gradient_is_that_of_matching_logits():
    student, teacher = logits(1).double().requires_grad_(), logits(2).double()
    (gradient,) = torch.autograd.grad(logit_distillation(student, teacher, 1e4), student)
    centred = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    torch.testing.assert_close(gradient, (centred / student.numel()).detach(), rtol=1e-3, atol=1e-6)


def test_no_gradient_reaches_the_teacher():
    teacher = logits(2).requires_grad_()
    logit_distillation(logits(1).requires_grad_(), teacher).backward()
    assert teacher.grad is None


def test_layers_and_shapes_that_do_not_match_are_refused():
    with pytest.raises(MethodError, match="2 student layers"):
        patience([logits(0), logits(1)], [logits(0)])
    with pytest.raises(MethodError, match="widths must agree"):
        patience([logits(0)], [logits(0, classes=4)])
    with pytest.raises(MethodError, match="temperature"):
        logit_distillation(logits(0), logits(1), 0.0)


def test_examples_of_a_mean_over_hidden_states_may_weigh_differently():
    torch.manual_seed(0)
    student, teacher = ([torch.randn(3, 4) for _ in range(2)] for _ in range(2))
    alike = patience(student, teacher, torch.full((3,), 1 / 3))
    assert torch.allclose(alike, patience(student, teacher))
    weights = torch.tensor([0.5, 0.0, 0.5])
    rows = [0.5 * ((student[k] - teacher[k])[[0, 2]] ** 2).mean() for k in range(2)]
    assert torch.allclose(patience(student, teacher, weights), (rows[0] + rows[1]) / 2)
