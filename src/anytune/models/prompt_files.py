"""Soft prompts as files: plain PEFT folders, and checkpoints of P-tuning v2.

Both hold the same numbers in the same order, so one becomes the other by renaming:

| here                     | PEFT                             | P-tuning v2                         |
|--------------------------|----------------------------------|-------------------------------------|
| the values [n, w]        | ``prompt_embeddings``            | ``prefix_encoder.embedding.weight`` |
| a head's ``NAME``        | ``base_model.NAME``              | ``NAME``                            |

A projection is stored as the values it gives.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from anytune import compat
from anytune.errors import DeltaError
from anytune.models.anatomy import anatomy_of
from anytune.models.layout import SOFT_PROMPT
from anytune.models.soft_prompt_config import (
    INPUT_KINDS,
    SoftPromptConfig,
    config_from_peft,
    peft_settings,
)
from anytune.models.soft_prompts import attach_prompt, layout_from, layout_of, make_prompt, prompt_of
from anytune.models.weights import SINGLE_FILE, write_tensors

if TYPE_CHECKING:
    from anytune.models.adapters import AdapterDelta
    from anytune.models.base import Base

#: what PEFT calls the values
VALUES = "prompt_embeddings"
#: what PEFT puts before the names of the model that a prompt is for
BEFORE = "base_model."
#: what P-tuning v2 calls the values, and the maps of a reparametrised prompt
PTUNING_VALUES = "prefix_encoder.embedding.weight"
PTUNING_MAPS = "prefix_encoder.trans."
#: modules that PEFT always saves with a prompt of a task with a head
PEFTS_HEADS = ("classifier", "score")
SHOWN = 5


# ---------------------------------------------------------------------- of a model


def prompt_tensors(
    model: nn.Module, head_names: Collection[str] | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The ``adapter_config.json`` of a model's soft prompt and its tensors, by the names PEFT stores them under.

    Args:
        model: with a soft prompt.
        head_names: state-dict names that the base does not hold; by default the task's head, and a pooler that trains.

    Raises:
        DeltaError: the model has no prompt, an adapter beside it, or weights of the base that train.
    """
    prompt = prompt_of(model)
    if prompt is None or hasattr(model, "peft_config"):
        raise DeltaError(
            f"{type(model).__name__} has {'an adapter beside its soft prompt' if prompt else 'no soft prompt'}",
            why="A PEFT folder holds one of the two." if prompt else "There is nothing to store.",
        )
    state = model.state_dict()
    heads = _heads(model, state, head_names)
    settings = peft_settings(prompt.config, prompt.layout, compat.adapter_task_type(model))
    settings["modules_to_save"] = _modules(model, heads) or None
    with torch.no_grad():
        values = prompt.values()
    tensors = {VALUES: values, **{BEFORE + name: state[name] for name in heads}}
    return settings, {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def put_prompt(model: nn.Module, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], trainable: bool) -> None:
    """Put a stored prompt and its head onto a task model, in place; the rest of it is frozen.

    Args:
        model: from ``Base.task_model``.
        settings: an ``adapter_config.json`` that may be believed (``adapter_config.harmless``).
        tensors: by PEFT's names.
        trainable: whether prompt and head train.

    Raises:
        DeltaError: names, shapes or sizes do not match the model's.
    """
    anatomy, state = anatomy_of(model), model.state_dict()
    config, values, head = split_tensors(settings, tensors)
    layout = layout_of(model, anatomy)
    wrong = [f"{name}: not in the model" for name in head if name not in state]
    wrong += [
        f"{name}: adapter {list(tensor.shape)}, model {list(state[name].shape)}"
        for name, tensor in head.items()
        if name in state and tensor.shape != state[name].shape
    ]
    # other parts of a head PEFT may have left out (a pooler made afresh); ``AdapterDelta.saved_head_missing`` says so
    kept = (*PEFTS_HEADS, *(settings.get("modules_to_save") or ()))
    wrong += [
        f"{name}: not in the adapter"
        for name in anatomy.split(state).task_head
        if name not in head and any(f".{module}." in f".{name}" for module in kept)
    ]
    width = layout.width(config.kind)
    if values.shape != (config.length, width):
        wrong.append(f"{VALUES}: adapter {list(values.shape)}, model {[config.length, width]}")
    stated = settings.get("num_attention_heads"), settings.get("num_layers")
    if config.kind == "deep" and any(
        said not in (None, own) for said, own in zip(stated, (layout.heads, layout.layers), strict=True)
    ):
        wrong.append(
            f"its config says {stated[1]} layers of {stated[0]} heads, model {layout.layers} of {layout.heads}"
        )
    if wrong:
        raise DeltaError(
            f"this prompt does not fit the model, {len(wrong)} names: {'; '.join(wrong[:SHOWN])}",
            why="A name left out would keep random weights.",
            fix="a task model with the prompt's number of labels, on a base of the same architecture",
        )
    for weight in model.parameters():
        weight.requires_grad_(False)
    prompt = make_prompt(model, config, anatomy, seed=0, values=values)
    attach_prompt(model, prompt, anatomy)
    prompt.requires_grad_(trainable)
    with torch.no_grad():
        for name, tensor in head.items():
            state[name].copy_(tensor)
    for name, weight in model.named_parameters():
        if name in head:
            weight.requires_grad_(trainable)


