#include "scheduler.h"

#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <numeric>
#include <random>
#include <utility>

#include "race_checks.h"
#include "rounding.h"

namespace emulation {

Dim3 thread_index;
Dim3 block_index;
Dim3 block_size;
Dim3 grid_size;
Rounding rounding;

namespace {

constexpr size_t kStackBytes = 64 * 1024;
constexpr size_t kCanaryBytes = 256;
constexpr unsigned char kPoison = 0xff;  // four of them are a NaN, two are one in half precision

enum class State { kReady, kAtBlockBarrier, kAtWarp, kDone };

struct Copy {
  void* to;
  const void* from;
};

struct Fiber {
  Dim3 index;
  int linear = 0;
  State state = State::kReady;
  ucontext_t start;
  jmp_buf resume;
  bool started = false;
  bool fenced = false;
  void* checked = nullptr;  // this thread to race_checks
  std::vector<Copy> open_group;
  std::deque<std::vector<Copy>> groups;
};

struct Warp {
  // Two sets of payloads: a lane may bring its next one before the slowest lane has read this one.
  Payload payloads[2][kLanes];
  int arrived = 0;
  unsigned generation = 0;
};

std::vector<Fiber> fibers;
std::vector<Warp> warps;
std::unique_ptr<unsigned char[]> stacks;
size_t stacks_bytes = 0;
std::vector<unsigned char> shared_memory;
const std::function<void()>* body = nullptr;
jmp_buf scheduler;
void* checked_scheduler = nullptr;
race_checks::Launch launch;
race_checks::Barrier barrier;
std::mt19937 random_order(0);
bool late_copies = false;
Fiber* running = nullptr;

void Yield(State state) {
  Fiber* self = running;
  self->state = state;
  if (_setjmp(self->resume) != 0) return;
  race_checks::SwitchTo(checked_scheduler);
  _longjmp(scheduler, 1);
}

void Enter() {
  launch.ThreadBegins();
  (*body)();
  launch.ThreadEnds();
  {
    const race_checks::Unseen unseen;
    running->state = State::kDone;
  }
  race_checks::SwitchTo(checked_scheduler);
  _longjmp(scheduler, 1);
}

void Resume(Fiber& fiber) {
  running = &fiber;
  thread_index = fiber.index;
  if (_setjmp(scheduler) != 0) return;
  const bool started = std::exchange(fiber.started, true);
  race_checks::SwitchTo(fiber.checked);
  if (started) _longjmp(fiber.resume, 1);
  setcontext(&fiber.start);
}

[[noreturn]] void Fail(const char* what) {
  std::fprintf(stderr, "emulated kernel: %s, block (%u, %u, %u), thread %d\n", what, block_index.x, block_index.y,
               block_index.z, running != nullptr ? running->linear : -1);
  std::abort();
}

void PrepareBlock(int threads, size_t shared_bytes) {
  // New memory for each block: ThreadSanitizer would take what is used again for shared by blocks.
  fibers = std::vector<Fiber>(threads);
  warps.assign((threads + kLanes - 1) / kLanes, Warp{});
  shared_memory = std::vector<unsigned char>(shared_bytes + kCanaryBytes, kPoison);
  barrier = race_checks::Barrier();
  if (race_checks::kEnabled || stacks_bytes < threads * kStackBytes) {
    stacks_bytes = threads * kStackBytes;
    stacks.reset(new unsigned char[stacks_bytes]);
  }
  for (int t = 0; t < threads; ++t) {
    Fiber& fiber = fibers[t];
    fiber.linear = t;
    fiber.index = {t % block_size.x, t / block_size.x % block_size.y, t / (block_size.x * block_size.y)};
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = stacks.get() + t * kStackBytes;
    fiber.start.uc_stack.ss_size = kStackBytes;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, Enter, 0);
    fiber.checked = launch.NewThread();
  }
}

// Runs the lanes of a warp, in random order, until each has returned or waits for other warps. Returns whether any ran.
bool RunWarp(int warp) {
  int order[kLanes];
  std::iota(order, order + kLanes, 0);
  std::shuffle(order, order + kLanes, random_order);
  bool ran = false;
  bool progress = true;
  while (progress) {
    progress = false;
    for (int lane : order) {
      Fiber& fiber = fibers[warp * kLanes + lane];
      if (fiber.state != State::kReady) continue;
      Resume(fiber);
      progress = ran = true;
    }
  }
  return ran;
}

// Lets threads run until all are done. A warp runs as far ahead of the others as barriers allow, in an order that
// changes at each barrier: that is what shows a barrier to be missing.
void RunBlock() {
  std::vector<int> order(warps.size());
  std::iota(order.begin(), order.end(), 0);
  const auto all = [](State state) {
    return std::all_of(fibers.begin(), fibers.end(), [&](const Fiber& fiber) { return fiber.state == state; });
  };
  while (true) {
    std::shuffle(order.begin(), order.end(), random_order);
    bool progress = false;
    for (int warp : order) progress = RunWarp(warp) || progress;
    if (all(State::kDone)) return;
    if (all(State::kAtBlockBarrier)) {
      for (Fiber& fiber : fibers) fiber.state = State::kReady;
      barrier.AllArrived();
    } else if (!progress) {
      Fail("threads wait at different places, or for threads that returned");
    }
  }
}

void Land(std::vector<Copy>& copies) {
  for (const Copy& copy : copies) {
    if (copy.from != nullptr) {
      std::memcpy(copy.to, copy.from, 16);
    } else {
      std::memset(copy.to, 0, 16);
    }
  }
  copies.clear();
}

}  // namespace

