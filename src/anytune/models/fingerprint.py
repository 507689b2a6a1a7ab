"""Fingerprints: which base this is, by content and not by name or file.

Three hashes, because three different things can change:

- ``backbone``: every learned tensor of the backbone under its canonical name, in its stored dtype. The same weights
  give the same hash whatever files hold them (one or many shards, with or without the class's prefix, with or without
  a pre-training or task head). A delta belongs to a backbone hash.
- ``config``: the settings that change what the weights compute, those of a hypernetwork included. The raw file also
  carries library versions and label names, so it is no identity.
- ``vocabulary``: tokens with ids, merges, normaliser, pre-tokeniser, special tokens. Tokenizer files also carry
  truncation and padding state, which is no identity either.

A pooler is part of the backbone where the file holds one: two files that differ only in having a pooler are two bases,
since a task model would use it from one and draw it at random for the other.

Hashes of folders are cached by the files' path, size, time and inode. The cache may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anytune.errors import AnytuneError, BaseError
from anytune.manifests import PARTIAL_PREFIX, caches_written, digest, write_atomic
from anytune.models.anatomy import Anatomy, anatomy_of
from anytune.models.hyperprompt_config import HyperPromptConfig, read_settings
from anytune.models.layout import HYPERPROMPT
from anytune.models.weights import HYPERPROMPT_SETTINGS, INDEX_FILE, StoredWeights, read_json, weight_files

CACHE_FORMAT = 1
#: Files younger than this when they were hashed may change again within the clock's grain: their hash is not trusted.
SETTLED_SECONDS = 1.0
#: Files that hold a vocabulary; where none of them is, transformers makes an empty tokenizer without a word.
VOCABULARY_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spm.model", "sentencepiece.bpe.model",
                    "spiece.model", "tokenizer.model")  # fmt: skip
TOKENIZER_FILES = (*VOCABULARY_FILES, "merges.txt", "tokenizer_config.json", "special_tokens_map.json",
                   "added_tokens.json", "chat_template.jinja")  # fmt: skip

#: The config keys that change what the weights compute; each is hashed where the config has it.
CONFIG_KEYS = (
    "model_type", "vocab_size", "hidden_size", "dim", "n_embd", "d_model", "embedding_size",
    "num_hidden_layers", "n_layers", "n_layer", "num_layers", "num_decoder_layers",
    "num_attention_heads", "n_heads", "n_head", "num_heads", "num_key_value_heads", "head_dim", "d_kv",
    "intermediate_size", "hidden_dim", "n_inner", "d_ff", "hidden_act", "activation", "activation_function",
    "hidden_activation", "feed_forward_proj", "is_gated_act", "mlp_bias", "attention_bias", "attention_multiplier",
    "max_position_embeddings", "n_positions", "n_ctx", "position_embedding_type", "sinusoidal_pos_embds",
    "rope_theta", "rope_scaling", "rope_parameters", "relative_attention", "relative_attention_num_buckets",
    "relative_attention_max_distance", "pos_att_type", "share_att_key", "norm_rel_ebd", "position_biased_input",
    "max_relative_positions", "position_buckets", "talking_head", "layer_norm_eps", "layer_norm_epsilon",
    "rms_norm_eps", "norm_eps", "type_vocab_size", "pad_token_id", "is_decoder", "add_cross_attention",
    "tie_word_embeddings", "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn",
    "sliding_window", "use_sliding_window", "layer_types", "embedding_multiplier", "residual_multiplier",
    "logits_scaling", "chunk_size_feed_forward", "local_attention", "global_attn_every_n_layers", "norm_bias",
    "conv_kernel_size", "conv_groups", "conv_act", "dense_act_fn", "scale_decoder_outputs", "decoder_start_token_id",
)  # fmt: skip


@dataclass(frozen=True)
class Fingerprint:
    """The three hashes of a base (SHA-256, hex). ``vocabulary`` is empty where the folder has no tokenizer."""

    backbone: str
    config: str
    vocabulary: str


def tensor_hash(name: str, tensor: Tensor) -> str:
    """SHA-256 over a tensor's canonical name, dtype, shape and raw bytes."""
    head = json.dumps([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)])
    state = hashlib.sha256(head.encode() + b"\n")
    raw: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    state.update(raw)
    return state.hexdigest()


