// The pair (A, B): what a segment of consecutive steps does to the state before it, h -> A * h + B.
#pragma once

#include "device.cuh"

// Whether a walk starts anew somewhere. In a kernel for walks that do not, a type that is always
// false, so that no step tests it.
#if LRNN_RESETS
using Restarts = bool;
#else
struct Restarts {
  Restarts() = default;
  __device__ constexpr Restarts(bool) {}
  __device__ constexpr operator bool() const { return false; }
};
#endif

template <typename Value>
struct Affine {
  alignas(sizeof(Value)) Value A;
  alignas(sizeof(Value)) Value B;
  Restarts restarts;  // the segment forgets the state before it: h -> B, even if h is not finite

  static __device__ Affine identity() { return {Value(1), Value(0), false}; }
};

// A * x + B, where a past of exactly 0 adds nothing: A, a product of many a, may be infinite.
template <typename Value>
__device__ Value affine(Value A, Value x, Value B) {
  return x == Value(0) ? B : A * x + B;
}

__device__ inline Two affine(Two A, Two x, Two B) {
  return {affine(A.x, x.x, B.x), affine(A.y, x.y, B.y)};
}

template <typename Value>
__device__ Value apply(const Affine<Value>& pair, Value h) {
  return pair.restarts ? pair.B : affine(pair.A, h, pair.B);
}

// Both segments as one. Associative, not commutative.
template <typename Value>
__device__ Affine<Value> combine(const Affine<Value>& earlier, const Affine<Value>& later) {
  return {affine(later.A, earlier.A, Value(0)), apply(later, earlier.B),
          earlier.restarts || later.restarts};
}
