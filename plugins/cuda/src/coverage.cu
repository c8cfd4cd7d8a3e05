// Coverage: greedy pivoted Cholesky factorisation of the similarity of visual tokens, one pivot after another in one
// launch. The diagonal of what is left says how much of each token those chosen so far leave unexplained:
//   j = argmax diagonal;  c = (S[:, j] - sum_s c_s c_s[j]) / sqrt(diagonal[j]);  diagonal -= c^2;  c_t = c.
//
// The columns c_s are rows in memory. Where there is a matrix of pairs, c takes the place of the pivot's row of it,
// which no later step reads; else it has one of the num_kept rows of its own.
#include "launch.h"
#include "pair_source.cuh"
#include "rounds.cuh"
#include "team.cuh"

namespace iwp {
namespace {

constexpr float kCoverageFloor = 1e-4f;  // what is left of a token below this counts as nothing
constexpr int kRowsOfThread = 4;         // neighbouring tokens, read 16 bytes at a time

struct CoverageShared {
  RoundsShared rounds;
  Ranked best[kMaxWarps];
  alignas(16) float partial[kRowsOfThread * kSelectThreads];
};

// One block's view of a sample.
struct Coverage {
  Slice slice;
  float* diagonal;  // [S] by visual rank: kChosen once chosen, 0 once explained
  float* rows;      // [tokens or num_kept, pitch]
  int pitch;
  const int* pivots;  // [num_kept] the rows in use where they are those of the matrix, else null

