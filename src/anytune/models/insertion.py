"""Places beside a text: how a row of vectors gets among the words a model reads, and off its output again.

Shared by the prompts of a hypernetwork (``prompted``) and by tuned soft prompts (``soft_prompts``).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from anytune.errors import BaseError, DataError
from anytune.models.anatomy import Anatomy

#: the marks on a cache whose first places hold prompts: how many, of a hypernetwork's and of a tuned one
PROMPT_PLACES = "anytune_prompt_places"
SOFT_PROMPT_PLACES = "anytune_soft_prompt_places"


@dataclass(frozen=True)
class Places:
    """Where text and prompt stand in a row. ``order`` [b or 1, S + L] counts through the text, then the prompt."""

    order: Tensor
    #: [b or 1, S]: where each place of the text went
    text: Tensor

    def join(self, text: Tensor, prompt: Tensor) -> Tensor:
        """[b, S, ...] and [b, L, ...] -> [b, S + L, ...]."""
        return _gathered(torch.cat([text, prompt], dim=1), self.order)

    def cut(self, joined: Tensor) -> Tensor:
        """[b, S + L, ...] -> the text's [b, S, ...]."""
        return _gathered(joined, self.text)


def _gathered(values: Tensor, places: Tensor) -> Tensor:
    index = places.expand(len(values), -1).reshape(len(values), -1, *[1] * (values.dim() - 2))
    return values.gather(1, index.expand(-1, -1, *values.shape[2:]))


def placed(mask: Tensor, length: int, position: Literal["after_first", "prepend", "append"]) -> Places:
    """Where a prompt of ``length`` stands beside texts with the attention mask ``mask`` [b, S].

    After the last token means before the padding on the right: so padding changes no distance.
    """
    size, device = mask.shape[1], mask.device
    text = torch.arange(size, device=device).unsqueeze(0)
    prompt = torch.arange(size, size + length, device=device).unsqueeze(0)
    if position == "prepend":
        order = torch.cat([prompt, text], dim=1)
    elif position == "after_first":
        order = torch.cat([text[:, :1], prompt, text[:, 1:]], dim=1)
    else:
        ends = text_ends(mask)
        late = (text >= ends.unsqueeze(1)).to(torch.uint8) * 2
        keys = torch.cat([late, torch.ones(len(mask), length, dtype=torch.uint8, device=device)], dim=1)
        order = keys.argsort(dim=1, stable=True)
    return Places(order, order.argsort(dim=1)[:, :size])


def text_ends(mask: Tensor) -> Tensor:
    """The place [b] after each row's last token; 0 for a row of padding."""
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (mask.bool() * places).amax(dim=1)


def text_positions(module: Any, anatomy: Anatomy, inputs: Mapping[str, Any], mask: Tensor) -> Tensor:
    """The positions [b, S] that a model gives the tokens it is handed, before any prompt.

    Those given; a decoder's count what the mask shows; RoBERTa kinds count the tokens that are no padding; all others
    count the places.

    Args:
        module: the part of the model that is given the text.
        anatomy: of its kind.
        inputs: what it is given.
        mask: of ones and zeros [b, S], or [b, P + S] where P tokens stand in a cache already.
    """
    given, first = inputs.get("position_ids"), anatomy.position_offset
    read = inputs["input_ids"] if inputs.get("input_ids") is not None else inputs["inputs_embeds"]
    rows, size = read.shape[:2]
    if given is not None:
        return given.expand(rows, size)
    if anatomy.causal:
        return (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -size:].expand(rows, size)
    if first and inputs.get("input_ids") is not None:
        # RoBERTa kinds count the tokens that are no padding, whatever the mask says.
        real = read.ne(first - 1).long()
        return real.cumsum(dim=1) * real + first - 1
    return torch.arange(first, first + size, device=mask.device).expand(rows, size)


def position_rows(module: Any, anatomy: Anatomy) -> int | None:
    """The rows of a model's table of learned positions; None for a model without one."""
    table = anatomy.position_table and submodule(module, anatomy.position_table)
    return table.weight.shape[0] if isinstance(table, nn.Embedding) else None


