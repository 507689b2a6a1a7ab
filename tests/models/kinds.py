"""Tiny random bases of every kind of model, each with a tokenizer of the family its kind really has.

``make_kind("gpt2", folder)`` writes what a hub folder holds: config.json, model.safetensors with the pre-training
head, and a fast tokenizer. What makes the kinds hard to handle is kept as it is in real ones:

- gpt2 has no padding token, and one token for begin and end of text; llama has no padding token and puts a
  begin-of-text token in front; qwen2 and qwen3 pad with the end-of-text token and put nothing in front;
- roberta counts positions from its padding id + 1; deberta-v2 has relative positions and no position table;
- t5 has sentinels, one embedding for encoder and decoder, and a head tied to it ("t5-gated": an own, unscaled head);
- gpt2 keeps its weights transposed.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from anytune import compat
from tests.conftest import COMMON, TOPICS

#: kinds of the same row that differ in their settings: name -> model_type
VARIANTS = {"t5-gated": "t5"}
KINDS = (
    "bert",
    "roberta",
    "distilbert",
    "electra",
    "deberta-v2",
    "modernbert",
    "gpt2",
    "llama",
    "qwen2",
    "qwen3",
    "t5",
)
ENCODERS = KINDS[:6]
DECODERS = KINDS[6:10]
#: the longest input of the kinds that have a position table
POSITIONS = 64
WORDS = (*COMMON, *(word for group in TOPICS.values() for word in group))
SENTINELS = 20


def make_kind(kind: str, folder: Path, seed: int = 0, **settings: Any) -> Path:
    """Write a tiny random base of a kind (2 blocks, width 16) and its tokenizer; returns the folder.

    Args:
        kind: one of ``KINDS`` or ``VARIANTS``.
        folder: made if missing.
        seed: of the weights; bases of two seeds have the same shapes and tokenizer.
        settings: put over the config's own (``tie_word_embeddings=False`` ...).
    """
    folder = Path(folder)
    tokenizer = make_tokenizer(kind)
    model = make_model(kind, len(tokenizer), seed, **settings)
    with compat.quiet_transformers():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_model(kind: str, vocabulary_size: int, seed: int = 0, purpose: str = "pretraining", **settings: Any) -> Any:
    """A random model of a kind in eval mode: with its pre-training head, or "backbone"."""
    import transformers

    config = make_config(kind, vocabulary_size, **settings)
    cls = transformers.AutoModelForMaskedLM
    if kind in DECODERS:
        cls = transformers.AutoModelForCausalLM
    elif VARIANTS.get(kind, kind) == "t5":
        cls = transformers.AutoModelForSeq2SeqLM
    cls = transformers.AutoModel if purpose == "backbone" else cls
    with compat.seeded(seed), compat.quiet_transformers():
        model = cls.from_config(config)
        # Norms and biases start at exact ones and zeros, which would hide mistakes.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.05)
            if kind == "t5-gated" and purpose == "pretraining":
                # Its config says "tied" all the same; what the file holds decides.
                model.lm_head.weight = torch.nn.Parameter(torch.randn(model.lm_head.weight.shape) * 0.05)
                model.all_tied_weights_keys.pop("lm_head.weight")
    return model.eval()


def make_config(kind: str, vocabulary_size: int, **settings: Any) -> Any:
    """The transformers config of a tiny model of a kind."""
    import transformers as t

    sizes: dict[str, Any] = {
        "vocab_size": vocabulary_size, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": POSITIONS,
    }  # fmt: skip
    small: dict[str, Any] = {"vocab_size": vocabulary_size}
    # The table of a real T5 is longer than its vocabulary.
    t5 = {"vocab_size": -(-vocabulary_size // 16) * 16, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2,
          "num_heads": 2, "relative_attention_num_buckets": 8,
          "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}  # fmt: skip
    deberta = {"relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True,
               "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "type_vocab_size": 0,
               "max_relative_positions": -1}  # fmt: skip
    qwen = {**sizes, "num_key_value_heads": 1, "eos_token_id": 0, "bos_token_id": 0, "tie_word_embeddings": True}
    rows: dict[str, tuple[Any, dict[str, Any]]] = {
        "bert": (t.BertConfig, sizes),
        "roberta": (t.RobertaConfig, {**sizes, "max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1,
                                      "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}),
        "distilbert": (t.DistilBertConfig, {**small, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32,
                                            "max_position_embeddings": POSITIONS}),
        # A small ELECTRA projects narrower embeddings up, as the real small one does.
        "electra": (t.ElectraConfig, {**sizes, "embedding_size": 8}),
        "deberta-v2": (t.DebertaV2Config, {**sizes, **deberta, "pooler_hidden_size": 16}),
        "modernbert": (t.ModernBertConfig, {**sizes, "pad_token_id": 3, "cls_token_id": 0, "sep_token_id": 1,
                                            "bos_token_id": 0, "eos_token_id": 1, "local_attention": 8,
                                            "attn_implementation": "sdpa"}),
        "gpt2": (t.GPT2Config, {**small, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": POSITIONS,
                                "bos_token_id": 0, "eos_token_id": 0}),
        "llama": (t.LlamaConfig, {**sizes, "num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2,
                                  "tie_word_embeddings": True}),
        "qwen2": (t.Qwen2Config, qwen),
        "qwen3": (t.Qwen3Config, {**qwen, "head_dim": 8}),
        "t5": (t.T5Config, t5),
        "t5-gated": (t.T5Config, {**t5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    }  # fmt: skip
    cls, chosen = rows[kind]
    return cls(**{**chosen, **settings})


def make_tokenizer(kind: str) -> Any:
    """A fast tokenizer of the family a kind has, which knows the words of the tiny task whole."""
    makers = {
        "bert": _wordpiece, "electra": _wordpiece, "distilbert": _wordpiece, "roberta": _roberta,
        "modernbert": _modernbert, "gpt2": _gpt2, "llama": _llama, "qwen2": _qwen, "qwen3": _qwen, "t5": _t5,
        "deberta-v2": _deberta,
    }  # fmt: skip
    return makers[VARIANTS.get(kind, kind)](kind)


def _wordpiece(kind: str) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    letters = string.ascii_lowercase
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    words += [piece for letter in letters for piece in (letter, f"##{letter}") if piece not in words]
    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = ["input_ids", "attention_mask"] if kind == "distilbert" else None
    return _fast(tokenizer, ("[CLS]", "[SEP]"), names or ["input_ids", "token_type_ids", "attention_mask"],
                 pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
                 mask_token="[MASK]")  # fmt: skip


def _byte_level(first: Sequence[str], last: Sequence[str] = ()) -> Any:
    """Byte-level BPE: all 256 bytes, and merges that build the words of the tiny task from left to right."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    space = "\u0120"
    merges: dict[tuple[str, str], None] = {}
    pieces = [*first, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    for word in (f"{space}{word}" for word in WORDS):
        for end in range(1, len(word)):
            merges.setdefault((word[:end], word[end]), None)
    pieces += [left + right for left, right in merges]
    ids = {piece: index for index, piece in enumerate(dict.fromkeys([*pieces, *last]))}
    tokenizer = Tokenizer(models.BPE(ids, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _roberta(_: str) -> Any:
    return _fast(_byte_level(["<s>", "<pad>", "</s>", "<unk>"], ["<mask>"]), ("<s>", "</s>", "</s> </s>"),
                 bos_token="<s>", cls_token="<s>", eos_token="</s>", sep_token="</s>", pad_token="<pad>",
                 unk_token="<unk>", mask_token="<mask>")  # fmt: skip


def _modernbert(_: str) -> Any:
    return _fast(_byte_level(["[CLS]", "[SEP]", "[UNK]", "[PAD]", "[MASK]"]), ("[CLS]", "[SEP]"),
                 cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]", pad_token="[PAD]",
                 mask_token="[MASK]")  # fmt: skip


def _gpt2(_: str) -> Any:
    end = "<|endoftext|>"
    return _fast(_byte_level([end]), None, bos_token=end, eos_token=end, unk_token=end)


def _llama(_: str) -> Any:
    return _fast(_byte_level(["<unk>", "<s>", "</s>"]), ("<s>", None), bos_token="<s>", eos_token="</s>",
                 unk_token="<unk>")  # fmt: skip


def _qwen(_: str) -> Any:
    end = "<|endoftext|>"
    return _fast(_byte_level([end, "<|im_start|>", "<|im_end|>"]), None, eos_token=end, pad_token=end,
                 additional_special_tokens=["<|im_start|>", "<|im_end|>"])  # fmt: skip


def _unigram(first: Sequence[str], last: Sequence[str], unknown: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    space, scores = "\u2581", dict.fromkeys(first, 0.0)
    scores |= {f"{space}{word}": -3.0 for word in WORDS}
    scores |= dict.fromkeys((space, *string.ascii_lowercase, *string.digits, *".,?!"), -9.0)
    scores |= dict.fromkeys(last, 0.0)
    tokenizer = Tokenizer(models.Unigram(list(scores.items()), unk_id=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=space)
    tokenizer.decoder = decoders.Metaspace(replacement=space)
    return tokenizer


def _t5(_: str) -> Any:
    sentinels = [f"<extra_id_{index}>" for index in range(SENTINELS)]
    tokenizer = _unigram(["<pad>", "</s>", "<unk>"], sentinels[::-1], unknown=2)
    return _fast(tokenizer, (None, "</s>"), pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
                 additional_special_tokens=sentinels)  # fmt: skip


def _deberta(_: str) -> Any:
    tokenizer = _unigram(["[PAD]", "[CLS]", "[SEP]", "[UNK]"], ["[MASK]"], unknown=3)
    return _fast(tokenizer, ("[CLS]", "[SEP]"), ["input_ids", "token_type_ids", "attention_mask"], bos_token="[CLS]",
                 cls_token="[CLS]", eos_token="[SEP]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]",
                 mask_token="[MASK]")  # fmt: skip


def _fast(tokenizer: Any, around: Sequence[str | None] | None, inputs: list[str] | None = None, **special: Any) -> Any:
    """The transformers tokenizer; ``around``: what stands before and after a text, and between two if that differs."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    if around is not None:
        begin, end, *between = around
        middle = between[0] if between else end or begin
        both = [token for token in (begin, end) if token]
        single = " ".join(filter(None, (begin, "$A", end)))
        pair = " ".join(filter(None, (begin, "$A", middle, "$B:1", f"{end}:1" if end else None)))
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=[(token, tokenizer.token_to_id(token)) for token in both]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=POSITIONS,
        model_input_names=inputs or ["input_ids", "attention_mask"], **special,
    )  # fmt: skip