  __device__ float* Row(int step) const {
    return rows + static_cast<size_t>(pivots != nullptr ? pivots[step] : step) * pitch;
  }
};

// S_ii: the share of heads in which the token is no zero vector, where a cosine takes part.
__device__ float WholeDiagonal(const Problem& problem, const float* inverse_norm, int token) {
  int heads = 0;
  for (int head = 0; head < problem.kv_heads; ++head) {
    heads += inverse_norm[static_cast<size_t>(head) * problem.tokens + token] > 0.0f ? 1 : 0;
  }
  return static_cast<float>(heads) / static_cast<float>(problem.kv_heads);
}

// Sums over the earlier steps, of which groups of threads take every so many-th each: this thread's share for its rows.
__device__ float4 SumOfSteps(const Coverage& coverage, int pivot, int steps, int first_row, int group, int groups) {
  float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 4
  for (int step = group; step < steps; step += groups) {
    const float* row = coverage.Row(step);
    const float factor = row[pivot];
    const float4 x = *reinterpret_cast<const float4*>(row + first_row);
    sum = make_float4(sum.x + x.x * factor, sum.y + x.y * factor, sum.z + x.z * factor, sum.w + x.w * factor);
  }
  return sum;
}

// The step that chooses `pivot`, whose diagonal is `left`, for the slice; row `step` holds S[pivot, :] already. Returns
// this thread's best candidate for the next step.
__device__ Ranked TakePivot(const Coverage& coverage, int pivot, float left, int step, CoverageShared& shared) {
  const int thread = static_cast<int>(threadIdx.x);
  const Slice& slice = coverage.slice;
  // The same for all blocks, so that the sums of equal tokens are equal to the bit.
  const int lanes = min(slice.length / kRowsOfThread, kSelectThreads);
  const int groups = kSelectThreads / lanes;
  const int width = lanes * kRowsOfThread;
  float* const row = coverage.Row(step);
  const float root = sqrtf(left);
  Ranked best = kNobody;
  for (int base = slice.first; base < slice.end; base += width) {
    const int first_row = base + thread % lanes * kRowsOfThread;
    if (thread / lanes < groups) {
      float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (first_row < slice.end) sum = SumOfSteps(coverage, pivot, step, first_row, thread / lanes, groups);
      reinterpret_cast<float4*>(shared.partial)[thread] = sum;
    }
    __syncthreads();
    for (int r = thread; r < min(width, slice.end - base); r += kSelectThreads) {
      float sum = 0.0f;
      for (int group = 0; group < groups; ++group) sum += shared.partial[group * width + r];
      const int i = base + r;
      const float c = (row[i] - sum) / root;
      row[i] = c;
      float& diagonal = coverage.diagonal[i];
      if (i == pivot) diagonal = kChosen;
      if (diagonal < 0.0f) continue;
      diagonal -= c * c;
      if (diagonal < kCoverageFloor) diagonal = 0.0f;  // it never grows: what counts as nothing may be nothing
      best = max(best, Rank(diagonal, i));
    }
    __syncthreads();
  }
  return best;
}

template <typename Source>
__device__ void CoverSample(const Problem& problem, const Source& all_pairs, const Workspace& workspace,
                            bool with_cosine, const SampleViews& views, int sample, CoverageShared& shared,
                            int* pivots) {
  const Source pairs = all_pairs.OfSample(problem, workspace, sample);
  Team team(workspace.arrived + sample, workspace.best + static_cast<size_t>(sample) * 2 * kMaxTeamBlocks);
  const size_t rows = Source::kHasMatrix ? problem.tokens : problem.num_kept;
  const Coverage coverage = {SliceOfBlock(views.num_visual), views.priority,
                             workspace.matrix + sample * rows * problem.pitch, problem.pitch,
                             Source::kHasMatrix ? pivots : nullptr};
  const Slice& slice = coverage.slice;
  const float* inverse_norm = workspace.inverse_norm + static_cast<size_t>(sample) * problem.kv_heads * problem.tokens;
  const int* visual_index = workspace.visual_index + static_cast<size_t>(sample) * problem.tokens;

  Ranked best = kNobody;
  for (int i = slice.first + static_cast<int>(threadIdx.x); i < slice.end; i += kSelectThreads) {
    coverage.diagonal[i] = with_cosine ? WholeDiagonal(problem, inverse_norm, visual_index[i]) : 1.0f;
    best = max(best, Rank(coverage.diagonal[i], i));
  }
  int step = 0;
  for (; step < views.budget; ++step) {
    const Ranked first = team.BestOfAll(best, shared.best);
    const int pivot = IndexOf(first);
    const float left = PriorityOf(first);
    if (left == 0.0f) break;  // all is explained: nothing changes any more
    if (threadIdx.x == 0 && Source::kHasMatrix) pivots[step] = pivot;
    __syncthreads();
    if (!Source::kHasMatrix) {
      float* const row = coverage.Row(step);
      ForTokens(slice.first, slice.end, pairs.lanes(), [&](int i, bool writes) {
        const float similarity = pairs.Of(i, pivot);
        if (writes) row[i] = similarity;
      });
      __syncthreads();
    }
    best = TakePivot(coverage, pivot, left, step, shared);
  }
  team.Wait();
  if (blockIdx.x != 0) return;
  // What remains to be chosen is explained, all alike: the lower index first.
  if (step < views.budget) TakeTop(views.priority, views.num_visual, views.budget - step, views.chunk, shared.rounds.top);
  WriteKept(problem, views.is_visual, views.priority, views.kept_index, shared.rounds);
}

// Grid: x the blocks of a team, z teams, which take turns with the samples.
template <typename Source>
__global__ void __launch_bounds__(kSelectThreads, 1)
    CoverageKernel(Problem problem, Source pairs, Workspace workspace, bool with_cosine, const int32_t* is_visual,
                   int64_t* kept_index) {
  CoverageShared& shared = *reinterpret_cast<CoverageShared*>(DynamicShared());
  int* const pivots = reinterpret_cast<int*>(&shared + 1);  // [num_kept] where there is a matrix
  for (int sample = blockIdx.z; sample < problem.batch; sample += gridDim.z) {
    const SampleViews views = ViewsOf(problem, workspace, is_visual, kept_index, sample);
    CoverSample(problem, pairs, workspace, with_cosine, views, sample, shared, pivots);
    __syncthreads();
  }
}

}  // namespace

cudaError_t LaunchCoverage(const Problem& problem, const Inputs& inputs, const Workspace& workspace, const Gpu& gpu,
                           int64_t* kept_index, cudaStream_t stream) {
  return WithPairSource(problem, inputs, [&](auto pairs) {
    const size_t pivots = decltype(pairs)::kHasMatrix ? problem.num_kept : 0;
    return LaunchTeams(CoverageKernel<decltype(pairs)>, problem, gpu, kSelectThreads, sizeof(CoverageShared) + pivots * sizeof(int),
                       stream, problem, pairs, workspace, inputs.cosine_of != nullptr, inputs.is_visual, kept_index);
  });
}

}  // namespace iwp
