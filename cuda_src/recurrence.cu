// The gated recurrence over (B, T, D), and its gradient: one variant of each per compilation.
//
//   a_t, b_t = gate(x_t);  h_t = a_t * h_{t-1} + b_t;  y_t = readout(h_t, x_t), or h_t
//
//   LRNN_GATE      struct Gate: gate, readout, their derivatives, access to their inputs; generated
//                  from the gate's program (lightning_lrnn/backends/cuda/codegen.py)
//   LRNN_PASS      forward | backward
//   LRNN_RESULT    outputs | pair: all of the pass; or nothing but what its walk does to the state
//                  before it, h -> A * h + B, and in the workspace what `given` reads (scan, folded)
//   LRNN_SCHEDULE  scan | serial
//   LRNN_CARRY     chained | folded: how a tile learns the state before it (scan); given: from the
//                  workspace that the pass's pair has left, and waits for nobody; none: not at all,
//                  every tile starts from the initial state (a reference for speed)
//   LRNN_GLANCE    early | none: whether a chained tile looks for that state before it needs it; none
//                  is a reference for speed (scan)
//   LRNN_FOLD      apart | together: whether a folded tile awaits the tiles of its group before the
//                  groups of its reach, or all of them at a time (scan)
//   LRNN_COMBINE   rounds | row: how a block combines its segments. In rounds, with a barrier each; or,
//                  up to eight, one after the other by every thread, with one barrier (scan)
//   LRNN_EMIT      told | state_after | state_before: what a step emits; known when compiled, or told
//                  by `exclusive`
//   LRNN_WORKSPACE zeroed | reused: before every launch; or once, and used by one launch after the
//                  other, of kernels that are all `reused` (scan)
//   LRNN_COLUMNS   1 | 2 | 4 | 8 | 16 | 32: features of a block (scan)
//   LRNN_RESETS    0 | 1: whether a walk may start anew on its way
//   LRNN_PACKED    0 | 1: whether two neighbouring features of 16 bits, one 32-bit word, are what is
//                  one feature elsewhere: D, distances and grid count them, `Value` is a Two
//   LRNN_ANEW      0 | 1: whether a segment is evaluated again when it is walked again, for what is
//                  computed takes more registers than what was loaded (scan)
//   LRNN_TILES     any | whole: `whole` leaves out the path of tiles that are not (to count
//                  instructions)
//   LRNN_THREADS   threads of a block (scan)
//   LRNN_STEPS     time steps that a thread holds in registers
//   LRNN_BLOCKS    blocks that a multiprocessor shall hold at least: it bounds the registers (scan)
//   LRNN_LAYOUT    apart | ahead | behind: where the next step of a walk lies in memory. Anywhere; or
//                  right after this one, or right before it, in every sequence, rows at multiples of
//                  16 bytes
//
// The backward pass computes gates anew, and is the same recurrence, of the carry c over the
// opposite walk; e_t is what the forward pass emitted, h_t or h_{t-1}, and de_t = dy_t, or what the
// derivative of the readout makes of it:
//   inclusive: g = de_t + c, db_t = g, da_t = g * conj(h_prev), c = conj(a_t) * g
//   exclusive: g = c,        db_t = g, da_t = g * conj(e_t),    c = conj(a_t) * g + de_t
//
// Levels of the scan, each knowing only the one below:
//   thread     a segment: LRNN_STEPS consecutive steps of one column, loaded once, in registers
//   block      a tile: LRNN_COLUMNS columns, LRNN_THREADS / LRNN_COLUMNS segments of each
//   sequence   a chain: the tiles of the same columns. Chained: each waits for the state of the one
//              before. Folded: tiles publish their pairs, kFold tiles are a group, kFold groups a
//              reach; each tile folds the tiles of its group and the groups of its reach before it,
//              in a fixed order, and waits for nothing else but the state before its reach

#ifndef LRNN_RESETS
#define LRNN_RESETS 1
#endif
#ifndef LRNN_WORKSPACE
#define LRNN_WORKSPACE zeroed
#endif

#include "affine.cuh"
#include "carry.cuh"
#include "device.cuh"
#include "pointwise.cuh"

