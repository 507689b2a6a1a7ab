"""LNSR: noise that enters at a lower block must not grow on its way up.

In plain words: a little noise is added to what a block hands on, and the blocks above are computed once more with it.
How far their outputs move is added to the loss. The higher blocks so learn to be steady, and the tuned model differs
less from run to run.

Formula: L = CE + weight * sum_{r > k} mean ||h_r(x_k + eps) - h_r(x_k)||^2, x_k: [b, n, width] what block k gives, h_r
what block r gives for it, eps from N(0, norm^2 / width) so that a token's noise has the length ``norm``; the squared
length is over the width, its mean over the real tokens of each text and then over texts (over items, where a text has
several).

Paper: Hua et al. 2021 (LNSR, "Noise Stability Regularization for Improving BERT Fine-tuning").
Costs: a second forward and backward through the blocks above k only: with k a quarter of the way up, about 1.75 times
plain training; memory for their activations; no further state.
When not to use it: on a model of one block; where blocks above k get more than the block below gives them (a
convolution between the first two blocks of some DeBERTa models: choose a higher k).
Choices of ours: both passes drop the same units, so that the difference is the noise's alone, as the formula says.
``below``, ``norm`` and ``weight`` have no source: the paper's values are not in our notes. One weight for all blocks.
Of an encoder-decoder only the encoder is made steady. The noise is the paper's standard one, not its in-manifold one
(towards another text).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import Cache

from anytune.errors import MethodError
from anytune.methods.consistency import noise_like, token_weights
from anytune.methods.protocol import Batch, Method, Run, Terms
from anytune.methods.registry import register
from anytune.methods.step import upcast


def first_noisy(below: float, blocks: int) -> int:
    """How many of the blocks the noise stands above: at least 1, and at least one block is left above it.

    Raises:
        MethodError: there is only one block.
    """
    if blocks < 2:
        raise MethodError(
            f"the model has {blocks} block",
            why="Noise enters between two blocks, and what is above must be steady.",
            fix="another method",
        )
    return min(blocks - 1, max(1, round(below * blocks)))


def squared_change(clean: Tensor, noisy: Tensor, weights: Tensor) -> Tensor:
    """``sum over tokens of weight * ||noisy - clean||^2``, a scalar in fp32 or wider.

    Args:
        clean: hidden states ``[b, n, width]``.
        noisy: the same, with noise.
        weights: of each token, ``[b, n]``.
    """
    return ((upcast(noisy) - upcast(clean)).square().sum(dim=-1) * weights).sum()


class Recording:
    """What the upper blocks were given and gave in the first pass after it was made; closing it takes the hooks off.

    Args:
        reader: the module that is given the attention mask.
        blocks: the upper blocks, in order.
    """

    def __init__(self, reader: nn.Module, blocks: list[nn.Module]) -> None:
        self.blocks = blocks
        self.given: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self.gave: dict[int, Tensor] = {}
        self.mask: Tensor | None = None
        self.random: Tensor | None = None
        self._handles = [reader.register_forward_pre_hook(self._read, with_kwargs=True)]
        for number, block in enumerate(blocks):
            # first of all hooks: what others make of the arguments they make again in the second pass
            hook = self._pass_in(number)
            self._handles.append(block.register_forward_pre_hook(hook, prepend=True, with_kwargs=True))
            self._handles.append(block.register_forward_hook(self._pass_out(number)))

    def _read(self, module: nn.Module, arguments: Any, named: dict[str, Any]) -> None:
        mask = named.get("attention_mask")
        if self.mask is None and isinstance(mask, Tensor) and mask.ndim == 2:
            self.mask = mask

    def _pass_in(self, number: int) -> Any:
        def hook(module: nn.Module, arguments: Any, named: dict[str, Any]) -> None:
            if number not in self.given:
                self.given[number] = (arguments, named)
                if number == 0:
                    self.random = random_state(arguments[0].device)

        return hook

    def _pass_out(self, number: int) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            self.gave.setdefault(number, hidden_states(output))

        return hook

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def check(self) -> None:
        """Raise MethodError unless each block was given just what the block below it gave."""
        for number in range(1, len(self.blocks)):
            before, now = self.gave[number - 1], self.given[number][0][0]
            if before.shape != now.shape or before.data_ptr() != now.data_ptr():
                raise MethodError(
                    "between two of the blocks above the noise the model computes something else",
                    why="The blocks above would be computed a second time without it.",
                    fix="--set below=0.5   (noise that enters higher up)",
                )

    def again(self, noise: Tensor) -> Iterator[Tensor]:
        """What each block gives when ``noise`` is added to what the first was given; the same units are dropped."""
        hidden = self.given[0][0][0] + noise
        assert self.random is not None
        with random_from(self.random, hidden.device):
            outputs = []
            for number, block in enumerate(self.blocks):
                (_, *others), named = self.given[number]
                others = [None if isinstance(other, Cache) else other for other in others]
                named = {key: None if isinstance(value, Cache) else value for key, value in named.items()}
                hidden = hidden_states(block(hidden, *others, **named))
                outputs.append(hidden)
        yield from outputs


def hidden_states(output: Any) -> Tensor:
    """The hidden states in what a block gives: itself, or the first of a tuple."""
    return output if isinstance(output, Tensor) else output[0]


def random_state(device: torch.device) -> Tensor:
    """The state of the generator that dropout draws from on ``device``."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(state: Tensor, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


