"""One base in memory, deltas swapped in and out of it in place.

A shelf of deltas is scored on a single model: each delta is written in, asked, and taken out again, bit for bit. What
is held does not grow with the shelf: the backbone once, a fresh head for each kind of head, and the delta at hand.
"""

from __future__ import annotations

import contextlib
import copy
import gc
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anytune.engine.runtime import Runtime, make_runtime
from anytune.jobs.deltas import AnyDelta, install_delta
from anytune.models.base import Base

#: Kinds of head that are kept ready; further ones are made anew.
HEADS_KEPT = 4
#: Deltas held between collections of what they leave behind; each takes a tenth of a second.
COLLECTED_EVERY = 16


@dataclass
class _Fitted:
    """A task model on the shared backbone."""

    model: Any
    #: parameters and buffers by name, as they are when no delta is in
    tensors: Mapping[str, Tensor]
    #: values of those that the base does not hold, to put back
    own: Mapping[str, Tensor]
    #: state-dict names of the head
    head_names: Sequence[str]


class Resident:
    """A base whose task models share one backbone.

    Args:
        base: the base.
        runtime: where it computes; by default the device of this process, in fp32.
    """

    def __init__(self, base: Base, runtime: Runtime | None = None) -> None:
        self.base, self.runtime = base, runtime or make_runtime("fp32")
        self.tensors = base.tensors(pretraining_head=True)
        self._held = 0
        self._shared: dict[str, nn.Parameter] = {}
        self._fitted: OrderedDict[tuple[Any, ...], _Fitted] = OrderedDict()

    @contextlib.contextmanager
    def holding(self, delta: AnyDelta, kind: Any, label_names: Sequence[str]) -> Iterator[nn.Module]:
        """The task model with a delta of this base in it, in evaluation mode; afterwards the base is as it was.

        Args:
            delta: of this base, or moved to it.
            kind: of the task.
            label_names: of the task.

        Raises:
            DeltaError: it does not fit; the base is as it was then, too.
        """
        fitted = self._of(kind, label_names)
        built = [(module, _attributes(module)) for module in fitted.model.modules()]
        versions = {name: tensor._version for name, tensor in fitted.tensors.items()}
        try:
            model = install_delta(delta, fitted.model, self.base, trainable=False)
            yield model.to(self.runtime.device).eval().requires_grad_(False)
        finally:
            for module, attributes in built:  # takes off what was wrapped around modules, hung on them or put beside
                vars(module).clear()
                vars(module).update(attributes)
            written = [name for name, tensor in fitted.tensors.items() if tensor._version != versions[name]]
            self._restore(fitted, written)
            fitted.model.eval()
            self._held += 1
            if self._held % COLLECTED_EVERY == 0:  # wrappers refer to each other in circles, and would pile up
                gc.collect()

    def head_names(self, kind: Any, label_names: Sequence[str]) -> Sequence[str]:
        """What the base does not hold of such a task model."""
        return self._of(kind, label_names).head_names

    def _restore(self, fitted: _Fitted, names: Sequence[str]) -> None:
        """Write back what was written over."""
        with torch.no_grad():
            for name in names:
                bare, tensor = self.base.anatomy.canonical(name), fitted.tensors[name]
                tensor.copy_(fitted.own[name] if name in fitted.own else self.tensors[bare].to(tensor.dtype))

    def _of(self, kind: Any, label_names: Sequence[str]) -> _Fitted:
        key = (kind, len(label_names))
        if key not in self._fitted:
            while len(self._fitted) >= HEADS_KEPT:
                self._fitted.popitem(last=False)
            self._fitted[key] = self._fit(kind, label_names)
        self._fitted.move_to_end(key)
        return self._fitted[key]

    def _fit(self, kind: Any, label_names: Sequence[str]) -> _Fitted:
        model, head_names = self.base.task_model(kind, label_names, seed=0)
        model = model.to(self.runtime.device).eval().requires_grad_(False)
        canonical, instead = self.base.anatomy.canonical, dict[int, nn.Parameter]()
        for name, weight in model.named_parameters():
            if canonical(name) in self.tensors:
                shared = self._shared.setdefault(canonical(name), weight)
                if shared is not weight and shared.shape == weight.shape:
                    instead[id(weight)] = shared
        for module in model.modules():  # by identity, so that tied weights stay tied
            for leaf, parameter in module._parameters.items():
                if parameter is not None and id(parameter) in instead:
                    module._parameters[leaf] = instead[id(parameter)]
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        own = {name: tensor.clone() for name, tensor in tensors.items() if canonical(name) not in self.tensors}
        return _Fitted(model, tensors, own, tuple(head_names))


def _attributes(module: nn.Module) -> dict[str, Any]:
    """A module's attributes, those that hold parts and hooks copied one level deep."""
    return {key: copy.copy(value) if isinstance(value, dict) else value for key, value in vars(module).items()}
