from __future__ import annotations

import math

import pytest
import torch

from anytune.errors import MethodError
from anytune.methods.consistency import (
    FrozenCopy,
    disagreement,
    example_weights,
    item_labels,
    noise_like,
    shifted_words,
    squared_difference,
    symmetric_divergence,
    word_modules,
)
from anytune.methods.objective import Labelled
from anytune.methods.protocol import Run
from anytune.methods.registry import create
from anytune.models.answering import task_output
from anytune.models.base import load_base
from tests.models.kinds import KINDS, VARIANTS, make_kind


def logits(seed: int, rows: int = 6, classes: int = 5) -> torch.Tensor:
    return 3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_divergence_is_the_naive_sum_of_both_directions():
    left, right = logits(1), logits(2)
    total = 0.0
    for row, other in zip(left.tolist(), right.tolist(), strict=True):
        p, q = [math.exp(value) for value in row], [math.exp(value) for value in other]
        p, q = [value / sum(p) for value in p], [value / sum(q) for value in q]
        total += sum(a * math.log(a / b) + b * math.log(b / a) for a, b in zip(p, q, strict=True))
    assert symmetric_divergence(left, right).item() == pytest.approx(total / 6, rel=1e-12)


def test_equal_answers_cost_nothing_and_pull_nowhere_and_the_gradient_goes_both_ways_else():
    left, right = logits(1).float().requires_grad_(), logits(1).float().requires_grad_()
    symmetric_divergence(left, right).backward()
    assert left.grad.abs().max().item() == right.grad.abs().max().item() == 0.0
    other = logits(2).float().requires_grad_()
    symmetric_divergence(left, other).backward()
    assert left.grad.any()
    assert other.grad.any()


def test_its_gradient_is_that_of_the_naive_sum_by_either_side():
    left, right = logits(1).requires_grad_(), logits(2).requires_grad_()
    p, q = left.softmax(-1), right.softmax(-1)
    naive = ((p * (p / q).log()).sum(-1) + (q * (q / p).log()).sum(-1)).mean()
    expected = torch.autograd.grad(naive, (left, right))
    found = torch.autograd.grad(symmetric_divergence(left, right), (left, right))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)


def test_no_items_cost_nothing_and_half_precision_is_summed_in_fp32():
    assert symmetric_divergence(logits(1, rows=0), logits(2, rows=0)).item() == 0.0
    assert symmetric_divergence(logits(1).bfloat16(), logits(2).bfloat16()).dtype == torch.float32
    assert squared_difference(logits(1, classes=1).half(), logits(2, classes=1).half()).dtype == torch.float32


def test_a_regression_is_compared_by_squares_and_classes_by_their_divergence():
    left, right = logits(1, classes=1), logits(2, classes=1)
    squares = [(a - b) ** 2 for a, b in zip(left.flatten().tolist(), right.flatten().tolist(), strict=True)]
    assert disagreement(left, right, {"labels": torch.zeros(6)}).item() == pytest.approx(sum(squares) / 6)
    classes = disagreement(logits(1), logits(2), {"labels": torch.zeros(6, dtype=torch.int64)})
    assert torch.equal(classes, symmetric_divergence(logits(1), logits(2)))


def test_answers_of_other_shapes_are_refused():
    with pytest.raises(MethodError, match=r"\[6, 5\] and \[5, 5\]"):
        symmetric_divergence(logits(0), logits(0, rows=5))
    with pytest.raises(MethodError, match="compared item by item"):
        squared_difference(logits(0, classes=1), logits(0))


def test_labels_stand_beside_items_wherever_items_are_tokens():
    batch = {"labels": torch.tensor([[1, -100], [-100, 2]])}
    output = Labelled(logits(0, rows=2), torch.tensor([1, 2]))
    assert item_labels(output, batch) is output.labels
    assert item_labels(torch.nn.Identity(), batch) is batch["labels"]


def test_an_example_weighs_as_many_items_as_it_has():
    assert example_weights({"labels": torch.tensor([1, 0, 2, 1])}, False).tolist() == [0.25] * 4
    assert example_weights({"labels": torch.tensor([1.5, 0.5])}, False).tolist() == [0.5] * 2
    words = {"labels": torch.tensor([[5, -100, -100, -100], [5, 6, 7, -100]])}
    assert example_weights(words, False).tolist() == [0.25, 0.75]
    assert example_weights(words, True).tolist() == [0.0, 1.0]
    assert example_weights({"labels": torch.full((2, 3), -100)}, False).tolist() == [0.0, 0.0]


def test_noise_has_the_size_it_is_given_and_comes_from_torchs_own_generator():
    values = torch.zeros(200, 100)
    torch.manual_seed(3)
    normal, uniform = noise_like(values, 0.5), noise_like(values, 0.5, "uniform")
    assert normal.std().item() == pytest.approx(0.5, rel=0.02)
    assert 0.499 < uniform.abs().max().item() <= 0.5
    assert uniform.mean().item() == pytest.approx(0.0, abs=0.01)
    torch.manual_seed(3)
    assert torch.equal(normal, noise_like(values, 0.5))