def fingerprint_state(state: Mapping[str, Tensor], anatomy: Anatomy, leave_out: Mapping[str, Any] | Any = ()) -> str:
    """The backbone hash of a state dict (or of a folder's ``StoredWeights``), read one tensor at a time.

    Args:
        state: name -> tensor; names with or without the class's prefix.
        anatomy: of the model's kind.
        leave_out: names to ignore, such as a freshly made pooler (``head_names`` of a task model).

    Raises:
        BaseError: no backbone tensor is there, or two names mean the same tensor.
    """
    left_out, hashes = set(leave_out), {}
    for name in state:
        if name in left_out or not anatomy.is_backbone(name) or anatomy.is_ignored(name):
            continue
        tensor = state[name]
        if not tensor.is_floating_point():
            continue
        bare = anatomy.canonical(name)
        if bare in hashes:
            raise BaseError(f"'{name}' and another name both stand for '{bare}'", why="Only one can be the weight.")
        hashes[bare] = tensor_hash(bare, tensor)
    if not hashes:
        raise BaseError(
            f"no {anatomy.model_type} backbone among {len(state)} tensors ({', '.join(list(state)[:3])} ...)",
            why=f"Backbone names start with {', '.join(anatomy.parts)} or '{anatomy.prefix}.'.",
        )
    return digest(hashes)


def fingerprint_config(config: Any, hyperprompt: HyperPromptConfig | None = None) -> str:
    """The hash of the settings that change the function.

    Args:
        config: a transformers config.
        hyperprompt: the settings of a prompted base's hypernetwork.
    """
    values = config.to_dict()
    kept = {key: values[key] for key in CONFIG_KEYS if values.get(key) is not None}
    return digest(kept if hyperprompt is None else {**kept, HYPERPROMPT: asdict(hyperprompt)})


def fingerprint_vocabulary(tokenizer: Mapping[str, Any]) -> str:
    """The hash of a vocabulary; ``tokenizer`` is the content of ``tokenizer.json``, whatever its truncation state."""
    model = tokenizer.get("model") or {}
    keys = ("type", "vocab", "merges", "unk_token", "unk_id", "continuing_subword_prefix", "end_of_word_suffix",
            "byte_fallback", "ignore_merges")  # fmt: skip
    kept = {key: model[key] for key in keys if model.get(key) not in (None, False)}
    # Older files write a merge as "a b", newer ones as ["a", "b"].
    if kept.get("merges"):
        kept["merges"] = [merge.split(" ", 1) if isinstance(merge, str) else list(merge) for merge in kept["merges"]]
    added = sorted(
        ([token.get(key) for key in ("id", "content", "special", "lstrip", "rstrip", "single_word", "normalized")]
         for token in tokenizer.get("added_tokens") or []),
        key=lambda token: token[0],
    )  # fmt: skip
    parts = {part: tokenizer.get(part) for part in ("normalizer", "pre_tokenizer")}
    return digest({"model": kept, "added_tokens": added, **parts})


def read_vocabulary(folder: Path) -> Mapping[str, Any] | None:
    """The content of a folder's ``tokenizer.json``, made from the older vocabulary files where there is none.

    Returns None for a folder without a tokenizer.
    """
    if (folder / "tokenizer.json").is_file():
        return read_json(folder / "tokenizer.json")
    if not any((folder / name).is_file() for name in VOCABULARY_FILES):
        return None
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        return json.loads(tokenizer.backend_tokenizer.to_str())
    except Exception as problem:
        raise BaseError(
            f"cannot read the tokenizer of {folder}: {str(problem).splitlines()[0] if str(problem) else problem!r}",
            why="Text cannot be turned into tokens without it.",
            fix="add the tokenizer.json of the model",
        ) from problem


def read_config(folder: Path) -> Any:
    """The transformers config of a folder.

    Raises:
        BaseError: there is none, it is damaged, of a kind anytune does not know, or of quantised weights.
    """
    from transformers import AutoConfig

    raw = read_json(folder / "config.json")
    if not raw.get("model_type"):
        raise BaseError(
            f"{folder / 'config.json'} names no model_type",
            why="It says which kind of model the weights are.",
            fix='"model_type": "bert" in config.json   (or copy the folder again)',
        )
    anatomy_of(str(raw["model_type"]))
    kernel = next((text for text in _implementations(raw) if "/" in text), None)
    if kernel is not None:
        raise BaseError(
            f"{folder / 'config.json'} asks for the kernel '{kernel}'",
            why="transformers would fetch it from a hub and run it.",
            fix='"sdpa" in its place',
        )
    if raw.get("quantization_config"):
        raise BaseError(
            f"{folder} holds quantised weights",
            why="Continual pre-training and exact deltas need the weights themselves.",
            fix="name the model's unquantised folder or hub id",
        )
    try:
        return AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as problem:
        raise BaseError(f"cannot use {folder / 'config.json'}: {problem}", why="transformers refuses it.") from problem