def split_tensors(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[SoftPromptConfig, Tensor, dict[str, Tensor]]:
    """What PEFT's names hold: settings, values [n, w], and the head by the names of the model.

    Raises:
        DeltaError: it is no prompt, the values are missing, or something else is among the tensors.
    """
    config = config_from_peft(settings)
    strange = [name for name in tensors if name != VALUES and not name.startswith(BEFORE)]
    if VALUES not in tensors or strange:
        raise DeltaError(
            f"this prompt holds {', '.join(strange[:SHOWN])}" if strange else f"this prompt holds no {VALUES}",
            why="A prompt is its values and a head.",
            fix="save it again with PEFT's save_pretrained",
        )
    values = tensors[VALUES]
    if config.kind == "input" and settings.get("num_transformer_submodules") == 2 and len(values) == 2 * config.length:
        values = values[: config.length]  # of an encoder-decoder PEFT keeps as many again, which it never reads
    return config, values, {name.removeprefix(BEFORE): tensor for name, tensor in tensors.items() if name != VALUES}


def prompt_of_adapter(adapter: AdapterDelta) -> tuple[SoftPromptConfig, Tensor, dict[str, Tensor]]:
    """A stored prompt: its settings, its values [n, w] in fp32, and its head by state-dict names.

    Raises:
        DeltaError: as ``split_tensors``, or the values are not those of one prompt.
    """
    config, values, head = split_tensors(adapter.config, adapter.tensors)
    if values.dim() != 2 or len(values) != config.length:
        raise DeltaError(
            f"{VALUES} has shape {list(values.shape)} and its config says {config.length} places",
            why="One of the two was changed.",
        )
    return config, values.float(), head


def _heads(model: nn.Module, state: Mapping[str, Tensor], head_names: Collection[str] | None) -> list[str]:
    """What is stored beside the prompt, in the model's order.

    Raises:
        DeltaError: more trains than that, and would be lost.
    """
    anatomy = anatomy_of(model)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    if head_names is None:
        fresh = {name for name in trained if anatomy.is_pooler(name) or not anatomy.is_backbone(name)}
        head_names = {*anatomy.split(state).task_head, *fresh}
    kept = [name for name in state if name in head_names and not name.startswith(f"{SOFT_PROMPT}.")]
    lost = sorted(name for name in trained.difference(kept) if not name.startswith(f"{SOFT_PROMPT}."))
    if lost:
        raise DeltaError(
            f"{len(lost)} weights train beside the soft prompt: {', '.join(lost[:SHOWN])}",
            why="A prompt is stored as its values and a head; what else training changed would be lost.",
            fix="requires_grad_(False) on all but model.soft_prompt and the head",
        )
    return kept


def _modules(model: nn.Module, heads: Iterable[str]) -> list[str]:
    from anytune.models.peft_models import head_modules

    return head_modules(model, heads)


# ---------------------------------------------------------------------- P-tuning v2


def import_ptuning(path: Path, base: Base, kind: str = "classification") -> AdapterDelta:
    """A checkpoint of P-tuning v2 as an adapter.

    Args:
        path: a safetensors file, or a folder with ``model.safetensors``.
        base: the model it was tuned on. Such checkpoints hold all of it; it must be equal to the base's.
        kind: of task: "classification", "regression" or "token-classification".

    Raises:
        DeltaError: it is pickled, damaged, no such checkpoint, or of another base.
    """
    from anytune.models.adapters import AdapterDelta

    tensors = _read(Path(path))
    if PTUNING_VALUES not in tensors:
        raise DeltaError(f"{Path(path).name} holds no {PTUNING_VALUES}", why="It is no P-tuning v2 checkpoint.")
    maps = {name.removeprefix(PTUNING_MAPS): one for name, one in tensors.items() if name.startswith(PTUNING_MAPS)}
    values = _projected(tensors[PTUNING_VALUES], maps) if maps else tensors[PTUNING_VALUES]
    words = base.tensors().shape(base.anatomy.word_embeddings)[1]
    layout = layout_from(base.config, base.config.num_hidden_layers, words)
    if values.shape[1] != layout.width("deep"):
        raise DeltaError(
            f"its prompt is {values.shape[1]} wide, base {base.name} needs {layout.width('deep')}",
            why="It was tuned on a base of other sizes.",
            fix="--base with the model it was tuned on",
        )
    head = _without_base(tensors, base, Path(path).name)
    task_type = "TOKEN_CLS" if kind == "token-classification" else "SEQ_CLS"
    settings = peft_settings(SoftPromptConfig(length=len(values)), layout, task_type)
    settings["modules_to_save"] = sorted({name.rpartition(".")[0] for name in head})
    return AdapterDelta(settings, {VALUES: values, **{BEFORE + name: one for name, one in head.items()}})


def export_ptuning(adapter: AdapterDelta, path: Path) -> None:
    """Write a deep prompt and its head by the names P-tuning v2 knows them by (one safetensors file).

    Raises:
        DeltaError: it is an input prompt, which P-tuning v2 has other names for in every class, or a decoder's.
    """
    config, values, head = split_tensors(adapter.config, adapter.tensors)
    if config.kind != "deep" or adapter.config.get("task_type") not in ("SEQ_CLS", "TOKEN_CLS"):
        raise DeltaError(
            f"a {adapter.config.get('peft_type')} prompt for {adapter.config.get('task_type')} is none of P-tuning v2",
            why=f"Those are keys and values of an encoder with a head; {INPUT_KINDS[0]} is stored by PEFT alone.",
            fix="anytune export   (a PEFT folder)",
        )
    write_tensors(Path(path), {PTUNING_VALUES: values, **head}, {"format": "pt"})


def _read(path: Path) -> dict[str, Tensor]:
    file = path / SINGLE_FILE if path.is_dir() else path
    pickled = path / "pytorch_model.bin" if path.is_dir() else path
    if pickled.is_file() and pickled.suffix in (".bin", ".pt", ".pth") and (path.is_file() or not file.is_file()):
        target = pickled.with_name(SINGLE_FILE)
        raise DeltaError(
            f"{path} has its weights only as {pickled.name}",
            why="That is a pickle, which can run any code when opened; anytune reads safetensors only.",
            fix='for a file you trust: python -c "import torch; from safetensors.torch import save_file; '
            f"save_file(torch.load('{pickled}', weights_only=True), '{target}')\"",
        )
    if not file.is_file():
        raise DeltaError(f"{path} has no {SINGLE_FILE}", why="The checkpoint's weights are missing.")
    try:
        return {name: tensor.clone() for name, tensor in load_file(file).items()}
    except (SafetensorError, OSError) as problem:
        raise DeltaError(
            f"cannot read {file} ({file.stat().st_size:,} bytes): {problem}",
            why="The file is truncated or no safetensors file.",
            fix="copy it again",
        ) from None


def _projected(table: Tensor, maps: Mapping[str, Tensor]) -> Tensor:
    """The values of a reparametrised prompt: two linear maps with tanh between."""
    try:
        hidden = torch.tanh(nn.functional.linear(table, maps["0.weight"], maps["0.bias"]))
        return nn.functional.linear(hidden, maps["2.weight"], maps["2.bias"])
    except (KeyError, RuntimeError) as problem:
        raise DeltaError(
            f"the maps of its prompt do not fit: {problem}", why="The checkpoint is damaged, or of another kind."
        ) from None


def _without_base(tensors: Mapping[str, Tensor], base: Base, name: str) -> dict[str, Tensor]:
    """What a checkpoint holds beside its prompt and the base's own weights."""
    held, anatomy = base.tensors(), base.anatomy
    head: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        bare = anatomy.canonical(key)
        if key.startswith("prefix_encoder.") or anatomy.is_ignored(key):
            continue
        if bare not in held:
            head[key] = tensor
        elif not torch.equal(held[bare].to(tensor.dtype), tensor):
            raise DeltaError(
                f"{name}: its {key} is not that of base {base.name}",
                why="The prompt was tuned on another base, or the base was tuned along.",
                fix="--base with the very model it was tuned on",
            )
    if not head:
        raise DeltaError(
            f"{name} holds no head", why="Without the trained classifier its answers cannot be had again."
        )
    return head
