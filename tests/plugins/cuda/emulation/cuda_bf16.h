// bfloat16: the upper half of a float.
#pragma once

#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float x) {  // the kernels convert nothing but zero to it
    std::uint32_t word;
    std::memcpy(&word, &x, sizeof(word));
    bits = static_cast<std::uint16_t>(word >> 16);
  }
  std::uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 x) {
  const std::uint32_t word = static_cast<std::uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &word, sizeof(value));
  return value;
}
