// Reductions and scans over a block. Every thread of the block calls them, the block is a whole number of warps.
#pragma once

#include "device.cuh"

namespace iwp {

constexpr int kMaxWarps = 32;

// The sum of `value` over the threads before this one; `total` is the sum over all.
// `scratch` [kMaxWarps] is free again when the call returns.
__device__ inline int BlockExclusiveSum(int value, int* scratch, int* total) {
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  int inclusive = value;
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const int below = __shfl_up_sync(kFullWarp, inclusive, offset);
    if (lane >= offset) inclusive += below;
  }
  if (lane == kWarp - 1) scratch[warp] = inclusive;
  __syncthreads();
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  int before = 0;
  int all = 0;
#pragma unroll 8
  for (int w = 0; w < warps; ++w) {
    const int sum = scratch[w];
    if (w < warp) before += sum;
    all += sum;
  }
  __syncthreads();
  *total = all;
  return before + inclusive - value;
}

// Smallest and largest value over the block's threads, in all of them. `scratch` as above, [2 * kMaxWarps].
__device__ inline void BlockMinMax(float* low, float* high, float* scratch) {
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  const float warp_low = WarpMin(*low);
  const float warp_high = WarpMax(*high);
  if (lane == 0) {
    scratch[warp] = warp_low;
    scratch[kMaxWarps + warp] = warp_high;
  }
  __syncthreads();
  // Lanes beyond the number of warps repeat warp 0's result, which changes neither extreme.
  const int source = lane < warps ? lane : 0;
  *low = WarpMin(scratch[source]);
  *high = WarpMax(scratch[kMaxWarps + source]);
  __syncthreads();
}

}  // namespace iwp