#ifndef LRNN_PASS
#define LRNN_PASS forward
#endif
#ifndef LRNN_RESULT
#define LRNN_RESULT outputs
#endif
#ifndef LRNN_SCHEDULE
#define LRNN_SCHEDULE scan
#endif
#ifndef LRNN_CARRY
#define LRNN_CARRY chained
#endif
#ifndef LRNN_GLANCE
#define LRNN_GLANCE early
#endif
#ifndef LRNN_FOLD
#define LRNN_FOLD apart
#endif
#ifndef LRNN_COMBINE
#define LRNN_COMBINE rounds
#endif
#ifndef LRNN_EMIT
#define LRNN_EMIT told
#endif
#ifndef LRNN_COLUMNS
#define LRNN_COLUMNS 32
#endif
#ifndef LRNN_THREADS
#define LRNN_THREADS 256
#endif
#ifndef LRNN_STEPS
#define LRNN_STEPS 8
#endif
#ifndef LRNN_BLOCKS
#define LRNN_BLOCKS 2
#endif
#ifndef LRNN_LAYOUT
#define LRNN_LAYOUT apart
#endif
#ifndef LRNN_PACKED
#define LRNN_PACKED 0
#endif
#ifndef LRNN_ANEW
#define LRNN_ANEW 0
#endif
#ifndef LRNN_TILES
#define LRNN_TILES any
#endif

enum class Layout { apart, ahead, behind };
constexpr Layout kLayout = Layout::LRNN_LAYOUT;
constexpr int kSteps = LRNN_STEPS;

// Where a segment of a sequence lies. Steps side by side are told to the compiler, which then moves
// 16 bytes at a time, or a whole segment if that is less.
template <typename Storage, bool kWhole>
struct Run {
  static constexpr bool kSideBySide = kWhole && kLayout != Layout::apart;
  static constexpr int kSize = sizeof(typename Storage::Element);
  static constexpr int kStride = kLayout == Layout::behind ? -kSize : kSize;
  static constexpr int kLowest = kLayout == Layout::behind ? kStride * (kSteps - 1) : 0;
  static constexpr int kBytes = kSteps * kSize;
  static constexpr int kAlignment = kBytes % 16 == 0 ? 16 : kBytes & -kBytes;
  char* first;
  Index stride;  // in bytes

  // Of an output, from an index and a distance in elements.
  static __device__ Run of(char* data, Index at, Index stride) {
    return {data + at * kSize, stride * kSize};
  }

  __device__ char* at(int s) const {
    if constexpr (!kSideBySide) return first + s * stride;
    return aligned<kAlignment>(first + kLowest) + (kStride * s - kLowest);
  }

  template <typename Record, typename Field, typename Count>
  __device__ void load(Record* records, Field Record::*field, Count count) const {
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
      if (s < count) records[s].*field = load_element<Storage>(at(s));
  }

  template <typename Record, typename Field, typename Count>
  __device__ void store(const Record* records, Field Record::*field, Count count) const {
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
      if (s < count) store_as<Storage>(at(s), records[s].*field);
  }

  template <typename Count>
  __device__ void store(const typename Storage::Value* values, Count count) const {
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
      if (s < count) store_as<Storage>(at(s), values[s]);
  }

  __device__ void store_zeros(Index count) const {
    for (Index s = 0; s < count; ++s) store_as<Storage>(first + s * stride, 0);
  }
};

#if LRNN_PACKED
namespace packed {
LRNN_GATE
}  // namespace packed
using packed::Gate;
#else
LRNN_GATE
#endif

enum class Pass { forward, backward };
enum class Result { outputs, pair };
enum class Schedule { scan, serial };
enum class Carry { chained, folded, given, none };
enum class Early { none, early };
enum class Tiles { any, whole };
enum class Direction { forward, reverse };
enum class Emit { state_after, state_before, told };  // inclusive, exclusive
enum class Combine { rounds, row };
enum class Fold { apart, together };

constexpr Pass kPass = Pass::LRNN_PASS;
constexpr Result kResult = Result::LRNN_RESULT;
constexpr Schedule kSchedule = Schedule::LRNN_SCHEDULE;
constexpr Carry kCarry = Carry::LRNN_CARRY;
[[maybe_unused]] constexpr bool kEarly = Early::LRNN_GLANCE == Early::early;
constexpr Emit kEmit = Emit::LRNN_EMIT;
constexpr Tiles kTiles = Tiles::LRNN_TILES;
using Value = Gate::Value;
using Pre = Gate::Pre;
using OutputValue = Gate::Output::Value;
using Pair = Affine<Value>;