def check_room(needed: int, rows: int, length: int, offset: int, shorter: str) -> None:
    """Refuse a text and its prompt that need more positions than the base has.

    Args:
        needed: positions of text and prompt, ``offset`` included.
        rows: of the position table.
        length: of the prompt.
        offset: rows of the table that hold no position.
        shorter: what to ask for where the prompt alone is too long.

    Raises:
        DataError: ``needed`` > ``rows``.
    """
    if needed > rows:
        room = rows - offset - length
        raise DataError(
            f"a text and its prompt of {length} places need {needed - offset} positions, the base has {rows - offset}",
            why="Every token and every place of the prompt has a position of its own.",
            fix=f"max_length: {room}   (in pre-training block_size: {room})"
            if room > 0
            else f"{shorter} with a length below {rows - offset}",
        )


def cut_from(output: Any, places: Places, module: Any, repool: bool, mark: str = PROMPT_PLACES) -> Any:
    """A model's output without the prompt's places.

    Args:
        output: what the module gave; a tuple stays one.
        places: where text and prompt stand.
        module: the part of the model that was given the text; its pooler is asked again with ``repool``.
        repool: whether the prompt took the place that the pooler reads.
        mark: what the cache is to say it by.
    """
    if isinstance(output, tuple):
        return (places.cut(output[0]), *output[1:])
    hidden = places.cut(output.last_hidden_state)
    output["last_hidden_state"] = hidden
    if output.get("pooler_output") is not None and repool:
        output["pooler_output"] = module.pooler(hidden)
    if output.get("hidden_states") is not None:
        output["hidden_states"] = tuple(places.cut(layer) for layer in output["hidden_states"])
    if output.get("attentions") is not None:
        output["attentions"] = tuple(
            places.cut(places.cut(layer.movedim(1, -1)).transpose(1, 2)).transpose(1, 2).movedim(-1, 1)
            for layer in output["attentions"]
        )
    past = output.get("past_key_values")
    if past is not None:
        setattr(past, mark, places.order.shape[1] - places.text.shape[1])
    return output


def after_a_prompt(inputs: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Inputs that go on from a cache whose first ``length`` places hold prompts."""
    changed = dict(inputs)
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    if length and isinstance(mask, Tensor) and mask.dim() == 2:
        changed["attention_mask"] = torch.cat([mask.new_ones(len(mask), length), mask], dim=1)
    if length and positions is not None:
        changed["position_ids"] = positions + length
    return changed


def checked_mask(mask: Any) -> Tensor | None:
    """An attention mask with one number for each token, or None.

    Raises:
        DataError: it is a ready-made one.
    """
    if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
        found = str(list(mask.shape)) if isinstance(mask, Tensor) else type(mask).__name__
        raise DataError(
            f"a prompted base was given a ready-made attention mask ({found})",
            why="Its prompt needs places in the mask, and only a mask with one number for each token has room.",
            fix="the tokenizer's attention_mask [rows, tokens]; generate() without a static cache",
        )
    return mask


@cache
def inputs_of(kind: Any) -> tuple[str, ...]:
    """The named inputs of a module class's forward, in order."""
    return tuple(inspect.signature(kind.forward).parameters)[1:]


def named_inputs(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What a module is called with, by name."""
    kind: Any = type(module)
    return dict(zip(inputs_of(kind), args, strict=False)) | dict(kwargs)


def check_takes_vectors(module: Any) -> None:
    """A prompt is a row of vectors: what reads the text must take those in place of token ids.

    Raises:
        BaseError: it does not.
    """
    kind: Any = type(module)
    if "inputs_embeds" not in inputs_of(kind):
        raise BaseError(
            f"{kind.__name__} takes no inputs_embeds",
            why="A prompt stands among the words as vectors, and this model reads token ids alone.",
            fix="a base that takes them, or a method without prompts in the input (for tuning also kind: deep)",
        )


def submodule(module: Any, path: str) -> Any:
    """The module at a dotted path, or None."""
    for name in path.split("."):
        module = getattr(module, name, None)
    return module
