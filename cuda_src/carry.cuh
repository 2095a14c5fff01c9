// What the tiles of a chain tell each other, between blocks: states, and pairs of stretches.
//
// The workspace, zeroed before every launch: word 0 is the ticket; then one slot after the other,
// of all columns of a block, 32 bits to a word. A word is {payload, tag}: one 64-bit access carries
// both, so a reader that sees the tag has the payload, and no fence is needed.
#pragma once

#include "affine.cuh"
#include "device.cuh"

constexpr Word kPublished = Word(1) << 32;
constexpr Word kRestarts = Word(1) << 33;  // beside it: of a pair

template <typename Value>
struct Pieces {
  static_assert(sizeof(Value) % sizeof(unsigned) == 0, "a state consists of 32-bit pieces");
  static constexpr int kCount = sizeof(Value) / sizeof(unsigned);
  unsigned piece[kCount];
};

// Blocks take their tiles by ticket, not by index: whoever has a ticket is running, so everyone it
// may have to wait for is running too, whatever the order in which blocks start.
__device__ inline unsigned take_ticket(Word* workspace) {
  return unsigned(fetch_and_increment(workspace));
}

template <typename Value>
__device__ void publish(Word* words, Value value, Word tag = kPublished) {
  const auto pieces = bits_of<Pieces<Value>>(value);
  for (int i = 0; i < Pieces<Value>::kCount; ++i)
    store_shared_by_blocks(words + i, tag | pieces.piece[i]);
}

// What stands in the words of a value at the time of a look: all of it or not yet.
template <typename Value>
struct Glance {
  static constexpr int kCount = Pieces<Value>::kCount;
  Word found[kCount] = {};

  // All words at a time: a look takes as long as a hop.
  __device__ void look(const Word* words) {
    for (int i = 0; i < kCount; ++i) found[i] = load_shared_by_blocks(words + i);
  }

  __device__ bool complete() const {
    bool complete = true;
    for (int i = 0; i < kCount; ++i) complete = complete && found[i] >= kPublished;
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
__device__ Value await(const Word* words, Glance<Value> glance = {}, Word* tag = nullptr) {
  while (!glance.complete()) glance.look(words);
  if (tag) *tag = glance.found[0];
  return glance.value();
}

template <typename Value>
struct Coefficients {
  Value A, B;
};

template <typename Value>
__device__ void publish_pair(Word* words, const Affine<Value>& pair) {
  const Word tag = pair.restarts ? kPublished | kRestarts : kPublished;
  publish(words, Coefficients<Value>{pair.A, pair.B}, tag);
}

template <typename Value>
__device__ Affine<Value> await_pair(const Word* words, Glance<Coefficients<Value>> glance = {}) {
  Word tag;
  const auto pair = await<Coefficients<Value>>(words, glance, &tag);
  return {pair.A, pair.B, (tag & kRestarts) != 0};
}

// One that is there, as no other block writes it any more.
template <typename Value>
__device__ Affine<Value> read_pair(const Word* words) {
  Glance<Coefficients<Value>> glance;
  for (int i = 0; i < glance.kCount; ++i) glance.found[i] = load(words + i);
  const auto pair = glance.value();
  return {pair.A, pair.B, (glance.found[0] & kRestarts) != 0};
}
