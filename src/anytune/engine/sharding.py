"""What a launcher's processes do with the weights: a copy in each (DDP), or a part in each (FSDP2).

Sharded, the blocks of the model are one unit each and everything else (embeddings, norms, heads) is another, the
root. A unit's whole weights are put together just before it computes. Hooks do that, so everything has to be called
through the root: training calls the step module through it, and scoring the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from anytune.engine.runtime import Runtime
from anytune.errors import MethodError, TrainingError
from anytune.methods.parts import is_part, whole
from anytune.methods.protocol import Batch, Method, Terms
from anytune.methods.step import trainable
from anytune.models.anatomy import anatomy_of

#: What ``fully_shard`` leaves on modules beside its hooks and its class.
_MARKS = ("__composable_api_state_key", "_is_fsdp_managed_module", "_fsdp_use_orig_params")


class Placed(Protocol):
    """The step module where the launcher's processes need it."""

    def step(self, batch: Batch) -> Terms:
        """Loss terms of a micro-batch."""

    def between(self) -> AbstractContextManager[Any]:
        """Entered around forward and backward of a micro-batch that is not the last of its step."""

    def settle(self) -> None:
        """Called after the backward pass of a step's last micro-batch."""


class Alone:
    """In one process, as accelerate prepared it."""

    def __init__(self, module: nn.Module, accelerator: Any) -> None:
        self._module, self._accelerator = module, accelerator

    def step(self, batch: Batch) -> Terms:
        """Loss terms of a micro-batch."""
        terms: Terms = self._module(batch)
        return terms

    def between(self) -> AbstractContextManager[Any]:
        """Nothing to put off."""
        context: AbstractContextManager[Any] = self._accelerator.no_sync(self._module)
        return context

    def settle(self) -> None:
        """Nothing to look after."""


class Root(nn.Module):
    """The outermost unit: calls what it is given while the weights outside the blocks are whole."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(*arguments)``."""
        return function(*arguments)


class ShardedModel:
    """A model whose weights are split up over the processes, in place.

    Args:
        module: the step module.
        model: the model inside it; afterwards its parameters are DTensors, new objects under the old names.

    Raises:
        BaseError: the kind of model is not known, so that nobody can say where its blocks are.
    """

    def __init__(self, module: nn.Module, model: nn.Module, runtime: Runtime) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self.model, self.module = model, module
        mesh = init_device_mesh(runtime.device.type, (runtime.world,))
        self.root: Any = Root(module)
        self._classes = {inner: type(inner) for inner in module.modules()}
        for block in anatomy_of(model).block_modules(model):
            fully_shard(block, mesh=mesh)
        # the root stays whole between forward and backward: it is needed at once again
        fully_shard(self.root, mesh=mesh, reshard_after_forward=False)

    def step(self, batch: Batch) -> Terms:
        """Loss terms of a micro-batch."""
        terms: Terms = self.root(self.module, batch)
        return terms

    def between(self) -> AbstractContextManager[Any]:
        """Gradients are summed and split up after every micro-batch: whole ones would need the memory to be saved."""
        return nullcontext()

    def settle(self) -> None:
        """Nothing to look after."""

    def call(self, function: Callable[[nn.Module], Any]) -> Any:
        """``function(model)`` without gradients; the function may call the model or any part of it."""
        try:
            return self.root(function, self.model)
        finally:
            self.root.reshard()

    def check(self) -> None:
        """Raise TrainingError unless every weight is split up."""
        whole = [name for name, parameter in self.model.named_parameters() if not is_part(parameter)]
        if whole:
            raise TrainingError(
                f"sharding was asked for, and {len(whole)} weights are whole in every process, first {whole[0]}",
                why="Something put them back or added them after the model was split up.",
                fix="--training sharding=none",
            )

    @torch.no_grad()
    def undo(self) -> None:
        """Put plain whole parameters back and take every trace of sharding off the modules."""
        from torch.distributed.fsdp import FSDPModule

        joined: dict[Tensor, nn.Parameter] = {}
        for inner, kind in self._classes.items():
            for name, parameter in inner._parameters.items():
                if parameter is not None and is_part(parameter):
                    if parameter not in joined:  # tied weights stay tied
                        joined[parameter] = nn.Parameter(whole(parameter), parameter.requires_grad)
                    inner._parameters[name] = joined[parameter]
            if isinstance(inner, FSDPModule):
                inner.__class__ = kind  # type: ignore[assignment]
                for hooks in (inner._forward_pre_hooks, inner._forward_hooks):
                    for key in [key for key, hook in hooks.items() if _is_fsdp(hook)]:
                        del hooks[key]
            for mark in [name for name in vars(inner) if name.startswith(_MARKS)]:
                delattr(inner, mark)


