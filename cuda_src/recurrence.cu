// h_t = a_t * h_{t-1} + b_t over (B, T, D), and its gradient: one variant of each per compilation.
//
//   LRNN_STORAGE   f32 | f64 | f16 | bf16 | c64 | c128
//   LRNN_PASS      forward | backward
//   LRNN_SCHEDULE  scan | serial
//   LRNN_COLUMNS   1 | 2 | 4 | 8 | 16 | 32: features of a block (scan)
//   LRNN_THREADS   threads of a block (scan)
//   LRNN_STEPS     time steps that a thread holds in registers
//
// The backward pass is the same recurrence, of the carry c over the opposite walk:
//   inclusive: g = dy_t + c, db_t = g, da_t = g * conj(h_prev), c = conj(a_t) * g
//   exclusive: g = c,        db_t = g, da_t = g * conj(y_t),    c = conj(a_t) * g + dy_t
//
// Levels of the scan, each knowing only the one below:
//   thread     a segment: LRNN_STEPS consecutive steps of one column, loaded once, in registers
//   block      a tile: LRNN_COLUMNS columns, LRNN_THREADS / LRNN_COLUMNS segments of each
//   sequence   a chain: the tiles of the same columns; each waits for the state of the one before
#include "affine.cuh"
#include "carry.cuh"
#include "device.cuh"

#ifndef LRNN_STORAGE
#define LRNN_STORAGE f32
#endif
#ifndef LRNN_PASS
#define LRNN_PASS forward
#endif
#ifndef LRNN_SCHEDULE
#define LRNN_SCHEDULE scan
#endif
#ifndef LRNN_COLUMNS
#define LRNN_COLUMNS 32
#endif
#ifndef LRNN_THREADS
#define LRNN_THREADS 256
#endif
#ifndef LRNN_STEPS
#define LRNN_STEPS (64 / sizeof(Value))  // as much as no architecture spills; README.md, Tiles
#endif

enum class Pass { forward, backward };
enum class Schedule { scan, serial };
enum class Direction { forward, reverse };
enum class Emit { state_after, state_before };  // inclusive, exclusive

constexpr Pass kPass = Pass::LRNN_PASS;
constexpr Schedule kSchedule = Schedule::LRNN_SCHEDULE;
using Storage = storage::LRNN_STORAGE;
using Element = Storage::Element;
using Value = Storage::Value;
using Pair = Affine<Value>;

constexpr int kSteps = LRNN_STEPS;
constexpr int kColumns = LRNN_COLUMNS;
constexpr int kSegments = LRNN_THREADS / LRNN_COLUMNS;
constexpr int kTile = kSegments * kSteps;
constexpr int kThreads = kSchedule == Schedule::scan ? LRNN_THREADS : 128;

static_assert(kSteps >= 1 && kSteps <= 32, "one bit of a word marks one restart");
static_assert(kColumns >= 1 && LRNN_THREADS % kColumns == 0, "whole segments in every column");
static_assert(LRNN_THREADS % 32 == 0 && LRNN_THREADS <= 1024, "whole warps, one block");

struct Input {
  const Element* data;
  Index sB, sT, sD;  // strides in elements

  __device__ const Element* at(Index b, Index t, Index d) const {
    return data + b * sB + t * sT + d * sD;
  }
};

// One launch, in the words of either pass. Null: absent.
struct Problem {
  Input a;
  Input x;               // b       | dy
  Input y;               //         | y
  const Value* initial;  // h0      | dh_final
  Element* emitted;      // y       | db
  Element* da;           //         | da
  Value* final;          // h_final | dh0
  const Value* h0;       //         | h0
  const Index* lengths;
  const unsigned char* reset;
  Index B, T, D;
  Direction direction;  // of the forward pass
  Emit emit;
};

// One feature of one row, and the walk over it: step k = 0, 1, ... is at time(k) while k < length;
// whichever the direction, padding comes last, and step k of it is at time k.
struct Column {
  const Problem& problem;
  Index b, d, length;
  Direction walk;

