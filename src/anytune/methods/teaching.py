"""What methods share that learn from the old model's answers and hidden states: asking it once, and listening in.

The old model is asked about every training row before the first step, in its own tokens, and its answers are kept
under the content of the row as the student reads it (:mod:`anytune.methods.teacher_cache`). A step then costs what
plain tuning costs, and no second model is held.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from anytune.errors import MethodError
from anytune.methods.consistency import is_regression
from anytune.methods.distillation import Reduction, logit_distillation
from anytune.methods.outdated import outdated_of
from anytune.methods.protocol import Batch, Method, Run
from anytune.methods.step import upcast
from anytune.methods.teacher_cache import (
    ROWS_AT_ONCE,
    Gathering,
    Kept,
    TeacherCache,
    distinct_batches,
    distinct_rows,
    items_of_rows,
    row_keys,
)
from anytune.models.anatomy import Anatomy

#: "first": of the token an encoder's head reads, the first (of a decoder the last, the only one that has read the
#: text); "mean": the mean over a text's own tokens.
At = Literal["first", "mean"]
#: How student layers find their teacher layers: at the same share of the depth, or counted from the top; or for each
#: student state, embeddings first, the number of the teacher's (-1: none).
LayerMap = Literal["uniform", "last"] | list[int]
#: what the maps between widths are called in the model while it trains
MAPS = "state_maps"

# ---------------------------------------------------------------------- pure functions


def layer_pairs(student: int, teacher: int, how: LayerMap, last: bool = True) -> list[tuple[int, int]]:
    """(student state, teacher state) pairs; state 0 is the embeddings, state k what block k gives.

    Args:
        student, teacher: how many blocks each has.
        how: see ``LayerMap``; equal depths give k with k both ways.
        last: whether the student's last block takes part.

    Raises:
        MethodError: a given map has another length or names a state that is not there, or nothing is left.
    """
    if how == "uniform":
        pairs = [(place, (2 * place * teacher + student) // (2 * student)) for place in range(student + 1)]
    elif how == "last":
        pairs = [(student - back, teacher - back) for back in range(min(student, teacher), -1, -1)]
    else:
        if len(how) != student + 1 or not all(-1 <= place <= teacher for place in how):
            raise MethodError(
                f"layers = {list(how)}",
                why=f"The student has {student + 1} states (embeddings and {student} blocks), the teacher's are "
                f"numbered 0 to {teacher}; -1 leaves one out.",
                fix="layers=uniform",
            )
        pairs = [(mine, theirs) for mine, theirs in enumerate(how) if theirs >= 0]
    pairs = [pair for pair in pairs if last or pair[0] != student]
    if not pairs:
        raise MethodError(
            "no layer is matched with any other",
            why="Hidden states are compared by layer.",
            fix="layers=uniform, or beta=0   (answers alone)",
        )
    return pairs


def state_at(hidden: Tensor, batch: Batch, at: At, causal: bool) -> Tensor:
    """Hidden states ``[b, n, width]`` as one vector for each row, ``[b, width]`` in fp32 or wider; padding is no text.

    Places in front of the text (a soft prompt's) are passed over.
    """
    mask = batch["attention_mask"]
    hidden = upcast(hidden[:, hidden.shape[1] - mask.shape[1] :])
    if at == "mean":
        real = mask.to(hidden).unsqueeze(-1)
        return (hidden * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)
    places = torch.arange(mask.shape[1], device=mask.device)
    chosen = (places * mask).argmax(dim=1) if causal else mask.argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), chosen]


def answer_gap(
    student: Tensor, teacher: Tensor, batch: Batch, temperature: float, reduction: Reduction = "batch"
) -> Tensor:
    """How far answers ``[items, outputs]`` lie from the teacher's: ``T^2 KL``, or squared difference of numbers.

    A mean over items, a scalar in fp32 or wider; 0 with a gradient of zeros for no items.

    Raises:
        MethodError: the shapes differ.
    """
    if student.shape != teacher.shape:
        raise MethodError(
            f"answers {list(student.shape)} against a teacher's {list(teacher.shape)}",
            why="Each item is held against its own.",
            fix="a task with the labels the old weights were tuned for",
        )
    if not len(student):
        return upcast(student).sum()
    if is_regression(batch):
        return functional.mse_loss(upcast(student), upcast(teacher.detach()))
    return logit_distillation(student, teacher, temperature, reduction)


# ---------------------------------------------------------------------- listening in


class BlockStates:
    """The embeddings and what each block of a model's (first) stack gave, in its last pass.

    Args:
        model: a task model, or a PEFT wrapping of one.
        anatomy: of its kind.
        training: listen only while the model is in training mode: scoring then keeps nothing.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, *, training: bool) -> None:
        blocks = anatomy.block_stacks(model)[0][1]
        self.depth, self._training = len(blocks), training
        self._found: list[Tensor] = []
        self._handles = [blocks[0].register_forward_pre_hook(self._enter, with_kwargs=True)]
        self._handles += [block.register_forward_hook(self._leave) for block in blocks]

    def _enter(self, module: nn.Module, arguments: Any, named: dict[str, Any]) -> None:
        self._found = []
        if module.training or not self._training:
            self._found = [arguments[0] if arguments else named["hidden_states"]]

    def _leave(self, module: nn.Module, arguments: Any, output: Any) -> None:
        if self._found:
            self._found.append(output if isinstance(output, Tensor) else output[0])

    def take(self) -> list[Tensor]:
        """``[b, n, width]`` of the last pass, ``depth`` + 1 of them, once."""
        found, self._found = self._found, []
        if len(found) != self.depth + 1:
            raise MethodError(
                f"{len(found)} hidden states were seen of a model with {self.depth} blocks",
                why="Another method makes passes of its own, or does not call the blocks one by one.",
                fix="beta=0   (answers alone)",
            )
        return found

    def remove(self) -> None:
        """Take the hooks off."""
        self._found = []
        for handle in self._handles:
            handle.remove()
        self._handles = []


