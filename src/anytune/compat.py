"""The one place for imports of transformers and PEFT that move between releases.

Everything else in anytune imports only documented top-level names of these libraries, or asks here.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the load reports ("newly initialized", "unexpected") and progress bars of transformers inside the block.

    anytune accounts for every tensor name itself and raises where one is missing, so these reports only add noise.
    The verbosity and progress bar settings are put back afterwards.
    """
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("ignore", FutureWarning)  # of PEFT against transformers
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a generator seeded with ``seed`` inside the block; torch's global state is as before afterwards.

    Models are made on the CPU, so only the CPU generator is touched (``torch.manual_seed`` would reseed GPUs too).
    """
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


def model_class(purpose: str, config: Any) -> Any:
    """The transformers class for a config, or None.

    Args:
        purpose: "sequence-classification", "token-classification", "mlm", "clm" or "span" (encoder-decoders).
    """
    import transformers

    mapping = {
        "sequence-classification": transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        "token-classification": transformers.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
        "mlm": transformers.MODEL_FOR_MASKED_LM_MAPPING,
        "clm": transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
        "span": transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    }[purpose]
    return mapping.get(type(config), None)


def classifier_class(config_class: type) -> Any:
    """The transformers class that classifies texts for a class of configs, or None."""
    import transformers

    return transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(config_class, None)


def adapter_task_type(model: Any) -> str | None:
    """What PEFT calls the purpose of a model's class ("SEQ_CLS", "CAUSAL_LM", ...), None where it has no name."""
    purposes = {
        "SEQ_CLS": "sequence-classification",
        "TOKEN_CLS": "token-classification",
        "SEQ_2_SEQ_LM": "span",
        "CAUSAL_LM": "clm",
    }
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return next(
        (name for name, purpose in purposes.items() if model_class(purpose, inner.config) is type(inner)), None
    )


def linear_types() -> tuple[type, ...]:
    """The classes of linear maps: torch's, and the one of GPT-2 whose weight is stored as [in, out]."""
    from transformers.pytorch_utils import Conv1D

    return torch.nn.Linear, Conv1D


def tied_head_names(model_class: Any, config: Any) -> dict[str, str]:
    """Name in a model -> the name it is tied to, where the class shares input and output embeddings (``lm_head``)."""
    tied = getattr(model_class, "_tied_weights_keys", None)
    return dict(tied) if isinstance(tied, dict) and getattr(config, "tie_word_embeddings", False) else {}


def model_from_state(cls: Any, config: Any, state: dict[str, torch.Tensor], dtype: torch.dtype, seed: int) -> Any:
    """A model of class ``cls`` with the tensors of ``state``; names that ``state`` lacks are drawn from ``seed``.

    ``state`` must hold tensors that nothing else uses: transformers makes parameters of them without a copy.

    Returns:
        (model, names that transformers says were missing).
    """
    with quiet_transformers(), seeded(seed):
        model, info = cls.from_pretrained(
            None, config=config, state_dict=state, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=False
        )
    return model, set(info["missing_keys"])


def dequantized() -> dict[str, Any]:
    """Options of ``from_pretrained`` for a GGUF file that is to become a plain model.

    Newer releases keep such a model flagged as quantised, and refuse to save it, unless told otherwise; earlier ones
    have no such class and always multiply the blocks out. Delete when the floor has ``GgufConfig``.
    """
    import transformers

    config = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": config(dequantize=True)} if config is not None else {}


def adapter_state(peft_model: Any) -> dict[str, torch.Tensor]:
    """The adapter tensors of a PEFT model under the names PEFT stores them by (no look at the hub)."""
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(peft_model, save_embedding_layers=False)


def set_adapter_state(peft_model: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Write adapter tensors into a PEFT model.

    PEFT's list of unexpected names is no use: with ``bias="all"`` it names a tensor that it saved itself. Whoever
    calls this compares what ``adapter_state`` gives afterwards.
    """
    from peft import set_peft_model_state_dict

    # a copy: releases before 0.21 rename entries of the mapping they are given
    set_peft_model_state_dict(peft_model, dict(tensors))


def checkpoint_name(step: int) -> str:
    """What the Trainer calls the folder of a checkpoint."""
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

    return f"{PREFIX_CHECKPOINT_DIR}-{step}"


def last_checkpoint(folder: str) -> str | None:
    """The newest checkpoint that a Trainer has left in a folder."""
    from transformers.trainer_utils import get_last_checkpoint

    return get_last_checkpoint(folder)


def register_attention(name: str, function: Any) -> None:
    """Let attention modules whose config names ``name`` attend by ``function``."""
    from transformers import AttentionInterface

    AttentionInterface.register(name, function)


def attention_function(module: Any, config: Any) -> Any:
    """The function by which a module with this config attends; "eager" ones are those of the module's own file."""
    import sys

    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, eager)


@contextlib.contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """Inside, a model attends by the plain function, which gives its weights; afterwards as before.

    Kinds that attend in a way of their own (DeBERTa) are eager always, and are left alone.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = inner.config._attn_implementation
    if before in (None, "eager"):
        yield
        return
    with quiet_transformers():
        inner.set_attn_implementation("eager")
    try:
        yield
    finally:
        with quiet_transformers():
            inner.set_attn_implementation(before)
