// Coverage: greedy pivoted Cholesky factorisation of the similarity S of visual tokens. The diagonal of what is left says
// how much of each token those chosen so far leave unexplained:
//   j = argmax diagonal;  c_t = (S[:, j] - sum_s c_s c_s[j]) / sqrt(diagonal[j]);  diagonal -= c_t^2;  t += 1.
//
// Many steps at once: the kPanel tokens of the largest diagonals are candidates, and what is left of S between them is
// enough to go on with the factorisation among them alone. Diagonals only fall, so as long as the best candidate is not
// below what the best other token had before, it is the best of all. A panel therefore reads the columns c_s once for
// some ten steps, and one launch goes through all panels.
//
// The columns c_t are rows in memory. Where there is a matrix of pairs, c_t takes the place of the pivot's row of it,
// which nothing reads any more; else it has one of num_kept rows.
#include "launch.h"
#include "pair_source.cuh"
#include "rounds.cuh"
#include "team.cuh"

namespace iwp {
namespace {

constexpr float kCoverageFloor = 1e-4f;  // what is left of a token below this counts as nothing

// Of one thread that sums up products for rows x candidates.
constexpr int kThreadRows = 4;
constexpr int kThreadCandidates = 8;
constexpr int kCandidateGroups = kPanel / kThreadCandidates;
static_assert(kPanel == kWarp, "one lane for each candidate");

struct CoverageShared {
  RoundsShared rounds;
  alignas(16) float partial[kThreadRows * kSelectThreads];
  int top[kPanel + 1];
  int candidate[kPanel];           // visual ranks
  float left[kPanel];              // their diagonals before the panel
  int candidates;                  // how many
  Ranked others;                   // the best of the tokens that are no candidates, before the panel
  float between[kPanel][kPanel];   // what is left of S between candidates
  float factor[kPanel][kPanel];    // the panel's columns c at the candidates
  int pick[kPanel];                // which candidate each of its steps chooses
  float root[kPanel];              // of the pick's diagonal
  int picks;
  bool explained;                  // nothing is left of any token
};

// One block's view of a sample.
struct Coverage {
  Slice slice;
  int num_visual;
  int budget;
  int pitch;
  float* diagonal;      // [S] by visual rank: kChosen once chosen, 0 once explained
  float* rows;          // [tokens or num_kept, pitch]
  float* residual;      // [kPanel, pitch]
  float* panel_factor;  // [num_kept, kPanel]
  int* pivots;          // [num_kept] the rows in use where they are those of the matrix, else null

