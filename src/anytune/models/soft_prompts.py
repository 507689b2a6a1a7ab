"""Soft prompts: a few tuned vectors that a frozen model reads beside every text.

A deep prompt is a key and a value for every place and layer (prefix tuning, P-tuning v2); an input prompt stands in
front of the words (prompt tuning). ``attach_prompt`` puts one on a plain transformers model: outputs stay as long as
the text, so heads, losses and metrics see a model as they know it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from anytune import compat
from anytune.errors import BaseError, MethodError
from anytune.manifests import BaseIdentity, TaskRecord
from anytune.models.anatomy import Anatomy
from anytune.models.hyperprompt import reading_module, word_table
from anytune.models.layout import SOFT_PROMPT
from anytune.models.prompt_attention import self_attentions
from anytune.models.prompt_placing import Placing, placing_for
from anytune.models.soft_prompt_config import PromptLayout, SoftPromptConfig


@dataclass(frozen=True)
class PromptSource:
    """A stored prompt with all that others may want of it.

    Attributes:
        name: as tables show it.
        config: its settings.
        values: [n, w] in fp32, projected where it was tuned by a projection.
        head: state-dict name -> tensor of everything the base does not hold.
        label_names: output i of the head is ``label_names[i]``.
        base: the base it was tuned on.
        similarity: of its task to the one at hand, where somebody has measured it.
        task: the task it was tuned on, where that is known.
    """

    name: str
    config: SoftPromptConfig
    values: Tensor
    head: Mapping[str, Tensor] = field(default_factory=dict)
    label_names: tuple[str, ...] = ()
    base: BaseIdentity | None = None
    similarity: float | None = None
    task: TaskRecord | None = None


class SoftPrompt(nn.Module):
    """The values of a prompt, or the small network that they come from."""

    def __init__(self, config: SoftPromptConfig, layout: PromptLayout) -> None:
        """An unfilled prompt; ``make_prompt`` fills one.

        Args:
            config: its settings.
            layout: of the model it is for.
        """
        super().__init__()
        self.config, self.layout = config, layout
        width = layout.width(config.kind)
        self.table = nn.Parameter(torch.zeros(config.length, layout.words if config.projection else width))
        self.projection: nn.Module | None = None
        if config.projection:
            self.projection = nn.Sequential(
                nn.utils.skip_init(nn.Linear, layout.words, config.projection),
                nn.Tanh(),
                nn.utils.skip_init(nn.Linear, config.projection, width),
            )
        #: the hooks of the model that this prompt is on
        self.placing: Placing | None = None

    def values(self) -> Tensor:
        """The values [n, w], with gradients; no dropout."""
        return self.table if self.projection is None else self.projection(self.table)


# ---------------------------------------------------------------------- sizes


def layout_of(model: Any, anatomy: Anatomy) -> PromptLayout:
    """How prompts are laid out for a model: as PEFT does it.

    With grouped-query attention the key-value heads count. An encoder-decoder's deep prompts stand in its decoder (in
    its encoder, where the task does without a decoder).
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    words = word_table(reading_module(inner, anatomy)).weight.shape[1]
    writes = anatomy.encoder_decoder and compat.adapter_task_type(inner) == "SEQ_2_SEQ_LM"
    return layout_from(inner.config, len(self_attentions(anatomy, inner)), words, writes)


def layout_from(config: Any, layers: int, words: int, writes: bool = False) -> PromptLayout:
    """The layout for a transformers config.

    Args:
        config: of the base.
        layers: that get keys and values.
        words: width of the word embeddings.
        writes: whether it is an encoder-decoder that writes text.
    """
    queries = config.num_attention_heads
    width = getattr(config, "head_dim", None) or getattr(config, "d_kv", None) or config.hidden_size // queries
    heads = getattr(config, "num_key_value_heads", None) or queries
    return PromptLayout(layers=layers, heads=heads, head_dim=width, words=words, doubled=writes)


def prompt_width(model: Any, kind: Literal["deep", "input"], anatomy: Anatomy) -> int:
    """How many numbers one place of a prompt has.

    Deep: 2 * layers * key-value heads * head width. Input: the width of the word embeddings.
    """
    return layout_of(model, anatomy).width(kind)


# ---------------------------------------------------------------------- making, putting on, taking off


def make_prompt(
    model: Any,
    config: SoftPromptConfig,
    anatomy: Anatomy,
    seed: int,
    values: Tensor | None = None,
    std: float = 0.02,
) -> SoftPrompt:
    """A prompt for a model, not put on yet.

    Args:
        model: a task or pre-training model.
        config: settings.
        anatomy: of the model's kind.
        seed: equal seeds give equal bits whatever was drawn before; torch's own random state is left as it was.
        values: [n, w] to start from, as they are; None draws N(0, std).
        std: of the numbers drawn; a projection's maps start as torch starts linear maps.

    Raises:
        MethodError: the values do not fit, are not finite, or are to be met by a projection.
    """
    prompt = SoftPrompt(config, layout_of(model, anatomy))
    if values is not None:
        _check_values(prompt, values)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        if values is not None:
            prompt.table.copy_(values.detach())
        else:
            prompt.table.copy_(torch.randn(prompt.table.shape, generator=draw) * std)
        for layer in prompt.modules():
            if isinstance(layer, nn.Linear):
                bound = 1 / math.sqrt(layer.in_features)
                for weight in (layer.weight, layer.bias):
                    weight.copy_((torch.rand(weight.shape, generator=draw) * 2 - 1) * bound)
    return prompt.train(model.training)


