"""What a gate may use: one row for each operation, with all that is known of it.

Two parts of an operation are written by hand elsewhere, under its name: C++ in `pointwise.cuh`, and
vector code in `vector_math.Lanes`. The compilers' `codegen.py` have the few that depend on dtypes
or on constants; that of a CPU says which vector code takes complex numbers (`COMPLEX`), and which
calls the library of C (`LIBRARY`). Other spellings of an operation stand in `tracing.py`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

__all__ = ["OPERATIONS", "Operation"]


class Operation(NamedTuple):
    """One row.

    Attributes:
        meaning: what PyTorch evaluates.
        rule: maps the gradient g of y = operation(x, ...), y itself and the arguments to the
            gradients of the arguments, None for none. Arguments may be numbers. `conj` does nothing
            to what is real, and is left out of the program there. None: nothing passes through.
        infix: the operator in C++; "" where it has none.
        of_complex: whether complex numbers have it.
        compares: whether its result is a truth value.
        cost: in additions, for deciding how many threads share a call.
    """

    meaning: Callable[..., Any]
    rule: Callable[..., Sequence[Any]] | None
    infix: str = ""
    of_complex: bool = True
    compares: bool = False
    cost: int = 1

    @property
    def arguments(self) -> int:
        """Number of arguments that it takes."""
        if self.rule is None:
            return 2 if self.compares else 1
        return len(inspect.signature(self.rule).parameters) - 2


def _complex(real: Any, imag: Any) -> Any:
    """`torch.complex`, one part of which may be a number."""
    if isinstance(real, int | float):
        real = torch.full_like(imag, real)
    if isinstance(imag, int | float):
        imag = torch.full_like(real, imag)
    return torch.complex(real, imag)


def _conj(x: Any) -> Any:
    return x if isinstance(x, int | float) else x.conj()


def _of_pow(g: Any, y: Any, x: Any, c: Any) -> Sequence[Any]:
    if isinstance(x, int | float):
        return None, g * (y * math.log(x))
    if c == 0:
        return None, None
    return g * _conj(x if c == 2 else 1 if c == 1 else x ** (c - 1)) * c, None


def _of_clamp(g: Any, y: Any, x: Any, low: Any, high: Any) -> Sequence[Any]:
    if low is not None:
        g = torch.where(x >= low, g, 0)
    if high is not None:
        g = torch.where(x <= high, g, 0)
    return g, None, None


def _of_gelu(g: Any, y: Any, x: Any) -> Sequence[Any]:
    cdf = 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))
    density = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return (g * (cdf + x * density),)


def _of_silu(g: Any, y: Any, x: Any) -> Sequence[Any]:
    s = torch.sigmoid(x)
    return (g * (s * (1 + x * (1 - s))).conj(),)


def _of_polar(g: Any, y: Any, size: Any, angle: Any) -> Sequence[Any]:
    return (g.conj() * torch.sgn(y)).real, -(g.conj() * y).imag


def _greater(g: Any, x: Any, y: Any) -> Any:
    """The gradient of the greater one's share: ties halve it, NaN passes it to both."""
    return torch.where(x == y, g * 0.5, torch.where(x < y, 0, g))


def _comparison(meaning: Callable[..., Any], infix: str, *, of_complex: bool = False) -> Operation:
    return Operation(meaning, None, infix, of_complex, compares=True)


OPERATIONS: dict[str, Operation] = {
    "add": Operation(torch.add, lambda g, y, x, z: (g, g), "+"),
    "sub": Operation(torch.sub, lambda g, y, x, z: (g, -g), "-"),
    "mul": Operation(torch.mul, lambda g, y, x, z: (g * _conj(z), g * _conj(x)), "*"),
    "div": Operation(torch.div, lambda g, y, x, z: (g / _conj(z), -g * _conj(y / z)), "/"),
    "neg": Operation(torch.neg, lambda g, y, x: (-g,)),
    "pow": Operation(torch.pow, _of_pow, cost=8),
    "sigmoid": Operation(torch.sigmoid, lambda g, y, x: (g * ((1 - y) * y).conj(),), cost=8),
    "tanh": Operation(torch.tanh, lambda g, y, x: (g * (1 - y * y).conj(),), cost=8),
    "exp": Operation(torch.exp, lambda g, y, x: (g * y.conj(),), cost=8),
    "log": Operation(torch.log, lambda g, y, x: (g / x.conj(),), cost=8),
    "sin": Operation(torch.sin, lambda g, y, x: (g * torch.cos(x).conj(),), cost=8),
    "cos": Operation(torch.cos, lambda g, y, x: (-g * torch.sin(x).conj(),), cost=8),
    "softplus": Operation(
        F.softplus, lambda g, y, x: (g * torch.sigmoid(x),), of_complex=False, cost=8
    ),
    "relu": Operation(torch.relu, lambda g, y, x: (torch.where(y <= 0, 0, g),), of_complex=False),
    "silu": Operation(F.silu, _of_silu, cost=8),
    "gelu": Operation(F.gelu, _of_gelu, of_complex=False, cost=8),
    "erf": Operation(
        torch.erf,
        lambda g, y, x: (g * (2 / math.sqrt(math.pi) * torch.exp(-x * x)),),
        of_complex=False,
        cost=8,
    ),
    "sqrt": Operation(torch.sqrt, lambda g, y, x: (g / (2 * y).conj(),)),
    "rsqrt": Operation(torch.rsqrt, lambda g, y, x: (-0.5 * g * (y * y * y).conj(),)),
    "abs": Operation(torch.abs, lambda g, y, x: (g * torch.sgn(x),)),
    "sgn": Operation(torch.sgn, None),
    "clamp": Operation(torch.clamp, _of_clamp, of_complex=False),
    "where": Operation(
        torch.where, lambda g, y, c, x, z: (None, torch.where(c, g, 0), torch.where(c, 0, g))
    ),
    "minimum": Operation(
        torch.minimum, lambda g, y, x, z: (_greater(g, z, x), _greater(g, x, z)), of_complex=False
    ),
    "maximum": Operation(
        torch.maximum, lambda g, y, x, z: (_greater(g, x, z), _greater(g, z, x)), of_complex=False
    ),
    "lt": _comparison(torch.lt, "<"),
    "le": _comparison(torch.le, "<="),
    "gt": _comparison(torch.gt, ">"),
    "ge": _comparison(torch.ge, ">="),
    "eq": _comparison(torch.eq, "==", of_complex=True),
    "ne": _comparison(torch.ne, "!=", of_complex=True),
    "complex": Operation(_complex, lambda g, y, x, z: (g.real, g.imag), of_complex=False),
    "polar": Operation(torch.polar, _of_polar, of_complex=False),
    "real": Operation(torch.real, lambda g, y, x: (g,)),
    "imag": Operation(torch.imag, lambda g, y, x: (torch.complex(0 * g, g),)),
    "conj": Operation(torch.conj, lambda g, y, x: (g.conj(),)),
    "detach": Operation(torch.detach, None),
}
"""Everything a gate may use, by the program's name of it."""
