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

enum class State { kReady, kAtBlockBarrier, kAtWarp, kSpinning, kDone };

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
  const unsigned* counter = nullptr;  // read since the last fence
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

// The stacks of a block's threads, for the next block when it is done.
struct Stacks {
  std::unique_ptr<unsigned char[]> memory;
  size_t bytes = 0;
};

struct Block {
  Dim3 index;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<unsigned char> shared_memory;
  Stacks stacks;
  race_checks::Barrier barrier;
};

Block* block = nullptr;  // the one at work
const std::function<void()>* body = nullptr;
jmp_buf scheduler;
void* checked_scheduler = nullptr;
race_checks::Launch launch;
std::mt19937 random_order(0);
bool late_copies = false;
Fiber* running = nullptr;
// Threads that went on since all blocks were last looked at, and those that found nothing to go on for.
size_t resumed = 0;
size_t spun = 0;

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
  ++resumed;
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

void PrepareToStart(ucontext_t* start) {
  void* const stack = start->uc_stack.ss_sp;
  getcontext(start);
  start->uc_stack.ss_sp = stack;
  start->uc_stack.ss_size = kStackBytes;
  start->uc_link = nullptr;
  makecontext(start, Enter, 0);
}

// New memory for each block, but for the stacks where no races are looked for: ThreadSanitizer would take what is used
// again for shared by blocks.
std::unique_ptr<Block> MakeBlock(unsigned number, int threads, size_t shared_bytes, Stacks stacks) {
  auto made = std::make_unique<Block>();
  made->index = {number % grid_size.x, number / grid_size.x % grid_size.y, number / (grid_size.x * grid_size.y)};
  made->fibers = std::vector<Fiber>(threads);
  made->warps.assign((threads + kLanes - 1) / kLanes, Warp{});
  made->shared_memory = std::vector<unsigned char>(shared_bytes + kCanaryBytes, kPoison);
  if (race_checks::kEnabled || stacks.bytes < threads * kStackBytes) {
    stacks.bytes = threads * kStackBytes;
    stacks.memory.reset(new unsigned char[stacks.bytes]);
  }
  made->stacks = std::move(stacks);
  for (int t = 0; t < threads; ++t) {
    Fiber& fiber = made->fibers[t];
    fiber.linear = t;
    fiber.index = {t % block_size.x, t / block_size.x % block_size.y, t / (block_size.x * block_size.y)};
    fiber.start.uc_stack.ss_sp = made->stacks.memory.get() + t * kStackBytes;
    PrepareToStart(&fiber.start);
    fiber.checked = launch.NewThread();
  }
  return made;
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
      Fiber& fiber = block->fibers[warp * kLanes + lane];
      if (fiber.state != State::kReady) continue;
      Resume(fiber);
      progress = ran = true;
    }
  }
  return ran;
}

// Lets a block's threads run until all are done, or all that can run wait for another block. A warp runs as far ahead of
// the others as barriers allow, in an order that changes at each barrier: that is what shows a barrier to be missing.
// Other blocks have their turn after so many barriers. Returns whether the block is done.
bool RunBlock(Block& at_work, size_t barriers) {
  block = &at_work;
  block_index = block->index;
  std::vector<Fiber>& fibers = block->fibers;
  std::vector<int> order(block->warps.size());
  std::iota(order.begin(), order.end(), 0);
  const auto is_in = [](State state) { return [state](const Fiber& fiber) { return fiber.state == state; }; };
  for (Fiber& fiber : fibers) {
    if (fiber.state == State::kSpinning) fiber.state = State::kReady;
  }
  while (true) {
    std::shuffle(order.begin(), order.end(), random_order);
    bool ran = false;
    for (int warp : order) ran = RunWarp(warp) || ran;
    if (std::all_of(fibers.begin(), fibers.end(), is_in(State::kDone))) return true;
    if (std::all_of(fibers.begin(), fibers.end(), is_in(State::kAtBlockBarrier))) {
      for (Fiber& fiber : fibers) fiber.state = State::kReady;
      block->barrier.AllArrived();
      if (--barriers == 0) return false;
    } else if (!ran) {
      if (std::any_of(fibers.begin(), fibers.end(), is_in(State::kSpinning))) return false;
      Fail("threads wait at different places, or for threads that returned");
    }
  }
}

