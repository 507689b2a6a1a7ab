"""BitFit: train only the bias vectors and the head.

In plain words: freeze every matrix of the base; let the biases (and layer-norm shifts) and the head learn. The delta
is the difference of those vectors: a few kilobytes to a few hundred.

Formula: y = W x + b with W fixed and b trained, in every layer; the head is trained in full.

Paper: Ben Zaken, Goldberg, Ravfogel 2022 (BitFit).
Costs: one forward and one backward per step; optimizer state for about 0.1 % of the weights.
When not to use it: on bases without biases (Llama, Qwen3, ModernBERT, T5 kinds), where nothing but the head would be
trained: that is an error here. With much data, full tuning and LoRA go further.
Choices of ours: a layer norm's shift counts as a bias, its scale does not; the head counts as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from anytune.errors import MethodError
from anytune.methods.protocol import Method, Run
from anytune.methods.registry import register


def is_bias(name: str) -> bool:
    """Whether a parameter is a bias vector: ``encoder.layer.0.output.dense.bias`` -> True."""
    return name.rsplit(".", 1)[-1] == "bias"


@register
@dataclass(kw_only=True)
class BitFit(Method):
    """Train biases and head only; it has no settings."""

    neutral = None
    neutral_reason = "freezing the matrices is the method; full tuning is the setting without it"
    kinds = ("bert", "roberta", "distilbert", "electra", "deberta-v2", "gpt2", "qwen2")
    kinds_reason = "bases of the other kinds have no bias vectors, so only the head would be trained"
    suggests = {"learning_rate": 1e-3}  # noqa: RUF012

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Freeze all but biases and head.

        Raises:
            MethodError: the base has no bias to train.
        """
        head = set(run.head_names)
        biases = 0
        for name, parameter in model.named_parameters():
            in_head = name in head
            parameter.requires_grad_(in_head or is_bias(name))
            biases += is_bias(name) and not in_head
        if not biases:
            raise MethodError(
                "bitfit found no bias in this base",
                why=f"A '{run.anatomy.model_type}' base has no bias vectors; only the head would be trained.",
                fix="--method lora",
            )
        return model