constexpr int kColumns = LRNN_COLUMNS;
constexpr int kSegments = LRNN_THREADS / LRNN_COLUMNS;
constexpr int kTile = kSegments * kSteps;
constexpr int kFold = kSegments > 16 ? kSegments : 16;
constexpr bool kTogether = Fold::LRNN_FOLD == Fold::together && kSegments > 1;
constexpr bool kInRow = Combine::LRNN_COMBINE == Combine::row && kSegments <= 8;
constexpr int kThreads = kSchedule == Schedule::scan ? LRNN_THREADS : 128;
// On older architectures as many as the plan asks for would spill.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ > 800
constexpr int kFewer = 0;
#else
constexpr int kFewer = __CUDA_ARCH__ == 800 ? 1 : 2;
#endif
constexpr int kBlocks =
    kSchedule == Schedule::scan && LRNN_BLOCKS - kFewer > 2 ? LRNN_BLOCKS - kFewer : 2;

static_assert(kSteps >= 1 && kSteps <= 32, "one bit of a word marks one restart");
static_assert(kColumns >= 1 && LRNN_THREADS % kColumns == 0, "whole segments in every column");
static_assert(LRNN_THREADS % 32 == 0 && LRNN_THREADS <= 1024, "whole warps, one block");
static_assert(kResult == Result::outputs ||
                  (kSchedule == Schedule::scan && kCarry == Carry::folded),
              "a pair is folded");

struct Input {
  char* data;
  Index sB, sT, sD;  // strides in bytes

  __device__ char* at(Index b, Index t, Index d) const {
    return data + b * sB + t * sT + d * sD;
  }
};

// One launch, in the words of either pass: 64 bits each. Null: absent.
struct Problem {
  Input pre[Gate::kInputs];  // a parameter's stride of time is 0
  Input dy;                  //         | gradient of what the forward pass put out
  Input e;                   //         | states that it emitted
  const Value* initial;      // h0      | dh_final
  Value* final;              // h_final | dh0; B, of a pair
  const Value* h0;           //         | h0
  char* y;                   // readout |
  char* emitted;             // e       |; A (B, D), of a pair
  char* dpre[Gate::kInputs];  //        | (B, T, D); of a parameter (tiles, B, D), in Value
  const Index* lengths;
  const unsigned char* reset;
  Index B, T, D;
  Index row, step;           // distances in the outputs (B, T, D), in elements
  Index reverse, exclusive;  // of the forward pass
  Word* workspace;

  __device__ Emit emit() const {
    return kEmit != Emit::told ? kEmit : exclusive ? Emit::state_before : Emit::state_after;
  }
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
    const bool reversed = bool(p.reverse) != (kPass == Pass::backward);
    walk = reversed ? Direction::reverse : Direction::forward;
  }

  __device__ bool exists() const { return d < problem.D; }  // a block's last ones may not
  __device__ Index time(Index k) const { return walk == Direction::forward ? k : length - 1 - k; }
  __device__ Index stride(Index per_step) const {
    return walk == Direction::forward ? per_step : -per_step;
  }
  __device__ Index offset(Index t) const { return b * problem.row + t * problem.step + d; }
  __device__ Value state_in(const Value* states) const {
    return states && exists() ? load(states + b * problem.D + d) : Value(0);
  }
  __device__ void finish(Value state) const { store(problem.final + b * problem.D + d, state); }
  __device__ void finish(const Pair& walk) const {
    finish(walk.B);
    if (problem.emitted)
      store_as_is(problem.emitted, b * problem.D + d, walk.restarts ? Value(0) : walk.A);
  }
};

// Moves the state over one step. Returns what the step emits: y_t, or db_t.
__device__ Value advance(Value& state, Value a, Value x, Restarts restarts, Emit emit) {
  if constexpr (kPass == Pass::forward) {
    const Value before = restarts ? Value(0) : state;
    state = a * before + x;
    return emit == Emit::state_after ? state : before;
  } else {
    const bool inclusive = emit == Emit::state_after;
    const Value g = inclusive ? state + x : state;
    state = restarts ? Value(0) : a * g + (inclusive ? Value(0) : x);
    return g;
  }
}

// Outputs at the padded steps from `begin` on are 0.
__device__ void store_padding(const Column& column, Index begin, Index end) {
  const Problem& p = column.problem;
  const Index count = (end < p.T ? end : p.T) - begin, at = column.offset(begin);
  if (!column.exists()) return;
  if constexpr (kPass == Pass::forward) {
    Run<Gate::State, false>::of(p.emitted, at, p.step).store_zeros(count);
    if constexpr (Gate::kHasReadout)
      Run<Gate::Output, false>::of(p.y, at, p.step).store_zeros(count);
  } else {
    Gate::store_zeros(p.dpre, at, p.step, count);
  }
}

// How many steps of a segment are not padding. Of a whole one all, which then is not tested.
template <bool kWhole>
struct Count {
  int steps;

