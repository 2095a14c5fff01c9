"""The operation against the loop in float64, for every backend that can run.

Seen to fail: exclusive output taken after the step; `lengths` ignored in the backward; reset
shifted by one in reverse; h0's gradient dropped; the adjoint without conjugates; the final state's
gradient ignored; vmap folding a parameter along the wrong dimension.
"""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_calls import PlainCalls, adjoint_of
from sweeps import DTYPES, TOLERANCE

import lightning_lrnn as lrnn
from lightning_lrnn import backends
from lightning_lrnn.core import reference

LENGTHS_OF_TIME = [1, 2, 31, 32, 33, 127, 128, 129, 513, 1999, 4097]
FLAGS = list(itertools.product([False, True], [False, True]))


def make(B, T, D, dtype, device="cpu", masks=False, h0=True):
    """Inputs of a recurrence; decays of any sign around 1 in size."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    state = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    a = torch.randn(B, T, D, dtype=wide)
    a = (a / (a.abs() + 0.5) * 1.01).to(dtype)
    b = torch.randn(B, T, D, dtype=wide).to(dtype)
    h = torch.randn(B, D, dtype=wide).to(state) if h0 else None
    lengths = torch.randint(0, T + 1, (B,)) if masks else None
    reset = torch.rand(B, T) < 0.2 if masks else None
    tensors = (a, b, h, lengths, reset)
    return tuple(None if x is None else x.to(device) for x in tensors)


def run(function, dtype, state, a, b, h0, lengths, reset, **options):
    """Outputs and gradients of a function of such dtypes."""
    wide = torch.complex128 if b.dtype.is_complex else torch.float64
    leaves = [a.detach().to(dtype).requires_grad_(), b.detach().to(dtype).requires_grad_()]
    if h0 is not None:
        leaves.append(h0.detach().to(state).requires_grad_())
    initial = leaves[2] if h0 is not None else None
    y, final = function(leaves[0], leaves[1], initial, lengths=lengths, reset=reset, **options)
    torch.manual_seed(1)
    dy = torch.randn(y.shape, dtype=wide, device=y.device).to(b.dtype)
    dfinal = torch.randn(final.shape, dtype=wide, device=y.device).to(b.dtype)
    # The loop's y is a constant where it shows nothing but an initial state of zeros.
    tracked = [(o, g) for o, g in ((y, dy), (final, dfinal)) if o.requires_grad]
    gradients = torch.autograd.grad(
        [o for o, _ in tracked],
        leaves,
        [g.to(o.dtype) for o, g in tracked],
        materialize_grads=True,
    )
    return [y, final, *gradients]


def run_ours(backend, a, b, h0, lengths, reset, **options):
    state = None if h0 is None else h0.dtype
    function = functools.partial(lrnn.linear_recurrence, backend=backend)
    return run(function, b.dtype, state, a, b, h0, lengths, reset, **options)


def run_loop(a, b, *others, **options):
    wide = torch.complex128 if b.dtype.is_complex else torch.float64
    return run(reference.linear_recurrence, wide, wide, a, b, *others, **options)


@functools.cache
def with_loop(*shape, reverse, exclusive, **kind):
    """Inputs, and what the loop makes of them, once for all backends."""
    inputs = make(*shape, **kind)
    return inputs, run_loop(*inputs, reverse=reverse, exclusive=exclusive)


def check(results, dtype):
    for name, ours, loop in zip(("y", "h_final", "da", "db", "dh0"), *results, strict=False):
        # Sums of many terms: relative to the largest entry, as the loop's own rounding is.
        scale = loop.abs().amax().clamp(min=1) if loop.numel() else 1
        torch.testing.assert_close(
            ours.to(loop.dtype) / scale,
            loop / scale,
            **TOLERANCE[dtype],
            msg=lambda m, name=name: f"{name}: {m}",
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("T", LENGTHS_OF_TIME)
def test_agrees_with_the_loop(backend, device, T, dtype):
    D = 33 if T < 200 else 3
    for reverse, exclusive in FLAGS:
        options = {"reverse": reverse, "exclusive": exclusive}
        inputs, loop = with_loop(2, T, D, dtype, device, **options)
        check([run_ours(backend, *inputs, **options), loop], dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.complex128], ids=str)
@pytest.mark.parametrize("reverse, exclusive", FLAGS)
@pytest.mark.parametrize("T", [1, 5, 130, 700])
def test_padding_and_resets(backend, device, T, reverse, exclusive, dtype):
    options = {"reverse": reverse, "exclusive": exclusive}
    for B, D, h0 in ((5, 3, True), (3, 40, False)):
        inputs, loop = with_loop(B, T, D, dtype, device, masks=True, h0=h0, **options)
        check([run_ours(backend, *inputs, **options), loop], dtype)


@pytest.mark.parametrize("reverse, exclusive", FLAGS)
def test_nan_in_padding_and_before_a_reset_reaches_nothing(backend, device, reverse, exclusive):
    B, T, D = 3, 300, 5
    a, b, h0, _, _ = make(B, T, D, torch.float32, device)
    lengths = torch.tensor([0, 170, 300], device=device)
    reset = torch.zeros(B, T, dtype=torch.bool, device=device)
    reset[:, 100] = True
    clean = (a.clone(), b.clone())
    for x in (a, b):
        x[0], x[1, 170:] = float("nan"), float("nan")
    x = [t.clone().requires_grad_() for t in (a, b, h0)]
    c = [t.clone().requires_grad_() for t in (*clean, h0)]
    options = {"lengths": lengths, "reset": reset, "reverse": reverse, "exclusive": exclusive}
    y, final = lrnn.linear_recurrence(*x, backend=backend, **options)
    y_clean, final_clean = lrnn.linear_recurrence(*c, backend=backend, **options)
    dy = torch.randn_like(y)
    dy_poisoned = dy.clone()
    dy_poisoned[0], dy_poisoned[1, 170:] = float("nan"), float("nan")
    ours = [y, final, *torch.autograd.grad([y, final], x, [dy_poisoned, torch.ones_like(final)])]
    theirs = [y_clean, final_clean]
    theirs += torch.autograd.grad([y_clean, final_clean], c, [dy, torch.ones_like(final)])
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right)

    poison = slice(0, 100) if not reverse else slice(100, 300)
    b = clean[1].clone()
    b[:, poison] = float("inf")
    y, _ = lrnn.linear_recurrence(clean[0], b, reset=reset, reverse=reverse, backend=backend)
    after = y[:, 100:] if not reverse else y[:, :100]
    expected, _ = lrnn.linear_recurrence(
        clean[0], clean[1], reset=reset, reverse=reverse, backend=backend
    )
    torch.testing.assert_close(after, expected[:, 100:] if not reverse else expected[:, :100])


def test_decays_that_overflow_as_a_product_meet_a_state_of_zero(backend, device):
    """A product of decays that is inf times a state of 0 is 0, as in the loop."""
    a = torch.full((1, 5000, 1), 1.5, device=device)
    y, final = lrnn.linear_recurrence(a, torch.zeros_like(a), backend=backend)
    assert not y.any() and not final.any()


@pytest.mark.parametrize("layout", ["chunk", "time-major", "feature-stride", "expanded", "flipped"])
def test_inputs_are_read_in_place_whatever_their_strides(backend, device, layout):
    B, T, D = 2, 70, 6
    if layout == "chunk":
        a, b = torch.randn(B, T, 2 * D, device=device).chunk(2, -1)
    elif layout == "time-major":
        a, b = torch.randn(2, T, B, D, device=device).transpose(1, 2)
    elif layout == "feature-stride":
        a, b = torch.randn(2, B, D, T, device=device).transpose(2, 3)
    elif layout == "expanded":
        a, b = (
            torch.randn(D, device=device).expand(B, T, D),
            torch.randn(B, 1, D, device=device).expand(B, T, D),
        )
    else:
        a, b = (
            torch.randn(2, B, T, D, device=device)[..., ::2],
            torch.randn(2, B, T, D, device=device)[..., 1::2],
        )
        a, b = a[0], b[1]
    a = a / 2
    ours = lrnn.linear_recurrence(a, b, backend=backend)
    dense = lrnn.linear_recurrence(a.contiguous(), b.contiguous(), backend=backend)
    for left, right in zip(ours, dense, strict=True):
        assert torch.equal(left, right)
    check([list(ours), list(reference.linear_recurrence(a.double(), b.double()))], torch.float32)


@settings(max_examples=40, deadline=None)
@given(
    B=st.integers(1, 4),
    T=st.integers(1, 300),
    D=st.integers(1, 70),
    reverse=st.booleans(),
    exclusive=st.booleans(),
    masks=st.booleans(),
    h0=st.booleans(),
    transposed=st.booleans(),
    backend=st.sampled_from(["scan", "serial"]),
    seed=st.integers(0, 2**31),
)
def test_any_shape(B, T, D, reverse, exclusive, masks, h0, transposed, backend, seed):
    torch.manual_seed(seed)
    a, b, h, lengths, reset = make(B, T, D, torch.float32, masks=masks, h0=h0)
    if transposed:
        a = a.transpose(0, 1).contiguous().transpose(0, 1)
        b = b.transpose(1, 2).contiguous().transpose(1, 2)
    inputs = a, b, h, lengths, reset
    options = {"reverse": reverse, "exclusive": exclusive}
    check([run_ours(backend, *inputs, **options), run_loop(*inputs, **options)], torch.float32)


def test_no_time_no_batch_no_features(backend, device):
    h0 = torch.randn(2, 3, device=device, requires_grad=True)
    a = torch.randn(2, 0, 3, device=device)
    y, final = lrnn.linear_recurrence(a, a, h0, backend=backend)
    assert y.shape == (2, 0, 3) and torch.equal(final, h0)
    final.sum().backward()
    assert torch.equal(h0.grad, torch.ones_like(h0))
    assert lrnn.linear_recurrence(a, a, backend=backend)[1].eq(0).all()
    for shape in ((0, 4, 3), (2, 4, 0)):
        x = torch.randn(shape, device=device, requires_grad=True)
        y, final = lrnn.linear_recurrence(x, x, backend=backend)
        assert y.shape == shape and final.shape == (shape[0], shape[2])
        y.sum().backward()


@pytest.mark.parametrize("reverse, exclusive", FLAGS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_gradcheck_and_gradgradcheck(backend, device, dtype, reverse, exclusive):
    for masks in (False, True):
        a, b, h0, lengths, reset = make(2, 4, 2, dtype, device, masks)
        leaves = [x.requires_grad_() for x in (a, b, h0)]

        def f(a, b, h0, lengths=lengths, reset=reset):
            return lrnn.linear_recurrence(
                a, b, h0, lengths=lengths, reset=reset, reverse=reverse, exclusive=exclusive,
                backend=backend,
            )  # fmt: skip

        assert torch.autograd.gradcheck(f, leaves)
        assert torch.autograd.gradgradcheck(f, leaves)


@pytest.mark.parametrize("reverse, exclusive", FLAGS)
def test_adjoint_from_a_backend_that_has_only_run(reverse, exclusive):
    a, b, h0, lengths, reset = make(3, 50, 4, torch.complex128, masks=True)
    serial = PlainCalls(backends.load("serial").prepared)
    options = {"reverse": reverse, "exclusive": exclusive}
    y, final = serial.run(a, b, h0, lengths, reset, **options)
    gradients = torch.randn_like(y), torch.randn_like(final)
    fused = serial.run_backward(a, y, h0, *gradients, lengths, reset, **options)
    composed = adjoint_of(serial.run, a, y, h0, *gradients, lengths, reset, **options)
    for left, right in zip(fused, composed, strict=True):
        torch.testing.assert_close(left, right)


def test_one_decay_per_feature(backend, device):
    a = torch.rand(3, device=device, dtype=torch.float64, requires_grad=True)
    b = torch.randn(2, 5, 3, device=device, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda a, b: lrnn.linear_recurrence(a, b, backend=backend), (a, b)
    )


def test_repeated_calls_give_the_same_bits(backend, device):
    inputs = make(3, 3001, 37, torch.float32, device, masks=True)
    torch.use_deterministic_algorithms(True)
    try:
        first, *others = [run_ours(backend, *inputs) for _ in range(4)]
    finally:
        torch.use_deterministic_algorithms(False)
    for again in (*others, run_ours(backend, *inputs)):
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


def test_autocast_casts_nothing(backend):
    a, b, h0, _, _ = make(2, 9, 4, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = lrnn.linear_recurrence(a, b, h0, backend=backend)
    assert y.dtype == torch.float32
    assert torch.equal(y, lrnn.linear_recurrence(a, b, h0, backend=backend)[0])


def test_half_precision_keeps_its_state_in_float32(backend, device):
    """Adding 1 a thousand times: a bfloat16 state would stop at 256."""
    one = torch.ones(1, 1000, 1, dtype=torch.bfloat16, device=device)
    y, final = lrnn.linear_recurrence(one, one, backend=backend)
    assert final.dtype == torch.float32 and final.item() == 1000
    assert y.dtype == torch.bfloat16 and y[0, -1].item() == 1000


@pytest.mark.parametrize("backend", ["scan", "serial"])
def test_the_default_device_is_not_asked(backend):
    """Seen to fail: room for states on the default device, a segmentation fault."""
    # With so many features room for states is a tensor of its own.
    a, b = (torch.rand(2, 40, 2000, requires_grad=True) for _ in range(2))
    expected = torch.autograd.grad(lrnn.linear_recurrence(a, b, backend=backend)[0].sum(), (a, b))
    backends.forget()
    with torch.device("meta"):
        y, final = lrnn.linear_recurrence(a, b, backend=backend)
        actual = torch.autograd.grad(y.sum(), (a, b))
    assert final.device == a.device
    assert all(torch.equal(g, e) for g, e in zip(actual, expected, strict=True))
