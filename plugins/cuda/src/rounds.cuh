// What a block does in a round besides choosing: normalise, look duplication up in the matrix, penalise, write the
// output.
#pragma once

#include "problem.h"
#include "top_k.cuh"

namespace iwp {

constexpr float kPenaltyFloor = 0.01f;  // a duplicate keeps this share of its priority at least (Algorithm 1)

struct SampleViews {
  const int32_t* is_visual;
  float* priority;  // the first of two buffers, `tokens` apart, as the next two
  unsigned* likeness_max;
  unsigned* likeness_min;
  int* chunk;
  const float* matrix;
  int64_t* kept_index;
  int num_visual;
  int budget;
};

__device__ inline SampleViews ViewsOf(const Problem& problem, const Workspace& workspace, const int32_t* is_visual,
                                      int64_t* kept_index, size_t sample) {
  const size_t tokens = problem.tokens;
  const int num_visual = workspace.num_visual[sample];
  return {is_visual + sample * tokens,
          workspace.priority + sample * 2 * tokens,
          workspace.likeness_max + sample * 2 * tokens,
          workspace.likeness_min + sample * 2 * tokens,
          workspace.chunk + sample * tokens,
          workspace.matrix + sample * tokens * problem.pitch,
          kept_index + sample * problem.num_kept,
          num_visual,
          Budget(problem, num_visual)};
}

struct RoundsShared {
  TopKScratch top;
  float extremes[2 * kMaxWarps];
};

// Brings importance to [0, 1]; all equal ones become 1. Entry i is touched by thread i % kSelectThreads alone.
__device__ inline void Normalise(float* priority, int size, RoundsShared& shared) {
  float low = INFINITY;
  float high = -INFINITY;
  for (int i = threadIdx.x; i < size; i += kSelectThreads) {
    low = fminf(low, priority[i]);
    high = fmaxf(high, priority[i]);
  }
  BlockMinMax(&low, &high, shared.extremes);
  for (int i = threadIdx.x; i < size; i += kSelectThreads) {
    priority[i] = high > low ? (priority[i] - low) / (high - low) : 1.0f;
  }
}

// Applies a round's duplication to what it left: P *= max(0.01, 1 - penalty * s). Same rule of ownership.
__device__ inline void Penalise(const Problem& problem, float* priority, int size, const unsigned* likeness_max,
                                const unsigned* likeness_min, RoundsShared& shared) {
  float low = INFINITY;
  float high = -INFINITY;
  if (problem.minmax) {
    for (int i = threadIdx.x; i < size; i += kSelectThreads) {
      if (priority[i] < 0.0f) continue;
      low = fminf(low, __uint_as_float(likeness_min[i]));
      high = fmaxf(high, __uint_as_float(likeness_max[i]));
    }
    BlockMinMax(&low, &high, shared.extremes);
  }
  for (int i = threadIdx.x; i < size; i += kSelectThreads) {
    const float before = priority[i];
    if (before < 0.0f) continue;
    float likeness = __uint_as_float(likeness_max[i]);
    if (problem.minmax) likeness = high > low ? (likeness - low) / (high - low) : 1.0f;
    // No fused multiply-add: the oracle rounds twice, and near ties are decided by the last bit.
    priority[i] = before * fmaxf(kPenaltyFloor, 1.0f - __fmul_rn(problem.penalty, likeness));
  }
}

// Largest and smallest duplication of tokens [first, first + width) with the `count` new ones, from rows of the matrix.
// `width` is a multiple of 4; the outputs [width] are shared memory and hold 0 and infinity.
__device__ inline void LookUpLikeness(const Problem& problem, const float* matrix, const int* chunk, int count,
                                      int first, int width, unsigned* likeness_max, unsigned* likeness_min) {
  const int quads = width / 4;
  const int groups = kSelectThreads / quads;  // threads that share the chunk, for the same four tokens
  const int quad = static_cast<int>(threadIdx.x) % quads;
  const int group = static_cast<int>(threadIdx.x) / quads;
  if (group >= groups || group >= count) return;
  float4 high = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  float4 low = make_float4(INFINITY, INFINITY, INFINITY, INFINITY);
#pragma unroll 4
  for (int c = group; c < count; c += groups) {
    const float* row = matrix + static_cast<size_t>(chunk[c]) * problem.pitch + first;
    const float4 x = *reinterpret_cast<const float4*>(row + 4 * quad);
    high = make_float4(fmaxf(high.x, x.x), fmaxf(high.y, x.y), fmaxf(high.z, x.z), fmaxf(high.w, x.w));
    low = make_float4(fminf(low.x, x.x), fminf(low.y, x.y), fminf(low.z, x.z), fminf(low.w, x.w));
  }
  // What is 0 or more orders like its bits, and an extreme does not depend on the order of the atomics.
  atomicMax(likeness_max + 4 * quad, __float_as_uint(high.x));
  atomicMax(likeness_max + 4 * quad + 1, __float_as_uint(high.y));
  atomicMax(likeness_max + 4 * quad + 2, __float_as_uint(high.z));
  atomicMax(likeness_max + 4 * quad + 3, __float_as_uint(high.w));
  if (problem.minmax) {
    atomicMin(likeness_min + 4 * quad, __float_as_uint(low.x));
    atomicMin(likeness_min + 4 * quad + 1, __float_as_uint(low.y));
    atomicMin(likeness_min + 4 * quad + 2, __float_as_uint(low.z));
    atomicMin(likeness_min + 4 * quad + 3, __float_as_uint(low.w));
  }
}

// Writes the positions of text and of chosen visual tokens, ascending. `priority` is by visual rank; the first sum's
// barrier orders it before the reads here, which are not by its owners.
__device__ inline void WriteKept(const Problem& problem, const int32_t* is_visual, const float* priority,
                                 int64_t* kept_index, RoundsShared& shared) {
  int visual_before = 0;
  int kept_before = 0;
  for (int base = 0; base < problem.tokens; base += kSelectThreads) {
    const int token = base + static_cast<int>(threadIdx.x);
    const bool exists = token < problem.tokens;
    const bool visual = exists && is_visual[token] != 0;
    int visuals;
    const int rank = visual_before + BlockExclusiveSum(visual ? 1 : 0, shared.top.warp_sums, &visuals);
    const bool kept = exists && (!visual || priority[rank] < 0.0f);
    int kepts;
    const int place = kept_before + BlockExclusiveSum(kept ? 1 : 0, shared.top.warp_sums, &kepts);
    // The bound only bites where num_kept is less than the text alone, which breaks the op's contract.
    if (kept && place < problem.num_kept) kept_index[place] = token;
    visual_before += visuals;
    kept_before += kepts;
  }
}

}  // namespace iwp
