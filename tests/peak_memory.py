"""The most bytes of tensors that were alive at once, those that autograd keeps included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Storages(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {key(v) for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)}
        out = func(*args, **(kwargs or {}))
        self.alive = {k: v for k, v in self.alive.items() if not v[0].expired()}
        for value in tree_leaves(out):
            if isinstance(value, Tensor) and key(value) not in given:
                storage = value.untyped_storage()
                self.alive[key(value)] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(nbytes for _, nbytes in self.alive.values()))
        return out


def key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def peak_memory(run: Callable[[], Any]) -> int:
    """Of what `run` makes; what was there before does not count."""
    with _Storages() as storages:
        run()
    return storages.peak
