"""Keys and values of a deep prompt inside a model's attention.

Most kinds ask transformers' registry for the function that attends; a prompted layer asks for ours, which puts the
prompt's keys and values in front and calls the one the model would have called. So a prompt needs no cache: it is in
every pass, also where a cache is thrown away (gradient checkpointing) or grows (generation), and its keys are never
rotated or counted among the text's.

DeBERTa attends in its own way: there the first places of keys and values are exchanged, and relative distances count
the prompt as the places before the text.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anytune import compat
from anytune.errors import BaseError
from anytune.models.soft_prompt_config import PromptLayout

#: what the registry knows our function by
PROMPTED = "anytune_soft_prompt"
#: the name under which a pass hands its prompt down to the layers
CARRIED = "soft_prompt"
#: on an attention module: where it stands and the config it had
_ROUTE = "_soft_prompt_route"


@dataclass(frozen=True)
class LayerPrompts:
    """The keys and values of one pass: ``slots`` [2L, b or 1, heads, n, head width]."""

    slots: Tensor
    #: [b, n]: which places hold a prompt; None for all
    mask: Tensor | None
    layout: PromptLayout
    #: the attention module that knows the biases of relative positions (T5 kinds)
    biases: Any = None

    @classmethod
    def of(cls, values: Tensor, mask: Tensor | None, layout: PromptLayout, biases: Any = None) -> LayerPrompts:
        """Values [b or 1, n, 2L * heads * head width] as PEFT and P-tuning v2 lay them out."""
        rows, length, _ = values.shape
        slots = values.view(rows, length, 2 * layout.layers, layout.heads, layout.head_dim)
        return cls(slots.permute(2, 0, 3, 1, 4), mask, layout, biases)

    def layer(self, index: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Key and value [b, heads, n, head width] of a layer, for the batch and dtype of ``like``."""
        key, value = (self.slots[slot].to(like.dtype).expand(len(like), -1, -1, -1) for slot in
                      self.layout.slots(index))  # fmt: skip
        return key, value


@dataclass(frozen=True)
class _Route:
    config: Any
    layer: int


def self_attentions(anatomy: Any, model: Any) -> list[nn.Module]:
    """The modules that attend to the text itself, first layer to last: of an encoder-decoder those of its decoder."""
    stack, blocks = anatomy.block_stacks(model)[-1]
    found = [block.get_submodule(stack.attention[0]) for block in blocks]
    return [getattr(module, "self", module) for module in found]


def attends_by_registry(module: Any) -> bool:
    """Whether an attention module asks transformers' registry for the function that attends."""
    return hasattr(sys.modules[type(module).__module__], "eager_attention_forward") and hasattr(module, "config")


def route(module: Any, layer: int) -> None:
    """Let an attention module ask for our function. Copies of it do, too.

    Raises:
        BaseError: it does not ask.
    """
    if not attends_by_registry(module):
        raise BaseError(
            f"{type(module).__name__} of this transformers attends in a way of its own",
            why="Deep prompts need a place among its keys and values.",
            fix="kind: input   (prompts in front of the words), or a newer transformers",
        )
    compat.register_attention(PROMPTED, prompted_attention)
    setattr(module, _ROUTE, _Route(module.config, layer))
    module.config = copy.copy(module.config)
    module.config._attn_implementation = PROMPTED


def unroute(module: Any) -> None:
    """Take ``route`` back."""
    if hasattr(module, _ROUTE):
        module.config = getattr(module, _ROUTE).config
        delattr(module, _ROUTE)


def prompted_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> Any:
    """Attention [b, queries, heads, head width] over the prompt of this pass and the text; of the text alone where
    there is none.

    Args as transformers hands them to such functions; ``soft_prompt`` is the pass's ``LayerPrompts``.
    """
    placed: _Route = getattr(module, _ROUTE)
    attend = compat.attention_function(module, placed.config)
    prompt: LayerPrompts | None = kwargs.pop(CARRIED, None)
    if prompt is None:
        return attend(module, query, key, value, attention_mask, **kwargs)
    front = prompt.layer(placed.layer, key)
    length, queries, keys = front[0].shape[2], query.shape[2], key.shape[2]
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    mask = with_prompt(attention_mask, prompt.mask, length, queries, keys, bool(causal), query)
    if kwargs.get("position_bias") is not None and prompt.biases is not None:
        bias = prompt.biases.compute_bias(queries, length, key.device, length + keys - queries)
        kwargs["position_bias"] = torch.cat([bias.to(query.dtype), kwargs["position_bias"]], dim=-1)
    key, value = torch.cat([front[0], key], dim=2), torch.cat([front[1], value], dim=2)
    return attend(module, query, key, value, mask, **kwargs)