def attach_prompt(model: Any, prompt: SoftPrompt, anatomy: Anatomy) -> None:
    """Put a prompt on a model, in place: ``model.soft_prompt``. Copies of the model have a copy of it.

    What trains is for the caller to say: no ``requires_grad`` changes here.

    Raises:
        BaseError: the model has one already, or its attention has no place for a deep prompt.
        MethodError: the prompt was made for a model of other sizes.
    """
    if prompt_of(model) is not None:
        raise BaseError(
            "the model has a soft prompt already", why="It can read one.", fix="detach_prompt(model) first"
        )
    inner = _inner(model)
    layout = layout_of(inner, anatomy)
    if layout != prompt.layout:
        raise MethodError(
            f"the prompt was made for {_sizes(prompt.layout)}, this model has {_sizes(layout)}",
            why="Its numbers would land in other layers and heads.",
            fix="a prompt made for this base",
        )
    placing = placing_for(prompt, inner, anatomy)
    placing.hang(inner)
    prompt.placing = placing
    prompt.to(word_table(reading_module(inner, anatomy)).weight.device)
    prompt.train(model.training)
    inner.add_module(SOFT_PROMPT, prompt)


def detach_prompt(model: Any) -> None:
    """Take a model's prompt off: it answers as before, bit for bit. A model without one is left as it is."""
    inner, prompt = _inner(model), prompt_of(model)
    if prompt is None:
        return
    if prompt.placing is not None:
        prompt.placing.take_off(inner)
    prompt.placing = None
    delattr(inner, SOFT_PROMPT)


def prompt_of(model: Any) -> SoftPrompt | None:
    """The soft prompt of a model, also through PEFT; None for a model without one."""
    found = getattr(_inner(model), SOFT_PROMPT, None)
    return found if isinstance(found, SoftPrompt) else None


@contextmanager
def given_prompt_values(model: Any, values: Tensor | None, mask: Tensor | None = None) -> Iterator[None]:
    """Inside, the model reads these values in place of its own prompt's.

    Args:
        model: a model with a soft prompt, whose kind says what the values are.
        values: [n, w] for all texts or [b, n, w] for each, of any length; gradients flow into them, and the prompt's
            dropout is on them, too, while it trains. None: no prompt, and the answers of the bare model bit for bit.
        mask: [b, n], which places hold a prompt; shorter prompts are padded in front. A masked place is as if it were
            not there.

    Raises:
        MethodError: the model has no prompt, or the values do not fit.
    """
    prompt = prompt_of(model)
    if prompt is None or prompt.placing is None:
        raise MethodError(
            "prompt values were given to a model without a soft prompt",
            why="It has no place for them.",
            fix="attach_prompt(model, make_prompt(model, config, anatomy, seed), anatomy)",
        )
    width = prompt.layout.width(prompt.config.kind)
    if values is not None and (values.dim() not in (2, 3) or values.shape[-1] != width):
        raise MethodError(
            f"prompt values of shape {list(values.shape)}",
            why=f"They must be [length, {width}] or [b, length, {width}].",
        )
    if mask is not None and (values is None or mask.dim() != 2 or mask.shape[1] != values.shape[-2]):
        raise MethodError(f"a mask {list(mask.shape)} for prompt values", why="It must be [b, length].")
    placing = prompt.placing
    before, placing.given = placing.given, "none" if values is None else (values, mask)
    try:
        yield
    finally:
        placing.given = before


def _check_values(prompt: SoftPrompt, values: Tensor) -> None:
    config = prompt.config
    width = prompt.layout.width(config.kind)
    if config.projection:
        raise MethodError(
            "a prompt with a projection cannot start from values",
            why="Its values come out of a network, and which network gives these cannot be said.",
            fix="projection: none",
        )
    if values.dim() != 2 or values.shape[1] != width:
        raise MethodError(
            f"values of shape {list(values.shape)} for a {config.kind} prompt of width {width}",
            why="They belong to a base of other sizes, or to the other kind of prompt.",
            fix="a prompt of this base and kind",
        )
    if len(values) != config.length:
        raise MethodError(
            f"a prompt of length {len(values)} cannot start one of length {config.length}",
            why="Which places to drop or repeat is not for anytune to guess.",
            fix=f"length: {len(values)}",
        )
    if not bool(values.isfinite().all()):
        raise MethodError(
            "the prompt holds NaN or infinity", why="Such a prompt answers nothing.", fix="tune it again"
        )


def _sizes(layout: PromptLayout) -> str:
    return (
        f"{layout.layers} layers of {layout.heads} heads of width {layout.head_dim}, words of width {layout.words}"
        f"{', writing text' if layout.doubled else ''}"
    )


def _inner(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model
