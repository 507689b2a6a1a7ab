"""The settings of a soft prompt: their JSON, and what PEFT writes of them into ``adapter_config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from anytune.errors import DeltaError, SettingsError
from anytune.models import settings_json

#: of the settings' JSON
FORMAT = 1
#: what PEFT calls prompts in front of the words; P_TUNING's encoder is folded into its values when it is saved
INPUT_KINDS = ("PROMPT_TUNING", "P_TUNING")
#: what PEFT calls prompts in every layer
DEEP_KIND = "PREFIX_TUNING"


@dataclass(frozen=True, kw_only=True)
class SoftPromptConfig:
    """The settings of a soft prompt.

    Raises:
        SettingsError: a value is out of range or of the wrong type.
    """

    #: "deep": a key and a value for every layer; "input": vectors in front of the words
    kind: Literal["deep", "input"] = "deep"
    #: n, the places of the prompt
    length: int = 20
    #: on the prompt's values while training, drawn anew for every text
    dropout: float = 0.0
    #: width of the hidden layer of a two-layer map (with tanh) that the values come from; None: tuned as they are
    projection: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("deep", "input"):
            raise _bad("kind", self.kind, "deep or input")
        if not _is_whole(self.length) or self.length < 1:
            raise _bad("length", self.length, "a whole number of at least 1")
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            raise _bad("dropout", self.dropout, "a number from 0 up to (not including) 1")
        if self.projection is not None and (not _is_whole(self.projection) or self.projection < 1):
            raise _bad("projection", self.projection, "a whole number of at least 1, or none")

    def to_json(self) -> str:
        """The settings as JSON text; ``from_json`` gives them back."""
        return settings_json.to_json(self, FORMAT)

    @classmethod
    def from_json(cls, text: str) -> SoftPromptConfig:
        """Settings from JSON text.

        Raises:
            SettingsError: it is no JSON object, of a newer format, lacks a setting, has an unknown one, or a value is
                out of range.
        """
        return cls(**settings_json.from_json(cls, text, FORMAT, "prompt"))


@dataclass(frozen=True, kw_only=True)
class PromptLayout:
    """How the numbers of a prompt are laid out for one model: what PEFT names in its config.

    A row of a deep prompt holds ``2 * layers`` slots of ``heads * head_dim`` numbers: key and value of the first
    layer, of the second, and so on. A row of an input prompt is one vector in the place of a word.
    """

    #: layers that get a key and a value; for input prompts the model's layers
    layers: int
    #: key-value heads (fewer than attention heads where queries share them)
    heads: int
    #: numbers of one head
    head_dim: int
    #: width of a word's embedding
    words: int
    #: PEFT puts the slots of an encoder-decoder that writes text twice in a row and takes every other pair of them
    doubled: bool = False

    def width(self, kind: Literal["deep", "input"]) -> int:
        """How many numbers a place of the prompt has."""
        return 2 * self.layers * self.heads * self.head_dim if kind == "deep" else self.words

    def slots(self, layer: int) -> tuple[int, int]:
        """Which slots are the key and the value of a layer."""
        first = 4 * layer % (2 * self.layers) if self.doubled else 2 * layer
        return first, first + 1


def peft_settings(config: SoftPromptConfig, layout: PromptLayout, task_type: str | None) -> dict[str, Any]:
    """A prompt's ``adapter_config.json``, but for the names of base and head.

    A projected prompt is stored as the values it gives, so the config never says ``prefix_projection``: PEFT would
    make the map anew and refuse values for it.
    """
    shared = {
        "task_type": task_type,
        "inference_mode": True,
        "num_virtual_tokens": config.length,
        "num_transformer_submodules": 2 if layout.doubled and config.kind == "deep" else 1,
        "num_attention_heads": layout.heads,
        "num_layers": layout.layers,
        "base_model_name_or_path": None,
        "revision": None,
        "modules_to_save": None,
    }
    if config.kind == "deep":
        width = layout.heads * layout.head_dim
        return {
            "peft_type": DEEP_KIND, **shared, "token_dim": width, "encoder_hidden_size": width,
            "prefix_projection": False,
        }  # fmt: skip
    return {"peft_type": INPUT_KINDS[0], **shared, "token_dim": layout.words, "prompt_tuning_init": "RANDOM"}


def config_from_peft(settings: Mapping[str, Any]) -> SoftPromptConfig:
    """The settings of a prompt that PEFT (or anytune) saved.

    Raises:
        DeltaError: the adapter is no prompt, or its length is missing.
    """
    kind = settings.get("peft_type")
    if kind != DEEP_KIND and kind not in INPUT_KINDS:
        raise DeltaError(
            f"a {kind} adapter is no soft prompt", why=f"Those are {', '.join((DEEP_KIND, *INPUT_KINDS))}."
        )
    length = settings.get("num_virtual_tokens")
    try:
        return SoftPromptConfig(kind="deep" if kind == DEEP_KIND else "input", length=length)  # type: ignore[arg-type]
    except SettingsError as problem:
        raise DeltaError(f"its config says num_virtual_tokens = {length}", why=problem.what) from None


def is_soft_prompt(settings: Mapping[str, Any]) -> bool:
    """Whether an ``adapter_config.json`` describes a soft prompt."""
    return settings.get("peft_type") in (DEEP_KIND, *INPUT_KINDS)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _bad(name: str, value: Any, allowed: str) -> SettingsError:
    return SettingsError(f"prompt: {name} = {value!r}", why=f"It must be {allowed}.", fix=f"{name}: {allowed}")
