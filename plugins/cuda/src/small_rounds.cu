// Rounds of Algorithm 1 that stay small (growth 1), for more tokens than one block takes: all in one launch. Every block
// of a team has all priorities in shared memory and repeats each choice for itself; it compares the chosen tokens with
// its own slice, and the others read that after a barrier.
#include "launch.h"
#include "pair_source.cuh"
#include "rounds.cuh"
#include "team.cuh"

namespace iwp {
namespace {

struct SmallRoundsShared {
  RoundsShared rounds;
  int chunk[kSmallChunk];
};

size_t SharedBytes(const Problem& problem) {
  return sizeof(SmallRoundsShared) + static_cast<size_t>(problem.tokens) * sizeof(float);
}

// Similarity of the slice's tokens to the most and to the least similar new one, into the buffers [S].
template <typename Source>
__device__ void CompareSlice(const Problem& problem, const Source& pairs, const Slice& slice, const int* chunk,
                             int count, unsigned* likeness_max, unsigned* likeness_min) {
  ForTokens(slice.first, slice.end, pairs.lanes(), [&](int i, bool writes) {
    float high = 0.0f;
    float low = INFINITY;
    for (int c = 0; c < count; ++c) {
      const float similarity = pairs.Of(i, chunk[c]);
      high = fmaxf(high, similarity);
      low = fminf(low, similarity);
    }
    if (!writes) return;
    likeness_max[i] = __float_as_uint(high);
    if (problem.minmax) likeness_min[i] = __float_as_uint(low);
  });
}

template <typename Source>
__device__ void SelectFromSample(const Problem& problem, const Source& all_pairs, const Workspace& workspace,
                                 const SampleViews& views, int chunk_size, int sample, SmallRoundsShared& shared,
                                 float* priority) {
  const Source pairs = all_pairs.OfSample(problem, workspace, sample);
  Team team(workspace.arrived + sample);
  const int size = views.num_visual;
  const Slice slice = SliceOfBlock(size);

  for (int i = threadIdx.x; i < size; i += kSelectThreads) priority[i] = views.priority[i];
  Normalise(priority, size, shared.rounds);
  int chosen = 0;
  for (int round = 0; chosen < views.budget; ++round) {
    const int count = min(chunk_size, views.budget - chosen);
    Take(priority, size, count, shared.chunk, shared.rounds.top);
    chosen += count;
    if (chosen == views.budget) break;
    __syncthreads();
    // Two buffers take turns: a block writes one only when all have read what it held before.
    const size_t buffer = static_cast<size_t>(round % 2) * problem.tokens;
    CompareSlice(problem, pairs, slice, shared.chunk, count, views.likeness_max + buffer, views.likeness_min + buffer);
    team.Wait();
    Penalise(problem, priority, size, views.likeness_max + buffer, views.likeness_min + buffer, shared.rounds);
  }
  if (blockIdx.x == 0) WriteKept(problem, views.is_visual, priority, views.kept_index, shared.rounds);
}

// Grid: x the blocks of a team, z teams, which take turns with the samples.
template <typename Source>
__global__ void __launch_bounds__(kSelectThreads, 1)
    SmallRoundsKernel(Problem problem, Source pairs, Workspace workspace, const int32_t* is_visual, int chunk_size,
                      int64_t* kept_index) {
  SmallRoundsShared& shared = *reinterpret_cast<SmallRoundsShared*>(DynamicShared());
  float* const priority = reinterpret_cast<float*>(&shared + 1);  // [S]
  for (int sample = blockIdx.z; sample < problem.batch; sample += gridDim.z) {
    const SampleViews views = ViewsOf(problem, workspace, is_visual, kept_index, sample);
    SelectFromSample(problem, pairs, workspace, views, chunk_size, sample, shared, priority);
    __syncthreads();
  }
}

}  // namespace

bool TakesSmallRounds(const Problem& problem, const Gpu& gpu, int chunk, int growth) {
  return growth == 1 && chunk <= kSmallChunk && problem.tokens <= kSmallRoundsTokens &&
         SharedBytes(problem) <= gpu.shared_bytes;
}

cudaError_t LaunchSmallRounds(const Problem& problem, const Inputs& inputs, const Workspace& workspace, int chunk,
                              const Gpu& gpu, int64_t* kept_index, cudaStream_t stream) {
  return WithPairSource(problem, inputs, [&](auto pairs) {
    return LaunchTeams(SmallRoundsKernel<decltype(pairs)>, problem, gpu, kSelectThreads, SharedBytes(problem), stream, problem, pairs,
                       workspace, inputs.is_visual, chunk, kept_index);
  });
}

}  // namespace iwp
