// Magnitude of each visual token: the mean over query heads of kappa(q, k) * ||v|| (Eq. 10), not yet normalised.
#include "device.cuh"
#include "launch.h"
#include "problem.h"

namespace iwp {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

// Grid: x stretches of a warp's width of visual tokens, z samples. Lanes are tokens; the warps share the heads.
__global__ void __launch_bounds__(kThreads) MagnitudeKernel(Problem problem, Workspace workspace) {
  float* const reference = reinterpret_cast<float*>(DynamicShared());  // [H] what a head's logits are taken relative to
  float* const divisor = reference + problem.heads;                    // [H]
  float* const partial = divisor + problem.heads;                      // [kWarps][kWarp]
  const int sample = blockIdx.z;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int num_visual = workspace.num_visual[sample];
  const int first = static_cast<int>(blockIdx.x) * kWarp;
  if (first >= num_visual) return;

  for (int head = warp; head < problem.heads; head += kWarps) {
    const size_t row = (static_cast<size_t>(sample) * problem.heads + head) * problem.stat_tiles;
    float largest = -INFINITY;
    for (int tile = lane; tile < problem.stat_tiles; tile += kWarp) {
      largest = fmaxf(largest, workspace.tile_max[row + tile]);
    }
    largest = WarpMax(largest);
    float sum = 0.0f;
    for (int tile = lane; tile < problem.stat_tiles; tile += kWarp) {
      const float tile_max = workspace.tile_max[row + tile];  // -inf where a stretch has text alone
      if (tile_max > -INFINITY) sum += workspace.tile_sum[row + tile] * expf(tile_max - largest);
    }
    sum = WarpSum(sum);
    if (lane == 0) {
      reference[head] = largest;
      divisor[head] = sum;
    }
  }
  __syncthreads();

  float largest_of_all = -INFINITY;
  if (problem.raw_heads) {
    for (int head = lane; head < problem.heads; head += kWarp) largest_of_all = fmaxf(largest_of_all, reference[head]);
    largest_of_all = WarpMax(largest_of_all);
  }

  const int rank = first + lane;
  const int token = workspace.visual_index[static_cast<size_t>(sample) * problem.tokens + min(rank, num_visual - 1)];
  const int group_size = problem.heads / problem.kv_heads;
  float sum = 0.0f;
#pragma unroll 4
  for (int head = warp; head < problem.heads; head += kWarps) {
    const float logit = workspace.logit[(static_cast<size_t>(sample) * problem.heads + head) * problem.tokens + token];
    const int kv_head = head / group_size;
    const float value_norm =
        workspace.value_norm[(static_cast<size_t>(sample) * problem.kv_heads + kv_head) * problem.tokens + token];
    const float kernel =
        problem.raw_heads ? expf(logit - largest_of_all) : expf(logit - reference[head]) / divisor[head];
    sum += kernel * value_norm;
  }
  partial[warp * kWarp + lane] = sum;
  __syncthreads();
  if (warp == 0 && rank < num_visual) {
    float total = 0.0f;
    for (int w = 0; w < kWarps; ++w) total += partial[w * kWarp + lane];
    workspace.priority[static_cast<size_t>(sample) * 2 * problem.tokens + rank] =
        total / static_cast<float>(problem.heads);
  }
}

}  // namespace

cudaError_t LaunchMagnitude(const Problem& problem, const Workspace& workspace, cudaStream_t stream) {
  const dim3 grid(DivUp(problem.tokens, kWarp), 1, problem.batch);
  const size_t shared_bytes = (2 * static_cast<size_t>(problem.heads) + kThreads) * sizeof(float);
  return Launch(MagnitudeKernel, grid, kThreads, shared_bytes, stream, problem, workspace);
}

}  // namespace iwp
