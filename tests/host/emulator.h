// Executes a CUDA kernel on the host, for tests: one fiber per CUDA thread, one operating-system
// thread for all, and an order of execution that depends on nothing but a seed.
//
// Blocks start in random order, a few at a time, as on a device that has no room for more; which
// of them proceeds next is random too. A fiber runs until it waits at a barrier or has looked at or
// written a word that blocks share. Blocks that wait for each other for good, barriers that some
// threads of a block miss, and addresses that are not aligned as promised are errors.
//
// This header is what a kernel sees; emulator.cpp has the scheduler.
#ifndef LRNN_EMULATOR_H  // no "#pragma once", which warns in a header compiled by itself
#define LRNN_EMULATOR_H

#include <cmath>
#include <cstddef>
#include <cstring>
#include <type_traits>

#define __global__
#define __device__
#define __launch_bounds__(threads, blocks)
#define __grid_constant__

namespace host {

struct Dim {
  unsigned x;
};

// By `load` and `store`; words that blocks published for each other.
struct Traffic {
  long long bytes_loaded, bytes_stored, words;
};

constexpr std::size_t kSharedMemory = 48 * 1024;

extern Traffic traffic;
extern Dim thread_index, block_index;  // of the running fiber
extern Dim blocks;                     // of the launch
extern char* block_memory;             // of its block

void barrier();
void check_alignment(const void* at, int bytes);
unsigned long long poll(const unsigned long long* word);
void publish(unsigned long long* at, unsigned long long word);

float float_from_half(unsigned short half);
unsigned short half_from_float(float value);

template <typename T>
T& shared_memory() {
  static_assert(sizeof(T) <= kSharedMemory, "more shared memory than a block may have");
  return *reinterpret_cast<T*>(block_memory);
}

// A kernel of one parameter, behind a pointer to it.
using ThreadBody = void (*)(const void* parameter);

template <typename P>
P parameter_of(void (*)(P));

template <auto kernel>
void thread_body(const void* parameter) {
  kernel(*static_cast<const decltype(parameter_of(kernel))*>(parameter));
}

struct Launch {
  unsigned grid, threads;
  unsigned resident;  // blocks that run at the same time
  unsigned seed;
};

// Runs all blocks. Returns what went wrong, or null.
const char* run(const Launch& launch, ThreadBody body, const void* parameter);

}  // namespace host

#define blockIdx host::block_index
#define gridDim host::blocks
#define threadIdx host::thread_index
#define __syncthreads() host::barrier()

#endif
