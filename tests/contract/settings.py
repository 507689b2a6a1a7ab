"""What the contract needs to know of a method beyond its name; a method without an entry runs on its defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from anytune.methods.tune.bitfit import is_bias

#: noise does not add up; with equal noise they do, see tests/methods/test_noise.py
NOISE = "each micro-batch draws its own noise"


def everything(name: str, head_names: set[str]) -> bool:
    return True


@dataclass(frozen=True)
class Exercise:
    """How the contract exercises a method.

    Attributes:
        settings: settings under which it does what its card says (its defaults may be neutral).
        training: training settings, where those of the room do not suit.
        trains: which weights (by their names in the prepared model) it trains; all others must stay bit for bit.
        plain: the method that it adds to and is under its neutral settings; by default plain training.
        second_stage: in the first stage of a stream it only gathers; the contract looks at the second.
        outdated: of recycle methods: what the outdated delta was tuned with, "full" or "lora".
        by_score: it chooses by validation scores, and may choose to leave the body as it is.
        no_labels: why its loss on the labels need not fall, if it never sees one.
        no_accumulation: why k micro-batches of b are not one batch of k * b for this method, if they are not.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    trains: Callable[[str, set[str]], bool] = everything
    plain: str = ""
    second_stage: bool = False
    outdated: str = "full"
    by_score: bool = False
    no_labels: str = ""
    no_accumulation: str = ""


def _adapter_or_head(name: str, head_names: set[str]) -> bool:
    return "lora_" in name or "modules_to_save" in name


def _bias_or_head(name: str, head_names: set[str]) -> bool:
    return is_bias(name) or name in head_names


def _last_block_or_above(name: str, head_names: set[str]) -> bool:
    return ".embeddings." not in name and ".layer.0." not in name


def _not_an_embedding(name: str, head_names: set[str]) -> bool:
    return ".embeddings." not in name


def _block_matrix_or_head(name: str, head_names: set[str]) -> bool:
    return name in head_names or (".layer." in name and name.endswith("weight") and "LayerNorm" not in name)


def _prompt_or_head(name: str, head_names: set[str]) -> bool:
    return name.startswith("soft_prompt.") or name in head_names


def _bottleneck_or_head(name: str, head_names: set[str]) -> bool:
    return name.startswith("bottleneck.") or name in head_names


