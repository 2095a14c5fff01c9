"""`benchmarks/ab.py` rehearsed without a GPU: the same examination, the kernel on the emulator.

Seen to fail: the workspace of the plan's steps for other ones; a kernel that is wrong called right;
other bits called the same.
"""

from __future__ import annotations

import emulated
import pytest
import torch
from host_kernel import as_cuda, needs_compiler

CHAINED, FOLDED = (1, 256, 64), (1, 512, 32)
"""Shapes of either kind of carry: each in one pass in `make test`."""


@pytest.fixture
def ab(benchmark_script):
    return benchmark_script("ab")


def test_no_device(ab, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ab.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "shape"),
    [
        pytest.param("forward", CHAINED, id="forward-chained"),
        pytest.param("backward", FOLDED, id="backward-folded"),
        pytest.param("forward", FOLDED, id="forward-folded", marks=pytest.mark.nightly),
        pytest.param("backward", CHAINED, id="backward-chained", marks=pytest.mark.nightly),
    ],
)
def test_variants_are_examined(ab, step, shape):
    names = [ab.PLANNED, "as before", "emission known", "reused workspace"]
    names += ["one barrier, emission known", "8 steps, 4 blocks", "other carry", "no carry"]
    names += ["given", "one fold", "walked"]
    case = ab.Case(shape)
    with as_cuda(emulated.compiler()) as seen:
        rows = ab.examine(case, step, "cpu", names)
    assert all(row["right"] and row["same_bits_again"] for row in rows.values())
    assert {name for name, row in rows.items() if row["bits_of_plan"]} >= set(names[:4])
    assert {"row"} <= {macros.get("LRNN_COMBINE") for macros, _ in seen}
    assert {"given"} <= {macros["LRNN_CARRY"] for macros, _ in seen}
    assert len([macros for macros, _ in seen if macros["LRNN_RESULT"] == "pair"]) == 1
    assert not rows["no carry"]["bits_of_plan"] and rows["no carry"]["error"] > 0.1
    assert rows["walked"]["error"] < 1e-5 and not rows["walked"]["bits_of_plan"]
    # What was compiled ahead is what was launched.
    launched = {tuple(macros.items()) for macros, _ in seen}
    assert launched - ab.kernels_of(case, step) == {
        macros for macros in launched if "f64" in dict(macros)["LRNN_GATE"]
    }
    ab.show("a case", rows)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("gate", "step", "same"),
    [("plain", "forward", True), ("plain", "backward", True), ("lstm", "backward", False)],
)
def test_packed_features_are_examined(ab, gate, step, same):
    """They have the bits of the plan where they have its steps; an LSTM has fewer, backward."""
    names, case = ["packed", "packed, emission known"], ab.Case((1, 256, 64), "bfloat16", gate)
    with as_cuda(emulated.compiler()) as seen:
        rows = ab.examine(case, step, "cpu", [ab.PLANNED, *names])
    assert all(row["right"] and row["same_bits_again"] for row in rows.values())
    assert [rows[name]["bits_of_plan"] for name in names] == [same, same]
    launched = {tuple(macros.items()) for macros, _ in seen}
    wide = {macros for macros in launched if "f64" in dict(macros)["LRNN_GATE"]}
    assert launched - ab.kernels_of(case, step) == wide


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("step", ["forward", "backward"])
def test_a_quick_tanh_is_examined(ab, step):
    names, case = ["quick tanh", "packed, quick tanh"], ab.Case((1, 256, 64), "bfloat16", "lstm")
    with as_cuda(emulated.compiler()) as seen:
        rows = ab.examine(case, step, "cpu", [ab.PLANNED, *names])
    assert all(row["right"] and row["same_bits_again"] for row in rows.values())
    assert not any(rows[name]["bits_of_plan"] for name in names)
    launched = {tuple(macros.items()) for macros, _ in seen}
    wide = {macros for macros in launched if "f64" in dict(macros)["LRNN_GATE"]}
    assert launched - ab.kernels_of(case, step) == wide


@needs_compiler
@pytest.mark.slow
def test_what_is_wrong_is_seen(ab, monkeypatch):
    """One that should have the plan's bits and lacks the carry."""
    monkeypatch.setitem(ab.VARIANTS, "wrong", ab.Variant({"LRNN_CARRY": "none"}, True))
    with as_cuda(emulated.compiler()):
        rows = ab.examine(ab.Case((1, 256, 64)), "forward", "cpu", [ab.PLANNED, "wrong"])
    assert rows[ab.PLANNED]["right"] and not rows["wrong"]["right"]


def test_every_variant_can_be_planned(ab):
    """With a grid that covers the case, for all cases."""
    for case in ab.CASES:
        for step in ab.STEPS:
            macros = ab.kernels_of(case, step)
            assert len(macros) >= 8
            assert {dict(m)["LRNN_PASS"] for m in macros} == {step}
            packed = {dict(m)["LRNN_PACKED"] for m in macros}
            assert packed == ({"0", "1"} if case.dtype == "bfloat16" else {"0"})
            quick = {dict(m).get("LRNN_TANH") for m in macros} == {None, "approx"}
            assert quick == (case.dtype == "bfloat16" and case.gate in ("gilr", "lstm"))