class StateMaps(nn.Module):
    """A linear map for each matched layer, from the student's width to the teacher's; trained with the model.

    They are scaffolding: a run's checkpoints hold them, as they are trained, and ``state_dict`` leaves them out, so
    nothing that is saved of the model has them.
    """

    def __init__(self, count: int, student: int, teacher: int, seed: int) -> None:
        super().__init__()
        generator = Generator().manual_seed(seed)
        self.maps = nn.ParameterList(
            torch.randn(teacher, student, generator=generator) / student**0.5 for _ in range(count)
        )
        self.register_load_state_dict_post_hook(_not_missed)

    def forward(self, states: Sequence[Tensor]) -> list[Tensor]:
        """``[b, student]`` of each layer as ``[b, teacher]``."""
        return [functional.linear(state.to(one), one) for state, one in zip(states, self.maps, strict=True)]

    def state_dict(self, *arguments: Any, destination: Any = None, **settings: Any) -> Any:
        """Nothing."""
        return {} if destination is None else destination


def _not_missed(_: nn.Module, found: Any) -> None:
    """A state that was saved without the maps lacks nothing."""
    found.missing_keys[:] = [name for name in found.missing_keys if f"{MAPS}." not in name]


# ---------------------------------------------------------------------- asking


@dataclass(frozen=True)
class Asked:
    """What the old model said of every training row.

    Attributes:
        logits: [items, outputs]; None where they were not asked for.
        states: of each row the matched layers' vectors side by side, [rows, pairs * width]; None likewise.
        pairs: the matched layers (student, teacher); empty where states were not asked for.
        width: of a teacher's state.
    """

    logits: TeacherCache | None
    states: TeacherCache | None
    pairs: tuple[tuple[int, int], ...] = ()
    width: int = 0

    def to(self, device: Any) -> Asked:
        """The same on a device."""
        return replace(
            self,
            logits=None if self.logits is None else self.logits.to(device),
            states=None if self.states is None else self.states.to(device),
        )

    def states_of(self, batch: Batch, keys: Tensor) -> list[Tensor]:
        """The teacher's vectors for a batch, ``[b, width]`` for each pair."""
        assert self.states is not None
        return list(self.states.of(batch, keys).split(self.width, dim=1))


