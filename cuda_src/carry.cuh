// Passing the state from one tile of a chain to the next, between blocks.
//
// The workspace, zeroed before every launch: word 0 is the ticket; then for each (chain, tile,
// column) the state after that tile, 32 bits to a word. A word is {payload, tag}: one 64-bit access
// carries both, so a reader that sees the tag has the payload, and no fence is needed.
#pragma once

#include "device.cuh"

constexpr Word kPublished = Word(1) << 32;

template <typename Value>
struct Pieces {
  static_assert(sizeof(Value) % sizeof(unsigned) == 0, "a state consists of 32-bit pieces");
  static constexpr int kCount = sizeof(Value) / sizeof(unsigned);
  unsigned piece[kCount];
};

// Blocks take their tiles by ticket, not by index: whoever has a ticket is running, so everyone it
// may have to wait for is running too, whatever the order in which blocks start.
__device__ inline Index take_ticket(Word* workspace) {
  return Index(fetch_and_increment(workspace));
}

// The words of one state; `slot` = (chain * tiles + tile) * columns + column.
template <typename Value>
__device__ Word* carry_words(Word* workspace, Index slot) {
  return workspace + 1 + slot * Pieces<Value>::kCount;
}

template <typename Value>
__device__ void publish(Word* words, Value state) {
  const auto pieces = bits_of<Pieces<Value>>(state);
  for (int i = 0; i < Pieces<Value>::kCount; ++i)
    store_shared_by_blocks(words + i, kPublished | pieces.piece[i]);
}

template <typename Value>
__device__ Value await(const Word* words) {
  Pieces<Value> pieces;
  for (int i = 0; i < Pieces<Value>::kCount; ++i) {
    Word word;
    do word = load_shared_by_blocks(words + i);
    while (word < kPublished);
    pieces.piece[i] = unsigned(word);
  }
  return bits_of<Value>(pieces);
}
