// The rounds of Algorithm 1, in three forms by the number of tokens (see kOneBlockTokens and kMatrixTokens).
#include <algorithm>

#include "launch.h"
#include "rounds.cuh"

namespace iwp {
namespace {

constexpr int kSliceTokens = 64;  // of one block in a round that several blocks share
constexpr unsigned kInfinityBits = 0x7f800000u;

// Every round in one block, priorities in shared memory.
__global__ void __launch_bounds__(kSelectThreads, 1)
    AllRoundsKernel(Problem problem, Workspace workspace, const int32_t* is_visual, int chunk_size, int growth,
                    int64_t* kept_index) {
  RoundsShared& shared = *reinterpret_cast<RoundsShared*>(DynamicShared());
  float* const priority = reinterpret_cast<float*>(&shared + 1);                                 // [S]
  int* const chunk = reinterpret_cast<int*>(priority + problem.tokens);                          // [S]
  unsigned* const likeness_max = reinterpret_cast<unsigned*>(chunk + problem.tokens);            // [pitch]
  unsigned* const likeness_min = likeness_max + problem.pitch;                                   // [pitch]
  const SampleViews views = ViewsOf(problem, workspace, is_visual, kept_index, blockIdx.z);
  const int size = views.num_visual;
  const int width = DivUp(size, 4) * 4;

  for (int i = threadIdx.x; i < size; i += kSelectThreads) priority[i] = views.priority[i];
  Normalise(priority, size, shared);
  int chosen = 0;
  int next = chunk_size;
  while (chosen < views.budget) {
    const int count = min(next, views.budget - chosen);
    Take(priority, size, count, chunk, shared.top);
    chosen += count;
    if (chosen == views.budget) break;
    for (int i = threadIdx.x; i < width; i += kSelectThreads) {
      likeness_max[i] = 0;
      likeness_min[i] = kInfinityBits;
    }
    __syncthreads();
    LookUpLikeness(problem, views.matrix, chunk, count, 0, width, likeness_max, likeness_min);
    __syncthreads();
    Penalise(problem, priority, size, likeness_max, likeness_min, shared);
    // Growth beyond the number of tokens changes nothing and must not overflow.
    next = growth > problem.tokens / next ? problem.tokens : next * growth;
  }
  WriteKept(problem, views.is_visual, priority, views.kept_index, shared);
}

// One round over many blocks: each chooses for itself from all priorities, which spares a launch for the choice, and
// then looks up its own slices of tokens. Slices go into the other buffer, since blocks may still be reading this one.
__global__ void __launch_bounds__(kSelectThreads, 1)
    MatrixRoundKernel(Problem problem, Workspace workspace, const int32_t* is_visual, Round round,
                      int64_t* kept_index) {
  RoundsShared& shared = *reinterpret_cast<RoundsShared*>(DynamicShared());
  unsigned* const likeness_max = reinterpret_cast<unsigned*>(&shared + 1);  // [kSliceTokens]
  unsigned* const likeness_min = likeness_max + kSliceTokens;               // [kSliceTokens]
  float* const priority = reinterpret_cast<float*>(likeness_min + kSliceTokens);  // [S]
  int* const chunk = reinterpret_cast<int*>(priority + problem.tokens);           // [S]
  const SampleViews views = ViewsOf(problem, workspace, is_visual, kept_index, blockIdx.z);
  const int size = views.num_visual;
  const size_t from = static_cast<size_t>(round.index % 2) * problem.tokens;
  const size_t to = static_cast<size_t>((round.index + 1) % 2) * problem.tokens;
  const int first_of_block = static_cast<int>(blockIdx.x) * kSliceTokens;
  if (!round.last && first_of_block >= size) return;

  for (int i = threadIdx.x; i < size; i += kSelectThreads) priority[i] = views.priority[from + i];
  const int count = max(0, min(round.size, views.budget - round.chosen_before));
  if (count > 0) {
    if (round.index == 0) {
      Normalise(priority, size, shared);
    } else {
      Penalise(problem, priority, size, views.likeness_max + from, views.likeness_min + from, shared);
    }
    Take(priority, size, count, chunk, shared.top);
  }
  if (round.last) {
    WriteKept(problem, views.is_visual, priority, views.kept_index, shared);
    return;
  }

  const int in_slice = static_cast<int>(threadIdx.x);
  for (int first = first_of_block; first < size; first += static_cast<int>(gridDim.x) * kSliceTokens) {
    if (in_slice < kSliceTokens) {
      likeness_max[in_slice] = 0;
      likeness_min[in_slice] = kInfinityBits;
    }
    __syncthreads();
    if (round.chosen_before + count < views.budget) {
      // The row ends at a multiple of 4, so a slice's end may lie beyond it.
      const int width = min(kSliceTokens, problem.pitch - first);
      LookUpLikeness(problem, views.matrix, chunk, count, first, width, likeness_max, likeness_min);
    }
    __syncthreads();
    if (in_slice < kSliceTokens && first + in_slice < size) {
      views.priority[to + first + in_slice] = priority[first + in_slice];
      views.likeness_max[to + first + in_slice] = likeness_max[in_slice];
      views.likeness_min[to + first + in_slice] = likeness_min[in_slice];
    }
  }
}

// The choice of one round by one block, for more tokens than shared memory or the matrix takes: priorities stay in
// global memory, and the similarity kernel then fills in the likeness that the next round's launch applies.
__global__ void __launch_bounds__(kSelectThreads, 1)
    LargeRoundKernel(Problem problem, Workspace workspace, const int32_t* is_visual, Round round,
                     int64_t* kept_index) {
  RoundsShared& shared = *reinterpret_cast<RoundsShared*>(DynamicShared());
  const SampleViews views = ViewsOf(problem, workspace, is_visual, kept_index, blockIdx.z);
  const int size = views.num_visual;
  const int count = max(0, min(round.size, views.budget - round.chosen_before));
  if (count > 0) {
    if (round.index == 0) {
      Normalise(views.priority, size, shared);
    } else {
      Penalise(problem, views.priority, size, views.likeness_max, views.likeness_min, shared);
    }
    Take(views.priority, size, count, views.chunk, shared.top);
    for (int i = threadIdx.x; i < size; i += kSelectThreads) {
      views.likeness_max[i] = 0;
      views.likeness_min[i] = kInfinityBits;
    }
  }
  if (round.last) WriteKept(problem, views.is_visual, views.priority, views.kept_index, shared);
}

__global__ void KeepAllKernel(Problem problem, int64_t* kept_index) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < problem.tokens) kept_index[static_cast<size_t>(blockIdx.z) * problem.tokens + i] = i;
}

}  // namespace

