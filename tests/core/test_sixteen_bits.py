"""16 bits: gates and readouts are evaluated in the state's dtype, whatever path evaluates them.

Of float32 results that are rounded once, those of 16 bits differ by less than two roundings.
"""

from __future__ import annotations

import functools

import pytest
import torch
from layers import every_cell
from plain_calls import adjoint_of

import lightning_lrnn as lrnn
from lightning_lrnn.core import evaluation, reference
from lightning_lrnn.nn import CELLS, scan_context
from lightning_lrnn.recurrence import gated_recurrence, linear_recurrence

LONG = 33_000
"""Steps from which the plain recurrence of one or two features holds several in a vector."""
SIXTEEN = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


@pytest.fixture(autouse=True)
def _restored_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@functools.cache
def asked(name, dtype, T, D=2):
    """(gate, pre-activations, options) of the recurrences of a layer with a long memory."""
    seen = []

    def noted(gate, *pre, **options):
        kept = [p.detach().clone() for p in pre]
        keys = {k: v for k, v in options.items() if k in ("readout", "exclusive")}
        seen.append((gate, kept, keys))
        return gated_recurrence(gate, *pre, **options)

    torch.manual_seed(0)
    parameters = torch.float32 if (name, dtype) == ("S5", torch.float16) else dtype
    memory = None if name == "TRNN" else (500, 2000)
    rnn = CELLS[name](3, D, batch_first=True, memory=memory).to(parameters)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(scan_context, "gated_recurrence", noted)
        rnn(torch.randn(1, T, 3).to(parameters))
    return seen


def undecorated(function):
    return function and (lambda *inputs: function(*inputs))


def by_backend(backend, gate, pre, readout=None, **options):
    pre = [p.clone().requires_grad_() for p in pre]
    y, h = gated_recurrence(gate, *pre, readout=readout, backend=backend, **options)
    y.backward(weights(y))
    return y.detach(), h.detach(), *(p.grad for p in pre)


def plain_function(gate, pre, readout=None, **options):
    options["readout"] = undecorated(readout)
    return by_backend("scan", undecorated(gate), pre, **options)


def under_autocast(gate, pre, readout=None, **options):
    with torch.autocast("cpu", torch.bfloat16):
        return plain_function(gate, pre, readout, **options)


def of_vjp(gate, pre, **options):
    (y, h), pull = torch.func.vjp(lambda *pre: gated_recurrence(gate, *pre, **options), *pre)
    return y, h, *pull((weights(y), torch.zeros_like(h)))


def of_grad(gate, pre, **options):
    def total(*pre):
        y, h = gated_recurrence(gate, *pre, **options)
        product = (y * weights(y).conj()).real if y.is_complex() else y.float() * weights(y).float()
        return product.sum(), (y, h)

    everything = tuple(range(len(pre)))
    gradients, results = torch.func.grad(total, everything, has_aux=True)(*pre)
    return *results, *gradients


def of_vmap(gate, pre, **options):
    def one(*pre):
        return of_vjp(gate, pre, **options)

    actual = torch.func.vmap(one)(*(torch.stack([p, p / 2]) for p in pre))
    return tuple(x[0] for x in actual)


def twice(gate, pre, readout=None, **options):
    """The backward pass that can be differentiated."""
    pre = [p.clone().requires_grad_() for p in pre]
    y, h = gated_recurrence(gate, *pre, readout=readout, **options)
    gradients = torch.autograd.grad(y, pre, weights(y), create_graph=True, materialize_grads=True)
    return y.detach(), h.detach(), *(g.detach() for g in gradients)


PATHS = {
    "scan": functools.partial(by_backend, "scan"),
    "serial": functools.partial(by_backend, "serial"),
    "plain": plain_function,
    "autocast": under_autocast,
    "vjp": of_vjp,
    "grad": of_grad,
    "vmap": of_vmap,
    "twice": twice,
}


def weights(y):
    """The gradient of y: the same for every path, and exact in 16 bits."""
    return (torch.arange(y.numel()) * 37 % 11 - 4).div(4).view(y.shape).to(y.dtype)


def agree(actual, expected, dtype):
    """As near to float32's as a number of 16 bits can be; gradients meet rounded states."""
    eps = torch.finfo(dtype).eps
    names = ["y", "h", *(f"gradient {i}" for i in range(len(expected)))]
    for name, x, exact in zip(names, actual, expected, strict=False):
        x, exact = (torch.view_as_real(v) if v.is_complex() else v for v in (x, exact))
        limit = eps if name in "yh" else 4 * eps
        difference = (x.double() - exact.double()).abs().max() / exact.double().abs().max()
        assert difference <= limit, (name, difference.item(), limit)


@every_cell
@SIXTEEN
@pytest.mark.parametrize("path", PATHS)
def test_every_path_is_as_exact_as_float32(name, dtype, path):
    """Layers with a memory of 500 to 2000 steps: in 16 bits many decays would be 1."""
    T = LONG if path in ("scan", "serial", "plain") else 400
    for gate, pre, options in asked(name, dtype, T):
        exact = [p.to(torch.complex64 if p.is_complex() else torch.float32) for p in pre]
        expected = by_backend("serial", gate, exact, **options)
        actual = PATHS[path](gate, pre, **options)
        assert [g.dtype for g in actual[2:]] == [p.dtype for p in pre]
        agree(actual, expected, dtype)


@every_cell
@SIXTEEN
def test_single_steps_are_as_exact_as_float32(name, dtype):
    for gate, pre, options in asked(name, dtype, 400):
        exact = [p.to(torch.complex64 if p.is_complex() else torch.float32) for p in pre]
        expected = by_backend("serial", gate, exact, **options)
        h, ys, step = None, [], scan_context.StepContext(exclusive=options.get("exclusive", False))
        for t in range(400):
            now = [p[:, t : t + 1] if p.ndim == 3 else p for p in pre]
            y, h = step.scan("state", gate, *now, h0=h, readout=options.get("readout"))
            ys.append(y)
        agree((torch.cat(ys, 1), h), expected[:2], dtype)


