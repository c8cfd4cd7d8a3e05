// First pass over the inputs: each token's logits and norms, each stretch's softmax terms, and the list of visual
// tokens.
#include "block_ops.cuh"
#include "launch.h"
#include "problem.h"

namespace iwp {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kQueryGroup = 8;  // query heads that share one read of their key

struct StatsShared {
  float query[kQueryGroup][kMaxHeadDim];
  float logit[kQueryGroup][kStatTokens];
  int warp_sums[kMaxWarps];
};

// Writes the ascending list of a sample's visual tokens.
__device__ void CompactVisual(const Problem& problem, const int32_t* is_visual, int* visual_index, int* num_visual,
                              int* warp_sums) {
  constexpr int kPerThread = 8;  // loads in flight; long sequences would otherwise wait for one byte after another
  int count = 0;
  for (int base = 0; base < problem.tokens; base += kThreads * kPerThread) {
    const int first = base + static_cast<int>(threadIdx.x) * kPerThread;
    unsigned mask = 0;
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      if (first + j < problem.tokens && is_visual[first + j] != 0) mask |= 1u << j;
    }
    int total;
    int position = count + BlockExclusiveSum(__popc(mask), warp_sums, &total);
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      if (mask >> j & 1u) visual_index[position++] = first + j;
    }
    count += total;
  }
  if (threadIdx.x == 0) *num_visual = count;
}

// Grid: x stretches of kStatTokens tokens, y (kv head, group of its query heads) and one more for the list, z samples.
// `lanes` of a warp share a token: a power of two, enough to read its row in 16-byte accesses or a whole warp.
template <typename T, int kElements>
__global__ void __launch_bounds__(kThreads)
    TokenStatsKernel(Problem problem, const T* __restrict__ query, const T* __restrict__ key,
                     const T* __restrict__ key_rotated, const T* __restrict__ value,
                     const int32_t* __restrict__ is_visual, Workspace workspace, int lanes) {
  StatsShared& shared = *reinterpret_cast<StatsShared*>(DynamicShared());
  const int sample = blockIdx.z;
  const int tokens = problem.tokens;
  const int thread = threadIdx.x;
  is_visual += static_cast<size_t>(sample) * tokens;

  if (blockIdx.y + 1 == gridDim.y) {
    if (blockIdx.x != 0) return;
    CompactVisual(problem, is_visual, workspace.visual_index + static_cast<size_t>(sample) * tokens,
                  workspace.num_visual + sample, shared.warp_sums);
    if (sample == 0) {
      for (int i = thread; i < kMaxPartialTiles; i += kThreads) workspace.tiles_done[i] = 0;
    }
    return;
  }

  const int group_size = problem.heads / problem.kv_heads;
  const int groups = DivUp(group_size, kQueryGroup);
  const int kv_head = static_cast<int>(blockIdx.y) / groups;
  const int group = static_cast<int>(blockIdx.y) % groups;
  const int first_head = kv_head * group_size + group * kQueryGroup;
  const int queries = min(kQueryGroup, group_size - group * kQueryGroup);
  const bool with_norms = group == 0;
  const int dim = problem.head_dim;

  const T* group_query = query + (static_cast<size_t>(sample) * problem.heads + first_head) * dim;
  for (int g = 0; g < queries; ++g) {
    for (int i = thread; i < dim; i += kThreads) shared.query[g][i] = ToFloat(group_query[g * dim + i]);
  }
  __syncthreads();

  const int lane = thread % kWarp;
  const int warp = thread / kWarp;
  const int slots = kWarp / lanes;  // tokens that a warp has in hand
  const int lane_in_token = lane % lanes;
  const int first_token = static_cast<int>(blockIdx.x) * kStatTokens;
  const size_t kv_row = static_cast<size_t>(sample) * problem.kv_heads + kv_head;
  const float root = sqrtf(static_cast<float>(dim));

  for (int base = warp * slots; base < kStatTokens; base += kWarps * slots) {  // the same for a whole warp
    const int in_tile = base + lane / lanes;
    const int token = min(first_token + in_tile, tokens - 1);
    const size_t row = (kv_row * tokens + token) * dim;
    float dot[kQueryGroup] = {};
    float key_square = 0.0f;
    float value_square = 0.0f;
    for (int i = lane_in_token * kElements; i < dim; i += lanes * kElements) {
      float k[kElements];
      LoadFloats<kElements>(key + row + i, k);
      if (with_norms) {
        float r[kElements];
        float v[kElements];
        LoadFloats<kElements>(key_rotated + row + i, r);
        LoadFloats<kElements>(value + row + i, v);
#pragma unroll
        for (int e = 0; e < kElements; ++e) {
          key_square += r[e] * r[e];
          value_square += v[e] * v[e];
        }
      }
#pragma unroll
      for (int g = 0; g < kQueryGroup; ++g) {
        if (g < queries) {
#pragma unroll
          for (int e = 0; e < kElements; ++e) dot[g] += k[e] * shared.query[g][i + e];
        }
      }
    }
    const bool writes = lane_in_token == 0 && first_token + in_tile < tokens;
#pragma unroll
    for (int g = 0; g < kQueryGroup; ++g) {
      if (g < queries) {
        const float logit = WarpSum(dot[g], lanes) / root;
        if (lane_in_token == 0) shared.logit[g][in_tile] = logit;
        if (writes) {
          workspace.logit[(static_cast<size_t>(sample) * problem.heads + first_head + g) * tokens + token] = logit;
        }
      }
    }
    if (with_norms) {
      key_square = WarpSum(key_square, lanes);
      value_square = WarpSum(value_square, lanes);
      if (writes) {
        workspace.key_square[kv_row * tokens + token] = key_square;
        workspace.value_norm[kv_row * tokens + token] = sqrtf(value_square);
      }
    }
  }
  __syncthreads();

  // Softmax terms of this stretch: one warp a query head, one lane a token.
  static_assert(kStatTokens == kWarp && kQueryGroup <= kWarps, "a warp covers one head's stretch");
  if (warp < queries) {
    const int token = first_token + lane;
    const bool visual = token < tokens && is_visual[token] != 0;
    const float logit = visual ? shared.logit[warp][lane] : -INFINITY;
    const float largest = WarpMax(logit);
    const float sum = WarpSum(visual ? expf(logit - largest) : 0.0f);
    if (lane == 0) {
      const size_t at =
          (static_cast<size_t>(sample) * problem.heads + first_head + warp) * problem.stat_tiles + blockIdx.x;
      workspace.tile_max[at] = largest;
      workspace.tile_sum[at] = sum;
    }
  }
}

