"""The operation: h_t = a_t * h_{t-1} + b_t. Checks, choice of the backend, operator, autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lrnn import backends, gates
from lightning_lrnn.adjoint import adjoint
from lightning_lrnn.backends import Request

__all__ = ["gated_recurrence", "last_backend", "linear_recurrence"]


def linear_recurrence(
    a: Tensor,
    b: Tensor,
    h0: Tensor | None = None,
    *,
    reverse: bool = False,
    exclusive: bool = False,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Linear recurrence h_t = a_t * h_{t-1} + b_t over time, elementwise in B and D.

    Equivalent to, in float64 and for one row,

        h = h0
        for t in range(T):
            h = a[t] * h + b[t]
            y[t] = h
        h_final = h

    Source: Martin & Cundy, "Parallelizing Linear Recurrent Neural Nets Over Sequence Length",
    ICLR 2018. NaN and infinities propagate as in the loop.

    Args:
        a: decays, (B, T, D) or (D,), float16, bfloat16, float32, float64, complex64 or complex128;
            of any sign and size. Read in place whatever its strides are.
        b: impulses, (B, T, D), of the same dtype.
        h0: initial state, (B, D); zeros if None. Its dtype is that of the state: float32 for
            16-bit inputs, else the dtype of `b`.
        reverse: walk from the last step to the first.
        exclusive: return the state before each step, h_{t-1}, in place of h_t.
        lengths: integers (B,), 0 <= lengths <= T. Steps t >= lengths[b] are padding: they leave the
            state as it is, their output is 0, and their values (NaN too) reach nothing.
        reset: bool (B, T), True where a new document starts. The state starts anew from 0 there,
            and in reverse no state passes from a document to the one before it.
        backend: "auto" or a name from `lightning_lrnn.backends.names()`. A named one runs or
            raises; see `lightning_lrnn.backends.resolve`.

    Returns:
        y (B, T, D), contiguous, in the dtype of `b`, and the final state (B, D) in the dtype of
        the state. For T = 0: an empty y and h0. Both are differentiable in a, b and h0, twice in
        eager mode.

    Raises:
        ValueError: for shapes that do not fit, TypeError: for dtypes or devices that do not.
        lightning_lrnn.backends.BackendError: if the named backend cannot run.
    """
    _check_sequence("b", b)
    if not isinstance(a, Tensor) or a.shape not in (b.shape, b.shape[-1:]):
        raise ValueError(f"`a` must be (B, T, D) = {tuple(b.shape)} or (D,), got {_form(a)}")
    if a.dtype != b.dtype:
        raise TypeError(f"`a` and `b` must share one dtype, got {a.dtype} and {b.dtype}")
    h, h_final = _apply(
        gates.IDENTITY, "", [a.expand(b.shape), b], h0, lengths, reset, reverse, exclusive, backend
    )
    return h, h_final


