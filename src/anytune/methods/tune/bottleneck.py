"""Bottleneck adapters: train small residual networks inside a frozen base.

In plain words: behind the attention of every block, and behind its feed-forward network, stands a small network that
squeezes the hidden vector through a few numbers and adds the result to it. Only these networks and the head are
trained; the base stays as it is. On an upgraded base they are plugged in as they are.

Formula: h <- h + U act(D h + d) + u behind each output projection, with D: [width, hidden] and U: [hidden, width]
drawn from N(0, std^2), and d = u = 0 at the start: near the identity, not exactly it.

Paper: Houlsby et al. 2019 (Parameter-Efficient Transfer Learning for NLP); the places, width 24 and std 0.01 are those
of Qin, Qian et al. 2023 (Recyclable Tuning).
Costs: one forward and one backward per step (no weight gradients for the base); optimizer state for 2 * 2 * width *
hidden weights per block; some percent of time when answering, since the networks cannot be merged into the base.
When not to use it: when the result must be one plain model (LoRA merges, this does not), or other tools must read it
(PEFT has no such kind).
Choices of ours: layer norms stay frozen, as in the recycling scripts (the first paper trains them); the head is every
module the base does not hold; an encoder-decoder's decoder gets a third network, behind the attention to the encoder;
started from a stored delta of the same kind, it goes on with the delta's own networks. The rate that it suggests is
ours and not tuned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import nn

from anytune.errors import MethodError
from anytune.methods.protocol import Method, Run
from anytune.methods.registry import register
from anytune.models.bottleneck import (
    LARGEST,
    Activation,
    BottleneckConfig,
    attach_bottlenecks,
    bottleneck_names,
    bottlenecks_of,
)


@register
@dataclass(kw_only=True)
class BottleneckTuning(Method):
    """Small residual networks behind the output projections."""

    width: Annotated[int, Field(gt=0, le=LARGEST, description="how many numbers the vector is squeezed through")] = 24
    std: Annotated[float, Field(gt=0, le=1, description="standard deviation of the first weights")] = 0.01
    activation: Annotated[Activation, Field(description="what bends the squeezed vector")] = "gelu_tanh"

    neutral = None
    neutral_reason = "training added networks in place of the base's weights is the method; none has width 0"
    suggests = {"learning_rate": 1e-3}  # noqa: RUF012

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Freeze the base and put the networks in, drawn from the run's seed; those already there stay.

        Raises:
            MethodError: the model has networks made with other settings, or an adapter of another kind.
        """
        config, present = BottleneckConfig(self.width, self.activation), bottlenecks_of(model)
        if present is None:
            attach_bottlenecks(model, config, run.anatomy, run.seed, self.std)
        elif present.config != config:
            raise MethodError(
                f"bottleneck.width = {self.width}, activation = {self.activation}, and the weights that it starts "
                f"from have {present.config.width} and {present.config.activation}",
                why="A run that starts from stored networks goes on with these.",
                fix=f"--set width={present.config.width} --set activation={present.config.activation}",
            )
        # the base holds none of them: to whoever comes after, they are of the head
        run.head_names = list(dict.fromkeys((*run.head_names, *bottleneck_names(model))))
        head = set(run.head_names)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in head)
        return model