  __device__ float* Row(int step) const {
    return rows + static_cast<size_t>(pivots != nullptr ? pivots[step] : step) * pitch;
  }
};

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
          workspace.residual + sample * kPanel * pitch,
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

// The tokens of the largest diagonals, in any order, and the best of those that are left out.
__device__ void FindCandidates(const Coverage& coverage, int step, CoverageShared& shared) {
  const int listed = min(kPanel + 1, coverage.num_visual - step);
  TakeTop<false>(coverage.diagonal, coverage.num_visual, listed, shared.top, shared.rounds.top);
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x);
  if (lane < kWarp) {
    int mine = lane < listed ? shared.top[lane] : -1;
    Ranked others = kNobody;
    if (listed > kPanel) {
      // One of the list is too many, the last.
      const int spare = shared.top[kPanel];
      const Ranked of_spare = Rank(coverage.diagonal[spare], spare);
      const Ranked of_mine = Rank(coverage.diagonal[mine], mine);
      const Ranked last = ~WarpMax(~of_mine);
      if (of_mine == last && last < of_spare) mine = spare;
      others = min(last, of_spare);
    }
    shared.candidate[lane] = mine;
    // Read here: other blocks may be through with the panel before this one factorises it.
    shared.left[lane] = mine < 0 ? kChosen : coverage.diagonal[mine];
    if (lane == 0) {
      shared.candidates = min(listed, kPanel);
      shared.others = others;
    }
  }
  __syncthreads();
}

// This block's share of the columns so far at the candidates, side by side in memory for what reads them all.
__device__ void GatherFactors(const Coverage& coverage, int step, const CoverageShared& shared) {
  const int all = static_cast<int>(gridDim.x) * kSelectThreads;
  for (int e = static_cast<int>(blockIdx.x) * kSelectThreads + static_cast<int>(threadIdx.x); e < step * kPanel;
       e += all) {
    const int candidate = shared.candidate[e % kPanel];
    coverage.panel_factor[e] = candidate < 0 ? 0.0f : coverage.Row(e / kPanel)[candidate];
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

// What the steps so far leave of the candidates' similarity to the slice's tokens. Threads are quads of rows x groups of
// candidates x groups of steps; the last dimension is the same for all blocks, so that equal tokens get equal bits.
template <typename Source>
__device__ void FindResiduals(const Coverage& coverage, const Source& pairs, int step, CoverageShared& shared) {
  const Slice& slice = coverage.slice;
  if (!Source::kHasMatrix) {
    ForTokens(slice.first, slice.end, pairs.lanes(), [&](int i, bool writes) {
      for (int k = 0; k < shared.candidates; ++k) {
        const float similarity = pairs.Of(i, shared.candidate[k]);
        if (writes) coverage.residual[static_cast<size_t>(k) * coverage.pitch + i] = similarity;
      }
    });
    __syncthreads();
  }
  const int thread = static_cast<int>(threadIdx.x);
  const int quads = min(slice.length / kThreadRows, kSelectThreads / kCandidateGroups);
  const int groups = kSelectThreads / (quads * kCandidateGroups);
  const int width = quads * kThreadRows;
  const int group = thread / (quads * kCandidateGroups);
  const int first_candidate = thread / quads % kCandidateGroups * kThreadCandidates;
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
      for (int e = thread; e < kCandidateGroups * width; e += kSelectThreads) {
        const int k = e / width * kThreadCandidates + c;
        const int i = base + e % width;
        if (k >= shared.candidates || i >= slice.end) continue;
        float total = 0.0f;
        for (int g = 0; g < groups; ++g) total += shared.partial[g * kCandidateGroups * width + e];
        float& residual = coverage.residual[static_cast<size_t>(k) * coverage.pitch + i];
        const float whole =
            Source::kHasMatrix ? coverage.rows[static_cast<size_t>(shared.candidate[k]) * coverage.pitch + i] : residual;
        residual = whole - total;
      }
      __syncthreads();
    }
  }
}

// The next steps, as far as they are certain to choose candidates. By one warp; every block does it for itself.
__device__ void FactorisePanel(const Coverage& coverage, int step, CoverageShared& shared) {
  const int lane = static_cast<int>(threadIdx.x);
  const int mine = shared.candidate[lane];
  float left = shared.left[lane];
  Ranked rank = mine < 0 ? kNobody : Rank(left, mine);
  int picks = 0;
  bool explained = false;
  while (step + picks < coverage.budget) {
    const Ranked best = WarpMax(rank);
    if (best <= shared.others) break;  // also where both are nobody
    explained = PriorityOf(best) == 0.0f;
    if (explained) break;
    const int k = WarpMax(rank == best ? lane : 0);
    const float root = sqrtf(PriorityOf(best));
    float sum = 0.0f;
    for (int p = 0; p < picks; ++p) {
      const float factor = shared.factor[p][lane];
      sum += factor * __shfl_sync(kFullWarp, factor, k);
    }
    const float c = (shared.between[k][lane] - sum) / root;
    shared.factor[picks][lane] = c;
    left -= c * c;
    if (left < kCoverageFloor) left = 0.0f;  // it never grows: what counts as nothing may be nothing
    rank = lane == k || rank == kNobody ? kNobody : Rank(left, mine);
    if (lane == 0) {
      shared.pick[picks] = k;
      shared.root[picks] = root;
    }
    ++picks;
  }
  if (lane == 0) {
    shared.picks = picks;
    shared.explained = explained;
  }
}

// The panel's columns c at the slice's tokens, and what they leave of the diagonal.
__device__ void TakePicks(const Coverage& coverage, int step, const CoverageShared& shared) {
  const int picks = shared.picks;
  for (int i = coverage.slice.first + static_cast<int>(threadIdx.x); i < coverage.slice.end; i += kSelectThreads) {
    float c[kPanel];
    float left = coverage.diagonal[i];
    for (int p = 0; p < picks; ++p) {
      const int k = shared.pick[p];
      float sum = 0.0f;
      for (int q = 0; q < p; ++q) sum += c[q] * shared.factor[q][k];
      c[p] = (coverage.residual[static_cast<size_t>(k) * coverage.pitch + i] - sum) / shared.root[p];
      coverage.Row(step + p)[i] = c[p];
      if (i == shared.candidate[k]) left = kChosen;
      if (left < 0.0f) continue;
      left -= c[p] * c[p];
      if (left < kCoverageFloor) left = 0.0f;
    }
    coverage.diagonal[i] = left;
  }
}

// Returns how many tokens are chosen when nothing is left to explain, or the budget is spent.
template <typename Source>
__device__ int CoverSample(const Coverage& coverage, const Source& pairs, Team& team, CoverageShared& shared) {
  const int thread = static_cast<int>(threadIdx.x);
  int step = 0;
  while (step < coverage.budget) {
    team.Wait();
    FindCandidates(coverage, step, shared);
    GatherFactors(coverage, step, shared);
    team.Wait();
    FindResiduals(coverage, pairs, step, shared);
    team.Wait();
    const int l = shared.candidate[thread % kPanel];
    const size_t row = static_cast<size_t>(thread / kPanel) * coverage.pitch;
    shared.between[thread / kPanel][thread % kPanel] =
        thread / kPanel < shared.candidates && l >= 0 ? coverage.residual[row + l] : 0.0f;
    __syncthreads();
    if (thread < kWarp) FactorisePanel(coverage, step, shared);
    __syncthreads();
    if (coverage.pivots != nullptr && thread < shared.picks) {
      coverage.pivots[step + thread] = shared.candidate[shared.pick[thread]];
    }
    __syncthreads();
    TakePicks(coverage, step, shared);
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
