"""DPS: fine-tune in cycles, all weights first, then only those whose gradients were largest.

In plain words: training is cut into cycles of two stages. In stage I everything is trained while the squared
gradients of every matrix are added up. As stage II begins, the entries with the largest sums are selected; until the
cycle ends only they are updated. Then the sums are forgotten and a new cycle begins, so the subnetwork follows the
training. Dense uses the weights as they are. Mix also runs them mixed with the pre-trained ones (Mixout) in stage I,
and holds the others at their value of the stage's beginning in stage II.

Formula: t = 1, 2, ... counts optimizer steps, u is the length of a stage in steps; stage I where ceil(t / u) is odd.
For a matrix W [out, in] with gradient G and k = ceil(keep * out * in):
Dense, stage I: GAM = sum of G^2; stage II: G * M with M = the k largest of GAM.
Mix: forward and backward use V = T + m * (W - T) / keep, and W gets the gradient (dL/dV) * m. Stage I: T = W_0, m one
draw of Bernoulli(keep) for each input column and step, GAM = sum of (dL/dV)^2 * m, FAM = sum of m. Stage II: T = W as
the stage began, m = M = the k largest of GAM / f * exp(-f / u), f = max(FAM, 1); the factor exp(-f / u) only where u
is at least 50 (the frequency penalty).

Paper: Zhang, Li, Li, Zhang, Zhu, Jin, "Fine-Tuning Pre-Trained Language Models Effectively by Optimizing Subnetworks
Adaptively", NeurIPS 2022, arXiv 2211.01642, and its code, which differs from it (see freeze).
Costs: one forward and one backward per step. Dense: 4 bytes for each weight that takes part in stage I, 1 in stage II
(1/8 with masks=bits), a copy of an eighth of them and of their moments at a time with freeze=hard. Mix: 12 bytes in
stage I, 13 in stage II (anchor=bf16: 10 and 11; anchor=cpu: 8 and 9). Selection is a partition of each matrix, once
in a cycle. Measured times and bytes: benchmarks/README.md.
When not to use it: with thousands of examples, where plain tuning is stable already; with so few steps that a stage
is one or two steps long, since one gradient then selects; with so few steps that plain tuning is still learning, since
updating less only delays it. What it gained, and where it lost, on real text is in EVIDENCE.md.
Choices of ours: a count, not a threshold: exactly k entries, ties by index (the published rule selects more where
scores are tied, all of them where more than n - k are zero). Stages count optimizer steps, not forward passes, and
Mix draws once a step, so accumulation changes nothing. ``freeze``: the paper's figure holds unselected weights at
their value; its code only zeroes their gradients, so AdamW's momentum and weight decay go on moving them. Steps that a
gradient scaler skips do not count, and gradients that are not finite do not enter GAM. GAM is fp32. Held weights are
held against the optimizer: what another method adds to its step (the pull of l2sp) moves them. Dropout is never
touched: the published scripts turn it off (training setting dropout=0). ``preset: paper_code`` restores the published
rules: freeze=grad, ties=threshold, stage length rounded down. The paper's ``p`` is 1 - keep. keep=0.7
and stage=0.05 are the published scripts' values. Our sweep on two development tasks (evidence/tune-develop, six runs
each) told no value from another and had these among the highest, so they stayed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn, optim

from anytune.errors import MethodError
from anytune.methods import bits
from anytune.methods.anchors import Anchors
from anytune.methods.chosen import Include, chosen_weights, transposed_names
from anytune.methods.gradient_scores import add_squares, all_finite, present_gradients
from anytune.methods.holding import step_holding
from anytune.methods.mixing import column_mask, mixed
from anytune.methods.parts import group_of, is_part, local, part_of
from anytune.methods.protocol import Method, Run
from anytune.methods.registry import register
from anytune.methods.selection import exact_mask, global_masks, share_count, threshold_mask
from anytune.methods.swapping import Swap

#: Stage length from which the published code penalises how often a weight was active.
PENALISED_FROM = 50


@dataclass(frozen=True)
class StageClock:
    """Which stage a step belongs to: a pure function of the number of optimizer steps made.

    Args:
        length: optimizer steps of a stage, at least 1.
    """

    length: int

    def selects(self, done: int) -> bool:
        """Whether the step after ``done`` steps is of stage II, where a subnetwork is trained."""
        return done // self.length % 2 == 1

    def begins(self, done: int) -> bool:
        """Whether that step is the first of its stage."""
        return done % self.length == 0


def selection_score(gam: Tensor, fam: Tensor | None, length: int, penalised: bool) -> Tensor:
    """What entries are selected by: ``gam``, or ``gam / f * exp(-f / length)`` with ``f = max(fam, 1)``.

    Args:
        gam: summed squared gradients [out, in].
        fam: how often each input column was active, [1, in] (or [in, 1] for transposed weights); None for Dense.
        length: steps of a stage.
        penalised: with the factor ``exp(-f / length)``.
    """
    if fam is None:
        return gam
    often = fam.clamp(min=1)
    score = gam / often
    return score * torch.exp(-often / length) if penalised else score


@register
@dataclass(kw_only=True)
class DPS(Method):
    """Dynamic parameter selection, Dense and Mix."""

    variant: Annotated[
        Literal["dense", "mix"], Field(description="dense: weights as they are; mix: mixed with their anchors")
    ] = "dense"
    keep: Annotated[float, Field(gt=0, le=1, description="share of each matrix updated in stage II; 1 - p")] = 0.7
    stage: Annotated[float, Field(gt=0, lt=1, description="length of a stage as a share of the run's steps")] = 0.05
    stage_steps: Annotated[int | None, Field(ge=1, description="length of a stage in steps, instead of stage")] = None
    freeze: Annotated[
        Literal["hard", "grad"] | None,
        Field(description="hard: unselected entries, moments and decay held; grad: gradients zeroed. Default: hard"),
    ] = None
    scope: Annotated[
        Literal["tensor", "global"], Field(description="the same share of every matrix, or of all of them together")
    ] = "tensor"
    include: Annotated[
        Include, Field(description="linear maps that take part: all (blocks, pooler, head), backbone, or a part of it")
    ] = "all"
    frequency_penalty: Annotated[
        Literal["auto", "on", "off"],
        Field(description="mix: penalise columns often active; auto: stages of 50 or more"),
    ] = "auto"
    rescale: Annotated[bool, Field(description="mix: divide by keep in stage II too, as the published code does")] = (
        True
    )
    gradient_scale: Annotated[
        bool, Field(description="mix: give W the true derivative, divided by keep; the published code does not")
    ] = False
    apply: Annotated[
        Literal["pre_clip", "post_clip"], Field(description="mask gradients before they are clipped, or after")
    ] = "pre_clip"
    score_on: Annotated[
        Literal["raw", "clipped"], Field(description="add up gradients as they come, or after clipping")
    ] = "raw"
    ties: Annotated[
        Literal["index", "threshold"] | None,
        Field(description="index: exactly k entries; threshold: all at the k-th value, as published. Default: index"),
    ] = None
    masks: Annotated[Literal["bytes", "bits"], Field(description="a byte or a bit for each entry of a mask")] = "bytes"
    anchor: Annotated[
        Literal["device", "cpu", "bf16"], Field(description="mix: where the pre-trained values are kept")
    ] = "device"
    preset: Annotated[
        Literal["paper_code"] | None, Field(description="paper_code: the published code's rules where not set here")
    ] = None

    neutral = {"keep": 1.0}  # noqa: RUF012
    suggests = {"learning_rate": 5e-5}  # noqa: RUF012

    def __post_init__(self) -> None:
        published = self.preset == "paper_code"
        self.freeze = self.freeze or ("grad" if published else "hard")
        self.ties = self.ties or ("threshold" if published else "index")

    @property
    def swaps(self) -> bool:  # type: ignore[override]
        """Mix puts mixed weights into the model."""
        return self.variant == "mix" and self.keep < 1

    # ------------------------------------------------------------------ the hooks

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Choose the matrices, set the clock, take the pre-trained values.

        Raises:
            MethodError: no matrix is trained, or the run ends before the first stage II.
        """
        if self.keep == 1:
            return model
        chosen = chosen_weights(model, run.anatomy, self.include)
        if not chosen:
            raise MethodError(
                f"dps found no matrix to select from (include: {self.include})",
                why="Every linear map of the model is frozen, quantised or tied to the embeddings.",
                fix="a base with trainable fp32, bf16 or fp64 weights, or --method full",
            )
        self._clock = StageClock(self._stage_length(run.steps))
        self._names, self._seed, self._transposed = list(chosen), run.seed, transposed_names(model, chosen)
        self._done = 0
        self._selected = False
        self._weights: dict[str, nn.Parameter] = {}
        self._to_follow: optim.Optimizer | None = None
        #: stage I: summed squared gradients, and how often each column was active
        self._gam: dict[str, Tensor] = {}
        self._fam: dict[str, Tensor] = {}
        #: stage II: what is not selected, and the weights as the stage began (Mix)
        self._frozen: dict[str, Tensor] = {}
        self._snapshot: dict[str, Tensor] = {}
        #: the columns drawn for this step, and gradients put aside while the optimizer steps
        self._columns: dict[str, Tensor] = {}
        self._aside: dict[nn.Parameter, Tensor | None] = {}
        self._swap, self._anchors = Swap(), Anchors(self.anchor)
        if self.variant == "mix":
            self._anchors.take(chosen)
        return model

    def attach(self, model: nn.Module, optimizer: optim.Optimizer) -> None:
        """Find the matrices among what the optimizer trains, and follow its steps."""
        if self.keep == 1:
            return
        trained = {
            name: parameter
            for group in optimizer.param_groups
            for name, parameter in zip(group["names"], group["params"], strict=True)
        }
        lost = [name for name in self._names if name not in trained]
        if lost:
            raise MethodError(
                f"dps was to select from {lost[0]} ({len(lost)} of {len(self._names)} matrices), which is not trained",
                why="A method that comes after it froze, wrapped or renamed it.",
                fix="dps last: --method lora --method dps",
            )
        self._weights = {name: trained[name] for name in self._names}
        self._to_follow = optimizer

    def before_step(self, model: nn.Module) -> None:
        """Begin a stage where one begins; Mix puts its mixed weights in place."""
        if self.keep == 1:
            return
        self._follow()
        done, clock = self._done, self._clock
        if clock.begins(done) and not clock.selects(done):
            self._forget()
        if clock.begins(done) and clock.selects(done) and not self._frozen:
            self._select()
        if self.variant != "mix":
            return
        if clock.selects(done):
            self._swap.put(self._weights, self._held_at_snapshot)
        else:
            self._columns = {name: self._draw(place, name) for place, name in enumerate(self._names)}
            self._swap.put(self._weights, self._mixed_with_anchor)

    @torch.no_grad()
    def after_backward(self, model: nn.Module) -> None:
        """Add up squared gradients (stage I) or mask them (stage II), before they are clipped."""
        if self.keep == 1:
            return
        self._swap.restore()
        selects = self._clock.selects(self._done)
        if not selects and self.variant == "mix":
            self._mask_columns()
        if not selects and self.score_on == "raw":
            self._accumulate()
        if selects and self.apply == "pre_clip":
            self._mask()
        if self.variant == "mix" and self.gradient_scale and (not selects or self.rescale):
            torch._foreach_div_([local(w.grad) for w in self._weights.values() if w.grad is not None], self.keep)

    def _follow(self) -> None:
        """Hang hooks on a new optimizer, after those of all other methods: they have changed its gradients then."""
        if self._to_follow is not None:
            self._to_follow.register_step_pre_hook(self._before_optimizer)
            self._to_follow.register_step_post_hook(self._after_optimizer)
            self._to_follow = None

    @torch.no_grad()
    def _before_optimizer(self, optimizer: optim.Optimizer, *_: Any) -> None:
        selects = self._clock.selects(self._done)
        if not selects and self.score_on == "clipped":
            self._accumulate()
        if selects and self.apply == "post_clip":
            self._mask()
        if selects and self.freeze == "hard":
            held = [(weight, self._mask_of(name)) for name, weight in self._weights.items() if name in self._frozen]
            self._aside = {weight: weight.grad for weight, _ in held}
            step_holding(optimizer, held)

    def _after_optimizer(self, optimizer: optim.Optimizer, *_: Any) -> None:
        for weight, gradient in self._aside.items():
            weight.grad = gradient
        self._aside = {}
        overflow = getattr(optimizer, "found_inf", None)  # a fused optimizer skips the step itself
        if overflow is None or not bool(overflow):
            self._done += 1

    def finish(self, model: nn.Module, run: Run) -> nn.Module:
        """Make sure that it did something.

        Raises:
            MethodError: the run made steps, and no tensor was ever masked.
        """
        if self.keep < 1 and run.steps and not self._selected:
            raise MethodError(
                f"dps masked no tensor in {self._done} of {run.steps} steps",
                why="The optimizer's steps were not seen (Method.attach was not called), or the run was cut short.",
                fix="method.attach(model, optimizer) after the optimizer is made",
            )
        return model

    def state_dict(self) -> dict[str, Any]:
        """The clock, and what the stage has gathered: sums in stage I; masks and snapshot in stage II."""
        if self.keep == 1:
            return {}
        return {
            "done": self._done, "length": self._clock.length, "keep": self.keep, "selected": self._selected,
            "gam": dict(self._gam), "fam": dict(self._fam), "frozen": dict(self._frozen),
            "snapshot": dict(self._snapshot),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back the clock and the stage's tensors.

        Raises:
            MethodError: they were made with another stage length or share, or for other matrices.
        """
        if self.keep == 1:
            return
        for what, mine in (("length", self._clock.length), ("keep", self.keep)):
            if state[what] != mine:
                raise MethodError(
                    f"dps was begun with {what} {state[what]}, this run has {mine}",
                    why="Stages and masks of the two do not fit together.",
                    fix="the settings it was begun with, or a new run",
                )
        strange = set(state["gam"]) | set(state["frozen"]) | set(state["snapshot"])
        if not strange <= set(self._names):
            raise MethodError(
                f"dps has state for {sorted(strange - set(self._names))[0]}, which it does not select from"
            )
        self._done, self._selected = int(state["done"]), bool(state["selected"])
        self._gam, self._fam = dict(state["gam"]), dict(state["fam"])
        self._frozen, self._snapshot = dict(state["frozen"]), dict(state["snapshot"])

    # ------------------------------------------------------------------ the stages

    def _stage_length(self, steps: int) -> int:
        length = self.stage_steps
        if length is None:
            exact = int(steps * self.stage)
            length = exact if self.preset == "paper_code" else max(1, exact)
        if steps and not 0 < length < steps:
            raise MethodError(
                f"a stage of dps would last {length} steps, in a run of {steps}",
                why="Stage I takes all of it: nothing would ever be selected." if length else "It needs at least one.",
                fix=f"--set stage_steps={max(1, steps // 20)}",
            )
        return max(1, length)

    def _forget(self) -> None:
        """A cycle begins: all that the last one gathered is dropped."""
        for gathered in (self._gam, self._fam, self._frozen, self._snapshot):
            gathered.clear()

    @torch.no_grad()
    def _accumulate(self) -> None:
        """GAM += G^2 and FAM += m, unless a gradient of this step is not finite."""
        found, columns = present_gradients(self._weights), self._columns
        if not found:
            return
        finite = all_finite(found)
        if finite.device.type == "cpu":
            if not finite:
                return
        else:  # without waiting for the device: zeros are added
            found = {name: torch.where(finite, gradient, 0) for name, gradient in found.items()}
            columns = {name: column * finite for name, column in columns.items()}
        add_squares(self._gam, found)
        for name in columns.keys() & found.keys():
            self._fam[name] = self._fam[name] + columns[name] if name in self._fam else columns[name]

    @torch.no_grad()
    def _select(self) -> None:
        """Stage II begins: masks by the scores; a matrix that had no gradient in stage I is trained whole."""
        penalised = self.frequency_penalty == "on" or (
            self.frequency_penalty == "auto" and self._clock.length >= PENALISED_FROM
        )
        if self.variant == "mix":
            self._snapshot = {name: local(weight.detach()).clone() for name, weight in self._weights.items()}
        scores: dict[str, Tensor] = {}
        for name in list(self._gam):
            score = selection_score(self._gam[name], self._fam.get(name), self._clock.length, penalised)
            del self._gam[name]
            if self.scope == "tensor":
                self._frozen[name] = self._packed(~self._mask_by(score, self._weights[name]))
            else:
                scores[name] = score
        if scores:
            weights = [self._weights[name] for name in scores]
            count = share_count(sum(weight.numel() for weight in weights), self.keep)
            for name, mask in global_masks(scores, count, group_of(weights[0])).items():
                self._frozen[name] = self._packed(~mask)
        self._fam.clear()
        self._columns = {}
        self._selected = self._selected or bool(self._frozen)

    def _mask_by(self, score: Tensor, weight: nn.Parameter) -> Tensor:
        count = share_count(weight.numel(), self.keep)
        if is_part(weight):
            return global_masks({"": score}, count, group_of(weight))[""]
        return threshold_mask(score, count) if self.ties == "threshold" else exact_mask(score, count)

    def _packed(self, mask: Tensor) -> Tensor:
        return bits.packed(mask) if self.masks == "bits" else mask

    def _mask_of(self, name: str) -> Tensor:
        """The entries of a matrix that are frozen, as booleans."""
        mask = self._frozen[name]
        return bits.unpacked(mask, local(self._weights[name]).shape) if self.masks == "bits" else mask

    def _mask(self) -> None:
        """Gradients of frozen entries become zero."""
        for name in self._frozen:
            gradient = self._weights[name].grad
            if gradient is not None:
                local(gradient).masked_fill_(self._mask_of(name), 0)

    # ------------------------------------------------------------------ Mix

    def _draw(self, place: int, name: str) -> Tensor:
        """1 for each input column that is active in this step, 0 for the others; [1, in], or [in, 1] if transposed."""
        weight = self._weights[name]
        transposed = name in self._transposed
        columns = weight.shape[0 if transposed else 1]
        drawn = column_mask(self._seed, self._done, place, columns, 1 - self.keep)
        wide = drawn.view(-1, 1) if transposed else drawn.view(1, -1)
        if transposed and is_part(weight):
            wide = part_of(wide.expand(weight.shape).contiguous(), weight)[:, :1]
        return wide.to(weight.device, torch.float32 if weight.dtype.itemsize < 4 else weight.dtype, non_blocking=True)

    def _mixed_with_anchor(self, name: str, values: Tensor) -> Tensor:
        return mixed(values, self._anchors.at(name, self._weights[name]), self._columns[name], 1 - self.keep)

    def _held_at_snapshot(self, name: str, values: Tensor) -> Tensor:
        if name not in self._frozen:
            return values
        anchor = self._snapshot[name]
        moved = (values - anchor).masked_fill_(self._mask_of(name), 0)
        return (moved.div_(self.keep) if self.rescale else moved).add_(anchor)

    def _mask_columns(self) -> None:
        """The gradient of W from that of the mixed weights: zero in columns that were not active."""
        for name, weight in self._weights.items():
            if weight.grad is not None:
                local(weight.grad).mul_(self._columns[name])
