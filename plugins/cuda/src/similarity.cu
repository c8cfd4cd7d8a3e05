// Duplication of pairs of visual tokens (Eq. 12, squared, mean over key/value heads), tile by tile:
//   S^2 = cos(v_i, v_j)^2 * exp(-|k_i - k_j|^2 / sqrt(d)),  |k_i - k_j|^2 = |k_i|^2 + |k_j|^2 - 2 k_i.k_j,
// or one of the two factors alone. Either all pairs into a matrix, or one round's new tokens against all, reduced to
// each token's most similar one.
#include "launch.h"
#include "tile_math.cuh"

namespace iwp {
namespace {

constexpr int kResults = kTileRows * kTileColumns / kTileThreads;  // of one thread
constexpr int kCopies = kStageRows * kStageBytes / 16 / kTileThreads;  // 16-byte pieces of a stage that a thread copies
constexpr int kPieces = kStageBytes / 16;  // of one row
static_assert(kCopies * kTileThreads * 16 == kStageRows * kStageBytes, "threads share a stage evenly");

// Squared similarity of all pairs or of a round's new tokens with all; of all pairs without the square, for coverage.
enum class Target { kMatrix, kRound, kPlainMatrix };

// Two blocks must fit into a multiprocessor's shared memory: 64 KiB on Turing, 100 KiB on Ampere, Ada and Blackwell
// cards. The host asks by the GPU, a kernel knows what it was compiled for, which is never the newer of the two.
constexpr int kFirstWithAsyncCopies = 8;  // major compute capability
__host__ __device__ constexpr int NumStages(int major) { return major < kFirstWithAsyncCopies ? 2 : 3; }

template <int kStages>
struct TileShared {
  alignas(16) unsigned char stages[kStages][kStageRows * kStagePitch];
  float norms[2][kStageRows];  // of the phase at hand and of the next one
  int is_last;
};
static_assert(2 * sizeof(TileShared<2>) <= 64 * 1024, "two blocks on Turing; it reserves nothing beside them");
static_assert(2 * (sizeof(TileShared<3>) + 1024) <= 100 * 1024, "two blocks; 1 KiB is reserved for each");

// Which tile a block computes. The matrix is symmetric: tiles with a column at or above the diagonal are enough.
struct TilePlace {
  int row;
  int column;
};

__device__ TilePlace PlaceInMatrix(int tile, int tokens) {
  const int columns = DivUp(tokens, kTileColumns);
  int row = 0;
  int first_column = 0;
  while (tile >= columns - first_column) {
    tile -= columns - first_column;
    ++row;
    first_column += kTileRows / kTileColumns;
  }
  return {row * kTileRows, (first_column + tile) * kTileColumns};
}

__device__ TilePlace PlaceInRound(int tile, int tokens) {
  const int rows = DivUp(tokens, kTileRows);
  return {tile % rows * kTileRows, tile / rows * kTileColumns};
}

// This thread's share in copying stages: kCopies rows of the tile, the same 16-byte piece of each.
template <typename T>
class StageCopier {
 public:
  // `tokens_of_row` tells which token stands in a row of the stage, -1 for none.
  template <typename TokenOfRow>
  __device__ StageCopier(const Problem& problem, TokenOfRow token_of_row)
      : dim_(problem.head_dim), aligned_(problem.aligned), row_(static_cast<int>(threadIdx.x) / kPieces) {
#pragma unroll
    for (int c = 0; c < kCopies; ++c) token_[c] = token_of_row(row_ + c * (kTileThreads / kPieces));
  }

  // `head` [S, d] is one head of one sample; elements from `depth` on go into `stage`.
  __device__ void Copy(unsigned char* stage, const T* head, int depth) const {
    const int piece = static_cast<int>(threadIdx.x) % kPieces;
    const int first = depth + piece * kVector<T>;
#pragma unroll
    for (int c = 0; c < kCopies; ++c) {
      unsigned char* to = stage + (row_ + c * (kTileThreads / kPieces)) * kStagePitch + piece * 16;
      if (aligned_) {
        const bool valid = token_[c] >= 0 && first < dim_;
        CopyAsync16(to, valid ? head + static_cast<size_t>(token_[c]) * dim_ + first : head, valid);
      } else {
        T* elements = reinterpret_cast<T*>(to);
#pragma unroll
        for (int e = 0; e < kVector<T>; ++e) {
          const bool valid = token_[c] >= 0 && first + e < dim_;
          elements[e] = valid ? head[static_cast<size_t>(token_[c]) * dim_ + first + e] : T(0.0f);
        }
      }
    }
  }

