"""Linear mode connectivity: loss and score along the straight line between two tuned models.

Two tuned models lie in one basin where every point ``(1 - x) A + x B`` between them still does the task (Frankle et
al. 2020). Between a model tuned on a base and one tuned on its upgrade, that says whether outdated weights can be
carried over (Qin, Qian et al. 2023, section 3.1: 26 points, both ends among them).

Everything is interpolated, as published: in body mode all weights with the head; in adapter mode the backbone, the
adapter's own matrices and the head. Whole numbers (position ids, counters) are never mixed. The points are written
into ONE model in place, tensor by tensor, so that a path costs its forward passes and little else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from anytune.engine.loop import Evaluation
from anytune.errors import DeltaError
from anytune.evaluate.scores import higher_is_better, number
from anytune.models.difference import same_bits
from anytune.models.interpolation import POINTS, barrier, check_ends, grid
from anytune.models.soft_prompts import prompt_of

Mode = Literal["body", "adapter"]


@dataclass(frozen=True)
class PathPoint:
    """A point of a path: its place (0 is the first end), mean loss in nats (regression: squared units), its scores."""

    x: float
    loss: float
    scores: dict[str, float]


@dataclass(frozen=True)
class Path:
    """A path between two models.

    Attributes:
        points: from the first end (x = 0) to the second (x = 1), both included.
        mode: "adapter" where the models are a backbone with an adapter or a soft prompt, else "body".
        moved: how many numbers differ between the ends.
        seconds: of all of it; ``forward_seconds`` of them in the evaluation.
    """

    points: tuple[PathPoint, ...]
    mode: Mode
    moved: int
    seconds: float
    forward_seconds: float

    @property
    def losses(self) -> list[float]:
        """The loss at each point."""
        return [point.loss for point in self.points]

    @property
    def metric(self) -> str | None:
        """The task's main metric; None where no point has a score."""
        return next((name for point in self.points for name in point.scores), None)

    @property
    def values(self) -> list[float]:
        """The main metric at each point, NaN where it has none."""
        metric = self.metric
        return [point.scores.get(metric, float("nan")) if metric else float("nan") for point in self.points]

    @property
    def barrier(self) -> float:
        """How far the loss rises above the straight line between the ends' losses; at least 0. NaN: a loss is NaN."""
        return barrier(self.losses)

    @property
    def score_barrier(self) -> float | None:
        """How far the main metric falls below the straight line between the ends, in its unit; None without one."""
        metric = self.metric
        if metric is None:
            return None
        return barrier([-value if higher_is_better(metric) else value for value in self.values])

    @property
    def forward_share(self) -> float:
        """The part of the time that was spent in evaluation."""
        return self.forward_seconds / self.seconds if self.seconds else 1.0

    def record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "mode": self.mode, "moved": self.moved, "barrier": number(self.barrier),
            "score_barrier": number(self.score_barrier),
            "metric": self.metric, "seconds": round(self.seconds, 3), "forward_share": round(self.forward_share, 4),
            "points": [{"x": point.x, "loss": point.loss, "scores": point.scores} for point in self.points],
        }  # fmt: skip


def path_between(
    model: nn.Module,
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    evaluate: Callable[[nn.Module], Evaluation],
    *,
    points: int = POINTS,
) -> Path:
    """Evaluate ``points`` evenly spaced models on the line from ``first`` to ``second``.

    The ends are the two models bit for bit, and ``path_between(m, A, B)`` is ``path_between(m, B, A)`` from the other
    side bit for bit. Numbers that are equal at both ends stay what they are at every point.

    Args:
        model: the model that is written into, of the form of both ends (wrapped by PEFT, with a soft prompt, or
            plain). Afterwards it holds ``second``, also after an error. Its own tensors may serve as an end.
        first, second: state dicts (``model.state_dict()``), on any device.
        evaluate: model -> loss and scores; must leave the weights as they are.
        points: both ends included; at least 2.

    Raises:
        DeltaError: the ends' names, shapes or dtypes differ from each other's or the model's, whole numbers differ
            between the ends, or a tensor that the model has once is two in an end.
    """
    began = time.perf_counter()
    places = grid(points)
    inside = 0.0
    found: list[PathPoint] = []
    line = Line.of(model, first, second)
    try:
        for index, x in enumerate(places):
            line.put(index, points - 1)
            before = time.perf_counter()
            said = evaluate(model)
            inside += time.perf_counter() - before
            found.append(PathPoint(x, float("nan") if said.loss is None else float(said.loss), dict(said.scores)))
    finally:
        line.put(1, 1)
    return Path(tuple(found), mode_of(model), line.moved, time.perf_counter() - began, inside)


