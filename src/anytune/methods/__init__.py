"""What a technique changes about plain training: the protocol, the registry and four rooms with one file per method.

Adding a method means adding one file to ``pretrain``, ``tune``, ``transfer`` or ``recycle``; nothing else changes.

For a training loop of your own: ``create("dps", {"keep": 0.5})`` makes a method, ``Run`` is what its ``prepare`` is
told, ``StepModule`` puts model, methods and objective together, and ``total`` sums its loss terms. Each is loaded when
it is first used, so that listing methods costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anytune.methods.objective import Classification as Classification
    from anytune.methods.objective import LanguageModelling as LanguageModelling
    from anytune.methods.objective import Regression as Regression
    from anytune.methods.objective import objective_for as objective_for
    from anytune.methods.protocol import Method as Method
    from anytune.methods.protocol import Run as Run
    from anytune.methods.registry import create as create
    from anytune.methods.registry import register as register
    from anytune.methods.step import StepModule as StepModule
    from anytune.methods.step import total as total
    from anytune.methods.step import trainable as trainable

_HOMES = {
    "Classification": "objective",
    "LanguageModelling": "objective",
    "Regression": "objective",
    "objective_for": "objective",
    "Method": "protocol",
    "Run": "protocol",
    "create": "registry",
    "register": "registry",
    "StepModule": "step",
    "total": "step",
    "trainable": "step",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