def with_prompt(
    mask: Any, shown: Tensor | None, length: int, queries: int, keys: int, causal: bool, like: Tensor
) -> Tensor | None:
    """An attention mask with columns for the prompt in front.

    Args:
        mask: None, [b, keys] of ones and zeros, or [b or 1, heads or 1, queries, keys]: true or added to the scores.
        shown: [b, n], which places hold a prompt; None for all.
        length: n.
        queries, keys: of the text.
        causal: whether a query sees no later key where no mask says what it sees.
        like: dtype and device of the scores.

    Raises:
        BaseError: the mask is of another form.
    """
    if mask is None:
        if not (causal and queries > 1):
            if shown is None:
                return None
            mask = torch.ones(1, 1, 1, keys, dtype=torch.bool, device=like.device)
        else:
            mask = torch.ones(queries, keys, dtype=torch.bool, device=like.device).tril()[None, None]
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
        raise BaseError(
            f"deep prompts cannot extend a mask of the form {type(mask).__name__}",
            why="Its columns are the places of the text, and the prompt needs some, too.",
            fix='attn_implementation="sdpa"',
        )
    if mask.dim() == 2:
        front = mask.new_ones(len(mask), length) if shown is None else shown.to(mask.dtype)
        return torch.cat([front.expand(len(mask), -1), mask], dim=1)
    rows = len(mask) if shown is None else max(len(mask), len(shown))
    size = (rows, mask.shape[1], mask.shape[2], length)
    if mask.dtype == torch.bool:
        front = mask.new_ones(1, 1, 1, length) if shown is None else shown[:, None, None, :]
    else:
        front = mask.new_zeros(1, 1, 1, length)
        if shown is not None:
            hidden = ~shown[:, None, None, :]
            front = front.expand(len(shown), -1, -1, -1).masked_fill(hidden, torch.finfo(mask.dtype).min)
    return torch.cat([front.expand(size), mask.expand(rows, -1, -1, -1)], dim=3)


# ---------------------------------------------------------------------- DeBERTa


@dataclass(frozen=True)
class Beside:
    """What a layer is handed in place of its relative embeddings: these, and the pass's prompt."""

    embeddings: Tensor | None
    prompt: LayerPrompts
    layer: int


class OwnAttention:
    """Hooks on an attention module that computes its scores itself (DeBERTa's).

    The hidden states get n places in front; what the key and value maps give there is exchanged for the prompt; and
    the places are taken off what comes out. Queries of these places are computed and thrown away.
    """

    def __init__(self) -> None:
        self._key: Tensor | None = None
        self._value: Tensor | None = None
        self._length = 0

    def hang(self, module: Any) -> None:
        """Put the hooks on."""
        module.register_forward_pre_hook(self.before, with_kwargs=True)
        module.register_forward_hook(self.after)
        module.key_proj.register_forward_hook(self.keys)
        module.value_proj.register_forward_hook(self.values)

    def before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """The attention module's inputs with room for the prompt."""
        self._length = 0
        beside = kwargs.get("rel_embeddings")
        if not isinstance(beside, Beside):
            return None
        hidden, mask, *more = args
        key, value = beside.prompt.layer(beside.layer, hidden)
        self._key, self._value = (one.transpose(1, 2).flatten(2) for one in (key, value))
        self._length = length = key.shape[2]
        joined = torch.cat([hidden.new_zeros(len(hidden), length, hidden.shape[2]), hidden], dim=1)
        wide = nn.functional.pad(mask, (length, 0, length, 0), value=1)
        if beside.prompt.mask is not None:
            wide = wide.expand(len(hidden), -1, -1, -1).clone()
            wide[..., :length] = beside.prompt.mask[:, None, None, :].to(wide.dtype)
        # without distances given, the module counts those of the joined row
        return (joined, wide, *more), {**kwargs, "rel_embeddings": beside.embeddings, "relative_pos": None}

    def keys(self, module: Any, args: Any, output: Tensor) -> Tensor | None:
        """The first call of the key map is that for the hidden states; later ones are for distances."""
        key, self._key = self._key, None
        return None if key is None else torch.cat([key.to(output.dtype), output[:, key.shape[1] :]], dim=1)

    def values(self, module: Any, args: Any, output: Tensor) -> Tensor | None:
        """The prompt's values in the first places."""
        value, self._value = self._value, None
        return None if value is None else torch.cat([value.to(output.dtype), output[:, value.shape[1] :]], dim=1)

    def after(self, module: Any, args: Any, output: Any) -> Any:
        """The text's places of what comes out."""
        length, self._length = self._length, 0
        return (output[0][:, length:], *output[1:]) if length else output
