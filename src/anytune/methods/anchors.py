"""Anchors: fixed values of weights that a method measures or mixes against, such as the pre-trained ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from anytune.methods.parts import local, part_of

#: "device": beside the weights, 4 bytes each in fp32; "cpu": in main memory, fetched when needed; "bf16": beside the
#: weights in 2 bytes each, rounded.
Place = Literal["device", "cpu", "bf16"]


class Anchors:
    """Copies of weights by name.

    Taken in ``prepare``, where the model is as it was at the beginning (also of a run that goes on), so they are in no
    checkpoint. Where weights are split up over processes, each keeps its part from the first look on.

    Args:
        place: where they are kept; see :data:`Place`.
    """

    def __init__(self, place: Place = "device") -> None:
        self.place = place
        self._values: dict[str, Tensor] = {}
        self._split: set[str] = set()

    def __contains__(self, name: object) -> bool:
        return name in self._values

    @torch.no_grad()
    def take(self, parameters: Mapping[str, Tensor]) -> None:
        """Copy these weights as they are now."""
        for name, parameter in parameters.items():
            self._values[name] = parameter.detach().clone()
            if self.place == "bf16":
                self._values[name] = self._values[name].to(torch.bfloat16)

    def at(self, name: str, parameter: Tensor) -> Tensor:
        """The anchor of a weight: its part of this process, in the dtype and on the device of ``local(parameter)``.

        Raises:
            KeyError: no anchor was taken under this name.
        """
        value = self._values[name]
        mine = local(parameter)
        if name not in self._split:
            value = part_of(value, parameter).clone() if value.shape != mine.shape else value
            self._values[name] = value if self.place == "cpu" else value.to(mine.device)
            self._split.add(name)
        return self._values[name].to(mine.device, mine.dtype, non_blocking=True)
