"""What the methods share that tune a soft prompt: its settings, putting it on, and freezing everything beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from anytune.errors import MethodError
from anytune.methods.protocol import Method, Run
from anytune.models.layout import SOFT_PROMPT
from anytune.models.soft_prompt_config import SoftPromptConfig
from anytune.models.soft_prompts import PromptSource, SoftPrompt, attach_prompt, make_prompt

#: the rate at which prompts are tuned: AdamW divides a gradient by its own size, and prompts start near 0
RATE = 1e-2
Dropout = Annotated[
    float, Field(ge=0, lt=1, description="dropout on the prompt's values while training, drawn anew for every text")
]


@dataclass(kw_only=True)
class PromptMethod(Method):
    """A method that tunes a prompt of its own; its subclasses say where the values start and what is added."""

    kind: Annotated[
        Literal["deep", "input"],
        Field(description="deep: a key and a value in every layer; input: vectors in front of the words"),
    ] = "deep"
    length: Annotated[int, Field(ge=1, le=512, description="n, how many places the prompt has")] = 20
    dropout: Dropout = 0.1
    projection: Annotated[
        int | None,
        Field(ge=1, le=8192, description="values come from a two-layer tanh map of this hidden width; null: none"),
    ] = None
    init_std: Annotated[
        float, Field(gt=0, le=10, description="standard deviation of the values the prompt starts from")
    ] = 0.02

    suggests = {"learning_rate": RATE}  # noqa: RUF012

    def config(self) -> SoftPromptConfig:
        """The settings of its prompt."""
        return SoftPromptConfig(kind=self.kind, length=self.length, dropout=self.dropout, projection=self.projection)

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Put a freshly drawn prompt on; beside it only the head is trained.

        Raises:
            MethodError: an adapter has wrapped the model.
        """
        return put_on(model, run, self, make_prompt(model, self.config(), run.anatomy, run.seed, std=self.init_std))


def put_on(model: nn.Module, run: Run, method: Method, prompt: SoftPrompt) -> nn.Module:
    """The model with the prompt on it; of the rest, what the base brought is trained no more.

    Raises:
        MethodError: the model has an adapter or a prompt already.
    """
    if hasattr(model, "peft_config") or getattr(model, SOFT_PROMPT, None) is not None:
        raise MethodError(
            f"{method.name} cannot be combined with another adapter",
            why="What is stored is one prompt and the head; on the base alone it would answer otherwise.",
            fix=f"--method {method.name}   (without the other)",
        )
    head = set(run.head_names)
    for name, parameter in model.named_parameters():
        if name not in head:
            parameter.requires_grad_(False)
    attach_prompt(model, prompt, run.anatomy)
    return model


def prompt_of_source(model: nn.Module, run: Run, source: PromptSource) -> SoftPrompt:
    """A stored prompt as it is, without dropout, ready to be put on.

    Raises:
        MethodError: it does not fit the model, or holds NaN.
    """
    config = replace(source.config, length=len(source.values), dropout=0.0, projection=None)
    return make_prompt(model, config, run.anatomy, run.seed, values=source.values)


# ---------------------------------------------------------------------- heads


def head_fits(model: nn.Module, source: PromptSource, run: Run, what: str) -> None:
    """See that a stored head can stand where the model's does: same labels, same names, same shapes.

    Args:
        what: "source" or "teacher", for errors.

    Raises:
        MethodError: labels, names or shapes differ.
    """
    if run.label_names and source.label_names and tuple(run.label_names) != tuple(source.label_names):
        raise MethodError(
            f"{what} '{source.name}' answers {_few(source.label_names)}; the task has {_few(run.label_names)}",
            why="Output i of its head would be read as another label.",
            fix="a prompt of this task, or label_names in its order"
            + ("; loss=hidden needs no head" if what == "teacher" else "; head=fresh needs none"),
        )
    state = model.state_dict()
    missing = [name for name in run.head_names if name not in source.head]
    if missing:
        raise MethodError(
            f"{what} '{source.name}' holds no {', '.join(missing[:3])}",
            why="It brings a prompt, but not the whole head that answers.",
            fix="a prompt that anytune tuned on this base",
        )
    for name in run.head_names:
        if source.head[name].shape != state[name].shape:
            raise MethodError(
                f"{name} is {list(source.head[name].shape)} in {what} '{source.name}' and {list(state[name].shape)} "
                "here",
                why="Its head was made for another number of answers.",
                fix="a prompt of a task with as many labels"
                + ("; loss=hidden needs no head" if what == "teacher" else "; head=fresh needs none"),
            )


@contextmanager
def head_in_place(model: nn.Module, head: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, the model's head is this one; afterwards its own again, the same tensors bit for bit.

    Args:
        model: with the head's names among its parameters or buffers.
        head: state-dict name -> tensor of the same shape, on the model's device.

    Raises:
        MethodError: the head's weights are split up over processes.
    """
    held: list[tuple[Any, Tensor]] = []
    named: dict[str, Any] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    try:
        for name, tensor in head.items():
            place = named[name]
            if hasattr(place, "full_tensor"):
                raise MethodError(
                    f"a teacher's head cannot stand in for {name} while weights are split up",
                    why="Each process holds a part of it.",
                    fix="sharding=none, or teacher=cached",
                )
            held.append((place, place.data))
            place.data = tensor.to(place.data)
        yield
    finally:
        for place, before in held:
            place.data = before


def _few(names: Any) -> str:
    names = list(names)
    return f"{len(names)} labels ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