def _is_fsdp(hook: Any) -> bool:
    return type(getattr(hook, "__self__", None)).__module__.startswith("torch.distributed.fsdp")


def check_sharded(methods: Sequence[Method]) -> None:
    """Refuse methods that need whole weights.

    Raises:
        MethodError: names the first one.
    """
    for method in methods:
        if not method.sharded:
            raise MethodError(
                f"method '{method.name}' cannot run with sharding=fsdp",
                why="It computes on whole weights between the steps, and each process holds a part of them.",
                fix="--training sharding=none",
            )


def like(tensor: Tensor, model: Any) -> Tensor:
    """``tensor`` split up as ``model`` is; a tensor of another shape (a step count) stays as it is."""
    if not is_part(model) or is_part(tensor) or tensor.shape != model.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    # every process has read the whole: each takes its part, nothing is sent
    return distribute_tensor(tensor.to(model.device), model.device_mesh, model.placements, src_data_rank=None)


class Copies:
    """The step module in DDP: each process has a copy, gradients are averaged while they are computed.

    Some models have weights that a loss does not reach (a pooler). DDP can look for them in every step, which costs a
    walk through the graph. So the first step is made without DDP, its gradients averaged here; then it is known
    whether there are any.

    Args:
        varying: the loss reaches other weights from step to step, so DDP has to look every time.
    """

    def __init__(self, module: nn.Module, runtime: Runtime, varying: bool) -> None:
        self._module, self._runtime, self._varying = module, runtime, varying
        self._wrapped = self._wrap(looking=True) if varying else None
        self._unreached: set[str] = set()
        with torch.no_grad():
            for tensor in (*module.parameters(), *module.buffers()):
                torch.distributed.broadcast(tensor, src=0)

    def _wrap(self, looking: bool) -> nn.parallel.DistributedDataParallel:
        device = self._runtime.device
        return nn.parallel.DistributedDataParallel(
            self._module, device_ids=[device] if device.type == "cuda" else None, find_unused_parameters=looking
        )

    def step(self, batch: Batch) -> Terms:
        """Loss terms of a micro-batch."""
        terms: Terms = (self._wrapped or self._module)(batch)
        return terms

    def between(self) -> AbstractContextManager[Any]:
        """Gradients are averaged once a step."""
        return nullcontext() if self._wrapped is None else self._wrapped.no_sync()

    def settle(self) -> None:
        """After the first step: average its gradients and hand over to DDP. Later: notice a weight without one.

        Raises:
            MethodError: a weight that had a gradient in the first step has none: the processes would drift apart.
        """
        if self._varying:
            return
        if self._wrapped is None:
            self._unreached = self._average()
            self._wrapped = self._wrap(looking=bool(self._unreached))
            return
        for name, weight in trainable(self._module).items():
            if weight.grad is None and name not in self._unreached:
                raise MethodError(
                    f"{name.removeprefix('model.')} had a gradient in the first step and has none in this one",
                    why="With several processes the gradients would no longer be averaged, without an error.",
                    fix="a method whose loss reaches other weights from step to step declares 'varying = True'",
                )

    @torch.no_grad()
    def _average(self) -> set[str]:
        """Average the gradients over the processes; the names of weights that have none in any."""
        weights = trainable(self._module)
        reached = torch.tensor([weight.grad is not None for weight in weights.values()], device=self._runtime.device)
        reached = reached.to(torch.int32)
        torch.distributed.all_reduce(reached)
        for weight, count in zip(weights.values(), reached.tolist(), strict=True):
            if count:
                weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
                weight.grad /= self._runtime.world  # first, as DDP does
                torch.distributed.all_reduce(weight.grad)
        return {name for name, count in zip(weights, reached.tolist(), strict=True) if not count}
