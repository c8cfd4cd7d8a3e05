// Small kernels, some of them with a race on purpose, by which test_races.py knows that races are seen.
#include "block_ops.cuh"
#include "launch.h"
#include "team.cuh"

namespace {

constexpr int kThreads = 64;
constexpr int kBlocks = 2;
constexpr int kSharedBytes = 4096;

int memory[4 * kThreads];
unsigned blocks_done;

void Run(int blocks, void (*kernel)(int thread)) {
  const auto with_index = [](void (*body)(int)) { body(static_cast<int>(threadIdx.x)); };
  void (*launched)(void (*)(int)) = with_index;
  if (iwp::Launch(launched, dim3(blocks), kThreads, kSharedBytes, nullptr, kernel) != cudaSuccess) std::abort();
}

int* Shared() { return reinterpret_cast<int*>(iwp::DynamicShared()); }

// What a thread of the other warp, and one of the same warp, has to its account.
int Across(int thread) { return kThreads - 1 - thread; }
int Beside(int thread) { return thread ^ 1; }

// Sums up what all blocks wrote, in the last one of them.
template <bool kFence>
void SumInLastBlock(int thread) {
  int* const mine = memory + blockIdx.x * kThreads;
  mine[thread] = thread;
  if (kFence) __threadfence();
  __syncthreads();
  if (thread == 0) Shared()[0] = atomicAdd(&blocks_done, 1u) == kBlocks - 1;
  __syncthreads();
  if (Shared()[0] == 0) return;
  __threadfence();
  const int sum = memory[Across(thread)] + memory[kThreads + thread];
  memory[kBlocks * kThreads + thread] = sum;
}

void RunTeam(void (*kernel)(int thread)) {
  const auto with_index = [](void (*body)(int)) { body(static_cast<int>(threadIdx.x)); };
  void (*launched)(void (*)(int)) = with_index;
  const cudaError_t error =
      iwp::LaunchBlocks(true, launched, dim3(kBlocks), kThreads, kSharedBytes, nullptr, kernel);
  if (error != cudaSuccess) std::abort();
}

// Each block writes its part and reads the other's.
template <typename Wait>
void ReadOther(int thread, Wait wait) {
  const int block = static_cast<int>(blockIdx.x);
  memory[block * kThreads + thread] = thread;
  wait();
  memory[(kBlocks + block) * kThreads + thread] = memory[(1 - block) * kThreads + Across(thread)];
}

// Team::Wait, a fence or both left out.
template <bool kFirst, bool kSecond>
void WaitWithFences() {
  __syncthreads();
  if (threadIdx.x == 0) {
    if (kFirst) __threadfence();
    atomicAdd(&blocks_done, 1u);
    while (iwp::LoadCounter(&blocks_done) < kBlocks) iwp::SpinWait();
    if (kSecond) __threadfence();
  }
  __syncthreads();
}

void CopyOwn(int thread) {
  iwp::CopyAsync16(Shared() + 4 * thread, memory, true);
  iwp::CopyCommit();
}

}  // namespace

extern "C" {

void neighbour_after_barrier() {
  Run(1, [](int thread) {
    Shared()[thread] = thread;
    __syncthreads();
    memory[thread] = Shared()[Across(thread)];
  });
}
void neighbour_without_barrier() {
  Run(1, [](int thread) {
    Shared()[thread] = thread;
    memory[thread] = Shared()[Across(thread)];
  });
}
void neighbour_after_shuffle() {
  Run(1, [](int thread) {
    Shared()[thread] = thread;
    __shfl_xor_sync(iwp::kFullWarp, thread, 1);
    memory[thread] = Shared()[Beside(thread)];
  });
}
void buffer_written_again_without_barrier() {
  Run(1, [](int thread) {
    Shared()[thread] = thread;
    __syncthreads();
    memory[thread] = Shared()[Across(thread)];
    Shared()[thread] = 0;
  });
}

void next_launch_reads() {
  Run(1, [](int thread) { memory[thread] = thread; });
  Run(1, [](int thread) { memory[kThreads + thread] = memory[Across(thread)]; });
}
void blocks_write_apart() {
  Run(kBlocks, [](int thread) { memory[blockIdx.x * kThreads + thread] = thread; });
}
void blocks_write_the_same() {
  Run(kBlocks, [](int thread) { memory[thread] = thread; });
}
void blocks_add_up() {
  Run(kBlocks, [](int thread) { atomicAdd(memory + thread % 2, thread); });
}
void last_block_after_fence() { Run(kBlocks, SumInLastBlock<true>); }
void last_block_without_fence() { Run(kBlocks, SumInLastBlock<false>); }

void copy_after_wait_and_barrier() {
  Run(1, [](int thread) {
    CopyOwn(thread);
    iwp::CopyWait<0>();
    __syncthreads();
    memory[kThreads + thread] = Shared()[4 * Across(thread)];
  });
}
void copy_without_barrier() {
  Run(1, [](int thread) {
    CopyOwn(thread);
    iwp::CopyWait<0>();
    memory[kThreads + thread] = Shared()[4 * Across(thread)];
  });
}
void copy_without_wait() {
  Run(1, [](int thread) {
    CopyOwn(thread);
    __syncthreads();
    memory[kThreads + thread] = Shared()[4 * Across(thread)];
    iwp::CopyWait<0>();
  });
}
void copy_into_what_is_read() {
  Run(1, [](int thread) {
    memory[kThreads + thread] = Shared()[4 * Across(thread)];
    CopyOwn(thread);
    __syncthreads();
    iwp::CopyWait<0>();
  });
}

void two_sums() {
  Run(1, [](int thread) {
    int total;
    memory[thread] = iwp::BlockExclusiveSum(thread, Shared(), &total);
    memory[thread] += iwp::BlockExclusiveSum(1, Shared(), &total);
  });
}

void team_reads_after_wait() {
  RunTeam([](int thread) {
    iwp::Team team(&blocks_done);
    ReadOther(thread, [&] { team.Wait(); });
  });
}
void team_writes_what_others_read() {
  RunTeam([](int thread) {
    iwp::Team team(&blocks_done);
    ReadOther(thread, [&] { team.Wait(); });
    memory[static_cast<int>(blockIdx.x) * kThreads + thread] = 0;
  });
}
void team_waits_without_first_fence() {
  RunTeam([](int thread) { ReadOther(thread, WaitWithFences<false, true>); });
}
void team_waits_without_second_fence() {
  RunTeam([](int thread) { ReadOther(thread, WaitWithFences<true, false>); });
}

}  // extern "C"