  __device__ Count(const Column& column, Index begin) {
    const Index left = column.exists() ? column.length - begin : 0;
    steps = left < 0 ? 0 : left < kSteps ? int(left) : kSteps;
  }
  __device__ operator int() const { return steps; }
};

template <>
struct Count<true> {
  __device__ Count(const Column&, Index) {}
  __device__ constexpr operator int() const { return kSteps; }
};

// Thread: some consecutive steps of a column's walk, in registers.
template <bool kWhole>
struct Segment {
  const Column* column;
  Index begin = 0;  // first step
  Count<kWhole> count;
  Pre parameters;
  Gate::Elements elements[kSteps];  // of sequences; as they lie in memory, like dy
  Gate::Output::Element dy[kPass == Pass::backward ? kSteps : 1];
  Value e[kPass == Pass::backward ? kSteps + 1 : 1];  // one more: the state before the last step
  Value a[kSteps], x[kSteps];  // what a step does to the state: advance()
  unsigned restarts = 0;       // bit s: step `begin + s` starts anew

  __device__ explicit Segment(const Column& column) : column(&column), count(column, 0) {}

  __device__ void fetch(Index from) {
    const Problem& p = column->problem;
    begin = from;
    count = Count<kWhole>(*column, begin);
    restarts = 0;
    load_pre();
    if constexpr (kPass == Pass::backward) {
      using Element = Gate::Output::Element;
      load_into<storage::Plain<Element>>(dy, p.dy, kSteps, 0, count, Element{});
      if constexpr (Gate::kHasReadout) load_emitted();
    }
    if (LRNN_RESETS && p.reset) fetch_restarts();
  }

  // What replay() needs besides; apart, because fewer addresses at a time take fewer registers.
  __device__ void fetch_rest() {
    if constexpr (kPass == Pass::backward && !Gate::kHasReadout) load_emitted();
  }

  __device__ void fetch_all(Index from) {
    fetch(from);
    fetch_rest();
  }

  __device__ void load_pre() {
    const Problem& p = column->problem;
    char* first[Gate::kInputs];
    Index stride[Gate::kInputs];
#pragma unroll
    for (int i = 0; i < Gate::kInputs; ++i) {
      first[i] = p.pre[i].at(column->b, column->time(begin), column->d);
      stride[i] = column->stride(p.pre[i].sT);
    }
    parameters = Pre{};
    if (count > 0) Gate::load_parameters(parameters, first);
#pragma unroll
    for (int s = 0; s < kSteps; ++s) elements[s] = {};
    Gate::template load_steps<kWhole>(elements, first, stride, count);
  }

  __device__ Pre pre(int s) const { return Gate::decoded(elements[s], parameters); }

  // The values of steps `first` to `last` - 1, counted from the segment's; others are `otherwise`.
  template <typename Storage, typename Number>
  __device__ void load_into(Number* values, const Input& input, int size, int first, int last,
                            Number otherwise) {
    const Run<Storage, kWhole> run{input.at(column->b, column->time(begin), column->d),
                                   column->stride(input.sT)};
#pragma unroll
    for (int s = 0; s < size; ++s)
      values[s] = s >= first && s < last ? load_as<Storage>(run.at(s)) : otherwise;
  }

  __device__ void load_emitted() {
    const Problem& p = column->problem;
    // The step before, in the forward walk, is the next one of this walk; before the first: h0.
    const bool next = p.emit() == Emit::state_after;
    const bool ends = next && begin + count == column->length;
    const int first = next && !Gate::kHasReadout;
    const int last = count > 0 ? count + (next && !ends) : 0;
    const Value h0 = ends ? column->state_in(p.h0) : Value(0);
    load_into<Gate::State>(e, p.e, kSteps + 1, first, last, h0);
  }

  __device__ Restarts restarts_at(int s) const { return Restarts(restarts >> s & 1); }

