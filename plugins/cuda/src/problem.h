// What the kernels of one selection share: sizes, inputs, scratch memory and their launchers.
#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda_runtime.h>

#include "iwp_select_tokens.h"

namespace iwp {

constexpr int kMaxHeadDim = 256;

// The thresholds between the forms of a selection; the emulation lowers them, so that small inputs reach every form.
#ifdef IWP_EMULATION
#define IWP_THRESHOLD(name, tokens) inline const emulation::Threshold name(#name, tokens)
#else
#define IWP_THRESHOLD(name, tokens) constexpr int name = tokens
#endif

// Up to this many tokens one block runs every round: rounds then cost no launch, and one block's bandwidth is enough.
IWP_THRESHOLD(kOneBlockTokens, 1536);

// Up to this many tokens the duplication of all pairs is computed once, in one well-filled launch, and rounds only look
// it up; beyond, 4 bytes a pair is too much memory (64 MiB here) and each round computes its own columns.
IWP_THRESHOLD(kMatrixTokens, 4096);

// Up to this many tokens one launch runs all rounds where they stay small: blocks then hold a priority for each token in
// shared memory. 16,384 visual tokens and a prompt fit into the 99 KiB of every GPU but Turing's.
IWP_THRESHOLD(kSmallRoundsTokens, 20480);
constexpr int kSmallChunk = 32;

// Blocks that wait for each other share out the tokens: this many for each at least.
IWP_THRESHOLD(kTeamSlice, 64);

// Candidates of which coverage finds out at once which are chosen next: one for each lane of a warp.
constexpr int kPanel = 32;

// One block of the similarity kernel: rows x columns of pairs.
constexpr int kTileRows = 128;
constexpr int kTileColumns = 64;
constexpr int kTileThreads = 256;

// Tiles whose head sums are split over blocks park partial sums in scratch memory: at most this many, 9 MiB.
constexpr int kMaxPartialTiles = 288;

__host__ __device__ constexpr int DivUp(int a, int b) { return (a + b - 1) / b; }

struct Problem {
  int batch;
  int kv_heads;
  int tokens;
  int head_dim;
  int num_kept;
  int pitch;  // row length of the pair matrix, a multiple of 4 so that rows are read 16 bytes at a time
  float penalty;
  bool minmax;
  bool coverage;  // instead of Algorithm 1
  bool aligned;  // rows of the inputs may be read 16 bytes at a time
  IwpDataType data_type;
};

struct Inputs {
  const float* importance;
  const void* gaussian_of;  // [B, Hkv, S, d] what the similarity's Gaussian compares, null if it has none
  const void* cosine_of;    // [B, Hkv, S, d] what its cosine compares, null if it has none
  const int32_t* is_visual;
};

struct Gpu {
  int multiprocessors;
  int major;            // of its compute capability
  size_t shared_bytes;  // that a block may have
};

// Scratch memory; each array is [batch, ...].
struct Workspace {
  int* num_visual;            // [1]
  int* visual_index;          // [S] the visual tokens' positions, ascending; first num_visual are set
  float* square;              // [Hkv, S] |x|^2 of gaussian_of
  float* inverse_norm;        // [Hkv, S] 1 / ||x|| of cosine_of, 0 for a zero vector
  float* priority;            // [2, S] P of Algorithm 1 by visual rank, -1 once chosen; rounds alternate buffers
  unsigned* likeness_max;     // [2, S] s_i of the last round as bits of a float >= 0, which order like integers
  unsigned* likeness_min;     // [2, S] the smallest duplication instead of the largest, for minmax
  int* chunk;                 // [S] visual ranks that a round chose
  float* matrix;              // [S, pitch] mean similarity by visual rank, squared but for coverage; with more than
                              // kMatrixTokens [num_kept, pitch] the columns of coverage's factor, else nothing
  float* partial;             // [kMaxPartialTiles, kTileRows * kTileColumns], of all samples together
  unsigned* tiles_done;       // [kMaxPartialTiles] blocks that parked their share of a tile
  unsigned* arrived;          // [1] blocks that reached a barrier of their team, since the launch
  float* residual;            // [2, kPanel, pitch] what is left of candidates' similarity to all tokens; for coverage,
                              // as the next
  float* panel_factor;        // [num_kept, kPanel] the columns of the factor at candidates
};

// One round of Algorithm 1 as the host knows it: it cannot know the number of visual tokens, so a round may turn out
// empty.
struct Round {
  int index;
  int chosen_before;  // visual tokens that earlier rounds chose, if there are that many to choose
  int size;           // b
  bool last;
};

// Fills `workspace` with addresses from `base` and returns the bytes in use; `base` may be null to ask for the size.
size_t LayOutWorkspace(const Problem& problem, void* base, Workspace* workspace);

// Number of visual tokens to choose.
__host__ __device__ inline int Budget(const Problem& problem, int num_visual) {
  const int wanted = problem.num_kept - (problem.tokens - num_visual);
  return wanted < 0 ? 0 : (wanted < num_visual ? wanted : num_visual);
}

// Whether LaunchSmallRounds takes a schedule.
bool TakesSmallRounds(const Problem& problem, const Gpu& gpu, int chunk, int growth);

// Launchers, in the order of the work. Each returns the launch's error.
cudaError_t LaunchTokenStats(const Problem& problem, const Inputs& inputs, const Workspace& workspace,
                             cudaStream_t stream);
cudaError_t LaunchSimilarityMatrix(const Problem& problem, const Inputs& inputs, const Workspace& workspace,
                                   const Gpu& gpu, cudaStream_t stream);
cudaError_t LaunchSimilarityRound(const Problem& problem, const Inputs& inputs, const Workspace& workspace,
                                  const Round& round, const Gpu& gpu, cudaStream_t stream);
cudaError_t LaunchAllRounds(const Problem& problem, const Inputs& inputs, const Workspace& workspace, int chunk,
                            int growth, int64_t* kept_index, cudaStream_t stream);
cudaError_t LaunchSmallRounds(const Problem& problem, const Inputs& inputs, const Workspace& workspace, int chunk,
                              const Gpu& gpu, int64_t* kept_index, cudaStream_t stream);
cudaError_t LaunchCoverage(const Problem& problem, const Inputs& inputs, const Workspace& workspace, const Gpu& gpu,
                           int64_t* kept_index, cudaStream_t stream);
cudaError_t LaunchRound(const Problem& problem, const Inputs& inputs, const Workspace& workspace, const Round& round,
                        const Gpu& gpu, int64_t* kept_index, cudaStream_t stream);
cudaError_t LaunchKeepAll(const Problem& problem, int64_t* kept_index, cudaStream_t stream);

}  // namespace iwp
