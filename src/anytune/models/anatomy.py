"""Anatomy: where the parts of a model sit, for each kind of model, as data.

A kind of model is one row of ``ANATOMIES``; nothing else in anytune asks which kind it has before it. Adding a kind is
adding a row: what each field means stands in ``layout.Anatomy``, and the tests hold every row against a really made
model of its kind.
"""

from __future__ import annotations

from typing import Any

from anytune.errors import BaseError, nearest
from anytune.models.layout import Anatomy, Parts, Stack

__all__ = ["ANATOMIES", "Anatomy", "Parts", "Stack", "anatomy_of"]

#: BERT's blocks, which RoBERTa and ELECTRA have too.
_BERT_BLOCK: dict[str, Any] = {
    "word_embeddings": "embeddings.word_embeddings.weight",
    "position_table": "embeddings.position_embeddings",
    "blocks": "encoder.layer",
    "attention": ("attention",),
    "feed_forward": ("intermediate", "output"),
    "norms": ("attention.output.LayerNorm", "output.LayerNorm"),
    "lora_targets": ("query", "key", "value", "intermediate.dense", "output.dense"),
    "objective": "mlm",
}

_BERT: dict[str, Any] = {
    **_BERT_BLOCK,
    "embeddings": ("embeddings",),
    "parts": ("embeddings", "encoder", "pooler"),
    "pooler": "pooler",
}

#: Llama's layout, which the Qwen kinds share (their attention has biases or norms of its own inside).
_LLAMA: dict[str, Any] = {
    "prefix": "model",
    "parts": ("embed_tokens", "layers", "norm"),
    "word_embeddings": "embed_tokens.weight",
    "embeddings": ("embed_tokens",),
    "blocks": "layers",
    "attention": ("self_attn",),
    "feed_forward": ("mlp",),
    "norms": ("input_layernorm", "post_attention_layernorm"),
    "pretraining_head": ("lm_head",),
    "objective": "clm",
    "lora_targets": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "last_token_head": "score",
}

_ROWS = (
    Anatomy(model_type="bert", prefix="bert", pretraining_head=("cls",), **_BERT),
    Anatomy(model_type="roberta", prefix="roberta", pretraining_head=("lm_head",), position_offset=2, **_BERT),
    Anatomy(
        model_type="distilbert",
        prefix="distilbert",
        parts=("embeddings", "transformer"),
        word_embeddings="embeddings.word_embeddings.weight",
        embeddings=("embeddings",),
        position_table="embeddings.position_embeddings",
        blocks="transformer.layer",
        attention=("attention",),
        feed_forward=("ffn",),
        norms=("sa_layer_norm", "output_layer_norm"),
        pretraining_head=("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),
        objective="mlm",
        lora_targets=("q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"),
    ),
    Anatomy(
        model_type="electra",
        prefix="electra",
        parts=("embeddings", "embeddings_project", "encoder"),
        embeddings=("embeddings", "embeddings_project"),
        pretraining_head=("generator_predictions", "generator_lm_head"),
        # The published bases are discriminators: they hold this head, which has nothing to do with words.
        extra_pretraining=("discriminator_predictions",),
        **_BERT_BLOCK,
    ),
    Anatomy(
        model_type="deberta-v2",
        prefix="deberta",
        parts=("embeddings", "encoder"),
        # The table of relative positions, its norm and the convolution are shared by or feed into all blocks.
        embeddings=("embeddings", "encoder.rel_embeddings", "encoder.LayerNorm", "encoder.conv"),
        pretraining_head=("cls",),
        other_pretraining_heads=(("lm_predictions",),),
        given_embeddings=("lm_predictions",),
        extra_pretraining=("mask_predictions",),
        **{**_BERT_BLOCK, "lora_targets": ("query_proj", "key_proj", "value_proj", "intermediate.dense",
                                           "output.dense")},
    ),
    Anatomy(
        model_type="modernbert",
        prefix="model",
        parts=("embeddings", "layers", "final_norm"),
        word_embeddings="embeddings.tok_embeddings.weight",
        embeddings=("embeddings",),
        blocks="layers",
        attention=("attn",),
        feed_forward=("mlp",),
        norms=("attn_norm", "mlp_norm"),
        pretraining_head=("head", "decoder"),
        warm_head=("head",),
        objective="mlm",
        lora_targets=("attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo"),
    ),
    Anatomy(
        model_type="gpt2",
        prefix="transformer",
        parts=("wte", "wpe", "h", "ln_f"),
        word_embeddings="wte.weight",
        embeddings=("wte", "wpe"),
        position_table="wpe",
        blocks="h",
        attention=("attn",),
        feed_forward=("mlp",),
        norms=("ln_1", "ln_2"),
        pretraining_head=("lm_head",),
        objective="clm",
        lora_targets=("c_attn", "c_proj", "c_fc"),
        last_token_head="score",
        # Old files keep the causal mask of each block beside its weights.
        ignored=("attn.bias", "attn.masked_bias"),
        transposed=True,
    ),
    Anatomy(model_type="llama", **_LLAMA),
    Anatomy(model_type="qwen2", **_LLAMA),
    Anatomy(model_type="qwen3", **_LLAMA),
    Anatomy(
        model_type="t5",
        prefix="transformer",
        pretraining_prefix="",
        parts=("shared", "encoder", "decoder"),
        word_embeddings="shared.weight",
        embeddings=("shared",),
        blocks="encoder.block",
        attention=("layer.0.SelfAttention",),
        feed_forward=("layer.1.DenseReluDense",),
        norms=("layer.0.layer_norm", "layer.1.layer_norm"),
        decoder=Stack(
            blocks="decoder.block",
            attention=("layer.0.SelfAttention", "layer.1.EncDecAttention"),
            feed_forward=("layer.2.DenseReluDense",),
            norms=("layer.0.layer_norm", "layer.1.layer_norm", "layer.2.layer_norm"),
        ),
        pretraining_head=("lm_head",),
        scaled_by=("scale_decoder_outputs", "d_model"),
        objective="span",
        lora_targets=("q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo"),
        last_token_head="classification_head",
        left_out=("decoder",),  # token classification reads the encoder alone
        positions=None,
        tied=(("encoder.embed_tokens.weight", "shared.weight"), ("decoder.embed_tokens.weight", "shared.weight")),
        # A table that the first published files hold and no class has ever used.
        ignored=("layer.1.EncDecAttention.relative_attention_bias.weight",),
    ),
)  # fmt: skip

#: model_type -> anatomy. Adding a kind of model is adding a row above.
ANATOMIES: dict[str, Anatomy] = {row.model_type: row for row in _ROWS}


def anatomy_of(config_or_model: Any) -> Anatomy:
    """The anatomy of a model, a transformers config, or a ``model_type``.

    Raises:
        BaseError: the kind is not in the table; the error names the kinds that are, and how one is added.
    """
    config = getattr(config_or_model, "config", config_or_model)
    model_type = config if isinstance(config, str) else getattr(config, "model_type", None) or ""
    if model_type not in ANATOMIES:
        near = nearest(model_type, ANATOMIES)
        raise BaseError(
            f"unknown kind of model '{model_type}'",
            why=f"Known: {', '.join(sorted(ANATOMIES))}. Where the weights of another kind sit is not known; "
            "a row in anytune/models/anatomy.py would say it.",
            fix=near or "a base of one of these kinds",
        )
    return ANATOMIES[model_type]