def _implementations(value: Any) -> list[str]:
    """What a config, and the configs in it, name as implementations (of attention, of experts)."""
    if isinstance(value, list):
        return [text for inner in value for text in _implementations(inner)]
    if not isinstance(value, dict):
        return []
    own = [
        inner if isinstance(inner, str) else str(inner)
        for key, inner in value.items()
        if str(key).endswith("_implementation") and inner is not None
    ]
    return own + [text for inner in value.values() for text in _implementations(inner)]


def fingerprint_folder(folder: Path, cache: bool = True) -> Fingerprint:
    """The three hashes of a model folder, from the cache where its files have not changed.

    Raises:
        BaseError: the folder is no readable model folder.
    """
    folder = Path(folder).resolve()
    stamp = _stamp(folder)
    entry = _read_cache().get(str(folder)) if cache else None
    if entry and entry.get("stamp") == stamp and entry.get("settled"):
        return Fingerprint(**entry["hashes"])
    config = read_config(folder)
    vocabulary = read_vocabulary(folder)
    found = Fingerprint(
        backbone=fingerprint_state(StoredWeights(folder), anatomy_of(config)),
        config=fingerprint_config(config, read_settings(folder)),
        vocabulary="" if vocabulary is None else fingerprint_vocabulary(vocabulary),
    )
    if cache and _stamp(folder) == stamp:
        newest = max(file[2] for file in stamp) / 1e9
        _remember(folder, {"stamp": stamp, "hashes": asdict(found), "settled": time.time() - newest > SETTLED_SECONDS})
    return found


def known_folders(backbone: str) -> list[Path]:
    """Folders on this machine that were seen to hold the base with this backbone hash, and still do.

    This is how a delta finds its base although no path stands in its manifest.
    """
    found = []
    for name, entry in _read_cache().items():
        if entry["hashes"]["backbone"] == backbone:
            try:
                if fingerprint_folder(Path(name)).backbone == backbone:
                    found.append(Path(name))
            except AnytuneError:
                continue  # moved, deleted or damaged since
    return found


def cache_file() -> Path:
    """Where hashes of folders are kept: ``$ANYTUNE_CACHE`` or ``~/.cache/anytune``, ``fingerprints.json``."""
    root = os.environ.get("ANYTUNE_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "anytune") / "fingerprints.json"


def _stamp(folder: Path) -> list[list[Any]]:
    """Name, size, time and inode of every file that a fingerprint reads; JSON-able."""
    names = [path.name for path in weight_files(folder)]
    others = ("config.json", HYPERPROMPT_SETTINGS, INDEX_FILE, *TOKENIZER_FILES)
    names += [name for name in others if (folder / name).is_file()]
    stats = [(name, (folder / name).stat()) for name in names]
    return [[name, stat.st_size, stat.st_mtime_ns, stat.st_ino] for name, stat in stats]


def _read_cache() -> dict[str, dict[str, Any]]:
    """Path -> entry; an absent, damaged or foreign cache is an empty one, and so is a damaged entry."""
    try:
        raw = json.loads(cache_file().read_text(encoding="utf-8"))
        entries = raw["entries"] if raw["format"] == CACHE_FORMAT else {}
        return {name: entry for name, entry in entries.items() if _is_entry(entry)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _is_entry(entry: Any) -> bool:
    hashes = entry.get("hashes") if isinstance(entry, dict) else None
    return isinstance(hashes, dict) and set(hashes) == set(Fingerprint.__dataclass_fields__)


def _remember(folder: Path, entry: dict[str, Any]) -> None:
    if folder.name.startswith(PARTIAL_PREFIX) or not caches_written():
        return  # about to be renamed, or a dry run
    entries = {name: known for name, known in _read_cache().items() if Path(name).is_dir()} | {str(folder): entry}
    try:
        write_atomic(cache_file(), json.dumps({"format": CACHE_FORMAT, "entries": entries}, indent=1).encode())
    except (AnytuneError, OSError):
        return  # a cache that cannot be written costs time, nothing else
