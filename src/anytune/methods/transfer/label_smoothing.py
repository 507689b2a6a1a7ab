"""Label smoothing: the loss asks for the label almost, and for every other answer a little.

In plain words: the answer that is trained towards is no longer "this label and nothing else", but the label with most
of the weight and the rest shared out over all classes. A teacher's answers do something like it: whoever learns from a
teacher should do better than this control, which needs none.

Formula: L = mean_i CE(q_i, softmax(z_i)), z: [items, classes], q_i = (1 - share) onehot(y_i) + share / classes.
Written as L = CE + share * mean_i (z_i[y_i] - mean_k z_ik): the logarithm of the softmax's sum falls out of the
difference, so the second term is computed from the logits alone and stands beside the plain loss.

Paper: Szegedy et al. 2016 (Rethinking the Inception Architecture).
Costs: one forward and one backward per step; a mean over the logits beside them; no state.
When not to use it: for regression, which has no classes (refused); where probabilities are to be read as such, since
it flattens them.
Choices of ours: the share is spread over all classes, the label's own among them, as torch's ``label_smoothing`` has
it. It leaves the prompt, and what is trained, to the other methods: ``--method prompt_tuning --method
label_smoothing``. In a log the plain loss stands as ever, and this term beside it, which may be below 0. The default
of 0.1 is what the literature uses most; it is not tuned by us.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn

from anytune.errors import MethodError
from anytune.methods.consistency import is_regression, item_labels
from anytune.methods.objective import Regression
from anytune.methods.protocol import Batch, Method, Run, Terms
from anytune.methods.registry import register
from anytune.methods.step import upcast


def above_the_mean(logits: Tensor, labels: Tensor) -> Tensor:
    """``mean_i (z_i[y_i] - mean_k z_ik)``: how far the labels' logits stand above the others'; 0 for no items.

    Args:
        logits: ``[items, classes]``.
        labels: ``[items]``, whole numbers from 0 to classes - 1.

    Returns:
        A scalar in fp32 or wider.
    """
    scores = upcast(logits)
    own = scores.gather(1, labels.unsqueeze(1)).squeeze(1)
    return (own - scores.mean(dim=1)).sum() / max(1, len(labels))


@register
@dataclass(kw_only=True)
class LabelSmoothing(Method):
    """Cross-entropy towards labels that leave a little to every class."""

    share: Annotated[
        float, Field(ge=0, lt=1, description="part of the weight that is spread over all classes; 0 = plain labels")
    ] = 0.1

    neutral = {"share": 0.0}  # noqa: RUF012 - nothing is computed then

    def check_task(self, kind: str) -> None:
        """Refuse a task without classes.

        Raises:
            MethodError: the task is a regression, and ``share`` is not 0.
        """
        if self.share and kind == "regression":
            raise MethodError(
                f"{self.name} with share = {self.share} was asked for on a regression task",
                why="Its labels are numbers, and there are no other classes to leave weight to.",
                fix="a run without --method label_smoothing, or a task with classes",
            )

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """The model stays as it is.

        Raises:
            MethodError: the task is a regression.
        """
        if isinstance(run.objective, Regression):
            self.check_task("regression")
        return model

    def objective(self, model: nn.Module, batch: Batch, output: Any, terms: Terms) -> Terms:
        """The plain terms, and what smoothing adds to them.

        Raises:
            MethodError: the labels are numbers to hit, not classes.
        """
        if not self.share:
            return terms
        if is_regression(batch):
            self.check_task("regression")
        return {**terms, self.name: self.share * above_the_mean(output.logits, item_labels(output, batch))}
