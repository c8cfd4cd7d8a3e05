// The C interface: checks, scratch memory, and the sequence of launches.
#include "iwp_select_tokens.h"

#include <cmath>

#include "problem.h"

namespace iwp {
namespace {

constexpr int kMaxTokens = 1 << 20;
constexpr int kMaxKvHeads = 4096;
constexpr int kMaxGridZ = 65535;
constexpr size_t kAlignment = 256;

int Check(const IwpSelectTokensParams& p) {
  const bool shape = p.batch >= 0 && p.batch <= kMaxGridZ && p.kv_heads >= 1 && p.kv_heads <= kMaxKvHeads &&
                     p.tokens >= 0 && p.tokens <= kMaxTokens && p.head_dim >= 1 && p.head_dim <= kMaxHeadDim &&
                     p.num_kept >= 0 && p.num_kept <= p.tokens;
  if (!shape) return IWP_BAD_SHAPE;
  const bool options = p.data_type >= IWP_FLOAT32 && p.data_type <= IWP_BFLOAT16 &&
                       p.similarity >= IWP_SIMILARITY_DUAL_WEIGHT && p.similarity <= IWP_SIMILARITY_KERNEL &&
                       (p.duplication_norm == IWP_DUPLICATION_NONE || p.duplication_norm == IWP_DUPLICATION_MINMAX) &&
                       (p.select == IWP_SELECT_MMR || p.select == IWP_SELECT_COVERAGE) && p.chunk >= 1 && p.growth >= 1 && std::isfinite(p.penalty) && p.penalty >= 0.0f;
  return options ? IWP_OK : IWP_BAD_OPTION;
}

Problem MakeProblem(const IwpSelectTokensParams& p) {
  Problem problem = {};
  problem.batch = p.batch;
  problem.kv_heads = p.kv_heads;
  problem.tokens = p.tokens;
  problem.head_dim = p.head_dim;
  problem.num_kept = p.num_kept;
  problem.pitch = DivUp(p.tokens, 4) * 4;
  problem.penalty = p.penalty;
  problem.minmax = p.duplication_norm == IWP_DUPLICATION_MINMAX;
  problem.coverage = p.select == IWP_SELECT_COVERAGE;
  problem.data_type = static_cast<IwpDataType>(p.data_type);
  return problem;
}

bool IsAligned(const void* pointer, size_t alignment) { return reinterpret_cast<uintptr_t>(pointer) % alignment == 0; }

int ErrorOf(cudaError_t error) { return error == cudaSuccess ? IWP_OK : IWP_CUDA_ERROR + static_cast<int>(error); }

// Importance alone ranks the tokens when duplication weighs nothing: then one round chooses them all.
bool NeedsDuplication(const Problem& problem) { return problem.coverage || problem.penalty > 0.0f; }

size_t MatrixRows(const Problem& problem) {
  if (problem.tokens <= kMatrixTokens) return NeedsDuplication(problem) ? problem.tokens : 0;
  return problem.coverage ? problem.num_kept : 0;
}

// Which input each factor of the similarity compares: null for one that it lacks, so that nothing reads it.
Inputs MakeInputs(const Problem& problem, int similarity, const float* importance, const void* key, const void* value,
                  const int32_t* is_visual) {
  if (!NeedsDuplication(problem)) return {importance, nullptr, nullptr, is_visual};
  switch (similarity) {
    case IWP_SIMILARITY_VALUE:
      return {importance, nullptr, value, is_visual};
    case IWP_SIMILARITY_KEY:
      return {importance, nullptr, key, is_visual};
    case IWP_SIMILARITY_KERNEL:
      return {importance, key, nullptr, is_visual};
    default:
      return {importance, key, value, is_visual};
  }
}

cudaError_t FindGpu(Gpu* gpu) {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&gpu->multiprocessors, cudaDevAttrMultiProcessorCount, device);
  }
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&gpu->major, cudaDevAttrComputeCapabilityMajor, device);
  int shared_bytes = 0;
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  gpu->shared_bytes = shared_bytes;
  return error;
}

cudaError_t LaunchRounds(const Problem& problem, const Inputs& inputs, const Workspace& workspace, int chunk,
                         int growth, const Gpu& gpu, int64_t* kept_index, cudaStream_t stream) {
  Round round = {0, 0, chunk, false};
  while (!round.last) {
    // There are at most num_kept visual tokens to choose, so that many rounds are enough whatever their number.
    round.last = round.size >= problem.num_kept - round.chosen_before;
    cudaError_t error = LaunchRound(problem, inputs, workspace, round, gpu, kept_index, stream);
    if (error == cudaSuccess && !round.last && problem.tokens > kMatrixTokens) {
      error = LaunchSimilarityRound(problem, inputs, workspace, round, gpu, stream);
    }
    if (error != cudaSuccess) return error;
    ++round.index;
    round.chosen_before += round.size;
    round.size = growth > problem.tokens / round.size ? problem.tokens : round.size * growth;
  }
  return cudaSuccess;
}

cudaError_t Enqueue(const Problem& problem, const Inputs& inputs, const Workspace& workspace, int chunk, int growth,
                    int64_t* kept_index, cudaStream_t stream) {
  if (problem.num_kept == problem.tokens) return LaunchKeepAll(problem, kept_index, stream);

  Gpu gpu = {};
  cudaError_t error = FindGpu(&gpu);
  if (error == cudaSuccess) error = LaunchTokenStats(problem, inputs, workspace, stream);
  if (error == cudaSuccess && NeedsDuplication(problem) && problem.tokens <= kMatrixTokens) {
    error = LaunchSimilarityMatrix(problem, inputs, workspace, gpu, stream);
  }
  if (error != cudaSuccess) return error;

  if (problem.coverage) return LaunchCoverage(problem, inputs, workspace, gpu, kept_index, stream);
  const int first_chunk = NeedsDuplication(problem) && chunk < problem.tokens ? chunk : problem.tokens;
  if (problem.tokens <= kOneBlockTokens) {
    return LaunchAllRounds(problem, inputs, workspace, first_chunk, growth, kept_index, stream);
  }
  if (TakesSmallRounds(problem, gpu, first_chunk, growth)) {
    return LaunchSmallRounds(problem, inputs, workspace, first_chunk, gpu, kept_index, stream);
  }
  return LaunchRounds(problem, inputs, workspace, first_chunk, growth, gpu, kept_index, stream);
}

}  // namespace

