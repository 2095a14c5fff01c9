"""Exported programs that run where this package is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lightning_lrnn.backends.portable import by_scan
from lightning_lrnn.core.problem import Problem
from lightning_lrnn.ops.schema import recurrence

__all__ = ["decompositions"]


def decompositions() -> dict[Any, Callable[..., Any]]:
    """The package's operator by those of PyTorch, for `ExportedProgram.run_decompositions`.

    A program of `torch.export` names the operator, and needs this package imported where it is
    loaded. Without it:

        program = torch.export.export(model, args, dynamic_shapes=...)
        program = program.run_decompositions(lrnn.decompositions())

    `torch.export.save`, `torch.onnx.export` and AOTInductor
    (`torch._inductor.aoti_compile_and_package`) take the result, whose recurrences are a
    `scan` of PyTorch's: one time step after the other, T > 0.
    """
    return {recurrence: _decomposed}


def _decomposed(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The operator by PyTorch's; without hidden states beside a readout, which gradients read."""
    problem = Problem(*arguments[:8])
    y, final = by_scan(problem)
    return y, y.new_empty(0), final