 private:
  int dim_;
  bool aligned_;
  int row_;
  int token_[kCopies];
};

// Adds up the tile's shares of all splits in the order of the splits, whichever block is last to park its own.
// Returns whether this block is the last one, which then has the sum.
template <typename TileType>
__device__ bool CombineSplits(float (&total)[TileType::kRows][TileType::kColumns], float* partial, unsigned* done,
                              int split, int splits, int tiles, int* is_last) {
  const int thread = static_cast<int>(threadIdx.x);
  float* mine = partial + static_cast<size_t>(split) * tiles * kTileRows * kTileColumns;
#pragma unroll
  for (int e = 0; e < kResults; ++e) {
    mine[e * kTileThreads + thread] = total[e / TileType::kColumns][e % TileType::kColumns];
  }
  __threadfence();
  __syncthreads();
  if (thread == 0) {
    const bool last = atomicAdd(done, 1u) == static_cast<unsigned>(splits) - 1;
    if (last) *done = 0;  // ready for the next launch
    *is_last = last ? 1 : 0;
  }
  __syncthreads();
  if (*is_last == 0) return false;
  __threadfence();
#pragma unroll
  for (int e = 0; e < kResults; ++e) total[e / TileType::kColumns][e % TileType::kColumns] = 0.0f;
  for (int s = 0; s < splits; ++s) {
    const float* share = partial + static_cast<size_t>(s) * tiles * kTileRows * kTileColumns;
#pragma unroll
    for (int e = 0; e < kResults; ++e) {
      total[e / TileType::kColumns][e % TileType::kColumns] += __ldcg(share + e * kTileThreads + thread);
    }
  }
  return true;
}

template <typename TileType>
__device__ void WriteMatrix(const TileType& tile, const float (&total)[TileType::kRows][TileType::kColumns],
                            TilePlace place, int num_visual, int pitch, float* matrix) {
#pragma unroll
  for (int r = 0; r < TileType::kRows; ++r) {
    const int i = place.row + tile.Row(r);
#pragma unroll
    for (int c = 0; c < TileType::kColumns; ++c) {
      const int j = place.column + tile.Column(c);
      // A tile across the diagonal has some pairs twice: only j >= i is used, so that no entry has two writers.
      if (j >= i && j < num_visual) {
        matrix[static_cast<size_t>(i) * pitch + j] = total[r][c];
        matrix[static_cast<size_t>(j) * pitch + i] = total[r][c];
      }
    }
  }
}

// Extremes over the tile's new tokens into each row's; integer order is float order for what is 0 or more, and an
// extreme does not depend on the order of the atomics.
template <typename TileType>
__device__ void ReduceRound(const TileType& tile, const float (&total)[TileType::kRows][TileType::kColumns],
                            TilePlace place, int num_visual, int num_new, bool minmax, unsigned* likeness_max,
                            unsigned* likeness_min) {
#pragma unroll
  for (int r = 0; r < TileType::kRows; ++r) {
    float largest = 0.0f;
    float smallest = INFINITY;
#pragma unroll
    for (int c = 0; c < TileType::kColumns; ++c) {
      if (place.column + tile.Column(c) < num_new) {
        largest = fmaxf(largest, total[r][c]);
        smallest = fminf(smallest, total[r][c]);
      }
    }
    largest = WarpMax(largest, TileType::kRowLanes);
    smallest = WarpMin(smallest, TileType::kRowLanes);
    const int i = place.row + tile.Row(r);
    if (static_cast<int>(threadIdx.x) % TileType::kRowLanes == 0 && i < num_visual) {
      atomicMax(likeness_max + i, __float_as_uint(largest));
      if (minmax) atomicMin(likeness_min + i, __float_as_uint(smallest));
    }
  }
}

// Grid: x tiles, y splits of the heads, z samples. Tiles run fastest so that blocks at work share a few heads in cache.
// A head is one phase for each factor of the similarity, a whole pass over its input, the Gaussian first.
// `kBoth`: the similarity has both factors, else the one whose input is not null.
template <typename T, Target kTarget, bool kBoth>
__global__ void __launch_bounds__(kTileThreads, 2)
    SimilarityKernel(Problem problem, const T* __restrict__ gaussian_of, const T* __restrict__ cosine_of,
                     Workspace workspace, Round round) {
  constexpr int kStages = NumStages(IWP_ARCH / 100);
  TileShared<kStages>& shared = *reinterpret_cast<TileShared<kStages>*>(DynamicShared());
  const int sample = blockIdx.z;
  const int tokens = problem.tokens;
  const int num_visual = workspace.num_visual[sample];
  int num_columns = num_visual;
  TilePlace place;
  if constexpr (kTarget != Target::kRound) {
    place = PlaceInMatrix(blockIdx.x, tokens);
  } else {
    const int budget = Budget(problem, num_visual);
    if (round.chosen_before + round.size >= budget) return;  // nothing is chosen after this round
    num_columns = round.size;
    place = PlaceInRound(blockIdx.x, tokens);
  }
  if (place.row >= num_visual || place.column >= num_columns) return;

  const int* visual_index = workspace.visual_index + static_cast<size_t>(sample) * tokens;
  const int* chunk = workspace.chunk + static_cast<size_t>(sample) * tokens;
  const auto token_of_row = [&](int row) {
    if (row < kTileRows) return place.row + row < num_visual ? visual_index[place.row + row] : -1;
    const int column = place.column + row - kTileRows;
    if (column >= num_columns) return -1;
    return visual_index[kTarget == Target::kRound ? chunk[column] : column];
  };
  const StageCopier<T> copier(problem, token_of_row);
  const int thread = static_cast<int>(threadIdx.x);
  const int norm_token = thread < kStageRows ? token_of_row(thread) : -1;

  const int splits = static_cast<int>(gridDim.y);
  const int split = static_cast<int>(blockIdx.y);
  const int first_head = split * problem.kv_heads / splits;
  const int end_head = (split + 1) * problem.kv_heads / splits;
  const int dim = problem.head_dim;
  const int depths = DivUp(dim, kStageDepth<T>);
  const size_t sample_row = static_cast<size_t>(sample) * problem.kv_heads * tokens;
  constexpr int kPhasesOfHead = kBoth ? 2 : 1;
  const int phases = kPhasesOfHead * (end_head - first_head);
  const auto is_gaussian = [&](int phase) { return kBoth ? phase % 2 == 0 : gaussian_of != nullptr; };
  const auto head_row = [&](int phase) {
    return sample_row + static_cast<size_t>(first_head + phase / kPhasesOfHead) * tokens;
  };

  int copy_phase = 0;
  int copy_depth = 0;
  const auto copy_next = [&](int stage) {
    if (copy_phase < phases) {
      const T* input = is_gaussian(copy_phase) ? gaussian_of : cosine_of;
      copier.Copy(shared.stages[stage], input + head_row(copy_phase) * dim, copy_depth * kStageDepth<T>);
      if (++copy_depth == depths) {
        copy_depth = 0;
        ++copy_phase;
      }
    }
    CopyCommit();  // an empty group too: CopyWait counts groups
  };
  const auto load_norm = [&](int phase) {
    if (thread >= kStageRows || phase >= phases) return;
    const float* norms = is_gaussian(phase) ? workspace.square : workspace.inverse_norm;
    shared.norms[phase % 2][thread] = norm_token >= 0 ? norms[head_row(phase) + norm_token] : 0.0f;
  };

  using TileType = Tile<T>;
  TileType tile;
  float gaussian[TileType::kRows][TileType::kColumns];  // of a head, between its two phases
  float total[TileType::kRows][TileType::kColumns] = {};
  constexpr bool kSquared = kTarget != Target::kPlainMatrix;
  constexpr float kLog2E = 1.4426950408889634f;
  // exp2(this * distance^2)
  const float gaussian_scale = (kSquared ? -kLog2E : -0.5f * kLog2E) / sqrtf(static_cast<float>(dim));

  load_norm(0);
  for (int s = 0; s < kStages - 1; ++s) copy_next(s);
  int stage = 0;
  for (int phase = 0; phase < phases; ++phase) {
    for (int depth = 0; depth < depths; ++depth) {
      CopyWait<kStages - 2>();
      // Every thread's copies of this stage are in, and every thread is done with the stage that is filled next.
      __syncthreads();
      copy_next(stage == 0 ? kStages - 1 : stage - 1);
      if (depth == 0) load_norm(phase + 1);
      tile.Accumulate(shared.stages[stage], dim - depth * kStageDepth<T>);
      stage = stage == kStages - 1 ? 0 : stage + 1;
    }
    const float* norms = shared.norms[phase % 2];
#pragma unroll
    for (int r = 0; r < TileType::kRows; ++r) {
      const float row_norm = norms[tile.Row(r)];
#pragma unroll
      for (int c = 0; c < TileType::kColumns; ++c) {
        // Written so that swapping the two tokens gives the same bits: duplicates must tie.
        const float column_norm = norms[kTileRows + tile.Column(c)];
        if (is_gaussian(phase)) {
          const float distance = fmaxf(row_norm + column_norm - 2.0f * tile.sum[r][c], 0.0f);
          gaussian[r][c] = exp2f(distance * gaussian_scale);
          if constexpr (!kBoth) total[r][c] += gaussian[r][c];
        } else {
          const float cosine = tile.sum[r][c] * (row_norm * column_norm);
          const float factor = kSquared ? cosine * cosine : cosine;
          if constexpr (kBoth) {
            total[r][c] += factor * gaussian[r][c];
          } else {
            total[r][c] += factor;
          }
        }
        tile.sum[r][c] = 0.0f;
      }
    }
  }

  if (splits > 1) {
    const int tiles = static_cast<int>(gridDim.x);
    const size_t first_tile = static_cast<size_t>(sample) * splits * tiles + blockIdx.x;
    float* partial = workspace.partial + first_tile * kTileRows * kTileColumns;
    if (!CombineSplits<TileType>(total, partial, workspace.tiles_done + sample * tiles + blockIdx.x, split, splits,
                                 tiles, &shared.is_last)) {
      return;
    }
  }
  const float heads = static_cast<float>(problem.kv_heads);
#pragma unroll
  for (int e = 0; e < kResults; ++e) total[e / TileType::kColumns][e % TileType::kColumns] /= heads;

  if constexpr (kTarget != Target::kRound) {
    WriteMatrix(tile, total, place, num_visual, problem.pitch,
                workspace.matrix + static_cast<size_t>(sample) * tokens * problem.pitch);
  } else {
    const size_t row = static_cast<size_t>(sample) * 2 * tokens;
    ReduceRound(tile, total, place, num_visual, num_columns, problem.minmax, workspace.likeness_max + row,
                workspace.likeness_min + row);
  }
}

// Blocks that share a tile's heads: enough to give every multiprocessor one, if their partial sums fit.
int NumSplits(const Problem& problem, int tiles, int multiprocessors) {
  if (tiles >= multiprocessors) return 1;  // also keeps the product below small
  const int all_tiles = tiles * problem.batch;
  const int wanted = DivUp(multiprocessors, all_tiles);
  const int splits = wanted < problem.kv_heads ? wanted : problem.kv_heads;
  return splits * all_tiles <= kMaxPartialTiles ? splits : 1;
}

template <typename T, Target kTarget, bool kBoth>
cudaError_t LaunchFactors(const Problem& problem, const Inputs& inputs, const Workspace& workspace, const Round& round,
                        int tiles, const Gpu& gpu, cudaStream_t stream) {
  const dim3 grid(tiles, NumSplits(problem, tiles, gpu.multiprocessors), problem.batch);
  const size_t shared_bytes = NumStages(gpu.major) == 2 ? sizeof(TileShared<2>) : sizeof(TileShared<3>);
  return Launch(SimilarityKernel<T, kTarget, kBoth>, grid, kTileThreads, shared_bytes, stream, problem,
                static_cast<const T*>(inputs.gaussian_of), static_cast<const T*>(inputs.cosine_of), workspace, round);
}

template <typename T, Target kTarget>
cudaError_t LaunchTyped(const Problem& problem, const Inputs& inputs, const Workspace& workspace, const Round& round,
                        int tiles, const Gpu& gpu, cudaStream_t stream) {
  const bool both = inputs.gaussian_of != nullptr && inputs.cosine_of != nullptr;
  const auto launch = both ? LaunchFactors<T, kTarget, true> : LaunchFactors<T, kTarget, false>;
  return launch(problem, inputs, workspace, round, tiles, gpu, stream);
}

template <Target kTarget>
cudaError_t LaunchAnyType(const Problem& problem, const Inputs& inputs, const Workspace& workspace,
                          const Round& round, int tiles, const Gpu& gpu, cudaStream_t stream) {
  switch (problem.data_type) {
    case IWP_FLOAT16:
      return LaunchTyped<__half, kTarget>(problem, inputs, workspace, round, tiles, gpu, stream);
    case IWP_BFLOAT16:
      return LaunchTyped<__nv_bfloat16, kTarget>(problem, inputs, workspace, round, tiles, gpu, stream);
    default:
      return LaunchTyped<float, kTarget>(problem, inputs, workspace, round, tiles, gpu, stream);
  }
}

}  // namespace

cudaError_t LaunchSimilarityMatrix(const Problem& problem, const Inputs& inputs, const Workspace& workspace,
                                   const Gpu& gpu, cudaStream_t stream) {
  const int columns = DivUp(problem.tokens, kTileColumns);
  int tiles = 0;
  for (int column = 0; column < columns; column += kTileRows / kTileColumns) tiles += columns - column;
  const auto launch = problem.coverage ? LaunchAnyType<Target::kPlainMatrix> : LaunchAnyType<Target::kMatrix>;
  return launch(problem, inputs, workspace, Round{}, tiles, gpu, stream);
}

cudaError_t LaunchSimilarityRound(const Problem& problem, const Inputs& inputs, const Workspace& workspace,
                                  const Round& round, const Gpu& gpu, cudaStream_t stream) {
  const int tiles = DivUp(problem.tokens, kTileRows) * DivUp(round.size, kTileColumns);
  return LaunchAnyType<Target::kRound>(problem, inputs, workspace, round, tiles, gpu, stream);
}

}  // namespace iwp
