#ifdef __APPLE__
#define _XOPEN_SOURCE 700  // else its ucontext.h refuses
#endif
#undef _FORTIFY_SOURCE  // which takes a jump to another stack for a fault
#include "emulator.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <deque>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

namespace host {

Traffic traffic;
Dim thread_index, block_index, blocks;
char* block_memory;

namespace {

constexpr std::size_t kStack = 64 * 1024;

struct Fiber {
  enum class State { ready, at_barrier, done };

  State state;
  bool begun;
  ucontext_t context;  // where it begins
  jmp_buf left;        // where it goes on
  std::unique_ptr<char[]> stack{new char[kStack]};
};

struct Block {
  Dim index;
  std::vector<Fiber> fibers;
  alignas(16) char shared[kSharedMemory];

  std::size_t count(Fiber::State state) const {
    return std::count_if(fibers.begin(), fibers.end(),
                         [state](const Fiber& fiber) { return fiber.state == state; });
  }
};

Fiber* running;
jmp_buf scheduler;
bool progress;      // by the block that ran last
const char* broken;  // what a thread found wrong, or null
ThreadBody body;
const void* parameter;

// By jumps: swapcontext asks the operating system for the signal mask each time.
void leave() {
  if (!_setjmp(running->left)) _longjmp(scheduler, 1);
}

void enter() {
  if (_setjmp(scheduler)) return;
  if (running->begun) _longjmp(running->left, 1);
  running->begun = true;
  setcontext(&running->context);
}

void run_fiber() {
  body(parameter);
  running->state = Fiber::State::done;
  progress = true;
  leave();
}

void start(Block& block, unsigned index) {
  block.index = {index};
  std::memset(block.shared, 0xff, kSharedMemory);  // NaN, for threads that read what none wrote
  for (Fiber& fiber : block.fibers) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    makecontext(&fiber.context, run_fiber, 0);
    fiber.state = Fiber::State::ready;
    fiber.begun = false;
  }
}

// Runs each thread of a block until it waits; opens the barrier once all have come.
const char* proceed(Block& block, std::mt19937& random) {
  block_index = block.index;
  block_memory = block.shared;
  const std::size_t threads = block.fibers.size(), first = random() % threads;
  for (std::size_t i = 0; i < threads; ++i) {
    thread_index.x = unsigned((first + i) % threads);
    running = &block.fibers[thread_index.x];
    if (running->state == Fiber::State::ready) enter();
  }
  if (broken) return broken;
  const std::size_t waiting = block.count(Fiber::State::at_barrier);
  if (waiting > 0 && block.count(Fiber::State::done) > 0)
    return "some threads of a block never reach a barrier";
  if (waiting == threads) {
    for (Fiber& fiber : block.fibers) fiber.state = Fiber::State::ready;
    progress = true;
  }
  return nullptr;
}

}  // namespace

void barrier() {
  running->state = Fiber::State::at_barrier;
  leave();
}

void check_alignment(const void* at, int bytes) {
  if (reinterpret_cast<std::uintptr_t>(at) % bytes) broken = "an address is not aligned as promised";
}

unsigned long long poll(const unsigned long long* word) {
  leave();
  return *word;
}

void publish(unsigned long long* at, unsigned long long word) {
  *at = word;
  ++traffic.words;
  progress = true;
  leave();
}

float float_from_half(unsigned short half) {
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  float size = std::ldexp(float(exponent ? 1024 + fraction : fraction), std::max(exponent, 1) - 25);
  if (exponent == 31) size = fraction ? NAN : INFINITY;
  return half >> 15 ? -size : size;
}

unsigned short half_from_float(float value) {
  const unsigned sign = std::signbit(value) ? 0x8000 : 0;
  const float size = std::fabs(value);
  if (std::isnan(value)) return 0x7fff;
  if (size >= 65520.0f) return static_cast<unsigned short>(sign | 0x7c00);
  int exponent = 0;
  std::frexp(size == 0.0f ? 0x1p-24f : size, &exponent);
  // In units of the last place; nearbyint rounds ties to even. A carry moves into the exponent.
  const int place = std::max(exponent, -13) - 11;
  const int units = int(std::nearbyint(std::ldexp(size, -place)));
  return static_cast<unsigned short>(sign | unsigned((place + 24) * 1024 + units));
}

const char* run(const Launch& launch, ThreadBody thread_body, const void* kernel_parameter) {
  body = thread_body;
  parameter = kernel_parameter;
  blocks = {launch.grid};
  traffic = {};
  broken = nullptr;
  std::mt19937 random(launch.seed);
  std::vector<unsigned> order(launch.grid);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), random);

  std::deque<Block> slots(std::min(launch.grid, launch.resident));
  std::vector<Block*> free, live;
  for (Block& block : slots) {
    block.fibers = std::vector<Fiber>(launch.threads);
    free.push_back(&block);
  }
  // After this loop, every block has run to its end.
  for (std::size_t next = 0, idle = 0; next < order.size() || !live.empty();) {
    for (; next < order.size() && !free.empty(); free.pop_back()) {
      start(*free.back(), order[next++]);
      live.push_back(free.back());
    }
    Block* block = live[random() % live.size()];
    progress = false;
    if (const char* error = proceed(*block, random)) return error;
    if (block->count(Fiber::State::done) == launch.threads) {
      live.erase(std::find(live.begin(), live.end(), block));
      free.push_back(block);
    }
    idle = progress ? 0 : idle + 1;
    // Often enough for every live block to have had many turns.
    if (idle > 64 * slots.size()) return "deadlock: every running block waits for another";
  }
  return nullptr;
}

}  // namespace host
