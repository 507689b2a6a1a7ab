"""Bottleneck adapters: small residual networks behind the projections of every block.

``attach_bottlenecks`` puts one behind each attention's output projection and one behind each feed-forward network's,
in place. They are modules of the model under ``bottleneck`` that no base holds, so a delta keeps them with its head.
The projections themselves keep their names and their weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from anytune import compat
from anytune.errors import DeltaError, MethodError
from anytune.models.anatomy import Anatomy, anatomy_of
from anytune.models.soft_prompts import prompt_of

#: what the adapters are called in every class that has them: they are a delta, never the backbone
BOTTLENECK = "bottleneck"
Activation = Literal["gelu_tanh", "relu", "silu"]
#: no stored width above this is believed
LARGEST = 16_384


@dataclass(frozen=True)
class BottleneckConfig:
    """What has to be known to put stored adapters back: how wide they are inside, and what bends them."""

    width: int = 24
    activation: Activation = "gelu_tanh"

    def to_record(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Any) -> BottleneckConfig:
        """Read a stored record.

        Raises:
            DeltaError: it holds other settings, or values out of their limits.
        """
        known = isinstance(record, Mapping) and set(record) == {"width", "activation"}
        width: Any = record["width"] if known else None
        activation: Any = record["activation"] if known else None
        if type(width) is not int or not 0 < width <= LARGEST or activation not in get_args(Activation):
            raise DeltaError(
                f"the settings of its bottleneck adapters are {str(record)[:100]}",
                why="They were changed, or written by a newer anytune.",
            )
        return cls(width, activation)


class Bottleneck(nn.Module):
    """``h + up(act(down(h)))`` over the last dimension."""

    def __init__(self, hidden: int, config: BottleneckConfig) -> None:
        """An unfilled one; ``attach_bottlenecks`` fills it.

        Args:
            hidden: what the projection before it gives.
            config: settings.
        """
        super().__init__()
        self.activation = config.activation
        self.down = nn.utils.skip_init(nn.Linear, hidden, config.width)
        self.up = nn.utils.skip_init(nn.Linear, config.width, hidden)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., hidden] -> the same shape."""
        inner = self.down(hidden)
        if self.activation == "gelu_tanh":
            inner = nn.functional.gelu(inner, approximate="tanh")
        else:
            inner = nn.functional.relu(inner) if self.activation == "relu" else nn.functional.silu(inner)
        bent: Tensor = hidden + self.up(inner)
        return bent

    def behind(self, projection: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """The hook on the projection."""
        changed: Tensor = self(output)
        return changed


class Bottlenecks(nn.ModuleDict):
    """All adapters of a model, by the path of their projection with ``_`` for dots."""

    def __init__(self, config: BottleneckConfig) -> None:
        super().__init__()
        self.config = config


def projections(model: Any, anatomy: Anatomy) -> dict[str, nn.Module]:
    """Path inside the backbone -> the linear maps through which attention and feed-forward networks give their output.

    Each is the last linear map of its part of a block. An encoder-decoder's decoder has three in a block.
    """
    paths = {id(module): name for name, module in anatomy.backbone(model).named_modules()}
    found: dict[str, nn.Module] = {}
    for stack, blocks in anatomy.block_stacks(model):
        for block in blocks:
            for parts in (*((part,) for part in stack.attention), stack.feed_forward):
                maps = [
                    module
                    for part in parts
                    for module in block.get_submodule(part).modules()
                    if isinstance(module, compat.linear_types())
                ]
                found[paths[id(maps[-1])]] = maps[-1]
    return found


def attach_bottlenecks(
    model: Any, config: BottleneckConfig, anatomy: Anatomy, seed: int = 0, std: float = 0.01
) -> Bottlenecks:
    """Put fresh adapters on a model, in place: ``model.bottleneck``. Copies of the model have copies of them.

    Weights are drawn from N(0, std^2), biases are 0: nearly the identity at the start. What trains is for the caller
    to say. Equal seeds give equal bits whatever was drawn before; torch's own random state is left as it was.

    Raises:
        MethodError: the model has adapters already, is wrapped by PEFT, or reads a soft prompt.
    """
    if bottlenecks_of(model) is not None or hasattr(model, "peft_config") or prompt_of(model) is not None:
        raise MethodError(
            "the model has another adapter already",
            why="A delta holds one of the kinds, and each would answer otherwise without the other.",
            fix="--method bottleneck   (without a method that makes another adapter)",
        )
    draw, made = torch.Generator().manual_seed(seed), Bottlenecks(config)
    for path, projection in projections(model, anatomy).items():
        weight: Any = projection.weight
        adapter = Bottleneck(weight.shape[1 if anatomy.transposed else 0], config)
        with torch.no_grad():
            for layer in (adapter.down, adapter.up):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=draw) * std)
                layer.bias.zero_()
        made[path.replace(".", "_")] = adapter.to(weight.device, weight.dtype)
        projection.register_forward_hook(adapter.behind)
    made.train(model.training)
    model.add_module(BOTTLENECK, made)
    return made


def bottlenecks_of(model: Any) -> Bottlenecks | None:
    """The adapters on a model (on the one inside, for PEFT), or None."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    found = getattr(inner, BOTTLENECK, None)
    return found if isinstance(found, Bottlenecks) else None


def bottleneck_names(model: nn.Module) -> list[str]:
    """State-dict names of the adapters on a model; empty for a model without."""
    return [name for name in model.state_dict() if is_bottleneck(name)] if bottlenecks_of(model) is not None else []


def is_bottleneck(name: str) -> bool:
    """Whether a tensor is one of a bottleneck adapter's."""
    return name.startswith(f"{BOTTLENECK}.")


def scaled_adapter(name: str, tensor: Tensor, scale: float) -> Tensor:
    """A head's tensor where the tuned weights are installed at ``scale``: what adapters add is scaled, no head is."""
    added = is_bottleneck(name) and name.rpartition(".")[0].endswith(".up")
    return tensor if scale == 1.0 or not added else (tensor.double() * scale).to(tensor.dtype)


def put_bottlenecks(model: nn.Module, record: Mapping[str, Any]) -> None:
    """See that a model has the adapters that a stored delta was trained with, still to be filled.

    Raises:
        DeltaError: the record is damaged, or the model has adapters of another kind.
    """
    config, present = BottleneckConfig.from_record(record), bottlenecks_of(model)
    if present is not None and present.config == config:
        return
    try:
        attach_bottlenecks(model, config, anatomy_of(model))
    except MethodError as problem:
        raise DeltaError(problem.what, why=problem.why, fix=problem.fix) from None
