"""What pre-training methods share that reach from one stage of a stream of domains to the next.

Which weights they protect, what the stage before left for them, and the text of a stage to measure something on that
is no training step: with an order and masks of its own, so that training sees what it would have seen without.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from anytune.data.batches import BlockBatches
from anytune.data.splits import permutation, stable_seed
from anytune.errors import MethodError
from anytune.methods.of_base import weights_of_base
from anytune.methods.protocol import Batch, Method, Run


def backbone_weights(model: nn.Module, run: Run, method: Method) -> dict[str, nn.Parameter]:
    """Name -> parameter of what is trained and goes on to later stages and tasks: all but the pre-training head.

    Raises:
        MethodError: there is none.
    """
    found = weights_of_base(model, run, method)
    found = {name: weight for name, weight in found.items() if run.anatomy.is_backbone(name)}
    if not found:
        raise MethodError(
            f"{method.name} found no weight of the backbone that is trained",
            why="Only the pre-training head is, and later stages and tasks do not stand on it.",
            fix="a method that trains the backbone",
        )
    return found


def carried_tensors(run: Run, method: Method, key: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the method left at the end of the stage before under ``key``, one tensor a weight; {} at a first stage.

    Weights that came since have none, and tensors of weights that are not trained now are kept.

    Raises:
        MethodError: what was left is for other weights, or for weights of another shape.
    """
    found: dict[str, Tensor] = dict(run.carried.get(method.name, {}).get(key, {}))
    if found and found.keys().isdisjoint(weights):
        raise MethodError(
            f"what {method.name} left with this base is for other weights, first {next(iter(found))}",
            why=f"The model's are named {next(iter(weights))} and so on.",
            fix="the base as the stage before left it, or a base that carries nothing",
        )
    for name, tensor in found.items():
        if name in weights and tensor.shape != weights[name].shape:
            raise MethodError(
                f"what {method.name} left for {name} has the shape {list(tensor.shape)}, "
                f"the weight {list(weights[name].shape)}",
                why="The base was changed between two stages, for instance its vocabulary.",
                fix="the base as the stage before left it, or a base that carries nothing",
            )
    return found


def first_values(run: Run, method: Method, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights as the method found them at the first stage it took part in: those carried, else copies of these.

    Weights that came since begin at what they are now. In main memory; to be carried on under the key "first".

    Raises:
        MethodError: see :func:`carried_tensors`.
    """
    found = carried_tensors(run, method, "first", weights)
    new = {name: weight.detach().to("cpu", copy=True) for name, weight in weights.items() if name not in found}
    return found | new


def measuring_batches(run: Run, method: Method, purpose: str, examples: int, rows: int) -> Iterator[Batch]:
    """Text of this stage to measure on: ``examples`` blocks (or all there are), ``rows`` a batch, each block once.

    Order and masks are drawn anew from the run's seed and ``purpose``. Batches that are not made of blocks (a loop of
    one's own) are taken as they are for training, in their order, until they hold as many examples.

    Raises:
        MethodError: the run does not know its batches.
    """
    batches: Any = run.needed("batches", method)
    if isinstance(batches, BlockBatches):
        order = permutation(len(batches.blocks), purpose, run.seed)[:examples].tolist()
        for start in range(0, len(order), rows):
            masks = torch.Generator().manual_seed(stable_seed(purpose, run.seed, start))
            yield batches.labelled(batches.blocks[order[start : start + rows]], masks)
        return
    seen = 0
    for number in range(batches.batches_per_epoch):
        if seen < examples:
            batch = batches.batch(number)
            seen += len(batch["input_ids"])
            yield batch


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on ``device``."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


@contextmanager
def answering(model: nn.Module) -> Iterator[None]:
    """Inside, the model answers without dropout; afterwards it is in the mode it was in."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


@torch.no_grad()
def as_in_the_first_process(tensors: Mapping[str, Tensor]) -> None:
    """What each process has measured becomes what process 0 has, in place: GPUs may differ in the last bit."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for tensor in tensors.values():
            torch.distributed.broadcast(tensor, src=0)
