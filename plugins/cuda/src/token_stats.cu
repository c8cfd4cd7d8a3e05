// First pass over the inputs: the norms of each token's rows, the list of visual tokens and their importance.
#include "block_ops.cuh"
#include "launch.h"
#include "problem.h"

namespace iwp {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kStatTokens = 32;  // tokens of one block
constexpr float kZeroNorm = 1e-18f;  // norms up to this count as 0: the product of two reciprocals must be a float

// Writes the ascending list of a sample's visual tokens, and their importance as the first round's priority.
__device__ void ListVisual(int tokens, const int32_t* is_visual, const float* importance, int* visual_index,
                           float* priority, int* num_visual, int* warp_sums) {
  constexpr int kPerThread = 8;  // loads in flight; long sequences would otherwise wait for one word after another
  int count = 0;
  for (int base = 0; base < tokens; base += kThreads * kPerThread) {
    const int first = base + static_cast<int>(threadIdx.x) * kPerThread;
    unsigned mask = 0;
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      if (first + j < tokens && is_visual[first + j] != 0) mask |= 1u << j;
    }
    int total;
    int rank = count + BlockExclusiveSum(__popc(mask), warp_sums, &total);
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      if (mask >> j & 1u) {
        visual_index[rank] = first + j;
        priority[rank] = importance[first + j];
        ++rank;
      }
    }
    count += total;
  }
  if (threadIdx.x == 0) *num_visual = count;
}

// The square of row [d]'s norm, in all of the `lanes` neighbouring lanes that share the row.
template <int kElements, typename T>
__device__ float SquareOf(const T* row, int dim, int lanes) {
  const int first = static_cast<int>(threadIdx.x) % lanes * kElements;
  float square = 0.0f;
  for (int i = first; i < dim; i += lanes * kElements) {
    float x[kElements];
    LoadFloats<kElements>(row + i, x);
#pragma unroll
    for (int e = 0; e < kElements; ++e) square += x[e] * x[e];
  }
  return WarpSum(square, lanes);
}

// Grid: x stretches of kStatTokens tokens, y heads and one more for the list, z samples. `lanes` of a warp share a
// token: a power of two, enough to read its row in 16-byte accesses or a whole warp.
template <typename T, int kElements>
__global__ void __launch_bounds__(kThreads)
    TokenStatsKernel(Problem problem, const float* __restrict__ importance, const T* __restrict__ gaussian_of,
                     const T* __restrict__ cosine_of, const int32_t* __restrict__ is_visual, Workspace workspace,
                     int lanes) {
  const size_t sample = blockIdx.z;
  const int tokens = problem.tokens;
  const int thread = static_cast<int>(threadIdx.x);

  if (blockIdx.y + 1 == gridDim.y) {
    if (blockIdx.x != 0) return;
    ListVisual(tokens, is_visual + sample * tokens, importance + sample * tokens,
               workspace.visual_index + sample * tokens, workspace.priority + sample * 2 * tokens,
               workspace.num_visual + sample, reinterpret_cast<int*>(DynamicShared()));
    if (thread == 0) workspace.arrived[sample] = 0;
    if (sample == 0) {
      for (int i = thread; i < kMaxPartialTiles; i += kThreads) workspace.tiles_done[i] = 0;
    }
    return;
  }

  const int slots = kWarp / lanes;  // tokens that a warp has in hand
  const int first_token = static_cast<int>(blockIdx.x) * kStatTokens;
  const size_t head_row = (sample * problem.kv_heads + blockIdx.y) * tokens;
  for (int base = thread / kWarp * slots; base < kStatTokens; base += kWarps * slots) {  // the same for a whole warp
    const int token = first_token + base + thread % kWarp / lanes;
    const size_t row = head_row + min(token, tokens - 1);
    const bool writes = thread % lanes == 0 && token < tokens;
    if (gaussian_of != nullptr) {
      const float square = SquareOf<kElements>(gaussian_of + row * problem.head_dim, problem.head_dim, lanes);
      if (writes) workspace.square[row] = square;
    }
    if (cosine_of != nullptr) {
      const float norm = sqrtf(SquareOf<kElements>(cosine_of + row * problem.head_dim, problem.head_dim, lanes));
      if (writes) workspace.inverse_norm[row] = norm > kZeroNorm ? 1.0f / norm : 0.0f;
    }
  }
}

template <typename T, int kElements>
cudaError_t LaunchTyped(const Problem& problem, const Inputs& inputs, const Workspace& workspace,
                        cudaStream_t stream) {
  int lanes = 1;
  while (lanes < kWarp && lanes * kElements < problem.head_dim) lanes *= 2;
  const bool with_norms = inputs.gaussian_of != nullptr || inputs.cosine_of != nullptr;
  const dim3 grid(with_norms ? DivUp(problem.tokens, kStatTokens) : 1, with_norms ? problem.kv_heads + 1 : 1,
                  problem.batch);
  return Launch(TokenStatsKernel<T, kElements>, grid, kThreads, kMaxWarps * sizeof(int), stream, problem,
                inputs.importance, static_cast<const T*>(inputs.gaussian_of), static_cast<const T*>(inputs.cosine_of),
                inputs.is_visual, workspace, lanes);
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
