"""Child-Tuning: update only a part of the base's weights, drawn anew in each step (F) or chosen once by data (D).

In plain words: the gradient of most of the base's entries is set to 0. F draws the others at random in every step. D
looks once over the training data first, and keeps the entries to which the loss is most sensitive for the whole run.

Formula: g <- g * M. F: M ~ Bernoulli(keep) for each entry of the base's weights in each step, and g is divided by
keep. D: score = sum over the batches of one pass of (clipped gradient)^2, an empirical diagonal Fisher information at
the base's values; M is 1 for the ceil(keep * n) largest scores of all n entries in the blocks together, g is not
divided.

Paper: Xu, Luo, Zhang, Tan, Chang, Huang, Huang 2021 (Raise a Child in Large Language Model: Towards Effective and
Generalizable Fine-tuning).
Costs: one forward and one backward per step, and for D once a forward and a backward for each batch of the pass (an
epoch by default). Memory for D: 1 byte per entry of the blocks, 4 more during the pass; an eighth of a byte in
checkpoints. F draws a number for every entry of the base in every step.
When not to use it: for entries that must not move. Under AdamW the entries without gradient go on moving, by momentum
(F) and weight decay, as in the published code; ``dps`` can freeze them. With ``sharding: fsdp`` (refused: the pass
needs whole weights).
Choices of ours: D masks all parameters of the blocks (biases and layer norms too), found by where they stand and not
by the word "layer" in their names, which for GPT-2 would be none; embeddings, pooler and head are trained in full. F
masks the whole base with its embeddings and leaves the head alone. Exactly the wanted number is kept, also among equal
scores. The pass runs in the weights' own precision, with dropout on, drawn from the run's seed and the batch's number,
each tensor's gradient clipped for itself as in the published code; processes share its batches. It is made in the
first step, and its result is part of a checkpoint. keep = 0.3 is that of the published script.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from anytune.data.splits import stable_seed
from anytune.errors import MethodError
from anytune.methods.bits import packed, unpacked
from anytune.methods.mixing import private_generator
from anytune.methods.of_base import check_names, weights_of_base
from anytune.methods.protocol import Batch, Method, Run
from anytune.methods.registry import register
from anytune.methods.selection import global_masks, share_count
from anytune.methods.step import total, trainable, upcast


def clipped_square(gradient: Tensor, max_norm: float | None) -> Tensor:
    """The squares of a gradient's entries in fp32 or wider, after scaling it down to at most ``max_norm``."""
    gradient = upcast(gradient.detach())
    if max_norm is not None:
        gradient = gradient * (max_norm / (gradient.norm() + 1e-6)).clamp(max=1.0)
    return gradient.square()


