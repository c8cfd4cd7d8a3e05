// What the kernels of one selection share: sizes, inputs, scratch memory and their launchers.
#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda_runtime.h>

#include "iwp_select_tokens.h"

namespace iwp {

constexpr int kMaxHeadDim = 256;

// The two thresholds between the forms of a selection; tests lower them so that small inputs reach every form.
#ifndef IWP_ONE_BLOCK_TOKENS
#define IWP_ONE_BLOCK_TOKENS 1536
#endif
#ifndef IWP_MATRIX_TOKENS
#define IWP_MATRIX_TOKENS 4096
#endif

// Up to this many tokens one block runs every round: rounds then cost no launch, and one block's bandwidth is enough.
constexpr int kOneBlockTokens = IWP_ONE_BLOCK_TOKENS;

// Up to this many tokens the duplication of all pairs is computed once, in one well-filled launch, and rounds only look
// it up; beyond, 4 bytes a pair is too much memory (64 MiB here) and each round computes its own columns.
constexpr int kMatrixTokens = IWP_MATRIX_TOKENS;

// One block of the similarity kernel: rows x columns of pairs.
constexpr int kTileRows = 128;
constexpr int kTileColumns = 64;
constexpr int kTileThreads = 256;

// Tiles whose head sums are split over blocks park partial sums in scratch memory: at most this many, 9 MiB.
constexpr int kMaxPartialTiles = 288;

constexpr int kStatTokens = 32;  // tokens of one block of the statistics kernel

__host__ __device__ constexpr int DivUp(int a, int b) { return (a + b - 1) / b; }

struct Problem {
  int batch;
  int heads;
  int kv_heads;
  int tokens;
  int head_dim;
  int num_kept;
  int stat_tiles;  // DivUp(tokens, kStatTokens)
  int pitch;       // row length of the pair matrix, a multiple of 4 so that rows are read 16 bytes at a time
  float penalty;
  bool raw_heads;
  bool minmax;
  bool aligned;  // rows of key_rotated and value may be read 16 bytes at a time
  IwpDataType data_type;
};

struct Inputs {
  const void* query;
  const void* key;
  const void* key_rotated;
  const void* value;
  const int32_t* is_visual;
};

// Scratch memory; each array is [batch, ...].
struct Workspace {
  int* num_visual;            // [1]
  int* visual_index;          // [S] the visual tokens' positions, ascending; first num_visual are set
  float* logit;               // [H, S] q.k / sqrt(d)
  float* key_square;          // [Hkv, S] |key_rotated|^2
  float* value_norm;          // [Hkv, S] ||value||
  float* tile_max;            // [H, stat_tiles] largest logit of the tile's visual tokens
  float* tile_sum;            // [H, stat_tiles] their sum of exp(logit - tile_max)
  float* priority;            // [2, S] P of Algorithm 1 by visual rank, -1 once chosen; rounds alternate buffers
  unsigned* likeness_max;     // [2, S] s_i of the last round as bits of a float >= 0, which order like integers
  unsigned* likeness_min;     // [2, S] the smallest duplication instead of the largest, for minmax
  int* chunk;                 // [S] visual ranks that a round chose
  float* matrix;              // [S, pitch] mean squared similarity by visual rank
  float* partial;             // [kMaxPartialTiles, kTileRows * kTileColumns], of all samples together
  unsigned* tiles_done;       // [kMaxPartialTiles] blocks that parked their share of a tile
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

// Launchers, in the order of the work. Each returns the launch's error.
cudaError_t LaunchTokenStats(const Problem& problem, const Inputs& inputs, const Workspace& workspace,
                             cudaStream_t stream);
cudaError_t LaunchMagnitude(const Problem& problem, const Workspace& workspace, cudaStream_t stream);
cudaError_t LaunchSimilarityMatrix(const Problem& problem, const Inputs& inputs, const Workspace& workspace,
                                   int multiprocessors, cudaStream_t stream);
cudaError_t LaunchSimilarityRound(const Problem& problem, const Inputs& inputs, const Workspace& workspace,
                                  const Round& round, int multiprocessors, cudaStream_t stream);
cudaError_t LaunchAllRounds(const Problem& problem, const Inputs& inputs, const Workspace& workspace, int chunk,
                            int growth, int64_t* kept_index, cudaStream_t stream);
cudaError_t LaunchRound(const Problem& problem, const Inputs& inputs, const Workspace& workspace, const Round& round,
                        int64_t* kept_index, cudaStream_t stream);
cudaError_t LaunchKeepAll(const Problem& problem, int64_t* kept_index, cudaStream_t stream);

}  // namespace iwp
