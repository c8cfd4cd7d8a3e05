// Coverage: greedy pivoted Cholesky factorisation of the similarity S of visual tokens. The diagonal of what is left says
// how much of each token those chosen so far leave unexplained:
//   j = argmax diagonal;  c_t = (S[:, j] - sum_s c_s c_s[j]) / sqrt(diagonal[j]);  diagonal -= c_t^2;  t += 1.
//
// Many steps at once: the kPanel tokens of the largest diagonals are candidates, and what is left of S between them is
// enough to go on with the factorisation among them alone. Diagonals only fall, so as long as the best candidate is not
// below what the best other token had before, it is the best of all. A panel therefore reads the columns c_s once for
// some ten steps; candidates that it does not choose mostly go on into the next one, where only new ones cost a sum over
// all columns. One launch goes through all panels.
//
// The columns c_t are rows in memory. Where there is a matrix of pairs, c_t takes the place of the pivot's row of it,
// which nothing reads any more; else it has one of num_kept rows.
#include "coverage_panel.cuh"
#include "launch.h"
#include "pair_source.cuh"

namespace iwp {
namespace {

// Of one thread that sums up products for rows x candidates.
constexpr int kThreadCandidates = 8;
static_assert(kPanel % kThreadCandidates == 0, "new candidates come in groups");

template <typename Source>
__device__ Coverage CoverageOf(const Problem& problem, const Workspace& workspace, const SampleViews& views,
                               size_t sample, int* pivots) {
  const size_t rows = Source::kHasMatrix ? problem.tokens : problem.num_kept;
  const size_t pitch = problem.pitch;
  return {SliceOfBlock(views.num_visual),
          views.num_visual,
          views.budget,
          problem.pitch,
          views.priority,
          workspace.matrix + sample * rows * pitch,
          workspace.residual + sample * 2 * kPanel * pitch,
          workspace.panel_factor + sample * kPanel * problem.num_kept,
          Source::kHasMatrix ? pivots : nullptr};
}

// S_ii of the slice's tokens: the share of heads in which a token is no zero vector, where a cosine takes part.
__device__ void BeginDiagonal(const Problem& problem, const Workspace& workspace, bool with_cosine, size_t sample,
                              const Coverage& coverage) {
  const float* inverse_norm = workspace.inverse_norm + sample * problem.kv_heads * problem.tokens;
  const int* visual_index = workspace.visual_index + sample * problem.tokens;
  for (int i = coverage.slice.first + static_cast<int>(threadIdx.x); i < coverage.slice.end; i += kSelectThreads) {
    int heads = 0;
    for (int head = 0; head < problem.kv_heads; ++head) {
      const size_t row = static_cast<size_t>(head) * problem.tokens;
      heads += !with_cosine || inverse_norm[row + visual_index[i]] > 0.0f ? 1 : 0;
    }
    coverage.diagonal[i] = static_cast<float>(heads) / static_cast<float>(problem.kv_heads);
  }
}

// This block's share of the columns so far at new candidates, side by side in memory for what reads them all.
__device__ void GatherFactors(const Coverage& coverage, int step, const CoverageShared& shared) {
  const int all = static_cast<int>(gridDim.x) * kSelectThreads;
  for (int e = static_cast<int>(blockIdx.x) * kSelectThreads + static_cast<int>(threadIdx.x); e < step * kPanel;
       e += all) {
    const bool exists = e % kPanel < shared.freshes;
    const int candidate = exists ? shared.candidate[shared.fresh[e % kPanel]] : 0;
    coverage.panel_factor[e] = exists ? coverage.Row(e / kPanel)[candidate] : 0.0f;
  }
}

// Products summed over every so many-th of the steps, for this thread's rows and candidates.
__device__ void SumOfSteps(const Coverage& coverage, int steps, int first_row, int first_candidate, int group,
                           int groups, float (&sum)[kThreadCandidates][kThreadRows]) {
#pragma unroll 2
  for (int step = group; step < steps; step += groups) {
    const float4 row = *reinterpret_cast<const float4*>(coverage.Row(step) + first_row);
    float factors[kThreadCandidates];
    const auto* from = reinterpret_cast<const float4*>(coverage.panel_factor + step * kPanel + first_candidate);
#pragma unroll
    for (int quad = 0; quad < kThreadCandidates / 4; ++quad) {
      const float4 word = from[quad];
      factors[4 * quad] = word.x;
      factors[4 * quad + 1] = word.y;
      factors[4 * quad + 2] = word.z;
      factors[4 * quad + 3] = word.w;
    }
#pragma unroll
    for (int c = 0; c < kThreadCandidates; ++c) {
      sum[c][0] += row.x * factors[c];
      sum[c][1] += row.y * factors[c];
      sum[c][2] += row.z * factors[c];
      sum[c][3] += row.w * factors[c];
    }
  }
}

// What the steps so far leave of new candidates' similarity to the slice's tokens. Threads are quads of rows x groups of
// candidates x groups of steps; the last dimension is the same for all blocks, so that equal tokens get equal bits.
template <typename Source>
__device__ void FindResiduals(const Coverage& coverage, const Source& pairs, int panel, int step,
                              CoverageShared& shared) {
  const Slice& slice = coverage.slice;
  if (shared.freshes == 0) return;
  if (!Source::kHasMatrix) {
    ForTokens(slice.first, slice.end, pairs.lanes(), [&](int i, bool writes) {
      for (int f = 0; f < shared.freshes; ++f) {
        const int k = shared.fresh[f];
        const float similarity = pairs.Of(i, shared.candidate[k]);
        if (writes) coverage.Residual(panel, k)[i] = similarity;
      }
    });
    __syncthreads();
  }
  const int thread = static_cast<int>(threadIdx.x);
  const int candidate_groups = DivUp(shared.freshes, kThreadCandidates);
  const int quads = min(slice.length / kThreadRows, kSelectThreads / candidate_groups);
  const int groups = kSelectThreads / (quads * candidate_groups);
  const int width = quads * kThreadRows;
  const int group = thread / (quads * candidate_groups);
  const int first_candidate = thread / quads % candidate_groups * kThreadCandidates;
  for (int base = slice.first; base < slice.end; base += width) {
    const int first_row = base + thread % quads * kThreadRows;
    float sum[kThreadCandidates][kThreadRows] = {};
    if (group < groups && first_row < slice.end) {
      SumOfSteps(coverage, step, first_row, first_candidate, group, groups, sum);
    }
#pragma unroll
    for (int c = 0; c < kThreadCandidates; ++c) {
      if (group < groups) {
        reinterpret_cast<float4*>(shared.partial)[thread] = make_float4(sum[c][0], sum[c][1], sum[c][2], sum[c][3]);
      }
      __syncthreads();
      for (int e = thread; e < candidate_groups * width; e += kSelectThreads) {
        const int f = e / width * kThreadCandidates + c;
        const int i = base + e % width;
        if (f >= shared.freshes || i >= slice.end) continue;
        float total = 0.0f;
        for (int g = 0; g < groups; ++g) total += shared.partial[g * candidate_groups * width + e];
        const int k = shared.fresh[f];
        float& residual = coverage.Residual(panel, k)[i];
        const float* of_matrix = coverage.rows + static_cast<size_t>(shared.candidate[k]) * coverage.pitch;
        residual = (Source::kHasMatrix ? of_matrix[i] : residual) - total;
      }
      __syncthreads();
    }
  }
}

// The panel's columns c at the slice's tokens, and what they leave of the diagonal and of the other candidates.
__device__ void TakePicks(const Coverage& coverage, int panel, int step, const CoverageShared& shared) {
  const int picks = shared.picks;
  for (int i = coverage.slice.first + static_cast<int>(threadIdx.x); i < coverage.slice.end; i += kSelectThreads) {
    float c[kPanel];
    const auto left_of = [&](int k, int steps) {
      float sum = 0.0f;
      for (int p = 0; p < steps; ++p) sum += c[p] * shared.factor[p][k];
      return coverage.Residual(panel, k)[i] - sum;
    };
    float diagonal = coverage.diagonal[i];
    for (int p = 0; p < picks; ++p) {
      const int k = shared.pick[p];
      c[p] = left_of(k, p) / shared.root[p];
      coverage.Row(step + p)[i] = c[p];
      if (i == shared.candidate[k]) diagonal = kChosen;
      if (diagonal < 0.0f) continue;
      diagonal -= c[p] * c[p];
      if (diagonal < kCoverageFloor) diagonal = 0.0f;
    }
    coverage.diagonal[i] = diagonal;
    for (int k = 0; k < kPanel; ++k) {
      if (shared.stays[k]) coverage.Residual(panel + 1, k)[i] = left_of(k, picks);
    }
  }
}

// Returns how many tokens are chosen when nothing is left to explain, or the budget is spent.
template <typename Source>
__device__ int CoverSample(const Coverage& coverage, const Source& pairs, Team& team, CoverageShared& shared) {
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < kPanel) shared.candidate[thread] = -1;
  int step = 0;
  for (int panel = 0; step < coverage.budget; ++panel) {
    team.Wait();
    FindCandidates(coverage, step, shared);
    GatherFactors(coverage, step, shared);
    team.Wait();
    FindResiduals(coverage, pairs, panel, step, shared);
    team.Wait();
    const int k = thread / kPanel;
    const int l = shared.candidate[thread % kPanel];
    shared.between[k][thread % kPanel] = shared.candidate[k] < 0 || l < 0 ? 0.0f : coverage.Residual(panel, k)[l];
    __syncthreads();
    if (thread < kWarp) FactorisePanel(coverage, step, shared);
    __syncthreads();
    if (coverage.pivots != nullptr && thread < shared.picks) {
      coverage.pivots[step + thread] = shared.candidate[shared.pick[thread]];
    }
    __syncthreads();
    TakePicks(coverage, panel, step, shared);
    step += shared.picks;
    if (shared.explained) break;
  }
  team.Wait();
  return step;
}

// Grid: x the blocks of a team, z teams, which take turns with the samples.
template <typename Source>
__global__ void __launch_bounds__(kSelectThreads, 1)
    CoverageKernel(Problem problem, Source all_pairs, Workspace workspace, bool with_cosine, const int32_t* is_visual,
                   int64_t* kept_index) {
  CoverageShared& shared = *reinterpret_cast<CoverageShared*>(DynamicShared());
  int* const pivots = reinterpret_cast<int*>(&shared + 1);  // [num_kept] where there is a matrix
  for (int sample = static_cast<int>(blockIdx.z); sample < problem.batch; sample += static_cast<int>(gridDim.z)) {
    const SampleViews views = ViewsOf(problem, workspace, is_visual, kept_index, sample);
    const Coverage coverage = CoverageOf<Source>(problem, workspace, views, sample, pivots);
    BeginDiagonal(problem, workspace, with_cosine, sample, coverage);
    Team team(workspace.arrived + sample);
    const int chosen = CoverSample(coverage, all_pairs.OfSample(problem, workspace, sample), team, shared);
    if (blockIdx.x == 0) {
      // What remains to be chosen is explained, all alike: the lower index first.
      if (chosen < views.budget) {
        TakeTop(views.priority, views.num_visual, views.budget - chosen, views.chunk, shared.rounds.top);
      }
      WriteKept(problem, views.is_visual, views.priority, views.kept_index, shared.rounds);
    }
    __syncthreads();
  }
}

}  // namespace

cudaError_t LaunchCoverage(const Problem& problem, const Inputs& inputs, const Workspace& workspace, const Gpu& gpu,
                           int64_t* kept_index, cudaStream_t stream) {
  return WithPairSource(problem, inputs, [&](auto pairs) {
    const size_t pivots = decltype(pairs)::kHasMatrix ? problem.num_kept : 0;
    return LaunchTeams(CoverageKernel<decltype(pairs)>, problem, gpu, kSelectThreads,
                       sizeof(CoverageShared) + pivots * sizeof(int), stream, problem, pairs, workspace,
                       inputs.cosine_of != nullptr, inputs.is_visual, kept_index);
  });
}

}  // namespace iwp
