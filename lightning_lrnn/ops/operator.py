"""The operator: schema, autograd, shapes for tracing, vmap. Everything below it is a backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from lightning_lrnn import backends, gates
from lightning_lrnn.core.adjoint import adjoint
from lightning_lrnn.core.dtypes import state_dtype
from lightning_lrnn.core.unfused import (
    decays_and_impulses,
    forward_around,
    like_sequence,
    read_out,
    sequence,
    widened,
)
from lightning_lrnn.gates import derivative as derivative
from lightning_lrnn.ops import projections
from lightning_lrnn.ops.batched_gradients import is_batched, one_by_one
from lightning_lrnn.ops.direct_calls import (
    check_backward,
    check_forward,
    check_gated_backward,
    check_one_device,
)
from lightning_lrnn.ops.profiling import observed

__all__ = ["call", "computed_by", "last_backend", "unobserved"]


def call(gate: str, readout: str, pre: Sequence[Tensor], *arguments: Any) -> tuple[Tensor, Tensor]:
    """The operator, differentiable in eager mode, under torch.compile and under torch.func."""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        # Forward-mode derivatives, of which there are none, are refused there, not lost.
        # torch.func sees an autograd.Function, not one inside an operator's autograd kernel.
        y, _, h_final = _differentiable(gate, readout, *arguments, *pre)
    elif not unobserved(*pre, *arguments[:3]):
        y, _, h_final = _operator(gate, readout, pre, *arguments)
    elif torch.is_grad_enabled() and torch._C._any_requires_grad(*pre, arguments[0]):
        y, _, h_final = _directly_differentiable(gate, readout, *arguments, *pre)
    else:
        y, _, h_final = _compute(gate, readout, pre, *arguments)
    return y, h_final


def unobserved(*tensors: Tensor | None) -> bool:
    """Whether nothing can tell an operator from the Python function behind it.

    Then that is called: the dispatcher's ways into Python take longer than a small recurrence.
    Tracing, fake tensors and other subclasses, modes and the profiler see the operator.
    """
    return (
        not torch.compiler.is_compiling()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._autograd._profiler_enabled()
        and not torch._C._are_functorch_transforms_active()
        and all(x is None or type(x) is Tensor or type(x) is Parameter for x in tensors)
    )


_last: str | None = None


def computed_by(backend: str) -> None:
    """Notes which backend computes a recurrence."""
    global _last
    _last = backend


def last_backend() -> str | None:
    """The backend that computed the most recent recurrence of this process, None before any."""
    return _last


# The operators. A gate's program passes through the schema as text, so that a backend which
# compiles gates into its kernel needs no other signature; `h` is the state where `y` is not.
_library = torch.library.Library("lightning_lrnn", "DEF")
_library.define(
    "gated_recurrence(str gate, str readout, Tensor[] pre, Tensor? h0, Tensor? lengths,"
    " Tensor? reset, bool reverse, bool exclusive, str backend)"
    " -> (Tensor y, Tensor h, Tensor h_final)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "recurrence_backward(Tensor a, Tensor y, Tensor? h0, Tensor? dy, Tensor? dh_final,"
    " Tensor? lengths, Tensor? reset, bool reverse, bool exclusive, str backend)"
    " -> (Tensor da, Tensor db, Tensor dh0)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "gated_backward(str gate, str readout, Tensor[] pre, Tensor h, Tensor? h0, Tensor? dy,"
    " Tensor? dh_final, Tensor? lengths, Tensor? reset, bool reverse, bool exclusive, str backend)"
    " -> (Tensor[] dpre, Tensor dh0)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_operator = torch.ops.lightning_lrnn.gated_recurrence.default
_backward_operator = torch.ops.lightning_lrnn.recurrence_backward.default
_gated_backward_operator = torch.ops.lightning_lrnn.gated_backward.default


@observed
def _compute(
    gate: str,
    readout: str,
    pre: Sequence[Tensor],
    h0: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
    exclusive: bool,
    backend: str,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """y, the states if y is not them, and the final state."""
    computed_by(backend)
    if _fused(gate, readout, pre, backend):
        arguments = (_dense(h0), _dense(lengths), _dense(reset))
        options = {"reverse": reverse, "exclusive": exclusive}
        y, h, h_final = backends.load(backend).run_gated(gate, readout, pre, *arguments, **options)
        return y, h if readout else None, h_final
    run = partial(_run, backend, reverse=reverse, exclusive=exclusive)
    y, h, h_final = forward_around(run, gate, readout, pre, h0, lengths, reset)
    return y, h if readout else None, h_final


def _forward(
    gate: str, readout: str, pre: Sequence[Tensor], *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    h0, lengths, reset, _, _, backend = arguments
    check_forward(gate, readout, pre, h0, lengths, reset, backend)
    y, h, h_final = _compute(gate, readout, pre, *arguments)
    return y, y.new_empty(0) if h is None else h, h_final


def _called_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    a, y, h0, dy, dh_final, lengths, reset, _, _, backend = arguments
    check_backward(a, y, h0, dy, dh_final, lengths, reset, backend)
    gradients: tuple[Tensor, Tensor, Tensor] = _backward(*arguments)
    return gradients


def _called_gated_backward(
    gate: str, readout: str, pre: list[Tensor], h: Tensor, h0: Tensor | None, *arguments: Any
) -> tuple[list[Tensor], Tensor]:
    dy, dh_final, lengths, reset, _, _, backend = arguments
    check_gated_backward(gate, readout, pre, h, h0, dy, dh_final, lengths, reset, backend)
    if h.numel() == 0:
        zero = h.new_zeros(h.shape[0], h.shape[2], dtype=state_dtype(h.dtype))
        return [torch.zeros_like(p) for p in pre], zero if dh_final is None else dh_final.clone()
    gradients: tuple[list[Tensor], Tensor] = _gated_backward(gate, readout, pre, h, h0, *arguments)
    return gradients


def _fused(gate: str, readout: str, pre: Sequence[Tensor], backend: str) -> bool:
    """Whether the backend computes gate and readout, not PyTorch; the plain recurrence has none."""
    x = sequence(pre)
    if x.numel() == 0 or (gate == gates.IDENTITY and not readout):
        return False
    return backends.fuses(backend, backends.Request(x.device, x.dtype))


def _run(
    backend: str,
    a: Tensor,
    b: Tensor,
    h0: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    **options: bool,
) -> tuple[Tensor, Tensor]:
    B, T, D = b.shape
    if b.numel() == 0:
        zero = b.new_zeros(B, D, dtype=state_dtype(b.dtype))
        return b.new_empty(B, T, D), zero if h0 is None else h0.clone()
    y, h_final = backends.load(backend).run(
        a, b, _dense(h0), _dense(lengths), _dense(reset), **options
    )
    return y, h_final


@observed
def _backward(
    a: Tensor,
    y: Tensor,
    h0: Tensor | None,
    dy: Tensor | None,
    dh_final: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
    exclusive: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    if dy is None:
        dy = y.new_zeros(()).expand(y.shape)
    if y.numel() == 0:
        zero = y.new_zeros(y.shape[0], y.shape[2], dtype=state_dtype(y.dtype))
        return (
            torch.empty_like(y),
            torch.empty_like(y),
            zero if dh_final is None else dh_final.clone(),
        )
    arguments = (a, y, _dense(h0), dy, _dense(dh_final), _dense(lengths), _dense(reset))
    module = backends.load(backend)
    if hasattr(module, "run_backward"):
        gradients = module.run_backward(*arguments, reverse=reverse, exclusive=exclusive)
    else:
        gradients = adjoint(module.run, *arguments, reverse=reverse, exclusive=exclusive)
    da, db, dh0 = (g.contiguous() for g in gradients)
    return da, db, dh0


@observed
def _gated_backward(
    gate: str,
    readout: str,
    pre: list[Tensor],
    h: Tensor,
    h0: Tensor | None,
    dy: Tensor | None,
    dh_final: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
    exclusive: bool,
    backend: str,
    into: list[Tensor | None] | None = None,
) -> tuple[list[Tensor], Tensor]:
    if dy is None:
        x = sequence(pre)
        y = (
            read_out(readout, h[:, :0], [p[:, :0] if p.ndim == 3 else p for p in pre], None)
            if readout
            else h
        )
        dy = torch.zeros((), dtype=y.dtype, device=x.device).expand(x.shape)
    arguments = (h, _dense(h0), dy, _dense(dh_final), _dense(lengths), _dense(reset))
    options: dict[str, Any] = {"reverse": reverse, "exclusive": exclusive}
    if into is not None:
        options["into"] = into
    module = backends.load(backend)
    dpre, dh0 = module.run_gated_backward(gate, readout, pre, *arguments, **options)
    return dpre, dh0


def _like_projection(pre: Sequence[Tensor], in_place: bool) -> list[Tensor | None] | None:
    """Chunks of one tensor for the gradients of sequences that are chunks of one, else None."""
    sequences = [p for p in pre if p.ndim == 3]
    projection = projections.joined(sequences) if len(sequences) > 1 else None
    if projection is None:
        return None
    if in_place:
        return [p if p.ndim == 3 else None for p in pre]
    chunks = iter(torch.empty_like(projection).chunk(len(sequences), -1))
    return [next(chunks) if p.ndim == 3 else None for p in pre]


def _keep_graph() -> bool:
    """Whether the present backward pass leaves the graph for another one."""
    asked = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return asked is None or asked()


def _gated_backward_fake(
    gate: str, readout: str, pre: list[Tensor], h: Tensor, *rest: Any
) -> tuple[list[Tensor], Tensor]:
    check_one_device(*pre, h, *rest[:5])
    dh0 = h.new_empty((h.shape[0], h.shape[2]), dtype=state_dtype(h.dtype))
    return [p.new_empty(p.shape) for p in pre], dh0


def _in_state(x: Tensor | None) -> Tensor | None:
    """In the dtype of a state."""
    return None if x is None else x.to(state_dtype(x.dtype))


def _dense(x: Tensor | None) -> Tensor | None:
    """Small tensors are handed to backends contiguous."""
    return None if x is None else x.contiguous()


def _forward_fake(
    gate: str, readout: str, pre: list[Tensor], *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    check_one_device(*pre, *rest[:3])
    x = sequence(pre)
    b = decays_and_impulses(gate, pre)[1]
    h = b.new_empty(x.shape, dtype=like_sequence(x, b.is_complex()))
    h_final = b.new_empty((x.shape[0], x.shape[2]))
    if not readout:
        return h, h.new_empty(0), h_final
    return torch.empty_like(read_out(readout, h, pre, None)).contiguous(), h, h_final


def _backward_fake(a: Tensor, y: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    check_one_device(a, y, *rest[:5])
    dh0 = y.new_empty((y.shape[0], y.shape[2]), dtype=state_dtype(y.dtype))
    return y.new_empty(y.shape), y.new_empty(y.shape), dh0


def _differentiate(
    ctx: Any,
    dy: Tensor | None,
    of_h: Tensor | None,
    dh_final: Tensor | None,
    again: bool = False,
) -> tuple[Any, ...]:
    """The gradients of all arguments; `again`: what was kept is needed again."""
    given = dy, of_h, dh_final
    if any(x is not None and is_batched(x) for x in given):
        return one_by_one(partial(_differentiate, ctx, again=True), given)
    *kept, h, h0, lengths, reset = ctx.saved_tensors
    reverse, exclusive, backend = ctx.options
    # `of_h`: the gradient of the gradient depends on the states.
    fused = ctx.fused and of_h is None and not torch.is_grad_enabled()
    # What was not kept has no influence, but for its shape and dtype.
    absent = h.new_empty if fused or ctx.gate == gates.IDENTITY else h.new_zeros
    pre = [
        absent((), dtype=dtype).expand(h.shape) if p is None else p
        for p, dtype in zip(kept, ctx.dtypes, strict=True)
    ]
    if fused:
        arguments = (
            *(ctx.gate, ctx.readout, pre, h, h0, dy, dh_final, lengths, reset),
            *(reverse, exclusive, backend),
        )
        if unobserved(*pre, h, dy):
            # A CUDA kernel reads its inputs as what nothing writes.
            last = h.device.type == "cpu" and not again and not _keep_graph()
            into = _like_projection(pre, in_place=ctx.given_away and last)
            gradients, dh0 = _gated_backward(*arguments, into=into)
        else:  # an operator's results share no memory
            gradients, dh0 = _gated_backward_operator(*arguments)
        return None, None, None if h0 is None else dh0, *[None] * 5, *gradients

    def of_readout(h: Tensor, *pre: Tensor) -> Tensor:
        return read_out(ctx.readout, h, pre, lengths)

    def of_gate(*pre: Tensor) -> tuple[Tensor, Tensor]:
        return decays_and_impulses(ctx.gate, pre)

    plain = ctx.gate == gates.IDENTITY and not ctx.readout
    if not plain:
        state = state_dtype(h.dtype)
        pre, h, dy, of_h = widened(pre), h.to(state), _in_state(dy), _in_state(of_h)
    dh, dpre = None if ctx.readout else dy, None
    if ctx.readout and dy is not None:
        pullback_readout = torch.func.vjp(of_readout, h, *pre)[1]
        dh, *dpre = pullback_readout(dy)
    if of_h is not None and ctx.readout:
        dh = of_h if dh is None else dh + of_h

    pullback_gate = None
    a = pre[0]
    if not plain:
        (a, _), pullback_gate = torch.func.vjp(of_gate, *pre)[:2]
    if torch.is_grad_enabled():
        # Double backward: the same mathematics by the differentiable operator.
        def recurrence(
            a: Tensor,
            b: Tensor,
            h0: Any,
            lengths: Any,
            reset: Any,
            *,
            reverse: bool,
            exclusive: bool,
        ) -> tuple[Tensor, Tensor]:
            options = (h0, lengths, reset, reverse, exclusive, backend)
            return call(gates.IDENTITY, "", [a, b], *options)

        dh = torch.zeros_like(h) if dh is None else dh
        da, db, dh0 = adjoint(
            recurrence,
            a,
            h,
            h0,
            dh,
            dh_final,
            lengths,
            reset,
            reverse=reverse,
            exclusive=exclusive,
        )
    else:
        backward = _backward if unobserved(a, h, dh) else _backward_operator
        da, db, dh0 = backward(a, h, h0, dh, dh_final, lengths, reset, reverse, exclusive, backend)
    gradients = [da, db] if pullback_gate is None else list(pullback_gate((da, db)))
    if dpre is not None:
        gradients = [g + d for g, d in zip(gradients, dpre, strict=True)]
    gradients = [g.to(dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True)]
    return None, None, None if h0 is None else dh0, *[None] * 5, *gradients


class _Differentiable(torch.autograd.Function):
    """The operator with its gradient; tensors by position, so that autograd sees each."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gate: str, readout: str, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            result: tuple[Tensor, Tensor, Tensor] = _operator(
                gate, readout, arguments[6:], *arguments[:6]
            )
        return result

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor | None, Tensor]
    ) -> None:
        ctx.gate, ctx.readout, h0, lengths, reset, *ctx.options = inputs[:8]
        y, h, _ = output
        pre = inputs[8:]
        ctx.fused = _fused(ctx.gate, ctx.readout, pre, ctx.options[-1])
        # Where PyTorch evaluates the gate it wants all of them.
        kept: Sequence[bool] = [True] * len(pre)
        if ctx.fused or ctx.gate == gates.IDENTITY:
            kept = derivative.needed(ctx.gate, ctx.readout, tuple(p.is_complex() for p in pre))
        ctx.dtypes = [p.dtype for p in pre]
        ctx.given_away = projections.given_away([p for p in pre if p.ndim == 3])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(
            *(p if keep or p.ndim < 3 else None for p, keep in zip(pre, kept, strict=True)),
            *(h if ctx.readout else y, h0, lengths, reset),
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        return _differentiate(ctx, *gradients)


class _DirectlyDifferentiable(torch.autograd.Function):
    """The same around the Python function, for `unobserved` calls.

    In the form that torch.func does not take: for the other one PyTorch inspects the signature of
    `forward` at every call.
    """

    @staticmethod
    def forward(
        ctx: Any, gate: str, readout: str, *arguments: Any
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        output = _compute(gate, readout, arguments[6:], *arguments[:6])
        _Differentiable.setup_context(ctx, (gate, readout, *arguments), output)
        return output

    backward = _Differentiable.backward


_differentiable: Callable[..., tuple[Tensor, Tensor, Tensor]] = _Differentiable.apply
_directly_differentiable: Callable[..., tuple[Tensor, Tensor | None, Tensor]] = (
    _DirectlyDifferentiable.apply
)


def _autograd(
    keys: torch._C.DispatchKeySet, gate: str, readout: str, pre: list[Tensor], *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    result: tuple[Tensor, Tensor, Tensor]
    if torch.is_grad_enabled() and torch._C._any_requires_grad(*pre, *arguments):
        result = _differentiable(gate, readout, *arguments, *pre)
    else:
        below = keys & torch._C._after_autograd_keyset
        with torch._C._AutoDispatchBelowAutograd():
            result = _operator.redispatch(below, gate, readout, pre, *arguments)
    return result


def _folded(x: Tensor | None, dim: int | None, size: int, batch: int) -> Tensor | None:
    """A tensor under vmap as an ordinary one: its vmapped dimension becomes part of B."""
    if x is None:
        return None
    x = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    if x.ndim == 2 and x.is_floating_point() | x.is_complex():  # a gate's parameter (D,)
        x = x[:, None].expand(size, batch, x.shape[-1])
    return x.flatten(0, 1)


def _vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
    gate, readout, pre, h0, lengths, reset, *options = arguments
    _, _, pre_dims, h0_dim, lengths_dim, reset_dim, *_ = in_dims
    N = info.batch_size
    B = next(
        p.shape[0 if d != 0 else 1]
        for p, d in zip(pre, pre_dims, strict=True)
        if p.ndim - (d is not None) == 3
    )
    outputs = _operator(
        gate,
        readout,
        [_folded(p, d, N, B) for p, d in zip(pre, pre_dims, strict=True)],
        _folded(h0, h0_dim, N, B),
        _folded(lengths, lengths_dim, N, B),
        _folded(reset, reset_dim, N, B),
        *options,
    )
    return _unfolded(outputs, N)


def _vmap_backward(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
    tensors, options = arguments[:7], arguments[7:]
    N = info.batch_size
    folded = (_folded(x, d, N, 0) for x, d in zip(tensors, in_dims[:7], strict=True))
    return _unfolded(_backward_operator(*folded, *options), N)


def _vmap_gated_backward(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
    gate, readout, pre, *tensors = arguments[:9]
    pre_dims, dims, N = in_dims[2], in_dims[3:9], info.batch_size
    h, h_dim = tensors[0], dims[0]
    B = h.shape[0] if h_dim is None else h.movedim(h_dim, 0).shape[1]
    folded = [_folded(p, d, N, B) for p, d in zip(pre, pre_dims, strict=True)]
    others = (_folded(x, d, N, 0) for x, d in zip(tensors, dims, strict=True))
    gradients, dh0 = _gated_backward_operator(gate, readout, folded, *others, *arguments[9:])
    gradients = [g.unflatten(0, (N, B)) for g in gradients]
    for i, (p, d) in enumerate(zip(pre, pre_dims, strict=True)):
        if p.ndim - (d is not None) == 1:  # each row had a copy of it
            gradients[i] = gradients[i].sum(1)
    return (gradients, dh0.unflatten(0, (N, B))), ([0] * len(gradients), 0)


def _unfolded(outputs: Sequence[Tensor], size: int) -> tuple[Any, Any]:
    # An empty tensor stands for "no readout"; it has no B.
    return (
        tuple(y.reshape(size, -1, *y.shape[1:]) if y.ndim > 1 else y for y in outputs),
        tuple(0 if y.ndim > 1 else None for y in outputs),
    )


_library.impl("gated_recurrence", _forward, "CompositeExplicitAutograd")
_library.impl("recurrence_backward", _called_backward, "CompositeExplicitAutograd")
_library.impl("gated_backward", _called_gated_backward, "CompositeExplicitAutograd")
torch.library.register_fake("lightning_lrnn::gated_recurrence", _forward_fake, lib=_library)
torch.library.register_fake("lightning_lrnn::recurrence_backward", _backward_fake, lib=_library)
torch.library.register_fake("lightning_lrnn::gated_backward", _gated_backward_fake, lib=_library)
_library.impl("gated_recurrence", _autograd, "Autograd", with_keyset=True)
torch.library.register_vmap("lightning_lrnn::gated_recurrence", _vmap, lib=_library)
torch.library.register_vmap("lightning_lrnn::recurrence_backward", _vmap_backward, lib=_library)
torch.library.register_vmap("lightning_lrnn::gated_backward", _vmap_gated_backward, lib=_library)
