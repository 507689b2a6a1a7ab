"""SLCA: a slow backbone under a fast head, trained with symmetric cross-entropy.

In plain words: what makes tuning forget is that the pre-trained body moves as fast as the fresh head. Here the head
learns at the run's rate and the body at a fraction of it. A second loss term, cross-entropy with answer and label
exchanged, weakens the pull of labels that the model finds very unlikely.

Formula: rate(backbone) = slow * rate(head); L = CE + reverse * RCE, RCE = -sum_k p_k log q_k with p: [items, classes]
the answer, at least 1e-7, and q the one-hot label, at least 1e-4: so RCE = 9.21 * (the probability of all wrong
classes). A mean over items.

Paper: Zhang et al. 2023 (SLCA) and its longer version (SLCA++) for the symmetric term; Wang et al. 2019 (symmetric
cross-entropy).
Costs: those of plain training; no further state.
When not to use it: for a task far from what the base has seen, which needs its body to move; for a model without a
head of its own (generation).
Choices of ours: ``slow`` is 0.1, not tuned. The paper's 0.01 is for image models and long streams of tasks; a text
model tuned by AdamW for 50 to 300 steps hardly moves at 0.01. The suggested rate 5e-4 is the head's: the body then
learns at the usual 5e-5. Head means what the base does not hold, a freshly made pooler included, and everything after
the body. The third part of SLCA is left out: after training it fits a Gaussian to each class and aligns the
classifier with samples of them, which serves a stream of tasks. For regression there is no reverse term, and asking
for one is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from anytune.errors import MethodError
from anytune.methods.consistency import is_regression, item_labels
from anytune.methods.objective import Regression
from anytune.methods.protocol import Batch, Method, Run, Terms
from anytune.methods.registry import register
from anytune.methods.step import upcast
from anytune.models.anatomy import Anatomy

#: the least that an answer's probability, and a label's entry, count as
LEAST_ANSWER, LEAST_LABEL = 1e-7, 1e-4


def reverse_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """``-sum_k p_k log q_k`` with p clamped to [1e-7, 1] and the one-hot q to [1e-4, 1]; the mean over items.

    Args:
        logits: ``[items, classes]``.
        labels: ``[items]``, int64.

    Returns:
        A scalar in fp32 or wider; 0 for no items.
    """
    answers = functional.softmax(upcast(logits), dim=-1).clamp(LEAST_ANSWER, 1.0)
    targets = functional.one_hot(labels, logits.shape[-1]).to(answers.dtype).clamp(LEAST_LABEL, 1.0)
    return -(answers * targets.log()).sum() / max(1, len(labels))


def in_head(name: str, head_names: frozenset[str], anatomy: Anatomy) -> bool:
    """Whether a weight belongs to the head, by its name in the model or in a PEFT wrapping of it."""
    bare = name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
    return bare in head_names or not anatomy.is_backbone(bare)


@register
@dataclass(kw_only=True)
class SLCA(Method):
    """Slow learner with symmetric cross-entropy."""

    slow: Annotated[
        float, Field(gt=0, le=1, description="learning rate of the backbone, as a share of the head's")
    ] = 0.1
    reverse: Annotated[float, Field(ge=0, le=100, description="weight of the reverse cross-entropy")] = 0.1

    neutral = {"slow": 1.0, "reverse": 0.0}  # noqa: RUF012 - it is plain training
    suggests = {"learning_rate": 5e-4}  # noqa: RUF012 - of the head

    def check_task(self, kind: str) -> None:
        """Refuse a reverse term where there are no classes.

        Raises:
            MethodError: ``reverse`` is not 0, and the task a regression.
        """
        if self.reverse and kind == "regression":
            raise MethodError(
                f"reverse = {self.reverse:g} on a regression",
                why="The reverse cross-entropy needs classes; a number to hit has none.",
                fix="--set reverse=0   (the slow backbone stays)",
            )

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Keep what says where the head is.

        Raises:
            MethodError: a reverse term is asked for on a regression.
        """
        self._anatomy, self._head_names = run.anatomy, frozenset(run.head_names)
        if isinstance(run.objective, Regression):
            self.check_task("regression")
        return model

    def param_groups(self, model: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Each group split into backbone and head, the backbone's at the slower rate.

        Raises:
            MethodError: the model has no head, so that everything would only be slower.
        """
        if self.slow == 1.0:
            return groups
        split = []
        for group in groups:
            for head in (False, True):
                chosen = [
                    (name, parameter)
                    for name, parameter in zip(group["names"], group["params"], strict=True)
                    if in_head(name, self._head_names, self._anatomy) == head
                ]
                if chosen:
                    names, parameters = ([*column] for column in zip(*chosen, strict=True))
                    rate = group["lr"] * (1.0 if head else self.slow)
                    split.append({**group, "names": names, "params": parameters, "lr": rate})
        if not any(in_head(name, self._head_names, self._anatomy) for group in groups for name in group["names"]):
            raise MethodError(
                "method 'slca' finds no head that is trained",
                why="Without one, a slow backbone is the whole model at a lower rate.",
                fix="--set slow=1   (or a lower learning rate)",
            )
        return split

    def objective(self, model: nn.Module, batch: Batch, output: Any, terms: Terms) -> Terms:
        """The plain terms, and the reverse cross-entropy.

        Raises:
            MethodError: a regression has no such term.
        """
        if not self.reverse:
            return terms
        if is_regression(batch):
            self.check_task("regression")
        return {**terms, "reverse": self.reverse * reverse_cross_entropy(output.logits, item_labels(output, batch))}
