"""Anatomy: where the parts of a model sit, for each kind of model, as data.

A kind of model is one row of ``ANATOMIES``. Everything that has to know a tensor's name goes through here: which names
are the backbone (kept, hashed, moved by deltas), which are the pre-training head, which belong to a task, and by which
one name a tensor is known whatever class saved it. Adding a kind is adding a row.

Canonical names are those of the bare backbone (``BertModel``): ``bert.encoder.layer.0.output.LayerNorm.gamma`` and
``encoder.layer.0.output.LayerNorm.weight`` are both ``encoder.layer.0.output.LayerNorm.weight``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from anytune.errors import BaseError, unknown

#: TensorFlow-era names of layer norms, still found in files.
LEGACY_RENAMES = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))


@dataclass(frozen=True)
class Parts:
    """Names of tensors by the part they belong to, each in the order given."""

    backbone: tuple[str, ...]
    pretraining_head: tuple[str, ...]
    task_head: tuple[str, ...]
    #: masks and position tables that are made, not learned; tied copies
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class Anatomy:
    """One kind of model. Paths are attributes of the bare backbone unless said otherwise."""

    model_type: str
    #: the attribute that holds the backbone in models with a head, and the prefix of its names there
    prefix: str
    #: first components of canonical backbone names
    parts: tuple[str, ...]
    word_embeddings: str
    #: all that comes before the first block
    embeddings: tuple[str, ...]
    #: the list of blocks, first to last
    blocks: str
    #: sub-modules of one block
    attention: tuple[str, ...]
    feed_forward: tuple[str, ...]
    norms: tuple[str, ...]
    #: attributes of the pre-training model, called one after the other: hidden states -> logits
    pretraining_head: tuple[str, ...]
    objective: Literal["mlm", "clm"]
    #: all linear layers of a block, as PEFT matches them (by the end of a name)
    lora_targets: tuple[str, ...]
    #: a module that some classes drop and others make afresh
    pooler: str | None = None
    #: further first components of the pre-training class that are no task's
    extra_pretraining: tuple[str, ...] = ()
    #: endings of names that hold no learned weights
    ignored: tuple[str, ...] = ("position_ids", "token_type_ids", "rotary_emb.inv_freq")
    #: rows of the position table that hold no position (RoBERTa kinds count from their padding id + 1)
    position_offset: int = 0
    #: canonical name -> the canonical name it is tied to, inside the backbone
    tied: tuple[tuple[str, str], ...] = ()
    renames: tuple[tuple[str, str], ...] = LEGACY_RENAMES

    def canonical(self, name: str) -> str:
        """The one name of a tensor, whatever class wrote it; names outside the backbone only lose legacy spellings."""
        bare = name.removeprefix(f"{self.prefix}.")
        if bare.split(".", 1)[0] not in self.parts:
            bare = name
        for old, new in self.renames:
            if bare.endswith(old):
                bare = bare.removesuffix(old) + new
        return bare

    def is_backbone(self, name: str) -> bool:
        """Whether a name (in any spelling) belongs to the backbone, made-up buffers and tied copies included."""
        return self.canonical(name).split(".", 1)[0] in self.parts

    def is_ignored(self, name: str) -> bool:
        """Whether a name holds no weights of its own: position ids, masks, the second name of a tied tensor."""
        bare = self.canonical(name)
        return any(bare == end or bare.endswith(f".{end}") for end in self.ignored) or bare in dict(self.tied)

    def is_pooler(self, name: str) -> bool:
        """Whether a name belongs to the pooler, which a file or class may leave out."""
        return self.pooler is not None and self.canonical(name).startswith(f"{self.pooler}.")

    def is_pretraining_head(self, name: str) -> bool:
        """Whether a name belongs to the pre-training head (masked-word or next-word prediction)."""
        first = name.split(".", 1)[0]
        return not self.is_backbone(name) and first in {*self.pretraining_head, *self.extra_pretraining}

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

    def in_model(self, canonical: str) -> str:
        """The name a canonical backbone tensor has in a model with a head: ``encoder.x`` -> ``bert.encoder.x``."""
        return f"{self.prefix}.{canonical}"

    def backbone(self, model: Any) -> nn.Module:
        """The backbone of a task or pre-training model (of the model inside, for PEFT); a bare backbone is itself."""
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        return getattr(inner, self.prefix, inner)

    def pretraining_logits(self, model: Any, hidden: Tensor) -> Tensor:
        """Vocabulary logits [..., vocabulary] of the pre-training head for hidden states [..., width].

        Raises:
            BaseError: the model has no pre-training head (it is a task model or a bare backbone).
        """
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        for step in self.pretraining_head:
            layer = getattr(inner, step, None)
            if layer is None:
                raise BaseError(
                    f"{type(inner).__name__} has no '{step}'",
                    why="Only a pre-training model predicts words.",
                    fix="Base.pretraining_model(seed)",
                )
            hidden = layer(hidden)
        return hidden

    def block_modules(self, model: Any) -> list[nn.Module]:
        """The blocks (transformer layers) of a model, first to last."""
        return list(self.backbone(model).get_submodule(self.blocks).children())

    def depth(self, name: str) -> int | None:
        """How deep a named tensor sits: 0 for embeddings, i + 1 for block i, None for anything after the blocks."""
        bare = self.canonical(name)
        if bare.startswith(f"{self.blocks}."):
            return int(bare.removeprefix(f"{self.blocks}.").split(".", 1)[0]) + 1
        return 0 if any(bare == part or bare.startswith(f"{part}.") for part in self.embeddings) else None

    def bias_names(self, model: nn.Module) -> list[str]:
        """Names of the backbone's bias parameters in ``model``, layer norms included (what BitFit trains)."""
        return [name for name, _ in model.named_parameters() if name.endswith(".bias") and self.is_backbone(name)]


