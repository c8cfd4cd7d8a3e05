// The PTX instructions that device.cuh wraps, in plain C++, after the fragment layouts of the PTX ISA (ldmatrix
// .m8n8.x4, mma.m16n8k16 for .f16 and .bf16).
#pragma once

#include <cstring>
#include <type_traits>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_runtime.h"

namespace iwp {

inline float ToFloat(__half x);
inline float ToFloat(__nv_bfloat16 x);

inline unsigned char* DynamicShared() { return emulation::DynamicSharedMemory(); }

inline unsigned LoadCounter(const unsigned* counter) { return emulation::ReadCounter(counter); }
inline void SpinWait() { emulation::SpinWait(); }

inline void CopyAsync16(void* shared, const void* global, bool valid) {
  if ((reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global)) % 16 != 0) std::abort();
  emulation::QueueCopy(shared, valid ? global : nullptr);
}
inline void CopyCommit() { emulation::CommitCopies(); }
template <int kPending>
void CopyWait() {
  emulation::WaitCopies(kPending);
}

inline void LoadMatrices(unsigned (&to)[4], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) std::abort();
  const auto* payloads = emulation::WarpCollective(emulation::kLoadMatrices, &row, sizeof(row));
  const int lane = emulation::Lane();
  for (int matrix = 0; matrix < 4; ++matrix) {
    const auto* from = emulation::ReadPayload<const unsigned char*>(payloads[matrix * 8 + lane / 4]);
    std::memcpy(&to[matrix], from + lane % 4 * 4, 4);
  }
}

struct Fragments {
  unsigned a[4];
  unsigned b[2];
};

// Element `index` (low or high half) of a register.
template <typename T>
float HalfOf(unsigned word, int index) {
  const std::uint16_t bits = static_cast<std::uint16_t>(word >> (16 * index));
  T element;
  std::memcpy(&element, &bits, sizeof(bits));
  return ToFloat(element);
}

template <typename T>
void MultiplyAdd(float& c0, float& c1, float& c2, float& c3, const unsigned (&a)[4], unsigned b0, unsigned b1) {
  const Fragments mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
  const auto* payloads = emulation::WarpCollective(emulation::kMultiplyAdd, &mine, sizeof(mine));
  const int group = emulation::Lane() / 4;
  const int in_group = emulation::Lane() % 4;
  float* const c[2][2] = {{&c0, &c1}, {&c2, &c3}};
  // Register 2 * h + r of a lane (g, t) holds A[g + 8 r][8 h + 2 t + {0, 1}]; register h of B holds B[8 h + 2 t + {0,
  // 1}][g].
  float rows[2][emulation::kDepth];
  float columns[2][emulation::kDepth];
  for (int t = 0; t < 4; ++t) {
    const auto of_row = emulation::ReadPayload<Fragments>(payloads[group * 4 + t]);
    for (int side = 0; side < 2; ++side) {
      const auto of_column = emulation::ReadPayload<Fragments>(payloads[(in_group * 2 + side) * 4 + t]);
      for (int half = 0; half < 2; ++half) {
        for (int element = 0; element < 2; ++element) {
          const int depth = 8 * half + 2 * t + element;
          rows[side][depth] = HalfOf<T>(of_row.a[2 * half + side], element);
          columns[side][depth] = HalfOf<T>(of_column.b[half], element);
        }
      }
    }
  }
  for (int row = 0; row < 2; ++row) {
    for (int column = 0; column < 2; ++column) {
      *c[row][column] = emulation::AddProducts(*c[row][column], rows[row], columns[column]);
    }
  }
}

}  // namespace iwp
