"""A model that reads a written prompt beside each text: the hypernetwork's hooks on a plain transformers model.

``attach`` hangs two hooks on the part of a model that is given the text. The first looks the words up, puts the prompt
among them, and extends mask, segments and positions; the second takes the prompt's places off the output again. So
heads, losses, metrics and PEFT see a model as they know it, and outputs as long as the text.

Where the prompt stands:

- after the first token (so heads that read the first place read the text's), in front, or after the last token;
- a decoder's always stands in front: a token sees only those before it.

Positions: kinds with a position table keep the text's own positions, and the prompt takes those after the text's last
token, unless it stands in front; then it takes the first ones, and the text those after them. Kinds with rotary or
relative positions count what stands in the row.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from anytune.errors import BaseError, DataError, MethodError
from anytune.models.anatomy import Anatomy, anatomy_of
from anytune.models.hyperprompt import HyperPrompt, reading_module, word_table
from anytune.models.layout import HYPERPROMPT

#: the mark on a cache whose first places hold prompts: how many
PROMPT_PLACES = "anytune_prompt_places"


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


class Prompting:
    """The two hooks of a prompted model, and what is said to them while it runs."""

    def __init__(self, hyperprompt: HyperPrompt, anatomy: Anatomy) -> None:
        self.hyperprompt, self.anatomy = hyperprompt, anatomy
        #: prompts in place of written ones, "none" for no prompt
        self.given: Tensor | Literal["none"] | None = None
        #: [b, S]: what the hypernetwork may read
        self.allowed: Tensor | None = None
        self._places: Places | None = None

    def before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """The forward pre-hook: the inputs with the prompt among them."""
        self._places = None
        if isinstance(self.given, str):
            return None
        inputs = dict(zip(_inputs_of(_kind(module)), args, strict=False)) | kwargs
        past = inputs.get("past_key_values")
        if past is not None and past.get_seq_length() > 0:
            return (), _after_a_prompt(inputs, getattr(past, PROMPT_PLACES, 0))
        ids, embedded = inputs.get("input_ids"), inputs.get("inputs_embeds")
        read = ids if ids is not None else embedded
        if read is None:
            return None  # the model says what it misses
        mask = inputs.get("attention_mask")
        if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
            raise DataError(
                f"a prompted base was given a ready-made attention mask ({_shape(mask)})",
                why="Its prompt needs places in the mask, and only a mask with one number for each token has room.",
                fix="the tokenizer's attention_mask [rows, tokens]; generate() without a static cache",
            )
        prompt = self._prompt(read, mask)
        if embedded is None:
            embedded = word_table(module)(ids)
        prompt = prompt.to(embedded)
        shown = torch.ones(read.shape[:2], dtype=torch.long, device=read.device) if mask is None else mask
        places = placed(shown, prompt.shape[1], "prepend" if self.anatomy.causal else self.hyperprompt.config.position)
        changed = {**inputs, "input_ids": None, "inputs_embeds": places.join(embedded, prompt)}
        if mask is not None:
            changed["attention_mask"] = places.join(mask, mask.new_ones(len(mask), prompt.shape[1]))
        segments = inputs.get("token_type_ids")
        if segments is not None:
            changed["token_type_ids"] = places.join(segments, segments[:, :1].expand(-1, prompt.shape[1]))
        positions = self._positions(module, inputs, shown, prompt.shape[1])
        if positions is not None:
            changed["position_ids"] = places.join(*positions)
        self._places = places
        return (), changed

    def after(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """The forward hook: the output without the prompt's places."""
        places, self._places = self._places, None
        if places is None:
            return output
        if isinstance(output, tuple):
            return (places.cut(output[0]), *output[1:])
        hidden = places.cut(output.last_hidden_state)
        output["last_hidden_state"] = hidden
        # A pooler reads the first place, which a prompt in front has taken.
        if output.get("pooler_output") is not None and self.hyperprompt.config.position == "prepend":
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
            setattr(past, PROMPT_PLACES, places.order.shape[1] - places.text.shape[1])
        return output

    def _prompt(self, read: Tensor, mask: Tensor | None) -> Tensor:
        """Prompts [b, L, d]: those given, or written for what is read."""
        rows = len(read)
        if not isinstance(self.given, Tensor):
            if self.allowed is not None and self.allowed.shape != read.shape[:2]:
                raise MethodError(
                    f"which tokens may be read was said for {list(self.allowed.shape)}, the batch is "
                    f"{list(read.shape[:2])}",
                    why="It must say so for each token of the batch.",
                )
            return self.hyperprompt(read, mask, self.allowed)
        given = self.given if self.given.dim() == 3 else self.given.unsqueeze(0)
        if len(given) not in (1, rows) or given.shape[2] != self.hyperprompt.components.shape[2]:
            raise MethodError(
                f"prompts of shape {list(self.given.shape)} were given for {rows} texts",
                why=f"They must be [{rows}, length, {self.hyperprompt.components.shape[2]}].",
            )
        return given.expand(rows, -1, -1)

    def _positions(self, module: Any, inputs: Mapping[str, Any], mask: Tensor, length: int) -> Any:
        """Positions of the text [b, S] and of the prompt [b, L]; None where the model counts rightly by itself."""
        if "position_ids" not in _inputs_of(_kind(module)):
            return None
        given, size = inputs.get("position_ids"), mask.shape[1]
        table = self.anatomy.position_table and _submodule(module, self.anatomy.position_table)
        if not isinstance(table, nn.Embedding):
            if given is None and (not self.anatomy.causal or inputs.get("attention_mask") is None):
                return None
            table = None
        first = self.anatomy.position_offset
        if given is not None:
            text = given.expand(mask.shape)
        elif self.anatomy.causal:
            text = (mask.cumsum(dim=1) - 1).clamp(min=0)
        elif first and inputs.get("input_ids") is not None:
            # RoBERTa kinds count the tokens that are no padding, whatever the mask says.
            real = inputs["input_ids"].ne(first - 1).long()
            text = real.cumsum(dim=1) * real + first - 1
        else:
            text = torch.arange(first, first + size, device=mask.device).expand(mask.shape)
        steps = torch.arange(length, device=mask.device)
        in_front = self.anatomy.causal or self.hyperprompt.config.position == "prepend"
        if in_front:
            # what counts as padding keeps the place that such kinds have for it
            prompt, text = (steps + first).expand(len(mask), -1), torch.where(text >= first, text + length, text)
        else:
            prompt = ((text + 1) * mask.bool()).amax(dim=1).clamp(min=first).unsqueeze(1) + steps
        if table is None:
            return text, prompt
        rows = table.weight.shape[0]
        if size + length + first > rows or given is not None:
            self._check_room(int(max((text * mask.bool()).max(), prompt.max())) + 1, rows, length)
            text = text.clamp(max=rows - 1)  # of padding alone
        return text, prompt

    def _check_room(self, needed: int, rows: int, length: int) -> None:
        if needed > rows:
            room = rows - self.anatomy.position_offset - length
            raise DataError(
                f"a text and its prompt of {length} places need {needed - self.anatomy.position_offset} positions, "
                f"the base has {rows - self.anatomy.position_offset}",
                why="Every token and every place of the prompt has a position of its own.",
                fix=f"max_length: {room}   (in pre-training block_size: {room})"
                if room > 0
                else f"a hypernetwork with a length below {rows - self.anatomy.position_offset}",
            )