  __device__ void fetch_restarts() {
    const Problem& p = column->problem;
    const Index ahead = p.reverse;  // in reverse, the border lies behind step t in time
    const Index first = column->time(begin) + ahead, stride = column->stride(1);
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const Index border = first + s * stride;
      if (s < count && border < column->length && load(p.reset + column->b * p.T + border))
        restarts |= 1u << s;
    }
  }

  // What each step does to the state. Padded ones are evaluated too, which takes no branch.
  __device__ void evaluate() {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      Gate::gate(pre(s), a[s], x[s]);
      if constexpr (kPass == Pass::backward) {
        Pre unused;
        a[s] = conj(a[s]);
        x[s] = of_emitted(s, unused);
      }
    }
  }

  // The same from what was loaded, rather than holding it.
  __device__ void evaluate_anew() {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      forget(elements[s]);
      if constexpr (kPass == Pass::backward) forget(dy[s]);
    }
    evaluate();
  }

  __device__ Pair pair() const {
    Pair pair = Pair::identity();
    // After this loop, pair maps the state before the segment to the state after it.
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      if (s >= count) continue;
      advance(pair.B, a[s], x[s], restarts_at(s), column->problem.emit());
      pair.A = a[s] * pair.A;
    }
    pair.restarts = Restarts(restarts != 0);
    return pair;
  }

  // The gradient of what step s emitted, and of its pre-activations by way of the readout.
  __device__ Value of_emitted(int s, Pre& dx) const {
    return Gate::readout_pullback(e[s], pre(s), Gate::Output::decode(dy[s]), dx);
  }

  // From the state before the segment to the state after it, storing every output. Gradients of
  // parameters are added to `sums`.
  __device__ Value replay(Value state, Pre& sums) const {
    const Problem& p = column->problem;
    Value emitted[kSteps];
    OutputValue y[kSteps];
    Pre dx[kSteps];
    // After this loop, the outputs at all valid steps of the segment are known.
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      if (s >= count) continue;
      const Restarts restart = restarts_at(s);
      emitted[s] = advance(state, a[s], x[s], restart, p.emit());
      if constexpr (kPass == Pass::forward) {
        y[s] = Gate::readout(emitted[s], pre(s));
      } else {
        dx[s] = Pre{};
        of_emitted(s, dx[s]);
        const Value g = emitted[s], h_prev = p.emit() == Emit::state_after ? e[s + 1] : e[s];
        Gate::gate_pullback(pre(s), restart ? Value(0) : g * conj(h_prev), g, dx[s]);
        Gate::add_parameters(sums, dx[s]);
      }
    }
    const Index at = column->offset(column->time(begin)), stride = column->stride(p.step);
    if constexpr (kPass == Pass::forward) {
      Run<Gate::State, kWhole>::of(p.emitted, at, stride).store(emitted, count);
      if constexpr (Gate::kHasReadout)
        Run<Gate::Output, kWhole>::of(p.y, at, stride).store(y, count);
    } else {
      Gate::template store_steps<kWhole>(dx, p.dpre, at, stride, count);
    }
    return state;
  }

  // Whether the state after this segment is the state after the walk.
  __device__ bool ends_walk() const {
    if (!column->exists()) return false;
    return column->length == 0 ? begin == 0 : count > 0 && begin + count == column->length;
  }

  __device__ void finish(Value state) const {
    if (ends_walk()) column->finish(state);
    store_padding(*column, begin + count, begin + kSteps);
  }
};

// What the threads of a block share.
struct Shared {
  Ticket ticket;
  Value state_in[kColumns];                // of the tile, by column
  Pair pairs[2][kSegments][kColumns];  // alternating, so that one barrier a round suffices
};

// Block: what the segments before this thread's, in its column and tile, do to the state
// (`before`), and what the whole tile does (`tile`). The order of combination is fixed.
struct Prefix {
  Pair before, tile;
};

__device__ Prefix combine_row(Shared& shared, int segment, int column, const Pair& own) {
  auto& pairs = shared.pairs[0];
  pairs[segment][column] = own;
  __syncthreads();
  Prefix found{Pair::identity(), Pair::identity()};
  // After each turn, tile combines the segments 0 ... i.
#pragma unroll
  for (int i = 0; i < kSegments; ++i) {
    if (i == segment) found.before = found.tile;
    found.tile = combine(found.tile, pairs[i][column]);
  }
  return found;
}

__device__ Prefix scan_block(Shared& shared, int segment, int column, Pair own) {
  if constexpr (kInRow) return combine_row(shared, segment, column, own);
  int round = 0;
  // After this loop, own combines the segments 0 ... segment.
  for (int reach = 1; reach < kSegments; reach *= 2, ++round) {
    auto& pairs = shared.pairs[round % 2];
    pairs[segment][column] = own;
    __syncthreads();
    if (segment >= reach) own = combine(pairs[segment - reach][column], own);
  }
  auto& pairs = shared.pairs[round % 2];
  pairs[segment][column] = own;
  __syncthreads();
  return {segment == 0 ? Pair::identity() : pairs[segment - 1][column],
          pairs[kSegments - 1][column]};
}

// The sum over the segments of a column, for its first one; in a fixed order.
template <typename Number>
__device__ Number sum_over_segments(int segment, int column, Number own) {
  using Table = Number[kSegments][kColumns];
  LRNN_SHARED(Table, sums);
  __syncthreads();  // what used this memory before is done
  sums[segment][column] = own;
  // After each round, the first `reach` segments hold the sum of all.
  for (int reach = kSegments / 2; reach > 0; reach /= 2) {
    __syncthreads();
    if (segment < reach) sums[segment][column] = sums[segment][column] + sums[segment + reach][column];
  }
  return sums[segment][column];
}

