// Device code that the kernels share: number formats, shared memory, asynchronous copies, tensor-core instructions.
#pragma once

#include <cstdint>
#include <cstring>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#ifdef IWP_EMULATION
// The tests also compile these sources for the CPU, with these few primitives in plain C++.
#include "emulated_primitives.h"
#endif

namespace iwp {

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kWarp = 32;

__device__ __forceinline__ float ToFloat(float x) { return x; }
__device__ __forceinline__ float ToFloat(__half x) { return __half2float(x); }
__device__ __forceinline__ float ToFloat(__nv_bfloat16 x) { return __bfloat162float(x); }

// Elements of T in one 16-byte access.
template <typename T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T));

// Reads N elements; `from` is aligned to them.
template <int N, typename T>
__device__ __forceinline__ void LoadFloats(const T* from, float (&to)[N]) {
  static_assert(N == 1 || N * sizeof(T) == 16 || N * sizeof(T) == 8, "an access is one element, 8 or 16 bytes");
  if constexpr (N == 1) {
    to[0] = ToFloat(*from);
  } else {
    using Word = std::conditional_t<N * sizeof(T) == 16, uint4, uint2>;
    const Word word = *reinterpret_cast<const Word*>(from);
    T parts[N];
    memcpy(static_cast<void*>(parts), &word, sizeof(word));
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = ToFloat(parts[i]);
  }
}

#ifndef IWP_EMULATION

__device__ __forceinline__ unsigned char* DynamicShared() {
  extern __shared__ __align__(16) unsigned char iwp_dynamic_shared[];
  return iwp_dynamic_shared;
}

// Copies 16 aligned bytes from global to shared memory, or writes 16 zero bytes; done after CopyWait and a barrier.
__device__ __forceinline__ void CopyAsync16(void* shared, const void* global, bool valid) {
#if __CUDA_ARCH__ >= 800
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(address), "l"(global), "r"(bytes) : "memory");
#else
  *static_cast<uint4*>(shared) = valid ? *static_cast<const uint4*>(global) : make_uint4(0, 0, 0, 0);
#endif
}

// What an atomicAdd of any block made of a counter, read anew at each call, and a moment's rest between two reads. A
// __threadfence after it orders what this thread and, past a barrier, its block read next.
__device__ __forceinline__ unsigned LoadCounter(const unsigned* counter) {
  return *static_cast<const volatile unsigned*>(counter);
}
__device__ __forceinline__ void SpinWait() { __nanosleep(20); }

// Closes a group of copies.
__device__ __forceinline__ void CopyCommit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

// Waits until this thread has at most `kPending` groups under way.
template <int kPending>
__device__ __forceinline__ void CopyWait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
#endif
}

// Four 8x8 matrices of 16-bit elements: lane l gives the address of row l % 8 of matrix l / 8, and receives from each
// matrix elements 2 * (l % 4) and the next of row l / 4.
__device__ __forceinline__ void LoadMatrices(unsigned (&to)[4], const void* row) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}

// c += a b^T for a warp: a is 16 rows x 16, b is 8 rows x 16, and a lane's c is (l / 4, 2 * (l % 4)), the next column,
// and the same two columns eight rows down.
template <typename T>
__device__ __forceinline__ void MultiplyAdd(float& c0, float& c1, float& c2, float& c3, const unsigned (&a)[4],
                                            unsigned b0, unsigned b1) {
  if constexpr (sizeof(T) != 2) {
    static_assert(sizeof(T) == 2, "tensor cores take 16-bit elements here");
  } else if constexpr (std::is_same_v<T, __half>) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#elif __CUDA_ARCH__ >= 750
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};\n"
        : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
        : "r"(a[0]), "r"(a[1]), "r"(b0));
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};\n"
        : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
        : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
  } else {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
  }
}

#endif  // IWP_EMULATION

#ifdef IWP_EMULATION
#define IWP_ARCH IWP_EMULATED_ARCH
#elif defined(__CUDA_ARCH__)
#define IWP_ARCH __CUDA_ARCH__
#else
#define IWP_ARCH 0
#endif

// Whether this architecture multiplies T on tensor cores (Turing has them for fp16 and not for bf16).
template <typename T>
constexpr bool kHasTensorCores =
    (std::is_same_v<T, __half> && IWP_ARCH >= 750) || (std::is_same_v<T, __nv_bfloat16> && IWP_ARCH >= 800);

__device__ __forceinline__ float WarpSum(float x, int width = kWarp) {
  for (int offset = width / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kFullWarp, x, offset);
  return x;
}

__device__ __forceinline__ float WarpMax(float x, int width = kWarp) {
  for (int offset = width / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, offset));
  return x;
}

template <typename Integer, typename = std::enable_if_t<std::is_integral_v<Integer>>>
__device__ __forceinline__ Integer WarpMax(Integer x) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x = max(x, __shfl_xor_sync(kFullWarp, x, offset));
  return x;
}

__device__ __forceinline__ float WarpMin(float x, int width = kWarp) {
  for (int offset = width / 2; offset > 0; offset /= 2) x = fminf(x, __shfl_xor_sync(kFullWarp, x, offset));
  return x;
}

}  // namespace iwp
