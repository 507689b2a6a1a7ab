"""Dropout of a model in training, set for all of it at once.

Published comparisons often differ in dropout besides the method they compare; with one setting for every arm they
need not.
"""

from __future__ import annotations

from torch import nn

#: Attributes by which attention modules keep a dropout probability as a plain number.
_NUMBERS = ("attention_dropout", "dropout", "dropout_prob")


def set_dropout(model: nn.Module, probability: float) -> int:
    """Give every dropout of ``model`` one probability, in place; evaluation has none either way.

    Returns:
        How many places it was set in: 0 where a model has none (some decoders keep it in attention alone).
    """
    count = 0
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
            count += 1
        for name in _NUMBERS:
            if isinstance(vars(module).get(name), float):
                setattr(module, name, probability)
                count += 1
    return count
