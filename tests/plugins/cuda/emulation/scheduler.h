// Runs CUDA kernels on the CPU: a thread of a block is a fiber. Blocks run one after another; those of a cooperative
// launch take turns, each for a few barriers or until it waits, in SpinWait, for another block. For tests, where there
// is no GPU.
//
// What it checks that a GPU does not: threads that leave others waiting at a barrier, blocks that wait for what no block
// does or, outside a cooperative launch, for each other, warps whose lanes meet in different collectives, reads of shared memory that nothing wrote (it starts as a pattern of NaNs), writes beyond the
// dynamic shared memory. Blocks and threads run in an order drawn from a seed, so that a missing barrier changes
// results from seed to seed. Built with -fsanitize=thread it also reports races between threads: see race_checks.h.
// What it cannot check: the memory model between barriers, timing, and that the PTX instructions do what
// emulated_primitives.h says.
#pragma once

#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace emulation {

struct Dim3 {
  unsigned x = 1;
  unsigned y = 1;
  unsigned z = 1;
};

constexpr int kLanes = 32;
constexpr size_t kPayloadBytes = 32;

// What a lane brings to a collective of its warp.
struct Payload {
  int operation;
  alignas(16) unsigned char bytes[kPayloadBytes];
};

// The thread that runs.
extern Dim3 thread_index;
extern Dim3 block_index;
extern Dim3 block_size;
extern Dim3 grid_size;

// Runs `kernel` once for each thread of each block. Returns false, and says why on stderr, where a block cannot finish.
// `together`: all blocks are under way at once, as in a cooperative launch.
bool RunGrid(Dim3 grid, Dim3 block, size_t shared_bytes, bool together, const std::function<void()>& kernel);

unsigned char* DynamicSharedMemory();

void BlockBarrier();

// A fence of the current thread, and whether there was one.
void Fence();
bool Fenced();

// A read of a counter that other blocks add to, which the thread's next fence orders; and the wait for the next one.
unsigned ReadCounter(const unsigned* counter);
void SpinWait();

// Waits for the other lanes of the warp and returns what each of them brought, valid until the lane's next collective.
const Payload* WarpCollective(int operation, const void* bytes, size_t size);

int Lane();

// Asynchronous copies of 16 bytes (zeros where `from` is null) of the current thread. They land at once for an even
// seed, and for an odd one as late as allowed: in the call that waits for their group.
void QueueCopy(void* to, const void* from);
void CommitCopies();
void WaitCopies(size_t pending_groups);

}  // namespace emulation