_BERT_BLOCK: dict[str, Any] = {
    "word_embeddings": "embeddings.word_embeddings.weight",
    "embeddings": ("embeddings",),
    "blocks": "encoder.layer",
    "attention": ("attention",),
    "feed_forward": ("intermediate", "output"),
    "norms": ("attention.output.LayerNorm", "output.LayerNorm"),
    "lora_targets": ("query", "key", "value", "intermediate.dense", "output.dense"),
    "pooler": "pooler",
    "parts": ("embeddings", "encoder", "pooler"),
    "objective": "mlm",
}

_ROWS = (
    Anatomy(model_type="bert", prefix="bert", pretraining_head=("cls",), **_BERT_BLOCK),
    Anatomy(model_type="roberta", prefix="roberta", pretraining_head=("lm_head",), position_offset=2, **_BERT_BLOCK),
    Anatomy(
        model_type="distilbert",
        prefix="distilbert",
        parts=("embeddings", "transformer"),
        word_embeddings="embeddings.word_embeddings.weight",
        embeddings=("embeddings",),
        blocks="transformer.layer",
        attention=("attention",),
        feed_forward=("ffn",),
        norms=("sa_layer_norm", "output_layer_norm"),
        pretraining_head=("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),
        objective="mlm",
        lora_targets=("q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"),
    ),
    Anatomy(
        model_type="llama",
        prefix="model",
        parts=("embed_tokens", "layers", "norm"),
        word_embeddings="embed_tokens.weight",
        embeddings=("embed_tokens",),
        blocks="layers",
        attention=("self_attn",),
        feed_forward=("mlp",),
        norms=("input_layernorm", "post_attention_layernorm"),
        pretraining_head=("lm_head",),
        objective="clm",
        lora_targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    ),
)

#: model_type -> anatomy. Adding a kind of model is adding a row above.
ANATOMIES: dict[str, Anatomy] = {row.model_type: row for row in _ROWS}


def anatomy_of(config_or_model: Any) -> Anatomy:
    """The anatomy of a model, a transformers config, or a ``model_type``.

    Raises:
        BaseError: the kind is not in the table; the error names the kinds that are.
    """
    config = getattr(config_or_model, "config", config_or_model)
    model_type = config if isinstance(config, str) else getattr(config, "model_type", None) or ""
    if model_type not in ANATOMIES:
        raise unknown("kind of model", model_type, ANATOMIES, BaseError)
    return ANATOMIES[model_type]