def _after_a_prompt(inputs: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Inputs that go on from a cache whose first ``length`` places hold prompts."""
    changed = dict(inputs)
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    if length and isinstance(mask, Tensor) and mask.dim() == 2:
        changed["attention_mask"] = torch.cat([mask.new_ones(len(mask), length), mask], dim=1)
    if length and positions is not None:
        changed["position_ids"] = positions + length
    return changed


def _shape(mask: Any) -> str:
    return str(list(mask.shape)) if isinstance(mask, Tensor) else type(mask).__name__


@cache
def _inputs_of(kind: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(kind.forward).parameters)[1:]


def _kind(module: Any) -> Any:
    return type(module)


def _submodule(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


# ---------------------------------------------------------------------- what others call


def attach(model: Any, hyperprompt: HyperPrompt, anatomy: Anatomy) -> None:
    """Make a model a prompted one, in place: ``model.hyperprompt`` writes a prompt for every text it is given.

    Copies of the model (``copy.deepcopy``) are prompted by their own copy of the hypernetwork.

    Raises:
        BaseError: the model has a hypernetwork already, has no word embeddings, or others than this was made for.
    """
    inner = _inner(model)
    module = reading_module(inner, anatomy)
    if prompting_of(model) is not None:
        raise BaseError("the model has a hypernetwork already", why="It can read one prompt beside a text.")
    width = word_table(module).weight.shape[1]
    if width != hyperprompt.components.shape[2]:
        raise BaseError(
            f"the hypernetwork writes prompts of width {hyperprompt.components.shape[2]}, words of the base have "
            f"{width}",
            why="A prompt stands among the words.",
            fix="a hypernetwork made for this base",
        )
    weight = word_table(module).weight
    hyperprompt.to(weight.device)
    hyperprompt.train(model.training)
    inner.add_module(HYPERPROMPT, hyperprompt)
    hooks = Prompting(hyperprompt, anatomy)
    module.register_forward_pre_hook(hooks.before, with_kwargs=True)
    module.register_forward_hook(hooks.after, with_kwargs=True)


def prompting_of(model: Any) -> Prompting | None:
    """The hooks of a prompted model, also through PEFT and of a bare backbone; None for a bare model."""
    inner = _inner(model)
    config = getattr(inner, "config", None)
    if getattr(config, "model_type", None) is None:
        return None
    module = inner if _own(inner) is not None else reading_module(inner, anatomy_of(config))
    return _own(module)


def hyperprompt_of(model: Any) -> HyperPrompt | None:
    """The hypernetwork of a prompted model, also through PEFT; None for a bare one."""
    hooks = prompting_of(model)
    return None if hooks is None else hooks.hyperprompt


@contextmanager
def given_prompt(model: Any, prompt: Tensor | Literal["none"]) -> Iterator[None]:
    """Inside, the model reads these prompts in place of those its hypernetwork would write.

    Args:
        model: a prompted model; with "none" a bare one is fine too.
        prompt: [b, L, d], or [L, d] for all texts, of any length; gradients flow into it. "none": no prompt, and the
            answers of the bare model bit for bit.

    Raises:
        MethodError: prompts for a model that has no place for them.
    """
    hooks = prompting_of(model)
    if hooks is None:
        if not isinstance(prompt, str):
            raise MethodError("a prompt was given to a bare model", why="Only a model with a hypernetwork reads one.")
        yield
        return
    before, hooks.given = hooks.given, prompt
    try:
        yield
    finally:
        hooks.given = before


@contextmanager
def reading(model: Any, mask: Tensor | None) -> Iterator[None]:
    """Inside, the hypernetwork of a model reads only these tokens [b, S] of the batches the model is given.

    A bare model is left as it is; None leaves what was said before.
    """
    hooks = None if mask is None else prompting_of(model)
    if hooks is None:
        yield
        return
    before, hooks.allowed = hooks.allowed, mask
    try:
        yield
    finally:
        hooks.allowed = before


def within_pass(model: Any, hidden: Tensor) -> Tensor:
    """What a block gives inside a pass of the model, [b, S + L, ...], without the prompt's places: [b, S, ...].

    For hooks on the blocks of the part that reads the text; where no prompt is read (a bare model, a decoder beside
    its encoder), it is ``hidden`` itself.
    """
    hooks = prompting_of(model)
    return hidden if hooks is None or hooks._places is None else hooks._places.cut(hidden)


def _inner(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _own(module: Any) -> Prompting | None:
    hooks = getattr(module, "_forward_pre_hooks", {}).values()
    return next((hook.__self__ for hook in hooks if isinstance(getattr(hook, "__self__", None), Prompting)), None)