@contextmanager
def random_from(state: Tensor, device: torch.device) -> Iterator[None]:
    """Inside, what is drawn is what was drawn from ``state`` on; afterwards the generator goes on as before."""
    now = random_state(device)
    _set_random_state(state, device)
    try:
        yield
    finally:
        _set_random_state(now, device)


@register
@dataclass(kw_only=True)
class LNSR(Method):
    """Layer-wise noise stability regularisation."""

    weight: Annotated[float, Field(ge=0, le=1000, description="weight of each upper block's squared change")] = 1.0
    norm: Annotated[float, Field(gt=0, le=1000, description="length of the noise vector added to each token")] = 0.1
    below: Annotated[float, Field(ge=0, lt=1, description="share of the blocks that stand below the noise")] = 0.25

    neutral = {"weight": 0.0}  # noqa: RUF012 - nothing is drawn or computed then

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Find out how many blocks there are."""
        self._anatomy = run.anatomy
        self._recording: Recording | None = None
        self._model: nn.Module | None = None
        if self.weight:
            first_noisy(self.below, len(self._blocks(model)))
        return model

    def _blocks(self, model: nn.Module) -> list[nn.Module]:
        return self._anatomy.block_stacks(model)[0][1]

    def before_step(self, model: nn.Module) -> None:
        """Keep the model, which ``prepare_batch`` does not see."""
        self._model = model

    def prepare_batch(self, batch: Batch) -> Batch:
        """Have the coming pass recorded."""
        if self.weight and self._model is not None:
            self._close()
            blocks, anatomy = self._blocks(self._model), self._anatomy
            # where encoder and decoder are called one by one, the encoder is given the mask
            encoder = anatomy.blocks.split(".", 1)[0]
            backbone = anatomy.backbone(self._model)
            reader = backbone.get_submodule(encoder) if anatomy.encoder_decoder else backbone
            self._recording = Recording(reader, blocks[first_noisy(self.below, len(blocks)) :])
        return batch

    def objective(self, model: nn.Module, batch: Batch, output: Any, terms: Terms) -> Terms:
        """The plain terms, and how far noise moves what the upper blocks give."""
        if not self.weight:
            return terms
        recording = self._recording
        assert recording is not None
        self._close()
        recording.check()
        hidden = recording.given[0][0][0]
        mask = recording.mask if recording.mask is not None else hidden.new_ones(hidden.shape[:2])
        weights = token_weights(batch, mask, self._anatomy.causal, upcast(hidden).dtype)
        noise = noise_like(hidden.detach(), self.norm / math.sqrt(hidden.shape[-1]))
        changes = [
            squared_change(recording.gave[number], noisy, weights)
            for number, noisy in enumerate(recording.again(noise))
        ]
        return {**terms, "stability": self.weight * torch.stack(changes).sum()}

    def _close(self) -> None:
        if self._recording is not None:
            self._recording.close()
        self._recording = None

    def finish(self, model: nn.Module, run: Run) -> nn.Module:
        """Leave no hook behind."""
        self._close()
        self._model = None
        return model
