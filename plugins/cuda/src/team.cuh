// Blocks of one launch that work on a sample together and wait for each other at every step: a loop of thousands of
// dependent steps is then one launch. LaunchTeams makes all of them resident, which the barrier relies on.
#pragma once

#include "block_ops.cuh"
#include "problem.h"
#include "top_k.cuh"

namespace iwp {

// The part of a sample's visual tokens that one block of a team has, a multiple of 4 long except at the end.
struct Slice {
  int length;  // the same for all blocks
  int first;
  int end;
};

__device__ inline Slice SliceOfBlock(int num_visual) {
  const int length = DivUp(DivUp(num_visual, static_cast<int>(gridDim.x)), 4) * 4;
  const int first = min(num_visual, static_cast<int>(blockIdx.x) * length);
  return {length, first, min(num_visual, first + length)};
}

class Team {
 public:
  // `arrived` is 0 before the launch; `best` [2, kMaxTeamBlocks] needs no value.
  __device__ Team(unsigned* arrived, Ranked* best) : arrived_(arrived), best_(best) {}

  // Every thread of every block of the team; what any of them wrote before is seen by all after.
  __device__ void Wait() {
    __syncthreads();
    if (gridDim.x == 1) return;
    due_ += gridDim.x;
    if (threadIdx.x == 0) {
      __threadfence();
      atomicAdd(arrived_, 1u);
      while (LoadCounter(arrived_) < due_) SpinWait();
      __threadfence();
    }
    __syncthreads();
  }

  // The best of all blocks' `mine`, in all threads; a Wait. Blocks take turns with two lists, so that one is written
  // only when all have read what it held before.
  __device__ Ranked BestOfAll(Ranked mine, Ranked* scratch) {
    const int blocks = static_cast<int>(gridDim.x);
    const Ranked of_block = BlockBest(mine, scratch);
    if (blocks == 1) return of_block;
    Ranked* const list = best_ + step_++ % 2 * kMaxTeamBlocks;
    if (threadIdx.x == 0) list[blockIdx.x] = of_block;
    Wait();
    const int thread = static_cast<int>(threadIdx.x);
    return BlockBest(thread < blocks ? list[thread] : kNobody, scratch);
  }

 private:
  unsigned* arrived_;
  Ranked* best_;
  unsigned due_ = 0;
  unsigned step_ = 0;
};

}  // namespace iwp