EXERCISES: dict[str, Exercise] = {
    # a random body tells little: whole-batch gradients at a high rate
    "tune/bottleneck": Exercise(
        settings={"width": 8, "std": 0.1},
        training={"learning_rate": 2e-2, "batch_size": 42},
        trains=_bottleneck_or_head,
    ),
    # the old model was tuned for a few steps on a random body: what it says is worth little
    "recycle/interpolation_distillation": Exercise(settings={"weight": 0.1, "random": 1, "beta": 0.1}),
    "recycle/synthetic": Exercise(
        settings={"texts": 16, "rounds": 2}, no_labels="an old model that knows little is all it learns from"
    ),
    "recycle/scaled": Exercise(by_score=True),
    "recycle/mapped": Exercise(outdated="lora", training={"learning_rate": 1e-2}, trains=_adapter_or_head),
    "recycle/projection": Exercise(settings={"rank": 2, "alpha": 0.1, "temperature": 1.0}),
    "recycle/distill": Exercise(settings={"alpha": 0.1, "temperature": 1.0, "beta": 0.1}),
    "recycle/combined": Exercise(settings={"alpha": 0.1, "temperature": 1.0, "beta": 0.1}, plain="recycle/initialize"),
    "transfer/prompt_tuning": Exercise(settings={"length": 4}, trains=_prompt_or_head),
    "transfer/prompt_transfer": Exercise(trains=_prompt_or_head),
    # by half a cosine: a run that goes on must know how far it was
    "transfer/panda": Exercise(
        settings={"length": 4, "schedule": "cosine", "hold": 0.2},
        trains=_prompt_or_head,
        plain="transfer/prompt_tuning",
    ),
    "transfer/attempt": Exercise(trains=_prompt_or_head),
    "transfer/mpt": Exercise(trains=_prompt_or_head),
    "transfer/label_smoothing": Exercise(training={"learning_rate": 5e-3}),
    "tune/sift": Exercise(
        settings={"share": 0.1}, training={"learning_rate": 1e-2, "batch_size": 42}, trains=_block_matrix_or_head
    ),
    "tune/r3f": Exercise(no_accumulation=NOISE),
    "tune/smart": Exercise(no_accumulation=NOISE),
    "tune/lnsr": Exercise(no_accumulation=NOISE),
    # on a random body, guessing words is all there is to learn, unless it counts little
    "tune/dft_plus": Exercise(settings={"weight": 0.01}),
    "tune/slca": Exercise(training={"learning_rate": 3e-2}),
    "tune/recadam": Exercise(settings={"midpoint": 0.5, "gamma": 50.0}),
    # variant D leaves some tensors wholly alone; it stands below, and in a run that is cut in its own tests
    "tune/child_tuning": Exercise(settings={"variant": "F", "keep": 0.5}),
    "tune/top_k_layers": Exercise(
        settings={"k": 1}, training={"learning_rate": 1e-2, "batch_size": 42}, trains=_last_block_or_above
    ),
    "tune/freeze": Exercise(training={"learning_rate": 1e-2, "batch_size": 42}, trains=_not_an_embedding),
    "tune/dps": Exercise(settings={"variant": "mix", "keep": 0.6, "stage_steps": 1}),
    "pretrain/derpp": Exercise(second_stage=True),
    "pretrain/replay": Exercise(second_stage=True),
    # at a first stage it is plain training
    "pretrain/ewc": Exercise(settings={"examples": 16, "rows": 4}, second_stage=True),
    # its contrast holds the texts of a micro-batch against each other: it stands in its own tests
    "pretrain/das": Exercise(settings={"contrast": 0.0, "examples": 16, "rows": 4}),
    # centred, the texts of a micro-batch are held against each other: that stands in its own tests
    "pretrain/hprompt": Exercise(settings={"components": 4, "length": 3, "layers": 1, "centre": False}),
    "pretrain/sequential": Exercise(settings={"head_rate": 2.0}),
    "tune/lora": Exercise(settings={"r": 4, "targets": "all-linear", "dropout": 0.1}, trains=_adapter_or_head),
    # on a random body, biases learn the tiny task only from whole-batch gradients at a high rate
    "tune/bitfit": Exercise(
        training={"learning_rate": 2e-2, "batch_size": 42, "schedule": "constant"}, trains=_bias_or_head
    ),
}


#: further settings under which a method does something else, run where the place it runs in may matter
OTHER_WAYS: dict[str, list[dict[str, Any]]] = {
    "tune/child_tuning": [{"variant": "D", "keep": 0.3}],
    "recycle/projection": [{"rank": 2, "residual": False}],
    "recycle/distill": [{"preset": "paper_code"}, {"label_free": True, "alpha": 1.0, "store": "fp16"}],
    "transfer/prompt_tuning": [{"length": 3, "kind": "input"}, {"length": 3, "projection": 5}],
    "transfer/panda": [
        {"length": 3, "loss": "kl", "schedule": "linear", "shuffle_teacher": True},
        {"length": 3, "loss": "hidden", "kind": "input"},
    ],
    "tune/extrapolation": [{"direction": "noise"}],
    "pretrain/das": [{"contrast": 0.0, "examples": 16, "rows": 4, "form": "update"}],
    "pretrain/l2_anchor": [{"to": "first", "form": "penalty", "anchor": "cpu"}],
    "pretrain/averaging": [{"form": "steps"}],
    "tune/l2sp": [{"form": "penalty", "anchor": "cpu"}],
    "tune/recadam": [{"midpoint": 0.5, "gamma": 1.0, "form": "gradient"}],
    "tune/dps": [
        {"keep": 0.5, "stage_steps": 1},
        {"keep": 0.5, "stage_steps": 1, "freeze": "grad", "scope": "global", "masks": "bits"},
    ],
}


def exercise(name: str) -> Exercise:
    return EXERCISES.get(name, Exercise())
