"""What a recycle method is given: weights tuned on an old base, on their way to a new one (``run.outdated``).

Nothing is computed before it is asked for: a method that only learns from the old model never pays for moving its
weights, and one that only moves them never pays for a teacher. Where the weights cannot be put onto the new base at
all (another width, other words), ``refusal`` says why, and the teacher is there all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from anytune.errors import MethodError

if TYPE_CHECKING:  # as in the protocol: methods can be listed without torch
    from torch import Tensor, nn

    from anytune.data.batches import Encoded, ExampleBatches
    from anytune.data.tasks import Example
    from anytune.methods.protocol import Run
    from anytune.models.adapters import AdapterDelta


class OutdatedWeights(Protocol):
    """Outdated weights, as a method of the recycle room sees them."""

    @property
    def old_base(self) -> Any:
        """The base they were tuned on (a ``models.base.Base``)."""

    @property
    def new_base(self) -> Any:
        """The upgraded base, which is trained."""

    @property
    def kind(self) -> str:
        """Their form: "full", "sparse" (a difference of few entries), "bottleneck", "lora", "prompt", or the name of
        another PEFT kind in small letters.
        """

    @property
    def refusal(self) -> str | None:
        """Why the weights cannot be put onto the new base: a line for each of the first tensors, and how many more.
        None where they can.
        """

    @property
    def head(self) -> dict[str, Tensor]:
        """State-dict name -> tensor of the head, as it was trained."""

    @property
    def examples(self) -> Sequence[Example]:
        """The task's training rows as texts."""

    @property
    def autocast(self) -> Callable[[], Any] | None:
        """The context of the run's precision for forward passes outside the loop; None in fp32."""

    def install(self, model: nn.Module, scale: float = 1.0) -> nn.Module:
        """Put the moved weights into a task model of the new base, in place; an adapter or a prompt wraps it.

        Args:
            model: from ``new_base.task_model``.
            scale: how much of the difference is added; the head is whole at any scale.

        Raises:
            DeltaError: with ``refusal``; or a scale other than 1 of what cannot be scaled.
        """

    def difference(self) -> dict[str, Tensor]:
        """Canonical name -> what the weights add to the body of the new base, fp32; unchanged tensors are absent.

        A full difference as it is stored, a LoRA as the product of its matrices with its scaling, absolute copies of
        base weights as differences. Empty for prompts, which are no weights.

        Raises:
            DeltaError: with ``refusal``.
        """

    def install_difference(self, model: nn.Module, difference: Mapping[str, Tensor]) -> nn.Module:
        """Add a changed difference (scaled, masked, permuted) to a task model of the new base; the head is copied.

        Args:
            model: from ``new_base.task_model``; changed in place, never wrapped.
            difference: canonical name -> what is added; absent names stay as the new base has them.
        """

    @property
    def adapter(self) -> AdapterDelta | None:
        """The adapter on its own base, by PEFT's names; None where the weights are none, or are a prompt."""

    def install_adapter(
        self, model: nn.Module, change: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    ) -> nn.Module:
        """Put the moved adapter onto a task model of the new base, its tensors (by PEFT's names) changed.

        Raises:
            DeltaError: with ``refusal``; or the weights are no adapter.
        """

    def make_teacher(self) -> nn.Module:
        """The old base with the old weights: eval mode, no gradients; made anew by each call."""

    def teacher_rows(self, encoded: Encoded) -> Encoded:
        """The same rows in the old base's tokens, row i for row i; with equal tokenizers the very same object.

        Args:
            encoded: the run's training rows, or rows of ``batches_of``.
        """

    def batches_of(self, examples: Sequence[Example]) -> ExampleBatches:
        """Texts without labels as training batches like the task's, in the new base's tokens.

        Their labels are placeholders (0), so that every objective can be computed; whoever trains on them must leave
        the labels' term out.
        """


def outdated_of(run: Run, name: str) -> Any:
    """The run's outdated weights.

    Raises:
        MethodError: it has none: the method was asked for outside ``recycle``.
    """
    if run.outdated is None:
        raise MethodError(
            f"method '{name}' needs outdated weights and there are none",
            why="It carries a stored delta over to a new base.",
            fix="anytune recycle DELTA --base NEW_BASE",
        )
    return run.outdated
