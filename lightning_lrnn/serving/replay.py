"""Operations recorded once and replayed in the same memory: what a CUDA graph is, on a CPU.

All tensors of the recording are kept, and a replay writes into the same ones: an operation by its
`out` overload, a recurrence by its compiled steps. Views share memory and need no call. So a replay
allocates no tensor, and reads the current values of inputs and parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_lrnn.backends import Problem, prepared
from lightning_lrnn.core.pytorch import OpOverload

__all__ = ["Replay"]

aten = torch.ops.aten
Call = Callable[[], object]


class Replay(TorchDispatchMode):
    """Records what runs inside it: `with Replay() as recording: ...`, then `recording.run()`.

    Raises:
        RuntimeError: for an operation whose result a replay could not repeat.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self._alive: list[Tensor] = []
        """Keeps tensors alive: compiled steps have addresses, and no storage may be reused."""
        self._constant: set[int] = set()
        """Storages of results without inputs, such as an `arange`: not computed again."""

    def run(self) -> None:
        """Runs all recorded operations again, in order."""
        for call in self.calls:
            call()

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Runs an operation and records how to repeat it."""
        kwargs = kwargs or {}
        if func._can_decompose():  # composite operators arrive whole in inference mode
            with self:
                results = func.decompose(*args, **kwargs)
            if results is not NotImplemented:
                return results
        _check(func)
        inputs = _tensors((args, kwargs))
        if func._schema.is_mutable:
            self._restore(_written(func, args, kwargs))
            self.calls.append(partial(func, *args, **kwargs))
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        outputs = _tensors(result)
        known = {_storage(x) for x in inputs}
        if all(_storage(x) in known for x in outputs):
            return result
        self._alive += [*inputs, *outputs]
        if known <= self._constant:
            self._constant.update(map(_storage, outputs))
        else:
            self.calls.extend(_calls(func, args, kwargs, outputs))
        return result

    def _restore(self, tensors: Iterable[Tensor]) -> None:
        """Records that a replay first restores constants that an operation writes into."""
        for x in tensors:
            if _storage(x) in self._constant:
                self._constant.remove(_storage(x))
                self.calls.append(partial(x.copy_, x.clone()))


def _calls(
    func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: list[Tensor]
) -> list[Call]:
    """Calls that compute the outputs again, into the same memory."""
    if func in _WITHOUT_OUT:
        return [_WITHOUT_OUT[func](outputs[0], *args)]
    if func is torch.ops.lightning_lrnn.gated_recurrence.default:
        calls = _recurrence(args, outputs)
        if calls:
            return calls
    overload, names = _out_overload(func)
    if overload is not None and len(names) == len(outputs):
        return [partial(overload, *args, **kwargs, **dict(zip(names, outputs, strict=True)))]

    def call() -> None:  # allocates
        for old, new in zip(outputs, _tensors(func(*args, **kwargs)), strict=True):
            old.copy_(new)

    return [call]


def _recurrence(arguments: tuple[Any, ...], outputs: list[Tensor]) -> list[Call]:
    """The compiled steps of a recurrence, [] where there are none."""
    from lightning_lrnn.backends.cpu.gated import Gated  # llvmlite takes a while

    *fields, name = arguments
    problem = Problem(*fields)
    backend, h0 = prepared(name, problem), problem.h0
    if not isinstance(backend, Gated) or problem.lengths is not None or problem.reset is not None:
        return []
    y, h, h_final = outputs
    calls: list[Call] = []
    if h0 is not None and not h0.is_contiguous():
        calls.append(partial(h_final.copy_, h0))
        problem = problem._replace(h0=h_final)
    return [*calls, backend.bound(problem, y, h if problem.readout else y, h_final)]


def _out_overload(func: OpOverload) -> tuple[OpOverload | None, list[str]]:
    """The overload with `out` arguments, if there is one, and the names of these."""
    signature = [(a.name, str(a.type)) for a in func._schema.arguments]
    for name in func.overloadpacket.overloads():
        overload = getattr(func.overloadpacket, name)
        outs = [a.name for a in overload._schema.arguments if a.is_out]
        rest = [(a.name, str(a.type)) for a in overload._schema.arguments if not a.is_out]
        if len(outs) == len(func._schema.returns) and rest == signature:
            return overload, outs
    return None, []


def _copied(out: Tensor, x: Tensor, *_: Any) -> Call:
    return partial(out.copy_, x)


def _padded(out: Tensor, x: Tensor, pad: list[int], *_: Any) -> Call:
    """Copies x into the inside; the border has its values already."""
    inner = out
    for i in range(len(pad) // 2):
        dim = out.ndim - 1 - i
        inner = inner.narrow(dim, max(pad[2 * i], 0), x.shape[dim])
    return partial(inner.copy_, x)


def _looked_up(out: Tensor, weight: Tensor, indices: Tensor, *_: Any) -> Call:
    rows = out.view(-1, out.shape[-1])
    return partial(aten.index_select.out, weight, 0, indices.view(-1), out=rows)


_WITHOUT_OUT: dict[OpOverload, Callable[..., Call]] = {
    aten._to_copy.default: _copied,
    aten.clone.default: _copied,
    aten.constant_pad_nd.default: _padded,
    aten.embedding.default: _looked_up,
}
"""Operations whose `out` overload allocates a result and copies it."""


def _check(func: OpOverload) -> None:
    if torch.Tag.nondeterministic_seeded in func.tags:
        raise RuntimeError(
            f"{func} draws random numbers; `eval()` the module before it is recorded"
        )
    if func is aten._local_scalar_dense.default or torch.Tag.dynamic_output_shape in func.tags:
        raise RuntimeError(f"{func} depends on values, which a recorded step does not look at")


def _written(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    arguments = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
    mutable = [a.name for a in func._schema.arguments if a.alias_info and a.alias_info.is_write]
    return _tensors([arguments[name] for name in mutable if name in arguments])


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)
