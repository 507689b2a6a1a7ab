"""The settings of a hypernetwork of prompts, and the file beside a base that holds them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from anytune.errors import BaseError, SettingsError
from anytune.models import settings_json
from anytune.models.anatomy import anatomy_of
from anytune.models.weights import HYPERPROMPT_SETTINGS

#: of the settings file
FORMAT = 1
#: the most layers a hypernetwork's transformer has by default
LAYERS = 6

_CHOICES: dict[str, tuple[str, ...]] = {
    "encoder": ("frozen_base", "embeddings"),
    "pooling": ("mean", "first"),
    "mix": ("linear", "softmax"),
    "position": ("after_first", "prepend", "append"),
    "init": ("normal", "vocabulary"),
}
_LEAST = {"components": 1, "length": 1, "layers": 0, "heads": 1, "width": 1, "reads": 1}
_MAY_BE_NONE = ("layers", "heads", "width", "reads")


@dataclass(frozen=True, kw_only=True)
class HyperPromptConfig:
    """The settings of a hypernetwork; those that are None are chosen by the base when it is made.

    Raises:
        SettingsError: a value is out of range or of the wrong type.
    """

    #: M, the prompt components
    components: int = 32
    #: L, the positions of a prompt
    length: int = 10
    #: of the hypernetwork's transformer; None: as many as the base has, at most 6
    layers: int | None = None
    #: attention heads; None: as many as the base has, where they divide the width
    heads: int | None = None
    #: of the hypernetwork's transformer; None: the base's
    width: int | None = None
    #: what reads the text: a frozen copy of the first base, or of its word embeddings alone (word order is then lost)
    encoder: Literal["frozen_base", "embeddings"] = "frozen_base"
    #: how the vectors of a text's tokens become one
    pooling: Literal["mean", "first"] = "mean"
    #: weights as they come, or positive and adding up to one
    mix: Literal["linear", "softmax"] = "linear"
    #: softmax only: the weights are softmax(scores / temperature)
    temperature: float = 1.0
    #: where the prompt stands; a decoder's always stands in front
    position: Literal["after_first", "prepend", "append"] = "after_first"
    #: what components start as: random numbers, or the embeddings of random words
    init: Literal["normal", "vocabulary"] = "normal"
    #: inside the hypernetwork's transformer
    dropout: float = 0.0
    #: at most so many tokens of a text are read; None: all
    reads: int | None = None

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is None and name in _MAY_BE_NONE:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise _bad(name, value, f"a whole number of at least {least}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise _bad(name, getattr(self, name), f"one of {', '.join(choices)}")
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise _bad("dropout", self.dropout, "a number from 0 up to (not including) 1")
        if not _is_number(self.temperature) or not 0 < self.temperature < float("inf"):
            raise _bad("temperature", self.temperature, "a number above 0")
        if self.mix == "linear" and self.temperature != 1:
            raise SettingsError(
                f"hyperprompt: temperature {self.temperature} with linear weights",
                why="Only softmax weights have a temperature.",
                fix="mix: softmax   (or temperature: 1)",
            )
        if self.heads is not None and self.width is not None and self.width % self.heads:
            raise _bad("heads", self.heads, f"a divisor of the width {self.width}")

    def to_json(self) -> str:
        """The settings as JSON text; ``from_json`` gives them back."""
        return settings_json.to_json(self, FORMAT)

    @classmethod
    def from_json(cls, text: str) -> HyperPromptConfig:
        """Settings from JSON text.

        Raises:
            SettingsError: it is no JSON object, of a newer format, lacks a setting, has an unknown one, or a value is
                out of range.
        """
        return cls(**settings_json.from_json(cls, text, FORMAT, "hyperprompt"))

    def resolved(self, base: Any) -> HyperPromptConfig:
        """These settings with what they leave open chosen for a kind of base.

        Args:
            base: the transformers config of the base.

        Raises:
            SettingsError: the heads asked for do not divide the width.
        """
        layers = min(LAYERS, base.num_hidden_layers) if self.layers is None else self.layers
        width = base.hidden_size if self.width is None else self.width
        heads = self.heads
        if heads is None:
            heads = next(count for count in range(min(base.num_attention_heads, width), 0, -1) if width % count == 0)
        position = "prepend" if anatomy_of(base).causal else self.position
        return replace(self, layers=layers, width=width, heads=heads, position=position)


def _bad(name: str, value: Any, wanted: str) -> SettingsError:
    return SettingsError(
        f"hyperprompt: {name} is {value!r}", why=f"It must be {wanted}.", fix=f"{name}: {wanted.split(', ')[0]}"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_settings(folder: Path) -> HyperPromptConfig | None:
    """The settings of the hypernetwork in a base's folder; None for a bare base.

    Raises:
        BaseError: they are damaged.
    """
    path = folder / HYPERPROMPT_SETTINGS
    if not path.is_file():
        return None
    try:
        return HyperPromptConfig.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, SettingsError) as problem:
        what = problem.what if isinstance(problem, SettingsError) else str(problem)
        raise BaseError(
            f"cannot use {path}: {what}",
            why=getattr(problem, "why", "") or "The base's hypernetwork cannot be made without it.",
            fix="copy the folder again, or make the base again",
        ) from None
