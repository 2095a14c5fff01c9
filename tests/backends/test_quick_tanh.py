"""LRNN_TANH=approx: what goes into an impulse or a readout of 16 bits is quick, no decay is.

The kernel's own source on the host, whose tanh.approx rounds to 11 bits. Seen to fail: every tanh
quick; a sigmoid in an impulse quick; all exact in the pullbacks; quick in float32; of complex
numbers; and the MUTANTS, which stay part of the tests.
"""

from __future__ import annotations

import re
from types import SimpleNamespace

import emulated
import pytest
import torch
import torch.nn.functional as F
from host_kernel import SOURCES, all_apply, as_cuda, mutated, named, needs_compiler
from kernel_variants import of
from torch.utils._pytree import tree_map_only

from lightning_lrnn.backends.cuda import launch, plan
from lightning_lrnn.backends.cuda.codegen import fused
from lightning_lrnn.core.problem import Gradients, Problem
from lightning_lrnn.gates import trace
from lightning_lrnn.nn.cells.gilr import gilr
from lightning_lrnn.nn.cells.min_gru import min_gru
from lightning_lrnn.nn.cells.surrogate import lstm, output_tanh


def in_both(x, y):
    """A tanh in decay and impulse, and one in the impulse alone, of the same."""
    t = torch.tanh(x)
    return torch.sigmoid(t + 2), t * torch.tanh(t * y)


def softplus(x, y):
    """Whose derivatives are sigmoids of their own."""
    return torch.exp(-F.softplus(x)), F.softplus(y)


PROGRAMS = {
    "gilr": (gilr.program, "", 2),
    "lstm": (lstm.program, output_tanh.program, 4),
    "min_gru": (min_gru.program, "", 2),
    "in both": (trace(in_both), "", 2),
    "softplus": (trace(softplus), trace(lambda h, x, y: F.softplus(h)), 2),
}
CALLED = {
    "gilr": {"sigmoid pre.x0", "quick_tanh pre.x1"},
    "lstm": {
        *("sigmoid pre.x0", "sigmoid pre.x1", "quick_tanh pre.x2"),
        *("quick_sigmoid pre.x3", "quick_tanh h"),
    },
    "min_gru": {"sigmoid t", "sigmoid pre.x0"},
    "in both": {"tanh pre.x0", "sigmoid t", "quick_tanh t"},
    "softplus": {"sigmoid pre.x0", "sigmoid pre.x1", "sigmoid h"},
}
"""In gate, readout and their derivatives, which `struct Gate` has for either pass."""


def called(kind, storage):
    """Each tanh and sigmoid of a kernel, with its argument."""
    gate, readout, inputs = PROGRAMS[kind]
    source = fused(gate, readout, of(storage, inputs), "backward").source
    pattern = r"pointwise::((?:quick_)?(?:tanh|sigmoid))\((.*?)\)"
    return {re.sub(r"t\d+$", "t", " ".join(actual)) for actual in re.findall(pattern, source)}


@pytest.mark.parametrize("kind", PROGRAMS)
def test_what_is_quick(kind):
    """The same in values and derivatives; nothing that a decay depends on, nor without 16 bits."""
    for storage in ("bf16", "f16"):
        assert called(kind, storage) == CALLED[kind]
    for storage in ("f32", "f64"):
        assert called(kind, storage) == {name.removeprefix("quick_") for name in CALLED[kind]}


def test_no_complex_number_is_quick():
    operands = (*of("bf16", 1), *of("c64", 0, 1))
    for gate in (
        trace(lambda x, w: (torch.sigmoid(x), torch.real(torch.tanh(x * w)))),  # on the way
        trace(lambda x, w: (torch.sigmoid(x), torch.tanh(x) * w)),  # in the state
    ):
        source = fused(gate, "", operands, "backward").source
        assert "pointwise::tanh" in source and "quick" not in source


def made(kind, dtype=torch.bfloat16):
    torch.manual_seed(0)
    gate, readout, inputs = PROGRAMS[kind]
    pre = [torch.randn(2, 100, 8).to(dtype) for _ in range(inputs)]
    return Problem(gate, readout, tuple(pre), torch.randn(2, 8), None, None, False, False)


def both_passes(problem):
    kernels = launch.backend(problem, parallel=True)
    states = kernels.forward(problem)
    gradients, dh0 = kernels.backward(problem, states.h, Gradients(torch.ones_like(states.y), None))
    return [*states, *gradients, dh0]


