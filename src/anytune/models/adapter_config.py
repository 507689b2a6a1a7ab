"""A stranger's ``adapter_config.json``: what of it may reach PEFT.

PEFT takes some settings as orders to fetch or import something: a tokenizer by its name on a hub, a module by its
name, files of tensors (pickles), other adapters. None of them is needed to put stored tensors onto a model, so those
that only say how an adapter started are left out, and kinds that live by them are refused. Sizes are held against the
tensors, so that a few bytes of settings cannot ask for all memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from anytune.errors import DeltaError

#: Kinds that put nothing but their own tensors onto a model. XLORA, SHADOW, CARTRIDGE and MULTITASK_PROMPT_TUNING load
#: further models or files that their config names.
KINDS = (
    "LORA", "ADALORA", "IA3", "LOHA", "LOKR", "VERA", "OFT", "BOFT", "HRA", "PROMPT_TUNING", "P_TUNING",
    "PREFIX_TUNING", "CPT", "LN_TUNING", "POLY", "ADAPTION_PROMPT", "FOURIERFT", "VBLORA", "RANDLORA", "BONE", "MISS",
    "SHIRA", "C3A", "ROAD", "TRAINABLE_TOKENS", "WAVEFT", "DELORA", "GRALORA", "OSF", "HIRA", "PVERA", "FROD", "LILY",
    "UNILORA", "TINYLORA", "PSOFT", "PEANUT", "SUPERTUNING", "DEFT", "ADAMSS", "BEFT", "GLORA",
)  # fmt: skip
#: How a prompt started, and the class of the model it was made on: the stored tensors take the start's place.
LEFT_OUT = (
    "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs", "auto_mapping",
)  # fmt: skip
#: Settings that make PEFT import a module, or read files, that they name.
REFUSED = ("megatron_config", "arrow_config", "corda_config", "lora_ga_config", "prompt_tuning_init_state_dict_path")
#: Sizes of an adapter; that of P-tuning's encoder is no size of a stored tensor, and has a limit of its own.
ENCODER_LIMIT = 16_384
SIZES = ("r", "init_r", "rank", "num_virtual_tokens", "token_dim", "encoder_hidden_size", "adapter_len")


def harmless(config: Mapping[str, Any], tensors: Iterable[Tensor]) -> dict[str, Any]:
    """The settings that may reach PEFT.

    Raises:
        DeltaError: the adapter is of a kind, or has settings, that would load something else; or it asks for sizes
            that none of its tensors has.
    """
    kind = str(config.get("peft_type"))
    if kind not in KINDS:
        raise DeltaError(
            f"adapters of the kind {kind} are not used",
            why="They load other models or files that their config names, or are not known here.",
            fix=f"one of {', '.join(KINDS[:11])}",
        )
    asked = [key for key in REFUSED if config.get(key)]
    if asked:
        raise DeltaError(
            f"its config sets {', '.join(asked)}",
            why="PEFT would import a module or read files that the config names.",
            fix=f"remove {asked[0]} from adapter_config.json, if you know that the adapter does without",
        )
    largest = max((max(tensor.shape, default=1) for tensor in tensors), default=1)
    for key in SIZES:
        value = config.get(key)
        limit = max(largest, ENCODER_LIMIT) if key == "encoder_hidden_size" else largest
        if isinstance(value, int) and not isinstance(value, bool) and value > limit:
            raise DeltaError(f"its config says {key} = {value}", why=f"No tensor of it is larger than {limit}.")
    return {key: value for key, value in config.items() if key not in LEFT_OUT}
