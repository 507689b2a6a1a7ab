"""Models that PEFT wraps: a fresh LoRA put on with its whole head, and any adapter merged into plain weights again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from anytune import compat
from anytune.errors import DeltaError
from anytune.models.anatomy import anatomy_of
from anytune.models.layout import HYPERPROMPT
from anytune.models.prompted import hyperprompt_of
from anytune.models.soft_prompts import prompt_of


def make_lora(
    model: nn.Module,
    *,
    head_names: Sequence[str],
    r: int = 8,
    alpha: float = 16,
    dropout: float = 0.0,
    targets: Sequence[str] | str | None = None,
    seed: int = 0,
    **settings: Any,
) -> Any:
    """Put a fresh LoRA onto a task model (changed in place), its whole head trainable and saved; returns a PeftModel.

    PEFT's task type is that of the model's class: SEQ_CLS, TOKEN_CLS, CAUSAL_LM or SEQ_2_SEQ_LM.

    W x becomes W x + (alpha / r) B A x, with A: r x in and B: out x r; B starts at 0, so the model's answers do not
    change until it is trained.

    Args:
        model: from ``Base.task_model``.
        head_names: state-dict names that the base does not hold, from ``Base.task_model``.
        r, alpha, dropout: of LoRA (PEFT's defaults are 8, 8 and 0).
        targets: module names as PEFT matches them; by default all linear layers of a block.
        seed: of A. Torch's own random state is left as it was.
        settings: further fields of ``peft.LoraConfig``.

    Raises:
        DeltaError: PEFT refuses the settings (no such target, r < 1), or the model has a soft prompt.
    """
    from peft import LoraConfig, get_peft_model

    if prompt_of(model) is not None:
        raise DeltaError(
            "LoRA cannot be combined with a soft prompt",
            why="A PEFT folder holds one of the two, and each would answer otherwise without the other.",
            fix="--method lora   (without a method that tunes a prompt)",
        )
    chosen = targets if isinstance(targets, str) else list(targets or anatomy_of(model).lora_targets)
    if isinstance(chosen, str) and hyperprompt_of(model) is not None:
        settings.setdefault("exclude_modules", rf"{HYPERPROMPT}\..*")  # such targets may reach into it
    try:
        with compat.quiet_transformers(), compat.seeded(seed):
            config = LoraConfig(
                task_type=compat.adapter_task_type(model) or "SEQ_CLS",
                r=r,
                lora_alpha=alpha,  # type: ignore[arg-type]  # a fraction works as well
                lora_dropout=dropout,
                target_modules=chosen,
                fan_in_fan_out=anatomy_of(model).transposed,
                modules_to_save=head_modules(model, head_names) or None,
                **settings,
            )
            return get_peft_model(model, config)
    except (ValueError, TypeError) as problem:
        raise DeltaError(
            f"PEFT refuses LoRA with r={r}, targets {chosen}: {str(problem).strip().splitlines()[0]}",
            why="Targets are module names of the model, r is at least 1.",
            fix=f"targets such as {', '.join(anatomy_of(model).lora_targets)}",
        ) from problem


def head_modules(model: nn.Module, head_names: Iterable[str]) -> list[str]:
    """The topmost modules all of whose tensors are in ``head_names``: ``["bert.pooler", "classifier"]``.

    Raises:
        DeltaError: a head tensor is not inside such a module.
    """
    head = set(head_names)
    found: list[str] = []
    for name, module in model.named_modules():
        inside = [f"{name}.{tensor}" for tensor in module.state_dict()]
        covered = any(name.startswith(f"{outer}.") for outer in found)
        if name and inside and not covered and head.issuperset(inside):
            found.append(name)
    lost = [name for name in head if not any(name.startswith(f"{module}.") for module in found)]
    if lost:
        raise DeltaError(f"{', '.join(sorted(lost))}: in no module of its own", why="PEFT saves whole modules.")
    return found


def merge(peft_model: Any) -> Any:
    """The plain model with the adapter's weights added in, under the original names.

    Raises:
        DeltaError: this kind of adapter cannot be merged (prompts are no weights).
    """
    if prompt_of(peft_model) is not None:
        raise DeltaError(
            "a soft prompt cannot be merged",
            why="Prompts are inputs, not weights.",
            fix="anytune.load(DELTA)   (it is used beside its base, as it is)",
        )
    if not hasattr(peft_model, "merge_and_unload") or peft_model.active_peft_config.is_prompt_learning:
        raise DeltaError(
            f"{peft_model.active_peft_config.peft_type} cannot be merged", why="Prompts are inputs, not weights."
        )
    with compat.quiet_transformers():
        return untied(peft_model.merge_and_unload(safe_merge=True))


def untied(model: Any) -> Any:
    """The model, whose config says no longer that its vocabulary head is the word embeddings if it is not.

    An adapter may have trained one of the two (``modules_to_save=["lm_head"]``, a LoRA on either). Whoever loads a
    config that ties them gets the embeddings as head, and the trained head is lost without a word.

    Raises:
        DeltaError: embeddings that the kind of model always shares came apart (T5's encoder and decoder).
    """
    anatomy, state = anatomy_of(model), model.state_dict()
    names = {anatomy.canonical(name): name for name in state}
    for copy, source in anatomy.tied:
        if copy in names and source in names and not torch.equal(state[names[copy]], state[names[source]]):
            raise DeltaError(
                f"{source} was trained apart from {copy}",
                why=f"Models of kind {anatomy.model_type} share them, so no plain model folder can hold both.",
                fix="use the adapter as it is: anytune export",
            )
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    if (
        getattr(model.config, "tie_word_embeddings", False)
        and outputs is not None
        and inputs is not None
        and outputs.weight.data_ptr() != inputs.weight.data_ptr()
    ):
        model.config.tie_word_embeddings = False
    return model
