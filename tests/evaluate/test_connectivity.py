from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from anytune.engine.loop import Evaluation
from anytune.errors import DeltaError
from anytune.evaluate.connectivity import Line, path_between
from anytune.models.base import load_base
from anytune.models.interpolation import grid, interpolate


class Small(nn.Module):
    """Weights, a signed zero, half precision, an integer and a boolean buffer."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(300, 500, generator=draw))
        self.zero = nn.Parameter(torch.tensor([-0.0, 0.0]))
        self.narrow = nn.Parameter(torch.randn(5, generator=draw).bfloat16())
        self.wide = nn.Parameter(torch.randn(5, generator=draw, dtype=torch.float64))
        self.register_buffer("position_ids", torch.arange(6))
        self.register_buffer("flag", torch.tensor([True, False]))


def bits(state) -> list[bytes]:
    return [tensor.detach().contiguous().view(torch.uint8).numpy().tobytes() for tensor in state.values()]


def copied(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def states_on(first, second, points: int = 26) -> list[list[bytes]]:
    seen = []

    def look(model):
        seen.append(bits(model.state_dict()))
        return Evaluation({}, 0.0, 0.0)

    path_between(Small(9), first, second, look, points=points)
    return seen


def test_the_ends_are_the_models_bit_for_bit_and_whole_numbers_stay_what_they_are():
    first, second = Small(0).state_dict(), Small(1).state_dict()
    seen = states_on(first, second)
    assert seen[0] == bits(first)
    assert seen[-1] == bits(second)
    assert len(seen) == 26
    names = list(first)
    for state in seen:
        assert state[names.index("position_ids")] == bits(first)[names.index("position_ids")]
        assert state[names.index("flag")] == bits(first)[names.index("flag")]


@pytest.mark.parametrize("points", [26, 5])  # five have one in the middle
def test_a_path_is_the_path_from_the_other_side_bit_for_bit(points):
    first, second = Small(0).state_dict(), Small(1).state_dict()
    assert states_on(first, second, points) == states_on(second, first, points)[::-1]


def test_numbers_that_are_equal_at_both_ends_stay_what_they_are():
    first, second = copied(Small(0)), copied(Small(1))
    second["weight"][:100] = first["weight"][:100]
    seen = []

    def look(model):
        seen.append(torch.equal(model.weight[:100], first["weight"][:100]))
        return Evaluation({}, 0.0, 0.0)

    path_between(Small(9), first, second, look)
    assert all(seen)


def test_points_in_place_are_the_points_of_the_pure_function():
    """To a few roundings: the pure function sums in fp64; in place, a pass over memory is all it may cost."""
    first, second = Small(0).state_dict(), Small(1).state_dict()
    seen = []

    def look(model):
        seen.append(copied(model))
        return Evaluation({}, 0.0, 0.0)

    path_between(Small(9), first, second, look)
    for x, state in zip(grid(26), seen, strict=True):
        for name, tensor in interpolate(first, second, x).items():
            if tensor.is_floating_point():
                slack = 8 * torch.finfo(tensor.dtype).eps
                assert torch.allclose(tensor, state[name], rtol=slack, atol=slack), (x, name)


def test_between_a_model_and_itself_nothing_moves_and_there_is_no_barrier():
    model = Small(3)
    state = copied(model)
    path = path_between(
        model, state, state, lambda one: Evaluation({"accuracy": 0.5}, one.weight.sum().item(), 0.5), points=5
    )
    assert path.moved == 0
    assert path.barrier == 0
    assert path.score_barrier == 0
    assert len(set(path.losses)) == 1
    assert bits(model.state_dict()) == bits(state)


def test_whole_numbers_that_differ_between_the_ends_are_never_mixed():
    first, second = copied(Small(0)), copied(Small(1))
    second["position_ids"] = second["position_ids"] + 1
    with pytest.raises(DeltaError, match="position_ids holds int64"):
        path_between(Small(0), first, second, lambda _: Evaluation({}, 0.0, 0.0))


def test_the_models_own_tensors_may_be_an_end_and_it_holds_the_second_end_afterwards_also_after_an_error():
    model, second = Small(0), Small(1).state_dict()
    first = copied(model)
    looked = []

    def evaluate(one):
        looked.append(bits(one.state_dict()))
        return Evaluation({}, 0.0, 0.0)

    path_between(model, model.state_dict(), second, evaluate, points=3)
    assert looked[0] == bits(first)
    assert bits(model.state_dict()) == bits(second)

    def fails(_):
        raise ValueError("out of luck")

    with pytest.raises(ValueError, match="luck"):
        path_between(model, first, second, fails)
    assert bits(model.state_dict()) == bits(second)


def test_models_that_do_not_match_are_refused_by_name():
    first, second = copied(Small(0)), copied(Small(1))
    del second["narrow"]
    with pytest.raises(DeltaError, match="narrow: in one model only"):
        path_between(Small(0), first, second, lambda _: Evaluation({}, 0.0, 0.0))


def test_a_tensor_the_model_has_once_must_be_one_in_both_ends():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = nn.Linear(2, 2, bias=False)
            self.outside = nn.Linear(2, 2, bias=False)
            self.outside.weight = self.inside.weight

    model = Tied()
    first, second = copied(model), {name: tensor + 1 for name, tensor in model.state_dict().items()}
    line = Line.of(model, first, second)
    assert line.moved == 4  # once, not twice
    second["outside.weight"] = second["outside.weight"] + 1
    with pytest.raises(DeltaError, match=r"outside\.weight and inside\.weight are one tensor"):
        Line.of(model, first, second)


def test_the_barrier_is_the_rise_above_the_line_between_the_ends():
    first, second = copied(Small(0)), copied(Small(1))

    def bump(model):
        x = [0, 0.5, 1][len(losses)]
        losses.append({0: 1.0, 0.5: 5.0, 1: 2.0}[x])
        return Evaluation({"accuracy": {0: 0.9, 0.5: 0.2, 1: 0.7}[x]}, losses[-1], 0.0)

    losses: list[float] = []
    path = path_between(Small(0), first, second, bump, points=3)
    assert path.barrier == 3.5
    assert path.score_barrier == pytest.approx(0.6)
    assert path.record()["points"][1] == {"x": 0.5, "loss": 5.0, "scores": {"accuracy": 0.2}}


def test_the_time_of_a_path_is_that_of_its_evaluations():
    first, second = Small(0).state_dict(), Small(1).state_dict()

    def slow(_):
        time.sleep(0.05)
        return Evaluation({}, 0.0, 0.0)

    path = path_between(Small(2), first, second, slow)
    assert path.forward_seconds >= 26 * 0.05
    assert path.forward_share > 0.5


def test_in_adapter_mode_backbone_adapter_and_head_are_all_interpolated(tiny_base, other_base):
    """The published script puts adapter 1 on the other backbone; here each end is an adapter on its own."""
    from anytune.models.peft_models import make_lora

    ends = []
    for folder, seed in ((tiny_base, 0), (other_base, 1)):
        base = load_base(folder)
        model, head = base.task_model("classification", ["a", "b"], seed=seed)
        wrapped = make_lora(model, head_names=head, r=2, seed=seed)
        with torch.no_grad():
            for name, tensor in wrapped.named_parameters():
                if "lora_B" in name:
                    tensor.add_(seed + 1.0)
        ends.append(wrapped)
    first, second = (copied(one) for one in ends)
    seen = {}

    def look(model):
        seen[len(seen)] = copied(model)
        return Evaluation({}, 0.0, 0.0)

    path = path_between(ends[0], first, second, look, points=3)
    assert path.mode == "adapter"
    for part in ("base_layer.weight", "lora_A", "lora_B", "classifier.modules_to_save"):
        name = next(name for name in first if part in name)
        assert not torch.equal(first[name], second[name])
        assert torch.allclose(seen[1][name], (first[name] + second[name]) / 2, atol=1e-6)
