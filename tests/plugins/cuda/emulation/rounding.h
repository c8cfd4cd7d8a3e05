// Where a GPU rounds otherwise than C++ does. With IWP_EMULATED_BLOCK set, sums are taken as a tensor core takes them:
// that many exact products and the running sum are aligned to the largest, cut to 24 + IWP_EMULATED_EXTRA_BITS bits and
// added, and the result is cut again (Fasi et al., Numerical behavior of NVIDIA tensor cores, 2021, and later work: 4
// and 0 on Turing, 8 and 1 on Ampere, 16 and 2 on Hopper). Exponentials are then off by a unit in the last place.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace emulation {

constexpr int kDepth = 16;  // products that one instruction adds

#ifdef IWP_EMULATED_BLOCK

inline float TowardZero(double x) {
  const float nearest = static_cast<float>(x);
  return std::fabs(static_cast<double>(nearest)) > std::fabs(x) ? std::nextafterf(nearest, 0.0f) : nearest;
}

inline float AddProducts(float sum, const float (&a)[kDepth], const float (&b)[kDepth]) {
  for (int first = 0; first < kDepth; first += IWP_EMULATED_BLOCK) {
    double terms[kDepth + 1] = {sum};
    int largest = sum != 0.0f ? std::ilogb(sum) : -1000;
    int count = 1;
    for (int k = first; k < first + IWP_EMULATED_BLOCK; ++k) {
      if (a[k] == 0.0f || b[k] == 0.0f) continue;
      largest = std::max(largest, std::ilogb(a[k]) + std::ilogb(b[k]));
      terms[count++] = static_cast<double>(a[k]) * b[k];
    }
    const int shift = 23 + IWP_EMULATED_EXTRA_BITS - largest;
    double total = 0.0;
    for (int i = 0; i < count; ++i) total += std::trunc(std::ldexp(terms[i], shift));
    sum = TowardZero(std::ldexp(total, -shift));
  }
  return sum;
}

// One unit up, one down or none, as the argument has it.
inline float Off(float result, float argument) {
  std::uint32_t bits;
  std::memcpy(&bits, &argument, sizeof(bits));
  const std::uint32_t draw = (bits * 2654435761u) >> 30;
  if (!(result > 0.0f) || result == 1.0f || draw > 1) return result;
  return std::nextafterf(result, draw == 0 ? 0.0f : 4.0f);
}

inline float GpuExp(float x) { return Off(std::exp(x), x); }
inline float GpuExp2(float x) { return Off(std::exp2(x), x); }

#else

inline float AddProducts(float sum, const float (&a)[kDepth], const float (&b)[kDepth]) {
  for (int k = 0; k < kDepth; ++k) sum += a[k] * b[k];
  return sum;
}

inline float GpuExp(float x) { return std::exp(x); }
inline float GpuExp2(float x) { return std::exp2(x); }

#endif

}  // namespace emulation

#define expf emulation::GpuExp
#define exp2f emulation::GpuExp2
