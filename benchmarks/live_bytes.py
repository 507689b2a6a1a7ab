"""Count the bytes of tensors that are alive, by watching every operation: the peak a piece of training really had.

The allocator's own counters exist on GPUs only, and a process's resident memory says more of the allocator's habits
than of the tensors. Here every storage an operation gives is counted once, from its birth to its death.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """``with LiveBytes() as live: ...``; then ``live.peak`` and ``live.now``, in bytes.

    Tensors that were there before the block count from the first operation that gives them out; a view or a result
    written in place adds nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):  # what was made elsewhere and comes in is nobody's new memory
            if isinstance(leaf, torch.Tensor):
                self._note(leaf, counted=False)
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf, counted=True)
        return result

    def _note(self, tensor: torch.Tensor, *, counted: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes() if counted else 0
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
