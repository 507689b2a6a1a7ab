"""PANDA: a fresh prompt learns the task, and to answer as a prompt does that was transferred to it.

In plain words: starting from another task's prompt helps if that task is a relative and does harm if it is not. Here
nothing is started from. The transferred prompt, tuned on this task with its head (a run of prompt_transfer), is the
teacher: a student that starts at random learns the labels and, beside them, the teacher's answers, the more so the
nearer the teacher's source is. A bad source then costs little.

Formula: L = L_task + weight * w * g(progress) * KD(z_S, z_T), all means over items. KD: ``mse`` the mean of (z_S -
z_T)^2 over items and outputs; ``kl`` T^2 KL(softmax(z_T / T) || softmax(z_S / T)); ``hidden`` the mean squared
difference of the last hidden states, averaged over a text's tokens (at the labelled tokens where there are several),
``cosine`` one minus their cosine. w = similarity, cut to [0, 1]. g: 1 (``const``), or 1 for the first ``hold`` of the
steps and then falling to 0 along a line or half a cosine. Several teachers (``fusion: late``): z_T = sum_k a_k z_k, a
= w / sum w.
Paper: Zhong et al. 2024 (PANDA: Prompt Transfer Meets Knowledge Distillation for Efficient Model Adaptation).
Costs: prompt tuning, and one pass of each teacher over the training data before the first step, without gradients:
its answers are kept, [items, outputs] numbers of 4 bytes (fp16: 2). The base is not copied. Source and teacher are
two trainings more; count them when you compare.
When not to use it: where you can start from the source itself (prompt_transfer): in EVIDENCE.md students end below the
run that taught them, on two layers and on six; on generation tasks with a large vocabulary, whose answers are too many
to keep (use ``loss: hidden``); without the control of a teacher that was tuned from no source, or of
``shuffle_teacher``.
Choices of ours: weight 1 with the mean over items, so that neither batch size nor accumulation matters; the teacher
answers without dropout; where nobody says how similar a source is, w is 1. The published code fixes 0.1 * 0.1, divides
by the batch size once more and lets the teacher answer anew with dropout in each step: ``preset: paper_code`` restores
that (then accumulated micro-batches differ from whole batches). Its student has a lower rate (7e-3) than its
baseline; ours have the same. Padding and unlabelled tokens never count. ``shuffle_teacher`` gives each item the answer
to another one. Hidden states, fusion and schedules follow the paper's outline; its details are not known to us.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from anytune.errors import MethodError
from anytune.methods.consistency import is_regression
from anytune.methods.distillation import logit_distillation
from anytune.methods.fusion import fusion_weights, late_fusion
from anytune.methods.objective import Regression
from anytune.methods.presets import take_preset
from anytune.methods.prompts import PromptMethod, head_fits, head_in_place, prompt_of_source
from anytune.methods.protocol import Batch, Run, Terms
from anytune.methods.registry import register
from anytune.methods.step import upcast
from anytune.methods.teacher_cache import Kept, LastHidden, TeacherCache, at_items
from anytune.models.soft_prompts import PromptSource, attach_prompt, detach_prompt, given_prompt_values

Schedule = Literal["const", "linear", "cosine"]
Loss = Literal["mse", "kl", "hidden", "cosine"]
#: what a preset sets, where the setting was left at its default
PRESETS: dict[str, dict[str, Any]] = {
    "paper_code": {"weight": 0.1, "similarity": 0.1, "teacher": "noisy", "per_row": True},
}


def squared_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """``mean (z_S - z_T)^2`` over items and outputs, a scalar in fp32 or wider; 0 for no items.

    Its gradient is ``2 (z_S - z_T) / numel``: exactly zero where both are equal.
    """
    return (upcast(student) - upcast(teacher)).square().sum() / max(1, student.numel())


def cosine_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """``mean (1 - cos(h_S, h_T))`` over items ``[items, width]``; 0 for no items."""
    apart = 1 - functional.cosine_similarity(upcast(student), upcast(teacher), dim=-1)
    return apart.sum() / max(1, len(student))


def strength(progress: float, schedule: Schedule, hold: float) -> float:
    """g: how much of the weight counts when ``progress`` (0 to 1) of the steps are made."""
    if schedule == "const" or progress <= hold:
        return 1.0
    fallen = min(1.0, (progress - hold) / (1 - hold))
    return 1 - fallen if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * fallen))


@register
@dataclass(kw_only=True)
class Panda(PromptMethod):
    """A fresh prompt that learns from the labels and from transferred prompts."""

    weight: Annotated[float, Field(ge=0, le=1000, description="lambda: of the teacher's term; 0 = prompt tuning")] = (
        1.0
    )
    similarity: Annotated[
        Literal["given"] | Annotated[float, Field(ge=-1, le=1)],
        Field(description="w: given = what is said with each teacher (1 where nothing is), or one number for all"),
    ] = "given"
    schedule: Annotated[
        Schedule, Field(description="g: how the teacher's term changes over the run: const, linear or cosine")
    ] = "const"
    hold: Annotated[
        float, Field(ge=0, lt=1, description="share of the steps before linear and cosine begin to fall")
    ] = 0.1
    loss: Annotated[
        Loss, Field(description="what is compared: logits by mse or kl, hidden states by mse (hidden) or cosine")
    ] = "mse"
    temperature: Annotated[
        float, Field(gt=0, le=100, description="T of kl: both answers are softened by it, the term multiplied by T^2")
    ] = 2.0
    fusion: Annotated[
        Literal["late", "single"],
        Field(description="several teachers: the weighted mean of their answers, or the first teacher alone"),
    ] = "late"
    teacher: Annotated[
        Literal["cached", "noisy"],
        Field(description="cached = asked once, without dropout; noisy = asked in every step, with dropout"),
    ] = "cached"
    store: Annotated[Kept, Field(description="how answers are kept: fp32, or fp16 (half the memory, rounded)")] = (
        "fp32"
    )
    per_row: Annotated[
        bool, Field(description="divide the term by the rows of the micro-batch once more, as the published code does")
    ] = False
    shuffle_teacher: Annotated[
        bool, Field(description="control: every item gets the teacher's answer to another one")
    ] = False
    preset: Annotated[
        Literal["paper_code"] | None,
        Field(description="paper_code: the published code's scheme, where a setting is left at its default"),
    ] = None

    takes = ("teachers",)
    neutral = {"weight": 0.0}  # noqa: RUF012 - prompt tuning: no teacher is asked

    def __post_init__(self) -> None:
        take_preset(self, PRESETS)
        if self.teacher == "noisy" and self.shuffle_teacher:
            raise MethodError(
                "panda: shuffle_teacher with teacher=noisy",
                why="Answers are shuffled over all training rows, which a noisy teacher has not read yet.",
                fix="teacher=cached",
            )

    @property
    def _hidden(self) -> bool:
        return self.loss in ("hidden", "cosine")

    def needs(self) -> Sequence[str]:
        """Teachers, unless they would count nothing."""
        counts = self.similarity == "given" or self.similarity > 0
        return self.takes if self.weight and counts else ()

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Ask the teachers about the training data, then put a freshly drawn prompt on.

        Raises:
            MethodError: no teacher is given, or one does not fit the task: other labels, shapes or kind.
        """
        self._made = 0
        self._steps = max(1, run.steps)
        self._cache: TeacherCache | None = None
        self._states: LastHidden | None = None
        self._teachers: list[PromptSource] = []
        self._distance: Tensor | None = None
        weight = self.weight and self.weight * self._chosen(run)
        self._weight = float(weight)
        self._plain: Any = run.needed("objective", self) if weight else None
        if not weight:
            return super().prepare(model, run)
        self._causal = getattr(getattr(self._plain, "anatomy", None), "objective", "") == "clm"
        self._check(model, run)
        self._head_names = () if self._hidden else tuple(run.head_names)
        if self.teacher == "cached":
            cache = self._asked(model, run)
            self._cache = cache.shuffled(run.seed) if self.shuffle_teacher else cache
        model = super().prepare(model, run)
        if self._hidden:
            self._states = LastHidden(run.anatomy.writer(model))
        return model

    def _chosen(self, run: Run) -> float:
        """Choose the teachers and how much each counts; gives w of all of them together."""
        if not run.teachers:
            if not self.needs():
                return 0.0
            raise MethodError(
                f"method '{self.name}' needs a teacher prompt, and none is given",
                why="It learns from a prompt and a head that were tuned on this task.",
                fix="--teacher DELTA   (in Python: tune(..., teachers=[...]), Run(..., teachers=[...]))",
            )
        teachers = list(run.teachers)[: 1 if self.fusion == "single" else None]
        similar = [one.similarity if self.similarity == "given" else self.similarity for one in teachers]
        near = [1.0 if one is None else min(1.0, max(0.0, one)) for one in similar]
        if not any(near):
            return 0.0
        counts = fusion_weights(similar)
        kept = [place for place, share in enumerate(counts.tolist()) if share]
        self._teachers, self._shares = [teachers[place] for place in kept], counts[kept]
        return float(sum(counts[place] * near[place] for place in kept))

    def check_task(self, kind: str) -> None:
        """Refuse a divergence of answers that are one number.

        Raises:
            MethodError: ``loss`` is "kl" and the task a regression.
        """
        if self.loss == "kl" and kind == "regression":
            raise MethodError(
                "panda: loss=kl on a regression task", why="A softmax of one number is always 1.", fix="loss=mse"
            )

    def _check(self, model: nn.Module, run: Run) -> None:
        if isinstance(self._plain, Regression):
            self.check_task("regression")
        for teacher in self._teachers:
            if not self._hidden:
                head_fits(model, teacher, run, "teacher")
            if self.teacher == "noisy" and teacher.config.kind != self.kind:
                raise MethodError(
                    f"teacher '{teacher.name}' is a {teacher.config.kind} prompt, the student a {self.kind} one",
                    why="A noisy teacher is read in the student's place.",
                    fix=f"kind={teacher.config.kind}, or teacher=cached",
                )

    def _asked(self, model: nn.Module, run: Run) -> TeacherCache:
        """What the teachers answer to the training rows, on the run's device, the model left as it was."""
        batches, training = run.needed("batches", self), model.training
        device = run.needed("device", self)
        model, found = model.to(device), []
        model.eval()
        for teacher in self._teachers:
            attach_prompt(model, prompt_of_source(model, run, teacher), run.anatomy)
            try:
                with head_in_place(model, self._head(teacher)):
                    found.append(self._ask(model, run, batches, device))
            finally:
                detach_prompt(model)
        model.train(training)
        outputs = late_fusion([one.outputs for one in found], self._shares)
        return replace(found[0], outputs=outputs)

    def _ask(self, model: nn.Module, run: Run, batches: Any, device: Any) -> TeacherCache:
        states = LastHidden(run.anatomy.writer(model)) if self._hidden else None

        def answers(batch: Batch) -> Tensor:
            output = self._plain.forward(model, batch)
            return output.logits if states is None else at_items(states.take(), batch, self._causal)

        try:
            return TeacherCache.build(batches, answers, device=device, causal=self._causal, kept=self.store)
        finally:
            if states is not None:
                states.remove()

    def _head(self, teacher: PromptSource) -> dict[str, Tensor]:
        return {name: teacher.head[name] for name in self._head_names}

    # ------------------------------------------------------------------ steps

    def objective(self, model: nn.Module, batch: Batch, output: Any, terms: Terms) -> Terms:
        """The plain terms, and the distance to the teachers' answers.

        Raises:
            MethodError: the batch holds a row that the teachers were not asked about.
        """
        if not self._weight:
            return terms
        factor = self._weight * strength(self._made / self._steps, self.schedule, self.hold)
        mine = output.logits if self._states is None else at_items(self._states.take(), batch, self._causal)
        distance = self._gap(mine, self._answers(model, batch).to(mine.device), batch)
        self._distance = distance.detach()
        if self.per_row:
            factor /= len(batch["input_ids"])
        return {**terms, self.name: factor * distance}

    def _answers(self, model: nn.Module, batch: Batch) -> Tensor:
        if self._cache is not None:
            self._cache = self._cache.to(batch["input_ids"].device)
            return self._cache.of(batch)
        found = []
        for teacher in self._teachers:
            with ExitStack() as stack:
                stack.enter_context(torch.no_grad())
                stack.enter_context(given_prompt_values(model, teacher.values.to(batch["input_ids"].device)))
                stack.enter_context(head_in_place(model, self._head(teacher)))
                answer = self._plain.forward(model, batch)
            states = None if self._states is None else self._states.take()
            found.append(upcast(answer.logits) if states is None else upcast(at_items(states, batch, self._causal)))
        return late_fusion(found, self._shares)

    def _gap(self, mine: Tensor, taught: Tensor, batch: Batch) -> Tensor:
        if self.loss == "cosine":
            return cosine_gap(mine, taught)
        if self.loss == "kl" and len(mine) and not is_regression(batch):
            return logit_distillation(mine, taught, self.temperature)
        return squared_gap(mine, taught)

    def after_step(self, model: nn.Module) -> None:
        """One step more is made."""
        self._made += 1

    def figures(self) -> dict[str, float]:
        """How far the student was from the teachers in the last micro-batch."""
        return {} if self._distance is None else {"distance": self._distance.item()}

    def finish(self, model: nn.Module, run: Run) -> nn.Module:
        """Let go of the teachers' answers."""
        if self._states is not None:
            self._states.remove()
        self._cache, self._states, self._teachers = None, None, []
        return model

    def state_dict(self) -> dict[str, Any]:
        """How many steps are made: the schedule goes on from there."""
        return {"steps": self._made}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after so many steps."""
        self._made = int(state["steps"])
