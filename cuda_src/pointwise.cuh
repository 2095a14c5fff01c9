// The operations of a gate's program, with PyTorch's meaning: what generated code calls.
//
// sigmoid and tanh of float, which every gate has, are made of the machine's ex2 and rcp. Errors, by
// tests/backends/test_pointwise.py: absolute below 3e-7 and 5e-7; of tanh also relative below 2e-6.
//
//   LRNN_TANH  exact | approx: what quick_tanh and quick_sigmoid are, which generated code calls for
//              values of 16 bits that no decay depends on. approx: tanh to a relative 5e-4, sigmoid
//              to an absolute 2.5e-4
#pragma once

#include "device.cuh"

#ifndef LRNN_TANH
#define LRNN_TANH exact
#endif

namespace pointwise {

enum class Tanh { exact, approx };
constexpr bool kApprox = Tanh::LRNN_TANH == Tanh::approx;

__device__ inline float sigmoid(float x) { return reciprocal(1.0f + exp2_fast(-1.4426950408889634f * x)); }

__device__ inline float tanh(float x) {
  const float square = x * x;
  // Near 0 the quotient would cancel; this polynomial is then good to 1.4e-7 (least maximum of the
  // relative error, |x| < 0.2).
  const float polynomial = x + x * square * (-0.3332966f + square * 0.1303597f);
  const float quotient = 1.0f - 2.0f * reciprocal(1.0f + exp2_fast(2.8853900817779268f * x));
  return square < 0.04f ? polynomial : quotient;
}

__device__ inline float quick_tanh(float x) { return kApprox ? tanh_approx(x) : tanh(x); }

__device__ inline float quick_sigmoid(float x) {
  return kApprox ? 0.5f + 0.5f * tanh_approx(0.5f * x) : sigmoid(x);
}

__device__ inline double sigmoid(double x) { return 1.0 / (1.0 + ::exp(-x)); }
__device__ inline double tanh(double x) { return ::tanh(x); }

#define LRNN_FLOAT_AND_DOUBLE(name)                              \
  __device__ inline float name(float x) { return ::name##f(x); } \
  __device__ inline double name(double x) { return ::name(x); }

LRNN_FLOAT_AND_DOUBLE(exp)
LRNN_FLOAT_AND_DOUBLE(log)
LRNN_FLOAT_AND_DOUBLE(log1p)
LRNN_FLOAT_AND_DOUBLE(sin)
LRNN_FLOAT_AND_DOUBLE(cos)
LRNN_FLOAT_AND_DOUBLE(sqrt)
LRNN_FLOAT_AND_DOUBLE(erf)
LRNN_FLOAT_AND_DOUBLE(sinh)
LRNN_FLOAT_AND_DOUBLE(cosh)

#undef LRNN_FLOAT_AND_DOUBLE

__device__ inline float pow(float x, float y) { return ::powf(x, y); }
__device__ inline double pow(double x, double y) { return ::pow(x, y); }
__device__ inline float angle(float y, float x) { return ::atan2f(y, x); }
__device__ inline double angle(double y, double x) { return ::atan2(y, x); }

template <typename Number>
__device__ Number rsqrt(Number x) {
  return Number(1) / sqrt(x);
}

template <typename Real>
__device__ Real abs(Real x) {
  return x < Real(0) ? -x : x == Real(0) ? Real(0) : x;
}

template <typename Real>
__device__ Real sgn(Real x) {
  return Real((Real(0) < x) - (x < Real(0)));
}

template <typename Real>
__device__ Real relu(Real x) {
  return x <= Real(0) ? Real(0) : x;  // NaN stays
}

template <typename Real>
__device__ Real softplus(Real x) {
  return x > Real(20) ? x : log1p(exp(x));
}

template <typename Number>
__device__ Number silu(Number x) {
  return x * sigmoid(x);
}

template <typename Real>
__device__ Real gelu(Real x) {
  return Real(0.5) * x * (Real(1) + erf(x * Real(0.70710678118654752)));
}

template <typename Real>
__device__ Real minimum(Real x, Real y) {
  return x != x || x < y ? x : y;
}

template <typename Real>
__device__ Real maximum(Real x, Real y) {
  return x != x || x > y ? x : y;
}

template <typename Real>
__device__ Real at_least(Real x, Real low) {
  return x < low ? low : x;  // NaN stays
}

template <typename Real>
__device__ Real at_most(Real x, Real high) {
  return x > high ? high : x;
}

template <typename Number>
__device__ Number where(bool condition, Number x, Number y) {
  return condition ? x : y;
}

// Two features: each by itself.

__device__ inline Two where(Truths conditions, Two v, Two w) {
  return {where(conditions.x, v.x, w.x), where(conditions.y, v.y, w.y)};
}

#define LRNN_OF_TWO(name) \
  __device__ inline Two name(Two v) { return {name(v.x), name(v.y)}; }
#define LRNN_OF_TWICE_TWO(name) \
  __device__ inline Two name(Two v, Two w) { return {name(v.x, w.x), name(v.y, w.y)}; }

LRNN_OF_TWO(sigmoid)
LRNN_OF_TWO(tanh)
LRNN_OF_TWO(quick_sigmoid)
LRNN_OF_TWO(quick_tanh)
LRNN_OF_TWO(exp)
LRNN_OF_TWO(log)
LRNN_OF_TWO(sin)
LRNN_OF_TWO(cos)
LRNN_OF_TWO(sqrt)
LRNN_OF_TWO(erf)
LRNN_OF_TWO(rsqrt)
LRNN_OF_TWO(abs)
LRNN_OF_TWO(sgn)
LRNN_OF_TWO(relu)
LRNN_OF_TWO(softplus)
LRNN_OF_TWO(silu)
LRNN_OF_TWO(gelu)
LRNN_OF_TWICE_TWO(pow)
LRNN_OF_TWICE_TWO(minimum)
LRNN_OF_TWICE_TWO(maximum)
LRNN_OF_TWICE_TWO(at_least)
LRNN_OF_TWICE_TWO(at_most)

#undef LRNN_OF_TWO
#undef LRNN_OF_TWICE_TWO

// Complex numbers.

template <typename Real>
__device__ Real real(Complex<Real> z) {
  return z.re;
}

template <typename Real>
__device__ Real imag(Complex<Real> z) {
  return z.im;
}

template <typename Real>
__device__ Complex<Real> complex(Real x, Real y) {
  return {x, y};
}

template <typename Real>
__device__ Complex<Real> polar(Real size, Real angle) {
  return {size * cos(angle), size * sin(angle)};
}

template <typename Real>
__device__ Real abs(Complex<Real> z) {
  // Scaled, so that no square overflows.
  const Real x = abs(z.re), y = abs(z.im), larger = x > y ? x : y, smaller = x > y ? y : x;
  if (larger == Real(0)) return Real(0);
  const Real ratio = smaller / larger;
  return larger * sqrt(Real(1) + ratio * ratio);
}

template <typename Real>
__device__ Complex<Real> sgn(Complex<Real> z) {
  const Real size = abs(z);
  return size == Real(0) ? Complex<Real>(0) : Complex<Real>(z.re / size, z.im / size);
}

template <typename Real>
__device__ Complex<Real> exp(Complex<Real> z) {
  return polar(exp(z.re), z.im);
}

template <typename Real>
__device__ Complex<Real> log(Complex<Real> z) {
  return {log(abs(z)), angle(z.im, z.re)};
}

template <typename Real>
__device__ Complex<Real> sqrt(Complex<Real> z) {
  return polar(sqrt(abs(z)), angle(z.im, z.re) / Real(2));
}

template <typename Real>
__device__ Complex<Real> sin(Complex<Real> z) {
  return {sin(z.re) * cosh(z.im), cos(z.re) * sinh(z.im)};
}

template <typename Real>
__device__ Complex<Real> cos(Complex<Real> z) {
  return {cos(z.re) * cosh(z.im), -sin(z.re) * sinh(z.im)};
}

template <typename Real>
__device__ Complex<Real> sigmoid(Complex<Real> z) {
  return Complex<Real>(1) / (Complex<Real>(1) + exp(-z));
}

template <typename Real>
__device__ Complex<Real> tanh(Complex<Real> z) {
  return Complex<Real>(2) * sigmoid(Complex<Real>(2) * z) - Complex<Real>(1);
}

}  // namespace pointwise
