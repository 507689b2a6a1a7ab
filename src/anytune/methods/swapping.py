"""Other weights in place of the true ones while a step's gradients are computed: mixed, extrapolated, perturbed.

A weight transform such as Mixout's is usually written as a parametrisation of a module. Here it need not be: a step's
forward and backward passes see plain tensors, so the transformed values can just stand where the weights stand, from
``before_step`` to ``after_backward``. The model keeps its modules and names, every architecture works, and at every
other time it is plain: scoring, saving and the optimizer only ever meet true weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from anytune.methods.parts import is_part, local


class Swap:
    """True weights set aside while others stand in their place."""

    def __init__(self) -> None:
        self._aside: list[tuple[nn.Parameter, Tensor]] = []

    @torch.no_grad()
    def put(self, parameters: Mapping[str, nn.Parameter], compute: Callable[[str, Tensor], Tensor]) -> None:
        """Replace each weight by ``compute(name, true values)``; the true values are kept, not copied.

        Args:
            parameters: by name; where they are split up over processes, ``compute`` sees this process's part.
            compute: gives a new tensor of the same shape and dtype; must not change what it is given.
        """
        self.restore()  # of a step that was broken off
        for name, parameter in parameters.items():
            values = local(parameter.detach())
            put = compute(name, values)
            if is_part(parameter):  # what the launcher gathers from is this very memory, so the values must move
                self._aside.append((parameter, values.clone()))
                values.copy_(put)
            else:
                self._aside.append((parameter, values))
                parameter.data = put

    @torch.no_grad()
    def restore(self) -> None:
        """Put the true values back; does nothing where none are set aside."""
        for parameter, values in self._aside:
            if is_part(parameter):
                local(parameter.detach()).copy_(values)
            else:
                parameter.data = values
        self._aside = []
