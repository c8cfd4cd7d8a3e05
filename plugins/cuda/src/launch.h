// How kernels are launched.
#pragma once

#include <algorithm>

#include <cuda_runtime.h>

#include "problem.h"

namespace iwp {

// `together`: the launch fails unless all its blocks are resident at once.
template <typename... Parameters, typename... Arguments>
cudaError_t LaunchBlocks(bool together, void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes,
                         cudaStream_t stream, Arguments&&... arguments) {
  constexpr size_t kSharedWithoutOptIn = 48 * 1024;
  if (shared_bytes > kSharedWithoutOptIn) {
    const cudaError_t error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute cooperative = {};  // a CUDA graph keeps it
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  config.attrs = &cooperative;
  config.numAttrs = together ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

template <typename... Parameters, typename... Arguments>
cudaError_t Launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes, cudaStream_t stream,
                   Arguments&&... arguments) {
  return LaunchBlocks(false, kernel, grid, threads, shared_bytes, stream, static_cast<Arguments&&>(arguments)...);
}

// A kernel of blocks in teams, one block a multiprocessor at most: see team.cuh. Batches of more samples than there is
// room for leave each team with several.
template <typename... Parameters, typename... Arguments>
cudaError_t LaunchTeams(void (*kernel)(Parameters...), const Problem& problem, const Gpu& gpu, int threads,
                        size_t shared_bytes, cudaStream_t stream, Arguments&&... arguments) {
  const int for_each = std::max(1, gpu.multiprocessors / problem.batch);
  const int blocks = std::min(DivUp(problem.tokens, kTeamSlice), for_each);
  const int teams = std::min(problem.batch, gpu.multiprocessors / blocks);
  return LaunchBlocks(blocks > 1, kernel, dim3(blocks, 1, teams), threads, shared_bytes, stream,
                      static_cast<Arguments&&>(arguments)...);
}

}  // namespace iwp
