// What the tiles of a chain tell each other, between blocks: states, and pairs of segments.
//
// The workspace: word 0 is the ticket; then one slot after the other, of all columns of a block, 32
// bits to a word. A word is {payload, tag}: one 64-bit access carries both, so a reader that sees the
// tag has the payload, and no fence is needed.
//
// It is zeroed before every launch; or once, and reused by launches that do not overlap. Word 0 is
// then {count, epoch}, and a tag is the number of a launch, epoch + 1, which no word of an earlier
// one bears: after at most 2^31 - 1 launches the host zeroes it. Whatever shape and dtype, the lower
// half of a word is payload and the upper half tag, so kernels of any kind may take turns.
#pragma once

#include "affine.cuh"
#include "device.cuh"

enum class Workspace { zeroed, reused };
constexpr bool kReused = Workspace::LRNN_WORKSPACE == Workspace::reused;

constexpr Word kPublished = Word(1) << 32;
constexpr Word kRestarts = Word(1) << 63;  // beside it: of a pair

// What the words of a launch bear; in a zeroed workspace known when compiled.
template <bool kCounted>
struct TagOf {
  unsigned launch;

  static __device__ TagOf of(Word epoch) { return {unsigned(epoch) + 1}; }
  __device__ Word word() const { return Word(launch) << 32; }
  __device__ bool is_on(Word found) const { return unsigned((found & ~kRestarts) >> 32) == launch; }
};

template <>
struct TagOf<false> {
  static __device__ TagOf of(Word) { return {}; }
  __device__ Word word() const { return kPublished; }
  __device__ bool is_on(Word found) const { return found >= kPublished; }
};

using Tag = TagOf<kReused>;

template <typename Value>
struct Pieces {
  static_assert(sizeof(Value) % sizeof(unsigned) == 0, "a state consists of 32-bit pieces");
  static constexpr int kCount = sizeof(Value) / sizeof(unsigned);
  unsigned piece[kCount];
};

// Blocks take their tiles by ticket, not by index: whoever has a ticket is running, so everyone it
// may have to wait for is running too, whatever the order in which blocks start.
struct Ticket : Tag {
  unsigned number;
};

__device__ inline Ticket take_ticket(Word* workspace) {
  const Word before = fetch_and_increment(workspace), epoch = before >> 32;
  const unsigned number = unsigned(before);
  // All have theirs, and the epoch with it: nobody looks at word 0 before the next launch.
  if (kReused && number == gridDim.x - 1) store_shared_by_blocks(workspace, (epoch + 1) << 32);
  return {Tag::of(epoch), number};
}

// The words of one value, and the tag that they bear once it is there.
struct Slot {
  Word* words;
  Tag tag;

  __device__ Slot operator+(Index distance) const { return {words + distance, tag}; }
};

template <typename Value>
__device__ void publish(Slot slot, Value value, Word beside = 0) {
  const auto pieces = bits_of<Pieces<Value>>(value);
  const Word tag = slot.tag.word() | beside;
  for (int i = 0; i < Pieces<Value>::kCount; ++i)
    store_shared_by_blocks(slot.words + i, tag | pieces.piece[i]);
}

// What stands in the words of a value at the time of a look: all of it or not yet.
template <typename Value>
struct Glance {
  static constexpr int kCount = Pieces<Value>::kCount;
  Word found[kCount] = {};

  // All words at a time: a look takes as long as a hop.
  __device__ void look(Slot slot) {
    for (int i = 0; i < kCount; ++i) found[i] = load_shared_by_blocks(slot.words + i);
  }

  __device__ bool complete(Tag tag) const {
    bool complete = true;
    for (int i = 0; i < kCount; ++i) complete = complete && tag.is_on(found[i]);
    return complete;
  }

  __device__ Value value() const {
    Pieces<Value> pieces;
    for (int i = 0; i < kCount; ++i) pieces.piece[i] = unsigned(found[i]);
    return bits_of<Value>(pieces);
  }
};

// Looks until the value is there, unless an earlier glance has it.
template <typename Value>
__device__ Value await(Slot slot, Glance<Value> glance = {}, Word* tag = nullptr) {
  while (!glance.complete(slot.tag)) glance.look(slot);
  if (tag) *tag = glance.found[0];
  return glance.value();
}

template <typename Value>
struct Coefficients {
  Value A, B;
};

template <typename Value>
__device__ void publish_pair(Slot slot, const Affine<Value>& pair) {
  publish(slot, Coefficients<Value>{pair.A, pair.B}, pair.restarts ? kRestarts : 0);
}

template <typename Value>
__device__ Affine<Value> await_pair(Slot slot, Glance<Coefficients<Value>> glance = {}) {
  Word tag;
  const auto pair = await<Coefficients<Value>>(slot, glance, &tag);
  return {pair.A, pair.B, (tag & kRestarts) != 0};
}

// One that is there, as no other block writes it any more.
template <typename Value>
__device__ Affine<Value> read_pair(Slot slot) {
  Glance<Coefficients<Value>> glance;
  for (int i = 0; i < glance.kCount; ++i) glance.found[i] = load(slot.words + i);
  const auto pair = glance.value();
  return {pair.A, pair.B, (glance.found[0] & kRestarts) != 0};
}