size_t LayOutWorkspace(const Problem& problem, void* base, Workspace* workspace) {
  size_t used = 0;
  const auto take = [&](auto& array, size_t elements) {
    using Array = std::remove_reference_t<decltype(array)>;
    array = reinterpret_cast<Array>(reinterpret_cast<uintptr_t>(base) + used);
    const size_t bytes = elements * sizeof(*array);
    used += (bytes + kAlignment - 1) / kAlignment * kAlignment;
  };
  const size_t batch = problem.batch;
  const size_t tokens = problem.tokens;
  const size_t kv_heads = problem.kv_heads;
  take(workspace->num_visual, batch);
  take(workspace->visual_index, batch * tokens);
  take(workspace->square, batch * kv_heads * tokens);
  take(workspace->inverse_norm, batch * kv_heads * tokens);
  take(workspace->priority, batch * 2 * tokens);
  take(workspace->likeness_max, batch * 2 * tokens);
  take(workspace->likeness_min, batch * 2 * tokens);
  take(workspace->chunk, batch * tokens);
  take(workspace->matrix, batch * MatrixRows(problem) * problem.pitch);
  const size_t partial_tiles = NeedsDuplication(problem) && problem.kv_heads > 1 ? kMaxPartialTiles : 0;
  take(workspace->partial, partial_tiles * kTileRows * kTileColumns);
  take(workspace->tiles_done, kMaxPartialTiles);
  take(workspace->arrived, batch);
  take(workspace->residual, problem.coverage ? batch * 2 * kPanel * problem.pitch : 0);
  take(workspace->panel_factor, problem.coverage ? batch * kPanel * problem.num_kept : 0);
  return used;
}

}  // namespace iwp

extern "C" size_t iwp_select_tokens_workspace(const IwpSelectTokensParams* params) {
  if (params == nullptr || iwp::Check(*params) != IWP_OK) return 0;
  // The matrix of pairs goes with the longest prompt that still has one, which may be shorter than `tokens`.
  IwpSelectTokensParams with_matrix = *params;
  if (with_matrix.tokens > iwp::kMatrixTokens) with_matrix.tokens = iwp::kMatrixTokens;
  iwp::Workspace workspace;
  const size_t here = iwp::LayOutWorkspace(iwp::MakeProblem(*params), nullptr, &workspace);
  const size_t there = iwp::LayOutWorkspace(iwp::MakeProblem(with_matrix), nullptr, &workspace);
  return here > there ? here : there;
}

extern "C" int iwp_select_tokens(const IwpSelectTokensParams* params, const float* importance, const void* key,
                                 const void* value, const int32_t* is_visual, int64_t* kept_index, void* workspace,
                                 size_t workspace_bytes, CUstream_st* stream) {
  if (params == nullptr) return IWP_NULL_POINTER;
  const int checked = iwp::Check(*params);
  if (checked != IWP_OK) return checked;
  if (params->batch == 0 || params->num_kept == 0) return IWP_OK;
  if (importance == nullptr || key == nullptr || value == nullptr || is_visual == nullptr || kept_index == nullptr ||
      workspace == nullptr) {
    return IWP_NULL_POINTER;
  }
  if (!iwp::IsAligned(workspace, iwp::kAlignment)) return IWP_MISALIGNED;

  iwp::Problem problem = iwp::MakeProblem(*params);
  iwp::Workspace arrays;
  if (workspace_bytes < iwp::LayOutWorkspace(problem, workspace, &arrays)) return IWP_WORKSPACE_TOO_SMALL;
  const size_t element = params->data_type == IWP_FLOAT32 ? 4 : 2;
  problem.aligned = params->head_dim * element % 16 == 0 && iwp::IsAligned(key, 16) && iwp::IsAligned(value, 16);
  const iwp::Inputs inputs = iwp::MakeInputs(problem, params->similarity, importance, key, value, is_visual);
  return iwp::ErrorOf(iwp::Enqueue(problem, inputs, arrays, params->chunk, params->growth, kept_index, stream));
}

extern "C" const char* iwp_select_tokens_error_string(int error) {
  switch (error) {
    case IWP_OK:
      return "no error";
    case IWP_BAD_SHAPE:
      return "a size is out of range: kv_heads must be within 1 and 4096, head_dim within 1 and 256, tokens within 0 and "
             "2^20, num_kept within 0 and tokens, batch within 0 and 65535";
    case IWP_BAD_OPTION:
      return "an option is out of range: chunk and growth must be 1 or more, penalty finite and 0 or more, data_type, "
             "similarity, duplication_norm and select one of their enumerations";
    case IWP_NULL_POINTER:
      return "a pointer is null";
    case IWP_MISALIGNED:
      return "the workspace is not aligned to 256 bytes";
    case IWP_WORKSPACE_TOO_SMALL:
      return "the workspace is smaller than these sizes need: iwp_select_tokens_workspace tells how much suffices";
    default:
      return error >= IWP_CUDA_ERROR ? cudaGetErrorString(static_cast<cudaError_t>(error - IWP_CUDA_ERROR))
                                     : "unknown error";
  }
}