  __device__ Column(const Problem& p, Index b, Index d) : problem(p), b(b), d(d), length(p.T) {
    if (p.lengths) {
      length = load(p.lengths + b);
      length = length < 0 ? 0 : length < p.T ? length : p.T;  // whatever it says, stay inside
    }
    const bool reversed = (p.direction == Direction::reverse) != (kPass == Pass::backward);
    walk = reversed ? Direction::reverse : Direction::forward;
  }

  __device__ bool exists() const { return d < problem.D; }  // a block's last ones may not
  __device__ Index time(Index k) const { return walk == Direction::forward ? k : length - 1 - k; }
  __device__ Index stride(Index per_step) const {
    return walk == Direction::forward ? per_step : -per_step;
  }
  __device__ Index offset(Index t) const { return (b * problem.T + t) * problem.D + d; }
  __device__ Value state_in(const Value* states) const {
    return states && exists() ? load(states + b * problem.D + d) : Value(0);
  }
};

// Moves the state over one step. Returns what the step emits: y_t, or db_t.
__device__ Value advance(Value& state, Value a, Value x, bool restarts, Emit emit) {
  if constexpr (kPass == Pass::forward) {
    const Value before = restarts ? Value(0) : state;
    state = a * before + x;
    return emit == Emit::state_after ? state : before;
  } else {
    const bool inclusive = emit == Emit::state_after;
    const Value g = inclusive ? state + x : state;
    state = restarts ? Value(0) : conj(a) * g + (inclusive ? Value(0) : x);
    return g;
  }
}

// Thread: some consecutive steps of a column's walk, in registers.
struct Segment {
  const Column& column;
  Index begin;  // first step
  int count;    // steps that are not padding
  Value a[kSteps], x[kSteps];
  Value h_prev[kPass == Pass::backward ? kSteps : 1];
  unsigned restarts;  // bit s: the forward walk starts anew at step `begin + s`

  // Loads; a step of padding becomes the identity.
  __device__ Segment(const Column& column, Index begin)
      : column(column), begin(begin), restarts(0) {
    const Problem& p = column.problem;
    const Index left = column.exists() ? column.length - begin : 0;
    count = left < 0 ? 0 : left < kSteps ? int(left) : kSteps;
    load_into(a, p.a, begin, count, Value(1));
    load_into(x, p.x, begin, count, Value(0));
    if (p.reset) load_restarts();
  }

  // What replay() needs besides; apart, because fewer addresses at a time take fewer registers.
  __device__ void load_h_prev() {
    if constexpr (kPass == Pass::backward) {
      const Problem& p = column.problem;
      // The step before, in the forward walk, is the next one of this walk; before the first: h0.
      const bool next = p.emit == Emit::state_after;
      const bool ends = next && begin + count == column.length;
      load_into(h_prev, p.y, begin + next, ends ? count - 1 : count,
                ends ? column.state_in(p.h0) : Value(0));
    }
  }

  __device__ void load_into(Value* values, const Input& input, Index from, int n, Value otherwise) {
    const Element* at = input.at(column.b, column.time(from), column.d);
    const Index stride = column.stride(input.sT);
#pragma unroll
    for (int s = 0; s < kSteps; ++s, at += stride)
      values[s] = s < n ? Storage::decode(load(at)) : otherwise;
  }

