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

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from anytune.errors import BaseError, MethodError
from anytune.models.anatomy import Anatomy, anatomy_of
from anytune.models.hyperprompt import HyperPrompt, reading_module, word_table
from anytune.models.insertion import (
    PROMPT_PLACES,
    Places,
    after_a_prompt,
    check_room,
    check_takes_vectors,
    checked_mask,
    cut_from,
    inputs_of,
    named_inputs,
    placed,
    position_rows,
    text_positions,
)
from anytune.models.layout import HYPERPROMPT


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
        inputs = named_inputs(module, args, kwargs)
        past = inputs.get("past_key_values")
        if past is not None and past.get_seq_length() > 0:
            return (), after_a_prompt(inputs, getattr(past, PROMPT_PLACES, 0))
        ids, embedded = inputs.get("input_ids"), inputs.get("inputs_embeds")
        read = ids if ids is not None else embedded
        if read is None:
            return None  # the model says what it misses
        mask = checked_mask(inputs.get("attention_mask"))
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
        # A pooler reads the first place, which a prompt in front has taken.
        return cut_from(output, places, module, repool=self.hyperprompt.config.position == "prepend")

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
        kind: Any = type(module)
        if "position_ids" not in inputs_of(kind):
            return None
        given, size, first = inputs.get("position_ids"), mask.shape[1], self.anatomy.position_offset
        rows = position_rows(module, self.anatomy)
        if rows is None and given is None and (not self.anatomy.causal or inputs.get("attention_mask") is None):
            return None
        text = text_positions(module, self.anatomy, inputs, mask).expand(mask.shape)
        steps = torch.arange(length, device=mask.device)
        in_front = self.anatomy.causal or self.hyperprompt.config.position == "prepend"
        if in_front:
            # what counts as padding keeps the place that such kinds have for it
            prompt, text = (steps + first).expand(len(mask), -1), torch.where(text >= first, text + length, text)
        else:
            prompt = ((text + 1) * mask.bool()).amax(dim=1).clamp(min=first).unsqueeze(1) + steps
        if rows is None:
            return text, prompt
        if size + length + first > rows or given is not None:
            needed = int(max((text * mask.bool()).max(), prompt.max())) + 1
            check_room(needed, rows, length, first, "a hypernetwork")
            text = text.clamp(max=rows - 1)  # of padding alone
        return text, prompt


# ---------------------------------------------------------------------- what others call


def attach(model: Any, hyperprompt: HyperPrompt, anatomy: Anatomy) -> None:
    """Make a model a prompted one, in place: ``model.hyperprompt`` writes a prompt for every text it is given.

    Copies of the model (``copy.deepcopy``) are prompted by their own copy of the hypernetwork.

    Raises:
        BaseError: the model has a hypernetwork already, has no word embeddings, or others than this was made for, or
            takes no vectors in their place.
    """
    inner = _inner(model)
    module = reading_module(inner, anatomy)
    if prompting_of(model) is not None:
        raise BaseError("the model has a hypernetwork already", why="It can read one prompt beside a text.")
    width = word_table(module).weight.shape[1]
    check_takes_vectors(module)
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