@torch.no_grad()
def ask(
    run: Run, method: Method, *, logits: bool, layers: LayerMap | None = None, last: bool = True,
    student_depth: int = 0, at: At = "mean", kept: Kept = "fp32",
) -> Asked:  # fmt: skip
    """Have the old model read every training row once, in its own tokens and without dropout.

    Args:
        run: with ``outdated``, ``objective``, ``batches`` and ``device``.
        method: who asks, for errors.
        logits: keep its answers.
        layers: keep hidden states, matched so; None keeps none.
        last: see ``layer_pairs``.
        student_depth: blocks of the model that is trained.
        at: which vector stands for a row.
        kept: fp16 halves the memory, and rounds.

    Raises:
        MethodError: no outdated weights; rows that the two tokenizers cut differently; answers that are not finite or
            too many to keep.
    """
    outdated = outdated_of(run, method.name)
    objective, batches = run.needed("objective", method), run.needed("batches", method)
    device, theirs = run.needed("device", method), outdated.old_base.anatomy
    if hasattr(objective, "anatomy"):
        if outdated.old_base.identity.vocabulary != outdated.new_base.identity.vocabulary:
            raise MethodError(
                f"{outdated.old_base.name} and {outdated.new_base.name} have other words",
                why="A response is distilled word by word, and the old model answers in its own.",
                fix="--method initialize, or tune the task afresh",
            )
        objective = replace(objective, anatomy=theirs)
    causal = getattr(getattr(objective, "anatomy", None), "objective", "") == "clm"
    teacher = outdated.make_teacher().to(device)
    listening = BlockStates(teacher, theirs, training=False) if layers is not None else None
    pairs = layer_pairs(student_depth, listening.depth, layers, last) if listening and layers is not None else []
    answers, states, width = Gathering(kept), Gathering(kept), 0
    for mine, read in _rows(batches, outdated):
        placed = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in read.items()}
        with (outdated.autocast or contextlib.nullcontext)():
            output = objective.forward(teacher, placed)
        keys, counts = row_keys(mine), items_of_rows(mine, causal)
        if logits:
            if read is not mine and not torch.equal(counts, items_of_rows(read, causal)):
                raise MethodError(
                    "the two bases' tokenizers cut some texts at different words",
                    why="Each labelled word is held against its own.",
                    fix="max_length=LONGER   (so that no text is cut)",
                )
            answers.add(keys, counts, output.logits)
        if listening is not None:
            given = listening.take()
            width = given[0].shape[-1]
            side_by_side = [state_at(given[place], placed, at, theirs.causal) for _, place in pairs]
            states.add(keys, torch.ones_like(counts), torch.cat(side_by_side, dim=1))
    if listening is not None:
        listening.remove()
    return Asked(answers.done() if logits else None, states.done() if pairs else None, tuple(pairs), width)


def _rows(batches: Any, outdated: Any) -> Any:
    """(the student's batch, the teacher's batch) of every training row once; the same object for equal tokenizers."""
    encoded: Any = getattr(batches, "encoded", None)
    read: Any = encoded if encoded is None else outdated.teacher_rows(encoded)
    if read is encoded:
        yield from ((batch, batch) for batch in distinct_batches(batches))
        return
    order = distinct_rows(encoded)
    for start in range(0, len(order), ROWS_AT_ONCE):
        rows = order[start : start + ROWS_AT_ONCE]
        yield encoded.batch(rows), read.batch(rows)