  __device__ void load_restarts() {
    const Problem& p = column.problem;
    const Index ahead = p.direction == Direction::reverse;  // the border lies behind step t in time
    const Index first = column.time(begin) + ahead, stride = column.stride(1);
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const Index border = first + s * stride;
      if (s < count && border < column.length && load(p.reset + column.b * p.T + border))
        restarts |= 1u << s;
    }
  }

  __device__ Pair pair() const {
    Pair pair = Pair::identity();
    // After this loop, pair maps the state before the segment to the state after it.
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      advance(pair.B, a[s], x[s], restarts >> s & 1, column.problem.emit);
      pair.A = (kPass == Pass::forward ? a[s] : conj(a[s])) * pair.A;
    }
    pair.restarts = restarts != 0;
    return pair;
  }

  // From the state before the segment to the state after it, storing every output on the way.
  __device__ Value replay(Value state) const {
    const Problem& p = column.problem;
    Index at = column.offset(column.time(begin));
    const Index stride = column.stride(p.D);
    // After this loop, the outputs at all valid steps of the segment are stored.
#pragma unroll
    for (int s = 0; s < kSteps; ++s, at += stride) {
      if (s >= count) continue;
      const bool restart = restarts >> s & 1;
      const Value emitted = advance(state, a[s], x[s], restart, p.emit);
      store(p.emitted + at, Storage::encode(emitted));
      if constexpr (kPass == Pass::backward) {
        const Value da = restart ? Value(0) : emitted * conj(h_prev[s]);
        store(p.da + at, Storage::encode(da));
      }
    }
    return state;
  }

  __device__ void store_padding() const {
    const Problem& p = column.problem;
    if (!column.exists()) return;
    const Index end = begin + kSteps < p.T ? begin + kSteps : p.T;
    // After this loop, the outputs at all padded steps of the segment are 0.
    for (Index t = begin + count; t < end; ++t) {
      store(p.emitted + column.offset(t), Storage::encode(Value(0)));
      if constexpr (kPass == Pass::backward)
        store(p.da + column.offset(t), Storage::encode(Value(0)));
    }
  }

  // Whether the state after this segment is the state after the walk.
  __device__ bool ends_walk() const {
    if (!column.exists()) return false;
    return column.length == 0 ? begin == 0 : count > 0 && begin + count == column.length;
  }

  __device__ void finish(Value state) const {
    const Problem& p = column.problem;
    if (ends_walk()) store(p.final + column.b * p.D + column.d, state);
    store_padding();
  }
};

// What the threads of a block share.
struct Shared {
  Index ticket;
  Value state_in[kColumns];                // of the tile, by column
  Pair stretches[2][kSegments][kColumns];  // alternating, so that one barrier a round suffices
};

// Block: what the segments before this thread's, in its column and tile, do to the state
// (`before`), and what the whole tile does (`tile`). The order of combination is fixed.
struct Prefix {
  Pair before, tile;
};

__device__ Prefix scan_block(Shared& shared, int segment, int column, Pair own) {
  int round = 0;
  // After this loop, own combines the segments 0 ... segment.
  for (int reach = 1; reach < kSegments; reach *= 2, ++round) {
    auto& stretches = shared.stretches[round % 2];
    stretches[segment][column] = own;
    __syncthreads();
    if (segment >= reach) own = combine(stretches[segment - reach][column], own);
  }
  auto& stretches = shared.stretches[round % 2];
  stretches[segment][column] = own;
  __syncthreads();
  return {segment == 0 ? Pair::identity() : stretches[segment - 1][column],
          stretches[kSegments - 1][column]};
}

// Sequence: a block takes the next tile, waits for the state before it and passes on the state
// after it. `workspace` may be null if there is one tile per chain.
__device__ void scan(const Problem& p, Word* workspace) {
  LRNN_SHARED(Shared, shared);
  const int segment = threadIdx.x / kColumns, lane = threadIdx.x % kColumns;
  const Index tiles = (p.T + kTile - 1) / kTile;
  const Index groups = (p.D + kColumns - 1) / kColumns;

  Index ticket = blockIdx.x;
  if (tiles > 1) {
    if (threadIdx.x == 0) shared.ticket = take_ticket(workspace);
    __syncthreads();
    ticket = shared.ticket;
  }
  // Tiles of one chain are as far apart as can be, which leaves time for the state to arrive.
  const Index tile = ticket / (p.B * groups), chain = ticket - tile * (p.B * groups);
  const Index b = chain / groups, group = chain - b * groups;
  const Column column(p, b, group * kColumns + lane);
  Segment own(column, tile * kTile + segment * kSteps);
  if (tile > 0 && tile * kTile >= column.length) return own.store_padding();  // the whole block

  const Pair pair = own.pair();
  own.load_h_prev();  // arrives while the block combines and waits
  const Prefix prefix = scan_block(shared, segment, lane, pair);
  if (segment == 0) {
    const Index slot = (chain * tiles + tile) * kColumns + lane;
    const Value state = tile == 0 ? column.state_in(p.initial)
                                  : await<Value>(carry_words<Value>(workspace, slot - kColumns));
    shared.state_in[lane] = state;
    if ((tile + 1) * kTile < column.length)
      publish(carry_words<Value>(workspace, slot), apply(prefix.tile, state));
  }
  __syncthreads();
  own.finish(own.replay(apply(prefix.before, shared.state_in[lane])));
}

