// The part of CUDA's runtime header that the kernels use, over the scheduler.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#include "rounding.h"
#include "scheduler.h"
#include "settings.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict

inline const emulation::Dim3& threadIdx = emulation::thread_index;
inline const emulation::Dim3& blockIdx = emulation::block_index;
inline const emulation::Dim3& blockDim = emulation::block_size;
inline const emulation::Dim3& gridDim = emulation::grid_size;

using std::max;
using std::min;

struct CUstream_st;
using cudaStream_t = CUstream_st*;

enum cudaError_t { cudaSuccess = 0, cudaErrorLaunchFailure = 719, cudaErrorCooperativeLaunchTooLarge = 720 };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

struct dim3 : emulation::Dim3 {
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : emulation::Dim3{x, y, z} {}
};

enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative = 2 };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int cooperative;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

// The number of multiprocessors decides how heads and slices are split over blocks, so tests vary it.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = IWP_EMULATED_ARCH / 100;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = (IWP_EMULATED_ARCH < 800 ? 64 : 99) * 1024;
      break;
    default:
      *value = emulation::Setting("MULTIPROCESSORS", 16);
  }
  return cudaSuccess;
}

inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }

inline const char* cudaGetErrorString(cudaError_t) { return "an emulated launch failed"; }

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const dim3& grid = config->gridDim;
  const bool together = config->numAttrs > 0 && config->attrs->val.cooperative != 0;
  // One block for each multiprocessor: blocks that wait for each other are large here.
  if (together && grid.x * grid.y * grid.z > static_cast<unsigned>(emulation::Setting("MULTIPROCESSORS", 16))) {
    return cudaErrorCooperativeLaunchTooLarge;
  }
  const bool done = emulation::RunGrid(grid, config->blockDim, config->dynamicSmemBytes, together,
                                       [&] { kernel(Parameters(arguments)...); });
  return done ? cudaSuccess : cudaErrorLaunchFailure;
}

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
inline float __fmul_rn(float a, float b) { return a * b; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float __ldcg(const float* at) { return *at; }
inline void __threadfence() { emulation::Fence(); }
inline void __syncthreads() { emulation::BlockBarrier(); }

// Threads take turns, so a load and a store are atomic together; ThreadSanitizer must see that they are. Of fences it
// knows nothing: an addition after one passes on the order that the fence makes.
template <typename T>
T atomicAdd(T* at, T value) {
  if (emulation::Fenced()) return __atomic_fetch_add(at, value, __ATOMIC_ACQ_REL);
  const T before = __atomic_load_n(at, __ATOMIC_RELAXED);
  __atomic_store_n(at, before + value, __ATOMIC_RELAXED);
  return before;
}
inline unsigned atomicMax(unsigned* at, unsigned value) {
  const unsigned before = __atomic_load_n(at, __ATOMIC_RELAXED);
  __atomic_store_n(at, std::max(before, value), __ATOMIC_RELAXED);
  return before;
}
inline unsigned atomicMin(unsigned* at, unsigned value) {
  const unsigned before = __atomic_load_n(at, __ATOMIC_RELAXED);
  __atomic_store_n(at, std::min(before, value), __ATOMIC_RELAXED);
  return before;
}

namespace emulation {

enum Operation { kBallot, kShuffle, kShuffleXor, kShuffleUp, kMatchAny, kLoadMatrices, kMultiplyAdd };

template <typename T>
T ReadPayload(const Payload& payload, size_t index = 0) {
  T value;
  std::memcpy(&value, payload.bytes + index * sizeof(T), sizeof(T));
  return value;
}

}  // namespace emulation

template <typename T>
T __shfl_sync(unsigned, T value, int lane) {
  const auto* payloads = emulation::WarpCollective(emulation::kShuffle, &value, sizeof(value));
  return emulation::ReadPayload<T>(payloads[lane]);
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  const auto* payloads = emulation::WarpCollective(emulation::kShuffleXor, &value, sizeof(value));
  return emulation::ReadPayload<T>(payloads[emulation::Lane() ^ mask]);
}
template <typename T>
T __shfl_up_sync(unsigned, T value, int offset) {
  const auto* payloads = emulation::WarpCollective(emulation::kShuffleUp, &value, sizeof(value));
  const int source = emulation::Lane() - offset;
  return source < 0 ? value : emulation::ReadPayload<T>(payloads[source]);
}
inline unsigned __ballot_sync(unsigned, bool value) {
  const auto* payloads = emulation::WarpCollective(emulation::kBallot, &value, sizeof(value));
  unsigned lanes = 0;
  for (int lane = 0; lane < emulation::kLanes; ++lane) {
    if (emulation::ReadPayload<bool>(payloads[lane])) lanes |= 1u << lane;
  }
  return lanes;
}
inline unsigned __match_any_sync(unsigned, unsigned value) {
  const auto* payloads = emulation::WarpCollective(emulation::kMatchAny, &value, sizeof(value));
  unsigned peers = 0;
  for (int lane = 0; lane < emulation::kLanes; ++lane) {
    if (emulation::ReadPayload<unsigned>(payloads[lane]) == value) peers |= 1u << lane;
  }
  return peers;
}
