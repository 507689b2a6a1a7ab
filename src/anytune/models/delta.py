"""FullDelta: what full fine-tuning added to a base, with the head it trained.

The body (every tensor the base holds) is kept as differences under canonical names; the head (every tensor the base
does not hold, a freshly made pooler included) is kept as it is, under the names it has in the task model. Put onto its
own base a delta gives the tuned model bit for bit; put onto another base of the same shapes it adds what tuning added
and carries the head over exactly.

On disk: one ``delta.safetensors``. Tensors that did not change are not stored; tables of which few rows changed
(embeddings) are stored as rows, tensors of which few entries changed (a sparse difference) as entries.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anytune.errors import DeltaError, WrongBaseError
from anytune.manifests import BaseIdentity
from anytune.models import difference as arithmetic
from anytune.models.anatomy import Anatomy, anatomy_of
from anytune.models.bottleneck import put_bottlenecks, scaled_adapter
from anytune.models.delta_file import DELTA_FILE, DeltaContent, read_delta, write_delta
from anytune.models.layout import is_hyperprompt
from anytune.models.vocabulary import Rows

__all__ = ["DELTA_FILE", "FullDelta"]

#: How many names an error lists.
LISTED = 5


@dataclass(frozen=True)
class FullDelta:
    """A full difference with its head.

    Attributes:
        base: the base the differences were taken from (or that they were moved to, see ``rebased``).
        model_type: the kind of model, which says how names are read.
        difference: canonical name -> what was added, in fp32 (fp64 for fp64 weights); unchanged tensors are absent.
        corrections: canonical name -> (flat index, exact tuned value) where the sum alone would be off on this base.
        head: state-dict name -> tensor, exactly as trained.
        body: canonical name -> (dtype, shape) of every body tensor of the tuned model, the unchanged ones included.
        bottleneck: settings of the bottleneck adapters it was tuned with, whose tensors are part of the head.
    """

    base: BaseIdentity
    model_type: str
    difference: dict[str, Tensor]
    corrections: dict[str, tuple[Tensor, Tensor]]
    head: dict[str, Tensor]
    body: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    bottleneck: dict[str, Any] | None = None

    @property
    def anatomy(self) -> Anatomy:
        """The anatomy of the delta's kind of model."""
        return anatomy_of(self.model_type)

    @classmethod
    def extract(
        cls,
        base_tensors: Mapping[str, Tensor],
        tuned_state: Mapping[str, Tensor],
        head_names: Collection[str],
        anatomy: Anatomy,
        base_identity: BaseIdentity,
        bottleneck: dict[str, Any] | None = None,
    ) -> FullDelta:
        """The delta between a base and a tuned task model.

        Args:
            base_tensors: canonical name -> tensor, in stored dtype (``Base.tensors()``; for a generating model with
                the pre-training head, whose difference is kept like the body's).
            tuned_state: the state dict of the tuned model.
            head_names: the state-dict names that the base does not hold (from ``Base.task_model``).
            anatomy: of the model's kind.
            base_identity: of the base.
            bottleneck: settings of the model's bottleneck adapters, whose names are among the head's.

        Raises:
            DeltaError: weights that are not finite, or names or shapes that do not match the base's.
        """
        tuned = without_tied_heads(tuned_state, anatomy)
        body_names = _body_names(tuned, head_names, anatomy, base_tensors)
        _check_names(base_tensors, body_names, head_names, tuned, anatomy)
        broken = [name for name, tensor in tuned.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
        if broken:
            raise DeltaError(
                f"{len(broken)} tuned tensors hold NaN or infinity: {_listed(broken)}",
                why="Such weights answer nothing; training diverged.",
                fix="a lower learning rate",
            )
        differences: dict[str, Tensor] = {}
        corrections: dict[str, tuple[Tensor, Tensor]] = {}
        body: dict[str, tuple[str, tuple[int, ...]]] = {}
        for bare, name in body_names.items():
            after, before = tuned[name].detach().cpu(), base_tensors[bare]
            body[bare] = (str(after.dtype).removeprefix("torch."), tuple(after.shape))
            if before.shape != after.shape:
                raise DeltaError(
                    f"{name} has shape {list(after.shape)}, the base's has {list(before.shape)}",
                    why="A difference needs equal shapes.",
                )
            found = arithmetic.subtract(before, after)
            if found is not None:
                differences[bare] = found.values
                if len(found.index):
                    corrections[bare] = (found.index, found.exact)
        head = {name: tuned[name].detach().cpu().clone() for name in head_names}
        return cls(base_identity, anatomy.model_type, differences, corrections, head, body, bottleneck)

    def apply(
        self,
        base_tensors: Mapping[str, Tensor],
        base_identity: BaseIdentity,
        scale: float = 1.0,
        *,
        another_base: bool = False,
    ) -> dict[str, Tensor]:
        """The tuned body on a base: canonical name -> ``base + scale * difference`` in the tuned dtype.

        On the delta's own base with ``scale`` 1 the result is the tuned model's bits; with ``scale`` 0 it is the
        base's. The head is ``self.head``, whatever the scale; what bottleneck adapters add is scaled (``install``).

        Args:
            base_tensors: canonical name -> tensor in stored dtype.
            base_identity: of that base.
            scale: how much of the difference to add.
            another_base: say that another base than the delta's own is meant (this is what recycling does).

        Raises:
            WrongBaseError: another base, and ``another_base`` was not said.
            DeltaError: the base lacks a tensor or has another shape (with the reason for each name), or the sum
                leaves the range of its dtype.
        """
        own = self._own(base_identity, another_base)
        self._check_base(base_tensors)
        return {name: self._sum(name, base_tensors[name], scale, exact=own and scale == 1.0) for name in self.body}

    def install(
        self,
        model: nn.Module,
        base_tensors: Mapping[str, Tensor],
        base_identity: BaseIdentity,
        scale: float = 1.0,
        *,
        another_base: bool = False,
    ) -> None:
        """Write the tuned weights into a task model, in place: the body by canonical names, the head by full names.

        Bottleneck adapters that it was tuned with are put onto the model first. Every learned name of the model is
        accounted for before anything is written.

        Raises:
            WrongBaseError, DeltaError: as ``apply``; or the model has names the delta does not know, or lacks some.
        """
        own = self._own(base_identity, another_base)
        self._check_base(base_tensors)
        if self.bottleneck is not None:
            put_bottlenecks(model, self.bottleneck)
        state = model.state_dict()
        names = self._names_in(state)
        with torch.no_grad():
            for bare, name in names.items():
                state[name].copy_(self._sum(bare, base_tensors[bare], scale, exact=own and scale == 1.0))
            for name, tensor in self.head.items():
                state[name].copy_(scaled_adapter(name, tensor, scale))

    def rebased(self, identity: BaseIdentity, tables: Mapping[str, Rows] | None = None) -> FullDelta:
        """This delta as one of another base: the same differences bit for bit, without the corrections.

        So a chain M0 -> M1 -> M2 of direct recycling ends where M0 -> M2 ends. An "upgrade" that is the same base by
        content keeps the corrections: there the recycled model is the tuned model bit for bit.

        Args:
            identity: of the base that it moves to.
            tables: canonical name -> where the rows of a table went; the difference of a row goes with it, rows of
                new words are left as the new base has them.
        """
        moved = {name: rows for name, rows in (tables or {}).items() if name in self.body}
        difference = {
            name: moved[name].carry(values) if name in moved else values for name, values in self.difference.items()
        }
        shapes = {name: (dtype, (moved[name].size, *shape[1:])) if name in moved else (dtype, shape)
                  for name, (dtype, shape) in self.body.items()}  # fmt: skip
        same = identity.backbone == self.base.backbone
        kept = {name: one for name, one in self.corrections.items() if same and name not in moved}
        return replace(self, base=identity, difference=difference, corrections=kept, body=shapes)

    def without_lost_parts(self, held: Mapping[str, Tensor], base_tensors: Mapping[str, Tensor]) -> FullDelta:
        """This delta for a base that lacks a pooler which the delta's own base holds: the tuned pooler joins the head.

        Args:
            held: canonical name -> tensor of the delta's own base.
            base_tensors: the same of the other base.
        """
        lost = [name for name in self.body if name not in base_tensors and self.anatomy.is_pooler(name)]
        if not lost or not all(name in held for name in lost):
            return self
        own = {self.anatomy.in_model(name): self._sum(name, held[name], 1.0, exact=True) for name in lost}
        return replace(
            self,
            difference={name: one for name, one in self.difference.items() if name not in lost},
            corrections={name: one for name, one in self.corrections.items() if name not in lost},
            body={name: one for name, one in self.body.items() if name not in lost},
            head={**self.head, **own},
        )

    def save(self, folder: Path) -> Path:
        """Write ``delta.safetensors`` into a folder (made if missing); returns the file. Equal deltas, equal bytes.

        Raises:
            StoreError: the folder cannot be written.
        """
        content = DeltaContent(
            self.base, self.model_type, self.difference, self.corrections, self.head, self.body, self.bottleneck
        )
        return write_delta(Path(folder), content)

    @classmethod
    def load(cls, folder: Path) -> FullDelta:
        """Read ``folder/delta.safetensors``.

        Raises:
            DeltaError: it is missing, truncated, of another kind, or of a newer format.
        """
        content = read_delta(Path(folder))
        return cls(**vars(content))

    def _own(self, identity: BaseIdentity, another_base: bool) -> bool:
        own = identity.backbone == self.base.backbone
        if not own and not another_base:
            raise WrongBaseError(
                f"this delta belongs to {self.base.short}, not to {identity.short}",
                why="On another base it answers differently from when it was tuned.",
                fix="anytune recycle   (moves it over and says what that cost)",
            )
        return own

    def _check_base(self, base_tensors: Mapping[str, Tensor]) -> None:
        """Every body tensor has its base tensor, of its shape where it changed."""
        reasons = []
        for name, (_, shape) in self.body.items():
            if name not in base_tensors:
                reasons.append(f"{name}: the base has none")
            elif name in self.difference and tuple(base_tensors[name].shape) != shape:
                reasons.append(f"{name}: delta {list(shape)}, base {list(base_tensors[name].shape)}")
        unknown = [name for name in base_tensors if name not in self.body and self.anatomy.is_backbone(name)]
        extra = [name for name in unknown if not self._left_alone(name)]
        reasons += [f"{name}: the delta knows none" for name in extra]
        if reasons:
            raise DeltaError(
                f"this delta does not fit the base, {len(reasons)} tensors: {_listed(reasons, '; ')}",
                why="A difference can only be added to a tensor of the same name and shape.",
                fix="a base of the same architecture; for another one, tune again",
            )

    def _left_alone(self, name: str) -> bool:
        """Whether a base may hold a tensor this delta knows nothing of: it is then left as the base has it.

        A delta of a bare base changes nothing about the hypernetwork that the base got later.
        """
        if is_hyperprompt(name):
            return not any(is_hyperprompt(own) for own in self.body)
        return self.anatomy.may_be_left_out(name)

    def _sum(self, name: str, base: Tensor, scale: float, exact: bool) -> Tensor:
        dtype = _dtype(self.body[name][0])
        if name not in self.difference:
            return base.to(dtype, copy=True)
        result = arithmetic.add(base, self.difference[name], dtype, scale)
        if exact and name in self.corrections:
            arithmetic.put(result, *self.corrections[name])
        if not bool(result.isfinite().all()):
            raise DeltaError(f"{name}: base + {scale} * difference leaves the range of {dtype}")
        return result

    def _names_in(self, state: Mapping[str, Tensor]) -> dict[str, str]:
        """Canonical -> state-dict name of the body of a model, every name and head shape checked."""
        state = without_tied_heads(state, self.anatomy)
        found = _body_names(state, self.head, self.anatomy)
        names = {
            bare: name
            for bare, name in found.items()
            if bare in self.body or not (is_hyperprompt(bare) and self._left_alone(bare))
        }
        reasons = [f"{name}: not in the model" for name in self.head if name not in state]
        reasons += [
            f"{name}: delta {list(tensor.shape)}, model {list(state[name].shape)}"
            for name, tensor in self.head.items()
            if name in state and state[name].shape != tensor.shape
        ]
        reasons += [f"{names[bare]}: not in the delta" for bare in names if bare not in self.body]
        reasons += [f"{bare}: not in the model" for bare in self.body if bare not in names]
        reasons += [
            f"{names[bare]}: delta {list(shape)}, model {list(state[names[bare]].shape)}"
            for bare, (_, shape) in self.body.items()
            if bare in names and bare in self.difference and tuple(state[names[bare]].shape) != shape
        ]
        if reasons:
            raise DeltaError(
                f"this delta does not fit the model, {len(reasons)} names: {_listed(reasons, '; ')}",
                why="A name left out would keep random or outdated weights.",
                fix="a task model with the delta's label names, made by Base.task_model",
            )
        return names


def without_tied_heads(state: Mapping[str, Tensor], anatomy: Anatomy) -> dict[str, Tensor]:
    """A state dict without the head tensors that share their memory with a backbone tensor (tied word embeddings)."""
    shared = {tensor.data_ptr() for name, tensor in state.items() if anatomy.is_backbone(name) and tensor.numel()}
    return {
        name: tensor for name, tensor in state.items() if anatomy.is_backbone(name) or tensor.data_ptr() not in shared
    }


def _body_names(
    state: Mapping[str, Tensor], head: Collection[str], anatomy: Anatomy, held: Collection[str] | None = None
) -> dict[str, str]:
    """Canonical -> state-dict name of every learned tensor that is no head; integer buffers and tied copies apart.

    Given ``held``, the names of the base, everything outside the backbone must be one of these.
    """
    names: dict[str, str] = {}
    for name, tensor in state.items():
        if name in head or anatomy.is_ignored(name) or not tensor.is_floating_point():
            continue
        if held is not None and not anatomy.is_backbone(name) and anatomy.canonical(name) not in held:
            raise DeltaError(
                f"'{name}' is neither in the base nor named as part of the head",
                why="Every tuned tensor must be one or the other, or it would be lost.",
                fix="pass the head_names that Base.task_model returned",
            )
        names[anatomy.canonical(name)] = name
    return names


def _check_names(
    base: Iterable[str], body: Mapping[str, str], head: Collection[str], tuned: Mapping[str, Tensor], anatomy: Anatomy
) -> None:
    held, reasons = set(base), []
    reasons += [f"{name}: named as head, not in the tuned model" for name in head if name not in tuned]
    reasons += [f"{name}: tuned, not in the base" for bare, name in body.items() if bare not in held]
    left = [
        bare for bare in held if bare not in body and anatomy.is_backbone(bare) and not anatomy.may_be_left_out(bare)
    ]
    reasons += [f"{bare}: in the base, not tuned" for bare in left]
    if reasons:
        raise DeltaError(
            f"the tuned model and the base do not match, {len(reasons)} names: {_listed(sorted(reasons), '; ')}",
            why="Every tensor must be accounted for.",
            fix="pass the base this model was tuned from, and the head_names that Base.task_model returned",
        )


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise DeltaError(f"unknown dtype '{name}' in a delta", why="The file is damaged or of a newer anytune.")
    return found


def _listed(names: Iterable[str], between: str = ", ") -> str:
    listed = list(names)
    more = f" and {len(listed) - LISTED} more" if len(listed) > LISTED else ""
    return between.join(listed[:LISTED]) + more
