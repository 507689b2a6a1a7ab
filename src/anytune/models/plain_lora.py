"""PiSSA and OLoRA as plain LoRA: adapters that were cut out of their base's weights, as what they added to it.

Such a start takes ``s B0 A0`` out of the matrix W and trains on from B0 and A0, so the tuned matrix is
``W - s B0 A0 + s B A``. What tuning added is the difference of the two products, a LoRA of twice the rank:

    s B A - s B0 A0 = s [B, -B0] [A; A0]

The starts worked out from W alone, without a random number, give B0 and A0 again; the others do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from anytune import compat
from anytune.errors import DeltaError
from anytune.models.adapter_config import harmless
from anytune.models.adapters import FROM_WEIGHTS, AdapterDelta
from anytune.models.base import Base


def is_convertible(adapter: AdapterDelta) -> bool:
    """Whether ``as_plain_lora`` can say what the adapter added to its base."""
    return adapter.config.get("init_lora_weights") in FROM_WEIGHTS and not adapter.config.get("use_dora")


def as_plain_lora(adapter: AdapterDelta, base: Base, kind: Any, label_names: Sequence[str]) -> AdapterDelta:
    """A PiSSA or OLoRA adapter as a LoRA of twice the rank that leaves its base's weights alone.

    Its answers are the same up to rounding: the start is worked out again from the base's weights.

    Args:
        adapter: on the base it was made on.
        base: that base.
        kind: of its task.
        label_names: of its task.

    Raises:
        DeltaError: another start, or its tensors are not those of such an adapter.
    """
    if not is_convertible(adapter):
        raise DeltaError(
            f"an adapter started by '{adapter.config.get('init_lora_weights')}' cannot be turned into plain LoRA",
            why=f"Only {' and '.join(FROM_WEIGHTS)} can be worked out again from the base's weights.",
            fix="PEFT's path_initial_model_for_weight_conversion, where it was trained",
        )
    start = _start(adapter, base, kind, label_names)
    tensors = dict(adapter.tensors)
    for name, tensor in adapter.tensors.items():
        if "lora_A" in name or "lora_B" in name:
            first = start.get(name)
            if first is None or first.shape != tensor.shape:
                raise DeltaError(f"{name} is not in an adapter with this config", why="The folder is damaged.")
            side = (tensor, first) if "lora_A" in name else (tensor, -first)
            tensors[name] = torch.cat(side, dim=0 if "lora_A" in name else 1)
        elif "lora_embedding_A" in name or "lora_embedding_B" in name:  # starts at nothing: widened by nothing
            side = (tensor, torch.zeros_like(tensor))
            tensors[name] = torch.cat(side, dim=0 if "lora_embedding_A" in name else 1)
    rank = int(adapter.config.get("r", 8))
    # alpha / r (or alpha / sqrt(r)) stays what it was
    grown = math.sqrt(2) if adapter.config.get("use_rslora") else 2
    config = {
        **adapter.config,
        "init_lora_weights": True,
        "r": 2 * rank,
        "lora_alpha": grown * adapter.config.get("lora_alpha", 8),
        "rank_pattern": {name: 2 * one for name, one in (adapter.config.get("rank_pattern") or {}).items()},
        "alpha_pattern": {name: grown * one for name, one in (adapter.config.get("alpha_pattern") or {}).items()},
    }
    return AdapterDelta(config, tensors)


def _start(adapter: AdapterDelta, base: Base, kind: Any, label_names: Sequence[str]) -> dict[str, torch.Tensor]:
    """The adapter's tensors as PEFT starts them on this base."""
    from peft import PeftConfig, get_peft_model

    model, _ = base.task_model(kind, label_names, seed=0)
    try:
        with compat.quiet_transformers(), compat.seeded(0):
            config = PeftConfig.from_peft_type(**harmless(adapter.config, adapter.tensors.values()))
            return compat.adapter_state(get_peft_model(model, config))
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError) as problem:
        raise DeltaError(
            f"PEFT cannot start such an adapter on {base.name}: {problem!r}",
            why="What it took out of the base's weights is not known without that.",
        ) from problem