// What to do with the gradient of parameter i. (Functors: NVRTC 12 takes a lambda for a function of
// the host.)
struct StoreSum {
  const Column& column;
  Index tile;

  template <typename Number>
  __device__ void operator()(int i, Number sum) const {
    const Problem& p = column.problem;
    store_as_is(p.dpre[i], (tile * p.B + column.b) * p.D + column.d, sum);
  }
};

struct StoreTileSum {
  const Column& column;
  Index tile;
  int segment, lane;

  template <typename Number>
  __device__ void operator()(int i, Number sum) const {
    const Number total = sum_over_segments(segment, lane, sum);
    if (segment == 0 && column.exists()) StoreSum{column, tile}(i, total);
  }
};

// One column's words in a chain's part of the workspace.
struct Chain {
  Slot words;
  Index tiles, groups;

  static constexpr bool kPairs = kCarry == Carry::folded || kCarry == Carry::given;
  // Of all columns of a block; a state leaves the second half of its slot free.
  static constexpr int kWords = (kPairs ? 2 : 1) * Pieces<Value>::kCount;

  __device__ Chain(Slot workspace, Index chain, Index tiles, int lane)
      : tiles(tiles), groups((tiles + kFold - 1) / kFold) {
    const Index reaches = (groups + kFold - 1) / kFold;
    const Index slots = kPairs ? tiles + groups + reaches : tiles;
    words = workspace + 1 + (chain * slots * kColumns + lane) * kWords;
  }

  __device__ Slot slot(Index index) const { return words + index * kColumns * kWords; }
  __device__ Slot tile(Index tile) const { return slot(tile); }
  __device__ Slot group(Index group) const { return slot(tiles + group); }
  __device__ Slot reach(Index reach) const { return slot(tiles + groups + reach); }
};

// The first `count` < kFold pairs from a slot on, in order, as one; all threads of a block help.
// Where nothing but the pair is asked for, nobody else reads these: each gives way to what the ones
// before it are together.
__device__ Pair fold(Shared& shared, int segment, int lane, Slot pairs, int count) {
  if (count == 0) return Pair::identity();
  constexpr int kEach = kFold / kSegments, kSlot = kColumns * Chain::kWords;
  const int first = segment * kEach, end = count < first + kEach ? count : first + kEach;
  Pair own = Pair::identity();
  for (int i = first; i < end; ++i) own = combine(own, await_pair<Value>(pairs + i * kSlot));
  __syncthreads();  // the block has read what it shared before
  Prefix found = scan_block(shared, segment, lane, own);
  if constexpr (kResult == Result::pair) {
    for (int i = first; i < end; ++i) {
      const Pair pair = await_pair<Value>(pairs + i * kSlot);
      publish_pair(pairs + i * kSlot, found.before);
      found.before = combine(found.before, pair);
    }
  }
  return found.tile;
}

// The groups of a reach before a tile and the tiles of its group before it as one: half of the
// segments each, and each looks at all of its own before it waits for one.
__device__ Pair fold_together(Shared& shared, const Chain& chain, int segment, int lane,
                              Index tile) {
  const Index group = tile / kFold;
  const int in_group = int(tile % kFold), in_reach = int(group % kFold);
  constexpr int kHalf = kSegments / 2 > 0 ? kSegments / 2 : 1, kEach = kFold / kHalf;
  constexpr int kSlot = kColumns * Chain::kWords;
  const bool of_groups = segment < kHalf;
  const Slot pairs = of_groups ? chain.group(group - in_reach) : chain.tile(tile - in_group);
  const int first = segment % kHalf * kEach, left = (of_groups ? in_reach : in_group) - first;
  Glance<Coefficients<Value>> seen[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i)
    if (i < left) seen[i].look(pairs + (first + i) * kSlot);
  Pair own = Pair::identity();
#pragma unroll
  for (int i = 0; i < kEach; ++i)
    if (i < left) own = combine(own, await_pair<Value>(pairs + (first + i) * kSlot, seen[i]));
  __syncthreads();  // the block has read what it shared before
  return scan_block(shared, segment, lane, own).tile;
}