cudaError_t LaunchAllRounds(const Problem& problem, const Inputs& inputs, const Workspace& workspace, int chunk,
                            int growth, int64_t* kept_index, cudaStream_t stream) {
  const size_t words = 2 * static_cast<size_t>(problem.tokens) + 2 * static_cast<size_t>(problem.pitch);
  return Launch(AllRoundsKernel, dim3(1, 1, problem.batch), kSelectThreads,
                sizeof(RoundsShared) + words * sizeof(float), stream, problem, workspace, inputs.is_visual, chunk,
                growth, kept_index);
}

cudaError_t LaunchRound(const Problem& problem, const Inputs& inputs, const Workspace& workspace, const Round& round,
                        const Gpu& gpu, int64_t* kept_index, cudaStream_t stream) {
  if (problem.tokens > kMatrixTokens) {
    return Launch(LargeRoundKernel, dim3(1, 1, problem.batch), kSelectThreads, sizeof(RoundsShared), stream, problem,
                  workspace, inputs.is_visual, round, kept_index);
  }
  // Every block repeats the choice and fills a multiprocessor: a second wave of them would double the time.
  const int at_once = std::max(1, gpu.multiprocessors / problem.batch);
  const int blocks = round.last ? 1 : std::min(DivUp(problem.tokens, kSliceTokens), at_once);
  const size_t words = 2 * static_cast<size_t>(kSliceTokens) + 2 * static_cast<size_t>(problem.tokens);
  return Launch(MatrixRoundKernel, dim3(blocks, 1, problem.batch), kSelectThreads,
                sizeof(RoundsShared) + words * sizeof(float), stream, problem, workspace, inputs.is_visual, round,
                kept_index);
}

cudaError_t LaunchKeepAll(const Problem& problem, int64_t* kept_index, cudaStream_t stream) {
  constexpr int kThreads = 256;
  return Launch(KeepAllKernel, dim3(DivUp(problem.tokens, kThreads), 1, problem.batch), kThreads, 0, stream, problem,
                kept_index);
}

}  // namespace iwp