def gated_recurrence(
    gate: Callable[..., tuple[Tensor, Tensor]],
    *pre: Tensor,
    h0: Tensor | None = None,
    readout: Callable[..., Tensor] | None = None,
    reverse: bool = False,
    exclusive: bool = False,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Recurrence whose decay and impulse are a pointwise function of pre-activations.

    (a, b) = gate(*pre);  h_t = a_t * h_{t-1} + b_t;  y_t = readout(h_t, *pre_t), or h_t.

    With `exclusive=True` the readout gets h_{t-1}. Everything else is as in `linear_recurrence`,
    which is this with the gate `lambda a, b: (a, b)`.

    Args:
        gate: from pre-activations to `(a, b)`: a function decorated with `lightning_lrnn.gate`, or
            any pointwise function (which no backend can fuse).
        pre: pre-activations (B, T, D) of one dtype and device, and parameters (D,) or (B, D).
        h0: initial state, (B, D).
        readout: from `h` and the pre-activations to the output, pointwise; the state if None.
        reverse: walk from the last step to the first.
        exclusive: hand out the state before each step.
        lengths: integers (B,); padding (also NaN in it) reaches nothing and its output is 0.
        reset: bool (B, T), True where a new document starts.
        backend: "auto" or a name.

    Returns:
        y (B, T, D) and the final state (B, D).

    Raises:
        ValueError: for shapes that do not fit, TypeError: for dtypes or devices that do not.
        lightning_lrnn.backends.BackendError: if the named backend cannot run.
    """
    sequences = [p for p in pre if isinstance(p, Tensor) and p.ndim == 3]
    if not sequences:
        raise ValueError("a gate needs at least one pre-activation of shape (B, T, D)")
    for index, p in enumerate(pre):
        _check_pre(f"pre[{index}]", p, sequences[0])
    padding = None
    if lengths is not None:
        _check_lengths(lengths, sequences[0])
        padding = _padding(lengths, sequences[0])
        # The gate's derivative at a NaN is NaN even where the gradient that reaches it is 0.
        pre = tuple(p.masked_fill(padding, 0) if p.ndim == 3 else p for p in pre)
    operands = [_broadcastable(p) for p in pre]
    a, b = gate(*operands)
    # Autocast runs some functions (exp, log, softplus) in float32 and leaves others as they are.
    dtype = torch.promote_types(a.dtype, b.dtype)
    shape = torch.broadcast_shapes(a.shape, b.shape, sequences[0].shape)
    h, h_final = linear_recurrence(
        a.to(dtype).expand(shape),
        b.to(dtype).expand(shape),
        h0,
        reverse=reverse,
        exclusive=exclusive,
        lengths=lengths,
        reset=reset,
        backend=backend,
    )
    if readout is None:
        return h, h_final
    y = readout(h, *operands)
    return (y if padding is None else y.masked_fill(padding, 0)), h_final


_last: str | None = None


def last_backend() -> str | None:
    """The backend that computed the most recent recurrence of this process, None before any."""
    return _last


def _apply(
    gate: str,
    readout: str,
    pre: list[Tensor],
    h0: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
    exclusive: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The operator behind its checks."""
    x = pre[0]
    state = _state_dtype(x.dtype)
    if h0 is not None:
        _check_tensor("h0", h0, (x.shape[0], x.shape[2]), x.device)
        if h0.dtype != state:
            raise TypeError(f"`h0` must be {state} (the dtype of the state), got {h0.dtype}")
    if lengths is not None:
        _check_lengths(lengths, x)
        lengths = lengths.to(torch.int64)
    if reset is not None:
        _check_tensor("reset", reset, tuple(x.shape[:2]), x.device)
        if reset.dtype != torch.bool:
            raise TypeError(f"`reset` must be torch.bool, got {reset.dtype}")
    name = backends.resolve(backend, Request(x.device, x.dtype))
    return _call(gate, readout, pre, h0, lengths, reset, reverse, exclusive, name)


def _call(gate: str, readout: str, pre: Sequence[Tensor], *arguments: Any) -> tuple[Tensor, Tensor]:
    """The operator, differentiable in eager mode, under torch.compile and under torch.func."""
    if torch._C._are_functorch_transforms_active():
        y, _, h_final = _Transformed.apply(gate, readout, *arguments, *pre)
    else:
        y, _, h_final = _operator(gate, readout, pre, *arguments)
    return y, h_final


def _state_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _form(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{type(value).__name__}"


def _check_sequence(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor) or x.ndim != 3:
        raise ValueError(f"`{name}` must be a tensor (B, T, D), got {_form(x)}")


def _check_tensor(name: str, x: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    if not isinstance(x, Tensor) or tuple(x.shape) != shape:
        raise ValueError(f"`{name}` must have shape {shape}, got {_form(x)}")
    if x.device != device:
        raise TypeError(f"`{name}` is on {x.device}, the sequences are on {device}")


def _check_pre(name: str, p: Tensor, x: Tensor) -> None:
    B, _, D = x.shape
    if not isinstance(p, Tensor) or p.shape not in (x.shape, x.shape[2:], (B, D)):
        raise ValueError(
            f"`{name}` must be (B, T, D) = {tuple(x.shape)}, (D,) or (B, D), got {_form(p)}"
        )
    if p.device != x.device:
        raise TypeError(f"`{name}` is on {p.device}, the first sequence on {x.device}")
    if p.ndim == 3 and p.dtype != x.dtype:
        raise TypeError(f"`{name}` is {p.dtype}, the first sequence {x.dtype}: they must agree")


def _check_lengths(lengths: Tensor, x: Tensor) -> None:
    _check_tensor("lengths", lengths, tuple(x.shape[:1]), x.device)
    if lengths.dtype.is_floating_point or lengths.dtype.is_complex or lengths.dtype == torch.bool:
        raise TypeError(f"`lengths` must be integers, got {lengths.dtype}")
    # Reading values back would stop a GPU and cannot be traced; there the kernels clamp.
    if lengths.device.type == "cpu" and not torch.compiler.is_compiling() and _concrete(lengths):
        low, high = (int(v) for v in torch.aminmax(lengths)) if lengths.numel() else (0, 0)
        if low < 0 or high > x.shape[1]:
            raise ValueError(
                f"`lengths` must be between 0 and T = {x.shape[1]}, got {low} to {high}"
            )


def _concrete(x: Tensor) -> bool:
    """Whether a tensor has values to look at: not under vmap, export or fake tensors."""
    return type(x) is Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(x)


def _padding(lengths: Tensor, x: Tensor) -> Tensor:
    return torch.arange(x.shape[1], device=x.device)[None, :, None] >= lengths[:, None, None]


def _broadcastable(p: Tensor) -> Tensor:
    return p[:, None] if p.ndim == 2 else p


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
_operator = torch.ops.lightning_lrnn.gated_recurrence.default
_backward_operator = torch.ops.lightning_lrnn.recurrence_backward.default


def _forward(
    gate: str,
    readout: str,
    pre: list[Tensor],
    h0: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
    exclusive: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    global _last
    _last = backend
    a, b = _gates(gate, pre)
    h, h_final = _run(backend, a, b, h0, lengths, reset, reverse=reverse, exclusive=exclusive)
    if not readout:
        return h, h.new_empty(0), h_final
    (y,) = gates.evaluate(readout, [h, *map(_broadcastable, pre)])
    return _masked(y, lengths).contiguous(), h, h_final


def _gates(gate: str, pre: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Decays and impulses of shape (B, T, D)."""
    if gate == gates.IDENTITY:
        return pre[0], pre[1]
    a, b = gates.evaluate(gate, list(map(_broadcastable, pre)))
    shape = _sequence(pre).shape
    return a.expand(shape), b.expand(shape)


def _sequence(pre: Sequence[Tensor]) -> Tensor:
    return next(p for p in pre if p.ndim == 3)


def _masked(x: Tensor, lengths: Tensor | None) -> Tensor:
    return x if lengths is None else x.masked_fill(_padding(lengths, x), 0)


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
        zero = b.new_zeros(B, D, dtype=_state_dtype(b.dtype))
        return b.new_empty(B, T, D), zero if h0 is None else h0.clone()
    y, h_final = backends.load(backend).run(
        a, b, _dense(h0), _dense(lengths), _dense(reset), **options
    )
    return y, h_final


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
        zero = y.new_zeros(y.shape[0], y.shape[2], dtype=_state_dtype(y.dtype))
        return (
            torch.empty_like(y),
            torch.empty_like(y),
            zero if dh_final is None else dh_final.clone(),
        )
    arguments = (a, y, _dense(h0), dy, _dense(dh_final), _dense(lengths), _dense(reset))
    module = backends.load(backend)
    options = {"reverse": reverse, "exclusive": exclusive}
    if hasattr(module, "run_backward"):
        da, db, dh0 = module.run_backward(*arguments, **options)
    else:
        da, db, dh0 = (g.contiguous() for g in adjoint(module.run, *arguments, **options))
    return da, db, dh0


def _dense(x: Tensor | None) -> Tensor | None:
    """Small tensors are handed to backends contiguous."""
    return None if x is None else x.contiguous()


def _forward_fake(
    gate: str, readout: str, pre: list[Tensor], *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    x = _sequence(pre)
    a, b = _gates(gate, pre)
    h = b.new_empty(x.shape)
    h_final = b.new_empty((x.shape[0], x.shape[2]), dtype=_state_dtype(b.dtype))
    if not readout:
        return h, h.new_empty(0), h_final
    (y,) = gates.evaluate(readout, [h, *map(_broadcastable, pre)])
    return y.new_empty(x.shape), h, h_final


def _backward_fake(a: Tensor, y: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    dh0 = y.new_empty((y.shape[0], y.shape[2]), dtype=_state_dtype(y.dtype))
    return y.new_empty(y.shape), y.new_empty(y.shape), dh0


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    gate, readout, pre, h0, lengths, reset, *ctx.options = inputs
    y, h, _ = output
    ctx.set_materialize_grads(False)
    ctx.gate, ctx.readout, ctx.n = gate, readout, len(pre)
    ctx.save_for_backward(*pre, h if readout else y, h0, lengths, reset)


def _differentiate(
    ctx: Any, dy: Tensor | None, _: Tensor | None, dh_final: Tensor | None
) -> tuple[Any, ...]:
    *pre, h, h0, lengths, reset = ctx.saved_tensors
    reverse, exclusive, backend = ctx.options

    def of_readout(h: Tensor, *pre: Tensor) -> Tensor:
        (y,) = gates.evaluate(ctx.readout, [h, *map(_broadcastable, pre)])
        return _masked(y, lengths)

    def of_gate(*pre: Tensor) -> tuple[Tensor, Tensor]:
        return _gates(ctx.gate, pre)

    dh, dpre = dy, None
    if ctx.readout and dy is not None:
        _, pullback = torch.func.vjp(of_readout, h, *pre)
        dh, *dpre = pullback(dy)

    plain = ctx.gate == gates.IDENTITY
    if plain:
        (a, b), pullback = pre, None
    else:
        (a, b), pullback = torch.func.vjp(of_gate, *pre)
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
            return _call(gates.IDENTITY, "", [a, b], *options)

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
        da, db, dh0 = _backward_operator(
            a, h, h0, dh, dh_final, lengths, reset, reverse, exclusive, backend
        )
    gradients = [da, db] if pullback is None else list(pullback((da, db)))
    if dpre is not None:
        gradients = [g + d for g, d in zip(gradients, dpre, strict=True)]
    return None, None, gradients, None if h0 is None else dh0, *[None] * 5


class _Transformed(torch.autograd.Function):
    """The operator under torch.func: its grad does not enter what `register_autograd` registers."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gate: str, readout: str, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        result: tuple[Tensor, Tensor, Tensor] = _operator(
            gate, readout, list(arguments[6:]), *arguments[:6]
        )
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        gate, readout, *arguments = inputs
        _save(ctx, (gate, readout, arguments[6:], *arguments[:6]), output)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        gate, readout, dpre, *rest = _differentiate(ctx, *gradients)
        return gate, readout, *rest, *dpre


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


def _unfolded(outputs: Sequence[Tensor], size: int) -> tuple[Any, Any]:
    # An empty tensor stands for "no readout"; it has no B.
    return (
        tuple(y.unflatten(0, (size, -1)) if y.ndim > 1 else y for y in outputs),
        tuple(0 if y.ndim > 1 else None for y in outputs),
    )


_library.impl("gated_recurrence", _forward, "CompositeExplicitAutograd")
_library.impl("recurrence_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("lightning_lrnn::gated_recurrence", _forward_fake, lib=_library)
torch.library.register_fake("lightning_lrnn::recurrence_backward", _backward_fake, lib=_library)
torch.library.register_autograd(
    "lightning_lrnn::gated_recurrence", _differentiate, setup_context=_save, lib=_library
)
torch.library.register_vmap("lightning_lrnn::gated_recurrence", _vmap, lib=_library)
torch.library.register_vmap("lightning_lrnn::recurrence_backward", _vmap_backward, lib=_library)