// One thread walks a whole column, a segment at a time: the loop that the scan must agree with.
__device__ void serial(const Problem& p) {
  const Index index = Index(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= p.B * p.D) return;
  const Index b = index / p.D;
  const Column column(p, b, index - b * p.D);
  Value state = column.state_in(p.initial);
  // After each round, the steps up to `begin + kSteps` are done and state is the state after them.
  for (Index begin = 0; begin < p.T; begin += kSteps) {
    Segment own(column, begin);
    own.load_h_prev();
    state = own.replay(state);
    own.finish(state);
  }
}

__device__ void run(const Problem& problem, Word* workspace) {
  if constexpr (kSchedule == Schedule::scan)
    scan(problem, workspace);
  else
    serial(problem);
}

__device__ Direction direction_of(int reverse) {
  return reverse ? Direction::reverse : Direction::forward;
}

__device__ Emit emit_of(int exclusive) {
  return exclusive ? Emit::state_before : Emit::state_after;
}

// Two blocks per multiprocessor: aiming for more by itself, the compiler would spill.
#define LRNN_KERNEL extern "C" __global__ void __launch_bounds__(kThreads, 2)

// The two passes differ in their parameters, which only the preprocessor can choose.
#define LRNN_IS_forward 0
#define LRNN_IS_backward 1
#define LRNN_PASTE(x, y) x##y
#define LRNN_IS(pass) LRNN_PASTE(LRNN_IS_, pass)

#if LRNN_IS(LRNN_PASS)

LRNN_KERNEL
recurrence(const Element* __restrict__ a, Index a_sB, Index a_sT, Index a_sD,
           const Element* __restrict__ y, Index y_sB, Index y_sT, Index y_sD,
           const Element* __restrict__ dy, Index dy_sB, Index dy_sT, Index dy_sD,
           const Value* __restrict__ h0, const Value* __restrict__ dh_final,
           Element* __restrict__ da, Element* __restrict__ db, Value* __restrict__ dh0,
           const Index* __restrict__ lengths, const unsigned char* __restrict__ reset,
           Index B, Index T, Index D, int reverse, int exclusive, Word* workspace) {
  run({{a, a_sB, a_sT, a_sD}, {dy, dy_sB, dy_sT, dy_sD}, {y, y_sB, y_sT, y_sD}, dh_final, db, da,
       dh0, h0, lengths, reset, B, T, D, direction_of(reverse), emit_of(exclusive)},
      workspace);
}

#else

LRNN_KERNEL
recurrence(const Element* __restrict__ a, Index a_sB, Index a_sT, Index a_sD,
           const Element* __restrict__ b, Index b_sB, Index b_sT, Index b_sD,
           const Value* __restrict__ h0, Element* __restrict__ y, Value* __restrict__ h_final,
           const Index* __restrict__ lengths, const unsigned char* __restrict__ reset,
           Index B, Index T, Index D, int reverse, int exclusive, Word* workspace) {
  run({{a, a_sB, a_sT, a_sD}, {b, b_sB, b_sT, b_sD}, {}, h0, y, nullptr, h_final, nullptr, lengths,
       reset, B, T, D, direction_of(reverse), emit_of(exclusive)},
      workspace);
}

#endif
