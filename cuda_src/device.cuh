// What depends on the machine: storage types, memory accesses, every line of PTX.
//
// Under LRNN_HOST each has a twin for the host's compiler, so that tests execute the kernel without
// a GPU; the emulator that includes the kernel then provides the namespace `host`.
#pragma once

using Index = long long;
using Word = unsigned long long;

// Bits.

template <typename To, typename From>
__device__ To bits_of(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits under another type");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// Complex numbers, as PyTorch stores them.

template <typename Real>
struct alignas(2 * sizeof(Real)) Complex {
  Real re, im;

  Complex() = default;
  __device__ Complex(Real re, Real im = 0) : re(re), im(im) {}

  friend __device__ Complex operator-(Complex x) { return {-x.re, -x.im}; }
  friend __device__ Complex operator+(Complex x, Complex y) { return {x.re + y.re, x.im + y.im}; }
  friend __device__ Complex operator-(Complex x, Complex y) { return {x.re - y.re, x.im - y.im}; }
  friend __device__ Complex operator*(Complex x, Complex y) {
    return {x.re * y.re - x.im * y.im, x.re * y.im + x.im * y.re};
  }
  friend __device__ Complex operator/(Complex x, Complex y) {
    const Real size = y.re * y.re + y.im * y.im;
    return {(x.re * y.re + x.im * y.im) / size, (x.im * y.re - x.re * y.im) / size};
  }
  friend __device__ bool operator==(Complex x, Complex y) { return x.re == y.re && x.im == y.im; }
};

template <typename Real>
__device__ Real conj(Real x) {
  return x;
}

template <typename Real>
__device__ Complex<Real> conj(Complex<Real> x) {
  return {x.re, -x.im};
}

// Two neighbouring features side by side: where features are packed, what is a number elsewhere.

struct Two {
  float x, y;

  Two() = default;
  __device__ Two(float both) : x(both), y(both) {}
  __device__ Two(float x, float y) : x(x), y(y) {}
};

struct Truths {
  bool x, y;

  __device__ operator Two() const { return {float(x), float(y)}; }
};

__device__ inline Two operator-(Two v) { return {-v.x, -v.y}; }

#define LRNN_OF_BOTH(Result, sign) \
  __device__ inline Result operator sign(Two v, Two w) { return {v.x sign w.x, v.y sign w.y}; }

LRNN_OF_BOTH(Two, +)
LRNN_OF_BOTH(Two, -)
LRNN_OF_BOTH(Two, *)
LRNN_OF_BOTH(Two, /)
LRNN_OF_BOTH(Truths, <)
LRNN_OF_BOTH(Truths, <=)
LRNN_OF_BOTH(Truths, >)
LRNN_OF_BOTH(Truths, >=)
LRNN_OF_BOTH(Truths, ==)
LRNN_OF_BOTH(Truths, !=)

#undef LRNN_OF_BOTH

// Storage: `Element` in memory, `Value` in registers and in the state; 16 bits compute in float.

namespace storage {

template <typename T>
struct Plain {
  using Element = T;
  using Value = T;
  static __device__ Value decode(Element x) { return x; }
  static __device__ Element encode(Value x) { return x; }
};

using f32 = Plain<float>;
using f64 = Plain<double>;
using c64 = Plain<Complex<float>>;
using c128 = Plain<Complex<double>>;

struct bf16 {
  using Element = unsigned short;
  using Value = float;
  static __device__ Value decode(Element x) { return bits_of<float>(unsigned(x) << 16); }
#if !defined(LRNN_HOST) && __CUDA_ARCH__ >= 800
  static __device__ Element encode(Value x) {
    Element element;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(element) : "f"(x));
    return element;
  }
  static __device__ unsigned encode(Two v) {
    unsigned elements;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(elements) : "f"(v.y), "f"(v.x));
    return elements;
  }
#else
  static __device__ Element encode(Value x) {
    const unsigned bits = bits_of<unsigned>(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;  // rounding could turn NaN into inf
    return Element((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);  // to nearest, ties to even
  }
  static __device__ unsigned encode(Two v) { return encode(v.x) | unsigned(encode(v.y)) << 16; }
#endif
};

struct f16 {
  using Element = unsigned short;
  using Value = float;
#ifndef LRNN_HOST
  static __device__ Value decode(Element x) {
    Value value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x));
    return value;
  }
  static __device__ Element encode(Value x) {
    Element element;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(element) : "f"(x));
    return element;
  }