@pytest.mark.parametrize("kind", [*KINDS, *VARIANTS])
def test_every_kind_reads_the_shifted_words_inside_the_block_and_its_own_outside(kind, tmp_path):
    base = load_base(make_kind(kind, tmp_path))
    model, _ = base.task_model("classification", ("a", "b"), 0)
    batch = {"input_ids": torch.tensor([[5, 9, 12, 1]]), "attention_mask": torch.ones(1, 4, dtype=torch.int64)}
    numbers = []

    def shift(number, words):
        numbers.append(number)
        assert words.shape[:2] == (1, 4)
        return 0.1 * torch.arange(words.shape[-1]).sin()

    with torch.no_grad():
        before = task_output(model, batch).logits
        with shifted_words(model, base.anatomy, shift):
            inside = task_output(model, batch).logits
        after = task_output(model, batch).logits
    assert torch.equal(before, after)
    assert (inside - before).abs().max() > 1e-6
    assert numbers == ([0, 1] if base.anatomy.encoder_decoder else [0])


def test_the_shift_is_what_the_same_embeddings_handed_over_would_give(tiny_base):
    base = load_base(tiny_base)
    model, _ = base.task_model("classification", ("a", "b"), 0)
    ids = torch.tensor([[2, 9, 30, 3]])
    [words] = word_modules(model, base.anatomy)
    with torch.no_grad(), shifted_words(model, base.anatomy, lambda _, words: words.cos()):
        hooked = model(input_ids=ids).logits
    with torch.no_grad():
        assert torch.equal(hooked, model(inputs_embeds=words(ids) + words(ids).cos()).logits)


def test_a_model_that_looks_nothing_up_is_an_error(tiny_base):
    base = load_base(tiny_base)
    model, _ = base.task_model("classification", ("a", "b"), 0)
    with (
        pytest.raises(MethodError, match="looked up no word"),
        shifted_words(model, base.anatomy, lambda _, words: words),
    ):
        model(inputs_embeds=torch.zeros(1, 3, 32))


def test_a_hook_is_taken_off_when_the_pass_fails(tiny_base):
    base = load_base(tiny_base)
    model, _ = base.task_model("classification", ("a", "b"), 0)
    with pytest.raises(ZeroDivisionError), shifted_words(model, base.anatomy, lambda _, words: words / (1 // 0)):
        model(input_ids=torch.tensor([[2, 9]]))
    assert not word_modules(model, base.anatomy)[0]._forward_hooks


class TestFrozenCopy:
    def test_it_follows_as_an_average_and_has_no_gradients_and_no_dropout(self):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Dropout(0.5)).train()
        copied = FrozenCopy(model, "x")
        before = model[0].weight.detach().clone()
        with torch.no_grad():
            model[0].weight.add_(1.0)
        copied.follow(model, 0.75)
        expected = 0.75 * before + 0.25 * model[0].weight
        torch.testing.assert_close(copied.model[0].weight, expected.detach())
        assert not any(parameter.requires_grad for parameter in copied.model.parameters())
        assert not copied.model.training
        assert model.training
        copied.follow(model)
        assert torch.equal(copied.model[0].weight, model[0].weight)

    def test_it_goes_where_the_model_went_and_its_state_comes_back(self):
        model = torch.nn.BatchNorm1d(3)
        copied = FrozenCopy(model, "x")
        model.double()
        with torch.no_grad():
            model.weight.fill_(1 / 3)
        copied.follow(model)
        assert copied.model.weight.dtype == copied.model.running_mean.dtype == torch.float64
        other = FrozenCopy(torch.nn.BatchNorm1d(3), "x")
        other.load_state_dict(copied.state_dict())
        other.place(model)
        assert torch.equal(other.model.weight, model.weight)
        assert other.model.running_mean.dtype == torch.float64

    def test_what_is_not_trained_is_not_in_its_state(self):
        model = torch.nn.Linear(2, 2)
        model.bias.requires_grad_(False)
        assert set(FrozenCopy(model, "x").state_dict()) == {"weight"}

    def test_a_method_that_wraps_the_model_afterwards_is_an_error_that_says_the_order(self, tiny_base):
        base = load_base(tiny_base)
        model, head = base.task_model("classification", ("a", "b"), 0)
        copied = FrozenCopy(model, "smart")
        wrapped = create("tune/lora").prepare(model, Run(seed=0, steps=1, anatomy=base.anatomy, head_names=head))
        with pytest.raises(MethodError, match="before another method changed its parts") as caught:
            copied.follow(wrapped)
        assert caught.value.fix.endswith("--method OTHER --method smart")
        FrozenCopy(wrapped, "smart").follow(wrapped)
