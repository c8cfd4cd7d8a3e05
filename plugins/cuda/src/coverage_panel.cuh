// A panel of coverage: which tokens are its candidates, and which of them are chosen. See coverage.cu.
#pragma once

#include "rounds.cuh"
#include "team.cuh"

namespace iwp {

constexpr float kCoverageFloor = 1e-4f;  // what is left of a token below this counts as nothing
static_assert(kPanel == kWarp, "one lane for each candidate");
constexpr int kThreadRows = 4;  // neighbouring tokens of which one thread sums up products

struct CoverageShared {
  RoundsShared rounds;
  alignas(16) float partial[kThreadRows * kSelectThreads];
  int top[kPanel + 1];
  int candidate[kPanel];           // visual ranks, -1 for none
  float left[kPanel];              // their diagonals before the panel
  int fresh[kPanel];               // which candidates the last panel had not
  int freshes;                     // how many
  Ranked others;                   // the best of the tokens that are no candidates, before the panel
  float between[kPanel][kPanel];   // what is left of S between candidates
  float factor[kPanel][kPanel];    // the panel's columns c at the candidates
  int pick[kPanel];                // which candidate each of its steps chooses
  float root[kPanel];              // of the pick's diagonal
  bool stays[kPanel];              // which candidates none of them chooses
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
  float* residual;      // [2, kPanel, pitch]
  float* panel_factor;  // [num_kept, kPanel]
  int* pivots;          // [num_kept] the rows in use where they are those of the matrix, else null

  __device__ float* Row(int step) const {
    return rows + static_cast<size_t>(pivots != nullptr ? pivots[step] : step) * pitch;
  }
  // Panels take turns with two buffers: blocks may be reading one when others are through with the panel.
  __device__ float* Residual(int panel, int candidate) const {
    return residual + static_cast<size_t>(panel % 2 * kPanel + candidate) * pitch;
  }
};

// Where candidates of the panel before stay on, and where the others of `wanted` go; each lane has one of either, or -1.
__device__ inline void PlaceCandidates(const Coverage& coverage, int wanted, CoverageShared& shared) {
  const int lane = static_cast<int>(threadIdx.x);
  int mine = shared.candidate[lane];
  bool stays = false;
  bool is_new = wanted >= 0;
  for (int other = 0; other < kPanel; ++other) {
    const int other_wanted = __shfl_sync(kFullWarp, wanted, other);
    const int other_mine = __shfl_sync(kFullWarp, mine, other);
    stays = stays || (mine >= 0 && mine == other_wanted);
    is_new = is_new && wanted != other_mine;
  }
  const unsigned below = (1u << lane) - 1;
  const unsigned free = __ballot_sync(kFullWarp, !stays);
  const unsigned arriving = __ballot_sync(kFullWarp, is_new);
  const int place = __popc(free & below);
  const int order = is_new ? __popc(arriving & below) : -1;
  if (!stays) mine = -1;
  for (int other = 0; other < kPanel; ++other) {
    const int order_of_other = __shfl_sync(kFullWarp, order, other);
    const int other_wanted = __shfl_sync(kFullWarp, wanted, other);
    if (!stays && order_of_other == place) mine = other_wanted;
  }
  shared.candidate[lane] = mine;
  // Read here: other blocks may be through with the panel before this one factorises it.
  shared.left[lane] = mine < 0 ? kChosen : coverage.diagonal[mine];
  if (!stays && mine >= 0) shared.fresh[place] = lane;
  if (lane == 0) shared.freshes = __popc(arriving);
}

// The tokens of the largest diagonals, in any order, and the best of those that are left out.
__device__ inline void FindCandidates(const Coverage& coverage, int step, CoverageShared& shared) {
  const int listed = min(kPanel + 1, coverage.num_visual - step);
  TakeTop<false>(coverage.diagonal, coverage.num_visual, listed, shared.top, shared.rounds.top);
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x);
  if (lane < kWarp) {
    int mine = lane < listed ? shared.top[lane] : -1;
    Ranked others = kNobody;
    if (listed > kPanel) {  // one too many: the last is none
      const int spare = shared.top[kPanel];
      const Ranked of_spare = Rank(coverage.diagonal[spare], spare);
      const Ranked of_mine = Rank(coverage.diagonal[mine], mine);
      const Ranked last = ~WarpMax(~of_mine);
      if (of_mine == last && last < of_spare) mine = spare;
      others = min(last, of_spare);
    }
    PlaceCandidates(coverage, mine, shared);
    if (lane == 0) shared.others = others;
  }
  __syncthreads();
}

// The next steps, as far as they are certain to choose candidates. By one warp; every block does it for itself.
__device__ inline void FactorisePanel(const Coverage& coverage, int step, CoverageShared& shared) {
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
  shared.stays[lane] = rank != kNobody;
  if (lane == 0) {
    shared.picks = picks;
    shared.explained = explained;
  }
}

}  // namespace iwp