void CheckCanary(const Block& done, size_t shared_bytes) {
  for (size_t i = shared_bytes; i < done.shared_memory.size(); ++i) {
    if (done.shared_memory[i] != kPoison) Fail("a write beyond the dynamic shared memory");
  }
}

void RunApart(const std::vector<unsigned>& numbers, int threads, size_t shared_bytes) {
  Stacks stacks;
  for (unsigned number : numbers) {
    const std::unique_ptr<Block> made = MakeBlock(number, threads, shared_bytes, std::move(stacks));
    if (!RunBlock(*made, ~size_t{0})) Fail("a block waits for others in a launch that need not run them together");
    CheckCanary(*made, shared_bytes);
    stacks = std::move(made->stacks);
  }
}

void RunTogether(const std::vector<unsigned>& numbers, int threads, size_t shared_bytes) {
  std::vector<std::unique_ptr<Block>> blocks;
  for (unsigned number : numbers) blocks.push_back(MakeBlock(number, threads, shared_bytes, Stacks()));
  while (!blocks.empty()) {
    std::shuffle(blocks.begin(), blocks.end(), random_order);
    resumed = spun = 0;
    std::vector<std::unique_ptr<Block>> left;
    for (std::unique_ptr<Block>& one : blocks) {
      // Few barriers: were a block to go on to where it waits for others, ThreadSanitizer would take what it did before
      // for ordered with what they do next.
      if (!RunBlock(*one, 1 + random_order() % 3)) {
        left.push_back(std::move(one));
      } else {
        CheckCanary(*one, shared_bytes);
      }
    }
    if (resumed == spun) Fail("blocks wait for what no block does");
    blocks = std::move(left);
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

bool RunGrid(Dim3 grid, Dim3 of_block, size_t shared_bytes, bool together, const std::function<void()>& kernel) {
  const int threads = static_cast<int>(of_block.x * of_block.y * of_block.z);
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
  block_size = of_block;
  std::vector<unsigned> blocks(static_cast<size_t>(grid.x) * grid.y * grid.z);
  if (blocks.size() * threads > race_checks::kMaxThreads) {
    std::fprintf(stderr, "emulated kernel: %zu blocks of %d threads are too many to check for races\n", blocks.size(),
                 threads);
    return false;
  }
  std::iota(blocks.begin(), blocks.end(), 0u);
  std::shuffle(blocks.begin(), blocks.end(), random_order);
  (together ? RunTogether : RunApart)(blocks, threads, shared_bytes);
  launch.Ends();
  running = nullptr;
  return true;
}

unsigned char* DynamicSharedMemory() { return block->shared_memory.data(); }

void BlockBarrier() {
  const race_checks::Unseen unseen;
  char* token = block->barrier.Arrive();
  Yield(State::kAtBlockBarrier);
  block->barrier.Leave(token);
}

void Fence() {
  running->fenced = true;
  if (running->counter != nullptr) race_checks::Acquire(running->counter);
  running->counter = nullptr;
}
bool Fenced() { return running->fenced; }

unsigned ReadCounter(const unsigned* counter) {
  running->counter = counter;
  return __atomic_load_n(counter, __ATOMIC_RELAXED);
}

void SpinWait() {
  const race_checks::Unseen unseen;
  ++spun;
  Yield(State::kSpinning);
}

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
  Warp& warp = block->warps[linear / kLanes];
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
      Fiber& fiber = block->fibers[linear / kLanes * kLanes + lane];
      if (&fiber != running) fiber.state = State::kReady;
    }
  }
  return payloads;
}

}  // namespace emulation
