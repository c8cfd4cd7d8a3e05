// The k largest priorities of a list, ties to the lower index, by one block: a radix select, three digits of ten bits.
#pragma once

#include "block_ops.cuh"
#include "problem.h"

namespace iwp {

constexpr int kSelectThreads = 1024;
constexpr int kDigitBits = 10;
constexpr int kDigits = 1 << kDigitBits;
static_assert(kDigits == kSelectThreads, "each thread owns one bin of the histogram");

constexpr float kChosen = -1.0f;  // the priority of a token that is out of the list; others are 0 or more

// A token and its priority, of which the larger is to be chosen first: ties go to the lower index.
using Ranked = unsigned long long;
constexpr Ranked kNobody = 0;

struct TopKScratch {
  Ranked best[kMaxWarps];
  int histogram[kDigits];
  int warp_sums[kMaxWarps];
  int digit;
  int still_needed;
};

// Priorities are within [0, 1], so two bits of a float are 0 and its order is that of the other 30 as an integer. What
// no finite input gives, a NaN, ranks above all rather than breaking the search.
__device__ __forceinline__ unsigned PriorityKey(float priority) {
  constexpr unsigned kLargest = (1u << (3 * kDigitBits)) - 1;
  const unsigned bits = __float_as_uint(priority);
  return bits < kLargest ? bits : kLargest;
}

__device__ __forceinline__ Ranked Rank(float priority, int index) {
  return static_cast<Ranked>(PriorityKey(priority) + 1) << 32 | (0xffffffffu - static_cast<unsigned>(index));
}
__device__ __forceinline__ int IndexOf(Ranked ranked) {
  return static_cast<int>(0xffffffffu - static_cast<unsigned>(ranked));
}
__device__ __forceinline__ float PriorityOf(Ranked ranked) {
  return __uint_as_float(static_cast<unsigned>(ranked >> 32) - 1);
}

// The largest of the block's, in all of its threads. `scratch` [kMaxWarps] is free again when the call returns.
__device__ inline Ranked BlockBest(Ranked mine, Ranked* scratch) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  mine = WarpMax(mine);
  if (lane == 0) scratch[threadIdx.x / kWarp] = mine;
  __syncthreads();
  mine = WarpMax(lane < static_cast<int>(blockDim.x) / kWarp ? scratch[lane] : kNobody);
  __syncthreads();
  return mine;
}

// Chooses `count` of the entries of `priority` [size] that are not kChosen, of which there are as many: writes their
// indices to `chosen`, ascending, and with `kMark` marks them kChosen. Entry i is touched by thread i % kSelectThreads alone, so
// a caller that reads and writes by the same rule needs no barrier; one that reads `chosen` does.
template <bool kMark = true>
__device__ void TakeTop(float* priority, int size, int count, int* chosen, TopKScratch& scratch) {
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarp;
  unsigned prefix = 0;  // the digits of the count-th largest key that are known
  int needed = count;   // how many to take among the keys that begin with them

  for (int shift = 2 * kDigitBits; shift >= 0; shift -= kDigitBits) {
    scratch.histogram[thread] = 0;
    __syncthreads();
    for (int base = 0; base < size; base += kSelectThreads) {
      const int i = base + thread;
      const float value = i < size ? priority[i] : kChosen;
      const unsigned key = PriorityKey(value);
      const bool counts = !(value < 0.0f) && (key >> (shift + kDigitBits)) == prefix;
      const unsigned digit = (key >> shift) & (kDigits - 1);
      // Priorities crowd in few bins: lanes of one bin add up first, so that a bin gets one atomic a warp.
      const unsigned peers = __match_any_sync(kFullWarp, counts ? digit : ~0u);
      if (counts && lane == __ffs(static_cast<int>(peers)) - 1) atomicAdd(&scratch.histogram[digit], __popc(peers));
    }
    __syncthreads();
    const int bin = kDigits - 1 - thread;  // from the top, so that the scan counts what is larger
    const int in_bin = scratch.histogram[bin];
    int total;
    const int larger = BlockExclusiveSum(in_bin, scratch.warp_sums, &total);
    if (larger < needed && needed <= larger + in_bin) {
      scratch.digit = bin;
      scratch.still_needed = needed - larger;
    }
    __syncthreads();
    prefix = (prefix << kDigitBits) | static_cast<unsigned>(scratch.digit);
    needed = scratch.still_needed;
  }

  int taken = 0;   // in earlier stretches of the list
  int equals = 0;  // entries of the threshold's key in them
  for (int base = 0; base < size; base += kSelectThreads) {
    const int i = base + thread;
    const float value = i < size ? priority[i] : kChosen;
    const unsigned key = PriorityKey(value);
    const bool candidate = !(value < 0.0f);
    const bool greater = candidate && key > prefix;
    const bool equal = candidate && key == prefix;
    // Both counts fit in one word: a stretch has kSelectThreads entries.
    int total;
    const int before = BlockExclusiveSum((greater ? 1 << 16 : 0) | (equal ? 1 : 0), scratch.warp_sums, &total);
    const int greater_before = before >> 16;
    const int equal_before = before & 0xffff;
    const int equals_to_take = max(0, needed - equals);
    if (greater || (equal && equal_before < equals_to_take)) {
      chosen[taken + greater_before + min(equal_before, equals_to_take)] = i;
      if (kMark) priority[i] = kChosen;
    }
    taken += (total >> 16) + min(total & 0xffff, equals_to_take);
    equals += total & 0xffff;
  }
}

// The same for few entries, one after the other: what it writes to `chosen` is in the order of their priority.
__device__ inline void TakeFew(float* priority, int size, int count, int* chosen, TopKScratch& scratch) {
  const int thread = static_cast<int>(threadIdx.x);
  for (int c = 0; c < count; ++c) {
    Ranked mine = kNobody;
    for (int i = thread; i < size; i += kSelectThreads) {
      if (!(priority[i] < 0.0f)) mine = max(mine, Rank(priority[i], i));
    }
    const int best = IndexOf(BlockBest(mine, scratch.best));
    if (best % kSelectThreads == thread) priority[best] = kChosen;
    if (thread == 0) chosen[c] = best;
  }
}

// Either of the two: a choice of one costs two barriers, a radix select about twenty.
__device__ inline void Take(float* priority, int size, int count, int* chosen, TopKScratch& scratch) {
  constexpr int kFew = 8;
  if (count <= kFew) {
    TakeFew(priority, size, count, chosen, scratch);
  } else {
    TakeTop(priority, size, count, chosen, scratch);
  }
}

}  // namespace iwp
