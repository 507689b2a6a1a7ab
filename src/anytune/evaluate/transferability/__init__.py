"""How promising is one task's prompt for another task? Measures, each a pure function of what is already there.

Nothing here reads a file or runs a model: who ranks computes hidden states once (:class:`EmbeddingMean`,
:class:`FiredNeurons`) and asks. ``MEASURES`` says what each one needs. All are better when higher; their units differ,
so only the order within one measure and one target says anything.
"""

from __future__ import annotations

from dataclasses import dataclass

from anytune.evaluate.transferability.controls import (
    TaskWords,
    random_score,
    size_score,
    task_words,
    tfidf_cosines,
)
from anytune.evaluate.transferability.hscore import h_score, trans_rate
from anytune.evaluate.transferability.inputs import binned
from anytune.evaluate.transferability.leep import leep, nce
from anytune.evaluate.transferability.linear_probe import linear_probe
from anytune.evaluate.transferability.logme import logme
from anytune.evaluate.transferability.neurons import FiredNeurons, overlap
from anytune.evaluate.transferability.prompt_similarity import (
    euclidean_flat,
    euclidean_pairwise,
    flat_cosine,
    max_pairwise,
    mean_cosine,
    pairwise_cosine,
)
from anytune.evaluate.transferability.task_embedding import (
    EmbeddingMean,
    centred,
    pooled,
    task_cosine,
    task_cosines,
)


@dataclass(frozen=True)
class Measure:
    """A measure by name.

    Attributes:
        name: what ``--metric`` takes.
        needs: what must be at hand beside the source prompt: "target prompt" (a trained one), "target labels",
            "target texts", "source head" (of classes), "source texts", "equal length", or nothing.
        symmetric: whether source and target may be exchanged.
        classes: whether labels must be classes (numbers have to be binned).
        description: one line for lists.
    """

    name: str
    needs: tuple[str, ...]
    symmetric: bool
    description: str
    classes: bool = False


_FEATURES = ("target texts", "target labels")
MEASURES: dict[str, Measure] = {
    one.name: one
    for one in (
        Measure("task_cosine", ("target prompt", "target texts"), True, "cosine of task embeddings (PANDA)"),
        Measure("prompt_mean_cosine", ("target prompt",), True, "cosine of mean prompt rows (E_avg)"),
        Measure("prompt_flat_cosine", ("target prompt", "equal length"), True, "cosine of all prompt numbers"),
        Measure("prompt_pairwise_cosine", ("target prompt",), True, "mean cosine over pairs of prompt rows (SPoT)"),
        Measure("prompt_max_pairwise", ("target prompt",), False, "mean largest inner product of prompt rows"),
        Measure("prompt_euclidean_flat", ("target prompt", "equal length"), True, "1 / (1 + distance of prompts)"),
        Measure("prompt_euclidean_pairwise", ("target prompt",), True, "1 / (1 + mean distance of prompt rows)"),
        Measure("neuron_overlap", ("target prompt", "target texts"), True, "overlap of activated neurons (ON)"),
        Measure("logme", _FEATURES, False, "log evidence of a linear model on the source's features"),
        Measure("leep", (*_FEATURES, "source head"), False, "likelihood of labels given the source's answers", True),
        Measure("nce", (*_FEATURES, "source head"), False, "minus entropy of labels given the source's answers", True),
        Measure("h_score", _FEATURES, False, "spread of class means over spread of features, shrunk", True),
        Measure("trans_rate", _FEATURES, False, "coding rate of all rows less that within classes", True),
        Measure("linear_probe", _FEATURES, False, "score of a ridge probe by folds"),
        Measure("size", (), False, "control: training rows of the source"),
        Measure("random", (), False, "control: drawn by seed"),
        Measure("tfidf", ("target texts", "source texts"), True, "control: cosine of tf-idf centroids"),
    )
}

__all__ = [
    "MEASURES",
    "EmbeddingMean",
    "FiredNeurons",
    "Measure",
    "TaskWords",
    "binned",
    "centred",
    "euclidean_flat",
    "euclidean_pairwise",
    "flat_cosine",
    "h_score",
    "leep",
    "linear_probe",
    "logme",
    "max_pairwise",
    "mean_cosine",
    "nce",
    "overlap",
    "pairwise_cosine",
    "pooled",
    "random_score",
    "size_score",
    "task_cosine",
    "task_cosines",
    "task_words",
    "tfidf_cosines",
    "trans_rate",
]