@lrnn.gate
def tied(f, z):
    a = torch.sigmoid(f)
    return a, (1 - a) * torch.tanh(z)


@pytest.mark.parametrize("T", [LONG - 1000, LONG])
@pytest.mark.parametrize("D", [1, 2, 4, 40])
def test_a_decay_that_16_bits_do_not_have(T, D):
    """sigmoid(8) is 1 in bfloat16, and the state would stay 0."""
    f = torch.full((1, T, D), 8.0, dtype=torch.bfloat16)
    h = gated_recurrence(tied, f, torch.ones_like(f))[1]
    a = torch.sigmoid(torch.tensor(8.0, dtype=torch.float64))
    exact = ((1 - a**T) * torch.tanh(torch.tensor(1.0).double())).float().expand(1, D)
    torch.testing.assert_close(h, exact, rtol=1e-3, atol=0)


@lrnn.gate
def of_parts(r, i, z, size):
    return torch.complex(torch.tanh(r) * size, torch.tanh(i) * 0.7), torch.complex(z, z)


@SIXTEEN
@pytest.mark.parametrize("path", ["scan", "serial", "plain", "vjp", "vmap"])
def test_complex_numbers_of_16_bit_parts(dtype, path):
    """And of parts of two dtypes: PyTorch's own `complex` takes neither."""
    T = LONG if path in ("scan", "serial", "plain") else 50
    pre = [torch.randn(1, T, 2).to(dtype) for _ in range(3)] + [torch.tensor([0.5, 0.7])]
    actual = PATHS[path](of_parts, pre)
    assert actual[0].dtype == torch.complex64
    agree(actual, by_backend("serial", of_parts, [p.float() for p in pre]), dtype)


@lrnn.gate
def soft(r, z, rate):
    return torch.exp(-torch.nn.functional.softplus(rate) * torch.sigmoid(r)), z


@pytest.mark.parametrize("T", [500, LONG])
@pytest.mark.parametrize("path", ["scan", "plain"])
def test_parameters_of_16_bits_of_float32_sequences(T, path):
    r, z = (torch.randn(1, T, 1) for _ in range(2))
    rate = torch.tensor([-6.0], dtype=torch.float16)
    exact = gated_recurrence(soft, r.double(), z.double(), rate.double(), backend="serial")[0]
    y = PATHS[path](soft, [r, z, rate])[0]
    assert (y - exact).abs().max() < 5e-6 * exact.abs().max()


@lrnn.gate
def of_library(f, z, w):
    return torch.sin(f) * 0.9, torch.nn.functional.gelu(z) * w


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("D", [1, 2, 3])
def test_bits_of_few_features_do_not_depend_on_threads(D, dtype):
    """Of gates, their parameters, and of one decay for each feature."""
    f, z = (torch.randn(3, 40_001, D).to(dtype) for _ in range(2))
    w = torch.ones(D)
    a = torch.full((D,), 0.99, dtype=dtype, requires_grad=True)
    actual = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        y = linear_recurrence(a, z, backend="scan")[0]
        (of_a,) = torch.autograd.grad(y, a, weights(y))
        actual.append([*PATHS["scan"](of_library, [f, z, w]), y, of_a])
    for others in actual[1:]:
        for x, other in zip(actual[0], others, strict=True):
            assert torch.equal(x, other)


def test_a_decay_for_each_feature_of_a_gate():
    """Its dtype may be finer than that of the sequences."""

    @lrnn.gate
    def handed_on(a, b):
        return a, b

    a = torch.tensor([0.9996, 0.5], requires_grad=True)
    b = torch.randn(2, 3_000, 2).bfloat16()
    y = gated_recurrence(handed_on, a, b)[0]
    expected = linear_recurrence(a.detach().double(), b.double())[0]
    agree([y.detach()], [expected], torch.bfloat16)
    (gradient,) = torch.autograd.grad(y, a, torch.ones_like(y))
    exact = a.detach().double().requires_grad_()
    y = linear_recurrence(exact, b.double())[0]
    (expected,) = torch.autograd.grad(y, exact, torch.ones_like(y))
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(gradient.double(), expected, rtol=2e-2, atol=0)


def test_an_adjoint_in_16_bits_is_rounded_once():
    """That of a backend which has only a forward pass."""
    a, b, dy = (torch.rand(2, 50, 3).bfloat16() for _ in range(3))
    y = reference.linear_recurrence(a, b)[0]
    none = (None, None, None)
    options = {"reverse": False, "exclusive": False}

    def loop(a, b, *arguments, **options):
        return reference.linear_recurrence(a, b, arguments[0], **options)

    actual = adjoint_of(loop, a, y, None, dy, *none, **options)
    exact = adjoint_of(loop, a.double(), y.double(), None, dy.double(), *none, **options)
    for x, expected in zip(actual[:2], exact[:2], strict=True):
        assert x.dtype == torch.bfloat16
        torch.testing.assert_close(x, expected.to(x.dtype), rtol=2**-7, atol=1e-6)


def test_widened_is_what_compiled_code_computes_in():
    x = torch.zeros(1, 1, 1, dtype=torch.float16)
    dtypes = [torch.float16, torch.float64, torch.complex128]
    pre = [x, *(torch.zeros(1, dtype=d) for d in dtypes)]
    actual = [p.dtype for p in evaluation.widened(pre)]
    assert actual == [torch.float32] * 3 + [torch.complex64]
