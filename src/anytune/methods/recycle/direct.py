"""Direct reuse: put the outdated weights on the upgraded base as they are, without training.

In plain words: add the stored difference to the new body (or plug the adapter in), copy the head exactly, done. It
tells how compatible the upgrade left the weights; every other way of recycling has to beat it.

Formula: theta_new = M_{i+1} + (tuned(M_i) - M_i) for the body; head_new = head_old.

Paper: Qin, Qian et al. 2023 (Recyclable Tuning), the pilot study; PortLLM (2025) for adapters.
Costs: no forward, no backward; one addition per stored weight.
When not to use it: when the upgrade changed the base much, or changed its shape (then it is refused, with a reason
for each key).
Choices of ours: the sum is taken in fp64 and rounded once; the head is copied, never added to (adding the difference
of two random heads, as one published script does, makes it mostly noise); onto the same base it gives the old bits.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from anytune.errors import MethodError
from anytune.methods.outdated import outdated_of
from anytune.methods.protocol import Method, Run
from anytune.methods.registry import register


def install(model: nn.Module, run: Run, name: str, scale: float = 1.0) -> nn.Module:
    """Write the outdated weights into the model; shared by every method that starts from them.

    Args:
        scale: how much of the difference is added; the head is whole at any scale.

    Raises:
        MethodError: the run has no outdated weights (the method was asked for outside ``recycle``).
    """
    if run.install_outdated is None:
        raise MethodError(
            f"method '{name}' needs outdated weights and there are none",
            why="It carries a stored delta over to a new base.",
            fix="anytune recycle DELTA --base NEW_BASE",
        )
    return run.install_outdated(model) if scale == 1.0 else outdated_of(run, name).install(model, scale)


@register
@dataclass(kw_only=True)
class Direct(Method):
    """Outdated weights as they are; it has no settings."""

    trains = False
    moves_only = True
    neutral = None
    neutral_reason = "nothing is trained; on the same base it gives the old weights bit for bit"

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Write the outdated weights into the model."""
        return install(model, run, self.name)