// What the tiles since the state before this reach do, without this one, whose own pair it
// publishes if others `follow`.
__device__ Pair fold_reach(Shared& shared, const Chain& chain, int segment, int lane, Index tile,
                           const Pair& own, bool follow) {
  const Index group = tile / kFold;
  const int in_group = int(tile % kFold), in_reach = int(group % kFold);
  const bool ends_group = in_group == kFold - 1;
  follow = follow && segment == 0;
  if (follow) publish_pair(chain.tile(tile), own);
  if (kTogether && !ends_group) return fold_together(shared, chain, segment, lane, tile);
  const Pair tiles = fold(shared, segment, lane, chain.tile(tile - in_group), in_group);
  if (follow && ends_group) publish_pair(chain.group(group), combine(tiles, own));
  const Pair groups = fold(shared, segment, lane, chain.group(group - in_reach), in_reach);
  return combine(groups, tiles);
}

// The state before a tile, from what pair_tile has left of the tiles before it in its group, of the
// groups before that in its reach, and of all before the reach. Read side by side.
__device__ Value given_state(const Column& column, const Chain& chain, Index tile) {
  const Value initial = column.state_in(column.problem.initial);
  if (tile == 0) return initial;
  const Index group = tile / kFold, reach = group / kFold;
  const Pair tiles = read_pair<Value>(chain.tile(tile)), groups = read_pair<Value>(chain.group(group));
  const Pair reaches = read_pair<Value>(chain.reach(reach > 0 ? reach - 1 : 0));
  return apply(tiles, apply(groups, reach > 0 ? apply(reaches, initial) : initial));
}

// Sequence: a tile waits for the state before it and passes on the state after it.
template <bool kWhole>
__device__ void walk_tile(Shared& shared, const Column& column, Chain chain, int segment, int lane,
                          Index tile) {
  const Problem& p = column.problem;
  Segment<kWhole> own(column);
  own.fetch(tile * kTile + segment * kSteps);
  // Behind the loads, so that it arrives with them: most often the tile before is done by then.
  Glance<Value> glance;
  const bool continues = kCarry == Carry::chained && tile > 0;
  if (kEarly && continues && segment == 0) glance.look(chain.tile(tile - 1));
  if (kCarry == Carry::given && segment == 0)
    shared.state_in[lane] = given_state(column, chain, tile);
  own.evaluate();
  const Pair pair = own.pair();
  own.fetch_rest();  // arrives while the block combines and waits
  const Prefix prefix = scan_block(shared, segment, lane, pair);
  const bool follow = (tile + 1) * kTile < column.length;
  if constexpr (kCarry == Carry::chained || kCarry == Carry::none) {
    if (segment == 0) {
      const Value state =
          continues ? await(chain.tile(tile - 1), glance) : column.state_in(p.initial);
      shared.state_in[lane] = state;
      if (kCarry == Carry::chained && follow) publish(chain.tile(tile), apply(prefix.tile, state));
    }
  } else if constexpr (kCarry == Carry::folded) {
    const Index reach = tile / (kFold * kFold);
    Glance<Value> early;
    if (kTogether && reach > 0 && segment == 0) early.look(chain.reach(reach - 1));
    const Pair before = fold_reach(shared, chain, segment, lane, tile, prefix.tile, follow);
    if (segment == 0) {
      const Value anchor =
          reach == 0 ? column.state_in(p.initial) : await<Value>(chain.reach(reach - 1), early);
      const Value state = apply(before, anchor);
      shared.state_in[lane] = state;
      if (follow && (tile + 1) % (kFold * kFold) == 0)
        publish(chain.reach(reach), apply(prefix.tile, state));
    }
  }
  if (kCarry != Carry::given) __syncthreads();  // the scan's barriers were behind it
  Pre sums{};
  if constexpr (LRNN_ANEW) own.evaluate_anew();
  own.finish(own.replay(apply(prefix.before, shared.state_in[lane]), sums));
  if constexpr (kPass == Pass::backward)
    Gate::each_parameter(sums, StoreTileSum{column, tile, segment, lane});
}

