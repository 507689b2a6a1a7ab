"""How a kind of model is laid out: the fields of a row of ``anatomy.ANATOMIES``, and what can be asked of it.

Everything that has to know a tensor's name or a module's place goes through here: which names are the backbone (kept,
hashed, moved by deltas), which are the pre-training head, which belong to a task, and by which one name a tensor is
known whatever class saved it.

Canonical names are those of the bare backbone (``BertModel``): ``bert.encoder.layer.0.output.LayerNorm.gamma`` and
``encoder.layer.0.output.LayerNorm.weight`` are both ``encoder.layer.0.output.LayerNorm.weight``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from torch import Tensor, nn

from anytune import compat
from anytune.errors import BaseError

#: TensorFlow-era names of layer norms, still found in files.
LEGACY_RENAMES = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))
#: what a hypernetwork (``hyperprompt``) is called in every class that has one: it belongs to the backbone
HYPERPROMPT = "hyperprompt"
#: what a tuned soft prompt (``soft_prompts``) is called in every class that has one: it is a delta, never the backbone
SOFT_PROMPT = "soft_prompt"


def is_hyperprompt(name: str) -> bool:
    """Whether a tensor belongs to the hypernetwork of a prompted base, its frozen encoder included."""
    return name.startswith(f"{HYPERPROMPT}.")


@dataclass(frozen=True)
class Parts:
    """Names of tensors by the part they belong to, each in the order given."""

    backbone: tuple[str, ...]
    pretraining_head: tuple[str, ...]
    task_head: tuple[str, ...]
    #: masks and position tables that are made, not learned; tied copies
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class Stack:
    """A list of equal blocks and where the parts of one block sit, relative to it."""

    #: path of the list, first block to last
    blocks: str
    attention: tuple[str, ...]
    feed_forward: tuple[str, ...]
    norms: tuple[str, ...]


@dataclass(frozen=True)
class Anatomy:
    """One kind of model. Paths are attributes of the bare backbone unless said otherwise."""

    model_type: str
    #: the attribute that holds the backbone in models with a head, and the prefix of its names there
    prefix: str
    #: first components of canonical backbone names
    parts: tuple[str, ...]
    word_embeddings: str
    #: all that comes before the first block, and what all blocks share
    embeddings: tuple[str, ...]
    #: the list of blocks, first to last (of the encoder, where there is a decoder beside it)
    blocks: str
    #: sub-modules of one block; attention, feed-forward and norms together hold all its weights
    attention: tuple[str, ...]
    feed_forward: tuple[str, ...]
    norms: tuple[str, ...]
    #: attributes of the pre-training model, called one after the other: hidden states -> logits
    pretraining_head: tuple[str, ...]
    #: "mlm": guesses masked words; "clm": the next word; "span": writes what was cut out (an encoder-decoder)
    objective: Literal["mlm", "clm", "span"]
    #: all linear layers of a block, as PEFT matches them (by the end of a name)
    lora_targets: tuple[str, ...]
    #: the decoder's blocks of an encoder-decoder
    decoder: Stack | None = None
    #: the prefix in the pre-training model, where it is another one than in task models ("" for none)
    pretraining_prefix: str | None = None
    #: the same as ``pretraining_head`` for other settings of the kind; the first path that the model has is taken
    other_pretraining_heads: tuple[tuple[str, ...], ...] = ()
    #: steps of a head that are given the word-embedding module too
    given_embeddings: tuple[str, ...] = ()
    #: (flag, size) of the config: where the flag is set, hidden states are divided by sqrt(size) before the head
    scaled_by: tuple[str, str] | None = None
    #: further first components of the pre-training class that are no task's
    extra_pretraining: tuple[str, ...] = ()
    #: first components of the pre-training head that task models have too: they start from it, and it is their head's
    warm_head: tuple[str, ...] = ()
    #: attribute of the classification model that is given the last token's hidden state; None: it has its own way
    last_token_head: str | None = None
    #: a module that some classes drop and others make afresh
    pooler: str | None = None
    #: parts that some task classes lack although the file holds them
    left_out: tuple[str, ...] = ()
    #: endings of names that hold no learned weights
    ignored: tuple[str, ...] = ("position_ids", "token_type_ids", "rotary_emb.inv_freq")
    #: the config's name for the longest input; None where there is no limit
    positions: str | None = "max_position_embeddings"
    #: rows of the position table that hold no position (RoBERTa kinds count from their padding id + 1)
    position_offset: int = 0
    #: path of the table of learned positions; None for kinds with rotary or relative positions only
    position_table: str | None = None
    #: canonical name -> the canonical name it is tied to, inside the backbone
    tied: tuple[tuple[str, str], ...] = ()
    #: weights of linear layers are stored as [in, out]
    transposed: bool = False
    renames: tuple[tuple[str, str], ...] = LEGACY_RENAMES

    @property
    def causal(self) -> bool:
        """Whether a token sees only those to its left, everywhere in the model (a decoder)."""
        return self.objective == "clm"

    @property
    def encoder_decoder(self) -> bool:
        """Whether an encoder reads and a decoder writes."""
        return self.decoder is not None

    @cached_property
    def stacks(self) -> tuple[Stack, ...]:
        """The lists of blocks: one, or the encoder's and the decoder's."""
        own = Stack(self.blocks, self.attention, self.feed_forward, self.norms)
        return (own,) if self.decoder is None else (own, self.decoder)

    def canonical(self, name: str) -> str:
        """The one name of a tensor, whatever class wrote it; names outside the backbone only lose legacy spellings."""
        if is_hyperprompt(name):
            return name
        bare = name.removeprefix(f"{self.prefix}.")
        if bare.split(".", 1)[0] not in self.parts:
            bare = name
        for old, new in self.renames:
            if bare.endswith(old):
                bare = bare.removesuffix(old) + new
        return bare

    def is_backbone(self, name: str) -> bool:
        """Whether a name (in any spelling) belongs to the backbone, made-up buffers and tied copies included.

        So does a hypernetwork's: without its prompts the weights compute something else.
        """
        return is_hyperprompt(name) or self.canonical(name).split(".", 1)[0] in self.parts

    def is_ignored(self, name: str) -> bool:
        """Whether a name holds no weights of its own: position ids, masks, the second name of a tied tensor."""
        bare = self.canonical(name)
        return any(bare == end or bare.endswith(f".{end}") for end in self.ignored) or bare in dict(self.tied)

    def is_pooler(self, name: str) -> bool:
        """Whether a name belongs to the pooler, which a file or class may leave out."""
        return self.pooler is not None and self.canonical(name).startswith(f"{self.pooler}.")

    def may_be_left_out(self, name: str) -> bool:
        """Whether a class may lack a backbone tensor of the file: the pooler, or a part some tasks do without."""
        return self.is_pooler(name) or self.canonical(name).split(".", 1)[0] in self.left_out

    def is_pretraining_head(self, name: str) -> bool:
        """Whether a name belongs to the pre-training head (prediction of masked, next or cut-out words)."""
        return not self.is_backbone(name) and name.split(".", 1)[0] in self._head_parts

    @cached_property
    def _head_parts(self) -> frozenset[str]:
        others = (step for path in self.other_pretraining_heads for step in path)
        return frozenset((*self.pretraining_head, *others, *self.extra_pretraining))

    def is_warm_head(self, name: str) -> bool:
        """Whether a name is of the part of the pre-training head that task models start from."""
        return not self.is_backbone(name) and name.split(".", 1)[0] in self.warm_head

    def split(self, names: Iterable[str]) -> Parts:
        """Sort names into backbone, pre-training head, task head, and names without weights of their own."""
        parts: dict[str, list[str]] = {"backbone": [], "pretraining_head": [], "task_head": [], "ignored": []}
        for name in names:
            if self.is_ignored(name):
                parts["ignored"].append(name)
            elif self.is_backbone(name):
                parts["backbone"].append(name)
            elif self.is_pretraining_head(name):
                parts["pretraining_head"].append(name)
            else:
                parts["task_head"].append(name)
        return Parts(**{part: tuple(found) for part, found in parts.items()})

    def in_model(self, canonical: str, pretraining: bool = False) -> str:
        """The name a canonical backbone tensor has in a model with a head: ``encoder.x`` -> ``bert.encoder.x``.

        Args:
            canonical: name in the bare backbone.
            pretraining: of the pre-training model, which for T5 kinds holds the backbone's parts itself.
        """
        if is_hyperprompt(canonical):
            return canonical
        prefix = self.pretraining_prefix if pretraining and self.pretraining_prefix is not None else self.prefix
        return f"{prefix}.{canonical}" if prefix else canonical

    def backbone(self, model: Any) -> nn.Module:
        """The backbone of a task or pre-training model (of the model inside, for PEFT).

        A bare backbone is itself, and so is a model that holds the backbone's parts without a module around them (T5's
        pre-training class).
        """
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        return getattr(inner, self.prefix, inner)

    def writer(self, model: Any) -> nn.Module:
        """The module whose first output is the model's last hidden states [b, n, width] in every pass it makes.

        The backbone; of an encoder-decoder its decoder, around which a model that writes has no backbone. A model that
        tags words has the encoder alone.
        """
        body = self.backbone(model)
        part = "" if self.decoder is None else self.decoder.blocks.partition(".")[0]
        return getattr(body, part) if part and hasattr(body, part) else body

    def pretraining_logits(self, model: Any, hidden: Tensor) -> Tensor:
        """Vocabulary logits [..., vocabulary] of the pre-training head for hidden states [..., width].

        Raises:
            BaseError: the model has no pre-training head (it is a task model or a bare backbone).
        """
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        paths = (self.pretraining_head, *self.other_pretraining_heads)
        path = next((one for one in paths if all(getattr(inner, step, None) is not None for step in one)), None)
        if path is None:
            absent = next(step for step in self.pretraining_head if getattr(inner, step, None) is None)
            raise BaseError(
                f"{type(inner).__name__} has no '{absent}'",
                why="Only a pre-training model predicts words.",
                fix="Base.pretraining_model(seed)",
            )
        if self.scaled_by and getattr(inner.config, self.scaled_by[0], False):
            hidden = hidden * getattr(inner.config, self.scaled_by[1]) ** -0.5
        for step in path:
            layer = getattr(inner, step)
            more = (self.backbone(inner).get_submodule(self.word_module),) if step in self.given_embeddings else ()
            hidden = layer(hidden, *more)
        return hidden

    @property
    def word_module(self) -> str:
        """The path of the word-embedding module."""
        return self.word_embeddings.removesuffix(".weight")

    def block_modules(self, model: Any) -> list[nn.Module]:
        """The blocks (transformer layers) of a model, first to last; an encoder's before a decoder's."""
        return [block for _, blocks in self.block_stacks(model) for block in blocks]

    def block_stacks(self, model: Any) -> list[tuple[Stack, list[nn.Module]]]:
        """Each list of blocks with what it says about one block; a decoder that the model lacks is left out."""
        backbone = self.backbone(model)
        first = {stack: stack.blocks.split(".", 1)[0] for stack in self.stacks}
        return [
            (stack, list(backbone.get_submodule(stack.blocks).children()))
            for stack in self.stacks
            if hasattr(backbone, first[stack])
        ]

    def encoder_and_decoder(self, model: Any) -> tuple[nn.Module, nn.Module]:
        """The two halves of an encoder-decoder."""
        backbone = self.backbone(model)
        encoder, decoder = (backbone.get_submodule(stack.blocks.split(".", 1)[0]) for stack in self.stacks)
        return encoder, decoder

    def linear_maps(self, model: Any, within: Literal["attention", "all"] = "all") -> list[str]:
        """Names of the linear maps of a block, relative to it, each once: those of attention, or all.

        PEFT matches them by the end of a name, so each means the same map in every block.
        """
        found: dict[str, None] = {}
        for stack, blocks in self.block_stacks(model):
            for name, module in blocks[0].named_modules():
                inside = within == "all" or any(name.startswith(f"{part}.") for part in stack.attention)
                if inside and isinstance(module, compat.linear_types()):
                    found[name] = None
        return list(found)

    def depth(self, name: str) -> int | None:
        """How deep a named tensor sits: 0 for embeddings, i + 1 for block i, None for anything after the blocks.

        Encoder and decoder count each for itself: every decoder block reads the encoder's last, so neither is the
        other's beginning.
        """
        bare = self.canonical(name)
        for stack in self.stacks:
            if bare.startswith(f"{stack.blocks}."):
                return int(bare.removeprefix(f"{stack.blocks}.").split(".", 1)[0]) + 1
        return 0 if any(bare == part or bare.startswith(f"{part}.") for part in self.embeddings) else None

    def bias_names(self, model: nn.Module) -> list[str]:
        """Names of the backbone's bias parameters in ``model``, layer norms included (what BitFit trains)."""
        return [name for name, _ in model.named_parameters() if name.endswith(".bias") and self.is_backbone(name)]
