"""Pointwise mathematics on vectors, as LLVM IR: what a gate's operations are made of on a CPU.

Each operation is a fixed sequence of IEEE operations on every lane: what a lane gets depends
neither on its neighbours nor on how many there are. Nothing is assumed of the values: NaN and
infinities go their way as in PyTorch. `exp`, `log` and what follows from them are sums of series
with as many terms as count in the precision at hand; what is rare is left to the C library, lane
by lane.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from llvmlite import ir

__all__ = ["INT", "Complex", "Lanes"]

INT = ir.IntType(64)
INT32 = ir.IntType(32)

LN2_HIGH = {32: 0.693359375, 64: 6.93147180369123816490e-01}
"""With so many zeros at its end that a product with an exponent is exact."""
LN2_LOW = {32: -2.12194440054690583e-4, 64: 1.90821492927058770002e-10}
MANTISSA = {32: 23, 64: 52}
BIAS = {32: 127, 64: 1023}
SMALLEST, LARGEST = {32: -104.0, 64: -746.0}, {32: 89.0, 64: 710.0}
"""Where exp is 0 and infinite, whatever lies beyond."""
OF_EXP, OF_LOG = {32: 7, 64: 13}, {32: 4, 64: 10}
"""Terms: |r| <= ln(2) / 2 leaves r^8 / 8! = 5e-9 and r^14 / 14! = 4e-18; see `_log_of`."""


class Complex(NamedTuple):
    """A vector of complex numbers, as two vectors: real and imaginary parts."""

    re: Any
    im: Any


class Lanes:
    """Arithmetic on vectors of `lanes` floats of `bits` bits.

    Attributes:
        type: of a vector.
    """

    def __init__(self, builder: ir.IRBuilder, lanes: int, bits: int) -> None:
        self.builder, self.lanes, self.bits = builder, lanes, bits
        self.scalar = ir.FloatType() if bits == 32 else ir.DoubleType()
        self.type = ir.VectorType(self.scalar, lanes)
        self.integers = ir.VectorType(ir.IntType(bits), lanes)

    # Numbers and choices.

    def number(self, value: float) -> Any:
        """Returns a vector with the number in all lanes."""
        return ir.Constant(self.type, [float(value)] * self.lanes)

    def integer(self, value: int) -> Any:
        return ir.Constant(self.integers, [value] * self.lanes)

    def compare(self, sign: str, x: Any, y: Any) -> Any:
        """False where either is NaN; "!=" is true there."""
        if sign == "!=":
            return self.builder.fcmp_unordered(sign, x, y)
        return self.builder.fcmp_ordered(sign, x, y)

    def choose(self, condition: Any, x: Any, y: Any) -> Any:
        return self._parts(partial(self.builder.select, condition), x, y)

    def all_lanes(self, condition: Any) -> Any:
        """Returns a vector with the condition in all lanes."""
        mask_type = ir.VectorType(condition.type, self.lanes)
        one = self.builder.insert_element(
            ir.Constant(mask_type, ir.Undefined), condition, ir.Constant(INT, 0)
        )
        return self.shuffled(one, one, [0] * self.lanes)

    def shuffled(self, x: Any, y: Any, order: list[int]) -> Any:
        """The lanes of x and y, one after the other, in another order."""
        mask = ir.Constant(ir.VectorType(INT32, len(order)), order)
        return self._parts(lambda x, y: self.builder.shuffle_vector(x, y, mask), x, y)

    def as_bits(self, x: Any) -> Any:
        return self.builder.bitcast(x, self.integers)

    def as_floats(self, x: Any) -> Any:
        return self.builder.bitcast(x, self.type)

    # Arithmetic, one rounding each; of complex numbers too.

    def _parts(self, compute: Callable[..., Any], *operands: Any) -> Any:
        """Applies an operation to real and imaginary parts, if an argument is complex."""
        if not any(isinstance(x, Complex) for x in operands):
            return compute(*operands)
        return Complex(*map(compute, *map(self.as_complex, operands)))

    def as_complex(self, x: Any) -> Complex:
        return x if isinstance(x, Complex) else Complex(x, self.number(0))

    def add(self, x: Any, y: Any) -> Any:
        return self._parts(self.builder.fadd, x, y)

    def sub(self, x: Any, y: Any) -> Any:
        return self._parts(self.builder.fsub, x, y)

    def neg(self, x: Any) -> Any:
        return self._parts(self.builder.fneg, x)

    def mul(self, x: Any, y: Any) -> Any:
        if not isinstance(x, Complex) and not isinstance(y, Complex):
            return self.builder.fmul(x, y)
        if not (isinstance(x, Complex) and isinstance(y, Complex)):
            number, parts = (y, x) if isinstance(x, Complex) else (x, y)
            return Complex(*(self.builder.fmul(number, part) for part in parts))
        (p, q), (r, s) = x, y
        return Complex(
            self.multiply_add(self.neg(q), s, self.builder.fmul(p, r)),
            self.multiply_add(q, r, self.builder.fmul(p, s)),
        )

    def multiply_add(self, x: Any, y: Any, z: Any) -> Any:
        """x * y + z: one rounding where the machine has an instruction for it."""
        if not isinstance(x, Complex):
            return self.intrinsic("llvm.fmuladd", x, y, z)
        (p, q), (r, s), (u, v) = x, y, z
        return Complex(
            self.multiply_add(self.neg(q), s, self.multiply_add(p, r, u)),
            self.multiply_add(q, r, self.multiply_add(p, s, v)),
        )

    def div(self, x: Any, y: Any) -> Any:
        return self.builder.fdiv(x, y)

    def conj(self, x: Any) -> Any:
        return Complex(x.re, self.neg(x.im)) if isinstance(x, Complex) else x

    def real(self, x: Any) -> Any:
        return x.re if isinstance(x, Complex) else x

    def imag(self, x: Any) -> Any:
        return x.im

    def complex(self, x: Any, y: Any) -> Any:
        return Complex(x, y)

    def intrinsic(self, name: str, *operands: Any) -> Any:
        name += f".v{self.lanes}f{self.bits}"
        return self.builder.call(self._declared(name, self.type, len(operands)), operands)

    def _declared(self, name: str, value_type: ir.Type, operands: int) -> Any:
        module = self.builder.module
        if name in module.globals:
            return module.globals[name]
        return ir.Function(module, ir.FunctionType(value_type, [value_type] * operands), name)

    def polynomial(self, x: Any, coefficients: list[float]) -> Any:
        """Evaluates a polynomial; `coefficients` begin with the constant term."""
        *rest, result = map(self.number, coefficients)
        for c in reversed(rest):
            result = self.multiply_add(result, x, c)
        return result

    # Piecewise operations, with PyTorch's conventions.

    def abs(self, x: Any) -> Any:
        return self.intrinsic("llvm.fabs", x)

    def sgn(self, x: Any) -> Any:
        zero, one = self.number(0), self.number(1)
        below = self.choose(self.compare("<", x, zero), self.number(-1), zero)
        return self.choose(self.compare(">", x, zero), one, below)

    def relu(self, x: Any) -> Any:
        return self.at_least(x, self.number(0))

    def at_least(self, x: Any, low: Any) -> Any:
        """NaN stays."""
        return self.choose(self.compare("<", x, low), low, x)

    def at_most(self, x: Any, high: Any) -> Any:
        """NaN stays."""
        return self.choose(self.compare(">", x, high), high, x)

    def minimum(self, x: Any, y: Any) -> Any:
        """NaN if either is: then neither comparison below holds, or x is taken."""
        return self.choose(self.builder.fcmp_unordered("<", x, y), self._unless_nan(x, y), y)

    def maximum(self, x: Any, y: Any) -> Any:
        return self.choose(self.builder.fcmp_unordered(">", x, y), self._unless_nan(x, y), y)

    def _unless_nan(self, x: Any, y: Any) -> Any:
        """Returns x, and y where y is NaN."""
        return self.choose(self.compare("==", y, y), x, y)

    def flush(self, x: Any) -> Any:
        """0 for what is too small for full precision, with which some processors are slow."""
        tiny = self.number(2.0 ** (1 - BIAS[self.bits]))

        def of_part(part: Any) -> Any:
            normal = self.builder.fcmp_unordered(">=", self.abs(part), tiny)
            return self.builder.select(normal, part, self.number(0))

        return self._parts(of_part, x)

    # Exponential functions.

    def exp(self, x: Any) -> Any:
        """2^n e^r, where x = n log(2) + r; e^r by its series."""
        low, high = self.number(SMALLEST[self.bits]), self.number(LARGEST[self.bits])
        n, r = self._reduced(self.at_most(self.at_least(x, low), high))
        series = [1 / math.factorial(k) for k in range(OF_EXP[self.bits] + 1)]
        # In two steps, as 2^n may have no full precision although the result has: 1 / 2 and 2^1024.
        half = self.builder.ashr(n, self.integer(1))
        result = self.mul(self.polynomial(r, series), self._power_of_two(half))
        return self.mul(result, self._power_of_two(self.builder.sub(n, half)))

    def _reduced(self, x: Any) -> tuple[Any, Any]:
        """n, an integer, and x - n log(2); for a NaN any integer and NaN."""
        # The sum's last bit is worth 1: rounded to integers, and read as one.
        magic = self.number(1.5 * 2.0 ** MANTISSA[self.bits])
        shifted = self.multiply_add(x, self.number(1 / math.log(2)), magic)
        n = self.sub(shifted, magic)
        r = self.multiply_add(n, self.number(-LN2_HIGH[self.bits]), x)
        r = self.multiply_add(n, self.number(-LN2_LOW[self.bits]), r)
        return self.builder.sub(self.as_bits(shifted), self.as_bits(magic)), r

    def _power_of_two(self, n: Any) -> Any:
        biased = self.builder.add(n, self.integer(BIAS[self.bits]))
        return self.as_floats(self.builder.shl(biased, self.integer(MANTISSA[self.bits])))

    def sigmoid(self, x: Any) -> Any:
        one = self.number(1)
        return self.div(one, self.add(one, self.exp(self.neg(x))))

    def silu(self, x: Any) -> Any:
        one = self.number(1)
        return self.div(x, self.add(one, self.exp(self.neg(x))))

    def tanh(self, x: Any) -> Any:
        """e / (e + 2), e = exp(2 |x|) - 1, which is exact to the last bits at any size of x."""
        one, two = self.number(1), self.number(2)
        size = self.at_most(self.abs(x), self.number(20))  # 1 from there
        n, r = self._reduced(self.add(size, size))
        # exp(r) - 1 = r + r^2 (1/2 + r/6 + ...), and e = 2^n (exp(r) - 1) + (2^n - 1).
        series = [1 / math.factorial(k) for k in range(2, OF_EXP[self.bits] + 1)]
        less = self.multiply_add(self.mul(r, r), self.polynomial(r, series), r)
        power = self._power_of_two(n)
        e = self.multiply_add(power, less, self.sub(power, one))
        return self.intrinsic("llvm.copysign", self.div(e, self.add(e, two)), x)

    def softplus(self, x: Any) -> Any:
        """Returns log(1 + exp(x)), and x above 20."""
        e = self.exp(self.at_most(x, self.number(20)))
        return self.choose(self.compare(">", x, self.number(20)), x, self._log1p(e))

    # Logarithms.

    def log(self, x: Any) -> Any:
        zero, infinity = self.number(0), self.number(math.inf)
        tiny, up = 2.0 ** (1 - BIAS[self.bits]), 2.0 ** MANTISSA[self.bits]
        small = self.compare("<", x, self.number(tiny))
        normal = self.choose(small, self.mul(x, self.number(up)), x)
        less = self.choose(small, self.number(-MANTISSA[self.bits]), zero)
        result = self._log_of(normal, less)
        result = self.choose(self.compare("<", x, infinity), result, x)  # or NaN
        result = self.choose(self.compare("==", x, zero), self.number(-math.inf), result)
        return self.choose(self.compare("<", x, zero), self.number(math.nan), result)

    def _log1p(self, x: Any) -> Any:
        """log(1 + x), 0 <= x and finite: of the rounded sum, and what the rounding left."""
        one = self.number(1)
        whole = self.add(one, x)
        left = self.sub(x, self.sub(whole, one))
        result = self.add(self._log_of(whole, self.number(0)), self.div(left, whole))
        return self.choose(self.compare("==", x, x), result, x)

    def _log_of(self, x: Any, more: Any) -> Any:
        """log(x) + `more` log(2), for finite x above 0 of full precision.

        x = 2^n m, sqrt(1/2) <= m < sqrt(2); log(m) = 2 (s + s^3/3 + s^5/5 + ...),
        s = (m - 1) / (m + 1), |s| < 0.172, so that few terms count.
        """
        one = self.number(1)
        root = _bits_of(math.sqrt(0.5), self.bits)
        # Bits of x less those of sqrt(1/2): their exponent is n, their rest that of m.
        offset = self.builder.sub(self.as_bits(x), self.integer(root))
        n = self.builder.ashr(offset, self.integer(MANTISSA[self.bits]))
        exponent = self.builder.shl(n, self.integer(MANTISSA[self.bits]))
        m = self.as_floats(self.builder.sub(self.as_bits(x), exponent))
        n = self.add(self.builder.sitofp(n, self.type), more)
        f = self.sub(m, one)
        s = self.div(f, self.add(f, self.number(2)))
        square = self.mul(s, s)
        series = [2 / (2 * k + 1) for k in range(1, OF_LOG[self.bits] + 1)]
        # 2 s = f - s f, whose first term is exact.
        tail = self.mul(square, self.polynomial(square, series))
        log_m = self.sub(f, self.mul(s, self.sub(f, tail)))
        log_m = self.multiply_add(n, self.number(LN2_LOW[self.bits]), log_m)
        return self.multiply_add(n, self.number(LN2_HIGH[self.bits]), log_m)

    # Roots and powers.

    def sqrt(self, x: Any) -> Any:
        return self.intrinsic("llvm.sqrt", x)

    def rsqrt(self, x: Any) -> Any:
        return self.div(self.number(1), self.sqrt(x))

    def gelu(self, x: Any) -> Any:
        half, one = self.number(0.5), self.number(1)
        scaled = self.mul(x, self.number(math.sqrt(0.5)))
        return self.mul(self.mul(half, x), self.add(one, self.erf(scaled)))

    # The C library's, lane by lane.

    def sin(self, x: Any) -> Any:
        return self._by_lanes("sin", x)

    def cos(self, x: Any) -> Any:
        return self._by_lanes("cos", x)

    def erf(self, x: Any) -> Any:
        return self._by_lanes("erf", x)

    def pow(self, x: Any, y: Any) -> Any:
        return self._by_lanes("pow", x, y)

    def _by_lanes(self, name: str, *vectors: Any) -> Any:
        function = self._declared(
            name + ("f" if self.bits == 32 else ""), self.scalar, len(vectors)
        )
        result = ir.Constant(self.type, ir.Undefined)
        for lane in range(self.lanes):
            at = ir.Constant(INT32, lane)
            values = [self.builder.extract_element(v, at) for v in vectors]
            result = self.builder.insert_element(result, self.builder.call(function, values), at)
        return result


def _bits_of(value: float, bits: int) -> int:
    """The bits of a float's representation, as an integer."""
    return int.from_bytes(struct.pack("<f" if bits == 32 else "<d", value), "little")