template <typename T, int kElements>
cudaError_t LaunchTyped(const Problem& problem, const Inputs& inputs, const Workspace& workspace,
                        cudaStream_t stream) {
  int lanes = 1;
  while (lanes < kWarp && lanes * kElements < problem.head_dim) lanes *= 2;
  const int groups = DivUp(problem.heads / problem.kv_heads, kQueryGroup);
  const dim3 grid(problem.stat_tiles, problem.kv_heads * groups + 1, problem.batch);
  return Launch(TokenStatsKernel<T, kElements>, grid, kThreads, sizeof(StatsShared), stream, problem,
                static_cast<const T*>(inputs.query), static_cast<const T*>(inputs.key),
                static_cast<const T*>(inputs.key_rotated), static_cast<const T*>(inputs.value), inputs.is_visual,
                workspace, lanes);
}

template <typename T>
cudaError_t LaunchTyped(const Problem& problem, const Inputs& inputs, const Workspace& workspace,
                        cudaStream_t stream) {
  return problem.aligned ? LaunchTyped<T, kVector<T>>(problem, inputs, workspace, stream)
                         : LaunchTyped<T, 1>(problem, inputs, workspace, stream);
}

}  // namespace

cudaError_t LaunchTokenStats(const Problem& problem, const Inputs& inputs, const Workspace& workspace,
                             cudaStream_t stream) {
  switch (problem.data_type) {
    case IWP_FLOAT16:
      return LaunchTyped<__half>(problem, inputs, workspace, stream);
    case IWP_BFLOAT16:
      return LaunchTyped<__nv_bfloat16>(problem, inputs, workspace, stream);
    default:
      return LaunchTyped<float>(problem, inputs, workspace, stream);
  }
}

}  // namespace iwp