bool RunGrid(Dim3 grid, Dim3 block, size_t shared_bytes, const std::function<void()>& kernel) {
  const int threads = static_cast<int>(block.x * block.y * block.z);
  if (threads == 0 || threads > 1024 || threads % kLanes != 0) {
    std::fprintf(stderr, "emulated kernel: %d threads in a block; whole warps up to 1024 are emulated\n", threads);
    return false;
  }
  const race_checks::Unseen unseen;
  const int seed = Setting("SEED", 0);
  rounding = {Setting("BLOCK", 0), Setting("EXTRA_BITS", 0)};
  random_order.seed(static_cast<unsigned>(seed));
  late_copies = race_checks::kEnabled || seed % 2 == 1;
  checked_scheduler = race_checks::CurrentThread();
  launch.Begins();
  body = &kernel;
  grid_size = grid;
  block_size = block;
  std::vector<unsigned> blocks(static_cast<size_t>(grid.x) * grid.y * grid.z);
  if (blocks.size() * threads > race_checks::kMaxThreads) {
    std::fprintf(stderr, "emulated kernel: %zu blocks of %d threads are too many to check for races\n", blocks.size(),
                 threads);
    return false;
  }
  std::iota(blocks.begin(), blocks.end(), 0u);
  std::shuffle(blocks.begin(), blocks.end(), random_order);
  for (unsigned b : blocks) {
    block_index = {b % grid.x, b / grid.x % grid.y, b / (grid.x * grid.y)};
    PrepareBlock(threads, shared_bytes);
    RunBlock();
    for (size_t i = shared_bytes; i < shared_memory.size(); ++i) {
      if (shared_memory[i] != kPoison) Fail("a write beyond the dynamic shared memory");
    }
  }
  launch.Ends();
  running = nullptr;
  return true;
}

unsigned char* DynamicSharedMemory() { return shared_memory.data(); }

void BlockBarrier() {
  const race_checks::Unseen unseen;
  char* token = barrier.Arrive();
  Yield(State::kAtBlockBarrier);
  barrier.Leave(token);
}

void Fence() { running->fenced = true; }
bool Fenced() { return running->fenced; }

int Lane() { return running->linear % kLanes; }

void QueueCopy(void* to, const void* from) {
  // Under way from here until it lands.
  race_checks::NoteWrite(to, 16);
  if (from != nullptr) race_checks::NoteRead(from, 16);
  running->open_group.push_back({to, from});
  if (!late_copies) Land(running->open_group);
}

void CommitCopies() {
  running->groups.push_back(std::move(running->open_group));
  running->open_group.clear();
}

void WaitCopies(size_t pending_groups) {
  while (running->groups.size() > pending_groups) {
    Land(running->groups.front());
    running->groups.pop_front();
  }
}

const Payload* WarpCollective(int operation, const void* bytes, size_t size) {
  if (size > kPayloadBytes) Fail("a payload is too large");
  const race_checks::Unseen unseen;
  const int linear = running->linear;
  Warp& warp = warps[linear / kLanes];
  Payload* payloads = warp.payloads[warp.generation % 2];
  Payload& mine = payloads[linear % kLanes];
  mine.operation = operation;
  std::memcpy(mine.bytes, bytes, size);
  if (++warp.arrived < kLanes) {
    Yield(State::kAtWarp);
  } else {
    warp.arrived = 0;
    ++warp.generation;
    for (int lane = 0; lane < kLanes; ++lane) {
      if (payloads[lane].operation != operation) Fail("lanes of a warp meet in different collectives");
      Fiber& fiber = fibers[linear / kLanes * kLanes + lane];
      if (&fiber != running) fiber.state = State::kReady;
    }
  }
  return payloads;
}

}  // namespace emulation