def computed(problem, tanh, sources=SOURCES, *, packed=False):
    """All that both passes give, by tiles of a few steps and columns."""
    kernel = emulated.compiler().kernel
    compiler = SimpleNamespace(
        kernel=lambda macros: kernel((*macros, ("LRNN_TANH", tanh)), sources)
    )
    with emulated.small_tiles(), pytest.MonkeyPatch.context() as patch, as_cuda(compiler) as seen:
        patch.setattr(plan, "steps", lambda *_: 2)
        patch.setattr(plan, "MAX_COLUMNS", 4)
        patch.setattr(plan, "PACKED", packed)
        patch.setattr(plan, "_is_crowded", lambda *_: False)
        actual = both_passes(problem)
    assert {macros["LRNN_PACKED"] for macros, _ in seen} == {str(int(packed))}
    return actual


def units(actual, expected, dtype):
    """How far they are apart, in units of the last place of the largest in each tensor."""

    def of_one(x, y):
        unit = torch.finfo(dtype).eps * 2.0 ** y.abs().max().float().log2().floor()
        return ((x.float() - y.float()).abs().max() / unit).item()

    return max(map(of_one, actual, expected))


def same_bits(actual, expected):
    return all(map(torch.equal, actual, expected))


def is_quick(kind, dtype=torch.bfloat16, sources=SOURCES):
    """Whether other bits come out, and nearly the same numbers."""
    exact, quick = (computed(made(kind, dtype), tanh, sources) for tanh in ("exact", "approx"))
    return not same_bits(quick, exact) and units(quick, exact, dtype) <= 2


def keeps_decays(sources=SOURCES):
    """Of a gate whose impulse is 0, and with it what is quick."""
    problem = made("in both")
    problem.pre[1].zero_()
    exact, quick = (computed(problem, tanh, sources) for tanh in ("exact", "approx"))
    return same_bits(quick, exact)


@needs_compiler
@pytest.mark.parametrize("kind", ["gilr", "lstm"])
def test_near_the_exact_kernel(kind):
    assert is_quick(kind, torch.bfloat16) and is_quick(kind, torch.float16)


@needs_compiler
@pytest.mark.parametrize("kind", ["gilr", "lstm"])
def test_two_features_to_a_thread(kind):
    """They have the same bits."""
    problem = made(kind, torch.float16)
    single, packed = (computed(problem, "approx", packed=packed) for packed in (False, True))
    assert same_bits(packed, single)
    assert not same_bits(packed, computed(problem, "exact", packed=True))


# name: (file, what stands there, what is put in its place)
MUTANTS = {
    "tanh as ever": ("pointwise.cuh", "kApprox ? tanh_approx(x) : tanh(x)", "tanh(x)"),
    "every tanh quick": (
        "pointwise.cuh",
        "return square < 0.04f ? polynomial : quotient;",
        "return kApprox ? tanh_approx(x) : square < 0.04f ? polynomial : quotient;",
    ),
    "every sigmoid quick": (
        "pointwise.cuh",
        "return reciprocal(1.0f + exp2_fast(-1.4426950408889634f * x));",
        "return kApprox ? 0.5f + 0.5f * tanh_approx(0.5f * x) "
        ": reciprocal(1.0f + exp2_fast(-1.4426950408889634f * x));",
    ),
    "an argument not halved": ("pointwise.cuh", "tanh_approx(0.5f * x)", "tanh_approx(x)"),
    "half a sigmoid": ("pointwise.cuh", "0.5f + 0.5f * tanh", "0.5f * tanh"),
}


@needs_compiler
@pytest.mark.parametrize("name", named(MUTANTS))
def test_a_broken_kernel_is_noticed(name, tmp_path):
    sources = mutated(name and MUTANTS[name], tmp_path)
    near = all(is_quick(kind, sources=sources) for kind in ("gilr", "lstm"))
    assert (near and keeps_decays(sources)) == (name is None) and all_apply(MUTANTS)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["gilr", "lstm"])
def test_on_a_gpu(kind, dtype, monkeypatch):
    on_cpu = made(kind, dtype)
    problem = Problem(*tree_map_only(torch.Tensor, lambda x: x.cuda(), on_cpu))
    exact, planned = both_passes(problem), launch._planned

    def quickly(*arguments):
        code, how = planned(*arguments)
        return code, how._replace(macros=(*how.macros, ("LRNN_TANH", "approx")))

    monkeypatch.setattr(launch, "_planned", quickly)
    quick = both_passes(problem)
    assert not same_bits(quick, exact) and units(quick, exact, torch.bfloat16) <= 2