@contextlib.contextmanager
def drawing_from(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's global generators (the CPU's and the device's) seeded inside, and as they were afterwards."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@register
@dataclass(kw_only=True)
class ChildTuning(Method):
    """Masked gradients: at random in each step (F), or by a pass over the data (D)."""

    variant: Annotated[
        Literal["D", "F"], Field(description="D = chosen once by a pass over the data; F = drawn anew in each step")
    ] = "D"
    keep: Annotated[float, Field(gt=0, le=1, description="share of the entries that are updated; 1 = all")] = 0.3
    batches: Annotated[
        int | None, Field(gt=0, description="D: batches of the pass before training; null = one epoch")
    ] = None
    max_grad_norm: Annotated[
        float | None,
        Field(gt=0, description="D: each tensor's gradient is clipped to this norm in the pass; null = no"),
    ] = 1.0

    neutral = {"keep": 1.0}  # noqa: RUF012
    sharded = False

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Note which weights are masked.

        Raises:
            MethodError: no such weight is trained, or (D) the run does not say its data and objective.
        """
        self._run, self._step = run, 0
        self._names: list[str] = []
        self._masks: dict[str, Tensor] = {}  # D: bool, or packed as a checkpoint gave them
        if self.keep == 1:
            return model
        self._names = list(weights_of_base(model, run, self))
        if self.variant == "D":
            self._names = [name for name in self._names if (run.anatomy.depth(name) or 0) > 0]
            if not self._names:
                raise self._nothing()
            run.needed("objective", self)
            run.needed("batches", self)
        return model

    def _nothing(self) -> MethodError:
        where = "in the blocks" if self.variant == "D" else "of the base"
        return MethodError(
            f"{self.name} masks nothing: no weight {where} is trained",
            why="The run would be plain training under another name.",
            fix=f"--method {self.name}   (alone, or after methods that train the blocks)",
        )

    def before_step(self, model: nn.Module) -> None:
        """D: make the pass over the data, before the first step of the run.

        Raises:
            MethodError: the model was wrapped since, or a gradient of the pass is not finite.
        """
        if self.keep == 1:
            return
        check_names(self._names, model, self)
        if self.variant == "D" and not self._masks:
            weights = {name: weight for name, weight in trainable(model).items() if name in set(self._names)}
            if not weights:
                raise self._nothing()
            scores = self._scores(model, weights)
            entries = sum(score.numel() for score in scores.values())
            self._masks = global_masks(scores, share_count(entries, self.keep))

    def _scores(self, model: nn.Module, weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """The sum of squared gradients of a pass, for each weight; the same in every process."""
        run, device = self._run, next(iter(weights.values())).device
        scores = {name: torch.zeros_like(upcast(weight.detach())) for name, weight in weights.items()}
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if together else (0, 1)
        model.train()
        for number in range(rank, self.batches or run.batches.batches_per_epoch, world):
            batch: Batch = {
                key: value.to(device) if isinstance(value, Tensor) else value
                for key, value in run.batches.batch(number).items()
            }
            with drawing_from(stable_seed("pass", run.seed, number), device), torch.enable_grad():
                loss = total(run.objective.terms(run.objective.forward(model, batch), batch))
                # not backward(): nothing may be left in .grad, nor reach what a launcher hangs on it
                gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            for score, gradient in zip(scores.values(), gradients, strict=True):
                if gradient is not None:
                    score += clipped_square(gradient, self.max_grad_norm)
        if world > 1:
            for score in scores.values():
                torch.distributed.all_reduce(score)
        if not torch.stack([score.sum() for score in scores.values()]).isfinite().all():
            raise MethodError(
                f"{self.name}: a gradient of the pass over the data is not finite",
                why="Entries cannot be compared by it.",
                fix="look at the data and the base: plain training would meet the same gradient",
            )
        return scores

    @torch.no_grad()
    def after_backward(self, model: nn.Module) -> None:
        """Mask the gradients.

        Raises:
            MethodError: none of the weights has a gradient, so nothing was masked.
        """
        if self.keep == 1:
            return
        weights, count = dict(model.named_parameters()), 0
        for index, name in enumerate(self._names):
            weight = weights.get(name)
            if weight is None or weight.grad is None or (self.variant == "D" and name not in self._masks):
                continue
            count += 1
            if self.variant == "D":
                weight.grad.mul_(self._mask(name, weight))
                continue
            generator = private_generator(self._run.seed, self._step, index, weight.device)
            drawn = torch.rand(weight.shape, generator=generator, device=weight.device)
            weight.grad.mul_(drawn < self.keep).div_(self.keep)
        if not count:
            raise self._nothing()

    def _mask(self, name: str, weight: nn.Parameter) -> Tensor:
        mask = self._masks[name]
        if mask.dtype != torch.bool:
            mask = unpacked(mask, weight.shape)
        self._masks[name] = mask.to(weight.device)
        return self._masks[name]

    def after_step(self, model: nn.Module) -> None:
        """Count optimizer steps: the next one has other draws."""
        self._step += 1

    def state_dict(self) -> dict[str, Any]:
        """The number of optimizer steps made; for D the masks, a bit for each entry."""
        bits = {name: packed(mask) if mask.dtype == torch.bool else mask for name, mask in self._masks.items()}
        return {"step": self._step, "masks": bits}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on at that step with those masks."""
        self._step, self._masks = int(state["step"]), dict(state.get("masks", {}))
