"""Rules for `torch.vmap`: the dimension that is mapped over becomes part of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lrnn.ops.schema import gated_backward, library, plain_backward, recurrence

__all__: list[str] = []


def _flattened(x: Tensor | None, dim: int | None, size: int, batch: int) -> Tensor | None:
    """A tensor under vmap as an ordinary one: its vmapped dimension becomes part of B."""
    if x is None:
        return None
    x = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    if x.ndim == 2 and x.is_floating_point() | x.is_complex():  # a gate's parameter (D,)
        x = x[:, None].expand(size, batch, x.shape[-1])
    return x.flatten(0, 1)


def _vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
    gate, readout, pre, h0, lengths, reset, *options = arguments[:9]  # `given` is of other rows
    _, _, pre_dims, h0_dim, lengths_dim, reset_dim, *_ = in_dims
    N = info.batch_size
    B = next(
        p.shape[0 if d != 0 else 1]
        for p, d in zip(pre, pre_dims, strict=True)
        if p.ndim - (d is not None) == 3
    )
    outputs = recurrence(
        gate,
        readout,
        [_flattened(p, d, N, B) for p, d in zip(pre, pre_dims, strict=True)],
        _flattened(h0, h0_dim, N, B),
        _flattened(lengths, lengths_dim, N, B),
        _flattened(reset, reset_dim, N, B),
        *options,
    )
    return _unflattened(outputs, N)


def _vmap_backward(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
    tensors, options = arguments[:7], arguments[7:]
    N = info.batch_size
    flat = (_flattened(x, d, N, 0) for x, d in zip(tensors, in_dims[:7], strict=True))
    return _unflattened(plain_backward(*flat, *options), N)


def _vmap_gated_backward(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
    gate, readout, pre, *tensors = arguments[:9]
    pre_dims, dims, N = in_dims[2], in_dims[3:9], info.batch_size
    h, h_dim = tensors[0], dims[0]
    B = h.shape[0] if h_dim is None else h.movedim(h_dim, 0).shape[1]
    flat = [_flattened(p, d, N, B) for p, d in zip(pre, pre_dims, strict=True)]
    others = (_flattened(x, d, N, 0) for x, d in zip(tensors, dims, strict=True))
    gradients, dh0 = gated_backward(gate, readout, flat, *others, *arguments[9:12])
    gradients = [g.unflatten(0, (N, B)) for g in gradients]
    for i, (p, d) in enumerate(zip(pre, pre_dims, strict=True)):
        if p.ndim - (d is not None) == 1:  # each row had a copy of it
            gradients[i] = gradients[i].sum(1)
    return (gradients, dh0.unflatten(0, (N, B))), ([0] * len(gradients), 0)


def _unflattened(outputs: Sequence[Tensor], size: int) -> tuple[Any, Any]:
    # An empty tensor stands for "no readout"; it has no B.
    return (
        tuple(y.reshape(size, -1, *y.shape[1:]) if y.ndim > 1 else y for y in outputs),
        tuple(0 if y.ndim > 1 else None for y in outputs),
    )


for _rule, _name in (
    (_vmap, "gated_recurrence"),
    (_vmap_backward, "recurrence_backward"),
    (_vmap_gated_backward, "gated_backward"),
):
    torch.library.register_vmap(f"lightning_lrnn::{_name}", _rule, lib=library)
