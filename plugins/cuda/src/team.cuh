// Blocks of one launch that work on a sample together and wait for each other at every step: a loop of thousands of
// dependent steps is then one launch. LaunchTeams makes all of them resident, which the barrier relies on.
#pragma once

#include "device.cuh"
#include "problem.h"

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
  // `arrived` is 0 before the launch.
  __device__ explicit Team(unsigned* arrived) : arrived_(arrived) {}

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

 private:
  unsigned* arrived_;
  unsigned due_ = 0;
};

}  // namespace iwp