def mode_of(model: nn.Module) -> Mode:
    """Return "adapter" for a model wrapped by PEFT or with a soft prompt, else "body"."""
    return "adapter" if hasattr(model, "peft_config") or prompt_of(model) is not None else "body"


@dataclass(frozen=True)
class Line:
    """The tensors of a model that differ between two ends: (where it stands in the model, first, second)."""

    places: tuple[tuple[Tensor, Tensor, Tensor], ...]

    @classmethod
    def of(cls, model: nn.Module, first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Line:
        """Compare the ends; what is equal in both is written into the model once and for all.

        Raises:
            DeltaError: see ``path_between``.
        """
        state = model.state_dict()
        check_ends(first, second)
        check_ends(first, state)
        ends = [_apart(end, state) for end in (first, second)]
        seen: dict[tuple[int, int], str] = {}
        places = []
        with torch.no_grad():
            for name, target in state.items():
                key = (target.data_ptr(), target.numel())
                left, right = (end[name].to(target.device) for end in ends)
                if target.numel() and key in seen:  # the second name of a tied tensor
                    _check_tied(name, seen[key], ends)
                    continue
                seen[key] = name
                if bool(same_bits(left, right).all()):
                    target.copy_(left)
                elif not target.is_floating_point():
                    raise DeltaError(
                        f"{name} holds {str(left.dtype).removeprefix('torch.')} values that differ between the models",
                        why="Whole numbers cannot be interpolated.",
                    )
                else:
                    places.append((target, left, right))
        return cls(tuple(places))

    @property
    def moved(self) -> int:
        """How many numbers differ between the ends."""
        return sum(int((left != right).sum()) for _, left, right in self.places)

    @torch.no_grad()
    def put(self, index: int, last: int) -> None:
        """Write the point ``index`` of 0 ... ``last`` into the model."""
        for target, left, right in self.places:
            if index in (0, last):
                target.copy_(left if index == 0 else right)
            else:
                _mix(target, left, right, index, last)


def _mix(target: Tensor, left: Tensor, right: Tensor, index: int, last: int) -> None:
    """``target <- left + (index / last) (right - left)``, from the nearer end, in one pass over memory.

    A point is computed as its mirror image is from the other side, so both have the same bits.
    """
    if 2 * index == last:
        torch.add(left, right, out=target).mul_(0.5)
    elif 2 * index < last:
        torch.lerp(left, right, index / last, out=target)
    else:
        torch.lerp(right, left, (last - index) / last, out=target)


def _apart(end: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The end's tensors, copied where they are the model's own memory, which is about to be written."""
    own = {tensor.data_ptr() for tensor in state.values() if tensor.numel()}
    return {name: tensor.detach().clone() if tensor.data_ptr() in own else tensor.detach()
            for name, tensor in end.items()}  # fmt: skip


def _check_tied(name: str, other: str, ends: list[dict[str, Tensor]]) -> None:
    for end in ends:
        if not bool(same_bits(end[name].cpu(), end[other].cpu()).all()):
            raise DeltaError(
                f"{name} and {other} are one tensor in the model and two in an end of the path",
                why="One of them would be lost.",
                fix="a model whose embeddings and vocabulary head stand apart",
            )
