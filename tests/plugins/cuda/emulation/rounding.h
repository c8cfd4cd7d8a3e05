// Where a GPU rounds otherwise than C++ does. With a block set, sums are taken as a tensor core takes them: that many
// exact products and the running sum are aligned to the largest, cut to 24 + extra bits and added, and the result is cut
// again (Fasi et al., Numerical behavior of NVIDIA tensor cores, 2021, and later work: blocks of 4 and 0 bits on Turing,
// 8 and 1 on Ampere, 16 and 2 on Hopper). Exponentials are then off by a unit in the last place.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "settings.h"

namespace emulation {

constexpr int kDepth = 16;  // products that one instruction adds

struct Rounding {
  int block;  // 0: every product is added by itself, rounded to nearest
  int extra_bits;
};
extern Rounding rounding;  // of the launch at hand

// Products of tiny numbers are normal in double precision, so that exponents stand in the bits.
constexpr int kExponentBias = 1023;
constexpr int kMantissaBits = 52;

inline int Exponent(double x) {
  std::uint64_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return static_cast<int>(bits >> kMantissaBits & 0x7ff) - kExponentBias;
}

inline double PowerOfTwo(int exponent) {
  const std::uint64_t bits = static_cast<std::uint64_t>(exponent + kExponentBias) << kMantissaBits;
  double x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

inline float TowardZero(double x) {
  const float nearest = static_cast<float>(x);
  return std::fabs(static_cast<double>(nearest)) > std::fabs(x) ? std::nextafterf(nearest, 0.0f) : nearest;
}

inline float AddProducts(float sum, const float (&a)[kDepth], const float (&b)[kDepth]) {
  if (rounding.block == 0) {
    for (int k = 0; k < kDepth; ++k) sum += a[k] * b[k];
    return sum;
  }
  for (int first = 0; first < kDepth; first += rounding.block) {
    double terms[kDepth + 1] = {sum};
    int largest = sum != 0.0f ? Exponent(sum) : -1000;
    int count = 1;
    for (int k = first; k < first + rounding.block; ++k) {
      if (a[k] == 0.0f || b[k] == 0.0f) continue;
      largest = std::max(largest, Exponent(a[k]) + Exponent(b[k]));
      terms[count++] = static_cast<double>(a[k]) * b[k];
    }
    if (largest == -1000) continue;
    const int shift = 23 + rounding.extra_bits - largest;
    const double scale = PowerOfTwo(shift);
    std::int64_t total = 0;
    for (int i = 0; i < count; ++i) total += static_cast<std::int64_t>(terms[i] * scale);
    sum = TowardZero(static_cast<double>(total) * PowerOfTwo(-shift));
  }
  return sum;
}

// One unit up, one down or none, as the argument has it.
inline float Off(float result, float argument) {
  std::uint32_t bits;
  std::memcpy(&bits, &argument, sizeof(bits));
  const std::uint32_t draw = (bits * 2654435761u) >> 30;
  if (rounding.block == 0 || !(result > 0.0f) || result == 1.0f || draw > 1) return result;
  return std::nextafterf(result, draw == 0 ? 0.0f : 4.0f);
}

inline float GpuExp2(float x) { return Off(std::exp2(x), x); }

}  // namespace emulation

#define exp2f emulation::GpuExp2
