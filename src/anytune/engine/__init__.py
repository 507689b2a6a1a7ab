"""The training loop, its checkpoints, seeds, precision and progress.

For a loop of your own, what ours is made of is at hand here: ``train``, ``method_groups``, ``learning_rate_share``,
``derive_seed``, ``seeded``, ``make_runtime``. Each is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anytune.engine.loop import train as train
    from anytune.engine.runtime import derive_seed as derive_seed
    from anytune.engine.runtime import make_runtime as make_runtime
    from anytune.engine.runtime import seeded as seeded
    from anytune.engine.settings import learning_rate_share as learning_rate_share
    from anytune.engine.settings import training_settings as training_settings
    from anytune.engine.stages import default_groups as default_groups
    from anytune.engine.stages import method_groups as method_groups

_HOMES = {
    "train": "loop",
    "derive_seed": "runtime",
    "make_runtime": "runtime",
    "seeded": "runtime",
    "learning_rate_share": "settings",
    "training_settings": "settings",
    "default_groups": "stages",
    "method_groups": "stages",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
