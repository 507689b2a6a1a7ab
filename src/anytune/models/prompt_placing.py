"""Hooks that put a soft prompt into every pass of a model.

Deep prompts stand beside the text in every layer's attention (``prompt_attention``); input prompts stand in front of
the words. Either way outputs are as long as the text, so heads, losses and metrics see a model as they know it, and
the text's positions start after the prompt's, as in PEFT and P-tuning v2.

Rows may have prompts of different length: padded in front, with a mask. Every text then starts after its own prompt,
and distances between prompt and text are those of the shorter prompt alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from anytune import compat
from anytune.errors import BaseError, MethodError
from anytune.models.anatomy import Anatomy
from anytune.models.hyperprompt import reading_module, word_table
from anytune.models.insertion import (
    SOFT_PROMPT_PLACES,
    Places,
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
from anytune.models.prompt_attention import (
    CARRIED,
    Beside,
    LayerPrompts,
    OwnAttention,
    attends_by_registry,
    route,
    self_attentions,
    unroute,
)
from anytune.models.prompted import prompting_of

#: values and which of their places count; "none" for no prompt; None for the model's own
Given = tuple[Tensor, Tensor | None] | Literal["none"] | None


class Placing:
    """What deep and input prompts share: whose values a pass takes, and where the text's positions start."""

    def __init__(self, prompt: Any, anatomy: Anatomy) -> None:
        self.prompt, self.anatomy = prompt, anatomy
        self.given: Given = None

    def hang(self, model: Any) -> None:
        """Put the hooks on a model."""
        raise NotImplementedError

    def take_off(self, model: Any) -> None:
        """Take every hook off a model again (also off a copy of the model it was put on)."""
        for module in model.modules():
            for hooks, flags in (
                (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
                (module._forward_hooks, module._forward_hooks_with_kwargs),
            ):
                for key, hook in list(hooks.items()):
                    if isinstance(getattr(hook, "__self__", None), (Placing, OwnAttention, _Handing)):
                        del hooks[key]
                        flags.pop(key, None)
            unroute(module)

    def values(self, rows: int) -> tuple[Tensor, Tensor | None] | None:
        """Values [b or 1, n, w] for a pass over ``rows`` texts, and which of their places count [b, n]."""
        if isinstance(self.given, str):
            return None
        values, mask = (self.prompt.values(), None) if self.given is None else self.given
        values = values if values.dim() == 3 else values.unsqueeze(0)
        if len(values) not in (1, rows) or mask is not None:
            values, mask = _for_rows(values, rows), None if mask is None else _for_rows(mask.bool(), rows)
        if self.prompt.training and self.prompt.config.dropout:
            values = functional.dropout(values.expand(rows, -1, -1), self.prompt.config.dropout)
        return values, mask

    def positions(self, module: Any, inputs: Mapping[str, Any], length: int, mask: Tensor | None) -> Tensor | None:
        """Where the text [b, S] stands after the prompt; None where the kind counts no positions of its own."""
        kind: Any = type(module)
        if "position_ids" not in inputs_of(kind):
            return None
        read = inputs["input_ids"] if inputs.get("input_ids") is not None else inputs["inputs_embeds"]
        past, shown = inputs.get("past_key_values"), inputs.get("attention_mask")
        seen = past.get_seq_length() if past is not None else 0
        if not isinstance(shown, Tensor) or shown.dim() != 2:
            shown = torch.ones(len(read), seen + read.shape[1], dtype=torch.long, device=read.device)
        first = self.anatomy.position_offset
        text = text_positions(module, self.anatomy, inputs, shown)
        offset = length if mask is None else mask.sum(dim=1, keepdim=True)
        # what counts as padding keeps the place that such kinds have for it
        text = torch.where(text >= first, text + offset, text)
        rows = position_rows(module, self.anatomy)
        if rows is None:
            return text
        if seen + read.shape[1] + length + first > rows or inputs.get("position_ids") is not None:
            check_room(int((text * shown[:, -text.shape[1] :].bool()).max()) + 1, rows, length, first, "a prompt")
            text = text.clamp(max=rows - 1)  # of padding alone
        return text


class DeepPlacing(Placing):
    """A key and a value for every layer, where attention is looked up in transformers' registry."""

    #: the attention module that knows the biases of relative positions (T5 kinds)
    _biases: Any = None

    def hang(self, model: Any) -> None:
        """Route every layer's attention; of an encoder-decoder its decoder's."""
        attentions = self_attentions(self.anatomy, model)
        for index, module in enumerate(attentions):
            route(module, index)
        site = self.anatomy.backbone(model)
        if self.anatomy.encoder_decoder:
            stack, _ = self.anatomy.block_stacks(model)[-1]
            site, self._biases = site.get_submodule(stack.blocks.split(".", 1)[0]), attentions[0]
        site.register_forward_pre_hook(self.before, with_kwargs=True)

    def before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """The forward pre-hook: the pass carries its prompt, and the text's positions start after it."""
        found = self.carried(module, args, kwargs)
        return None if found is None else ((), {**found[0], CARRIED: found[1]})

    def carried(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[dict[str, Any], LayerPrompts] | None:
        """The inputs with the text's positions, and the prompt for the layers; None for a pass without a prompt."""
        inputs = named_inputs(module, args, kwargs)
        read = inputs["input_ids"] if inputs.get("input_ids") is not None else inputs.get("inputs_embeds")
        found = None if read is None else self.values(len(read))
        if found is None:
            return None
        values, mask = found
        positions = self.positions(module, inputs, values.shape[1], mask)
        if positions is not None:
            inputs["position_ids"] = positions
        return inputs, LayerPrompts.of(values, mask, self.prompt.layout, self._biases)


class OwnDeepPlacing(DeepPlacing):
    """The same where a model attends in its own way (DeBERTa): each layer is handed its prompt."""

    _pass: LayerPrompts | None = None

    def hang(self, model: Any) -> None:
        """Put hooks on the model, on its layers, and on their attention."""
        for module in self_attentions(self.anatomy, model):
            OwnAttention().hang(module)
        for index, block in enumerate(self.anatomy.block_modules(model)):
            block.register_forward_pre_hook(_Handing(self, index).before, with_kwargs=True)
        site = self.anatomy.backbone(model)
        site.register_forward_pre_hook(self.before, with_kwargs=True)
        site.register_forward_hook(self.after)

    def before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """The forward pre-hook: the text's positions, and what the layers are to be handed."""
        self._pass = None
        found = self.carried(module, args, kwargs)
        if found is None:
            return None
        inputs, self._pass = found
        return (), inputs

    def after(self, module: Any, args: Any, output: Any) -> None:
        """The forward hook: the pass is over."""
        self._pass = None


class _Handing:
    """Hands a layer its prompt. Outside of what gradient checkpointing runs again, so it is that of its own pass."""

    def __init__(self, placing: OwnDeepPlacing, layer: int) -> None:
        self.placing, self.layer = placing, layer

    def before(self, module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        prompt = self.placing._pass
        if prompt is None:
            return None
        return args, {**kwargs, "rel_embeddings": Beside(kwargs.get("rel_embeddings"), prompt, self.layer)}


class InputPlacing(Placing):
    """Vectors in front of the words.

    A head that reads a text by its first place reads the prompt's first, as with PEFT. What an encoder makes of the
    prompt is handed to its decoder, also as with PEFT; otherwise outputs hold the text's places alone.
    """

    #: places of the running pass, and where the prompt's first is if not in front
    _places: Places | None = None
    _first: Tensor | None = None
    #: whether the head reads the first of the last hidden states
    _reads_first = False
    _has_decoder = False

    def hang(self, model: Any) -> None:
        """Put hooks on what reads the text, and on the decoder beside it."""
        module = reading_module(model, self.anatomy)
        check_takes_vectors(module)
        self._has_decoder = len(self.anatomy.block_stacks(model)) > 1
        if self._has_decoder and prompting_of(model) is not None:
            raise BaseError(
                "an input prompt cannot stand beside a hypernetwork's on an encoder-decoder",
                why="The decoder reads the one's places and not the other's.",
                fix="kind: deep",
            )
        module.register_forward_pre_hook(self.before, with_kwargs=True)
        # before others' hooks: a hypernetwork's prompt stands around, and is taken off last
        module.register_forward_hook(self.after, with_kwargs=True, prepend=True)
        if self._has_decoder:
            _, decoder = self.anatomy.encoder_and_decoder(model)
            decoder.register_forward_pre_hook(self.before_decoder, with_kwargs=True)
        self._reads_first = (
            not self.anatomy.causal
            and not self.anatomy.encoder_decoder
            and compat.classifier_class(type(model.config)) is type(model)
            and getattr(module, "pooler", None) is None
            and getattr(model.config, "classifier_pooling", "cls") == "cls"
        )

    def before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """The forward pre-hook: the inputs with the prompt in front."""
        self._places = self._first = None
        inputs = named_inputs(module, args, kwargs)
        past = inputs.get("past_key_values")
        ids, embedded = inputs.get("input_ids"), inputs.get("inputs_embeds")
        read = ids if ids is not None else embedded
        if read is None:
            return None  # the model says what it misses
        if past is not None and past.get_seq_length() > 0:
            return (), self._going_on(module, inputs, read, getattr(past, SOFT_PROMPT_PLACES, 0))
        found = self.values(len(read))
        if found is None:
            return None
        prompt, counted = found
        mask = checked_mask(inputs.get("attention_mask"))
        embedded = word_table(module)(ids) if embedded is None else embedded
        prompt = prompt.to(embedded).expand(len(read), -1, -1)
        length = prompt.shape[1]
        shown = torch.ones(read.shape[:2], dtype=torch.long, device=read.device) if mask is None else mask
        places = placed(shown, length, "prepend")
        changed = {**inputs, "input_ids": None, "inputs_embeds": places.join(embedded, prompt)}
        if mask is not None or counted is not None:
            front = shown.new_ones(len(read), length) if counted is None else counted.to(shown.dtype)
            changed["attention_mask"] = places.join(shown, front)
        if inputs.get("token_type_ids") is not None:
            segments = inputs["token_type_ids"]
            changed["token_type_ids"] = places.join(segments, segments.new_zeros(len(read), length))
        text = self.positions(module, inputs, length, counted)
        if text is not None:
            steps = torch.arange(length, device=read.device).expand(len(read), -1)
            steps = steps if counted is None else (counted.cumsum(dim=1) - 1).clamp(min=0)
            changed["position_ids"] = places.join(text, steps + self.anatomy.position_offset)
        self._places, self._first = places, None if counted is None else length - counted.sum(dim=1)
        return (), changed

    def _going_on(self, module: Any, inputs: dict[str, Any], read: Tensor, length: int) -> dict[str, Any]:
        """Inputs that go on from a cache whose first ``length`` places hold the prompt."""
        if not length:
            return inputs
        counted = self.given[1] if isinstance(self.given, tuple) else None
        counted = None if counted is None else _for_rows(counted.bool(), len(read))
        mask = checked_mask(inputs.get("attention_mask"))
        if mask is None:
            size = inputs["past_key_values"].get_seq_length() - length + read.shape[1]
            mask = torch.ones(len(read), size, dtype=torch.long, device=read.device)
        front = mask.new_ones(len(read), length) if counted is None else counted.to(mask.dtype)
        changed = {**inputs, "attention_mask": torch.cat([front, mask], dim=1)}
        text = self.positions(module, {**inputs, "attention_mask": mask}, length, counted)
        return changed if text is None else {**changed, "position_ids": text}

    def after(self, module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        """The forward hook: the output without the prompt's places."""
        places, self._places = self._places, None
        if places is None or self._has_decoder:
            return output
        joined = output[0]
        first = (
            joined[:, 0]
            if self._first is None
            else joined[torch.arange(len(joined), device=joined.device), self._first]
        )
        output = cut_from(output, places, module, repool=False, mark=SOFT_PROMPT_PLACES)
        if isinstance(output, tuple):
            return (self._headed(output[0], first), *output[1:])
        output["last_hidden_state"] = self._headed(output.last_hidden_state, first)
        if self._first is not None and output.get("pooler_output") is not None:
            output["pooler_output"] = module.pooler(first.unsqueeze(1))
        return output

    def _headed(self, text: Tensor, first: Tensor) -> Tensor:
        """Hidden states [b, S, d] whose first place is the prompt's first, for heads that read it."""
        return torch.cat([first.unsqueeze(1), text[:, 1:]], dim=1) if self._reads_first else text

    def before_decoder(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        """The forward pre-hook of the decoder: its mask of what was read has places for the prompt."""
        inputs = named_inputs(module, args, kwargs)
        read, mask = inputs.get("encoder_hidden_states"), inputs.get("encoder_attention_mask")
        counted = self.given[1] if isinstance(self.given, tuple) else None
        if read is None or (mask is None and counted is None):
            return None
        length = read.shape[1] - mask.shape[1] if mask is not None else counted.shape[1]  # type: ignore[union-attr]
        if length <= 0:
            return None
        text = mask if mask is not None else read.new_ones(len(read), read.shape[1] - length)
        front = text.new_ones(len(read), length) if counted is None else _for_rows(counted, len(read)).to(text.dtype)
        return (), {**inputs, "encoder_attention_mask": torch.cat([front, text], dim=1)}


def placing_for(prompt: Any, model: Any, anatomy: Anatomy) -> Placing:
    """The hooks that a prompt needs on a model."""
    if prompt.config.kind == "input":
        return InputPlacing(prompt, anatomy)
    attention = self_attentions(anatomy, model)[0]
    own = not attends_by_registry(attention) and hasattr(attention, "key_proj") and hasattr(attention, "pos_dropout")
    return (OwnDeepPlacing if own else DeepPlacing)(prompt, anatomy)


def _for_rows(values: Tensor, rows: int) -> Tensor:
    """Rows [k, ...] repeated one after the other to ``rows``, as a beam search repeats its texts.

    Raises:
        MethodError: they cannot be.
    """
    if len(values) == rows:
        return values
    if rows % len(values):
        raise MethodError(
            f"prompts for {len(values)} texts were given to {rows} texts", why="Each text has a prompt of its own."
        )
    return values.repeat_interleave(rows // len(values), dim=0)
