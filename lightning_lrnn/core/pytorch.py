"""PyTorch's private names that this package uses, as checked with PyTorch 2.9 to 2.13.

None has a public counterpart. Where another version lacks one, the import ends with its name,
except where a way without it is noted. Used where they are needed: `torch.utils._pytree` and
`_python_dispatch`, and what a module inherits, as `_parameters` and `_load_from_state_dict`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.autograd import forward_ad
from torch.nn import Parameter

__all__ = [
    "OpOverload",
    "add_batch_dim",
    "any_requires_grad",
    "applied",
    "below_autograd",
    "collectives",
    "constant",
    "current_device",
    "current_stream",
    "dispatch_modes",
    "empty_strided",
    "forward_mode",
    "functorch",
    "functorch_wrapped",
    "group_named",
    "guard_of",
    "is_batched",
    "keep_graph",
    "keys_below_autograd",
    "node_of",
    "plain_eager",
    "plain_mode",
    "profiler",
    "remove_batch_dim",
]

Function = TypeVar("Function", bound=Callable[..., Any])

any_requires_grad: Callable[..., bool] = torch._C._any_requires_grad
"""Whether one of the tensors requires a gradient."""
dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
"""Number of active dispatch modes, which see every operator."""
profiler: Callable[[], bool] = torch._C._autograd._profiler_enabled
"""Whether the profiler records."""
functorch: Callable[[], bool] = torch._C._are_functorch_transforms_active
"""Whether a transform of torch.func is active."""
functorch_wrapped: Callable[[Any], bool] = torch._C._functorch.is_functorch_wrapped_tensor
"""Whether a tensor is wrapped by a transform of torch.func."""
below_autograd: Any = torch._C._AutoDispatchBelowAutograd
"""A context that calls operators below autograd."""
keys_below_autograd: Any = torch._C._after_autograd_keyset
"""The dispatch keys below autograd."""
is_batched: Callable[[Tensor], bool] = torch._C._functorch.is_legacy_batchedtensor
"""Whether a tensor is a batch made by the older vmap."""
add_batch_dim: Callable[..., Tensor] = torch._add_batch_dim
"""Makes a dimension of a tensor a batch of the older vmap."""
remove_batch_dim: Callable[..., Tensor] = torch._remove_batch_dim
"""Makes a batch of the older vmap a dimension again."""

current_device: Callable[[], int] = getattr(
    torch._C, "_cuda_getDevice", lambda: torch.cuda.current_device()
)
"""The index of the current CUDA device."""
current_stream: Callable[[int], int] = getattr(
    torch._C,
    "_cuda_getCurrentRawStream",
    lambda index: torch.cuda.current_stream(index).cuda_stream,
)
"""The handle of the current stream of a CUDA device, without an object around it."""


def _inductors(device: str) -> Callable[..., Tensor]:
    """Inductor's allocation, in half the time of PyTorch's, which reads no keywords."""
    guards: Any = getattr(torch._C, "_dynamo", None)
    own = getattr(getattr(guards, "guards", None), f"_empty_strided_{device}", None)
    if own is None:
        return lambda size, strides, dtype: torch.empty_strided(
            size, strides, dtype=dtype, device=device
        )
    allocate: Callable[..., Tensor] = own
    return allocate


empty_strided = {device: _inductors(device) for device in ("cpu", "cuda")}
"""By the type of the device, from (size, strides, dtype) to a tensor without values, on CUDA on the
current device. Sizes and strides are tuples, of no subclass. No mode sees it, and it fills nothing
where deterministic algorithms are asked for."""


def collectives() -> Any:
    """The collectives that a compiler sees: their results are waited for by `wait_tensor`."""
    return torch.ops._c10d_functional


def group_named(name: str) -> Any:
    """The process group of this name.

    Raises:
        RuntimeError: if there is none, or none any more.
    """
    from torch._C import _distributed_c10d  # not in every build of PyTorch

    return _distributed_c10d._resolve_process_group(name)  # type: ignore[arg-type]


def forward_mode() -> bool:
    """Whether forward-mode derivatives are computed."""
    return forward_ad._current_level >= 0


def plain_mode() -> bool:
    """`plain_eager` of ordinary tensors."""
    return not (
        torch.compiler.is_compiling()
        or dispatch_modes()
        or functorch()
        or profiler()
        or forward_ad._current_level >= 0
    )


def plain_eager(*tensors: Tensor | None) -> bool:
    """Whether a call is plain eager PyTorch: the function behind an operator will do.

    Tracing, transforms of torch.func, forward-mode derivatives, modes, the profiler, fake tensors
    and other subclasses see the operator.
    """
    if not plain_mode():
        return False
    for x in tensors:
        if type(x) is not Tensor and x is not None and type(x) is not Parameter:
            return False
    return True


def guard_of(*tensors: Tensor) -> Callable[..., bool] | None:
    """Dynamo's guard, which checks that other tensors are like these in 0.1 us a tensor.

    It compares the type, dtype, device, shape, strides, lazy conjugation and negation, whether a
    gradient is required, and the modes of the dispatcher (autograd, autocast, inference). For what
    is no tensor it is False. None where PyTorch has no such guard.
    """
    guards: Any = getattr(torch._C, "_dynamo", None)
    make = getattr(getattr(guards, "guards", None), "TensorGuards", None)
    if make is None:
        return None
    # Both keywords say that all sizes are fixed; without them it reads beyond its arguments.
    guard = make(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None)
    check: Callable[..., bool] = guard.check
    return check


def keep_graph() -> bool:
    """Whether the present backward pass leaves the graph for another one; True if not known."""
    query = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return query is None or query()


def applied(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """Its `apply` without the part in Python, 1 us, which is for torch.func."""
    apply: Callable[..., Any] = super(torch.autograd.Function, function).apply  # type: ignore[misc]
    return apply


def node_of(function: type[torch.autograd.Function]) -> type:
    """The type of `grad_fn` of what an autograd function returns."""
    node: type = function._backward_cls
    return node


def constant(function: Function) -> Function:
    """A function whose result torch.compile may take as a constant.

    It depends on nothing that changes while a process runs except its arguments. This is the mark
    that torch.compiler.assume_constant_result sets; calling that would import Dynamo, 2 s.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