// Sequence, if nothing but its pair is asked for: a tile waits for others only if it ends a group, a
// reach or the walk. It then publishes the pair of that; of a reach, that of the walk so far. At its
// own place it leaves, as `fold` does at the places of the others, what lies before it.
template <bool kWhole>
__device__ void pair_tile(Shared& shared, const Column& column, Chain chain, int segment, int lane,
                          Index tile) {
  Segment<kWhole> own(column);
  own.fetch(tile * kTile + segment * kSteps);
  own.evaluate();
  Pair pair = scan_block(shared, segment, lane, own.pair()).tile;
  const Index group = tile / kFold, reach = group / kFold;
  const int in_group = int(tile % kFold), in_reach = int(group % kFold);
  const bool ends_walk = (tile + 1) * kTile >= column.length;
  const bool ends_group = ends_walk || in_group == kFold - 1;
  const bool ends_reach = ends_walk || (ends_group && in_reach == kFold - 1);
  const bool leaves = segment == 0 && tile > 0;
  if (ends_group) {
    const Pair before = fold(shared, segment, lane, chain.tile(tile - in_group), in_group);
    if (leaves) publish_pair(chain.tile(tile), before);
    pair = combine(before, pair);
  }
  if (ends_reach) {
    const Pair before = fold(shared, segment, lane, chain.group(group - in_reach), in_reach);
    if (leaves) publish_pair(chain.group(group), before);
    pair = combine(before, pair);
  }
  if (segment > 0) return;
  if (ends_reach && reach > 0) pair = combine(await_pair<Value>(chain.reach(reach - 1)), pair);
  if (!ends_walk)
    publish_pair(ends_reach   ? chain.reach(reach)
                 : ends_group ? chain.group(group)
                              : chain.tile(tile),
                 pair);
  else if (column.exists())
    column.finish(pair);
}

template <bool kWhole>
__device__ void run_tile(Shared& shared, const Column& column, Chain chain, int segment, int lane,
                         Index tile) {
  if constexpr (kResult == Result::pair)
    pair_tile<kWhole>(shared, column, chain, segment, lane, tile);
  else
    walk_tile<kWhole>(shared, column, chain, segment, lane, tile);
}

// A block takes the next tile. The workspace may be null if there is one tile per chain and nothing
// is given.
__device__ void scan(const Problem& p) {
  LRNN_SHARED(Shared, shared);
  const int segment = threadIdx.x / kColumns, lane = threadIdx.x % kColumns;
  const Index tiles = (p.T + kTile - 1) / kTile;
  const unsigned groups = unsigned((p.D + kColumns - 1) / kColumns);

  Ticket ticket{{}, blockIdx.x};
  if (kCarry != Carry::given && tiles > 1) {
    if (threadIdx.x == 0) shared.ticket = take_ticket(p.workspace);
    __syncthreads();
    ticket = shared.ticket;
  }
  // Tiles of one chain are as far apart as can be, which leaves time for the state to arrive. A grid
  // has fewer than 2^31 blocks, so 32 bits do, whose division is short.
  const unsigned chains = unsigned(p.B) * groups, tile = ticket.number / chains;
  const unsigned chain = ticket.number - tile * chains, b = chain / groups, group = chain - b * groups;
  const Column column(p, b, Index(group) * kColumns + lane);
  const Chain words({p.workspace, ticket}, chain, tiles, lane);
  // The same for the whole block, as are the branches.
  const Index left = column.length - Index(tile) * kTile;
  if (kTiles == Tiles::whole || (left >= kTile && Index(group + 1) * kColumns <= p.D))
    run_tile<true>(shared, column, words, segment, lane, tile);
  else if (tile == 0 || left > 0)
    run_tile<false>(shared, column, words, segment, lane, tile);
  else if (kResult == Result::outputs)
    store_padding(column, Index(tile) * kTile + segment * kSteps,
                  Index(tile) * kTile + (segment + 1) * kSteps);
}

// One thread walks a whole column, a segment at a time: the loop that the scan must agree with.
__device__ void serial(const Problem& p) {
  const Index index = Index(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= p.B * p.D) return;
  const Index b = index / p.D;
  const Column column(p, b, index - b * p.D);
  Value state = column.state_in(p.initial);
  Pre sums{};
  const Index whole = column.length / kSteps * kSteps;
  Segment<true> own(column), next(column);
  if (whole > 0) own.fetch_all(0);
  // After each round, state is the state after the steps up to `begin + kSteps`.
  for (Index begin = 0; begin < whole; begin += kSteps) {
    if (begin + kSteps < whole) next.fetch_all(begin + kSteps);  // arrives while `own` is walked
    own.evaluate();
    state = own.replay(state, sums);
    own = next;
  }
  if (whole < column.length) {
    Segment<false> rest(column);
    rest.fetch_all(whole);
    rest.evaluate();
    state = rest.replay(state, sums);
  }
  column.finish(state);
  store_padding(column, column.length, p.T);
  if constexpr (kPass == Pass::backward) Gate::each_parameter(sums, StoreSum{column, 0});
}

extern "C" __global__ void __launch_bounds__(kThreads, kBlocks)
    recurrence(const __grid_constant__ Problem problem) {
  if constexpr (kSchedule == Schedule::scan)
    scan(problem);
  else
    serial(problem);
}
