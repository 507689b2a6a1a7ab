"""Re-initialisation: re-draw the last blocks and the pooler before training.

In plain words: the last blocks of a pre-trained model are shaped by its pre-training task. With few examples it can be
better to begin them afresh, as the head is, than to unlearn them. Everything is trained afterwards.

Formula: for the last L blocks and the pooler, W ~ N(0, s^2) for linear maps and embeddings, biases 0, norms at scale 1
and shift 0, with s the config's initializer_range; then plain training.

Paper: Zhang et al. 2021 (Revisiting few-sample BERT fine-tuning).
Costs: those of plain training. The delta holds the re-drawn blocks whole.
When not to use it: with much data, where the last blocks are soon unlearnt anyway; with a low-rank adapter, whose file
could not say what was re-drawn (that is an error).
Choices of ours: one block, the least of the published range of 1 to 6. In an encoder-decoder the decoder's last blocks
are meant. Kinds whose config has no initializer_range (T5) are drawn as their own class draws them: s^2 =
initializer_factor^2 / inputs, for queries divided by the width of an attention head in addition. A fresh pooler is
drawn again, too. Some kinds scale some matrices further when they are made (GPT-2's output projections); the formula
is kept for them all. The draws come from the run's seed by a generator of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Generator, nn

from anytune import compat
from anytune.errors import MethodError
from anytune.methods.protocol import Method, Run
from anytune.methods.registry import register


def standard_deviation(name: str, inputs: int, config: Any) -> float:
    """Of the entries of a linear map or embedding as its kind draws it.

    Args:
        name: of the module: in kinds without an ``initializer_range``, ``q`` is the query.
        inputs: how many inputs an output sums over; for an embedding the model's width.
        config: of the model.
    """
    spread = getattr(config, "initializer_range", None)
    if spread is not None:
        return float(spread)
    heads = config.d_kv**-0.5 if name.rsplit(".", 1)[-1] == "q" else 1.0
    return float(config.initializer_factor * inputs**-0.5 * heads)


@torch.no_grad()
def redraw(module: nn.Module, config: Any, generator: Generator) -> None:
    """Draw every weight inside a module afresh, in place, on the CPU.

    Linear maps ([out, in], or transposed) and embeddings N(0, s^2), with a padding row of zeros; biases 0; the scale
    of a norm 1.

    Raises:
        MethodError: a weight is of another sort, or is quantised.
    """
    for name, inner in module.named_modules():
        matrix = isinstance(inner, (*compat.linear_types(), nn.Embedding))
        for kind, parameter in inner.named_parameters(recurse=False):
            if kind not in ("weight", "bias") or not parameter.is_floating_point():
                raise MethodError(
                    f"reinit cannot draw {name}.{kind} ({str(parameter.dtype).removeprefix('torch.')}) afresh",
                    why="It knows linear maps, embeddings and norms of real numbers.",
                    fix="a base that is not quantised, or layers=0",
                )
            if kind == "bias":
                parameter.zero_()
            elif matrix:
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(drawn * standard_deviation(name, _inputs(inner, config), config))
                if isinstance(inner, nn.Embedding) and inner.padding_idx is not None:
                    parameter[inner.padding_idx] = 0
            else:
                parameter.fill_(1)


def _inputs(module: nn.Module, config: Any) -> int:
    if isinstance(module, nn.Embedding):
        return int(config.hidden_size)
    # a matrix that is stored as [in, out] has its inputs first
    return int(module.weight.shape[1 if isinstance(module, nn.Linear) else 0])  # type: ignore[index]


@register
@dataclass(kw_only=True)
class Reinit(Method):
    """The last blocks and the pooler begin afresh."""

    layers: Annotated[
        int, Field(ge=0, description="how many of the last blocks are drawn afresh, the pooler with them; 0: nothing")
    ] = 1

    neutral = {"layers": 0}  # noqa: RUF012
    suggests = {"learning_rate": 5e-5}  # noqa: RUF012

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Draw the last blocks and the pooler afresh.

        Raises:
            MethodError: the base has fewer blocks, or an adapter is trained.
        """
        if not self.layers:
            return model
        _refuse_adapter(model)
        _, blocks = run.anatomy.block_stacks(model)[-1]
        if self.layers > len(blocks):
            raise MethodError(
                f"reinit: layers = {self.layers}, and this base has {len(blocks)} blocks",
                why="No more blocks can be drawn afresh than there are" + (
                    " in its decoder." if run.anatomy.encoder_decoder else "."
                ),
                fix=f"layers={len(blocks)}   (or fewer)",
            )  # fmt: skip
        pooler = getattr(run.anatomy.backbone(model), run.anatomy.pooler, None) if run.anatomy.pooler else None
        generator = Generator().manual_seed(run.seed)
        for module in (*blocks[-self.layers :], *([] if pooler is None else [pooler])):
            redraw(module, model.config, generator)
        return model

    def param_groups(self, model: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The groups as they are; a method after this one may have wrapped the model with an adapter, an error."""
        if self.layers:
            _refuse_adapter(model)
        return groups


def _refuse_adapter(model: nn.Module) -> None:
    if hasattr(model, "peft_config"):
        raise MethodError(
            "reinit cannot be combined with an adapter",
            why="What is stored is the adapter alone: on the base as it is, without the re-drawn blocks, it answers "
            "otherwise.",
            fix="--method full --method reinit",
        )