#else
  static Value decode(Element x) { return host::float_from_half(x); }
  static Element encode(Value x) { return host::half_from_float(x); }
#endif
#if !defined(LRNN_HOST) && __CUDA_ARCH__ >= 800
  static __device__ unsigned encode(Two v) {
    unsigned elements;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(elements) : "f"(v.y), "f"(v.x));
    return elements;
  }
#else
  static __device__ unsigned encode(Two v) { return encode(v.x) | unsigned(encode(v.y)) << 16; }
#endif
};

// Two neighbouring features of 16 bits as one element, the first in its lower half.
template <typename One>
struct Packed {
  using Element = unsigned;
  using Value = Two;
  static __device__ Value decode(Element both) {
    using Half = typename One::Element;
    return {One::decode(Half(both)), One::decode(Half(both >> 16))};
  }
  static __device__ Element encode(Value v) { return One::encode(v); }
};

}  // namespace storage

// What a gate finds under these names where features are packed.
namespace packed::storage {

using f32 = ::storage::Plain<Two>;
using bf16 = ::storage::Packed<::storage::bf16>;
using f16 = ::storage::Packed<::storage::f16>;

}  // namespace packed::storage

// The same bits, of which the compiler knows nothing: it computes from them again what it would
// otherwise hold.
template <typename T>
__device__ void forget(T& value) {
  struct Words {
    unsigned word[sizeof(T) / sizeof(unsigned)];
  };
  auto words = bits_of<Words>(value);
  for (unsigned& word : words.word) asm("" : "+r"(word));
  value = bits_of<T>(words);
}

// The machine's own functions, each within two units of the last place.

#ifndef LRNN_HOST

__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// This one to 11 bits: its relative error is at most 2^-11.
__device__ inline float tanh_approx(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

#else

inline float exp2_fast(float x) { return ::exp2f(x); }
inline float reciprocal(float x) { return 1.0f / x; }
inline float tanh_approx(float x) {
  return bits_of<float>((bits_of<unsigned>(::tanhf(x)) + 0x1000u) & ~0x1fffu);
}

#endif

// Memory.

template <typename T>
__device__ T load(const T* at) {
#ifdef LRNN_HOST
  host::traffic.bytes_loaded += sizeof(T);
#endif
  return *at;
}

template <typename T>
__device__ void store(T* at, T value) {
#ifdef LRNN_HOST
  host::traffic.bytes_stored += sizeof(T);
#endif
  *at = value;
}

// The same address, which the compiler may take for a multiple of kBytes.
template <int kBytes>
__device__ char* aligned(char* at) {
#ifdef LRNN_HOST
  host::check_alignment(at, kBytes);
#endif
  return static_cast<char*>(__builtin_assume_aligned(at, kBytes));
}

// A value as a storage type keeps it.

template <typename Storage>
__device__ typename Storage::Element load_element(const char* at) {
  return load(reinterpret_cast<const typename Storage::Element*>(at));
}

template <typename Storage>
__device__ typename Storage::Value load_as(const char* at) {
  return Storage::decode(load_element<Storage>(at));
}

template <typename Storage>
__device__ void store_as(char* at, typename Storage::Value value) {
  store(reinterpret_cast<typename Storage::Element*>(at), Storage::encode(value));
}

template <typename Number>
__device__ void store_as_is(char* to, Index at, Number value) {
  store(reinterpret_cast<Number*>(to) + at, value);
}

// Words that blocks exchange while they run. "Relaxed" suffices because a word tells by itself
// whether it is there (carry.cuh); "gpu" because a cached copy would never change.

#ifndef LRNN_HOST

__device__ inline Word load_shared_by_blocks(const Word* at) {
  Word word;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(word) : "l"(at) : "memory");
  return word;
}

__device__ inline void store_shared_by_blocks(Word* at, Word word) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" : : "l"(at), "l"(word) : "memory");
}

__device__ inline Word fetch_and_increment(Word* at) {
  Word before;
  asm volatile("atom.relaxed.gpu.global.add.u64 %0, [%1], 1;" : "=l"(before) : "l"(at) : "memory");
  return before;
}

#define LRNN_SHARED(type, name) __shared__ type name

#else

inline Word load_shared_by_blocks(const Word* at) { return host::poll(at); }
inline void store_shared_by_blocks(Word* at, Word word) { host::publish(at, word); }
inline Word fetch_and_increment(Word* at) { return (*at)++; }

#define LRNN_SHARED(type, name) type& name = host::shared_memory<type>()

#endif
